"""Compare both copies while the guest writes, find what differs, and mend the secondary's (R17).

Begins with a barrier, so that both disks hold what is compared, and asks every question at one
position of the stream: what differs is never a write under way. Data is mended by writing the
primary's block again, as a write like any other: recorded in the log, sent, and retired behind a
barrier (Z2). What differs in names or attributes is left to a resync of just those inodes, for
which the session ends. The primary's files are never touched.
"""

from __future__ import annotations

import logging
import stat
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from hyperha.errors import ReplicationError
from hyperha.replication import wire
from hyperha.replication.clock import now_ms
from hyperha.replication.comparison import (
    inode_digest,
    inode_of,
    is_gone,
    listing_digest,
    listing_of,
    path_text,
    unless_gone,
    zone_digests,
)
from hyperha.replication.control import Difference, StartVerify, VerifyTold
from hyperha.replication.inquiry import Ended, Inquiry
from hyperha.replication.intent_log import HOLD
from hyperha.replication.operations import NO_ID, ROOT_ID, FileId, Record, RecordKind, Target
from hyperha.replication.primary import Primary
from hyperha.replication.runs import runs
from hyperha.replication.stream import PrimarySession
from hyperha.replication.wire import BLOCK_BYTES, ZONE_BYTES, Frame, Kind

log = logging.getLogger(__name__)

_TOLD_EVERY_MS: Final = 500
_EXAMPLES: Final = 20
_VISITS: Final = 5
"""How often a directory that the guest keeps changing is looked at again."""


Told = Callable[[VerifyTold], None]


class Verify(Inquiry):
    """One verification over a session in sync. `start` returns at once; `told` hears of it."""

    def __init__(
        self, primary: Primary, session: PrimarySession, told: Told, order: StartVerify
    ) -> None:
        super().__init__(primary, session)
        self.findings = VerifyTold(order.request)
        self._told = told
        self._repair = order.repair
        self._stop = threading.Event()
        self._told_ms = now_ms()
        self._pending: deque[FileId] = deque((ROOT_ID,))
        self._visits: dict[FileId, int] = {}
        self._seen: set[FileId] = set()
        self._files: deque[FileId] = deque()
        self._unequal: set[Record] = set()
        self._before = 0
        """The number of the stream when it began."""
        self._barrier = threading.Event()
        self._barrier_problem = ""
        self._thread = threading.Thread(target=self._run, name="verify", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End it soon; what was found so far is told."""
        self._stop.set()

    def _run(self) -> None:
        primary, problem = self._primary, ""
        try:
            self._work()
        except Ended:
            problem = "it was stopped" if self._stop.is_set() else "the session ended"
        except Exception as failure:
            if not isinstance(failure, OSError | ReplicationError):
                log.exception("the verification ended in an unforeseen way")
            problem = f"it failed: {failure}"
        finally:
            with primary.lock:
                if primary.changed == self._note_live:
                    primary.changed = None
                primary.watched.clear()
                primary.watched_ends.clear()
        self._told(replace(self.findings, finished=True, text=problem))
        if self._unequal and self._repair and not problem:
            # Records that cannot retire: the next session begins by making them equal (Z4).
            # No operation between: its number would take their place.
            with primary.operation:
                primary.intent.activate(self._unequal, HOLD)
                with primary.lock:
                    # Also where they found no slot: no later number takes the place of this one.
                    primary.intent.touch(self._unequal, HOLD)
                self._session.fail("names or attributes differ on the secondary: they are resynced")

    def _work(self) -> None:
        primary = self._primary
        with primary.lock:
            if primary.session is not self._session or not self._session.copied:
                raise Ended
            primary.changed = self._note_live
            self._before = primary.number
        self._flush_both()
        while self._pending or self._files:
            while self._pending:
                self._continue()
                with primary.lock:
                    directory = self._pending.popleft()
                    self._visits[directory] = self._visits.get(directory, 0) + 1
                self._directory(directory)
            if self._files:
                self._continue()
                self._file(self._files.popleft())
            if not self._pending and not self._files:
                # The last answers may ask for more.
                self._settle_replies()

    def _flush_both(self) -> None:
        def done(ok: bool, text: str) -> None:
            self._barrier_problem = "" if ok else text or "the barrier failed"
            self._barrier.set()

        self._primary.barriers.start(done, forget_all=False)
        while not self._barrier.wait(0.2):
            if self._stop.is_set() or self._primary.session is not self._session:
                raise Ended
        if self._barrier_problem:
            raise ReplicationError(self._barrier_problem)

    def _continue(self) -> None:
        self._room()
        if self._stop.is_set() or self._primary.session is not self._session:
            raise Ended

    def _note_live(self, records: tuple[Record, ...]) -> None:
        """A change of names: what has moved into a directory seen already is not missed. The
        caller has the pipeline's lock."""
        for record in records:
            file = record.file
            if record.kind is not RecordKind.DIRECTORY or file not in self._visits:
                continue
            if self._visits[file] < _VISITS and file not in self._pending:
                self._pending.append(file)

    def _count(self, **more: int) -> None:
        """Add to the findings."""
        found = self.findings
        self.findings = replace(
            found, **{name: getattr(found, name) + by for name, by in more.items()}
        )

    def unasked(self, frame: Frame) -> bool:
        """An answer to a verification that was stopped before it came."""
        return frame.number <= self._before

    def progress(self) -> None:
        """Tell how far it is, twice a second."""
        now = now_ms()
        if now - self._told_ms >= _TOLD_EVERY_MS:
            self._told_ms = now
            self._told(self.findings)

    # --- questions ------------------------------------------------------------------------

    def _directory(self, directory: FileId) -> None:
        """Compare a directory at one position of the stream, and learn what is in it."""
        primary = self._primary
        with primary.operation:
            try:
                if not self._has_name(directory):
                    return
                listing = listing_of(self._store, directory)
            except OSError as error:
                if is_gone(error):
                    return
                raise
            digest = listing_digest(listing, self._session.seed)
            record = Record(RecordKind.DIRECTORY, directory)
            with primary.lock:
                payload = wire.encode_digest(directory, digest)
                again = partial(self._look_again, directory)
                self._put(Kind.COMPARE_LISTING, [payload], self._other(record, again))
        self._count(objects=1)
        for entry in listing.entries:
            if entry.file == NO_ID or entry.file in self._seen:
                continue
            self._seen.add(entry.file)
            if stat.S_ISDIR(entry.attributes.mode):
                with primary.lock:
                    self._pending.append(entry.file)
            elif stat.S_ISREG(entry.attributes.mode):
                self._files.append(entry.file)
                self._count(total_bytes=entry.attributes.size)

    def _look_again(self, directory: FileId) -> None:
        with self._primary.lock:
            if directory not in self._pending:
                self._pending.append(directory)

    def _file(self, file: FileId) -> None:
        size = self._inode(file)
        if size is None:
            return
        self._count(objects=1)
        for offset in range(0, size, ZONE_BYTES):
            self._continue()
            if not self._zone(file, offset):
                return
            self._count(done_bytes=min(ZONE_BYTES, size - offset))

    def _inode(self, file: FileId) -> int | None:
        """Compare what is known of a file besides its data; its size, None when it is gone."""
        primary = self._primary
        with primary.operation:
            # The secondary gets a written file's time only now and then (Z9).
            primary.send_times(file)
            try:
                if not self._has_name(file):
                    return None
                inode = inode_of(self._store, Target(file))
            except OSError as error:
                if is_gone(error):
                    return None
                raise
            digest = inode_digest(inode, self._session.seed)
            record = Record(RecordKind.INODE, file)
            with primary.lock:
                payload = wire.encode_digest(file, digest)
                again = partial(self._inode, file)
                self._put(Kind.COMPARE_INODE, [payload], self._other(record, again))
        return inode.attributes.size

    def _zone(self, file: FileId, offset: int) -> bool:
        """Compare the data of a zone; False when the file is gone."""

        def read() -> list[bytes]:
            # What is read from the disk; holes cost the guest nothing.
            found = self._store.data_ranges(file, offset, offset + ZONE_BYTES)
            self._throttle.spend(sum(length for _, length in found))
            digests = zone_digests(self._store, file, offset, self._session.seed)
            return [wire.encode_digests(wire.ZoneDigests(file, offset, digests))]

        resumes = self._session.resumes

        def answered(frame: Frame) -> None:
            if resumes == self._session.resumes:
                self._blocks(file, offset, frame)
            elif wire.decode_different(frame.payload):
                self._zone(file, offset)

        try:
            self._steady(file, offset // ZONE_BYTES, read, Kind.COMPARE, answered)
        except OSError as error:
            if is_gone(error):
                return False
            raise
        return True

    # --- differences ----------------------------------------------------------------------

    def _other(self, record: Record, again: Callable[[], object]) -> Callable[[Frame], None]:
        """What to do with an answer. One to a question of before the session went on over another
        line is no finding: what was sent again then may be newer than the question (T4)."""
        resumes = self._session.resumes

        def answered(frame: Frame) -> None:
            if not wire.decode_different(frame.payload) or not self._has_name(record.file):
                return
            if resumes == self._session.resumes:
                self._differs(record)
            else:
                again()

        return answered

    def _differs(self, record: Record) -> None:
        self._count(others=1)
        self._unequal.add(record)
        if record.kind is RecordKind.INODE:
            self._unequal.add(Record(RecordKind.WHOLE_FILE, record.file))
        self._example(record.file, 0, 0)

    def _blocks(self, file: FileId, offset: int, frame: Frame) -> None:
        different = wire.decode_different(frame.payload)
        if not different or not self._has_name(file):
            return
        self._count(blocks=len(different))
        # Of a file that is resynced as a whole afterwards no block is written: the secondary may
        # lack it, or have something else in its place.
        mends = self._repair and Record(RecordKind.INODE, file) not in self._unequal
        for first, count in runs(different):
            start, length = offset + first * BLOCK_BYTES, count * BLOCK_BYTES
            self._example(file, start, length)
            if mends:
                with unless_gone():
                    self._mend(file, start, length, count)

    def _example(self, file: FileId, offset: int, length: int) -> None:
        if len(self.findings.examples) < _EXAMPLES:
            example = Difference(path_text(self._store, file), offset, length)
            examples = (*self.findings.examples, example)
            self.findings = replace(self.findings, examples=examples)

    def _mend(self, file: FileId, offset: int, length: int, blocks: int) -> None:
        """Write the primary's content again on the secondary; live writes keep their place."""
        self._wait_for_room()
        if not self._primary.write_again(self._session, file, offset, length):
            raise Ended
        self._count(repaired=blocks)
