"""Visiting every state that can be reached, nearest first, each once.

What must hold in every state is checked as it is found (`promises.check`). Where nothing happens
any more by itself, the cluster must have come to rest as it should (`promises.unrest`); and from
every state a rest can be reached without another fault or command: it runs in no circle (I9).
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.cluster import Cluster, Label, State
from tests.model.nexts import ADDED, UNASKED, after
from tests.model.node import Broken
from tests.model.promises import check, unrest

_BITS = 21
_MASK = (1 << _BITS) - 1


@dataclass(frozen=True)
class Found:
    """What an exploration has seen."""

    states: int
    steps: int
    depth: int
    rests: int
    complete: bool
    """Nothing is left to visit: the bounds of the world are exhausted."""

    def __str__(self) -> str:
        how = "complete" if self.complete else "not complete"
        return (
            f"{self.states:,} states, {self.steps:,} steps, up to {self.depth} from the start, "
            f"{self.rests:,} states of rest, {how}"
        )


class Violation(AssertionError):
    """A promise that was broken, and the shortest way there."""


def explore(cluster: Cluster, start: State, *, limit: int) -> Found:
    """Visit at most about `limit` states. Raises Violation."""
    return _Exploration(cluster, start).run(limit)


class _Exploration:
    def __init__(self, cluster: Cluster, start: State) -> None:
        self._cluster = cluster
        self._numbers = {_packed(start): 0}
        self._states = array("Q", (_packed(start),))
        self._came_from = array("L", (0,))
        self._depths = array("H", (0,))
        self._next = array("L")
        """Where every state leads by itself, one after the other."""
        self._ends = array("L")
        """Up to where in `_next` the ones of each state go."""
        self._rests: list[int] = []
        self._steps = 0

    def run(self, limit: int) -> Found:
        at = 0
        while at < len(self._states) and at < limit:
            try:
                self._visit(at)
            except Exception as error:
                text = str(error) or repr(error)
                raise Violation("\n".join((text, *self.story(at)))) from error
            at += 1
        complete = at == len(self._states)
        if complete:
            self._reach_rest()
        return Found(at, self._steps, self._depths[at - 1], len(self._rests), complete)

    def _visit(self, at: int) -> None:
        state = _unpacked(self._states[at])
        quiet = True
        for label, following in after(self._cluster, state):
            self._steps += 1
            packed = _packed(following)
            number = self._numbers.get(packed)
            if number is None:
                number = self._numbers[packed] = len(self._states)
                self._states.append(packed)
                self._came_from.append(at)
                self._depths.append(self._depths[at] + 1)
                self._check(following)
            quiet = quiet and label[0] in UNASKED
            if label[0] not in ADDED:  # What a cluster may not wait for to come to rest.
                self._next.append(number)
        self._ends.append(len(self._next))
        if quiet:
            self._rests.append(at)
            between = self._cluster.between.values[state[2]]
            witnessed = between.witness_up and not any(between.apart)
            if witnessed and self._cluster.connected(state):  # Else somebody has to come first.
                wrong = unrest(self._cluster.pair(state), self._cluster.isolation)
                if wrong:
                    raise Broken(f"I9: comes to rest as {wrong}")

    def _check(self, state: State) -> None:
        acknowledged = self._cluster.between.values[state[2]].acknowledged
        check(self._cluster.pair(state), acknowledged, self._cluster.isolation)

    def _reach_rest(self) -> None:
        """From every state a rest is reached: backwards from all of them."""
        count = len(self._states)
        heads = array("l", [-1]) * count
        links = array("l", [-1]) * len(self._next)
        sources = array("L", [0]) * len(self._next)
        begin = 0
        for source, end in enumerate(self._ends):
            for place in range(begin, end):
                target = self._next[place]
                sources[place] = source
                links[place], heads[target] = heads[target], place
            begin = end
        reached = bytearray(count)
        todo = list(self._rests)
        for one in todo:
            reached[one] = 1
        while todo:
            place = heads[todo.pop()]
            while place >= 0:
                if not reached[source := sources[place]]:
                    reached[source] = 1
                    todo.append(source)
                place = links[place]
        restless = reached.find(0)
        if restless >= 0:
            raise Violation("\n".join(("I9: never comes to rest", *self.story(restless))))

    def story(self, number: int) -> Iterator[str]:
        """The events on the shortest way to a state, and what they made of the two nodes."""
        way = [number]
        while way[-1]:
            way.append(self._came_from[way[-1]])
        way.reverse()
        yield self._line(("start",), 0)
        for before, number in itertools.pairwise(way):
            wanted = self._states[number]
            nexts = after(self._cluster, _unpacked(self._states[before]))
            label = next(label for label, state in nexts if _packed(state) == wanted)
            yield self._line(label, number)

    def _line(self, label: Label, number: int) -> str:
        return line(self._cluster, label, _unpacked(self._states[number]))


def line(cluster: Cluster, label: Label, state: State) -> str:
    """An event and what it made of the two nodes, for people."""
    what = " ".join(str(part) for part in label)
    parts = [
        f"{node.core.role}/{node.core.phase}/{node.core.link}" if node.up else "down"
        for node in cluster.pair(state)
    ]
    return f"{what[:110]:<44} {parts[0]:<28} {parts[1]}"


def _packed(state: State) -> int:
    return state[0] | state[1] << _BITS | state[2] << 2 * _BITS


def _unpacked(number: int) -> State:
    return number & _MASK, number >> _BITS & _MASK, number >> 2 * _BITS
