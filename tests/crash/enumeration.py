"""Tries the states that power cuts leave: each is put on a disk, recovered for real, and judged.

At every event of a tape the whole disks are tried (all of it written back, nothing, one disk of
two); before every barrier and behind every promise all subsets, or, where these are too many, each
write alone lost, each alone kept, and a seeded sample.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any, Protocol

from tests.crash.disk import Mark, Replay, State, Sync, Tape

DEPTH = int(os.environ.get("HYPERHA_CRASH_DEPTH", "1"))
"""How many times as many states as in the normal run."""
SEED = int(os.environ.get("HYPERHA_CRASH_SEED") or random.randrange(1 << 24))
BOUND = 256
SAMPLES = 24


class Violation(AssertionError):
    """Recovery made the wrong thing of a state."""


class Case(Protocol):
    """What a scenario knows about itself."""

    def mark(self, value: Any) -> None:
        """The tape has come to a mark."""

    def recover(self, state: State) -> Any:
        """What the real code makes of the state; called once for equal states."""

    def judge(self, found: Any, state: State) -> str:
        """What is wrong with that at this place of the tape, or nothing."""


@dataclass(frozen=True, slots=True)
class Tried:
    """How much was tried."""

    places: int
    states: int
    """Different ones, each recovered."""
    judged: int
    """State and place."""

    def __add__(self, other: Tried) -> Tried:
        return Tried(
            self.places + other.places, self.states + other.states, self.judged + other.judged
        )


def explore(
    tape: Tape, case: Case, *, seed: int = SEED, bound: int = BOUND, samples: int = SAMPLES
) -> Tried:
    """Try a tape. Raises Violation with the place and what was lost there."""
    dice = random.Random(seed)
    replay = Replay(tape)
    recovered: dict[int, Any] = {}
    judged = 0

    def look(index: int, *, deep: bool) -> None:
        nonlocal judged
        seen = set()
        many = replay.states(dice, bound * DEPTH, samples * DEPTH) if deep else replay.extremes()
        for state in many:
            if state.digest in seen:
                continue
            seen.add(state.digest)
            if state.digest not in recovered:
                recovered[state.digest] = case.recover(state)
            judged += 1
            problem = case.judge(recovered[state.digest], state)
            if problem:
                raise Violation(_story(tape, index, seed, problem, state))

    look(0, deep=True)
    for index, event in enumerate(tape.events):
        if isinstance(event, Sync):
            look(index, deep=True)
        replay.play(index, event)
        if isinstance(event, Mark):
            case.mark(event.value)
            following = tape.events[index + 1] if index + 1 < len(tape.events) else None
            look(index + 1, deep=not isinstance(following, Mark | Sync))
        else:
            look(index + 1, deep=False)
    look(len(tape.events), deep=True)
    return Tried(len(tape.events) + 1, len(recovered), judged)


def _story(tape: Tape, index: int, seed: int, problem: str, state: State) -> str:
    lines = [
        f"{i}: {event.value if isinstance(event, Mark) else event.what}"
        for i, event in enumerate(tape.events)
    ]
    lines = [line[:160] for line in lines]
    kept = sorted(str(cell) for cell in state.chosen)
    return (
        f"{problem}\nHYPERHA_CRASH_SEED={seed}, a cut before event {index} of {len(lines)}; the "
        f"last ones:\n" + "\n".join(lines[max(0, index - 12) : index]) + "\n"
        f"not yet durable: {kept[:20]}"
    )
