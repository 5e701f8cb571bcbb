"""R16: two nodes that both run; who gives way, and that nobody else does."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core.explain import explain
from hyperha.core.options import Isolation
from hyperha.core.records import DataLabel
from hyperha.core.splitting import verdict
from hyperha.core.state import Phase, Step
from hyperha.domain import Role
from hyperha.study.model_node import Node
from hyperha.study.world import World
from tests.support.world import pair

R = Role


def report(**facts: object) -> m.SplitReport:
    plain = m.SplitReport("n", "", "g", False, False, True, None, False)
    return replace(plain, **facts)  # type: ignore[arg-type]


ORDER = (
    ({"leased": True}, {}, "one holds the lease"),
    ({"forced": True}, {}, "an operator has started it on one"),
    ({}, {"wrote": False}, "two has acknowledged nothing since they parted"),
    ({"reached": True}, {"reached": False}, "one still reached others"),
    ({"ran_before": True}, {}, "one ran it before they parted"),
)


@pytest.mark.parametrize("at", range(len(ORDER)))
def test_the_first_difference_decides(at: int) -> None:
    """The earlier one wins over all that come behind it, which speak for the other side."""
    mine, theirs, reason = ORDER[at]
    one, other = report(**mine), report(**theirs)
    for left, right, _ in ORDER[at + 1 :]:
        if "forced" not in left:
            one, other = replace(one, **right), replace(other, **left)
    stays, why = verdict(one, other, "one", "two")
    assert stays == "one", why
    assert why.startswith(reason)


def test_what_an_operator_started_never_gives_way_by_itself() -> None:
    stays, why = verdict(report(leased=True), report(forced=True), "one", "two")
    assert not stays
    assert why == "one holds the lease, but an operator has started it on two"
    assert not verdict(report(forced=True), report(forced=True, wrote=False), "one", "two")[0]


def test_where_nothing_differs_an_operator_decides() -> None:
    assert not verdict(report(), report(), "one", "two")[0]
    assert not verdict(report(reached=None), report(reached=True), "one", "two")[0]


def test_both_sides_reach_the_same_verdict() -> None:
    """Whatever the two reports are: never two that give way, never two that stay."""
    flags = (True, False)
    every = [
        report(leased=leased, forced=forced, wrote=wrote, reached=reached, ran_before=before)
        for leased, forced, wrote, before in itertools.product(flags, repeat=4)
        for reached in (True, False, None)
    ]
    for one, other in itertools.product(every, repeat=2):
        assert verdict(one, other, "one", "two") == verdict(other, one, "two", "one")


def split(world: World | None = None) -> World:
    """Both run, and hear each other again."""
    world = world or pair()
    world.cut_network()
    world.until(R.ALONE, R.ALONE)
    world.run(3000)
    world.heal_network()
    return world


def watched(node: Node) -> list[a.Action]:
    """What a node does from here on."""
    done: list[a.Action] = []
    perform = node.perform

    def watch(action: a.Action) -> None:
        done.append(action)
        perform(action)

    node.perform = watch  # type: ignore[method-assign]
    return done


def test_the_node_that_took_over_gives_way_and_its_line_is_kept() -> None:
    world = split()
    only_b = world.b.folder.data - world.a.folder.data
    running = world.a.vm_run
    world.until(R.PRIM, R.SECOND)
    assert world.a.vm_run == running, "what stays is not touched"
    assert world.a.folder.data == world.b.folder.data
    assert any(only_b <= kept for kept in world.b.folder.kept)
    assert world.b.lineage.yields_to == ""
    assert world.b.settings.recoveries_wall_ms == ()


def test_it_stops_as_if_told_to_and_only_after_a_full_window() -> None:
    world = split()
    done = watched(world.b)
    world.run(3000)
    assert world.roles() == (R.ALONE, R.ALONE)
    assert {node.state.why.rule for node in (world.a, world.b)} == {"R16"}
    world.until(R.PRIM, R.SECOND)
    stops = [one for one in done if isinstance(one, a.StopVm)]
    assert [one.force for one in stops] == [False]
    assert not any(isinstance(one, a.KillVm) for one in done)


@pytest.mark.parametrize("loss", [0.5, 0.9])
def test_over_a_network_that_loses_and_repeats(loss: float) -> None:
    world = split()
    world.loss, world.late = loss, 0.3
    world.until(R.PRIM, R.SECOND, timeout_ms=600_000)


def test_the_one_that_wrote_nothing_gives_way_though_it_ran_before() -> None:
    world = split()
    world.a.folder.log = world.a.folder.dirty = False
    world.until(R.SECOND, R.PRIM)


def test_what_an_operator_started_stays() -> None:
    world = pair(isolation=Isolation.PRIMARY)
    world.cut_network()
    world.until(R.ALONE, R.WAIT)
    world.forced = True
    world.command(world.b, "prim", confirmed=True)
    world.until(R.ALONE, R.ALONE)
    world.heal_network()
    world.until(R.SECOND, R.PRIM)
    assert world.a.folder.kept


def test_without_room_for_its_safety_copy_it_waits_and_the_other_one_runs() -> None:
    """N3: and goes on as soon as there is room; nobody asks again who gives way."""
    world = split()
    world.b.safety_fails = True
    only_b = world.b.folder.data - world.a.folder.data
    world.run(30_000)
    assert world.roles() == (R.ALONE, R.WAIT)
    assert only_b <= world.b.folder.data
    assert "has no room" in explain(world.b.state).text
    world.b.safety_fails = False
    world.until(R.PRIM, R.SECOND)


@pytest.mark.parametrize("after_ms", [0, 5, 20, 200, 800, 1500, 4000])
@pytest.mark.parametrize("victim", ["a", "b"])
def test_either_dies_while_one_gives_way(victim: str, after_ms: int) -> None:
    """Whoever stays runs; and in the end both are equal, the other line kept or not given up."""
    world = split()
    world.run(3000)
    while not world.b.lineage.yields_to:
        world.run(1)
    world.run(after_ms)
    only_b = world.b.folder.data - world.a.folder.data
    node = world.a if victim == "a" else world.b
    world.crash(node)
    world.run(20_000)
    world.boot_node(node)
    world.run(90_000)
    sides = (world.a, world.b)
    runs = [one for one in sides if one.state.role.runs_vm]
    assert len(runs) == 1, world.tell()
    held = [*world.b.folder.kept, world.b.folder.data, world.a.folder.data]
    assert any(only_b <= one for one in held), world.tell()


def test_the_network_goes_again_before_anybody_has_given_way() -> None:
    world = split()
    world.run(2000)
    world.cut_network()
    world.run(60_000)
    assert world.roles() == (R.ALONE, R.ALONE)
    assert {node.state.split for node in (world.a, world.b)} == {None}
    assert all(node.state.why.rule == "D3" for node in (world.a, world.b))
    world.heal_network()
    world.until(R.PRIM, R.SECOND)


def test_a_restart_of_the_vm_is_not_the_last_word() -> None:
    world = split()
    world.run(2000)
    world.a.vm_run = 0
    world.a.event(e.VmExited(world.a.state.run, "exit status 1"))
    world.run(1000)
    assert world.b.state.why.rule == "R16"
    world.until(R.PRIM, R.SECOND)


def test_a_report_of_another_line_decides_nothing() -> None:
    """Late, from before the two parted again."""
    world = split()
    while world.b.state.split is None or world.b.state.split.mine is None:
        world.run(1)
    before = world.b.state
    assert before.split is not None
    assert before.split.mine is not None
    late = report(generation="f" * 32, heard=before.split.mine.nonce, ran_before=True)
    world.b.event(e.MessageReceived(late))
    assert world.b.state.split == before.split
    assert world.b.state.phase is Phase.RUNNING


def test_nobody_gives_way_before_the_other_one_knows_its_report() -> None:
    world = split()
    while world.b.state.split is None or world.b.state.split.mine is None:
        world.run(1)
    unheard = report(generation=world.a.lineage.current.id, nonce="x", ran_before=True)
    world.b.event(e.MessageReceived(unheard))
    assert world.b.state.phase is Phase.RUNNING
    assert not world.b.lineage.yields_to
    world.b.event(e.MessageReceived(replace(unheard, heard=world.b.state.split.mine.nonce)))
    assert world.b.state.phase is not Phase.RUNNING
    assert world.b.lineage.label is DataLabel.UPTODATE


def test_the_verdict_is_forgotten_by_a_line_that_goes_on() -> None:
    """The other side is gone before anything was moved: under `run` this copy runs again, and
    whoever returns is asked anew."""
    world = split()
    while not world.b.lineage.yields_to:
        world.run(1)
    world.crash(world.a)
    world.until(None, R.ALONE)
    assert world.b.lineage.yields_to == ""
    world.boot_node(world.a)
    world.run(30_000)
    assert world.roles() == (R.WAIT, R.ALONE), "one of them does not run: an operator decides"
    assert "split brain" in explain(world.a.state).text


def test_a_replication_process_that_dies_while_it_is_asked() -> None:
    """What it was asked is not answered: the successor is asked again."""
    world = split()
    while not any(step is Step.COUNT for _, step in world.b.state.awaiting):
        world.run(1)
    world.engine_dies(world.b, recovered=True)
    world.until(R.PRIM, R.SECOND)
