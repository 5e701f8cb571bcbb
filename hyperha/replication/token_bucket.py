"""A set rate that is kept over every short time: what was not used before is no credit (T7).

An operator who sets a rate protects a network or a disk that others use. A resync that had nothing
to send for a while may not make up for it afterwards. Pure: times come in with the calls, in
milliseconds of one clock.
"""

from __future__ import annotations

from typing import Final

BURST_MS: Final = 100
"""Credit is kept for so long: a thread that wakes up late loses nothing by it."""


class TokenBucket:
    """In any time at most the rate, what it allows in `BURST_MS`, and one step.

    Call `may_go` before each step and `spend` with what it took. The rate, in bytes per second, may
    be another one each time; 0: any.
    """

    def __init__(self, now_ms: int) -> None:
        self._credit = 0.0
        self._credited_ms = now_ms
        self._rate = 0

    def may_go(self, rate: int, now_ms: int) -> bool:
        """Whether the rate allows a step now."""
        credit = 0.0
        if self._rate:
            # What was sent without a rate is no debt when one is set.
            credit = self._credit + self._rate * max(0, now_ms - self._credited_ms) / 1000
        self._credit = min(rate * BURST_MS / 1000, credit)
        self._credited_ms, self._rate = now_ms, rate
        return not rate or self._credit > 0

    def spend(self, size: int) -> None:
        """A step has sent so many bytes; it may have been more than there was credit."""
        self._credit -= size

    def due_in_ms(self) -> float:
        """How long until the rate allows a step."""
        return max(0.0, -self._credit) * 1000 / self._rate if self._rate else 0.0
