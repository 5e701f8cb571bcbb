"""Which blocks of a file are saved: a set of numbers as runs, whatever size the file says it has.

A guest may give a file any size, and most of a large one is usually a hole: memory is for what was
saved, not for what could be. Pure.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right


class Blocks:
    """Runs in order, none of which touches another one."""

    __slots__ = ("_ends", "_starts", "count")

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self.count = 0
        """How many blocks are in the set."""

    def mark(self, first: int, count: int) -> None:
        """Add `count` blocks from `first` on."""
        start, end = first, first + count
        # Runs that overlap the new one, or touch it, become one with it.
        low, high = bisect_left(self._ends, start), bisect_right(self._starts, end)
        for place in range(low, high):
            self.count -= self._ends[place] - self._starts[place]
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high] = array("Q", [start])
        self._ends[low:high] = array("Q", [end])
        self.count += end - start

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """(first, count) of the blocks in [first, last] that are not in the set."""
        found: list[tuple[int, int]] = []
        at, stop = first, last + 1
        place = bisect_right(self._ends, at)
        while at < stop and place < len(self._starts) and self._starts[place] < stop:
            start = self._starts[place]
            if start > at:
                found.append((at, start - at))
            at = self._ends[place]
            place += 1
        if at < stop:
            found.append((at, stop - at))
        return found
