"""Checkers with `when = "pre"`: what must be up before a module may run or follow on a node."""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import events as e
from hyperha.core.explain import explain, readiness
from hyperha.domain import Readiness, ResourceState, Role
from tests.support.world import Node, blank, pair

R = Role


def _lan(ok: bool | None, text: str = "") -> e.ResourceSeen:
    states = {True: ResourceState.UP, False: ResourceState.DOWN, None: ResourceState.INIT}
    return e.ResourceSeen("lan", "interface", states[ok], text)


def _needs(node: Node, ok: bool | None = None, text: str = "no cable") -> None:
    node.config = replace(node.config, pre_checkers=("lan",))
    node.state = replace(node.state, config=node.config)
    node.event(_lan(ok, text))


def test_nothing_begins_before_the_resource_was_found_up() -> None:
    world = blank()
    _needs(world.a)
    world.run(500)
    world.command(world.a, "prim")
    world.run(20_000)
    assert world.roles() == (R.WAIT, R.STOP)
    assert explain(world.a.state).text == "lan has not been found up yet"
    assert readiness(world.a.state) is Readiness.NOT_READY
    world.a.event(_lan(True))
    world.until(R.ALONE, R.STOP)


def test_a_node_without_it_does_not_follow() -> None:
    world = pair()
    _needs(world.b, True)
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.b.event(_lan(False, "no cable"))
    world.command(world.b, "start")
    world.run(10_000)
    assert world.roles() == (R.ALONE, R.WAIT)
    assert explain(world.b.state).text == "lan is down: no cable"
    world.b.event(_lan(True))
    world.until(R.PRIM, R.SECOND)


def test_the_primary_hands_over_when_it_goes_down_and_comes_back() -> None:
    world = pair()
    _needs(world.a, True)
    world.a.event(_lan(False, "no cable"))
    world.until(R.WAIT, R.ALONE)
    assert explain(world.a.state).text == "lan is down: no cable"
    assert len(world.a.settings.recoveries_wall_ms) == 1
    world.a.event(_lan(True))
    world.until(R.SECOND, R.PRIM)


def test_the_secondary_leaves_when_it_goes_down_and_comes_back() -> None:
    world = pair()
    _needs(world.b, True)
    world.b.event(_lan(False, "no cable"))
    world.until(R.ALONE, R.WAIT)
    world.b.event(_lan(True))
    world.until(R.PRIM, R.SECOND)


def test_what_is_not_known_any_more_ends_nothing() -> None:
    world = pair()
    _needs(world.a, True)
    world.a.event(_lan(None))
    world.run(10_000)
    assert world.roles() == (R.PRIM, R.SECOND)


def test_a_suspended_checker_holds_nothing() -> None:
    world = pair()
    _needs(world.a, True)
    world.a.event(e.SettingsChanged("o1", "test", suspend="lan", reason="cables"))
    world.a.event(_lan(False, "no cable"))
    world.run(10_000)
    assert world.roles() == (R.PRIM, R.SECOND)
