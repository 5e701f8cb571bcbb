"""Witnesses and power switches: who goes on when the two nodes hear each other no more."""

from __future__ import annotations

import pytest

from hyperha.core.explain import explain, readiness
from hyperha.core.options import WitnessKind
from hyperha.domain import Role
from tests.support.world import World, pair

R = Role
PING, LEASE = WitnessKind.PING, WitnessKind.LEASE


def _cut(world: World, *astray: str) -> None:
    """The nodes hear each other no more, and these reach nobody else either."""
    world.astray = set(astray)
    world.cut_network()


def _heal(world: World) -> None:
    world.astray = set()
    world.heal_network()
    world.run(30_000)
    assert set(world.roles()) == {R.PRIM, R.SECOND}


@pytest.mark.parametrize("witness", [PING, LEASE])
def test_the_isolated_primary_gives_way(witness: WitnessKind) -> None:
    """B18, C04."""
    world = pair(witness=witness)
    _cut(world, "node1")
    world.run(15_000)
    assert world.roles() == (R.WAIT, R.ALONE)
    _heal(world)


@pytest.mark.parametrize("witness", [PING, LEASE])
def test_the_isolated_secondary_waits(witness: WitnessKind) -> None:
    """B18."""
    world = pair(witness=witness)
    _cut(world, "node2")
    world.run(15_000)
    assert world.roles() == (R.ALONE, R.WAIT)
    _heal(world)


@pytest.mark.parametrize("witness", [PING, LEASE])
def test_nobody_goes_on_where_nobody_answers(witness: WitnessKind) -> None:
    """B19: and both say why, and what to do."""
    world = pair(witness=witness)
    _cut(world, "node1", "node2")
    world.run(30_000)
    assert world.roles() == (R.WAIT, R.WAIT)
    for node in world.nodes.values():
        assert (
            "command prim" in explain(node.state).text
            or "start the witness" in explain(node.state).text
        )
    _heal(world)


def test_the_first_silence_of_a_ping_witness_is_final() -> None:
    """W8, A1 (ii): behind a switch that reboots both reach the router before each other."""
    world = pair(witness=PING)
    _cut(world, "node1", "node2")
    world.run(2500)
    world.astray = set()
    world.run(20_000)
    assert world.roles() == (R.WAIT, R.WAIT)
    assert explain(world.b.state).rule == "W8"
    _heal(world)


def test_a_ping_witness_lets_nobody_start_after_a_boot() -> None:
    """W8, A1 (iii): that somebody answers says nothing about what the other node has."""
    world = pair(witness=PING)
    world.crash(world.a)
    world.crash(world.b)
    world.boot_node(world.b)
    world.run(20_000)
    assert world.roles() == (None, R.WAIT)
    world.boot_node(world.a)
    world.run(20_000)
    assert set(world.roles()) == {R.PRIM, R.SECOND}


def test_what_went_on_by_a_ping_is_no_proof_after_a_crash() -> None:
    """P6: the other side may have been let go on since."""
    world = pair(witness=PING)
    _cut(world, "node2")
    world.run(15_000)
    assert world.roles() == (R.ALONE, R.WAIT)
    world.crash(world.a)
    world.boot_node(world.a)
    world.run(20_000)
    assert world.roles() == (R.WAIT, R.WAIT)
    _heal(world)


def test_a_lease_lets_the_one_in_sync_start_after_a_boot() -> None:
    """A44, W5."""
    world = pair(witness=LEASE)
    world.crash(world.a)
    world.crash(world.b)
    world.boot_node(world.b)
    world.until(None, R.ALONE)


@pytest.mark.parametrize("witness", [PING, LEASE])
def test_a_short_pause_costs_nothing(witness: WitnessKind) -> None:
    """L3': the primary asks early and releases late."""
    world = pair(witness=witness)
    _cut(world)
    world.run(2000)
    world.heal_network()
    world.run(20_000)
    assert world.roles() == (R.PRIM, R.SECOND)
    assert not any("DEADLINE" in line for line in world.story)


@pytest.mark.parametrize("witness", [PING, LEASE])
def test_a_witness_that_comes_and_goes_harms_nobody(witness: WitnessKind) -> None:
    """W3, L6: promises of the follower are enough."""
    world = pair(witness=witness)
    world.astray = {"node1", "node2"}
    world.run(60_000)
    assert world.roles() == (R.PRIM, R.SECOND)
    assert not any("DEADLINE" in line for line in world.story)


def test_the_primary_goes_on_when_the_other_node_is_off() -> None:
    """C14."""
    world = pair(fences=True)
    _cut(world)
    world.until(R.ALONE, None, timeout_ms=10_000)
    assert any("CRASH" in line for line in world.story)
    world.boot_node(world.b)
    _heal(world)


def test_the_secondary_goes_on_when_the_other_node_is_off() -> None:
    world = pair(fences=True)
    world.crash(world.a)
    world.until(None, R.ALONE, timeout_ms=15_000)
    world.boot_node(world.a)
    _heal(world)


def test_in_a_cut_only_one_of_them_is_switched_off() -> None:
    """D2c: who runs more shoots first, whichever it is."""
    for swapped in (False, True):
        world = pair(fences=True)
        if swapped:
            world.command(world.a, "swap")
            world.until(R.SECOND, R.PRIM)
        runs, follows = ("node2", "node1") if swapped else ("node1", "node2")
        world.shoot_ms = {runs: 2500, follows: 500}
        _cut(world)
        world.run(30_000)
        assert world.roles() == ((None, R.ALONE) if swapped else (R.ALONE, None))


def test_a_command_that_fails_holds() -> None:
    """C14: nothing is acknowledged, nothing is started, until the nodes hear each other again."""
    world = pair(fences=True)
    world.jammed = True
    _cut(world)
    world.run(20_000)
    acknowledged = len(world.acknowledged)
    world.run(5000)
    assert len(world.acknowledged) == acknowledged
    assert world.roles() == (R.PRIM, R.WAIT)
    assert "is not started: the command" in explain(world.b.state).text
    world.heal_network()
    world.run(30_000)
    assert set(world.roles()) == {R.PRIM, R.SECOND}


def test_an_isolated_node_does_not_shoot() -> None:
    world = pair(fences=True)
    _cut(world, "node1")
    world.run(20_000)
    assert not world.a.vm_run or world.a.alive is False
    assert world.roles()[1] is R.ALONE


def test_an_operator_goes_on_where_nobody_else_may() -> None:
    """D2d: `prim`, from the node that waits."""
    world = pair(fences=True)
    world.jammed = True
    world.crash(world.a)
    world.run(15_000)
    assert world.roles() == (None, R.WAIT)
    world.forced = True
    world.command(world.b, "prim", confirmed=True)
    world.until(None, R.ALONE)


def test_who_asks_in_vain_shows_the_same_all_the_time() -> None:
    """A tile that comes and goes with every request is read by nobody."""
    world = pair(witness=WitnessKind.LEASE)
    world.run(10_000)
    world.cut_network()
    world.run(10_000)
    assert world.b.state.role is Role.WAIT
    seen = set()
    for _ in range(200):
        world.run(20)
        seen.add((readiness(world.b.state), world.b.state.why))
    assert len(seen) == 1, seen


def test_a_silent_witness_is_told_once() -> None:
    """W3: until it has answered."""
    world = pair(witness=WitnessKind.LEASE)
    world.run(5000)
    world.astray = {"node1", "node2"}
    world.crash(world.b)
    world.run(120_000)
    assert sum("does not answer: " in line for line in world.a.log) == 1
    world.astray = set()
    world.run(5000)
    assert sum("the witness answers" in line for line in world.a.log[-10:]) == 1
