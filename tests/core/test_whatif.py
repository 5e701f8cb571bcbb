"""What would happen, told by cores that begin where others are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hyperha.core.explain import readiness
from hyperha.core.options import Isolation, WitnessKind
from hyperha.core.state import Phase
from hyperha.domain import Role
from hyperha.errors import BusyError, RefusedError, UsageError
from hyperha.study.recorded import RecordedError
from hyperha.study.snapshot import snapshot_body, snapshot_of
from hyperha.study.whatif import Outcome, happening, whatif
from tests.support.world import World, pair, snapshots

NODES = ("node1", "node2")


def ask(world: World, *events: str) -> Outcome:
    return whatif(snapshots(world), [happening(one, NODES) for one in events])


def really(world: World, *faults: str) -> None:
    """The same, in the world itself."""
    for fault in faults:
        if fault == "network-cut":
            world.cut_network()
        elif fault == "network-back":
            world.heal_network()
        else:
            word, _, name = fault.partition(":")
            node = world.nodes[name]
            if word == "off":
                world.crash(node)
            elif word == "boot":
                world.boot_node(node)
            else:
                world.command(node, word, confirmed=True)
        world.run(30_000)


@pytest.mark.parametrize("isolation", list(Isolation))
@pytest.mark.parametrize(
    "events",
    [
        ("off:node1",),
        ("off:node1", "boot:node1"),
        ("off:node2", "boot:node2"),
        ("network-cut",),
        ("network-cut", "network-back"),
        ("swap:node1",),
        ("swap:node1", "off:node2"),
        ("stop:node2", "stop:node1", "start:node1"),
    ],
    ids="-".join,
)
def test_it_comes_as_was_told(isolation: Isolation, events: tuple[str, ...]) -> None:
    """A clone of a world ends as the world itself does."""
    world = pair(isolation=isolation)
    world.run(3000)
    told = ask(world, *events)
    really(world, *events)
    assert not told.broken
    assert not told.unsettled
    for name, node in world.nodes.items():
        assert told.sides[name].role == (node.state.role.value if node.alive else "")
        if node.alive:
            assert told.sides[name].data == node.state.lineage.data.value
            assert told.sides[name].readiness == readiness(node.state).value


def test_a_lost_node_costs_what_its_successor_takes() -> None:
    told = ask(pair(), "off:node1")
    assert told.runs == ("node2",)
    assert told.loss == "nothing"
    # Suspected and waited for (3.5 s), then the VM starts (3.5 s, as it was measured).
    assert 6500 <= told.down_ms <= 7500
    assert any(one.rule == "P8" and one.node == "node2" for one in told.story)


def test_held_writes_are_no_outage() -> None:
    told = ask(pair(isolation=Isolation.PRIMARY), "off:node2")
    assert told.runs == ("node1",)
    assert told.down_ms == 0
    assert 1000 <= told.held_ms <= 4000


def test_a_swap_takes_a_stop_and_a_start() -> None:
    told = ask(pair(), "swap:node1")
    assert told.answers == (("swap:node1", True, "node2 runs the VM"),)
    assert told.runs == ("node2",)
    assert 4300 <= told.down_ms <= 4800


def test_a_split_is_told() -> None:
    told = ask(pair(isolation=Isolation.RUN), "network-cut")
    assert told.runs == NODES
    assert told.loss == "split"


def test_what_would_be_missing_is_told() -> None:
    world = pair()
    world.crash(world.b)
    world.run(20_000)
    assert world.a.state.role is Role.ALONE
    told = ask(world, "off:node1", "boot:node2", "prim:node2")
    assert told.runs == ("node2",)
    assert told.loss == "writes"
    assert "node1 has acknowledged" in told.loss_text


def test_where_no_vm_runs_the_whole_copies_are_named() -> None:
    told = ask(pair(isolation=Isolation.HOLD), "off:node1")
    assert told.runs == ()
    assert told.loss == "stopped"
    assert told.loss_text == "every acknowledged write is on node1 and node2"


def test_a_lease_witness_goes_on_where_it_is() -> None:
    world = pair(witness=WitnessKind.LEASE)
    world.run(10_000)
    assert ask(world, "off:node1").runs == ("node2",)
    assert ask(world, "isolate:node1").runs == ("node2",)
    assert ask(world, "isolate:node2").runs == ("node1",)
    assert ask(world, "witness-off").down_ms == 0
    both = ask(world, "witness-off", "off:node2")
    assert both.runs == ("node1",) or both.loss == "stopped"


def test_a_witness_that_both_sides_reach_is_found_out() -> None:
    """N8: a ping witness is right only where a cut leaves it to one side at most."""
    world = pair(witness=WitnessKind.PING)
    world.run(3000)
    assert ask(world, "network-cut").broken.startswith("I")
    assert ask(world, "isolate:node1").runs == ("node2",)


def test_events_follow_each_other_after_a_wait() -> None:
    world = pair(isolation=Isolation.PRIMARY)
    told = ask(world, "network-cut", "wait:0.4", "network-back")
    assert told.runs == ("node1",)
    assert told.held_ms < 1500


def test_a_resync_that_runs_goes_on() -> None:
    world = pair()
    world.crash(world.b)
    world.run(20_000)
    world.boot_node(world.b)
    for _ in range(2000):
        if world.b.state.phase is Phase.RESYNCING and not world.b.state.awaiting:
            break
        world.run(5)
    assert world.b.state.phase is Phase.RESYNCING
    assert ask(world, "wait:0").sides["node2"].data == "inconsistent"
    assert ask(world, "vm-exit").sides["node2"].role == "SECOND"
    lost = ask(world, "off:node1")
    assert lost.runs == ()
    assert lost.sides["node2"].data == "inconsistent"


def test_a_node_that_does_not_answer_is_off() -> None:
    world = pair()
    world.crash(world.b)
    world.run(20_000)
    found = snapshots(world)
    assert list(found) == ["node1"]
    assert whatif(found, [happening("vm-exit", NODES)]).runs == ("node1",)
    back = whatif(found, [happening("boot:node2", NODES)])
    assert back.sides["node2"].role in ("STOP", "WAIT", "SECOND")


def test_clocks_of_their_own() -> None:
    world = pair()
    found = snapshots(world)
    other = found["node2"]
    shifted = replace(
        other,
        now_ms=other.now_ms + 5_000_000,
        state=_later(other.state, 5_000_000),
        timers=tuple((timer, at_ms + 5_000_000) for timer, at_ms in other.timers),
    )
    events = [happening("off:node1", NODES)]
    told, here = whatif({**found, "node2": shifted}, events), whatif(found, events)
    assert (told.runs, told.down_ms, told.story) == (here.runs, here.down_ms, here.story)


def _later(state, by_ms: int):
    """Its times, on a clock that is ahead."""
    return replace(state, last_heard_ms=state.last_heard_ms + by_ms)


def test_nothing_of_it_touches_what_it_began_with() -> None:
    world = pair()
    before = snapshots(world)
    ask(world, "off:node1", "boot:node1")
    assert snapshots(world) == before


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ("of:node1", "is no event"),
        ("off", "where?"),
        ("off:node3", "no node 'node3'"),
        ("network-cut:node1", "no node in particular"),
        ("wait:soon", "no number of seconds"),
        ("wait:1e9", "no number of seconds"),
        ("wait:nan", "no number of seconds"),
        ("", "is no event"),
    ],
)
def test_what_is_no_event_is_named(event: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        happening(event, NODES)


@pytest.mark.parametrize(
    ("events", "says"),
    [
        (("off:node1", "off:node1"), "node1 is off then"),
        (("boot:node1",), "runs already"),
        (("off:node1", "swap:node1"), "node1 is off then"),
        (("stop:node1", "stop:node2", "vm-exit"), "no VM runs then"),
    ],
)
def test_what_cannot_happen_then_is_refused(events: tuple[str, ...], says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        ask(pair(), *events)


def test_in_the_middle_of_something_nothing_is_told() -> None:
    world = pair()
    world.command(world.a, "swap")
    with pytest.raises(BusyError, match="in the middle of something on node1"):
        ask(world, "off:node1")


def test_a_view_travels_as_json() -> None:
    world = pair(witness=WitnessKind.LEASE)
    world.run(5000)
    for one in snapshots(world).values():
        assert snapshot_of(json.loads(json.dumps(snapshot_body(one)))) == one


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"state": 7},
        {"state": {"class": "state.Nothing"}},
        {"state": {"class": "domain.Epoch", "counter": 1, "node": "n"}, "timers": []},
    ],
)
def test_what_is_no_view_is_named(body: dict[str, object]) -> None:
    with pytest.raises(RecordedError):
        snapshot_of(body)
