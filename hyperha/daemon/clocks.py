"""Whether the two nodes' wall clocks agree. Nothing is decided by them (K4); but whoever reads both
logs at night takes the times for comparable."""

from __future__ import annotations

APART_MS = 2000
"""Said to be apart from here on; together again below half of it."""


class PeerClock:
    """What the other node's answers tell of its clock."""

    def __init__(self, node: str, peer: str) -> None:
        self._node, self._peer = node, peer
        self.apart = ""
        """The sentence while they are apart."""

    def heard(self, asked_ms: int, answered_ms: int, theirs_ms: int) -> None:
        """An answer: when it was asked for and when it came, by our wall clock, and what the other
        node's was in between."""
        if theirs_ms <= 0 or answered_ms < asked_ms:
            return  # It does not say, or our clock was set just then.
        ahead_ms = max(theirs_ms - answered_ms, min(0, theirs_ms - asked_ms))
        if abs(ahead_ms) > APART_MS:
            what = "ahead of" if ahead_ms > 0 else "behind"
            self.apart = (
                f"the clock of {self._peer} is {abs(ahead_ms) / 1000:.0f} s {what} that of "
                f"{self._node}: times in their logs cannot be compared; have both set by NTP"
            )
        elif abs(ahead_ms) < APART_MS // 2:
            self.apart = ""
