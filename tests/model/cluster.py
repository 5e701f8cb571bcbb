"""Two nodes and the network between them.

A state is three numbers, one for each node and one for what is between them; what an event makes
of a node is worked out once for each node and event, however many states they are part of.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core.lease import Known, Lease, Request
from hyperha.core.options import Isolation, WitnessKind
from tests.model import deeds
from tests.model.doing import Doing
from tests.model.node import LONG_AGO_MS, NOW_MS, Node, Outcome, advanced, first, status
from tests.model.promises import may_start

State = tuple[int, int, int]
Label = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """The network, what is still allowed to happen, and what was promised to whom."""

    cut: bool = False
    flying: tuple[tuple[m.PeerMessage, ...], tuple[m.PeerMessage, ...]] = ((), ())
    """To each node, in order."""
    late: tuple[tuple[int, int, int, object], ...] = ()
    """Copies that the network kept: for which node and boot, from which boot, and what."""
    certificates: tuple[tuple[int, e.CertificateReceived], ...] = ()
    faults: int = 0
    commands: int = 0
    writes: int = 0
    ticks: int = 0
    """How many more of each there may be."""
    written: int = 0
    acknowledged: frozenset[int] = frozenset()
    witness: Known | None = None
    """What it knows, in a cluster that has one."""
    witness_up: bool = True
    apart: tuple[bool, bool] = (False, False)
    """Which node does not reach it."""
    jammed: bool = False
    """No node can switch the other one off."""
    late_requests: tuple[Request, ...] = ()
    lapse: bool = False
    """Time may pass once although something is left to do."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may happen: numbers of faults, commands and writes, and which kinds of the first two."""

    faults: int = 0
    commands: int = 0
    writes: int = 0
    ticks: int = 0
    """How often a node may tell the witness that it is well, or look what it knows."""
    kinds: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()


T = TypeVar("T", bound=Hashable)


class Pool(Generic[T]):
    """Values by number, each once."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._numbers: dict[T, int] = {}

    def number(self, value: T) -> int:
        """The value's number."""
        found = self._numbers.get(value)
        if found is None:
            found = self._numbers[value] = len(self.values)
            self.values.append(value)
        return found


class Cluster:
    """All states that were seen, and what became of a node in each event."""

    def __init__(
        self,
        isolation: Isolation,
        *,
        witness: WitnessKind = WitnessKind.NONE,
        ttl_ms: int = 0,
        fences: bool = False,
    ) -> None:
        self.isolation = isolation
        self._made = partial(
            first, isolation=isolation, witness=witness, ttl_ms=ttl_ms, fences=fences
        )
        self._leased = witness is WitnessKind.LEASE
        self.bounds = Bounds()
        self.nodes: Pool[Node] = Pool()
        self.between: Pool[Between] = Pool()
        self._reactions: dict[Hashable, tuple[int, Outcome]] = {}
        self._later: dict[tuple[int, int, bool], int] = {}
        self._statuses: dict[int, e.PeerStatus] = {}

    def start(self) -> State:
        """Two nodes that never ran."""
        one, two = (self.nodes.number(self._made(index)) for index in (0, 1))
        witness = Known(None, Lease(LONG_AGO_MS)) if self._leased else None
        return one, two, self.between.number(Between(witness=witness))

    def allowing(self, state: State, bounds: Bounds) -> State:
        """The same with as much allowed as `bounds` say; which kinds, from here on."""
        self.bounds = bounds
        return self.set(
            state,
            faults=bounds.faults,
            commands=bounds.commands,
            writes=bounds.writes,
            ticks=bounds.ticks,
        )

    def forget(self) -> None:
        """What the cores did before: they are others from here on."""
        self._reactions.clear()

    def pair(self, state: State) -> tuple[Node, Node]:
        """Both nodes."""
        return self.nodes.values[state[0]], self.nodes.values[state[1]]

    def connected(self, state: State) -> bool:
        """Whether each reaches the other."""
        one, two = self.pair(state)
        quiet = one.frozen or two.frozen
        return one.up and two.up and not quiet and not self.between.values[state[2]].cut

    def reaches(self, state: State, index: int) -> bool:
        """Whether a node reaches the witness."""
        between = self.between.values[state[2]]
        return between.witness_up and not between.apart[index]

    def act(
        self, state: State, index: int, key: Hashable, deed: Callable[[Doing], object]
    ) -> State:
        """Let something happen to a node; `key` names it, for nodes and events already seen."""
        answers = self.connected(state)
        reaches = self.reaches(state, index)
        known = (state[index], key, answers, reaches)
        found = self._reactions.get(known)
        if found is None:
            doing = Doing(self.nodes.values[state[index]], peer_answers=answers, reaches=reaches)
            deed(doing)
            node, outcome = doing.result()
            found = self.nodes.number(node), outcome
            self._reactions[known] = found
        return self._settle(_with(state, index, found[0]), index, found[1], answers)

    def _settle(self, state: State, index: int, outcome: Outcome, reached: bool) -> State:
        """What a node did to the rest of the world."""
        other = 1 - index
        if outcome.sent and reached:
            flying = self.between.values[state[2]].flying[other]
            state = self.fly(state, other, (*flying, *outcome.sent))
        if outcome.acknowledged:
            between = self.between.values[state[2]]
            state = self.set(state, acknowledged=between.acknowledged | outcome.acknowledged)
        if outcome.flushed:
            state = self.act(state, other, "flushed", deeds.flushed)
        if outcome.dropped:
            state = self.drop(state, other)
        if outcome.started:
            nodes, between = self.pair(state), self.between.values[state[2]]
            may_start(nodes[index], nodes[other], between.acknowledged, self.isolation)
        return state

    def change(self, state: State, index: int, **changes: Any) -> State:
        """The same with another value for a node."""
        node = replace(self.nodes.values[state[index]], **changes)
        return _with(state, index, self.nodes.number(node))

    def drop(self, state: State, other: int) -> State:
        """The other end of a session hears that it ended, if anybody is there."""
        node = self.nodes.values[state[other]]
        if node.session is None or not node.session_up or not node.up:
            return state
        return self.act(state, other, "ended", deeds.ended)

    def fly(self, state: State, index: int, messages: tuple[m.PeerMessage, ...]) -> State:
        """What is on its way to a node from here on."""
        flying = list(self.between.values[state[2]].flying)
        flying[index] = messages
        return self.set(state, flying=(flying[0], flying[1]))

    def set(self, state: State, **changes: Any) -> State:
        """The same with changes between the nodes."""
        between = replace(self.between.values[state[2]], **changes)
        return state[0], state[1], self.between.number(between)

    def receive(self, state: State, index: int, message: m.PeerMessage) -> State:
        """The core of a node is given a message."""
        event = e.MessageReceived(message)
        return self.act(state, index, event, lambda doing: doing.event(event))

    def later(self, state: State, by_ms: int) -> State:
        """Time passes, and nothing else."""
        parts = []
        connected = self.connected(state)
        for index in (0, 1):
            heard = connected and not self.nodes.values[state[1 - index]].speechless
            key = state[index], by_ms, heard
            if key not in self._later:
                node = advanced(self.nodes.values[state[index]], by_ms)
                self._later[key] = self.nodes.number(
                    replace(node, heard_ms=NOW_MS) if heard else node
                )
            parts.append(self._later[key])
        state = parts[0], parts[1], state[2]
        between = self.between.values[state[2]]
        if between.witness is None:
            return state
        lease = between.witness.lease
        until_ms = max(LONG_AGO_MS, lease.until_ms - by_ms)
        if between.witness.record is None or until_ms <= NOW_MS:
            until_ms = LONG_AGO_MS
        known = replace(between.witness, lease=replace(lease, until_ms=until_ms))
        return self.set(state, witness=known)

    def status(self, number: int) -> e.PeerStatus:
        """What a node's heartbeats say."""
        if number not in self._statuses:
            self._statuses[number] = status(self.nodes.values[number])
        return self._statuses[number]


def _with(state: State, index: int, number: int) -> State:
    return (number, state[1], state[2]) if index == 0 else (state[0], number, state[2])
