"""What people are told: readiness, the sentence, which commands are allowed and why others are not.

API and console show what stands here and hold no copy of the rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from hyperha.core import arbitration, room, versions
from hyperha.core.commands import refusal, stated_loss
from hyperha.core.events import Verb
from hyperha.core.state import Goal, Link, ModuleState, Phase, Vm
from hyperha.domain import DataState, Readiness, Role


@dataclass(frozen=True, slots=True)
class Reason:
    """A preflight reason that the core knows."""

    code: str
    text: str
    fix: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """One node's side of a module, for people."""

    role: Role
    readiness: Readiness
    data: DataState
    rule: str
    text: str
    allowed: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    """Verb and reason."""
    losses: tuple[tuple[str, str], ...]
    """Verb and the loss that must be confirmed."""
    reasons: tuple[Reason, ...]
    """What would fail, or does, until somebody puts it right."""


def readiness(state: ModuleState) -> Readiness:
    """Red, orange or green."""
    match state.role:
        case Role.STOP:
            return Readiness.NOT_READY
        case Role.WAIT:
            blocked = state.phase is Phase.WAITING and not state.listening
            stuck = (
                blocked
                or arbitration.in_vain(state)
                or state.refusals > 0
                or state.goal is Goal.BLOCKED
                or bool(state.unknown_data)
            )
            lacking = stuck or state.no_room is not None
            return Readiness.NOT_READY if lacking else Readiness.TRANSIENT
        case Role.SECOND:
            ready = state.phase is Phase.FOLLOWING and state.link is Link.IN_SYNC
            return Readiness.READY if ready else Readiness.TRANSIENT
        case Role.ALONE | Role.PRIM:
            ready = state.phase is Phase.RUNNING and state.vm is Vm.RUNNING and not state.unjudged
            return Readiness.READY if ready else Readiness.TRANSIENT


def data_state(state: ModuleState) -> DataState:
    """What the copy is worth (G5); a folder that cannot be trusted is unknown (R12)."""
    return DataState.UNKNOWN if state.unknown_data else state.lineage.data


def explain(state: ModuleState) -> Explanation:
    """Everything that is shown about this node's side of the module."""
    allowed = []
    refused = []
    losses = []
    for verb in Verb:
        reason = refusal(state, verb)
        if reason:
            refused.append((verb.value, reason))
            continue
        allowed.append(verb.value)
        loss = stated_loss(state, verb)
        if loss:
            losses.append((verb.value, loss))
    return Explanation(
        role=state.role,
        readiness=readiness(state),
        data=data_state(state),
        rule="D11" if _full(state) else state.why.rule,
        text=_sentence(state),
        allowed=tuple(allowed),
        refused=tuple(refused),
        losses=tuple(losses),
        reasons=_reasons(state),
    )


def _full(state: ModuleState) -> bool:
    return state.full is not None and state.phase is Phase.RUNNING and not state.frozen


def _reasons(state: ModuleState) -> tuple[Reason, ...]:
    found = list(_disk_reasons(state))
    if state.unwitnessed and state.role.runs_vm and state.phase is Phase.RUNNING:
        found.append(Reason("witness-silent", _NO_SAFETY_NET, _WITNESS_FIX))
    for one in state.rules_hold:
        text = f"rule {one.name} holds" + ("" if one.fired else ", and acts when it can")
        found.append(Reason("rule-holds", text, "See what it says in the module's file."))
    if text := versions.difference(state):
        fix = "Copy cluster.toml and the modules' files from the newer one, then restart that node."
        found.append(Reason("config-differs", text, fix))
    if by := state.settings.drained_by:
        node = state.config.node
        text = f"{node} was drained by {by}: nothing is moved to it"
        found.append(Reason("drained", text, f"`hyperha node resume --node {node}` ends that."))
    return tuple(found)


_NO_SAFETY_NET = (
    "no safety net: the witness does not answer, and only it may let a node go on alone"
)
_WITNESS_FIX = (
    "Start `hyperha witness run` on its machine, or mend the network to it; moves wait for it, too."
)


def _disk_reasons(state: ModuleState) -> tuple[Reason, ...]:
    fix = "Delete what is not needed on the folder's file system, or enlarge it."
    if state.full is not None:
        return (Reason("disk-full", room.sentence(state, state.full), fix),)
    if state.no_room is not None and state.role is Role.WAIT:
        return (Reason("no-room", state.no_room.text, fix),)
    return ()


def _sentence(state: ModuleState) -> str:
    peer = state.config.peer
    if state.full is not None and _full(state):
        return room.sentence(state, state.full)
    if state.phase is Phase.RUNNING and state.vm is Vm.ABSENT:
        return state.why.text
    if state.role is Role.PRIM and state.phase is Phase.RUNNING and not state.frozen:
        return f"runs the VM; {peer} has an equal copy"
    if state.role is Role.ALONE and state.phase is Phase.RUNNING and state.resync is not None:
        return f"runs the VM; {peer} is being made equal and cannot take over yet"
    return state.why.text
