"""Plans and differences of two real lineages: both nodes decide by themselves, nothing is moved."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hyperha.api.wire_copies import CopyView
from hyperha.client.sentences import plan_facts
from hyperha.core.events import PeerStatus
from hyperha.core.facts import AttachFacts, MarkerState
from hyperha.core.options import Config, Isolation, SafetyMode, Timing
from hyperha.core.records import DataLabel, Generation, Lineage, Settings
from hyperha.core.state import Link, ModuleState, Phase
from hyperha.daemon import sizes
from hyperha.daemon.engine_host import Kept
from hyperha.daemon.planning import diff, own_copy, plan, summary_of
from hyperha.domain import DataState, Readiness, Role
from hyperha.errors import BusyError, RefusedError, UnreachableError, UsageError
from hyperha.replication.control import Candidate, CandidatesTold

pytestmark = pytest.mark.anyio
G16, G17, G18 = (Generation(f"g{n}", n, "test", 1_700_000_000_000) for n in (16, 17, 18))


@dataclass
class Node:
    """One node's host, as far as a plan looks at it; its engine answers from a list."""

    state: ModuleState
    told: CandidatesTold
    folder: Path
    rate: int = 0

    def __post_init__(self) -> None:
        config = self.state.config
        self.name, self.node, self.peer = config.module, config.node, config.peer
        self.observed = SimpleNamespace(resync_bytes_per_s=self.rate)
        self.engine = self
        self.descriptor = os.open(self.folder, os.O_RDONLY)
        self.kept = Kept(("folder",), (self.descriptor,))

    async def ask(self, make: Callable[[int], object], kind: type, *, silence_s: float) -> Any:
        return self.told

    async def in_plain_folder(self, work: Callable[[str], Any], limit_s: float) -> Any:
        return work(str(self.folder))


@dataclass
class Peer:
    """The way to the other node: what goes over it is JSON."""

    other: Any
    """A `Node`, which has no more of a host than a plan looks at; or None."""

    async def copy_of(
        self, module: str, against: dict[str, Any] | None, target: str, *, sizes: bool = False
    ) -> CopyView:
        if self.other is None:
            raise UnreachableError("node2 does not answer: connection refused")
        summary = summary_of(json.dumps(against)) if against is not None else None
        found = await own_copy(self.other, summary, target, sizes=sizes)
        return CopyView.model_validate_json(found.model_dump_json())


class Pair:
    """Two nodes with lineages of a test's choice; descriptors are closed at its end."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.nodes: dict[str, Node] = {}

    def add(
        self,
        node: str,
        lineage: Lineage,
        *entries: Candidate,
        role: Role = Role.STOP,
        everything: bool = False,
        rate: int = 0,
        **changes: object,
    ) -> Node:
        folder = self._place / node
        folder.mkdir()
        (folder / "disk").write_bytes(b"x" * 5000)
        config = Config(
            module="VM1",
            number=1,
            node=node,
            peer=lineage.peer,
            isolation=Isolation.RUN,
            timing=Timing(),
            safety=SafetyMode.BEST_EFFORT,
        )
        values: dict[str, Any] = {
            "role": role,
            "phase": Phase.RUNNING if role.runs_vm else Phase.WAITING,
            "facts": AttachFacts(MarkerState.MATCHES, None, False, len(entries), ""),
        }
        state = ModuleState(config, lineage, Settings(), **(values | changes))
        size = sum(one.bytes for one in entries)
        told = CandidatesTold(0, everything, lineage.base, len(entries), size, entries)
        self.nodes[node] = Node(state, told, folder, rate)
        return self.nodes[node]

    def close(self) -> None:
        for node in self.nodes.values():
            os.close(node.descriptor)

    async def plan(self, asked: str = "node1", target: str = ""):
        node: Any = self.nodes[asked]
        way: Any = Peer(self.nodes[node.peer])
        return await plan(node, way, target)

    async def diff(self, asked: str = "node1", *, reachable: bool = True):
        node: Any = self.nodes[asked]
        way: Any = Peer(self.nodes[node.peer] if reachable else None)
        return await diff(node, way)


@pytest.fixture
def pair(tmp_path: Path):
    made = Pair(tmp_path)
    yield made
    made.close()


def lineage(node: str, current: Generation, **changes: Any) -> Lineage:
    peer = "node2" if node == "node1" else "node1"
    base = Lineage("r" * 32, node, peer, current, label=DataLabel.UPTODATE)
    return replace(base, **changes)


def heard(role: Role) -> dict[str, object]:
    """The other node is heard in a role."""
    status = PeerStatus(role, Readiness.READY, DataState.UPTODATE, 1, "g", False, True, "b1")
    return {"peer": status, "peer_heard": True}


ZONES = Candidate("disk", 3 << 20, False, False)
NAMES = Candidate(".", 0, False, True)


def went_on(pair: Pair, **changes: Any) -> None:
    """node1 went on alone; node2 is the older copy."""
    ahead = lineage(
        "node1", G17, base="g16", history=("g16",), alone_since_wall_ms=1_700_000_000_000
    )
    pair.add("node1", ahead, ZONES, NAMES, role=Role.ALONE, **heard(Role.WAIT))
    behind = lineage("node2", G16, label=DataLabel.OUTDATED)
    pair.add("node2", behind, NAMES, **(heard(Role.ALONE) | changes))


@pytest.mark.parametrize("asked", ["node1", "node2"])
async def test_the_older_copy_is_the_target_whoever_is_asked(pair: Pair, asked: str) -> None:
    went_on(pair, rate=1 << 20)
    found = await pair.plan(asked)
    assert (found.agree, found.moves, found.asked_target) == (True, True, "")
    assert (found.verdict.source, found.verdict.target) == ("node1", "node2")
    assert {node: one.rule for node, one in found.verdicts.items()} == {
        "node1": "R7",
        "node2": "R6",
    }
    assert found.verdict.start == "candidates"
    assert (found.files, found.bytes) == (2, 3 << 20)
    assert (found.bytes_per_s, found.seconds) == (1 << 20, 3)
    assert found.time_text == "about 3 s at 1.0 MiB/s, as the last resync went"
    assert found.safety.kind == "best_effort"
    assert found.loss == ""
    assert found.text.startswith("node2 would be made equal to node1: node1 went on without node2")


async def test_without_a_former_resync_the_time_is_not_known(pair: Pair) -> None:
    went_on(pair)
    assert (await pair.plan()).time_text == "unknown: nothing was copied yet"


async def test_a_log_without_limits_makes_it_a_full_compare(pair: Pair) -> None:
    went_on(pair, everything=True)
    found = await pair.plan()
    assert found.verdict.start == "full"
    assert "Z6" in found.text
    assert (found.files, found.bytes) == (None, 5000)


async def test_the_source_cannot_be_named_the_target(pair: Pair) -> None:
    went_on(pair)
    with pytest.raises(RefusedError, match="node1 cannot be the target") as caught:
        await pair.plan("node1", "node1")
    assert "R7" in caught.value.text
    with pytest.raises(UsageError, match="node9"):
        await pair.plan("node1", "node9")


def split(pair: Pair) -> None:
    """Both went on from the same generation, and both run."""
    for node, current, entries in (
        ("node1", G17, (ZONES,)),
        ("node2", G18, (Candidate("orders.db", 70_000, False, False), NAMES)),
    ):
        own = lineage(
            node, current, base="g16", history=("g16",), alone_since_wall_ms=1_700_000_000_000
        )
        pair.add(node, own, *entries, role=Role.ALONE, **heard(Role.ALONE))


async def test_after_a_split_brain_nothing_is_moved_before_somebody_decides(pair: Pair) -> None:
    split(pair)
    found = await pair.plan()
    assert (found.agree, found.moves) == (True, False)
    assert found.verdict.rule == "R9"
    assert found.text.startswith("nothing would be moved: both nodes went on")
    assert found.bytes is None


@pytest.mark.parametrize(("giver", "much"), [("node1", "1 file with"), ("node2", "2 files with")])
@pytest.mark.parametrize("asked", ["node1", "node2"])
async def test_what_would_be_lost_is_told_of_either_side(
    pair: Pair, asked: str, giver: str, much: str
) -> None:
    split(pair)
    found = await pair.plan(asked, giver)
    assert (found.agree, found.moves, found.asked_target) == (True, True, giver)
    assert (found.verdict.target, found.verdict.gives_up) == (giver, True)
    assert found.loss.startswith(f"what {giver} has written since 2023-11-14 22:13 UTC")
    assert much in found.loss
    assert found.safety.kind == "required", "a line of its own never goes without one (N3)"


@pytest.mark.parametrize(
    ("way_back", "required", "kind", "text"),
    [
        (True, True, "required", "of what node2 had before its resync began goes on (required)"),
        (True, False, "best_effort", "before its resync began goes on (best effort)"),
        (False, False, "none", "no safety copy"),
    ],
)
@pytest.mark.parametrize("asked", ["node1", "node2"])
async def test_a_half_made_copy_is_continued_with_what_it_began_with(
    pair: Pair, asked: str, way_back: bool, required: bool, kind: str, text: str
) -> None:
    """N3: under R3 nothing is given up any more, and what was is still required."""
    ahead = lineage("node1", G17, base="g16", history=("g16",))
    pair.add("node1", ahead, ZONES, role=Role.ALONE, **heard(Role.WAIT))
    half = lineage("node2", G18, label=DataLabel.INCONSISTENT, target_generation=G17.id)
    half = replace(half, way_back=way_back, way_back_required=required)
    pair.add("node2", half, ZONES, **heard(Role.ALONE))
    found = await pair.plan(asked)
    assert (found.verdict.rule, found.verdict.gives_up) == ("R3", False)
    assert found.safety.kind == kind
    assert text in found.safety.text


async def test_a_node_that_runs_is_stopped_before_it_gives_way(pair: Pair) -> None:
    split(pair)
    waiting = replace(pair.nodes["node1"].state, role=Role.WAIT, phase=Phase.WAITING)
    pair.nodes["node1"].state = waiting
    found = await pair.plan("node1", "node2")
    assert (found.agree, found.verdict.target) == (True, "node2")
    assert found.text.endswith("node2 must be stopped first")
    assert found.loss.startswith("what node2 has written")


async def test_differences_name_since_when_each_side_went_on(pair: Pair) -> None:
    split(pair)
    found = await pair.diff()
    assert found.split
    assert found.base == "g16"
    assert "node1 since 2023-11-14 22:13 UTC" in found.text
    assert [one.path for one in found.copies["node2"].candidates.listed] == ["orders.db", "."]


async def test_differences_of_one_side_are_told_when_the_other_is_silent(pair: Pair) -> None:
    went_on(pair)
    found = await pair.diff(reachable=False)
    assert set(found.copies) == {"node1"}
    assert "does not answer" in found.missing["node2"]
    assert "node1 went on by itself" in found.text


async def test_nodes_that_do_not_agree_move_nothing_and_both_are_shown(pair: Pair) -> None:
    """node2 takes node1 for running, and its own copy for the newer one."""
    pair.add("node1", lineage("node1", G16, label=DataLabel.OUTDATED), ZONES)
    newer = lineage("node2", G17, base="g16", history=("g16",))
    pair.add("node2", newer, ZONES, **heard(Role.ALONE))
    found = await pair.plan()
    assert (found.agree, found.moves) == (False, False)
    assert found.text.startswith("nothing would be moved, the nodes do not agree")
    assert found.verdicts["node1"].target == "node1"
    assert found.verdicts["node2"].source == ""


async def test_equal_copies_and_copies_in_sync(pair: Pair) -> None:
    pair.add(
        "node1", lineage("node1", G17), role=Role.PRIM, link=Link.IN_SYNC, **heard(Role.SECOND)
    )
    other = {"phase": Phase.FOLLOWING, "link": Link.IN_SYNC, **heard(Role.PRIM)}
    pair.add("node2", lineage("node2", G17), role=Role.SECOND, **other)
    found = await pair.plan()
    assert (found.verdict.rule, found.moves) == ("R5", False)
    assert found.text == "both copies are in sync: nothing is to be moved"
    assert [label for label, _ in plan_facts(found)] == ["plan", "node1", "node2"]


async def test_what_is_being_written_is_no_plan_while_the_copies_are_in_sync(pair: Pair) -> None:
    prim = {"role": Role.PRIM, "link": Link.IN_SYNC, **heard(Role.SECOND)}
    pair.add("node1", lineage("node1", G17), ZONES, **prim)
    other = {"phase": Phase.FOLLOWING, "link": Link.IN_SYNC, **heard(Role.PRIM)}
    pair.add("node2", lineage("node2", G17), ZONES, role=Role.SECOND, **other)
    found = await pair.plan()
    assert (found.verdict.rule, found.in_sync, found.moves, found.bytes) == (
        "R4",
        True,
        False,
        None,
    )


async def test_a_fresh_copy_gets_everything(pair: Pair) -> None:
    pair.add("node1", lineage("node1", G17, base=""), ZONES, role=Role.ALONE)
    fresh = Lineage("r" * 32, "node2", "node1")
    facts = AttachFacts(MarkerState.ABSENT, None, True, 0, "")
    pair.add("node2", fresh, facts=facts, **heard(Role.ALONE))
    found = await pair.plan()
    assert (found.verdict.rule, found.verdict.start, found.bytes) == ("R2", "full", 5000)
    assert found.safety.kind == "none"


@pytest.mark.root
@pytest.mark.parametrize(
    ("room", "fits", "says"),
    [
        (1 << 30, True, "node2 has room for up to 1.0 GiB"),
        (1024, False, "reserved room included; node2 has room for 1.0 KiB"),
        (None, None, "whether node2 has room for the copy is not known"),
    ],
)
async def test_whether_a_whole_copy_fits_is_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, room: int | None, fits: bool | None, says: str
) -> None:
    """D11: with both figures, before anything is moved."""
    monkeypatch.setattr(sizes, "room_bytes", lambda root: room)
    pair.add("node1", lineage("node1", G17, base=""), ZONES, role=Role.ALONE)
    facts = AttachFacts(MarkerState.ABSENT, None, True, 0, "")
    pair.add("node2", Lineage("r" * 32, "node2", "node1"), facts=facts, **heard(Role.ALONE))
    found = await pair.plan()
    assert found.fits is fits
    assert says in found.room_text
    assert ("room", found.room_text) in plan_facts(found)


async def test_a_copy_on_its_way_is_not_guessed_at(pair: Pair) -> None:
    went_on(pair, facts=None, phase=Phase.ATTACHING)
    with pytest.raises(BusyError, match="node2 is busy: attaching"):
        await pair.plan()
