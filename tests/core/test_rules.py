"""Failover rules of the operator: conditions over resources of both nodes, what they lead to."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from hyperha.config.expressions import condition_of
from hyperha.core import events as e
from hyperha.core.conditions import Rule, RuleAction, holds, resources_of
from hyperha.core.explain import explain
from hyperha.domain import ResourceState, Role
from tests.support.world import Node, World, pair

R = Role
UP, DOWN, INIT, UNKNOWN = ResourceState
GATEWAY = "ping.gw is down and remote.ping.gw is up"


@pytest.mark.parametrize(
    ("text", "local", "remote", "expected"),
    [
        ("ping.gw is down", DOWN, UP, True),
        ("local.ping.gw is down", UP, DOWN, False),
        ("remote.ping.gw is down", UP, DOWN, True),
        (GATEWAY, DOWN, UP, True),
        (GATEWAY, DOWN, UNKNOWN, False),
        ("ping.gw is up or remote.ping.gw is up and ping.gw is down", UP, DOWN, True),
        ("(ping.gw is up or remote.ping.gw is up) and ping.gw is down", UP, DOWN, False),
        ("not ping.gw is up and not remote.ping.gw is up", INIT, UNKNOWN, True),
        ("not (ping.gw is up and remote.ping.gw is up)", UP, UP, False),
        ("not not ping.gw is up", UP, UP, True),
    ],
)
def test_conditions(text: str, local: ResourceState, remote: ResourceState, expected: bool) -> None:
    condition = condition_of(text)
    assert holds(condition, {"ping.gw": local}, {"ping.gw": remote}) is expected
    assert set(resources_of(condition)) == {"ping.gw"}


def test_what_nobody_looks_at_is_unknown() -> None:
    assert holds(condition_of("ping.gw is unknown"), {}, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a resource, as in ping.gateway, is missing"),
        ("ping.gw", "'is' is missing behind 'ping.gw'"),
        ("ping.gw is", "up, down, init or unknown is missing behind 'is'"),
        ("ping.gw is broken", "'broken' is no state"),
        ("gw is up", "'gw' is no resource: write KIND.NAME"),
        ("remote.gw is up", "'remote.gw' is no resource"),
        ("ping.gw is up ping.gw is down", "'ping.gw' is not expected behind 'up'"),
        ("(ping.gw is up", "')' is missing behind 'up'"),
        ("ping.gw is up and", "is missing behind 'and'"),
        ("ping.gw == up", "'== up' cannot be read"),
        ("not", "is missing behind 'not'"),
    ],
)
def test_what_is_wrong_with_a_condition_is_said(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        condition_of(text)


def _ruled(world: World, when: str, action: RuleAction, stable_ms: int = 3000) -> World:
    rule = Rule("gateway", condition_of(when), action, stable_ms)
    for node in world.nodes.values():
        node.config = replace(node.config, rules=(rule,))
        node.state = replace(node.state, config=node.config)
    return world


def _sees(node: Node, here: ResourceState, there: ResourceState = UP) -> None:
    node.event(e.PeerResources((e.ResourceSeen("gw", "ping", there),)))
    node.event(e.ResourceSeen("gw", "ping", here))


def test_a_rule_swaps_to_the_node_that_is_better_off() -> None:
    world = _ruled(pair(), GATEWAY, RuleAction.SWAP)
    _sees(world.a, DOWN)
    world.run(2500)
    assert world.roles() == (R.PRIM, R.SECOND), "not before it has held for long enough"
    world.until(R.SECOND, R.PRIM)
    world.run(20_000)
    assert world.roles() == (R.SECOND, R.PRIM)


def test_what_ceases_to_hold_in_time_does_nothing() -> None:
    world = _ruled(pair(), GATEWAY, RuleAction.SWAP)
    for _ in range(3):
        _sees(world.a, DOWN)
        world.run(2500)
        _sees(world.a, UP)
        world.run(2500)
    assert world.roles() == (R.PRIM, R.SECOND)


def test_a_rule_fires_once_each_time_it_has_come_to_hold() -> None:
    world = _ruled(pair(), "ping.gw is down", RuleAction.RESTART, 100)
    runs = [world.a.state.run]
    for _ in range(2):
        _sees(world.a, DOWN)
        world.run(5000)
        runs.append(world.a.state.run)
        _sees(world.a, UP)
        world.run(500)
    assert [later - before for before, later in itertools.pairwise(runs)] == [1, 1]
    assert len(world.a.settings.recoveries_wall_ms) == 2


def test_a_node_waits_as_long_as_its_rule_holds() -> None:
    world = _ruled(pair(), "ping.gw is down", RuleAction.WAIT, 100)
    _sees(world.a, DOWN)
    world.until(R.WAIT, R.ALONE)
    assert explain(world.a.state).text == "rule gateway holds"
    _sees(world.a, UP)
    world.until(R.SECOND, R.PRIM)


def test_a_secondary_that_a_rule_stops() -> None:
    world = _ruled(pair(), "ping.gw is down", RuleAction.STOP, 100)
    _sees(world.b, DOWN)
    world.until(R.ALONE, R.STOP)


def test_a_rule_that_only_speaks() -> None:
    world = _ruled(pair(), "ping.gw is down", RuleAction.NONE, 100)
    _sees(world.a, DOWN)
    world.run(5000)
    assert world.roles() == (R.PRIM, R.SECOND)
    assert sum("rule gateway holds" in line for line in world.a.log) == 1


def test_nothing_is_judged_while_everything_is_suspended() -> None:
    world = _ruled(pair(), "ping.gw is down", RuleAction.STOP, 100)
    world.a.event(e.SettingsChanged("o1", "test", suspend="", reason="cables"))
    _sees(world.a, DOWN)
    world.run(5000)
    assert world.roles() == (R.PRIM, R.SECOND)
    world.a.event(e.SettingsChanged("o2", "test", resume=""))
    world.until(R.STOP, R.ALONE)
