"""The primary's pipeline: every change is logged, done here, sent, and answered when rules allow.

Called by the one thread that reads /dev/fuse; its order is the order of the stream (T2), and it
never waits for the peer (T1). What the rules do not allow to be answered yet is parked; the thread
that receives acknowledgements answers it (T6). The core decides who must have an operation before
the guest is answered (`mode`); nothing here decides about roles, and no answer rests on a clock.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import Event, LocalDiskFailed, SessionLost, SessionUp
from hyperha.domain import SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication import wire
from hyperha.replication.barriers import Barriers
from hyperha.replication.control import EngineConfig, LogLine
from hyperha.replication.handshake import Welcome
from hyperha.replication.intent_log import Entry, IntentLog
from hyperha.replication.operations import (
    Answer,
    Change,
    FileId,
    Record,
    RecordKind,
    SetTimes,
    Target,
    Truncate,
)
from hyperha.replication.store import Store
from hyperha.replication.stream import PrimarySession
from hyperha.replication.syncer import Syncer
from hyperha.replication.wire import Kind
from hyperha.replication.wire_changes import encode_change

Report = Callable[[Event | LogLine], None]
BACKLOG_BYTES: Final = 32 << 20
"""While acknowledgements need this node only: beyond this much unsent, writes wait for the peer."""
_ZONE_SHIFT: Final = 20
_DISK_ERRORS: Final = (errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.EUCLEAN)
"""Errors of a local write that mean a failed disk (D10); others are the guest's to know."""

Parked = tuple[int, PrimarySession | None, Callable[..., None], tuple[Any, ...]]


class Flush:
    """A barrier that somebody waits for: done when both nodes have it on stable storage (F2)."""

    __slots__ = ("answer", "error", "local", "remote", "session")

    def __init__(self, answer: Answer, session: PrimarySession | None, *, remote: bool) -> None:
        self.answer = answer
        self.session = session
        self.local = False
        self.remote = remote
        self.error = 0


class Primary:
    """Implements `Pipeline`. The control thread changes `mode` and sessions; see each method."""

    def __init__(
        self, store: Store, intent: IntentLog, config: EngineConfig, report: Report
    ) -> None:
        self.store = store
        self.intent = intent
        self.config = config
        self.report = report
        self.lock = intent.lock
        self.syncer = Syncer(store, self._sync_failed)
        self.barriers = Barriers(self)
        self.mode = Acknowledge.NONE
        self.session: PrimarySession | None = None
        self.number = 0
        """Of the last operation or request; grows for the life of the process."""
        self.begun = 0
        """Number of the last write; it enters the stream before its local call returns."""
        self.completed = 0
        """Number of the last operation whose local call has returned."""
        self.acknowledged_number = 0
        self.version = 0
        """Grows when a change begins and when it is in the stream: who reads the tree between two
        equal values has read one position of the stream."""
        self.operation = threading.Lock()
        """Held while an operation is under way: a resync that finds no quiet moment takes it."""
        self.watched: dict[tuple[FileId, int], int] = {}
        """Like `version`, for the zones that a resync reads just now: grows when a write to the
        zone enters the stream and when its local call has returned."""
        self.changed: Callable[[tuple[Record, ...]], None] | None = None
        """Hears the records of each change in the stream, under the lock, during a resync."""
        self.resync_started: Callable[[PrimarySession, Welcome, list[Record]], None] = _no_resync
        self.writes = 0
        self.written_bytes = 0
        self._active: dict[tuple[int, FileId, int], Entry] = intent.active
        self._parked: deque[Parked] = deque()
        self._flushes: dict[int, Flush] = {}
        self._written: set[FileId] = set()
        self._ack_waiters: list[tuple[int, Callable[[bool, str], None]]] = []
        self._strict = config.strict
        self._writable = False
        self._refusing = ""
        """Why nothing is done any more: a failed disk, or a freeze that was ended (M7)."""
        self._broken = False

    # --- the data path's port -------------------------------------------------------------

    def writable(self) -> bool:
        """False outside PRIM and ALONE (M2, M3)."""
        return self._writable

    def write(
        self, file: FileId, offset: int, data: bytes | memoryview, *, barrier: bool, answer: Answer
    ) -> None:
        """One write: its zone durable in the log (Z2), sent, applied, parked."""
        with self.operation:
            self._write(file, offset, data, barrier, answer)

    def _write(
        self, file: FileId, offset: int, data: bytes | memoryview, barrier: bool, answer: Answer
    ) -> None:
        if self._refusing:
            self._refuse(answer)
            return
        size = len(data)
        zone = offset >> _ZONE_SHIFT
        barrier = barrier or self._strict
        cold = (offset + size - 1) >> _ZONE_SHIFT != zone
        while True:
            session = self.session
            payload = bytes(data) if session is not None else b""
            if cold:
                records = self._zones(file, offset, size)
                self.intent.activate(records)
            with self.lock:
                if session is not self.session:
                    continue
                entry = None if cold else self._active.get((1, file, zone))
                if entry is None and not cold:
                    cold = True
                    continue
                number = self.number = self.begun = self.number + 1
                if entry is not None:
                    entry.last = number
                else:
                    self.intent.touch(records, number)
                if session is not None:
                    remote = barrier and self.mode is not Acknowledge.LOCAL
                    self._send_write(session, number, file, offset, payload, remote)
                if self.watched:
                    self._touch(file, offset, size)
                break
        try:
            written = self.store.write(file, offset, data)
        except OSError as error:
            self._write_failed(number, file, offset, size, error, answer)
            return
        if written != size:
            full = OSError(errno.ENOSPC, "the disk took only a part of a write")
            self._write_failed(number, file, offset, size, full, answer)
            return
        if session is not None:
            self._written.add(file)
        self.writes += 1
        self.written_bytes += size
        self.syncer.note_written(file, size)
        if self.watched:
            with self.lock:
                self._touch(file, offset, size)
        if barrier:
            self._complete_barrier(number, file, session, answer)
        else:
            self._complete(number, session, answer, (0, b""))

    def change(
        self,
        records: tuple[Record, ...],
        execute: Callable[[], Change | None],
        answer: Callable[[], None],
        *,
        barrier: bool = False,
    ) -> None:
        """Anything but a plain write: records durable, done here, sent with its result (Z4)."""
        with self.operation:
            self._change(records, execute, answer, barrier)

    def _change(
        self,
        records: tuple[Record, ...],
        execute: Callable[[], Change | None],
        answer: Callable[[], None],
        barrier: bool,
    ) -> None:
        if self._refusing:
            raise OSError(errno.EIO, self._refusing)
        self.intent.activate(records)
        with self.lock:
            self.version += 1
        change: Change | None = None
        done = False
        try:
            change = execute()
            payload = b"" if change is None else encode_change(change)
            done = True
        finally:
            with self.lock:
                self.version += 1
                number = self.number = self.number + 1
                self.intent.touch(records, number)
                session = self.session
                if done and change is not None and session is not None:
                    flags = wire.FLAG_BARRIER if barrier else 0
                    raw = wire.frame(Kind.CHANGE, session.tag, number, payload, flags)
                    self.put(session, raw, number)
                    if self.changed is not None:
                        self.changed(records)
                if not done:
                    self.completed = number
        if change is None:
            self.completed = number
            answer()
        elif barrier:
            self._complete_barrier(number, None, session, _without_error(answer))
        else:
            self._complete(number, session, answer, ())

    def flush(self, file: FileId, *, data_only: bool, answer: Answer) -> None:
        """fsync here and there; both begin after what came before on this file (F2)."""
        if self._refusing:
            self._refuse(answer)
            return
        if file in self._written:
            self.send_times(file)
        with self.lock:
            number = self.number = self.number + 1
            session = self.session
            local_only = self.mode is Acknowledge.LOCAL
            flush = self._flushes[number] = Flush(answer, session, remote=local_only)
            if session is not None and not local_only:
                flags = wire.FLAG_DATA_ONLY if data_only else 0
                self.put(session, wire.frame(Kind.FLUSH, session.tag, number, file, flags), number)
            self.completed = number
        self.syncer.file(file, data_only, lambda error: self._synced(number, flush, error))

    def closed(self, file: FileId) -> None:
        """The last writing handle is gone: its mtime may be sent (Z9)."""
        if file in self._written:
            self.send_times(file)

    # --- steps of an operation ------------------------------------------------------------

    def _touch(self, file: FileId, offset: int, size: int) -> None:
        """Tell a resync that the zones of a write changed; the caller has the lock."""
        for zone in range(
            offset >> _ZONE_SHIFT, (max(offset, offset + size - 1) >> _ZONE_SHIFT) + 1
        ):
            if (file, zone) in self.watched:
                self.watched[file, zone] += 1

    def _zones(self, file: FileId, offset: int, size: int) -> tuple[Record, ...]:
        last = max(offset, offset + size - 1) >> _ZONE_SHIFT
        return tuple(
            Record(RecordKind.ZONE, file, zone) for zone in range(offset >> _ZONE_SHIFT, last + 1)
        )

    def _send_write(
        self,
        session: PrimarySession,
        number: int,
        file: FileId,
        offset: int,
        payload: bytes,
        barrier: bool,
    ) -> None:
        """Put a write into the stream; the caller has the lock."""
        announced = session.announced
        index = announced.get(file)
        put = session.put
        if index is None:
            index = announced[file] = len(announced) + 1
            put(wire.frame(Kind.BIND, session.tag, 0, wire.encode_bind(index, file)))
        put(wire.write_head(len(payload), session.tag, number, index, offset, barrier))
        put(payload)
        session.queued_bytes += len(payload)
        session.last_number = number

    def put(self, session: PrimarySession, raw: bytes, number: int = 0) -> None:
        """Put a frame into the stream; the caller has the lock. Numbered ones are acknowledged."""
        session.put(raw)
        session.queued_bytes += len(raw)
        if number:
            session.last_number = number

    def _complete(
        self,
        number: int,
        session: PrimarySession | None,
        answer: Callable[..., None],
        arguments: tuple[Any, ...],
    ) -> None:
        """The local call has returned: answer, or park until the rules allow it."""
        with self.lock:
            self.completed = number
            if self.mode is Acknowledge.LOCAL:
                now = session is None or (
                    session.queued_bytes - session.sent_bytes < BACKLOG_BYTES
                    or number <= self.acknowledged_number
                )
            elif self.mode is Acknowledge.BOTH:
                now = number <= self.acknowledged_number and session is self.session
                now = now and session is not None
            else:
                now = False
            if not now:
                self._parked.append((number, session, answer, arguments))
        if now:
            answer(*arguments)

    def _complete_barrier(
        self, number: int, file: FileId | None, session: PrimarySession | None, answer: Answer
    ) -> None:
        """A write with O_DSYNC is answered when both nodes have it on stable storage (M1)."""
        with self.lock:
            self.completed = number
            # The peer may have been faster than the local call.
            early = self.barriers.early.pop(number, False)
            remote = early or self.mode is Acknowledge.LOCAL
            flush = self._flushes[number] = Flush(answer, session, remote=remote)

        def done(error: OSError | None) -> None:
            self._synced(number, flush, error)

        if file is None:
            self.syncer.everything(done)
        else:
            self.syncer.file(file, True, done)

    def _synced(self, number: int, flush: Flush, error: OSError | None) -> None:
        with self.lock:
            if error is not None:
                # A failed disk: the answer stays away, the core abdicates (D10).
                return
            flush.local = True
            ripe = self._ripe(flush)
            if ripe:
                self._flushes.pop(number, None)
        if ripe:
            flush.answer(0, b"")

    def _ripe(self, flush: Flush) -> bool:
        if not flush.local or self.mode is Acknowledge.NONE:
            return False
        return self.mode is Acknowledge.LOCAL or flush.remote

    # --- failures -------------------------------------------------------------------------

    def _refuse(self, answer: Answer) -> None:
        if self._broken:
            with self.lock:
                # After Release the guest hears an error, since nothing was done.
                self._parked.append((self.number, None, answer, (errno.EIO, b"")))
            return
        answer(errno.EIO, b"")

    def _write_failed(
        self, number: int, file: FileId, offset: int, size: int, error: OSError, answer: Answer
    ) -> None:
        """A write that was sent and failed here: the peer gets what the file really holds (Z4)."""
        if error.errno in _DISK_ERRORS:
            self.disk_failed(f"a write failed: {error.strerror or error}")
            with self.lock:
                self._parked.append((number, self.session, answer, (errno.EIO, b"")))
            return
        try:
            end = self.store.attributes(Target(file))
            actual = self.store.read(file, offset, size)
        except OSError as second:
            self.disk_failed(f"reading back after a failed write failed: {second}")
            return
        with self.lock:
            self.completed = number
            session = self.session
            if session is not None:
                if actual:
                    self.number += 1
                    self._send_write(session, self.number, file, offset, actual, False)
                self.number += 1
                change = encode_change(Truncate(file, end.size, end.mtime_ns))
                raw = wire.frame(Kind.CHANGE, session.tag, self.number, change)
                self.put(session, raw, self.number)
        answer(error.errno or errno.EIO, b"")

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
        self._writable = True
        self.set_mode(mode)

    def demote(self) -> None:
        """Refuse mutations and forget what is parked; its records stay in the log (M2, M3)."""
        self._writable = False
        with self.lock:
            self.mode = Acknowledge.NONE
            self._parked.clear()
            self._flushes.clear()
            self._refusing = ""

    def set_mode(self, mode: Acknowledge) -> None:
        """Answer by another rule from here on; also what is parked already."""
        with self.lock:
            self.mode = mode
            if not self._broken:
                self._refusing = ""
            ready = self._take_ready()
            ripe = [(n, one) for n, one in self._flushes.items() if self._ripe(one)]
            for number, _ in ripe:
                del self._flushes[number]
        self._answer(ready)
        for _, flush in ripe:
            flush.answer(0, b"")

    def end_parked(self) -> None:
        """M7: every parked write and flush ends with EIO, also new ones, until the mode changes.

        Parked changes other than writes have no error to give: they stay parked.
        """
        with self.lock:
            if self.mode is Acknowledge.LOCAL:
                return
            self._refusing = "the freeze was ended"
            parked = [one for one in self._parked if one[3]]
            self._parked = deque(one for one in self._parked if not one[3])
            flushes = list(self._flushes.values())
            self._flushes.clear()
        for one in parked:
            one[2](errno.EIO, b"")
        for flush in flushes:
            flush.answer(errno.EIO, b"")

    def _take_ready(self) -> list[Parked]:
        """Take what may be answered; the caller has the lock."""
        parked = self._parked
        if self.mode is Acknowledge.LOCAL:
            ready = list(parked)
            parked.clear()
            return ready
        ready = []
        if self.mode is Acknowledge.BOTH and self.session is not None:
            number = self.acknowledged_number
            while parked and parked[0][0] <= number and parked[0][1] is self.session:
                ready.append(parked.popleft())
        return ready

    def _answer(self, ready: list[Parked]) -> None:
        for one in ready:
            one[2](*one[3])

    def open_session(self, key: SessionKey, start: SessionStart) -> None:
        """Connect to the peer; everything from here on goes into the session's stream."""
        self.close_session(clean=True)
        session = PrimarySession(self.config, key, start)
        with self.lock:
            self.session = session
            self.acknowledged_number = 0
        # After the attachment: an operation is either a candidate or in the stream.
        candidates = self.intent.candidate_count()
        if start is not SessionStart.IN_SYNC:
            self.intent.retain()
        session.open(self, candidates)

    def close_session(self, *, clean: bool) -> None:
        """End the session without a report; what is parked stays parked."""
        session = self._detach(None, "the session was closed")
        if session is not None:
            session.close(clean=clean)

    def _detach(self, only: PrimarySession | None, text: str) -> PrimarySession | None:
        with self.lock:
            session = self.session
            if session is None or (only is not None and session is not only):
                return None
            self.session = None
            self._written.clear()
            waiters, self._ack_waiters = self._ack_waiters, []
        for _, done in waiters:
            done(False, text)
        self.barriers.session_ended(session, text)
        return session

    def switch_to_both(self, key: SessionKey, done: Callable[[bool, str], None]) -> None:
        """R11: acknowledgement by both; `done` when everything sent earlier is acknowledged."""
        with self.lock:
            session = self.session
            if session is None or session.key != key or not session.up:
                text = "the session is not up any more"
            elif session.start is not SessionStart.IN_SYNC and not session.copied:
                text = "the resync has not copied everything"
            else:
                text = ""
                self.mode = Acknowledge.BOTH
                # Whatever an earlier session left unanswered is on the peer by now.
                self._parked = deque((n, session, f, a) for n, _, f, a in self._parked)
                if session.last_number > self.acknowledged_number:
                    self._ack_waiters.append((session.last_number, done))
                    return
                ready = self._take_ready()
        if not text:
            self._answer(ready)
        done(not text, text)

    def send_times(self, file: FileId) -> None:
        """Send the mtime that a written file has (Z9), unless a change is under way."""
        self._written.discard(file)
        for _ in range(3):
            version = self.version
            try:
                mtime_ns = self.store.attributes(Target(file)).mtime_ns
            except OSError:
                # Removed meanwhile: nothing to send.
                return
            payload = encode_change(SetTimes(file, mtime_ns))
            with self.lock:
                if self.session is None:
                    return
                if version == self.version:
                    raw = wire.frame(Kind.CHANGE, self.session.tag, 0, payload)
                    self.put(self.session, raw)
                    return
        self._written.add(file)

    def note_written(self, file: FileId) -> None:
        """A resync wrote the peer's file: its mtime there is to be set again (Z9)."""
        self._written.add(file)

    def send_all_times(self) -> None:
        """`send_times` for all that was written since the last time."""
        for file in list(self._written):
            self.send_times(file)

    def flushes_wait(self) -> bool:
        """Whether a flush waits for the peer; the caller has the lock."""
        return any(one.local and not one.remote for one in self._flushes.values())

    def parked_count(self) -> int:
        """Operations that wait for their answer."""
        return len(self._parked) + len(self._flushes)

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
        if self._detach(session, text) is None:
            return
        with self.lock:
            ready = self._take_ready()
        self._answer(ready)
        self.report(SessionLost(session.key, text, refused))

    def acknowledged(self, session: PrimarySession, number: int) -> None:
        """Cumulative: the peer has everything up to `number`."""
        with self.lock:
            if session is not self.session or number <= self.acknowledged_number:
                return
            self.acknowledged_number = number
            parked, ready = self._parked, []
            if self.mode is not Acknowledge.NONE:
                while parked and parked[0][0] <= number and parked[0][1] is session:
                    ready.append(parked.popleft())
            waiters = self._ack_waiters
            if waiters:
                self._ack_waiters = [one for one in waiters if one[0] > number]
        for one in ready:
            one[2](*one[3])
        for wanted, done in waiters:
            if wanted <= number:
                done(True, "")

    def flushed(self, session: PrimarySession, number: int) -> None:
        """The peer has what frame `number` asked for on stable storage."""
        with self.lock:
            flush = self._flushes.get(number)
            barrier = None
            if flush is not None and flush.session is session:
                flush.remote = True
                if not self._ripe(flush):
                    return
                del self._flushes[number]
            elif session is self.session:
                flush, barrier = None, self.barriers.remote_done(number)
        if flush is not None:
            flush.answer(0, b"")
        elif barrier is not None:
            self.barriers.finish(barrier)

    def peer_failed(self, session: PrimarySession, text: str) -> None:
        """The peer's copy is outdated; the session ends with its own words."""
        raise ReplicationError(f"{self.config.peer} cannot apply the stream: {text}")


def _without_error(answer: Callable[[], None]) -> Answer:
    def give(error: int, _payload: bytes) -> None:
        if not error:
            answer()

    return give


def _no_resync(session: PrimarySession, welcome: Welcome, theirs: list[Record]) -> None:
    raise ReplicationError("this process cannot resync")
