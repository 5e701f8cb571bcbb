"""The primary's pipeline: every change is logged, done here, sent, and answered when rules allow.

Called by the one thread that reads /dev/fuse; its order is the order of the stream (T2), and it
never waits for the peer (T1): what an idle connection takes at once it sends itself. What the rules
do not allow to be answered yet is parked; the thread that receives acknowledgements answers it
(T6). The core decides who must have an operation before the guest is answered (`mode`); nothing
here decides about roles, and no answer rests on a clock.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import Event, LocalDiskFailed, SessionLost, SessionUp
from hyperha.domain import SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication import privileges, wire
from hyperha.replication.barriers import Barriers
from hyperha.replication.capacity import least_bytes
from hyperha.replication.comparison import is_gone
from hyperha.replication.control import EngineConfig, LogLine
from hyperha.replication.handshake import Welcome
from hyperha.replication.intent_log import HOLD, Entry, IntentLog
from hyperha.replication.operations import (
    OFFSET_LIMIT,
    ROOT_ID,
    Answer,
    Change,
    FileId,
    GiveBack,
    InDoubt,
    Record,
    RecordKind,
    Rename,
    SetTimes,
    Target,
    Truncate,
    discard,
    done_already,
)
from hyperha.replication.parking import Ledger
from hyperha.replication.room import RoomWatch
from hyperha.replication.sender import Sender
from hyperha.replication.stopwatch import Stopwatch, Timed
from hyperha.replication.store import Store
from hyperha.replication.stream import PrimarySession
from hyperha.replication.syncer import Syncer
from hyperha.replication.wire import Kind
from hyperha.replication.wire_changes import encode_change

Report = Callable[[Event | LogLine], None]
WRITE, BARRIER = Timed.WRITE, Timed.BARRIER
_ZONE_SHIFT: Final = 20
_NONE: Final[tuple[Record, ...]] = ()
_DISK_ERRORS: Final = (errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.EUCLEAN)
"""Errors of a local write that mean a failed disk (D10); others are the guest's to know."""
_CHANGE_ERRORS: Final = (errno.EIO, errno.EUCLEAN)
"""The same of other changes, of which the rest may be about the one inode."""


class Primary(Ledger):
    """Implements `Pipeline`. The control thread changes `mode` and sessions; see each method."""

    def __init__(
        self, store: Store, intent: IntentLog, config: EngineConfig, report: Report
    ) -> None:
        super().__init__(store, intent, config)
        self.report = report
        self.syncer = Syncer(store, self._sync_failed)
        self.barriers = Barriers(self)
        self.stopwatch = Stopwatch()
        self.operation = threading.Lock()
        """Held while an operation is under way: a resync that finds no quiet moment takes it."""
        self.resync_started: Callable[[PrimarySession, Welcome, list[Record]], None] = _no_resync
        self.keeps: Sender | None = None
        self.room = RoomWatch(store, self._peer_room, report)
        self.writes = 0
        self.written_bytes = 0
        self._active: dict[tuple[int, FileId, int], Entry] = intent.active
        self._strict = config.strict
        self._writable = False

    # --- the data path's port -------------------------------------------------------------

    def writable(self) -> bool:
        """False outside PRIM and ALONE (M2, M3)."""
        return self._writable

    def write(
        self,
        file: FileId,
        offset: int,
        data: bytes | memoryview,
        *,
        barrier: bool,
        answer: Answer,
        give_back: GiveBack | None = None,
    ) -> bool:
        """One write: its zone durable in the log (Z2), sent, applied, parked."""
        answer = self.stopwatch.begin(BARRIER if barrier else WRITE, answer)
        with self.operation:
            if self._refusing:
                self._refuse(answer)
                return False
            return self._write(file, offset, data, barrier or self._strict, answer, give_back)

    def _write(
        self,
        file: FileId,
        offset: int,
        data: bytes | memoryview,
        barrier: bool,
        answer: Answer,
        give_back: GiveBack | None,
    ) -> bool:
        size = len(data)
        zone = offset >> _ZONE_SHIFT
        kept, sender, records = False, None, _NONE
        if (offset + size - 1) >> _ZONE_SHIFT != zone or (1, file, zone) not in self._active:
            records = self._zones(file, offset, size)
            self.send_kept()  # Since the log's disk is waited for.
            self._activate(records)
        with self.lock:
            entry = None if records else self._active.get((1, file, zone))
            if entry is None and not records:
                # Retired since the look at it.
                records = self._record_late(file, offset, size)
            session = self.session
            number = self.number = self.begun = self.number + 1
            if entry is not None:
                entry.last = number
            else:
                self.intent.touch(records, number)
            # Whom to ask is settled here, before the mode can change (M1).
            flush = self._begin_barrier(number, session, answer) if barrier else None
            if session is not None:
                remote = flush is not None and flush.session is not None
                head = session.write_head(number, file, offset, size, remote)
                sender = session.put_write(head, data, number, file, give_back)
                kept = give_back is not None and sender is None
            if self.watched:
                self._touch(file, offset, size)
        if sender is not None:
            if give_back is None and not records and self._has_company(number):
                self._keep(sender, head, data)
            else:
                kept = not sender.send_now(head, data, give_back) and give_back is not None
        error = self._perform(file, offset, data)
        if error is not None:
            self._write_failed(number, file, (offset, size), error, answer, barrier)
            return kept
        if session is not None:
            # Only now: told before, it would be the time of before (Z9).
            self._written.add(file)
        self.writes += 1
        self.written_bytes += size
        self.syncer.note_written(file, size)
        if self.watched:
            with self.lock:
                self._touch(file, offset, size)
        if flush is None:
            self._complete(number, session, answer)
        else:
            self._complete_barrier(number, file, flush)
        return kept

    def _perform(self, file: FileId, offset: int, data: bytes | memoryview) -> OSError | None:
        """Write here. Whatever goes wrong, the peer has been sent what may not be here."""
        try:
            if self.store.write(file, offset, data) != len(data):
                return OSError(errno.ENOSPC, "the disk took only a part of a write")
        except OSError as problem:
            return problem
        except Exception as problem:
            return OSError(errno.EIO, str(problem))
        return None

    def _record_late(self, file: FileId, offset: int, size: int) -> tuple[Record, ...]:
        """Make the zones of a write durable in the log; the caller has the lock, and gets it back
        after it was let go meanwhile."""
        records = self._zones(file, offset, size)
        self.lock.release()
        try:
            self._activate(records)
        finally:
            self.lock.acquire()
        return records

    def change(
        self,
        records: tuple[Record, ...],
        execute: Callable[[], Change | None],
        answer: Answer,
    ) -> None:
        """Anything but a plain write: records durable, done here, sent with its result (Z4)."""
        with self.operation:
            self._change(records, execute, answer)

    def _change(
        self,
        records: tuple[Record, ...],
        execute: Callable[[], Change | None],
        answer: Answer,
    ) -> None:
        if self._refusing:
            raise OSError(errno.EIO, self._refusing)
        self.send_kept()
        self._activate(records)
        with self.lock:
            self.version += 1
        try:
            guard = self.store.guard
            if guard is not None:
                guard.records(self.store, records)
            change = execute()
            payload = b"" if change is None else _encoded(change)
        except Exception as problem:
            self._change_failed(records, problem)
            raise
        with self.lock:
            self.version += 1
            self.renames += isinstance(change, Rename)
            number = self.number = self.number + 1
            self.intent.touch(records, number)
            session = self.session
            if change is None:
                self.completed = number
            elif session is not None:
                raw = wire.frame(Kind.CHANGE, session.tag, number, payload)
                session.put(raw, number)
                if self.changed is not None:
                    self.changed(records)
        if change is None:
            answer(0, b"")
        else:
            self._complete(number, session, answer)

    def flush(self, file: FileId, *, data_only: bool, answer: Answer) -> None:
        """fsync here and there; both begin after what came before on this file (F2)."""
        answer = self.stopwatch.begin(BARRIER, answer)
        if self._refusing:
            self._refuse(answer)
            return
        # fdatasync promises no time: there it waits for the next second (Z9).
        times = self._times(file) if not data_only and file in self._written else None
        with self.lock:
            number = self.number = self.number + 1
            flush = self._begin_barrier(number, self.session, answer)
            session, sender = self.session, None
            change = asked = b""
            if session is not None and times is not None and times[0] == self.version:
                self._written.discard(file)
                change = wire.frame(Kind.CHANGE, session.tag, 0, times[1])
            if session is not None and flush.session is session:
                flags = wire.FLAG_DATA_ONLY if data_only else 0
                asked = wire.frame(Kind.FLUSH, session.tag, number, file, flags)
                sender = session.put_flush(change, asked, number)
            elif session is not None and change:
                session.put(change)
            self.completed = number
        if sender is not None:
            sender.send_now(change, asked)
        self.syncer.file(file, data_only, lambda error: self._synced(number, flush, error))

    def send_kept(self) -> None:
        """Send what was kept for company, without waiting. By the thread that reads /dev/fuse, and
        by the watch when that stands still: whoever takes the sender here sends."""
        with self.lock:
            sender, self.keeps = self.keeps, None
        if sender is not None:
            sender.send_kept()

    def _keep(self, sender: Sender, head: bytes, data: bytes | memoryview) -> None:
        with self.lock:
            sender.keep(head, data)
            self.keeps = sender

    def _has_company(self, number: int) -> bool:
        """Whether others wait for the peer, so that more requests are likely to follow at once.
        With a safety copy a write may wait for a disk, which nothing kept may wait for."""
        return number - self.acknowledged_number > 1 and self.store.guard is None

    def closed(self, file: FileId) -> None:
        """The last writing handle is gone: its mtime may be sent (Z9)."""
        if file in self._written:
            self.send_times(file)

    def write_again(self, session: PrimarySession, file: FileId, offset: int, length: int) -> bool:
        """The peer gets what the file holds here in a range (R17): a write that no guest waits for.

        Recorded first, so that the range stays a candidate until both have it (Z2). False when the
        session is not this one any more. Not for the thread that reads /dev/fuse. Raises OSError.
        """
        records = self._zones(file, offset, length)
        with self.operation:
            data = self.store.read(file, offset, length)
            self._activate(records)
            with self.lock:
                if session is not self.session:
                    # Nothing was changed for which they would have to be kept.
                    self.intent.touch(records, self.number)
                    return False
                number = self.number = self.begun = self.number + 1
                self.intent.touch(records, number)
                if data:
                    size = len(data)
                    head = session.write_head(number, file, offset, size, False)
                    session.put(head + data, number)
                self.completed = number
            for change in privileges.given_again(self.store, file):
                inode = (Record(RecordKind.INODE, file),)
                self._change(inode, partial(done_already, change), discard)
        self._written.add(file)
        return True

    # --- steps of an operation ------------------------------------------------------------

    def _touch(self, file: FileId, offset: int, size: int) -> None:
        """Tell a resync that the zones of a write changed; the caller has the lock."""
        for zone in range(
            offset >> _ZONE_SHIFT, (max(offset, offset + size - 1) >> _ZONE_SHIFT) + 1
        ):
            if (file, zone) in self.watched:
                self.watched[file, zone] += 1
        if offset + size > self.watched_ends.get(file, OFFSET_LIMIT):
            for key in self.watched:
                if key[0] == file:
                    self.watched[key] += 1

    def _zones(self, file: FileId, offset: int, size: int) -> tuple[Record, ...]:
        last = max(offset, offset + size - 1) >> _ZONE_SHIFT
        return tuple(
            Record(RecordKind.ZONE, file, zone) for zone in range(offset >> _ZONE_SHIFT, last + 1)
        )

    def _activate(self, records: tuple[Record, ...]) -> None:
        try:
            self.intent.activate(records)
        except OSError as error:
            self.disk_failed(f"the intent log cannot be written: {error.strerror or error}")
            raise

    # --- failures -------------------------------------------------------------------------

    def _refuse(self, answer: Answer) -> None:
        if self._broken:
            with self.lock:
                # After Release the guest hears an error, since nothing was done.
                self._parked.append((self.number, None, answer, errno.EIO))
            return
        answer(errno.EIO, b"")

    def _write_failed(
        self,
        number: int,
        file: FileId,
        place: tuple[int, int],
        error: OSError,
        answer: Answer,
        barrier: bool,
    ) -> None:
        """A write that was sent and failed here: the peer gets what the file really holds (Z4)."""
        offset, size = place
        problem = ""
        if error.errno in _DISK_ERRORS:
            problem = f"a write failed: {error.strerror or error}"
        else:
            try:
                end = self.store.attributes(Target(file))
                actual = self.store.read(file, offset, size)
            except OSError as second:
                problem = f"reading back after a failed write failed: {second}"
        if problem:
            self.disk_failed(problem)
            with self.lock:
                if not barrier:
                    # Of no session: no acknowledgement answers it, nor what comes after it.
                    self._parked.append((number, None, answer, errno.EIO))
            return
        with self.lock:
            # No barrier any more: the order to end the freeze was faster (M7).
            answered = barrier and self._flushes.pop(number, None) is None
            self._touch(file, offset, size)
            self.completed = number
            session = self.session
            if session is not None:
                if actual:
                    self.number += 1
                    length = len(actual)
                    head = session.write_head(self.number, file, offset, length, False)
                    session.put(head + actual, self.number)
                self.number += 1
                change = encode_change(Truncate(file, end.size, end.mtime_ns))
                raw = wire.frame(Kind.CHANGE, session.tag, self.number, change)
                session.put(raw, self.number)
        self.room.refused(error, plain_write=True)
        if not answered:
            answer(error.errno or errno.EIO, b"")

    def _change_failed(self, records: tuple[Record, ...], problem: Exception) -> None:
        """A change that was not sent failed here. If it may have been done in part its records
        stay until a resync has looked (Z4): for that the session must end."""
        known = isinstance(problem, OSError) and not isinstance(problem, InDoubt)
        broken = isinstance(problem, OSError) and problem.errno in _CHANGE_ERRORS
        with self.lock:
            self.version += 1
            number = self.number = self.completed = self.number + 1
            self.intent.touch(records, number if known and not broken else HOLD)
            session = self.session
        if broken:
            self.disk_failed(f"a change failed: {problem}")
        elif not known and session is not None:
            session.fail(f"the result of a change is not known: {problem or type(problem)}")
        if isinstance(problem, OSError):
            self.room.refused(problem, plain_write=False)

    def _peer_room(self) -> int | None:
        session = self.session
        return None if session is None else session.peer_room_bytes

    def _sync_failed(self, error: OSError) -> None:
        self.disk_failed(f"fsync failed: {error.strerror or error}")

    def disk_failed(self, text: str) -> None:
        """D10: nothing is answered any more; what is parked stays frozen."""
        with self.lock:
            first = not self._broken
            self._broken = True
            self._refusing = text
        if first:
            self.report(LocalDiskFailed(text))

    # --- orders of the core ---------------------------------------------------------------

    def promote(self, mode: Acknowledge) -> None:
        """Accept mutations, answered as `mode` says."""
        with self.lock:
            # Records left from the time as secondary carry the peer's numbers.
            lasts = [one.last for one in self._active.values() if one.last < HOLD]
            self.number = max(self.number, *lasts, 0)
        self._writable = True
        self.set_mode(mode)

    def demote(self) -> None:
        """Refuse mutations, and forget what is parked (M2, M3)."""
        self._writable = False
        self.forget_parked()
        self.room.forget()

    def open_session(self, key: SessionKey, start: SessionStart) -> None:
        """Connect to the peer; everything from here on goes into the session's stream."""
        self.close_session(clean=True)
        session = PrimarySession(self.config, key, start, self.lock)
        if start is SessionStart.FULL:
            session.least_bytes = least_bytes(self.store.directory(ROOT_ID).fd)
        with self.lock:
            self.session = session
            self.acknowledged_number = 0
        # After the attachment: an operation is either a candidate or in the stream.
        candidates = self.intent.candidate_count()
        if start is not SessionStart.IN_SYNC:
            self.intent.retain()
        session.open(self, candidates)

    def close_session(self, *, clean: bool) -> None:
        """End the session without a report; what needs the peer stays parked."""
        session = self.session
        if session is not None and self._detach(session, "the session was closed", lambda: None):
            session.close(clean=clean)

    def _detach(self, session: PrimarySession, text: str, report: Callable[[], None]) -> bool:
        """Let go of the session; False if that was done before. What waited for it learns the end
        after the core has: to the core it is the loss, not a failure of its own (D1)."""
        with self.lock:
            if session is not self.session:
                return False
            self.session = None
            self._written.clear()
            waiters, self._ack_waiters = self._ack_waiters, []
            ready = self._take_ready()
        self._answer(ready)
        report()
        for _, done in waiters:
            done(False, text)
        self.barriers.session_ended(session, text)
        return True

    def _times(self, file: FileId) -> tuple[int, bytes] | None:
        """The change that gives a written file its mtime on the peer too (Z9), and the version that
        it belongs to: under another one it is not to be sent. None when the file is gone."""
        version = self.version
        if not self.store.has_learned(file):
            # Gone as well; looking for it would hold up the watch.
            return None
        try:
            mtime_ns = self.store.attributes(Target(file)).mtime_ns
        except OSError:
            return None
        return version, encode_change(SetTimes(file, mtime_ns))

    def send_times(self, file: FileId) -> None:
        """Send the mtime that a written file has (Z9), unless a change is under way."""
        self._written.discard(file)
        for _ in range(3):
            times = self._times(file)
            if times is None:
                return
            with self.lock:
                if self.session is None:
                    return
                if times[0] == self.version:
                    raw = wire.frame(Kind.CHANGE, self.session.tag, 0, times[1])
                    self.session.put(raw)
                    return
        self._written.add(file)

    def note_written(self, file: FileId) -> None:
        """A resync wrote the peer's file: its mtime there is to be set again (Z9)."""
        self._written.add(file)

    def send_all_times(self) -> None:
        """`send_times` for all that was written since the last time."""
        for file in list(self._written):
            self.send_times(file)

    def close(self) -> None:
        """End session and threads."""
        self.close_session(clean=True)
        self.barriers.close()
        self.syncer.close()

    # --- what the peer says ---------------------------------------------------------------

    def session_up(self, session: PrimarySession, welcome: Welcome, theirs: list[Record]) -> None:
        """The handshake is done: report, and begin the resync that the start asks for."""
        if session.start is SessionStart.IN_SYNC:
            session.copied = True
            self.report(SessionUp(session.key, 0))
            return
        self.resync_started(session, welcome, theirs)

    def session_lost(self, session: PrimarySession, text: str, refused: bool) -> None:
        """Everything unacknowledged stays parked until the core has decided (D1)."""
        self._detach(session, text, lambda: self.report(SessionLost(session.key, text, refused)))

    def session_resumed(self, session: PrimarySession, text: str, alarm: bool) -> None:
        """T4: nothing has changed but the connections; what was said over the former ones may be
        lost, so that every barrier is asked for once more."""
        if text:
            self.report(LogLine("W", "T4", text) if alarm else LogLine("I", "D12", text))
        with self.lock:
            if session is not self.session:
                return
            asked = [n for n, one in self._flushes.items() if one.session is session]
            for number in (*asked, *self.barriers.running(session)):
                if session.repeats.asked_before(number):
                    self.number += 1
                    session.ask_again(number, self.number)

    def read_again(self, file: FileId, offset: int, length: int) -> bytes:
        """What a file holds there now; nothing when it is gone, which the peer hears later."""
        if not self.store.has_learned(file):
            # It was written by this process: without an id it is gone. Looked for in all of the
            # folder it would not be found either, and the session waits.
            return b""
        try:
            return self.store.read(file, offset, length)
        except OSError as error:
            if is_gone(error):
                return b""
            raise ReplicationError(f"what was written cannot be read again: {error}") from None

    def peer_failed(self, session: PrimarySession, text: str) -> None:
        """The peer's copy is outdated; the session ends with its own words."""
        raise ReplicationError(f"{self.config.peer} cannot apply the stream: {text}")


def _encoded(change: Change) -> bytes:
    """Of what was done here: that it cannot be said to the peer is no failure of the disk."""
    try:
        return encode_change(change)
    except ReplicationError as problem:
        raise InDoubt(errno.EOVERFLOW, problem.text) from problem


def _no_resync(session: PrimarySession, welcome: Welcome, theirs: list[Record]) -> None:
    raise ReplicationError("this process cannot resync")
