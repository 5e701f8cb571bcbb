"""The secondary's applier: the primary's stream, performed in its order on this copy (T2, T3).

One thread takes frames from a queue that the receiver fills. Zones are recorded in this copy's own
log before they are changed (Z2). fsyncs run in a pool; a flush is answered when everything before
it was applied and its fsync, begun afterwards, has ended (F2). Anything that cannot be applied
makes this copy outdated: nothing after it is applied, and that is said at once.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, Protocol

from hyperha.core.facts import Shortage
from hyperha.errors import ReplicationError
from hyperha.replication import syscalls, wire
from hyperha.replication.footprint import records_of
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import (
    FileId,
    GiveBack,
    Record,
    RecordKind,
    SetTimes,
)
from hyperha.replication.safety.guard import NotSaved
from hyperha.replication.safety.undo_log import BATCH_BYTES
from hyperha.replication.steps import Steps, count_here
from hyperha.replication.store import Store
from hyperha.replication.syncer import Syncer
from hyperha.replication.syscalls import show_thread_name
from hyperha.replication.wire import ZONE_BYTES, Frame, Kind, PlainWrite
from hyperha.replication.wire_changes import decode_change, is_time

log = logging.getLogger(__name__)

_DIFFERENT_TREE: Final = frozenset(
    (
        errno.ENOENT,
        errno.EEXIST,
        errno.ESTALE,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.EINVAL,
        errno.ENODATA,
        errno.EPERM,
        errno.EMLINK,
        errno.ELOOP,
    )
)
"""While the trees still differ, a change may meet these; the resync settles it (R13)."""
_INLINE_BYTES: Final = 128 << 10
_AT_ONCE: Final = (Kind.BIND, Kind.FLUSH, Kind.CHANGE)


class ResyncTarget(Protocol):
    """What a resync does to this copy, in stream order; see `resync_target`."""

    lenient: bool
    """Until the last mark: the trees may differ, and what cannot be applied is reported."""

    def handle(self, frame: Frame) -> bytes | None:
        """Perform one frame of a resync; the frame to answer with, or None."""

    def unsettled(self, records: tuple[Record, ...]) -> bytes:
        """The frame that tells the source what could not be applied."""

    def doubtful(self, records: tuple[Record, ...]) -> bool:
        """Whether a change that worked may have met other inodes than on the source."""


class Applier:
    """Applies one session's frames. `say` sends a frame to the primary, from any thread.

    The payload of a large frame is the applier's from `put` on, until it calls `give_back`.
    """

    def __init__(
        self,
        store: Store,
        intent: IntentLog,
        syncer: Syncer,
        target: ResyncTarget,
        tag: int,
        say: Callable[[bytes], None],
        failed: Callable[[str, Shortage | None], None],
        give_back: GiveBack,
        make_room: Callable[[], bool],
    ) -> None:
        self.queue: SimpleQueue[list[Frame] | None] = SimpleQueue()
        self.waiting_bytes = 0
        """Bytes announced and not yet applied, and one per frame; receiver and applier change it
        under `_lock`. 0 means that everything acknowledged was applied, or that `failure` is set.
        """
        self.applied = 0
        """Frames applied, for the sign of life (D8'); without questions for a barrier."""
        self.steps = Steps()
        """What was done within a frame that takes long (D8')."""
        self.covered = 0
        """The primary says: on stable storage on both nodes up to this operation."""
        self.clear_pending = False
        """The map is to be forgotten behind the next barrier (R11)."""
        self.failure = ""
        self.leaving = False
        """The disk is full: what was acknowledged goes into the reserve, nothing more is (D11)."""
        self._make_room = make_room
        self._store = store
        self._intent = intent
        self._syncer = syncer
        self._target = target
        self._tag = tag
        self._say = say
        self._failed = failed
        self._give_back = give_back
        self._files: dict[int, FileId] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="apply", daemon=True)
        self._handlers: dict[Kind, Callable[[Frame], None]] = {
            Kind.WRITE: self._write,
            Kind.BIND: self._bind,
            Kind.CHANGE: self._change,
            Kind.FLUSH: self._flush,
            Kind.SYNC: self._sync,
            Kind.RETIRE: self._retire,
            Kind.LISTING: self._resync,
            Kind.INODE: self._resync,
            Kind.DIGESTS: self._resync,
            Kind.BLOCK: self._resync,
            Kind.MARK: self._resync,
            Kind.HOLE: self._resync,
            Kind.RESERVE: self._resync,
            Kind.COMPARE: self._resync,
            Kind.COMPARE_INODE: self._resync,
            Kind.COMPARE_LISTING: self._resync,
        }

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def announce(self, frames: list[Frame]) -> bool:
        """Count frames as waiting, before they are acknowledged (P8); `put` must follow.

        Whether `put` may do a part of them at once: they are few and nothing else waits.
        """
        size = _weight(frames)
        with self._lock:
            idle = not self.waiting_bytes
            self.waiting_bytes += size
        return idle and size <= _INLINE_BYTES

    def put(self, frames: list[Frame], *, at_once: bool) -> None:
        """Take announced frames, for the receiver thread.

        `at_once`: what `announce` said. Small writes to warm zones are then done here: that takes
        less than a change of threads. Anything that may wait for a disk is queued (T7).
        """
        if at_once and not self.failure:
            left = self._apply_warm(frames)
            done = _weight(frames) - _weight(left)
            with self._lock:
                self.waiting_bytes -= done
            frames = left
        if frames:
            self.queue.put(frames)

    def announce_warm(self, writes: list[PlainWrite], size: int) -> bool:
        """Count `size` bytes of writes as waiting, if `put_warm` may do them at once: they are few,
        nothing else waits, and their zones are warm. False: nothing was counted."""
        active, files = self._intent.active, self._files
        if self.waiting_bytes or self.failure or size > _INLINE_BYTES:
            return False
        if self._store.guard is not None:
            # A write may have to wait until a safety copy has what it destroys (R15).
            return False
        for _, index, offset, data in writes:
            zone = offset // ZONE_BYTES
            if (1, files.get(index), zone) not in active:
                return False
            if (offset + len(data) - 1) // ZONE_BYTES != zone:
                return False
        with self._lock:
            self.waiting_bytes += size
        return True

    def put_warm(self, writes: list[PlainWrite], size: int) -> None:
        """Do what `announce_warm` has counted, in the receiver thread: that takes less than a
        change of threads."""
        try:
            for number, index, offset, data in writes:
                try:
                    self._write_data(number, index, offset, data)
                except OSError as error:
                    self._use_reserve(error)
                    self._write_data(number, index, offset, data)
        except Exception as problem:
            self._fail_for(Kind.WRITE, problem)
        self.applied += len(writes)
        with self._lock:
            self.waiting_bytes -= size

    def _apply_warm(self, frames: list[Frame]) -> list[Frame]:
        """Apply from the front warm writes, and what belongs to a flush, which only begins here:
        that a disk is waited for is the pool's. What is left for the applier's thread."""
        active, files = self._intent.active, self._files
        for place, frame in enumerate(frames):
            if frame.kind is Kind.WRITE:
                try:
                    index, offset, data = wire.decode_write(frame.payload)
                except ReplicationError:
                    # The applier's thread meets it and says so: all of this is acknowledged (P8).
                    return frames[place:]
                if (1, files.get(index), offset // ZONE_BYTES) not in active:
                    return frames[place:]
                if not self._saved(files[index], offset, len(data)):
                    return frames[place:]
            elif frame.kind not in _AT_ONCE or (
                frame.kind is Kind.CHANGE and not is_time(frame.payload)
            ):
                return frames[place:]
            self._apply(frame)
        return []

    def finish(self) -> str:
        """No frame follows: wait until all is applied (P8). Why it was not, or nothing."""
        self.queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        return self.failure

    def _run(self) -> None:
        get = self.queue.get
        show_thread_name()
        count_here(self.steps)
        while (frames := get()) is not None:
            if self._store.guard is not None:
                frames = self._prepared(frames)
            # Before the payloads are given back.
            size = _weight(frames)
            for frame in frames:
                payload = frame.payload
                self._apply(frame)
                if type(payload) is memoryview:
                    # Nothing of a write or block is kept: the receiver may fill it anew.
                    self._give_back(payload)
            with self._lock:
                self.waiting_bytes -= size

    def _saved(self, file: FileId, offset: int, size: int) -> bool:
        """Whether a write destroys nothing that a safety copy lacks (R15)."""
        guard = self._store.guard
        if guard is None:
            return True
        try:
            handle = self._store.handle(file)
        except OSError:
            # Not here, or not yet (R13): the applier's thread knows what that means.
            return False
        return guard.saved(handle, offset, size)

    def _prepared(self, frames: list[Frame]) -> list[Frame]:
        """What waits, up to a batch, after all that its data will destroy was saved at once: a
        safety copy waits for the disk once for many writes (R15)."""
        frames = list(frames)
        size = _weight(frames)
        while size < BATCH_BYTES:
            try:
                more = self.queue.get_nowait()
            except Empty:
                break
            if more is None:
                self.queue.put(None)
                break
            frames += more
            size += _weight(more)
        if self.failure:
            return frames
        try:
            try:
                self._save_data(frames)
            except OSError as error:
                self._use_reserve(error)
                self._save_data(frames)
        except NotSaved as problem:
            self._fail(problem.text, problem.lacks)
        except OSError as problem:
            self._fail(str(problem))
        except Exception as problem:
            # The thread must live: what waits for it is acknowledged (P8).
            self._fail_for(frames[0].kind, problem)
        return frames

    def _save_data(self, frames: list[Frame]) -> None:
        guard = self._store.guard
        if guard is None:
            return
        ranges = []
        files = dict(self._files)
        for frame in frames:
            if frame.kind is Kind.BIND:
                index, file = wire.decode_bind(frame.payload)
                files[index] = file
            elif frame.kind is Kind.WRITE:
                index, offset, data = wire.decode_write(frame.payload)
                if index in files:
                    ranges.append((files[index], offset, len(data)))
            elif frame.kind is Kind.BLOCK:
                file, offset, data = wire.decode_block(frame.payload)
                ranges.append((file, offset, len(data)))
        if ranges:
            guard.prepare(self._store, ranges)

    def _apply(self, frame: Frame) -> None:
        if self.failure:
            return
        handler = self._write if frame.kind is Kind.WRITE else self._handlers[frame.kind]
        try:
            try:
                handler(frame)
            except OSError as error:
                self._use_reserve(error)
                handler(frame)
        except Exception as problem:
            self._fail_for(frame.kind, problem)
        # A question is put anew over each line: that it came is no progress (D8').
        self.applied += frame.kind is not Kind.SYNC

    def _use_reserve(self, error: OSError) -> None:
        """Raise the error, unless it is a full disk and there is a reserve to go on with (D11)."""
        if error.errno not in syscalls.FULL_ERRORS or not self._make_room():
            raise error
        self.leaving = True

    def _fail_for(self, kind: Kind, problem: Exception) -> None:
        if isinstance(problem, NotSaved):
            self._fail(problem.text, problem.lacks)
        elif isinstance(problem, ReplicationError):
            self._fail(problem.text)
        elif isinstance(problem, OSError):
            self._fail(f"{kind.name.lower()}: {problem.strerror or problem}")
        else:
            # Acknowledged and not applied: never to be taken for an equal copy (P8).
            log.error("a frame failed in an unforeseen way", exc_info=problem)
            self._fail(f"{kind.name.lower()}: {problem!r}")

    def _fail(self, text: str, lacks: Shortage | None = None) -> None:
        self.failure = text
        self._say(wire.frame(Kind.FAILED, self._tag, 0, text.encode()[:2000]))
        self._failed(text, lacks)

    # --- frames ---------------------------------------------------------------------------

    def _bind(self, frame: Frame) -> None:
        index, file = wire.decode_bind(frame.payload)
        self._files[index] = file

    def _write(self, frame: Frame) -> None:
        index, offset, data = wire.decode_write(frame.payload)
        file = self._write_data(frame.number, index, offset, data)
        if frame.flags & wire.FLAG_BARRIER:
            self._syncer.file(file, True, self._flushed(frame.number))

    def _write_data(self, number: int, index: int, offset: int, data: memoryview) -> FileId:
        """Record the zones of a write (Z2), and perform it."""
        file = self._files.get(index)
        if file is None:
            raise ReplicationError(f"a write names file {index}, which was never introduced")
        size = len(data)
        intent = self._intent
        zone = offset // ZONE_BYTES
        last = (offset + size - 1) // ZONE_BYTES if size else zone
        warm = False
        if zone == last:
            with intent.lock:
                entry = intent.active.get((1, file, zone))
                if entry is not None:
                    entry.last = number
                    warm = True
        if not warm:
            intent.activate(
                [Record(RecordKind.ZONE, file, one) for one in range(zone, last + 1)], number
            )
        try:
            written = self._store.write(file, offset, data)
        except OSError as error:
            self._tolerate(error, (Record(RecordKind.WHOLE_FILE, file),))
        else:
            if written != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._syncer.note_written(file, size)
        return file

    def _change(self, frame: Frame) -> None:
        change = decode_change(frame.payload)
        records = records_of(change, self._store)
        if frame.number:
            self._intent.activate(records, frame.number)
        try:
            # What the full disk let pass is not done a second time.
            self._store.apply(change, again=self._target.lenient or self.leaving)
        except OSError as error:
            if isinstance(change, SetTimes) and error.errno == errno.ESTALE:
                # The file was removed while its time was on the way.
                return
            self._tolerate(error, records)
        else:
            if self._target.lenient and self._target.doubtful(records):
                self._say(self._target.unsettled(records))

    def _tolerate(self, error: OSError, records: tuple[Record, ...]) -> None:
        if not self._target.lenient or error.errno not in _DIFFERENT_TREE:
            raise error
        self._say(self._target.unsettled(records))

    def _flush(self, frame: Frame) -> None:
        file = wire.decode_id(frame.payload, "flush")
        data_only = bool(frame.flags & wire.FLAG_DATA_ONLY)
        self._syncer.file(file, data_only, self._flushed(frame.number))

    def _sync(self, frame: Frame) -> None:
        self._syncer.everything(self._flushed(frame.number))

    def _flushed(self, number: int) -> Callable[[OSError | None], None]:
        def done(error: OSError | None) -> None:
            # A failed fsync is told by the pool's owner; it is never answered as done.
            if error is None:
                self._say(wire.frame(Kind.FLUSHED, self._tag, number))

        return done

    def _retire(self, frame: Frame) -> None:
        if len(frame.payload) != 8:
            raise ReplicationError("a retire frame is malformed")
        self.covered = int.from_bytes(frame.payload, "little")
        if self.clear_pending and self._intent.clear(self.covered):
            self.clear_pending = False
        self._intent.retire(min(frame.number, self.covered), self.covered)

    def _resync(self, frame: Frame) -> None:
        answer = self._target.handle(frame)
        if answer is not None:
            self._say(answer)


def _weight(frames: list[Frame]) -> int:
    """How much frames count as long as they wait."""
    return sum(len(one.payload) for one in frames) + len(frames)
