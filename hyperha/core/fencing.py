"""Switching the peer off: only its confirmed end lets this node go on alone (D2c).

Where a command is configured for it, no policy decides. A command that fails holds: it is run again
while the peer stays silent. In a network that is cut both nodes would shoot; who ran fewer VMs lets
the other one shoot first, so that one of them stays.
"""

from __future__ import annotations

from hyperha.core import looking, losing, running
from hyperha.core.actions import Level, PowerOff, Timer
from hyperha.core.events import PeerSilent, PoweredOff
from hyperha.core.records import ProofKind
from hyperha.core.state import ModuleState, Phase, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role


def shoots_last(state: ModuleState, event: PeerSilent) -> bool:
    """Whether the peer shoots first if it lives: it ran more VMs; among equals the first node."""
    here, there = event.runs_here, event.runs_there
    second = state.config.node != state.config.first_node
    return state.config.fences and (here < there or (here == there and second))


def delay_ms(state: ModuleState) -> int:
    """How much later than else this node acts, so that a peer that lives has acted before."""
    return state.config.timing.stall_limit_ms if state.shoots_last else 0


def begin(turn: Turn) -> None:
    """Run the command, unless this node is the isolated one: then the other one serves."""
    state = turn.state
    if state.awaits(Step.POWER_OFF):
        return
    if state.phase is Phase.FENCING and state.peer_heard:
        _give_up(turn)
        return
    why = Why("D2c", f"switches {state.config.peer} off")
    turn.enter(state.role if state.role.runs_vm else Role.WAIT, _phase(state), why)
    found = looking.fresh(turn)
    if found is not None and found.isolated:
        _hold(turn, f"{state.config.peer} is not switched off: {found.text}")
        return
    turn.tell(Level.WARNING, why.rule, f"{state.config.peer} is being switched off")
    turn.order(PowerOff, Step.POWER_OFF)


def _phase(state: ModuleState) -> Phase:
    return state.phase if state.role.runs_vm else Phase.FENCING


def done(turn: Turn, event: PoweredOff) -> None:
    """Off, durably; or not, or not known."""
    state = turn.state
    if state.phase is not Phase.FENCING and not losing.seeks_proof(turn):
        return
    if event.ok:
        turn.tell(Level.WARNING, "D2c", f"{state.config.peer} is switched off: {event.text}")
        running.enter_alone(turn, ProofKind.POWER_FENCED)
    elif state.phase is Phase.FENCING and state.peer_heard:
        _give_up(turn)
    else:
        text = f"the command that switches {state.config.peer} off has failed: {event.text}"
        _hold(turn, text)


def _hold(turn: Turn, text: str) -> None:
    """C14: nothing continues; again in a while."""
    state = turn.state
    held = "writes are held" if state.role.runs_vm else "the VM is not started"
    turn.tell_once(Level.ERROR, "D2c", f"{held}: {text}")
    turn.explain(Why("D2c", f"{held}: {text}; command prim here if it is off"))
    timer = Timer.RELEASE if state.role.runs_vm else Timer.RETRY
    turn.arm(timer, state.config.timing.stall_limit_ms)


def _give_up(turn: Turn) -> None:
    """The peer is heard, and it was not switched off."""
    turn.enter(Role.WAIT, Phase.WAITING, Why("D2c", f"{turn.state.config.peer} is heard again"))
