"""How long live operations take from their arrival to their answer, by samples (T6, T7).

The data path asks for each operation whether it is to be timed: of each kind one at a time, and
none sooner than 4 ms after the former one. That costs a look at the clock and no lock, no system
call; a timed operation costs one more look when it is answered, by whichever thread does that.
A queue in front of an operation counts (the lock of operations, the pool, the peer where it is
waited for), and so does each wait for the interpreter after a system call. Knows of no resync.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from hyperha.replication.operations import Answer

_EVERY_NS: Final = 4_000_000
_FORGOTTEN_NS: Final = 30_000_000_000
"""An answer that did not come by then was forgotten with its connection (M2)."""
_KEPT: Final = 2048
"""Samples of a kind, 8 s of a busy guest; older ones give way."""


class Timed(IntEnum):
    """Kinds of operations, each with a latency of its own."""

    WRITE = 0
    BARRIER = 1
    """A flush, or a write with O_DSYNC: waits for the disk."""
    READ = 2
    """Of what is not in memory: waits for the disk."""


class Stopwatch:
    """Of one pipeline. `begin` is called by the thread that reads requests; anybody may look."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._next_ns = [0] * len(Timed)
        self._since_ns = [0] * len(Timed)
        """Arrival of the operation that is being timed; 0: none is."""
        self._samples: list[deque[tuple[int, int]]] = [deque(maxlen=_KEPT) for _ in Timed]

    def begin(self, kind: Timed, answer: Answer) -> Answer:
        """The answer to give instead of `answer`: the same one, unless this operation is timed."""
        now_ns = self._clock()
        if now_ns < self._next_ns[kind]:
            return answer
        since_ns = self._since_ns[kind]
        if since_ns and now_ns - since_ns < _FORGOTTEN_NS:
            return answer
        self._next_ns[kind] = now_ns + _EVERY_NS
        self._since_ns[kind] = now_ns

        def timed(error: int, payload: bytes) -> None:
            answer(error, payload)
            self._end(kind, now_ns)

        return timed

    def _end(self, kind: Timed, since_ns: int) -> None:
        now_ns = self._clock()
        self._samples[kind].append((now_ns, now_ns - since_ns))
        if self._since_ns[kind] == since_ns:
            self._since_ns[kind] = 0

    def timing(self, kind: Timed, work: Callable[[], bytes]) -> Callable[[], bytes]:
        """`begin`, for work that is done in a pool: from now until it has its result."""

        def timed() -> bytes:
            try:
                return work()
            finally:
                end(0, b"")

        end = self.begin(kind, _nothing)
        return work if end is _nothing else timed

    def take(self, kind: Timed) -> list[tuple[int, int]]:
        """Samples since the last call: when each was answered and what it took, both in ns."""
        samples, taken = self._samples[kind], []
        while samples:
            taken.append(samples.popleft())
        return taken

    def waiting_ns(self, kind: Timed) -> int:
        """How long the operation that is being timed has waited so far; 0 without one."""
        since_ns = self._since_ns[kind]
        waited_ns = self._clock() - since_ns
        return waited_ns if since_ns and 0 < waited_ns < _FORGOTTEN_NS else 0


def _nothing(error: int, payload: bytes) -> None:
    """Nobody else waits for this answer."""
