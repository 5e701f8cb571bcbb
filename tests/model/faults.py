"""What may go wrong: every kind of fault, with everything that it may hit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from hyperha.core import events as e
from tests.model import deeds, witness
from tests.model.cluster import Between, Cluster, Label, State
from tests.model.doing import Doing
from tests.model.node import Node

Nexts = Iterator[tuple[Label, State]]


def faults(cluster: Cluster, state: State) -> Nexts:
    """Each that the bounds allow."""
    left = cluster.between.values[state[2]].faults
    less = cluster.set(state, faults=left - 1)
    for kind in cluster.bounds.kinds:
        yield from _FAULTS[kind](cluster, less, cluster.between.values[less[2]])


def _each(cluster: Cluster, state: State) -> Iterator[tuple[int, Node, str]]:
    for index, node in enumerate(cluster.pair(state)):
        if node.up and not node.frozen:
            yield index, node, node.core.config.node


def crash(cluster: Cluster, state: State, between: Between) -> Nexts:
    """A node is gone, with or without the record that was being stored."""
    for index, node in enumerate(cluster.pair(state)):
        for stored in (False, True) if node.work else (False,):
            if node.up:
                name = node.core.config.node
                yield (
                    ("crash", name, stored),
                    dies(cluster, state, index, stored=stored, certified=False),
                )


def daemon(cluster: Cluster, state: State, between: Between) -> Nexts:
    """A daemon is killed; its guardian ends the VM and says so (L8)."""
    for index, node, name in _each(cluster, state):
        if node.vm_run and node.certify:
            yield ("daemon", name), dies(cluster, state, index, stored=False, certified=True)


def dies(cluster: Cluster, state: State, index: int, *, stored: bool, certified: bool) -> State:
    """Every process of a node ends."""
    state = cluster.fly(state, index, ())
    node = cluster.nodes.values[state[index]]
    said = certified and bool(node.vm_run and node.certify)
    proof = e.CertificateReceived(node.core.run, node.lineage.held)
    state = cluster.act(
        state,
        index,
        ("dies", stored, certified),
        lambda doing: doing.dies(stored=stored, certified=certified),
    )
    between = cluster.between.values[state[2]]
    if said and not between.cut:
        certificates = (*between.certificates, (1 - index, proof))
        state = cluster.set(state, certificates=certificates)
    return state


def freeze(cluster: Cluster, state: State, between: Between) -> Nexts:
    """Every process of a node stands still for a while."""
    for index, _, name in _each(cluster, state):
        yield ("freeze", name), cluster.act(state, index, "freeze", deeds.freezes)


def cut(cluster: Cluster, state: State, between: Between) -> Nexts:
    """Nothing passes between the nodes; sessions stall."""
    if not between.cut:
        yield ("cut",), cluster.set(state, cut=True, flying=((), ()))


def reset(cluster: Cluster, state: State, between: Between) -> Nexts:
    """The session is reset; both ends hear it."""
    if any(node.session_up for node in cluster.pair(state)):
        for index in (0, 1):
            state = cluster.drop(state, index)
        yield ("reset",), state


def lose(cluster: Cluster, state: State, between: Between) -> Nexts:
    """A message is lost."""
    for index in (0, 1):
        if between.flying[index]:
            lost, *rest = between.flying[index]
            yield ("lose", lost), cluster.fly(state, index, tuple(rest))


def copy(cluster: Cluster, state: State, between: Between) -> Nexts:
    """The network keeps a copy of a message, and delivers it some time."""
    nodes = cluster.pair(state)
    for index in (0, 1):
        if between.flying[index]:
            message = between.flying[index][0]
            kept = (index, nodes[index].boot, nodes[1 - index].boot, message)
            yield ("copy", message), cluster.set(state, late=(*between.late, kept))


def slow(cluster: Cluster, state: State, between: Between) -> Nexts:
    """Time passes before what is to be done now is done."""
    if not between.lapse:
        yield ("slow",), cluster.set(state, lapse=True)


def exits(cluster: Cluster, state: State, between: Between) -> Nexts:
    """The VM ends by itself."""
    for index, node, name in _each(cluster, state):
        if node.vm_run:
            event = e.VmExited(node.vm_run, "exit status 1")
            yield (
                ("exits", name),
                cluster.act(state, index, event, partial(deeds.exits, event=event)),
            )


def engine(cluster: Cluster, state: State, between: Between) -> Nexts:
    """A replication process dies, with and without a successor."""
    for index, node, name in _each(cluster, state):
        if node.attached:
            for recovered in (False, True):
                yield (
                    ("engine", name, recovered),
                    cluster.act(
                        state,
                        index,
                        ("engine", recovered),
                        lambda doing, recovered=recovered: doing.engine_dies(recovered=recovered),
                    ),
                )


def store(cluster: Cluster, state: State, between: Between) -> Nexts:
    """A record cannot be stored."""
    for index, node, name in _each(cluster, state):
        if node.work:
            yield ("store", name), cluster.act(state, index, "store", Doing.store_fails)


def disk(cluster: Cluster, state: State, between: Between) -> Nexts:
    """The folder's disk fails."""
    for index, node, name in _each(cluster, state):
        if node.attached:
            yield ("disk", name), cluster.act(state, index, "disk", deeds.disk_fails)


def island(cluster: Cluster, state: State, between: Between) -> Nexts:
    """A node reaches nobody, neither the other one nor the witness."""
    for index, _, name in _each(cluster, state):
        apart = (index == 0, index == 1)
        yield ("island", name), cluster.set(state, cut=True, flying=((), ()), apart=apart)


def unheard(cluster: Cluster, state: State, between: Between) -> Nexts:
    """A node does not reach the witness."""
    for index, _, name in _each(cluster, state):
        yield ("unheard", name), cluster.set(state, apart=(index == 0, index == 1))


def down(cluster: Cluster, state: State, between: Between) -> Nexts:
    """The witness is gone, until it is started."""
    if between.witness_up:
        yield ("down",), witness.dies(cluster, state)


def amnesia(cluster: Cluster, state: State, between: Between) -> Nexts:
    """The witness has lost what it stored."""
    if between.witness is not None and between.witness.record is not None:
        yield ("amnesia",), witness.forgets(cluster, state)


def reply(cluster: Cluster, state: State, between: Between) -> Nexts:
    """What a request did is not heard of."""
    if between.witness_up:
        for index, node, name in _each(cluster, state):
            if node.asked is not None and not between.apart[index]:
                yield ("reply", name), witness.reply_lost(cluster, state, index, node)


def delay(cluster: Cluster, state: State, between: Between) -> Nexts:
    """A request reaches the witness long after its node has stopped waiting for it."""
    for index, node, name in _each(cluster, state):
        if node.asked is not None:
            yield ("delay", name), witness.kept_back(cluster, state, index, node)


def jam(cluster: Cluster, state: State, between: Between) -> Nexts:
    """No node can switch the other one off."""
    if not between.jammed:
        yield ("jam",), cluster.set(state, jammed=True)


_BETWEEN_NODES = (
    *(crash, daemon, freeze, cut, reset, lose, copy, slow, exits, engine, store, disk),
)
_WITH_A_WITNESS = (island, unheard, down, amnesia, reply, delay)
_FAULTS: dict[str, Callable[[Cluster, State, Between], Nexts]] = {
    function.__name__: function for function in (*_BETWEEN_NODES, *_WITH_A_WITNESS, jam)
}
FAULT_KINDS = tuple(function.__name__ for function in _BETWEEN_NODES)
WITNESS_KINDS = tuple(function.__name__ for function in _WITH_A_WITNESS)
"""Those that only a cluster with a lease witness knows."""
FENCE_KINDS = (jam.__name__, island.__name__)
"""Those of a cluster whose nodes can switch each other off."""
PING_KINDS = (island.__name__, unheard.__name__, down.__name__)
"""Those of a cluster with a ping witness."""
