"""What the secondary says over its connection to the primary, from any thread, in order (T5, T8).

Exactly one thread at a time sends: whoever has set `_busy`. Without TLS that is anybody who speaks
while nobody else does; it never waits, and it saves the change of threads between an fsync and its
answer. What could not be sent at once, and with TLS everything, is left to the owner, which may
wait. Knows nothing of frames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from hyperha.replication.transport import Connection, Piece


class Speaker:
    """Speaks over one connection. `wake` has the owner's thread call `send_rest`."""

    def __init__(self, connection: Connection, wake: Callable[[], None]) -> None:
        self._connection = connection
        self._wake = wake
        self._lock = threading.Lock()
        self._pending: list[Piece] = []
        self._busy = False
        self._left = False
        """What is pending is for the owner to send; read without the lock by the owner."""

    def say(self, raw: bytes) -> None:
        """Send without waiting, or have the owner do it."""
        with self._lock:
            if self._busy or self._left:
                self._pending.append(raw)
                return
            for_the_owner = self._connection.encrypted
            if for_the_owner:
                self._pending.append(raw)
                self._left = True
            else:
                self._busy = True
        # Not `_left`: the owner may have sent it by now, and this thread would send it once more.
        if for_the_owner:
            self._wake()
            return
        rest = self._connection.send_some([raw], len(raw))
        while True:
            with self._lock:
                batch, self._pending = [*rest, *self._pending], []
                if rest or not batch:
                    self._busy = False
                    self._left = bool(rest)
                    self._pending = batch
                    break
            rest = self._connection.send_some(batch, sum(map(len, batch)))
        if rest:
            self._wake()

    def say_now(self, raw: bytes) -> None:
        """For the owner: send, behind what was said before; waits if it must. Raises OSError."""
        with self._lock:
            first = not self._busy and not self._pending
            if first:
                self._busy = True
            else:
                self._pending.append(raw)
                if self._busy:
                    # The other one sends it, or leaves it to us.
                    return
        if first:
            self._connection.send_one(raw)
            with self._lock:
                if not self._pending:
                    self._busy = False
                    return
        self._send_pending()

    def send_rest(self) -> None:
        """For the owner: send what was left to it. Raises OSError."""
        if not self._left:
            return
        self._send_pending()

    def _send_pending(self) -> None:
        while True:
            with self._lock:
                batch, self._pending = self._pending, []
                self._busy = bool(batch)
                self._left = False
                if not batch:
                    return
            self._connection.send(batch)
