"""What sends one connection's frames: a queue, a thread, and whoever finds the connection idle.

Exactly one thread at a time sends: whoever has set `_busy`. That is the sender's own thread, or
without TLS the data path itself on an idle connection: it never waits (T8), and it saves the change
of threads. Data of large writes is lent, not copied: its buffer is given back when it was sent.
A session that goes on over another connection gets another sender (T4): whoever comes late to this
one reaches only its own, dead connection. Knows nothing of frames.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Final

from hyperha.replication.operations import GiveBack
from hyperha.replication.syscalls import show_thread_name
from hyperha.replication.transport import Connection, Piece

BATCH_BYTES: Final = 4 << 20
"""Handed to the kernel by one call, about."""


class Sender:
    """Queues from the moment it is made, and sends from `start` on.

    What is queued is guarded by `lock`, the pipeline's.
    """

    __slots__ = (
        "_busy",
        "_connection",
        "_direct",
        "_ending",
        "_give_back",
        "_pending",
        "_thread",
        "_wake",
        "lock",
        "queued_bytes",
        "sent_bytes",
    )

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        self.queued_bytes = 0
        """Written under the lock."""
        self.sent_bytes = 0
        """Written by who sends."""
        self._pending: list[Piece] = []
        """To be sent. A view is of a buffer that is ours until then."""
        self._busy = True
        """Somebody sends, or nobody may yet; under the lock."""
        self._wake: SimpleQueue[list[Piece] | None] = SimpleQueue()
        """To the thread: what to send first, then all that is pending; None: end."""
        self._direct = False
        self._ending = False
        """The thread ends when nothing is left; under the lock."""
        self._give_back: GiveBack | None = None
        """Called with each view that was sent, also of another lender: it finds whose it is."""
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None

    # --- life -----------------------------------------------------------------------------

    def start(self, connection: Connection) -> None:
        """Send over this connection, what is queued first."""
        self._connection = connection
        self._direct = not connection.encrypted
        thread = threading.Thread(target=self._send, name="session-send", daemon=True)
        thread.start()
        # Only then: nobody can wait for one that has not begun.
        self._thread = thread
        self._wake.put([])

    def end(self, wait_s: float | None = None) -> None:
        """Send what is queued, and end; waits for that at most `wait_s`. Without it end at once:
        for a connection that was aborted."""
        if wait_s is None:
            self._wake.put(None)
        else:
            with self.lock:
                self._ending = True
                idle, self._busy = not self._busy, True
            if idle:
                self._wake.put([])
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(wait_s)

    # --- queueing -------------------------------------------------------------------------

    def put(self, raw: bytes) -> None:
        """Queue a frame and have it sent; the caller has the lock."""
        self._pending.append(raw)
        self.queued_bytes += len(raw)
        if not self._busy:
            self._busy = True
            self._wake.put([])

    def put_lent(self, head: bytes, data: memoryview, give_back: GiveBack) -> None:
        """Queue a frame whose data is lent, for the thread; the caller has the lock."""
        self.queued_bytes += len(head) + len(data)
        self._give_back = give_back
        self._pending.append(head)
        self._pending.append(data)
        if not self._busy:
            self._busy = True
            self._wake.put([])

    def put_now(self, head: bytes, data: Piece, give_back: GiveBack | None) -> bool:
        """Queue a frame; the caller has the lock.

        True: the caller must give the same to `send_now` after releasing the lock. Else a view is
        copied, unless there is `give_back`: then its buffer is the sender's until it calls that.
        """
        self.queued_bytes += len(head) + len(data)
        if not self._busy and self._direct:
            self._busy = True
            return True
        pending = self._pending
        pending.append(head)
        if give_back is not None:
            self._give_back = give_back
            pending.append(data)
        elif data:
            pending.append(bytes(data))
        if not self._busy:
            self._busy = True
            self._wake.put([])
        return False

    # --- sending --------------------------------------------------------------------------

    def send_now(self, head: bytes, data: Piece = b"", give_back: GiveBack | None = None) -> bool:
        """Send without waiting; the thread goes on with the rest. Whether all was sent at once:
        then the buffer is not kept."""
        assert self._connection is not None
        size = len(head) + len(data)
        rest = self._connection.send_some([head, data], size)
        with self.lock:
            self.sent_bytes += size - sum(map(len, rest)) if rest else size
            if not rest and not self._pending and not self._ending:
                self._busy = False
                return True
        if give_back is None:
            rest = list(map(bytes, rest))
        else:
            self._give_back = give_back
        self._wake.put(rest)
        return not rest

    def keep(self, head: bytes, data: Piece) -> None:
        """Instead of `send_now`: leave it queued, with all that is put from now on; the caller has
        the lock. Who keeps must call `send_kept` before it waits for requests or the log's disk."""
        # Others may have put something since.
        self._pending[:0] = (head, bytes(data))

    def send_kept(self) -> None:
        """Send all that is queued since `keep`, without waiting, as `send_now` does."""
        assert self._connection is not None
        with self.lock:
            batch, self._pending = self._pending, []
        total = sum(map(len, batch))
        rest = self._connection.send_some(batch, total)
        with self.lock:
            self.sent_bytes += total - sum(map(len, rest))
            more = bool(rest or self._pending or self._ending)
            self._busy = more
        give_back = self._give_back
        if give_back is not None:
            for piece in batch[: len(batch) - len(rest)]:
                give_back(piece)
        if more:
            self._wake.put(rest)

    def _send(self) -> None:
        show_thread_name()
        assert self._connection is not None
        get, send, lock = self._wake.get, self._connection.send, self.lock
        try:
            while (batch := get()) is not None:
                while True:
                    if batch:
                        send(batch)
                    with lock:
                        self.sent_bytes += sum(map(len, batch))
                        following = self._take()
                        over = not following and self._ending
                        if not following:
                            self._busy = over
                    give_back = self._give_back
                    if give_back is not None:
                        for piece in batch:
                            give_back(piece)
                    if over:
                        return
                    if not following:
                        break
                    batch = following
        except OSError:
            # Who receives sees the end too, and reports it.
            self._connection.abort()

    def _take(self) -> list[Piece]:
        """What is to be sent next; the caller has the lock."""
        pending, total = self._pending, 0
        for i, raw in enumerate(pending):
            total += len(raw)
            if total >= BATCH_BYTES:
                self._pending = pending[i + 1 :]
                return pending[: i + 1]
        self._pending = []
        return pending
