"""F13: nodes whose configurations differ; the older one starts nothing by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperha.core.explain import explain
from hyperha.domain import Role
from hyperha.study.world import World
from tests.support.world import pair

R = Role


def of_age(node1: int, node2: int, world: World | None = None) -> World:
    """Two nodes that work by these versions, and have told each other."""
    world = world or pair()
    for node, version in ((world.a, node1), (world.b, node2)):
        node.config = replace(node.config, version=version)
        node.state = replace(node.state, config=node.config)
    for node in (world.a, world.b):
        world.status_changed(node)
    world.run(1000)
    return world


def test_a_difference_is_told_on_both_with_which_is_older() -> None:
    world = of_age(8, 7)
    text = "until node2 has that of node1 it does not take over by itself"
    for node in (world.a, world.b):
        assert any("F13" in line and text in line for line in node.log)
        reasons = {one.code: one for one in explain(node.state).reasons}
        assert text in reasons["config-differs"].text
    assert world.roles() == (R.PRIM, R.SECOND)


@pytest.mark.parametrize("certificate", [True, False])
def test_the_older_one_does_not_take_over(certificate: bool) -> None:
    world = of_age(8, 7)
    world.crash(world.a, certificate)
    world.run(20_000)
    assert world.roles() == (None, R.WAIT)
    assert world.b.state.why.rule == "F13"
    world.command(world.b, "prim", confirmed=True)
    world.until(None, R.ALONE)


def test_it_remembers_that_over_its_own_restart() -> None:
    world = of_age(8, 7)
    world.crash(world.a)
    world.crash(world.b)
    world.boot_node(world.b)
    world.run(20_000)
    assert world.roles() == (None, R.WAIT)
    assert world.b.state.why.rule == "F13"
    # It gets the newer file: what it has is as new as the other one's.
    world.crash(world.b)
    world.b.config = replace(world.b.config, version=8)
    world.boot_node(world.b)
    world.run(20_000)
    assert world.b.state.why.rule != "F13"
    assert not any(one.code == "config-differs" for one in explain(world.b.state).reasons)


def test_the_newer_one_takes_over_and_the_older_one_goes_on_running() -> None:
    world = of_age(7, 8)
    world.crash(world.a, True)
    world.until(None, R.ALONE)
    other = of_age(7, 8)
    other.crash(other.b)
    other.until(R.ALONE, None)


def test_what_an_operator_moves_goes_to_the_older_one_too() -> None:
    world = of_age(8, 7)
    world.command(world.a, "swap")
    world.until(R.SECOND, R.PRIM)


def test_a_difference_that_has_ended_is_told() -> None:
    world = of_age(8, 7)
    of_age(8, 8, world)
    assert any("both nodes have configuration 8" in line for line in world.a.log)
    world.crash(world.a)
    world.until(None, R.ALONE)
