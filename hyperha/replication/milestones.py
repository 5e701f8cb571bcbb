"""When a long piece of work is worth a line in the log: each tenth of it, and each minute."""

from __future__ import annotations

from typing import Final

QUIET_MS: Final = 2000
"""Work that is over sooner needs no line between its first and its last."""
MINUTE_MS: Final = 60_000


class Milestones:
    """Of one piece of work, silent at first for `quiet_ms`. Times in milliseconds of one clock."""

    def __init__(self, started_ms: int, quiet_ms: int = QUIET_MS) -> None:
        self._begins_ms = started_ms + quiet_ms
        self._told_ms = started_ms
        self._tenth = 0

    def due(self, done: int, total: int, now_ms: int) -> bool:
        """Whether a line is due now; it counts as written then."""
        tenth = done * 10 // total if total else 0
        further, self._tenth = tenth > self._tenth, max(tenth, self._tenth)
        if now_ms < self._begins_ms:
            return False
        if not further and now_ms - self._told_ms < MINUTE_MS:
            return False
        self._told_ms = now_ms
        return True
