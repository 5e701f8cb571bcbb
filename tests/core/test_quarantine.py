"""A peer that comes and goes is not preferred for a while (D8); deadlines that outlive a stop."""

from __future__ import annotations

import pytest

from hyperha.core import events as e
from hyperha.core import quarantine
from hyperha.core.explain import explain
from hyperha.core.state import Phase
from hyperha.domain import Role
from tests.support.world import World, pair

R = Role
HOUR_MS = 3_600_000


def _flap(world: World, pause_ms: int = 0) -> None:
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.boot_node(world.b)
    world.command(world.b, "start")
    world.until(R.PRIM, R.SECOND)
    if pause_ms:
        world.now += pause_ms
        world.run(3000)


def _swap_refusal(world: World) -> str:
    return dict(explain(world.a.state).refused).get("swap", "")


def test_the_third_loss_within_an_hour_counts():
    world = pair()
    _flap(world)
    _flap(world)
    assert not _swap_refusal(world)
    _flap(world)
    assert "lost 3 times within an hour" in _swap_refusal(world)
    assert any("D8 node2 was lost 3 times" in line for line in world.a.log)
    operation = world.command(world.a, "swap")
    assert not world.a.finished[operation][0]


def test_it_still_takes_over_and_a_stop_still_moves_the_vm():
    world = pair()
    for _ in range(3):
        _flap(world)
    world.command(world.a, "stop")
    world.until(R.STOP, R.ALONE)
    world.command(world.a, "start")
    world.until(R.SECOND, R.PRIM)
    world.crash(world.b, certificate=True)
    world.until(R.ALONE, None)


def test_it_ends_by_itself_also_over_a_restart_of_this_node():
    world = pair()
    for _ in range(3):
        _flap(world)
    world.crash(world.b)
    world.until(R.ALONE, None)
    until = world.a.settings.quarantine_until_wall_ms
    assert until is not None
    world.crash(world.a)
    world.boot_node(world.a)
    world.command(world.a, "start")
    world.until(R.ALONE, None)
    world.now += quarantine.LENGTH_MS
    world.run(3000)
    assert world.a.settings.quarantine_until_wall_ms is None
    assert world.a.settings.departures_wall_ms == ()


@pytest.mark.parametrize("seed", range(12))
def test_commands_do_not_count(seed: int) -> None:
    """Whether the end of the session is seen before the goodbye, or the other way round."""
    world = pair(seed)
    for _ in range(4):
        world.command(world.b, "stop")
        world.until(R.ALONE, R.STOP)
        world.command(world.b, "start")
        world.until(R.PRIM, R.SECOND)
    assert world.a.settings.departures_wall_ms == ()


def test_losses_far_apart_do_not_count():
    world = pair()
    for _ in range(4):
        _flap(world, pause_ms=HOUR_MS // 2)
    assert not _swap_refusal(world)


def test_the_end_of_this_nodes_own_replication_process_is_not_the_peers_fault():
    world = pair()
    for _ in range(4):
        world.engine_dies(world.a, recovered=True)
        world.run(6000)
        world.until(R.PRIM, R.SECOND)
    assert not _swap_refusal(world)


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_a_suspension_ends_in_time_after_a_stop_and_after_a_crash(how: str) -> None:
    """Its deadline was forgotten with all others when the folder was uncovered."""
    world = pair()
    until = world.wall_ms + 60_000
    suspend = e.SettingsChanged("op", "ann", suspend="app", reason="test", until_wall_ms=until)
    world.a.event(suspend)
    world.run(100)
    if how == "stop":
        world.command(world.a, "stop")
        world.until(R.STOP, R.ALONE)
    else:
        world.crash(world.a, certificate=True)
        world.until(None, R.ALONE)
        world.boot_node(world.a)
    world.command(world.a, "start")
    world.until(R.SECOND, R.PRIM)
    assert world.a.settings.suspensions
    world.now += 60_000
    world.run(3000)
    assert not world.a.settings.suspensions
    assert world.a.state.phase is not Phase.IDLE
