"""TLS of one connection, apart from its socket: bytes in, bytes out (T5).

The SSL object reads and writes memory only, so it never waits, and a large frame costs a few calls
on the socket instead of two for each record of 16 KiB. It is used by one thread per connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

_SLICE: Final = 256 << 10
"""Encrypted at once: the peer decrypts while the next one is encrypted."""
_JOINED: Final = 16 << 10
"""Pieces up to this size share a record."""


class Cipher:
    """Both directions of one connection. Raises ssl.SSLError, an OSError."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        # With a buffer it fills that, and returns how much it has filled.
        self._read = cast("Callable[[int, memoryview], int]", self._object.read)

    def shake(self) -> bool:
        """One step of the handshake; whether it is done. What it has to say is in `produced`."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def certificate(self) -> object:
        """The peer's certificate, as `SSLSocket.getpeercert` gives it."""
        return self._object.getpeercert()

    def produced(self) -> bytes:
        """What is to be sent now."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def encrypt(self, pieces: Sequence[bytes | memoryview]) -> Iterator[bytes]:
        """The pieces in order, encrypted, in parts of a bounded size."""
        small: list[bytes | memoryview] = []
        held = 0
        for piece in pieces:
            if len(piece) <= _JOINED:
                small.append(piece)
                held += len(piece)
                if held >= _SLICE:
                    self._write(b"".join(small))
                    small, held = [], 0
                    yield self._outgoing.read()
                continue
            if small:
                self._write(b"".join(small))
                small, held = [], 0
            view = memoryview(piece)
            for start in range(0, len(view), _SLICE):
                self._write(view[start : start + _SLICE])
                yield self._outgoing.read()
        if small:
            self._write(b"".join(small))
            yield self._outgoing.read()

    def _write(self, data: bytes | memoryview) -> None:
        if data:
            self._object.write(data)

    def feed(self, received: memoryview) -> None:
        """Take what was received."""
        self._incoming.write(received)

    def decrypt(self, room: memoryview) -> int:
        """Fill `room` with what was received, as far as it goes; 0: more must be fed."""
        filled, size = 0, len(room)
        read, incoming = self._read, self._incoming
        while filled < size and (incoming.pending or self._object.pending()):
            try:
                count = read(size - filled, room[filled:])
            except ssl.SSLWantReadError:
                break
            if not count:
                break
            filled += count
        return filled

    @property
    def pending(self) -> bool:
        """Whether bytes wait that were fed and not yet given out."""
        return self._object.pending() > 0 or self._incoming.pending > 0
