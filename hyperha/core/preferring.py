"""Which node is preferred: when it has come back with an equal copy, the VM may be moved to it.

Only if `default_primary` says so: by default nothing moves back by itself (P5). Tried once for
each return; what an operator moves away afterwards stays where it is. A node that is drained for
maintenance prefers the other one, whatever is configured, as soon as that has an equal copy.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import leaving, quarantine
from hyperha.core.actions import Level
from hyperha.core.messages import HandoverKind
from hyperha.core.state import Link, ModuleState, Phase, Vm
from hyperha.core.turn import Turn
from hyperha.domain import Role

LAST = "last"
"""Where the VM ran before this node took over."""


def taken_over(turn: Turn) -> None:
    """This node goes on where the other one ran: remembered until the VM is moved, or an operator
    decides otherwise."""
    if not turn.state.settings.took_over:
        turn.persist(settings=replace(turn.state.settings, took_over=True))


def settle(turn: Turn) -> None:
    """Move the VM to a preferred node that has just come back, as soon as it runs steadily."""
    state = turn.state
    steady = state.role is Role.PRIM and state.phase is Phase.RUNNING and state.vm is Vm.RUNNING
    if not (state.returned and steady) or state.link is not Link.IN_SYNC or state.unjudged:
        return
    turn.set(returned=False)
    if not _preferred(state):
        return
    peer = state.config.peer
    why = f"{state.config.node} is drained" if drained(state) else f"{peer} is preferred"
    reason = _obstacle(state)
    if reason:
        turn.tell(Level.WARNING, "P5", f"{why}, and the VM stays here: {reason}")
        return
    turn.tell(Level.INFO, "P5", f"{why}: the VM is moved to {peer}")
    leaving.ask_handover(turn, HandoverKind.SWAP)


def drained(state: ModuleState) -> bool:
    """Whether this node is being kept free for maintenance."""
    return bool(state.settings.drained_by)


def _preferred(state: ModuleState) -> bool:
    if drained(state):
        return True
    wanted = state.config.default_primary
    return wanted == state.config.peer or (wanted == LAST and state.settings.took_over)


def _obstacle(state: ModuleState) -> str:
    if state.unwitnessed:
        return "the witness does not answer"
    if drained(state):
        return ""  # Somebody wants it: as with a stop, nothing but the peer itself is in the way.
    if not state.settings.failover:
        return "failover is off"
    if quarantine.active(state):
        return quarantine.why(state)
    return ""
