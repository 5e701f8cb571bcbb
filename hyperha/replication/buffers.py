"""Buffers for large payloads, used again: clearing fresh memory costs as much as filling it.

They begin at a page: the kernel moves data to and from an odd address two to three times slower.
Whoever has taken a buffer owns it, may hand it on, and the last owner gives it back when nothing
reads it any more; a buffer that is never given back is only garbage. Knows nothing of contents.
"""

from __future__ import annotations

import mmap
from collections import deque
from typing import Final

_KEPT: Final = 8


class Buffer(mmap.mmap):
    """One buffer. It knows where it is kept: who sends for several lenders gives each its own."""

    pool: Buffers


class Buffers:
    """Free buffers. One thread takes, any thread gives back."""

    __slots__ = ("_free", "_used")

    def __init__(self) -> None:
        self._free: deque[Buffer] = deque()
        self._used = False

    def take(self, size: int) -> Buffer:
        """A buffer of exactly `size` bytes, of any content: the caller's until it gives it back."""
        self._used = True
        while self._free:
            buffer = self._free.pop()
            if len(buffer) == size:
                return buffer
        buffer = Buffer(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer.pool = self
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """The owner has no use for it any more, and nothing else reads it."""
        if len(self._free) < _KEPT:
            self._free.append(buffer)

    def give_back_view(self, view: object) -> None:
        """`give_back` for who was handed a part of a buffer, and nothing for any other object.

        To the pool that it was taken from, whoever is asked: its taker may still read it here, and
        takes nothing meanwhile; another one would fill it anew.
        """
        if isinstance(view, memoryview) and isinstance(view.obj, Buffer):
            view.obj.pool.give_back(view.obj)

    def trim(self) -> None:
        """For the taking thread, now and then: free all if none was taken since the last time."""
        if not self._used:
            self._free.clear()
        self._used = False
