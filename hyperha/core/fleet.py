"""In which order the modules of a node start, and how many at a time. The daemon's queue asks.

When a node is lost, everything that ran there starts here at once: disks and processors would make
each start slow, and the important ones would come last. So a few at a time, low priority numbers
first, and a module that needs others after these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

AT_ONCE = 4
PATIENCE_MS = 120_000
"""How long a module waits for those that it is to start after: they may never be ready."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A module that is about to start its VM on this node."""

    name: str
    number: int
    priority: int
    """Low first."""
    after: tuple[str, ...]
    since_ms: int


@dataclass(frozen=True, slots=True)
class Others:
    """What is known of all modules of the cluster."""

    ready: frozenset[str]
    """Those that run ready on either node."""
    coming: frozenset[str]
    """Those that are started on a node, and not ready yet."""


def admitted(
    waiting: Iterable[Waiting], starting: int, others: Others, now_ms: int
) -> tuple[str, ...]:
    """Who may start now, besides the `starting` ones that already do."""
    free = max(0, AT_ONCE - starting)
    able = [one for one in waiting if not missing(one, others, now_ms)]
    able.sort(key=lambda one: (one.priority, one.number))
    return tuple(one.name for one in able[:free])


def missing(one: Waiting, others: Others, now_ms: int) -> tuple[str, ...]:
    """The modules that it still waits for; nobody waits for one that is stopped."""
    if now_ms - one.since_ms >= PATIENCE_MS:
        return ()
    return tuple(name for name in one.after if name in others.coming and name not in others.ready)
