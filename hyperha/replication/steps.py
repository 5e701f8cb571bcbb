"""What a thread gets done inside one long piece of work, counted for the sign of life (D8').

A secondary that saves or lists a lot for a single frame is no secondary that stands still. Only the
thread that applies counts: what others do beside it says nothing about it.
"""

from __future__ import annotations

import threading

_own = threading.local()


class Steps:
    """So many steps; written by one thread, read by any."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def count_here(steps: Steps) -> None:
    """From now on the steps of this thread are counted there."""
    _own.steps = steps


def step() -> None:
    """A part of a long piece of work is done."""
    steps: Steps | None = getattr(_own, "steps", None)
    if steps is not None:
        steps.count += 1
