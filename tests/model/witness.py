"""The lease witness between the two nodes: the real record, on a network that fails.

Numbers that only ever grow are kept small: what counts of `renewals` is whether the one that a node
has seen is the newest; what counts of a request's id is whether it was asked before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hyperha.core.actions import AskWitness
from hyperha.core.lease import Answer, Known, Lease, Request, Takeover, answered, started
from tests.model import deeds
from tests.model.cluster import Between, Cluster, State
from tests.model.node import LONG_AGO_MS, NOW_MS, Node

_OLD = -1


def asks(cluster: Cluster, state: State, index: int, node: Node) -> State:
    """What the node wants of the witness reaches it and is answered, or does not."""
    assert node.asked is not None
    between = cluster.between.values[state[2]]
    state = cluster.change(state, index, asked=None)
    if not between.witness_up or between.apart[index]:
        return _told(cluster, state, index, node.asked, None)
    state, answer = handle(cluster, state, node.asked.request)
    return _told(cluster, state, index, node.asked, answer)


def _told(
    cluster: Cluster, state: State, index: int, asked: AskWitness, answer: Answer | None
) -> State:
    renews = answer is not None and asked.request.renewed_by(answer)
    return cluster.act(
        state,
        index,
        ("witnessed", asked.operation, renews, answer),
        lambda doing: deeds.witnessed(doing, asked.operation, asked.request, answer),
    )


def handle(
    cluster: Cluster, state: State, request: Request, *, remembered: bool = False
) -> tuple[State, Answer]:
    """The witness does what it is asked."""
    between = cluster.between.values[state[2]]
    before = between.witness
    assert before is not None
    known, answer = answered(before, request, NOW_MS)
    if not remembered:
        known = _without(known, before)
    if known.lease.renewals != before.lease.renewals:
        known = replace(known, lease=replace(known.lease, renewals=before.lease.renewals))
        answer = replace(answer, renewals=before.lease.renewals)
        state = _outdated(cluster, state)
    return cluster.set(state, witness=known), answer


def _without(known: Known, before: Known) -> Known:
    """What it remembers of requests is as before: this one is never asked again."""
    record = known.record
    if record is not None:
        record = replace(record, answered=before.record.answered if before.record else ())
    return Known(record, replace(known.lease, refused=before.lease.refused))


def _outdated(cluster: Cluster, state: State) -> State:
    """Whatever anybody knows of renewals is old."""
    for index, node in enumerate(cluster.pair(state)):
        core = node.core
        changes: dict[str, Any] = {}
        if core.witnessed is not None:
            changes["witnessed"] = replace(core.witnessed, renewals=_OLD)
        if core.request is not None:
            changes["request"] = _old(core.request)
        asked = node.asked
        if asked is not None:
            asked = replace(asked, request=_old(asked.request))
        work = tuple(
            replace(one, request=_old(one.request)) if isinstance(one, AskWitness) else one
            for one in node.work
        )
        state = cluster.change(state, index, core=replace(core, **changes), asked=asked, work=work)
    between = cluster.between.values[state[2]]
    late = tuple(_old(one) for one in between.late_requests)
    return cluster.set(state, late_requests=late)


def _old(request: Request) -> Request:
    return replace(request, renewals=_OLD) if isinstance(request, Takeover) else request


def reply_lost(cluster: Cluster, state: State, index: int, node: Node) -> State:
    """The witness does it, and nobody hears of it; asked again, it says the same (W7)."""
    assert node.asked is not None
    state = cluster.change(state, index, asked=None, made=node.made + 1)
    state, _ = handle(cluster, state, node.asked.request, remembered=True)
    return _told(cluster, state, index, node.asked, None)


def kept_back(cluster: Cluster, state: State, index: int, node: Node) -> State:
    """The request is on its way for long; the node waits no more."""
    assert node.asked is not None
    between = cluster.between.values[state[2]]
    late = (*between.late_requests, replace(node.asked.request, id="late"))
    state = cluster.set(state, late_requests=late)
    state = cluster.change(state, index, asked=None)
    return _told(cluster, state, index, node.asked, None)


def arrives(cluster: Cluster, state: State, between: Between) -> State:
    """One that was kept back reaches the witness after all; its answer interests nobody."""
    request, *rest = between.late_requests
    state = cluster.set(state, late_requests=tuple(rest))
    return handle(cluster, state, request)[0]


def dies(cluster: Cluster, state: State) -> State:
    """It does not answer, until it starts again."""
    return cluster.set(state, witness_up=False)


def starts(cluster: Cluster, state: State, between: Between) -> State:
    """It has what it had stored (W10)."""
    known = between.witness
    if known is None:  # A ping witness knows nothing.
        return cluster.set(state, witness_up=True)
    state = _outdated(cluster, state)
    again = started(known.record, NOW_MS, known.lease.renewals)
    return cluster.set(state, witness_up=True, witness=again)


def forgets(cluster: Cluster, state: State) -> State:
    """It has lost its store (W4)."""
    return cluster.set(_outdated(cluster, state), witness=Known(None, Lease(LONG_AGO_MS)))
