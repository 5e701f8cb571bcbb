"""What a node puts to the lease witness, each request made from what is known at that moment."""

from __future__ import annotations

from collections.abc import Callable

from hyperha.core.lease import (
    Grow,
    HandOver,
    Look,
    Register,
    Renew,
    Request,
    Shrink,
    Takeover,
)
from hyperha.core.state import Agreed, Goal, ModuleState, Need
from hyperha.core.turn import Turn


def made(turn: Turn, need: Need | None) -> Request:
    """The request for what is needed; for nothing, the one that only keeps in touch."""
    return _MAKERS[need](turn)


def epoch(state: ModuleState) -> int:
    """The epoch under which this node runs, or wants to."""
    return (state.lineage.held if state.role.runs_vm else state.lineage.epoch).counter


def _regular(turn: Turn) -> Request:
    state = turn.state
    name = turn.stimulus.entropy, state.config.node, state.lineage.witness_version
    if state.role.runs_vm and state.lineage.released_to is None:
        return Renew(*name, epoch(state), state.config.ttl_ms)
    return Look(*name)


def _make_takeover(turn: Turn) -> Request:
    state = turn.state
    lineage = state.lineage
    claims = lineage.epoch.node == state.config.node and lineage.epoch > lineage.held
    generations = (lineage.current.id, lineage.pending, lineage.base * lineage.shrink_owed)
    return Takeover(
        turn.stimulus.entropy,
        state.config.node,
        lineage.witness_version,
        lineage.epoch.counter + (0 if claims else 1),
        state.witnessed.renewals if state.witnessed else 0,
        tuple(one for one in generations if one),
        state.proof.epoch.counter if state.proof else None,
    )


def _make_shrink(turn: Turn) -> Request:
    state = turn.state
    lineage = state.lineage
    owed = lineage.shrink_owed and not lineage.pending
    generation = lineage.current.id if owed else lineage.pending
    return Shrink(
        turn.stimulus.entropy,
        state.config.node,
        lineage.witness_version,
        epoch(state),
        generation,
    )


def _make_grow(turn: Turn) -> Request:
    state = turn.state
    lineage = state.lineage
    return Grow(
        turn.stimulus.entropy,
        state.config.node,
        lineage.witness_version,
        epoch(state),
        lineage.current.id,
    )


def _make_hand_over(turn: Turn) -> Request:
    state = turn.state
    assert state.handover is not None, "only a hand-over is committed"
    return HandOver(
        turn.stimulus.entropy,
        state.config.node,
        state.lineage.witness_version,
        epoch(state),
        state.handover.epoch.counter,
    )


def _make_register(turn: Turn) -> Request:
    state = turn.state
    lineage, config = state.lineage, state.config
    nodes = tuple(sorted((config.node, config.peer)))
    both = state.agreed is Agreed.IN_SYNC or state.role.runs_vm
    return Register(
        turn.stimulus.entropy,
        config.node,
        lineage.witness_version,
        nodes,
        epoch(state),
        nodes if both else (config.node,),
        lineage.current.id if both else lineage.pending,
        config.ttl_ms,
        _word(state),
    )


def operator(state: ModuleState) -> bool:
    """Whether an operator wants this node to run, whatever speaks against it (P9)."""
    return state.goal in (Goal.PRIMARY, Goal.FORCE)


def _word(state: ModuleState) -> str:
    """On whose word the witness may be told what it does not know (W4, P9)."""
    if state.agreed is not Agreed.NOTHING:
        return state.config.peer
    if not operator(state):
        return ""
    return state.command.by if state.command else "operator"


_MAKERS: dict[Need | None, Callable[[Turn], Request]] = {
    None: _regular,
    Need.CONFIRM: _regular,
    Need.TAKEOVER: _make_takeover,
    Need.SHRINK: _make_shrink,
    Need.GROW: _make_grow,
    Need.HAND_OVER: _make_hand_over,
    Need.REGISTER: _make_register,
}
