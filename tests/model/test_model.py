"""Every state that one fault or one command can bring two real cores into.

How much was tried is printed. HYPERHA_MODEL=all adds what takes minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from hyperha.core.options import Isolation, WitnessKind
from tests.model.cluster import Bounds, Cluster, State
from tests.model.explore import Violation, explore
from tests.model.faults import FAULT_KINDS
from tests.model.nexts import COMMANDS
from tests.model.starts import copying, redundant

LIMIT = 4_000_000
PINGED = partial(Cluster, Isolation.PRIMARY, witness=WitnessKind.PING, ttl_ms=2750)
FENCED = partial(Cluster, Isolation.PRIMARY, fences=True)
ALL = os.environ.get("HYPERHA_MODEL") == "all"


@dataclass(frozen=True)
class Case:
    """From where, under which policy, and what may happen."""

    start: Callable[[Cluster], State]
    isolation: Isolation
    bounds: Bounds

    def __str__(self) -> str:
        what = "command" if self.bounds.commands else f"{len(self.bounds.kinds)} kinds of faults"
        return f"{self.start.__name__}, {self.isolation}, {what}"


PRIMARY, RUN = Isolation.PRIMARY, Isolation.RUN
FEW = ("crash", "reset", "store", "slow", "lose", "copy", "exits")
COMMAND = Bounds(commands=1, writes=1, verbs=COMMANDS)
FAULT = Bounds(faults=1, writes=1, kinds=FAULT_KINDS)
QUICK = (
    Case(redundant, PRIMARY, Bounds(faults=1, writes=1, kinds=FEW)),
    Case(redundant, PRIMARY, COMMAND),
)
LONG = (
    *(Case(redundant, isolation, FAULT) for isolation in Isolation),
    *(
        Case(copying, isolation, Bounds(faults=1, kinds=FAULT_KINDS))
        for isolation in (PRIMARY, RUN)
    ),
    Case(copying, PRIMARY, Bounds(commands=1, verbs=COMMANDS)),
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", QUICK + LONG if ALL else QUICK, ids=str)
def test_everything_within_bounds(case: Case) -> None:
    _all_of(Cluster(case.isolation), case)


def _all_of(cluster: Cluster, case: Case) -> None:
    start = cluster.allowing(case.start(cluster), case.bounds)
    found = explore(cluster, start, limit=LIMIT)
    print(f"\n{case}: {found}")
    assert found.complete


@pytest.mark.timeout(900)
def test_a_ping_witness_that_only_one_side_reaches() -> None:
    """N8: under its assumption everything holds."""
    _all_of(
        PINGED(), Case(redundant, PRIMARY, Bounds(faults=1, writes=1, kinds=("island", "down")))
    )


def test_a_ping_witness_that_both_sides_reach_lets_both_go_on() -> None:
    """N8: and without it, it does not. The README says so."""
    cluster = PINGED()
    start = cluster.allowing(redundant(cluster), Bounds(faults=1, kinds=("cut",)))
    with pytest.raises(Violation, match=r"^I[12]: "):
        explore(cluster, start, limit=LIMIT)


@pytest.mark.timeout(900)
def test_nodes_that_switch_each_other_off() -> None:
    """D2c: whoever goes on, the other one is off."""
    _all_of(FENCED(), Case(redundant, PRIMARY, Bounds(faults=1, writes=1, kinds=("cut", "jam"))))
