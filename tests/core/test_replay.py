"""What a node recorded is decided again, and what comes out otherwise is found."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from hyperha.core import actions as a
from hyperha.core.events import Stimulus
from hyperha.core.machine import step
from hyperha.core.state import ModuleState
from hyperha.study import base_node
from hyperha.study.recorded import RecordedError, plain, value
from hyperha.study.replay import begin_line, event_line, replay
from tests.support.world import pair


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What one node of a busy life was told and decided."""
    lines: list[str] = []

    def noting(state: ModuleState, stimulus: Stimulus) -> tuple[ModuleState, tuple[a.Action, ...]]:
        following, actions = step(state, stimulus)
        if state.config.node == "node1":
            if not lines or state.phase.value == "idle":
                lines.append(begin_line(state))
            lines.append(event_line(stimulus, actions))
        return following, actions

    monkeypatch.setattr(base_node, "step", noting)
    world = pair()
    for verb in ("swap", "stop"):
        world.command(world.a, verb)
        world.run(5000)
    world.command(world.a, "start")
    world.cut_network()
    world.run(8000)
    world.heal_network()
    world.run(8000)
    return lines


def test_the_same_core_decides_the_same(recording: list[str]) -> None:
    found = replay(recording)
    assert found.difference is None
    assert found.events > 50
    assert found.skipped == 0


def test_a_torn_end_is_the_end(recording: list[str]) -> None:
    whole = replay(recording[:-1]).events
    assert replay([*recording[:-1], recording[-1][: len(recording[-1]) // 2]]).events == whole


def test_what_is_decided_otherwise_is_found(recording: list[str]) -> None:
    number = max(i for i, line in enumerate(recording) if '"actions.Persist"' in line)
    body = json.loads(recording[number])
    body["actions"] = body["actions"][:-1]
    changed = [*recording[:number], json.dumps(body), *recording[number + 1 :]]
    difference = replay(changed).difference
    assert difference is not None
    assert difference.line == number + 1
    assert len(difference.decided) == len(difference.recorded) + 1


def test_without_a_state_nothing_is_decided(recording: list[str]) -> None:
    events = [line for line in recording if line.startswith('{"stimulus"')]
    found = replay(events[:2])
    assert (found.events, found.skipped) == (0, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            (1, '"class":"events.Stimulus"', '"class":"events.Nothing"'),
            "events.Nothing is not known",
        ),
        ((1, '"enum":"', '"enum":"x'), "is not known to this release"),
        ((0, '"number":', '"numbre":'), "unexpected keyword argument 'numbre'"),
        ((1, "{", ""), "is no JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    recording: list[str], change: tuple[int, str, str], says: str
) -> None:
    index, old, new = change
    lines = list(recording)
    at = next(i for i, line in enumerate(lines[index:], index) if old in line)
    lines[at] = lines[at].replace(old, new, 1)
    with pytest.raises(RecordedError, match=f"line {at + 1}") as caught:
        replay(lines)
    assert says in str(caught.value)


def test_values_come_back_as_they_were(recording: list[str]) -> None:
    def check(values: Sequence[object]) -> None:
        for one in values:
            assert value(json.loads(json.dumps(plain(one)))) == one

    for line in recording[:50]:
        body = json.loads(line)
        check([value(body[key]) for key in ("state", "stimulus", "actions") if key in body])


def test_only_values_of_the_core_are_recorded() -> None:
    with pytest.raises(RecordedError, match="a float is no value of the core"):
        plain(1.5)
