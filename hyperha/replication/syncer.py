"""fsync, fdatasync and syncfs in a few threads, coalesced per file (T6, T7, F3).

A request is done by a call that began after the request: callers may rely on everything written
before they asked being on stable storage. An error is told once to everybody who waits, and the
file system counts as failed afterwards: an fsync is never tried again as if it could succeed.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Final

from hyperha.replication.operations import FileId
from hyperha.replication.store import Store
from hyperha.replication.syscalls import show_thread_name

log = logging.getLogger(__name__)

Done = Callable[[OSError | None], None]
_THREADS: Final = 4
_WRITEBACK_BYTES: Final = 32 << 20
_FILES: Final = 4096
"""So many are remembered that were written to and not synced."""
_ALL: Final = FileId(b"")


class _Work:
    """What is asked for one file while a call for it runs or waits."""

    __slots__ = ("data_only", "waiting")

    def __init__(self) -> None:
        self.waiting: list[Done] = []
        self.data_only = True


class Syncer:
    """The pool. `failed` is called once, with the first error."""

    def __init__(self, store: Store, failed: Callable[[OSError], None]) -> None:
        self._store = store
        self._failed = failed
        self._lock = threading.Lock()
        self._work: dict[FileId, _Work] = {}
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._error: OSError | None = None
        self._unsynced: dict[FileId, int] = {}
        """Bytes since the last sync; only for an advice, so threads need not take turns."""
        self.running = 0
        """Calls that run now; read without a lock, for the sign of life (D8')."""
        self.last_ms = 0
        """How long the last call took."""
        self._threads = [
            threading.Thread(target=self._serve, name=f"sync-{i}", daemon=True)
            for i in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def file(self, file: FileId, data_only: bool, done: Done) -> None:
        """Make one file or directory durable, then call `done` from a thread of the pool."""
        with self._lock:
            work = self._work.get(file)
            if work is not None:
                # One runs or waits already: this request gets the next call, with its fellows.
                work.waiting.append(done)
                work.data_only &= data_only
                return
            work = self._work[file] = _Work()
            work.waiting.append(done)
            work.data_only = data_only
        self._queue.put(lambda: self._sync(file))

    def everything(self, done: Done) -> None:
        """Make the whole file system durable, then call `done`."""
        self.file(_ALL, False, done)

    def run(self, function: Callable[[], None]) -> None:
        """Run something short that would hold up a thread of the data path."""
        self._queue.put(function)

    def note_written(self, file: FileId, size: int) -> None:
        """Start write-back early, so that barriers stay short (D8'); for the writing thread."""
        total = self._unsynced.get(file, 0) + size
        if total < _WRITEBACK_BYTES:
            if len(self._unsynced) >= _FILES:
                # Small ones, of which the kernel writes back enough by itself (M9).
                self._unsynced.clear()
            self._unsynced[file] = total
            return
        self._unsynced.pop(file, None)
        self.run(lambda: self._write_back(file))

    def _write_back(self, file: FileId) -> None:
        try:
            self._store.start_writeback(file, 0, 0)
        except OSError as error:
            # Only an advice; a real error shows at the next fsync.
            log.debug("write-back of %s: %s", file.hex(), error)

    def close(self) -> None:
        """End the threads after what was asked before."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        show_thread_name()
        while (function := self._queue.get()) is not None:
            _guarded(function)

    def _sync(self, file: FileId) -> None:
        with self._lock:
            work = self._work[file]
            waiting, work.waiting = work.waiting, []
            data_only, work.data_only = work.data_only, True
        error = self._error or self._call(file, data_only)
        with self._lock:
            again = bool(work.waiting)
            if not again:
                del self._work[file]
        if again:
            self._queue.put(lambda: self._sync(file))
        for done in waiting:
            _guarded(partial(done, error))

    def _call(self, file: FileId, data_only: bool) -> OSError | None:
        started = time.monotonic_ns()
        with self._lock:
            self.running += 1
        try:
            if file == _ALL:
                self._unsynced.clear()
                self._store.sync_all()
            else:
                self._unsynced.pop(file, None)
                self._store.sync(file, data_only)
        except Exception as problem:
            # Unforeseen ones, too: whoever waits must hear that nothing was made durable.
            error = problem if isinstance(problem, OSError) else OSError(errno.EIO, repr(problem))
            if _is_gone(error):
                # Removed meanwhile: there is nothing left that could be lost.
                return None
            first = self._error is None
            self._error = error
            if first:
                self._failed(error)
            return error
        finally:
            with self._lock:
                self.running -= 1
            self.last_ms = (time.monotonic_ns() - started) // 1_000_000
        return None


def _guarded(function: Callable[[], None]) -> None:
    """One that fails in an unforeseen way takes neither its fellows nor the thread with it."""
    try:
        function()
    except Exception:
        log.exception("something in the pool of fsyncs failed in an unforeseen way")


def _is_gone(error: OSError) -> bool:
    return error.errno in (errno.ESTALE, errno.ENOENT)
