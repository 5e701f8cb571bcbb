"""What a failed VM, a failed checker or a failed part of this node leads to.

Automatic recoveries are counted in a sliding window; when the budget is used up the module stops
here and the peer takes over. A freeze is never held against the VM (K3).
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import commands, covering, farewell, joining, killing, leaving, losing, running
from hyperha.core.actions import Acknowledge, Level, Release, SetMarker, Timer
from hyperha.core.events import (
    CheckerAction,
    CheckerFailed,
    DiskFilling,
    EngineLost,
    LocalDiskFailed,
    PersistFailed,
    VmExited,
)
from hyperha.core.records import DataLabel
from hyperha.core.state import Goal, Link, ModuleState, Phase, Step, Vm, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role

ENGINE_FAILURES = 3


def suspended(state: ModuleState, checker: str) -> bool:
    """Whether an operator told this checker, or all of them, to give no verdict."""
    return any(s.checker in ("", checker) for s in state.settings.suspensions)


def recoveries_used(state: ModuleState, wall_ms: int) -> int:
    """Automatic recoveries inside the sliding window."""
    since = wall_ms - state.config.restart_window_ms
    return sum(1 for at in state.settings.recoveries_wall_ms if at > since)


def vm_exited(turn: Turn, event: VmExited) -> None:
    """The VM's process has ended by itself."""
    state = turn.state
    if event.run != state.run:
        return
    if state.vm is Vm.STARTING:
        # It ended before start_prim's result arrived: looked at when that is here.
        turn.set(exited_early=event.text or "no reason is known")
        return
    if state.vm is not Vm.RUNNING:
        return
    turn.set(vm=Vm.ABSENT)
    turn.tell(Level.ERROR, "checker", f"the VM ended by itself: {event.text}")
    if suspended(state, state.config.vm_checker):
        turn.explain(Why("checker", "the VM ended by itself; its checker is suspended"))
        return
    if state.phase is Phase.RUNNING and not state.unjudged:
        react(turn, state.config.exit_action, f"the VM ended by itself: {event.text}")


def suspension_over(turn: Turn) -> None:
    """A VM that ended while nobody was to judge it: it gets its grace first."""
    state = turn.state
    if state.vm is not Vm.ABSENT or state.phase is not Phase.RUNNING:
        return
    if suspended(state, state.config.vm_checker):
        turn.cancel(Timer.GRACE)
        return
    seconds = state.config.grace_ms // 1000
    text = f"the VM does not run; it is looked at again after its grace of {seconds} s"
    turn.explain(Why("checker", text))
    turn.tell(Level.WARNING, "checker", text)
    turn.arm(Timer.GRACE, state.config.grace_ms)


def grace_over(turn: Turn) -> None:
    """Nobody has started it meanwhile."""
    state = turn.state
    if state.vm is not Vm.ABSENT or state.phase is not Phase.RUNNING or state.unjudged:
        return
    if not suspended(state, state.config.vm_checker):
        react(turn, state.config.exit_action, "the VM ended while its checker was suspended")


def after_freeze(turn: Turn) -> None:
    """A VM that did not survive the freeze is started again; that never counts (K3, M7)."""
    start_again(turn, "M7", "the VM ended while writes were held")


def start_again(turn: Turn, rule: str, text: str) -> None:
    """Start a VM that ended while it was held up by what was no fault of its own."""
    state = turn.state
    if state.phase is not Phase.RUNNING or state.vm is not Vm.ABSENT or state.unjudged:
        return
    if not suspended(state, state.config.vm_checker):
        turn.tell(Level.INFO, rule, f"{text}: it is started again")
        running.start_vm(turn)


def checker_failed(turn: Turn, event: CheckerFailed) -> None:
    """A confirmed verdict; late ones and those about a VM that is held up do not count (K2, K3)."""
    state = turn.state
    if event.run != state.run or state.phase is not Phase.RUNNING or state.unjudged:
        return
    if suspended(state, event.checker):
        return
    turn.tell(Level.ERROR, "checker", f"{event.checker}: {event.text}")
    react(turn, event.action, f"checker {event.checker}: {event.text}")


def react(turn: Turn, action: CheckerAction, text: str) -> None:
    """Carry out what the checker asks for, within the budget."""
    why = Why("checker", text)
    match action:
        case CheckerAction.NONE:
            turn.explain(why)
        case CheckerAction.STOP:
            commands.shut_down(turn, why)
        case CheckerAction.RESTART | CheckerAction.STOPSTART | CheckerAction.WAIT:
            if not _within_budget(turn):
                used = turn.state.config.restarts
                spent = Why("checker", f"{used} recoveries are used up: {text}")
                turn.tell(Level.ERROR, "checker", spent.text)
                commands.shut_down(turn, spent)
            elif action is CheckerAction.RESTART:
                turn.set(end=why)
                leaving.stop_vm(turn, force=True)
                turn.enter(turn.state.role, Phase.RESTARTING, why)
            else:
                leaving.begin(turn, Goal.RESTART, why)


def _within_budget(turn: Turn) -> bool:
    state = turn.state
    wall_ms = turn.stimulus.wall_ms
    if recoveries_used(state, wall_ms) >= state.config.restarts:
        return False
    since = wall_ms - state.config.restart_window_ms
    kept = tuple(at for at in state.settings.recoveries_wall_ms if at > since)
    turn.persist(settings=replace(state.settings, recoveries_wall_ms=(*kept, wall_ms)))
    return True


def disk_failed(turn: Turn, event: LocalDiskFailed) -> None:
    """D10 on the primary with an equal peer; otherwise this copy is out, loudly."""
    state = turn.state
    turn.tell(Level.ERROR, "D10", f"the disk failed: {event.text}")
    if state.role.runs_vm:
        redundant = state.role is Role.PRIM and state.link is Link.IN_SYNC
        turn.set(goal=Goal.STOP)
        rule = "D10" if redundant else "D11"
        killing.begin(turn, Why(rule, f"the disk failed: {event.text}"))
    elif state.role is Role.SECOND:
        turn.set(goal=Goal.STOP, end=Why("D10", f"the disk failed: {event.text}"))
        lineage = state.lineage
        if lineage.label is DataLabel.UPTODATE:
            lineage = replace(lineage, label=DataLabel.OUTDATED, full_compare_owed=True)
        turn.persist(lineage=lineage)
        farewell.close_and_go(turn)


def disk_filling(turn: Turn, event: DiskFilling) -> None:
    """D11: the secondary leaves while all that it acknowledged still fits, so that its copy is
    whole until the primary has gone on without it."""
    state = turn.state
    if state.role is not Role.SECOND or state.phase is Phase.LEAVING:
        return
    turn.tell(Level.ERROR, "D11", f"the disk is full: this node leaves ({event.text})")
    farewell.begin(turn, Goal.STOP, Why("D11", f"the disk is full: {event.text}"))


_REBEGUN = (Step.PROMOTE, Step.DEMOTE)
"""Steps of a primary that a successor cannot go on with: the run is ended and begun anew."""
_CALM = (Phase.WAITING, Phase.CLAIMING, Phase.FOLLOWING, Phase.JOINING, Phase.RESYNCING)
_DRAINS = (Step.DRAIN, Step.TAKE)


def engine_lost(turn: Turn, event: EngineLost) -> None:
    """The replication process died: a successor carries on (M4), or everything starts anew.

    What the dead process was still asked to do is never answered; it is asked again or forgotten.
    """
    state = turn.state
    # Whoever comes after it will be refused room again, or not.
    turn.set(full=None)
    turn.tell(Level.ERROR, "M4", f"replication process lost: {event.text}")
    if state.phase in (Phase.IDLE, Phase.DETACHING):
        if not event.recovered:
            turn.set(facts=None)  # The marker ordered with the Detach may never be written (R12).
        return
    if event.recovered:
        turn.tell(Level.INFO, "M4", "a successor has taken the mount over")
    else:
        # Nobody is left who could write the marker: the folder keeps the one that it has (R12).
        turn.set(facts=None)
    if not state.role.runs_vm:
        _follower_engine_lost(turn, event)
    elif state.phase is Phase.KILLING and event.recovered:
        return
    elif event.recovered and not any(map(state.awaits, _REBEGUN)):
        _primary_engine_replaced(turn)
    else:
        start_anew(turn, Why("M4", f"replication lost: {event.text}"))


def _primary_engine_replaced(turn: Turn) -> None:
    """The successor answers nothing by itself: ask again for what the predecessor was doing."""
    state = turn.state
    marked = state.awaits(Step.MARK)
    kept = (Step.START_VM, Step.STOP_VM, Step.PREFLIGHT, Step.ALLOW_CERTIFICATE)
    turn.forget(*(step for step in Step if step not in kept))
    marker = state.lineage.marker
    if marked and marker is not None:
        turn.order(SetMarker, Step.MARK, write=marker)
    if state.link in (Link.IN_SYNC, Link.ENDING, Link.LOST):
        turn.set(paused=False)
        losing.freeze(turn, "the replication process was replaced")
        turn.set(departed=False)
    else:
        turn.set(link=Link.NONE, session=None, resync=None)
        if state.acknowledge is Acknowledge.LOCAL:
            turn.order(Release, Step.RELEASE)


def _follower_engine_lost(turn: Turn, event: EngineLost) -> None:
    """What it had acknowledged in memory may not be in the folder: this copy is out (P8, Z1)."""
    state = turn.state
    acknowledged = state.role is Role.SECOND or any(map(state.awaits, _DRAINS))
    if acknowledged and state.lineage.label is DataLabel.UPTODATE:
        turn.tell(Level.WARNING, "P8", "what was acknowledged here may be missing: copy outdated")
        label = DataLabel.OUTDATED
        turn.persist(lineage=replace(state.lineage, label=label))
    why = Why("M4", f"replication lost: {event.text}")
    if not event.recovered or state.phase not in _CALM:
        start_anew(turn, why)
        return
    turn.forget()
    turn.cancel(Timer.TAKEOVER, Timer.RETRY, Timer.PATIENCE)
    turn.set(claim=None, handover=None)
    turn.enter(Role.WAIT, Phase.WAITING, why)
    joining.rejoin_later(turn)


def start_anew(turn: Turn, why: Why) -> None:
    """Fence what runs, uncover, and start again by the rules; outside the restart budget."""
    state = turn.state
    if state.phase in (Phase.KILLING, Phase.DETACHING):
        return
    turn.tell(Level.ERROR, why.rule, f"starts anew: {why.text}")
    failures = state.engine_failures + 1
    turn.set(engine_failures=failures)
    again = failures <= ENGINE_FAILURES and state.goal is not Goal.STOP
    turn.set(goal=Goal.RESTART if again else Goal.STOP)
    if state.role.runs_vm:
        killing.begin(turn, why)
        return
    turn.set(end=why, link=Link.NONE, session=None)
    covering.detach(turn)


def persist_failed(turn: Turn, event: PersistFailed) -> None:
    """K1: go on from the last durable state; a node that cannot remember must not run."""
    phase = turn.state.phase
    turn.set(lineage=event.lineage, settings=event.settings)
    why = Why("K1", f"the state cannot be stored: {event.text}")
    turn.tell_once(Level.ERROR, "K1", why.text)
    if phase is Phase.IDLE:
        turn.explain(why)
        turn.finish(False, why.text)
    elif phase is Phase.DETACHING:
        covering.uncover(turn)
    elif phase is Phase.KILLING:
        turn.set(goal=Goal.STOP)
        # What was dropped behind the failed record may be the timer of the next attempt.
        turn.retry()
    elif turn.state.role.runs_vm:
        # With an equal peer this is an abdication: the peer is told that this node is out (D10).
        redundant = turn.state.role is Role.PRIM and turn.state.link is Link.IN_SYNC
        turn.set(goal=Goal.STOP)
        killing.begin(turn, Why("D10", why.text) if redundant else why)
    else:
        turn.set(goal=Goal.STOP, end=why)
        turn.enter(turn.state.role, Phase.DETACHING)
        covering.uncover(turn)
