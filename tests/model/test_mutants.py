"""A core without one of its rules, planted: the exploration finds what the rule prevents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from hyperha.core import running, source, takeover, waiting
from hyperha.core.events import EngineDone, VmDone
from hyperha.core.options import Isolation
from hyperha.core.records import Lineage, ProofKind
from hyperha.core.state import Step
from hyperha.core.turn import Turn
from tests.model.cluster import Bounds, Cluster, State
from tests.model.explore import Violation, explore
from tests.model.starts import parting, redundant

LIMIT = 600_000


@dataclass(frozen=True)
class Mutant:
    """What is wrong with it, where it shows, and what is found."""

    rule: str
    isolation: Isolation
    start: Callable[[Cluster], State]
    kinds: tuple[str, ...]
    plant: Callable[[pytest.MonkeyPatch], None]
    found: str
    late: bool = False
    """Planted when the start is reached, which such a core does not reach."""


def _takes_over_without_leave(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(takeover, "Isolation", SimpleNamespace(RUN=Isolation.PRIMARY))


def _goes_on_at_once(patch: pytest.MonkeyPatch) -> None:
    def freeze(turn: Turn, text: str) -> None:
        running.release(turn)

    patch.setattr(source, "freeze", freeze)


def _starts_without_asking(patch: pytest.MonkeyPatch) -> None:
    def claim(turn: Turn) -> None:
        running.enter_alone(turn, ProofKind.PEER_SAID_SO)

    patch.setattr(waiting, "claim", claim)


def _certifies_what_the_peer_lacks(patch: pytest.MonkeyPatch) -> None:
    def release(turn: Turn) -> None:
        if turn.state.writable:
            running.certificate_forbidden(turn, VmDone(0, True))
        else:
            original(turn)

    original = running.release
    patch.setattr(running, "release", release)


def _keeps_the_generation(patch: pytest.MonkeyPatch) -> None:
    def minted(self: Lineage, generation_id: str, reason: str, at_wall_ms: int) -> Lineage:
        return replace(self, base=self.base or self.current.id)

    patch.setattr(Lineage, "minted", minted)


def _marks_nothing(patch: pytest.MonkeyPatch) -> None:
    def enter_alone(turn: Turn, kind: ProofKind) -> None:
        original(turn, kind)
        number = next(number for number, step in turn.state.awaiting if step is Step.ENTER)
        turn.actions = [one for one in turn.actions if getattr(one, "operation", 0) != number]
        turn.take(number)
        running.entered(turn, EngineDone(number, True))

    original = running.enter_alone
    patch.setattr(running, "enter_alone", enter_alone)


def _starts_by_its_own_opinion(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(waiting, "_settle_alone", running.continue_line)


PRIMARY, RUN = Isolation.PRIMARY, Isolation.RUN
MUTANTS = (
    Mutant("W6'", PRIMARY, redundant, ("cut",), _takes_over_without_leave, "I2"),
    Mutant("D1", PRIMARY, redundant, ("reset",), _goes_on_at_once, "D2"),
    Mutant("P7", PRIMARY, redundant, ("crash",), _starts_without_asking, "I2"),
    Mutant("L8", PRIMARY, parting, ("daemon",), _certifies_what_the_peer_lacks, "I3"),
    Mutant("G3'", RUN, redundant, ("cut",), _keeps_the_generation, "I9", late=True),
    Mutant("Z1", PRIMARY, redundant, ("reset",), _marks_nothing, "I7"),
    Mutant("P2", PRIMARY, redundant, ("cut",), _starts_by_its_own_opinion, "D2"),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.rule)
def test_a_core_without_a_rule_is_found_out(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(mutant.isolation)
    if not mutant.late:
        mutant.plant(monkeypatch)
    start = mutant.start(cluster)
    if mutant.late:
        mutant.plant(monkeypatch)
        cluster.forget()
    start = cluster.allowing(start, Bounds(faults=1, writes=1, kinds=mutant.kinds))
    with pytest.raises(Violation) as caught:
        explore(cluster, start, limit=LIMIT)
    print(caught.value)
    assert str(caught.value).startswith(f"{mutant.found}:")
