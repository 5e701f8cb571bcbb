"""Sequences of steps in the mount and in the plain folder, compared step by step and at the end.

A failing one is made small: done again with steps left out, as long as it still fails.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hyperha.core.events import LocalDiskFailed, MountLost, SessionLost
from tests.filesystem.pairing import Trio
from tests.filesystem.steps import Dice, Step
from tests.filesystem.worker import BREAKS, Worker

PER_PAIR = 2000
"""Sequences until a pair is replaced by a new one."""
STUCK_S = 40.0
"""A sequence that takes longer waits for an answer that never comes."""
SHRINK_S = 60.0
Top = tuple[int, int, int]


def breaking(seed: int, kinds: tuple[str, ...]) -> tuple[Top, list[Step]]:
    """A longer sequence with breaks at two moments of it, in their order."""
    dice = Dice(seed)
    top, steps = dice.top(), dice.sequence(120, 200)
    length = len(steps)
    for number, kind in enumerate(kinds):
        low, high = length * number // 3, length * (number + 1) // 3
        steps.insert(low + (seed * 7919) % max(1, high - low) + number, Step(0, kind, ()))
    return top, steps


class Runner:
    """Plays sequences on one pair after the other."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._pairs = 0
        self._played = 0
        self._since = 0
        self._trio: Trio | None = None
        self._worker: Worker | None = None

    def close(self) -> None:
        """End the pair and the worker."""
        trio, self._trio = self._trio, None
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
        if trio is not None:
            trio.close()

    def _ready(self) -> Trio:
        if self._trio is not None and self._since >= PER_PAIR:
            self.close()
        if self._trio is None:
            self._pairs += 1
            self._since = 0
            base = self._base / f"pair{self._pairs}"
            base.mkdir()
            self._trio = Trio(base)
        return self._trio

    # --- one sequence ---------------------------------------------------------------------

    def play(self, top: Top, steps: Sequence[Step]) -> str:
        """What went wrong, or nothing. A pair that is not sound any more is replaced."""
        trio = self._ready()
        self._played += 1
        self._since += 1
        name = f"s{self._played}"
        if self._worker is None:
            self._worker = Worker()
        worker = self._worker
        stuck = threading.Timer(STUCK_S, _free, (trio,))
        stuck.start()
        problem, sound = "", True
        try:
            problem = _play(trio, worker, name, top, steps)
        except (OSError, EOFError, AssertionError) as error:
            problem, sound = f"{type(error).__name__}: {error}", False
        finally:
            stuck.cancel()
        failed = [
            str(one) for node in (trio.pair.a, trio.pair.b) for one in node.told()
            if isinstance(one, LocalDiskFailed | MountLost | SessionLost)
        ]  # fmt: skip
        if failed:
            problem += f"\n{failed[:3]}"
        if failed or not sound or (problem and any(one.kind in BREAKS for one in steps)):
            self.close()
        return problem

    def check(self, seed: int, top: Top, steps: list[Step]) -> None:
        """Play it; AssertionError with the smallest sequence found that fails as well."""
        problem = self.play(top, steps)
        if not problem:
            return
        first = problem
        small, problem = shrink(steps, lambda fewer: self.play(top, fewer), problem)
        lines = "".join(f"    {step!r},\n" for step in small)
        raise AssertionError(
            f"seed {seed}: {first}\nsmallest found, top directory {top}: {problem}\n[\n{lines}]"
        )


def _free(trio: Trio) -> None:
    """End the mount, so that whoever waits in it comes back with an error."""
    node = trio.pair.a
    assert node.kept is not None
    names, descriptors = node.kept
    for name, fd in zip(names.names, descriptors, strict=True):
        if name == "fence":
            os.write(fd, b"1")


def _play(trio: Trio, worker: Worker, name: str, top: Top, steps: Sequence[Step]) -> str:
    trio.make(name, *top)
    mounted, plain = str(trio.mounted / name), str(trio.plain / name)
    problem = worker.play(mounted, plain, steps, lambda kind: getattr(trio, kind)())
    trio.settle()
    if problem:
        return problem
    unequal = trio.unequal(name)
    if unequal:
        return "\n".join(unequal)
    trio.remove(name)
    return ""


def shrink(
    steps: list[Step], fails: Callable[[list[Step]], str], problem: str
) -> tuple[list[Step], str]:
    """Leave out as much as possible; breaks of the session stay. (steps, what they end with)"""
    end = time.monotonic() + SHRINK_S
    size = max(1, len(steps) // 2)
    while True:
        place, shorter = 0, False
        while place < len(steps) and time.monotonic() < end:
            part = steps[place : place + size]
            fewer = steps[:place] + [one for one in part if one.kind in BREAKS]
            fewer += steps[place + size :]
            again = fails(fewer) if len(fewer) < len(steps) else ""
            if again:
                steps, problem, shorter = fewer, again, True
            else:
                place += size
        if time.monotonic() >= end or (size == 1 and not shorter):
            return steps, problem
        size = max(1, size // 2)
