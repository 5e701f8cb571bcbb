"""Which copy is the source: every row of the table, seen from both nodes (R0-R10, R3, R4', R12)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperha.core.actions import SessionStart
from hyperha.core.lineage import Direction, decide
from hyperha.core.messages import Summary
from hyperha.core.records import DataLabel, Generation, Lineage
from hyperha.domain import NO_EPOCH, Epoch

G = tuple(f"{n:032x}" for n in range(1, 9))
"""Generations, older ones first."""
SOURCE, TARGET, EQUAL, CONFLICT = (
    Direction.SOURCE,
    Direction.TARGET,
    Direction.EQUAL,
    Direction.CONFLICT,
)
FULL, CANDIDATES, IN_SYNC = SessionStart.FULL, SessionStart.CANDIDATES, SessionStart.IN_SYNC


@dataclass(frozen=True)
class Copy:
    """A node's copy, as short as a row of a table needs it; `line` ends with its generation."""

    line: tuple[str, ...] = ()
    base: str = ""
    label: DataLabel = DataLabel.UPTODATE
    target: str = ""
    candidates: int = 0
    primary: bool = False
    last: bool = False
    counter: int = 0
    empty: bool = False
    adopt: bool = False
    full: bool = False
    unknown: bool = False
    resource: str = "r1"

    def summary(self, node: str) -> Summary:
        current = Generation(self.line[-1], len(self.line), "x", 0) if self.line else None
        lineage = Lineage(
            self.resource,
            node,
            "other",
            base=self.base,
            history=tuple(reversed(self.line[:-1])),
            label=self.label,
            target_generation=self.target,
            intent_primary=self.primary,
            was_primary=self.last,
            epoch=Epoch(self.counter, node) if self.counter else NO_EPOCH,
        )
        if current is not None:
            lineage = replace(lineage, current=current)
        return Summary.of(
            lineage,
            self.candidates,
            self.empty,
            adopt=self.adopt,
            full=self.full,
            unknown=self.unknown,
        )


HALF, OUT, FRESH = DataLabel.INCONSISTENT, DataLabel.OUTDATED, DataLabel.FRESH
BEHIND, AHEAD = Copy(G[:1], label=OUT), Copy(G[:2], base=G[0], candidates=3)

ROWS = {
    "R0 another module": (Copy(G[:1]), Copy(G[:1], resource="r2"), "R0", CONFLICT, FULL),
    "R0 nothing in common": (Copy(G[:1]), Copy(G[1:2]), "R0", CONFLICT, FULL),
    "R1 both fresh": (Copy(label=FRESH), Copy(label=FRESH, empty=True), "R1", CONFLICT, FULL),
    "R2 empty": (Copy(label=FRESH, empty=True), Copy(G[:1]), "R2", TARGET, FULL),
    "R2 unrelated files": (Copy(label=FRESH), Copy(G[:1]), "R2", CONFLICT, FULL),
    "R2 pre-seeded": (Copy(label=FRESH, adopt=True), Copy(G[:1]), "R2", TARGET, FULL),
    "R2 a first copy goes on": (Copy(label=HALF), Copy(G[:1]), "R2", TARGET, FULL),
    "R3 equal, half copied": (
        Copy(G[:1], label=HALF, target=G[0]),
        Copy(G[:1]),
        "R3",
        TARGET,
        CANDIDATES,
    ),
    "R3 half copied of a generation before": (
        Copy(G[:1], label=HALF, target=G[1]),
        Copy(G[:3], base=G[1]),
        "R3",
        TARGET,
        CANDIDATES,
    ),
    "R3 half copied of another line": (
        Copy(G[:1], label=HALF, target=G[5]),
        Copy(G[:2], base=G[0]),
        "R3",
        TARGET,
        FULL,
    ),
    "R3 both half copied": (
        Copy(G[:1], label=HALF, target=G[0]),
        Copy(G[:1], label=HALF, target=G[0]),
        "R3",
        CONFLICT,
        FULL,
    ),
    "R4 records of the one": (
        Copy(G[:1]),
        Copy(G[:1], candidates=2, last=True),
        "R4",
        TARGET,
        CANDIDATES,
    ),
    "R4 records of the other": (
        Copy(G[:1], candidates=2, last=True),
        Copy(G[:1]),
        "R4",
        SOURCE,
        CANDIDATES,
    ),
    "R4 the crashed primary": (
        Copy(G[:1], candidates=2),
        Copy(G[:1], candidates=2, primary=True),
        "R4",
        TARGET,
        CANDIDATES,
    ),
    "R4' two crashed primaries, the later one": (
        Copy(G[:1], candidates=2, primary=True, counter=4),
        Copy(G[:1], candidates=1, primary=True, counter=5),
        "R4",
        TARGET,
        CANDIDATES,
    ),
    "R4 an outdated copy is no source": (
        Copy(G[:1], candidates=2, primary=True, label=OUT),
        Copy(G[:1], candidates=2),
        "R4",
        TARGET,
        CANDIDATES,
    ),
    "R4 by name": (Copy(G[:1], candidates=2), Copy(G[:1], candidates=2), "R4", SOURCE, CANDIDATES),
    "R4 a damaged log": (Copy(G[:1], candidates=-1), Copy(G[:1], last=True), "R4", TARGET, FULL),
    "R5 equal": (Copy(G[:1]), Copy(G[:1]), "R5", EQUAL, IN_SYNC),
    "R5 not while a full compare is owed": (
        Copy(G[:1], full=True),
        Copy(G[:1], last=True),
        "R4",
        TARGET,
        FULL,
    ),
    "R6 the other went on": (BEHIND, AHEAD, "R6", TARGET, CANDIDATES),
    "R7 this one went on": (AHEAD, BEHIND, "R7", SOURCE, CANDIDATES),
    "R6 with a damaged map": (
        BEHIND,
        replace(AHEAD, candidates=-1),
        "R6",
        TARGET,
        FULL,
    ),
    "R8 several generations": (Copy(G[:1]), Copy(G[:4], base=G[2]), "R8", TARGET, FULL),
    "R8 mirrored": (Copy(G[:4], base=G[2]), Copy(G[:1]), "R8", SOURCE, FULL),
    "R9 split brain with a common base": (
        Copy((*G[:1], G[1]), base=G[0]),
        Copy((*G[:1], G[2]), base=G[0]),
        "R9",
        CONFLICT,
        FULL,
    ),
    "R9 one gives way": (
        Copy((*G[:1], G[1]), base=G[0], adopt=True),
        Copy((*G[:1], G[2]), base=G[0]),
        "R9",
        TARGET,
        FULL,
    ),
    "R10 split brain, only histories meet": (
        Copy((*G[:1], G[1], G[3]), base=G[1]),
        Copy((*G[:1], G[2], G[4]), base=G[2]),
        "R10",
        CONFLICT,
        FULL,
    ),
    "R3 nobody copies from a half made one": (
        Copy(label=FRESH, empty=True),
        Copy(G[:1], label=HALF, target=G[0]),
        "R3",
        CONFLICT,
        FULL,
    ),
    "R12 unknown data is no source": (
        BEHIND,
        replace(AHEAD, unknown=True),
        "R12",
        CONFLICT,
        FULL,
    ),
}


def _mirrored_rule(rule: str) -> str:
    return {"R6": "R7", "R7": "R6"}.get(rule, rule)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_row(row: tuple[Copy, Copy, str, Direction, SessionStart]) -> None:
    mine, theirs, rule, direction, start = row
    one, two = mine.summary("node1"), theirs.summary("node2")
    verdict = decide(one, two)
    assert (verdict.rule, verdict.direction, verdict.start) == (rule, direction, start), verdict
    other = decide(two, one)
    assert other.direction is verdict.mirrored().direction
    assert other.start is start
    assert _mirrored_rule(other.rule) == rule


def test_equal_generations_never_hide_what_a_crash_left() -> None:
    """G4: a primary that crashed with writes under way has records and an unchanged generation;
    equal names must lead to a comparison, whichever node's log knows of it (as in DRBD #145)."""
    crashed = Copy(G[:1], candidates=7, primary=True, last=True)
    for mine, theirs in ((crashed, Copy(G[:1])), (Copy(G[:1]), crashed)):
        verdict = decide(mine.summary("node1"), theirs.summary("node2"))
        assert verdict.rule == "R4"
        assert verdict.start is not IN_SYNC
        assert verdict.direction in (SOURCE, TARGET)
        source = mine if verdict.direction is SOURCE else theirs
        assert source is crashed
    survivor = Copy(G[:1], candidates=1, last=True)
    verdict = decide(survivor.summary("node1"), Copy(G[:1]).summary("node2"), running="node1")
    assert (verdict.direction, verdict.start) == (SOURCE, CANDIDATES)


def copies() -> st.SearchStrategy[Copy]:
    lines = st.lists(st.sampled_from(G[:5]), max_size=4, unique=True).map(tuple)
    return st.builds(
        Copy,
        line=lines,
        base=st.sampled_from(("", *G[:5])),
        label=st.sampled_from(list(DataLabel)),
        target=st.sampled_from(("", *G[:5])),
        candidates=st.sampled_from((-1, 0, 0, 5)),
        primary=st.booleans(),
        last=st.booleans(),
        counter=st.integers(0, 3),
        empty=st.booleans(),
        adopt=st.booleans(),
        full=st.booleans(),
        unknown=st.booleans(),
    )


@given(copies(), copies(), st.sampled_from(("", "node1", "node2")))
def test_both_nodes_come_to_the_same_verdict(mine: Copy, theirs: Copy, running: str) -> None:
    """Any two copies: the same rule, mirrored; a node that runs is never the target (R0)."""
    one, two = mine.summary("node1"), theirs.summary("node2")
    verdict, other = decide(one, two, running), decide(two, one, running)
    assert other.direction is verdict.mirrored().direction
    assert other.start is verdict.start
    assert other.gives_up is verdict.gives_up
    assert _mirrored_rule(other.rule) == verdict.rule
    if running == "node1":
        assert verdict.direction is not TARGET
    if running == "node2":
        assert verdict.direction is not SOURCE
    if verdict.direction is EQUAL:
        assert mine.candidates == theirs.candidates == 0
        assert mine.line[-1] == theirs.line[-1]
    if verdict.direction is SOURCE:
        assert mine.label is not HALF
        assert not mine.unknown
