"""Nothing moves back by itself, unless `default_primary` says so (P5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperha.core import events as e
from hyperha.core.explain import explain
from hyperha.domain import Role
from tests.support.world import World, pair

R = Role


def _with(world: World, default_primary: str) -> World:
    for node in world.nodes.values():
        node.config = replace(node.config, default_primary=default_primary)
        node.state = replace(node.state, config=node.config)
    return world


def _node1_is_lost_and_returns(world: World) -> None:
    world.crash(world.a)
    world.until(None, R.ALONE)
    world.run(2000)
    world.boot_node(world.a)


@pytest.mark.parametrize(
    ("default_primary", "ends"),
    [
        ("none", (R.SECOND, R.PRIM)),
        ("node1", (R.PRIM, R.SECOND)),
        ("node2", (R.SECOND, R.PRIM)),
        ("last", (R.PRIM, R.SECOND)),
    ],
)
def test_a_node_returns(default_primary: str, ends: tuple[Role, Role]) -> None:
    world = _with(pair(), default_primary)
    _node1_is_lost_and_returns(world)
    world.until(*ends)
    world.run(20_000)
    assert world.roles() == ends


@pytest.mark.parametrize("default_primary", ["node1", "last"])
def test_what_an_operator_moved_stays(default_primary: str) -> None:
    world = _with(pair(), default_primary)
    world.command(world.a, "swap")
    world.until(R.SECOND, R.PRIM)
    world.run(20_000)
    assert world.roles() == (R.SECOND, R.PRIM)


def test_not_to_a_node_that_comes_and_goes() -> None:
    """D8: it is not preferred for a while, whatever the configuration prefers."""
    world = _with(pair(), "node1")
    for _ in range(3):
        assert world.roles() == (R.PRIM, R.SECOND)
        _node1_is_lost_and_returns(world)
        world.run(20_000)
    assert world.roles() == (R.SECOND, R.PRIM)


def test_a_drained_node_gives_the_vm_away_and_takes_none() -> None:
    """C15: and nothing returns by itself."""
    world = pair()
    world.a.event(e.SettingsChanged("o1", "ann", drained=True))
    world.until(R.SECOND, R.PRIM)
    assert world.command(world.b, "swap")
    world.run(10_000)
    assert world.roles() == (R.SECOND, R.PRIM)
    assert [one.code for one in explain(world.a.state).reasons] == ["drained"]
    world.a.event(e.SettingsChanged("o2", "ann", drained=False))
    world.run(10_000)
    assert world.roles() == (R.SECOND, R.PRIM)
    world.command(world.b, "swap")
    world.until(R.PRIM, R.SECOND)


def test_a_drained_node_moves_the_vm_as_soon_as_there_is_an_equal_copy() -> None:
    world = pair()
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.a.event(e.SettingsChanged("o1", "ann", drained=True))
    world.run(5000)
    assert world.roles() == (R.ALONE, R.STOP)
    world.command(world.b, "start")
    world.until(R.SECOND, R.PRIM)


def test_a_drained_node_still_takes_over_when_nobody_else_is_left() -> None:
    world = pair()
    world.b.event(e.SettingsChanged("o1", "ann", drained=True))
    world.crash(world.a)
    world.until(None, R.ALONE)
