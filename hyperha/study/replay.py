"""Feeds what a node recorded to the core once more, and compares what it decides.

A recording is lines of JSON: a state from which the ones behind it go on, or an event with the
actions that it led to. The same release decides the same; another one may show here what it would
have done instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hyperha.core.actions import Action
from hyperha.core.events import Stimulus
from hyperha.core.invariants import InvariantBroken
from hyperha.core.machine import step
from hyperha.core.state import ModuleState
from hyperha.study.recorded import RecordedError, plain, value


def begin_line(state: ModuleState) -> str:
    """A line from which a replay can begin."""
    return _line({"state": plain(state)})


def event_line(stimulus: Stimulus, actions: Sequence[Action]) -> str:
    """A line for an event and what the core made of it."""
    return _line({"stimulus": plain(stimulus), "actions": [plain(one) for one in actions]})


def _line(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Difference:
    """The first decision that came out otherwise."""

    line: int
    event: str
    """Its id."""
    what: str
    recorded: tuple[str, ...]
    decided: tuple[str, ...]
    """Actions, each in one line."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a recording came to."""

    events: int
    skipped: int
    """Lines behind which, or before which, nothing could be decided: no state to begin from."""
    difference: Difference | None


def replay(lines: Iterable[str]) -> Replayed:
    """Step through a recording until it ends or differs. Raises RecordedError with the line's
    number where one cannot be read; a torn last line, as a crash leaves it, ends the recording."""
    state: ModuleState | None = None
    events = skipped = 0
    found = list(lines)
    for number, raw in enumerate(found, 1):
        if not raw.strip():
            continue
        try:
            body = json.loads(raw)
        except ValueError:
            if number == len(found):
                break
            raise RecordedError(f"line {number} is no JSON") from None
        if "state" in body:
            state = _read(body["state"], number)
        elif state is None:
            skipped += 1
        else:
            state, difference = _again(state, body, number)
            if difference is not None:
                return Replayed(events, skipped, difference)
            events += 1
    return Replayed(events, skipped, None)


def _read(body: Any, number: int) -> Any:
    try:
        return value(body)
    except RecordedError as problem:
        raise RecordedError(f"line {number}: {problem}") from None


def _again(
    state: ModuleState, body: dict[str, Any], number: int
) -> tuple[ModuleState, Difference | None]:
    stimulus: Stimulus = _read(body["stimulus"], number)
    recorded = tuple(_read(body["actions"], number))
    try:
        following, decided = step(state, stimulus)
    except InvariantBroken as problem:
        return state, _difference(number, stimulus, recorded, (str(problem),))
    if decided != recorded:
        return following, _difference(number, stimulus, recorded, _told(decided))
    return following, None


def _difference(
    number: int, stimulus: Stimulus, recorded: Sequence[Action], decided: tuple[str, ...]
) -> Difference:
    return Difference(number, stimulus.id, repr(stimulus.event), _told(recorded), decided)


def _told(actions: Iterable[Action]) -> tuple[str, ...]:
    return tuple(map(repr, actions))
