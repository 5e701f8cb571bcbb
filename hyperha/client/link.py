"""The state of the link to a node, as values: no socket, no clock, no randomness.

    CONNECTING -> LIVE -> STALE (no line for two periods) -> LOST (tried again for ever)

What was heard is kept with its age; a lost link never ends the console. The shell that feeds this
is `session.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

PERIOD_MS = 5_000
"""A living node says something at least that often."""
STALE_AFTER_MS = 2 * PERIOD_MS
DELAY_FIRST_MS = 500
DELAY_MOST_MS = 10_000


class LinkState(StrEnum):
    """How fresh what is shown can be."""

    CONNECTING = "CONNECTING"
    LIVE = "LIVE"
    STALE = "STALE"
    LOST = "LOST"


@dataclass(frozen=True, slots=True)
class Link:
    """The link at one moment. Times are milliseconds of one monotonic clock."""

    state: LinkState = LinkState.CONNECTING
    target: str = ""
    heard_ms: int | None = None
    """When the last line came; None before the first one."""
    failures: int = 0
    """Attempts that failed in a row."""
    next_attempt_ms: int | None = None
    """When it is tried again; None while an attempt runs."""
    reason: str = ""
    boot_id: str = ""
    """Of the daemon that was heard last."""

    @property
    def live(self) -> bool:
        """Whether commands make sense."""
        return self.state is LinkState.LIVE

    def age_ms(self, now_ms: int) -> int | None:
        """How old what is shown is; None before anything was heard."""
        return None if self.heard_ms is None else max(0, now_ms - self.heard_ms)

    def wait_ms(self, now_ms: int) -> int:
        """Until the next attempt; 0 while one runs."""
        return 0 if self.next_attempt_ms is None else max(0, self.next_attempt_ms - now_ms)


def attempting(link: Link, target: str) -> Link:
    """A connection is being opened. What was known stays known."""
    state = LinkState.CONNECTING if link.heard_ms is None else LinkState.LOST
    return replace(link, state=state, target=target, next_attempt_ms=None)


def heard(link: Link, now_ms: int) -> Link:
    """A line or an answer came."""
    return replace(
        link, state=LinkState.LIVE, heard_ms=now_ms, failures=0, next_attempt_ms=None, reason=""
    )


def identified(link: Link, boot_id: str) -> tuple[Link, bool]:
    """The daemon named its boot id: whether everything must be read again."""
    return replace(link, boot_id=boot_id), link.boot_id != boot_id


def ticked(link: Link, now_ms: int) -> Link:
    """Time went by."""
    age_ms = link.age_ms(now_ms)
    if link.state is LinkState.LIVE and age_ms is not None and age_ms >= STALE_AFTER_MS:
        return replace(link, state=LinkState.STALE, reason="no line for two periods")
    return link


def failed(link: Link, now_ms: int, reason: str, targets: int, jitter: float) -> Link:
    """The attempt or the connection failed; `jitter` is in 0..1.

    With several targets the next one is tried at once; only after a whole round comes a pause.
    """
    failures = link.failures + 1
    return replace(
        link,
        state=LinkState.LOST,
        failures=failures,
        next_attempt_ms=now_ms + delay_ms(failures, targets, jitter),
        reason=reason,
    )


def delay_ms(failures: int, targets: int, jitter: float) -> int:
    """The pause after so many failures in a row: 0.5 s, doubled per round, at most 10 s."""
    if failures % max(1, targets):
        return 0
    rounds = min(failures // max(1, targets), 16)
    most = min(DELAY_MOST_MS, DELAY_FIRST_MS * 2 ** (rounds - 1))
    return max(DELAY_FIRST_MS, int(most * (0.5 + 0.5 * jitter)))
