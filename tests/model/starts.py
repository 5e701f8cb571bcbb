"""States from which an exploration begins, each reached by what the cluster does by itself."""

from __future__ import annotations

from collections.abc import Callable

from hyperha.core import events as e
from hyperha.core.state import Phase
from hyperha.domain import Role
from tests.model.cluster import Bounds, Cluster, Label, State
from tests.model.nexts import UNASKED, after
from tests.model.node import Node

_STEPS = 2000
Reached = Callable[[Node, Node], bool]


def redundant(cluster: Cluster) -> State:
    """node1 PRIM, node2 SECOND, at rest."""
    state = _command(cluster, cluster.start(), 0, e.Verb.PRIM)
    state = _until(cluster, state, lambda one, _: one.core.phase is Phase.RUNNING)
    state = _rest(cluster, _command(cluster, state, 1, e.Verb.START))
    assert [node.core.role for node in cluster.pair(state)] == [Role.PRIM, Role.SECOND]
    return state


def parting(cluster: Cluster) -> State:
    """The network is cut, node1 ALONE; node2 has not given up yet."""
    state = _fault(cluster, redundant(cluster), ("cut",))
    state = _until(cluster, state, lambda one, _: one.core.role is Role.ALONE)
    assert cluster.pair(state)[1].core.phase is Phase.FOLLOWING
    return state


def copying(cluster: Cluster) -> State:
    """node1 has written alone, and node2 is being made equal."""
    state = _fault(cluster, redundant(cluster), ("reset",))
    state = _until(cluster, state, lambda one, _: one.core.role is Role.ALONE)
    state = _taken(cluster, cluster.allowing(state, Bounds(writes=1)), ("write", "node1"))
    return _until(cluster, state, lambda _, two: two.core.phase is Phase.RESYNCING)


def _rest(cluster: Cluster, state: State) -> State:
    for _ in range(_STEPS):
        following = _by_itself(cluster, state)
        if following is None:
            return state
        state = following
    raise AssertionError("does not come to rest")


def _until(cluster: Cluster, state: State, reached: Reached) -> State:
    for _ in range(_STEPS):
        if reached(*cluster.pair(state)):
            return state
        following = _by_itself(cluster, state)
        assert following is not None, "comes to rest too early"
        state = following
    raise AssertionError("is not reached")


def _by_itself(cluster: Cluster, state: State) -> State | None:
    """The first thing that happens without a fault, a command or luck."""
    for label, following in after(cluster, state):
        if label[0] not in UNASKED:
            return following
    return None


def _command(cluster: Cluster, state: State, index: int, verb: e.Verb) -> State:
    event = e.CommandGiven(verb, "op", "test")
    return cluster.act(state, index, event, lambda doing: doing.event(event))


def _fault(cluster: Cluster, state: State, wanted: Label) -> State:
    allowing = cluster.allowing(state, Bounds(faults=1, kinds=(str(wanted[0]),)))
    return _taken(cluster, allowing, wanted)


def _taken(cluster: Cluster, state: State, wanted: Label) -> State:
    return next(following for label, following in after(cluster, state) if label == wanted)
