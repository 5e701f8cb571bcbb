"""Operators' commands: what each one means in each role, and why it is refused.

`problem` is asked twice: by the edge, to answer at once, and by the step itself, because the state
may have changed in between. It is the only copy of these rules; API and console ask it too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyperha.core import arbitration, covering, farewell, killing, leaving, quarantine
from hyperha.core.actions import Level, Timer
from hyperha.core.events import CommandGiven, Verb
from hyperha.core.messages import HandoverKind
from hyperha.core.records import DataLabel
from hyperha.core.state import Command, Goal, Link, ModuleState, Phase, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role

_STEADY = (Phase.IDLE, Phase.WAITING, Phase.FOLLOWING, Phase.RUNNING, Phase.RESYNCING)
_BEFORE_RUNNING = (
    Phase.IDLE,
    Phase.ATTACHING,
    Phase.WAITING,
    Phase.CLAIMING,
    Phase.ARBITRATING,
    Phase.FENCING,
    Phase.JOINING,
)
_PLANNED = (Phase.ASKING, Phase.STOPPING, Phase.FLUSHING, Phase.HANDING_OVER, Phase.KILLING)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a command is refused. Codes: stale-view, busy, loss, refused."""

    code: str
    text: str


def problem(state: ModuleState, event: CommandGiven) -> Problem | None:
    """None when the command can be begun now."""
    if event.expect_role is not None and event.expect_role is not state.role:
        return Problem(
            "stale-view", f"{state.config.node} is {state.role} now, not {event.expect_role}"
        )
    if event.expect_generation is not None and (
        event.expect_generation != state.lineage.current.id
    ):
        return Problem("stale-view", "the generation of the data has changed since it was shown")
    text = refusal(state, event.verb)
    if text:
        busy = state.phase not in _STEADY
        return Problem("busy" if busy else "refused", text)
    if not event.confirmed and not event.automatic:
        loss = stated_loss(state, event.verb)
        if loss:
            return Problem("loss", loss)
    return None


def refusal(state: ModuleState, verb: Verb) -> str:
    """Why the verb is not allowed now; empty when it is."""
    node = state.config.node
    if verb is Verb.FORCESTOP:
        return f"{node} is stopped" if state.phase is Phase.IDLE else ""
    if state.phase in (Phase.DETACHING, Phase.KILLING):
        return f"{node} is busy: {state.phase}"
    match verb:
        case Verb.START | Verb.SECOND:
            if state.role is Role.STOP or _blocked(state):
                return ""
            return f"{node} is started already ({state.role})"
        case Verb.PRIM | Verb.PRIMFORCE:
            return _prim_refusal(state, verb)
        case Verb.STOP:
            return f"{node} is stopping already" if state.phase in _PLANNED else ""
        case Verb.SWAP:
            return _swap_refusal(state)
        case Verb.RESTART | Verb.STOPSTART:
            if state.role.runs_vm and state.phase is Phase.RUNNING and not state.frozen:
                return ""
            if verb is Verb.STOPSTART and state.phase is Phase.FOLLOWING:
                return ""
            return f"{node} does not run the VM steadily ({state.role}, {state.phase})"


def _blocked(state: ModuleState) -> bool:
    return state.role is Role.WAIT and state.phase in _BEFORE_RUNNING


def _prim_refusal(state: ModuleState, verb: Verb) -> str:
    node, peer = state.config.node, state.config.peer
    if state.role.runs_vm or state.role is Role.SECOND:
        return f"{node} is {state.role}" + (
            ": use swap" if state.role is Role.SECOND else " already"
        )
    if state.peer_heard and state.peer is not None and state.peer.role.runs_vm:
        return f"{peer} runs the VM: stop it there, or use swap"
    if state.phase not in _BEFORE_RUNNING:
        return f"{node} is busy: {state.phase}"
    half = state.lineage.label is DataLabel.INCONSISTENT
    if verb is Verb.PRIM and half and not state.lineage.way_back:
        return f"the copy on {node} is half made: only primforce could start it"
    if state.unknown_data:
        return state.unknown_data
    return ""


def _swap_refusal(state: ModuleState) -> str:
    node, peer = state.config.node, state.config.peer
    if state.role is Role.SECOND:
        return f"{peer} runs the VM: command swap there"
    if state.role is not Role.PRIM or state.link is not Link.IN_SYNC:
        return f"{peer} has no equal copy"
    if state.phase is not Phase.RUNNING:
        return f"{node} is busy: {state.phase}"
    if state.unwitnessed:
        return "the witness does not answer: only it can say who may run after a move"
    if quarantine.active(state):
        return f"{quarantine.why(state)}; stop moves the VM there all the same"
    return ""


def stated_loss(state: ModuleState, verb: Verb) -> str:
    """What a command would give up, in one sentence; empty when nothing can be lost."""
    lineage = state.lineage
    peer = state.config.peer
    if verb in (Verb.STOP, Verb.STOPSTART) and state.role is Role.PRIM and state.unwitnessed:
        return f"the witness does not answer: {peer} may not take over, the VM would be down (H3)"
    if verb not in (Verb.PRIM, Verb.PRIMFORCE):
        return ""
    if lineage.label is DataLabel.INCONSISTENT:
        half = f"the copy is half made (from {lineage.sync_from})"
        if verb is Verb.PRIMFORCE:
            return f"{half}: the VM may find damaged files"
        return f"{half}: it is put back to what it was before, and what {peer} has since is lost"
    if lineage.label is DataLabel.OUTDATED:
        if state.peer_heard:
            return f"{peer} holds newer data: what it has since this copy was left is given up"
        return f"unknown: {peer} does not answer; it went on without this copy"
    if lineage.label is DataLabel.UPTODATE and not state.peer_heard:
        proof = lineage.peer_out
        if proof is None or not proof.kind.durable:
            return f"unknown: {peer} does not answer and may run the VM or hold newer data"
    holder = state.peer if state.peer_heard else None
    if lineage.label is DataLabel.FRESH and holder is not None and holder.generation:
        return f"{peer} holds the data, {state.config.node} never did"
    return ""


def given(turn: Turn, event: CommandGiven) -> None:
    """Begin a command, or refuse it with the reason."""
    trouble = problem(turn.state, event)
    if trouble is not None:
        turn.refuse(event.operation_id, trouble.text)
        return
    verb = event.verb
    reason = f": {event.reason}" if event.reason else ""
    turn.tell(Level.INFO, "command", f"{verb} by {event.by}{reason}")
    turn.begin(
        Command(
            event.operation_id,
            verb,
            event.by,
            confirmed=event.confirmed,
            full=event.full,
            adopt=event.adopt,
            automatic=event.automatic,
        )
    )
    if not event.automatic:
        settings = replace(
            turn.state.settings, recoveries_wall_ms=(), start_failed="", took_over=False
        )
        turn.persist(settings=settings)
    _perform(turn, verb, event.by)


_GOALS = {
    Verb.START: Goal.RUN,
    Verb.SECOND: Goal.SECONDARY,
    Verb.PRIM: Goal.PRIMARY,
    Verb.PRIMFORCE: Goal.FORCE,
}


def _perform(turn: Turn, verb: Verb, by: str) -> None:
    state = turn.state
    match verb:
        case Verb.START | Verb.SECOND | Verb.PRIM | Verb.PRIMFORCE:
            _start(turn, _GOALS[verb])
        case Verb.STOP:
            _stop(turn, Goal.STOP, Why("", f"stopped by {by}"))
        case Verb.STOPSTART:
            _stop(turn, Goal.RESTART, Why("", f"stopstart by {by}"))
        case Verb.FORCESTOP:
            killing.force_stop(turn)
        case Verb.SWAP:
            leaving.ask_handover(turn, HandoverKind.SWAP)
        case Verb.RESTART:
            turn.set(end=Why("", f"restart by {by}"))
            leaving.stop_vm(turn, force=False)
            turn.enter(state.role, Phase.RESTARTING, Why("", f"restart by {by}"))


def _start(turn: Turn, goal: Goal) -> None:
    if turn.state.role is Role.STOP:
        covering.attach(turn, goal)
        return
    # In WAIT the folder is covered already: only the goal is new.
    turn.cancel(Timer.RETRY, Timer.PATIENCE)
    turn.set(goal=goal, hold_until_ms=0, refusals=0, claim=None, isolated="")
    turn.forget(Step.POWER_OFF)
    arbitration.leave(turn)
    if turn.state.phase is Phase.ATTACHING:
        return  # The folder is being covered: what was asked for is looked at then.
    command = turn.state.command
    if command is not None and command.adopt and turn.state.unknown_data:
        turn.set(goal=Goal.RESTART)
        covering.detach(turn)
        return
    turn.enter(Role.WAIT, Phase.WAITING)


def _stop(turn: Turn, goal: Goal, why: Why) -> None:
    state = turn.state
    if state.role is Role.STOP:
        turn.finish(True, "stopped")
    elif state.role.runs_vm:
        leaving.begin(turn, goal, why)
    elif state.role is Role.SECOND:
        farewell.begin(turn, goal, why)
    else:
        turn.set(goal=goal, end=why)
        covering.detach(turn)


def shut_down(turn: Turn, why: Why) -> None:
    """The module leaves this node by a decision of its own (failed checks, failed start)."""
    if turn.state.role.runs_vm:
        leaving.begin(turn, Goal.STOP, why)
    else:
        _stop(turn, Goal.STOP, why)
