"""A cable between two TCP ports that can be reset, go silent, or be out, with the clients unaware.

Clients connect to the cable's port, which connects to the real one for each of them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading


class Cable:
    """From `address`:`port` to `target`, in a thread of its own."""

    def __init__(self, target: tuple[str, int], address: str = "127.0.0.1") -> None:
        self.target = target
        self._listening = socket.create_server((address, 0))
        self.port: int = self._listening.getsockname()[1]
        self._lock = threading.Lock()
        self._joined: dict[socket.socket, socket.socket] = {}
        self._silent = False
        self._out = False
        self.made = 0
        """Connections so far."""
        self._wake, self._woken = socket.socketpair()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Every connection ends with a reset, on both sides."""
        with self._lock:
            ends = list(self._joined)
            self._joined.clear()
            for end in ends:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()
        self._wake.send(b"x")

    def silent(self, on: bool = True) -> None:
        """Nothing is carried, and nobody is told; what waits is carried when it is over."""
        with self._lock:
            self._silent = on
        self._wake.send(b"x")

    def out(self, on: bool = True) -> None:
        """New connections are made and carry nothing, as when a host is reached and then is not."""
        self._out = on

    def _run(self) -> None:
        while not self._closing:
            with self._lock:
                ends = [] if self._silent else list(self._joined)
            watched = [self._listening, self._woken, *ends]
            with contextlib.suppress(OSError, ValueError):
                for one in select.select(watched, [], [], 0.2)[0]:
                    if one is self._listening:
                        self._accept()
                    elif one is self._woken:
                        one.recv(4096)
                    else:
                        self._carry(one)

    def _accept(self) -> None:
        near, _ = self._listening.accept()
        if self._out:
            near.close()
            return
        far = socket.create_connection(self.target)
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._joined[near], self._joined[far] = far, near
        self.made += 1

    def _carry(self, one: socket.socket) -> None:
        with self._lock:
            # It may have become silent since this end was found readable.
            other = None if self._silent else self._joined.get(one)
        if other is None:
            return
        try:
            data = one.recv(1 << 18)
            if data:
                other.sendall(data)
                return
        except OSError:
            data = b""
        with self._lock:
            for end in (one, other):
                self._joined.pop(end, None)
                end.close()

    def close(self) -> None:
        """Take it away, with its connections; more than once does no harm."""
        if self._closing:
            return
        self._closing = True
        self._wake.send(b"x")
        self._thread.join()
        self.reset()
        for one in (self._listening, self._wake, self._woken):
            one.close()
