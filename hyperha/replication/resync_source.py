"""The source's side of a resync: make the target equal while the guest keeps running (R13, Z5, Z8).

Everything travels in the session's one stream: a listing, a digest or a block is read and put into
the stream at one position, so that no live operation can slip between. Candidates are directories,
inodes and zones of both nodes' logs, or everything. What the target could not do is a candidate
again; a mark that comes back clean is the end. Runs in a thread of its own; decides nothing about
roles, and a failure of it ends the session.
"""

from __future__ import annotations

import logging
import stat
import threading
from collections import deque
from contextlib import nullcontext
from typing import Final

from hyperha.core.actions import SessionStart
from hyperha.core.events import ResyncCopied, ResyncProgressed, SessionUp
from hyperha.errors import ReplicationError
from hyperha.replication import allocation, privileges, wire
from hyperha.replication.candidates import Candidates
from hyperha.replication.clock import now_ms
from hyperha.replication.comparison import inode_of, is_gone, unless_gone
from hyperha.replication.control import LogLine
from hyperha.replication.handshake import Welcome
from hyperha.replication.inquiry import GUEST, RATE, TRIES, Ended, Inquiry
from hyperha.replication.milestones import Milestones
from hyperha.replication.operations import OFFSET_LIMIT, ROOT_ID, FileId, Record, RecordKind, Target
from hyperha.replication.primary import Primary
from hyperha.replication.runs import runs
from hyperha.replication.stream import PrimarySession
from hyperha.replication.wire import BLOCK_BYTES, BLOCKS_PER_ZONE, ZONE_BYTES, Frame, Kind
from hyperha.replication.wire_changes import (
    encode_inode,
    encode_listing,
    in_frames,
)

log = logging.getLogger(__name__)

_WALKS: Final = 3
"""Through the folder beside a guest that moves things; each may miss what is moved meanwhile."""
_PROGRESS_MS: Final = 500
_RECENT_MS: Final = 5000
_SURELY: Final = 8
"""After so many wholly different zones on end the next one is taken to be different, too."""
_SAMPLED: Final = 16
"""One of so many is asked about all the same."""
_UNASKED: Final = 2 * _SAMPLED
"""So many zones at most are sent on the word of the last answer."""


class ResyncSource(Inquiry):
    """One resync. `start` returns at once."""

    def __init__(
        self, primary: Primary, session: PrimarySession, welcome: Welcome, theirs: list[Record]
    ) -> None:
        super().__init__(primary, session)
        mine = primary.intent.candidates()
        everything = session.start is SessionStart.FULL or mine is None or welcome.candidates < 0
        records = [] if everything else [*(mine or []), *theirs]
        self._todo = Candidates(primary.lock, records, everything=everything)
        self._handles = primary.intent.handles()
        self._foreign = {one.file for one in theirs} - {one.file for one in mine or ()}
        self._done_bytes = 0
        self._unlike = 0
        """Answers on end by which a whole zone differed."""
        self._unasked = 0
        """Zones that were sent without asking."""
        self._sampled = 0
        """How many these were when a zone was last asked about,"""
        self._known = 0
        """and when that one was which the last answer is about."""
        self._total_bytes = 0
        self._last_report_ms = 0
        self._points = deque([(self._started_ms, 0, dict(self.held_ms))])
        """Of the last seconds: time, bytes done, and how long it had been held back."""
        self._milestones = Milestones(self._started_ms)
        self._thread = threading.Thread(target=self._run, name="resync", daemon=True)

    def start(self) -> None:
        """Report the session and begin."""
        primary = self._primary
        with primary.lock:
            primary.changed = self._todo.note_live
        count = -1 if self._todo.everything else self._todo.count()
        primary.report(SessionUp(self._session.key, count))
        what = "everything is compared" if count < 0 else f"{count} candidates"
        self._tell("I", f"resync to {primary.config.peer} begins: {what}")
        self._thread.start()

    def _run(self) -> None:
        primary, session = self._primary, self._session
        try:
            self._work()
            session.copied = True
            primary.report(ResyncCopied(session.key))
        except Ended:
            log.info("the resync ended with its session")
        except Exception as problem:
            # Whatever it was, the session must not wait for ever for a thread that is gone.
            if not isinstance(problem, OSError | ReplicationError):
                log.exception("the resync ended in an unforeseen way")
            session.fail(f"the resync failed: {problem}")
        finally:
            with primary.lock:
                if primary.session is session or primary.session is None:
                    primary.changed = None
                    primary.watched.clear()
                    primary.watched_ends.clear()

    def _work(self) -> None:
        self._bind_known()
        while True:
            while self._todo.any():
                self._directories()
                self._inodes()
                self._data()
                self._settle_replies()
            self._primary.send_all_times()
            if self._mark():
                break
        self._report_progress(force=True)
        seconds = max(1, now_ms() - self._started_ms) / 1000
        self._tell(
            "I",
            f"resync to {self._primary.config.peer} has copied everything: "
            f"{self._done_bytes} bytes compared, {self._sent_bytes} sent in {seconds:.1f} s",
        )

    def _bind_known(self) -> None:
        """Learn where the candidates live: ours by the log, the target's by looking through."""
        store = self._store
        for file, handle in self._handles.items():
            store.bind_handle(file, handle)
        for _ in range(_WALKS):
            renames = self._renames()
            if all(store.known(file) for file in self._foreign):
                return
            for _ in store.walk():
                pass
            if renames == self._renames():
                # Nothing was moved beside the walk: what it has not met is gone.
                return
        if all(store.known(file) for file in self._foreign):
            return
        # The guest moves things all the time: once more without the guest.
        with self._primary.operation:
            for _ in store.walk():
                pass

    def _renames(self) -> int:
        """How many there were; none is under way."""
        with self._primary.operation:
            return self._primary.renames

    # --- the stream -----------------------------------------------------------------------

    def unasked(self, frame: Frame) -> bool:
        """What the target could not do, and what it needs, become candidates."""
        if frame.kind is Kind.UNSETTLED:
            for record in wire.decode_records(frame.payload, "unsettled"):
                self._again(record)
            if frame.number:
                self._waiting.pop(frame.number, None)
            return True
        if frame.kind is not Kind.RECONCILED:
            return False
        if frame.number not in self._waiting:
            return False
        for record in wire.decode_records(frame.payload, "reconciled"):
            self._todo.add(record)
        if frame.flags & wire.FLAG_LAST:
            del self._waiting[frame.number]
        return True

    def _again(self, record: Record) -> None:
        """The target could not do it: the directory that names the inode comes first, then it."""
        if not self._has_name(record.file):
            return
        self._todo.again(record)
        if record.file == ROOT_ID:
            return
        parent = self._parent_of(record.file)
        if parent is not None:
            # Not its own failure: many of its names may be reported before it is listed once.
            self._todo.add(Record(RecordKind.DIRECTORY, parent))

    def _parent_of(self, file: FileId) -> FileId | None:
        """The directory that holds a name of the inode; None when it has none any more."""
        path = self._store.path_of(file)
        if path is not None:
            parent = ROOT_ID
            try:
                for part in path.split(b"/")[:-1]:
                    parent = self._store.find(parent, part).file
                if self._store.find(parent, path.rsplit(b"/", 1)[-1]).file == file:
                    return parent
            except OSError as error:
                # Moved meanwhile; look for it below.
                log.debug("path of %s: %s", file.hex(), error)
        for found in self._store.walk():
            if found.entry.file == file:
                return found.parent
        return None

    def _mark(self) -> bool:
        """Ask whether all is settled; from a clean answer on the target is strict.

        So nothing may be left that stands before the question. What a live change leaves behind it
        needs nothing, where all directories were equal at the question.
        """
        answer: list[Frame] = []
        with self._primary.lock:
            if self._todo.left():
                return False
            self._put(Kind.MARK, [b""], answer.append)
        self._settle_replies()
        return bool(answer and answer[0].flags & wire.FLAG_CLEAN)

    # --- directories and inodes -----------------------------------------------------------

    def _directories(self) -> None:
        while (batch := self._todo.directories()) is not None:
            restless = self._todo.restless()
            if restless:
                self._at_once(restless)
            for directory in sorted(set(batch).difference(restless), key=self._depth):
                self._room()
                self._directory(directory)
            self._settle_replies()

    def _at_once(self, directories: list[FileId]) -> None:
        """List directories at one position of the stream: the guest waits until they are read, and
        nobody for the target (T1)."""
        count = len(directories)
        self._tell("I", f"{count} directories are listed while the guest waits: it moves names")
        with self._primary.operation:
            for directory in sorted(directories, key=self._depth):
                self._list(directory, quiet=True)

    def _depth(self, file: FileId) -> int:
        if file == ROOT_ID:
            return -1
        path = self._store.path_of(file)
        return 0 if path is None else path.count(b"/")

    def _directory(self, directory: FileId) -> None:
        """List a directory at one position of the stream; the target makes its own equal."""
        for attempt in range(TRIES + 1):
            quiet = attempt == TRIES
            with self._primary.operation if quiet else nullcontext():
                if self._list(directory, quiet=quiet):
                    return

    def _list(self, directory: FileId, *, quiet: bool) -> bool:
        """Whether the listing, if there is one, was true at its position. `quiet`: the caller has
        the lock of operations, so that it is."""
        primary = self._primary
        version = primary.version
        listing = self._read_listing(directory, quiet=quiet)
        if listing is None:
            self._todo.directory_gone(directory)
            return True
        payloads = in_frames(encode_listing(listing))
        with primary.lock:
            # Odd: a change is under way, which this listing may have seen, and which the target
            # would then do a second time, to other inodes.
            if version != primary.version or version & 1:
                return False
            self._put(Kind.LISTING, payloads, _nothing)
            self._todo.listed(directory, listing)
        return True

    def _inodes(self) -> None:
        for file in self._todo.inodes():
            self._room()
            if self._send_inode(file) is not None:
                with unless_gone():
                    self._reserve(file, [(0, OFFSET_LIMIT)])
                    self._give_again(file)

    def _send_inode(self, file: FileId) -> int | None:
        """Send size, attributes and xattrs of an inode; its size, or None when it is gone.

        No operation may be under way meanwhile: a write that extends the file would be undone.
        """
        primary = self._primary
        with primary.operation:
            try:
                if not self._has_name(file):
                    return None
                inode = inode_of(self._store, Target(file))
            except OSError as error:
                if is_gone(error):
                    return None
                raise
            with primary.lock:
                self._put(Kind.INODE, in_frames(encode_inode(inode)), _nothing)
        return inode.attributes.size if stat.S_ISREG(inode.attributes.mode) else None

    # --- data -----------------------------------------------------------------------------

    def _data(self) -> None:
        files = self._todo.files()
        sizes: dict[FileId, int] = {}
        for file, zones in files:
            self._room()
            size = self._send_inode(file)
            if size is not None:
                sizes[file] = size
                self._total_bytes += size if zones is None else len(zones) * ZONE_BYTES
        for file, zones in files:
            if file not in sizes:
                continue
            with unless_gone():
                if zones is None:
                    self._whole_file(file, sizes[file])
                else:
                    for zone in zones:
                        self._zone(file, zone)
                # The target has made holes of what reads as one: it keeps no room there any more.
                self._settle_replies()
                spans = [(0, OFFSET_LIMIT)]
                if zones is not None:
                    spans = [
                        (zone * ZONE_BYTES, min((zone + 1) * ZONE_BYTES, OFFSET_LIMIT))
                        for zone in zones
                    ]
                    # Where the file was longer on the target, all behind its end went with that.
                    spans.append((sizes[file], OFFSET_LIMIT))
                self._reserve(file, spans)
                self._give_again(file)
            self._settle_replies()
            self._primary.note_written(file)

    def _reserve(self, file: FileId, spans: list[tuple[int, int]]) -> None:
        """Have the target keep room where this node does without having written (fallocate)."""
        for position, end in spans:
            while position < end:
                # A change that gives room back comes before or behind, not between.
                with self._primary.operation:
                    ranges, position = allocation.kept(self._store, file, position, end)
                    with self._primary.lock:
                        for offset, length in ranges:
                            payload = wire.encode_hole(file, offset, length)
                            self._put(Kind.RESERVE, [payload], None)

    def _give_again(self, file: FileId) -> None:
        """What the target has lost of the inode by writing to it is sent once more."""
        if privileges.has_any(self._store, file):
            self._send_inode(file)

    def _whole_file(self, file: FileId, size: int) -> None:
        position = 0
        while position < size:
            start = self._skip_hole(file, position, size)
            self._done_bytes += start - position
            if start >= size:
                return
            self._zone(file, start // ZONE_BYTES)
            position = start + ZONE_BYTES

    def _skip_hole(self, file: FileId, position: int, size: int) -> int:
        """Where the next zone with data begins; the target is told of the hole before it."""
        primary = self._primary
        with primary.operation:
            data = self._first_data(file, position)
            start = size if data is None else min(size, data // ZONE_BYTES * ZONE_BYTES)
            if start > position:
                payload = wire.encode_hole(file, position, start - position)
                with primary.lock:
                    self._put(Kind.HOLE, [payload], None)
        return start

    def _zone(self, file: FileId, zone: int) -> None:
        """Send the digests of a zone; what differs on the target is sent when it answers.

        Where zone after zone was wholly different the next ones are sent without asking, but for
        samples: one that has a block in common ends that. Where answers stay away all are asked.
        """
        self._room()
        offset = zone * ZONE_BYTES

        def read() -> list[bytes]:
            digests = self._digests(file, offset)
            return [wire.encode_digests(wire.ZoneDigests(file, offset, digests))]

        before = self._unasked
        surely = self._unlike >= _SURELY and before - self._known < _UNASKED

        def answered(frame: Frame) -> None:
            self._known = max(self._known, before)
            different = wire.decode_different(frame.payload)
            whole = len(different) == BLOCKS_PER_ZONE
            self._unlike = self._unlike + 1 if whole else 0
            self._done_bytes += ZONE_BYTES
            for first, count in runs(different):
                self._blocks(file, zone, offset + first * BLOCK_BYTES, count * BLOCK_BYTES)

        if surely and before - self._sampled < _SAMPLED - 1 and self._is_full(file, offset):
            self._unasked += 1
            self._done_bytes += ZONE_BYTES
            self._blocks(file, zone, offset, ZONE_BYTES)
            return
        self._sampled = before
        self._steady(file, zone, read, Kind.DIGESTS, answered)

    def _is_full(self, file: FileId, offset: int) -> bool:
        """Whether a zone has neither holes nor the end of the file."""
        ranges = self._store.data_ranges(file, offset, offset + ZONE_BYTES)
        return ranges == [(offset, ZONE_BYTES)]

    def _blocks(self, file: FileId, zone: int, offset: int, length: int) -> None:
        """Send what differs, as it is by now: what has become a hole since is sent as one."""
        self._wait_for_room()
        with unless_gone():
            for start, size in self._without_holes(file, offset, length):
                self._send_data(file, zone, start, size)

    def _without_holes(self, file: FileId, offset: int, length: int) -> list[tuple[int, int]]:
        """Offset and length of what has data; the target is told of the holes between."""
        end = min(offset + length, OFFSET_LIMIT)
        with self._primary.operation:
            ranges = self._store.data_ranges(file, offset, end)
            position = offset
            with self._primary.lock:
                for start, size in (*ranges, (end, 0)):
                    if start > position:
                        payload = wire.encode_hole(file, position, start - position)
                        self._put(Kind.HOLE, [payload], None)
                    position = start + size
        return ranges

    # --- reports --------------------------------------------------------------------------

    def progress(self) -> None:
        """Tell the core now and then."""
        self._report_progress()

    def _report_progress(self, *, force: bool = False) -> None:
        now = now_ms()
        if not force and now - self._last_report_ms < _PROGRESS_MS:
            return
        self._last_report_ms = now
        done = min(self._done_bytes, self._total_bytes)
        elapsed = max(1, now - self._started_ms)
        rate = done * 1000 // elapsed
        left = (self._total_bytes - done) // rate if rate else None
        recent, held_back = self._recently(done, now)
        self._primary.report(
            ResyncProgressed(
                self._session.key, done, self._total_bytes, rate, left, recent, held_back
            )
        )
        if self._milestones.due(done, self._total_bytes, now):
            part = done * 100 // self._total_bytes if self._total_bytes else 0
            text = f"resync {part} %: {done} of {self._total_bytes} bytes compared"
            self._tell("I", text + self._slowed(held_back))

    def _recently(self, done: int, now: int) -> tuple[int, str]:
        """Bytes per second of the last seconds, and what held it back for most of the time."""
        self._points.append((now, done, dict(self.held_ms)))
        while len(self._points) > 2 and self._points[0][0] < now - _RECENT_MS:
            self._points.popleft()
        then, before, held = self._points[0]
        passed = max(1, now - then)
        reasons = [one for one in (GUEST, RATE) if self.held_ms[one] - held[one] > passed // 2]
        return (done - before) * 1000 // passed, reasons[0] if reasons else ""

    def _slowed(self, held_back: str) -> str:
        """The reason, for the log."""
        if held_back == RATE:
            return f", held at {self._primary.config.resync_rate_mib_s} MiB/s"
        p99_us, baseline_us = self._throttle.latency()
        if held_back != GUEST or not p99_us:
            return ""
        return (
            f", slowed for the guest: 1 % of its operations take more than {p99_us / 1000:.1f} ms, "
            f"{baseline_us / 1000:.1f} ms without a resync"
        )

    def _tell(self, level: str, text: str) -> None:
        self._primary.report(LogLine(level, "R13", text))


def _nothing(_frame: Frame) -> None:
    """Some requests are only counted."""
