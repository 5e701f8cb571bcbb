"""Stopping, swapping and dying: every way out of a role, each with one commit point (H1, H2).

Before the commit only the old node may run, after it only the new one. OUTDATED is written by a
leaver only in answer to a durable claim of a peer that is not itself stopping.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import arbitration, covering, failover, killing, running
from hyperha.core.actions import (
    Barrier,
    CloseSession,
    Demote,
    Level,
    StopVm,
    Timer,
)
from hyperha.core.events import EngineDone, VmDone, VmExited
from hyperha.core.messages import (
    HandoverCancelled,
    HandoverKind,
    HandoverReady,
    HandoverRefused,
    HandoverRequest,
    LastManStopped,
    Released,
    Taken,
)
from hyperha.core.state import Goal, Handover, Link, ModuleState, Need, Phase, Step, Vm, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role


def begin(turn: Turn, goal: Goal, why: Why, *, force: bool = False) -> None:
    """Leave ALONE or PRIM; the peer goes on when it is in sync and able to."""
    state = turn.state
    turn.set(goal=goal, end=why)
    in_sync = state.link is Link.IN_SYNC and state.role is Role.PRIM
    may = state.settings.failover and not state.unwitnessed
    if in_sync and may and state.peer_heard and not state.peer_leaving:
        ask_handover(turn, HandoverKind.STOP)
    else:
        turn.set(last_man=state.peer_leaving)
        stop_vm(turn, force=force)


def ask_handover(turn: Turn, kind: HandoverKind) -> None:
    """H2: nothing is stopped before the peer has passed preflight and claimed the epoch."""
    state = turn.state
    epoch = state.lineage.epoch.next_for(state.config.peer)
    turn.set(handover=Handover(epoch, kind))
    text = f"asks {state.config.peer} to take over"
    why = Why("H2", text)
    if kind is HandoverKind.ROOM:
        why = Why("D11", f"the disk is full: {text}")
    turn.enter(state.role, Phase.ASKING, why)
    send_request(turn)
    turn.arm(Timer.PATIENCE, state.config.timing.stall_limit_ms)


def send_request(turn: Turn) -> None:
    """The request, again until it is answered."""
    handover = turn.state.handover
    if handover is not None:
        turn.send(HandoverRequest(handover.epoch, handover.kind))
        turn.retry()


def ready(turn: Turn, message: HandoverReady) -> None:
    """The peer has claimed the epoch: stop the VM here."""
    handover = turn.state.handover
    if turn.state.phase is not Phase.ASKING or handover is None:
        return
    if handover.epoch != message.epoch or handover.ready:
        return
    turn.set(handover=replace(handover, ready=True))
    turn.cancel(Timer.RETRY, Timer.PATIENCE)
    if turn.state.config.leased:
        turn.arm(Timer.PATIENCE, turn.state.config.timing.stall_limit_ms)
        arbitration.confirm(turn)
        return
    stop_vm(turn, force=False)


def confirmed(turn: Turn) -> None:
    """The witness is there to commit the move."""
    handover = turn.state.handover
    if turn.state.phase is Phase.ASKING and handover is not None and handover.ready:
        turn.cancel(Timer.PATIENCE)
        stop_vm(turn, force=False)


def unanswered(turn: Turn) -> None:
    """Neither the other node nor the witness may be waited for any longer before a move."""
    handover = turn.state.handover
    if handover is not None and handover.ready:
        arbitration.drop(turn)
        no_handover(turn, "the witness does not answer, without which no move can be committed")
    else:
        no_handover(turn, "it does not answer")


def refused(turn: Turn, message: HandoverRefused) -> None:
    """The peer cannot: a stop goes on without it, a swap leaves everything as it is."""
    handover = turn.state.handover
    if turn.state.phase is not Phase.ASKING or handover is None:
        return
    if handover.epoch == message.epoch:
        turn.set(last_man=message.stopping)
        no_handover(turn, message.reason)


def no_handover(turn: Turn, reason: str) -> None:
    """Before the commit everything can still be as it was (H2)."""
    state = turn.state
    handover = state.handover
    if handover is None:
        return
    turn.send(HandoverCancelled(handover.epoch))
    turn.cancel(Timer.RETRY, Timer.PATIENCE)
    # The peer may have claimed the epoch durably: the next one must be a higher one.
    turn.set(handover=None)
    turn.persist(lineage=replace(state.lineage, epoch=max(state.lineage.epoch, handover.epoch)))
    text = f"{state.config.peer} does not take over: {reason}"
    turn.tell(Level.WARNING, "H2", text)
    if handover.kind.moves_only:
        turn.enter(state.role, Phase.RUNNING, Why("R11", f"runs the VM; not moved: {reason}"))
        turn.finish(False, text)
        if state.vm is Vm.ABSENT:
            # It ended while the other node was being asked.
            turn.set(vm=Vm.RUNNING)
            failover.vm_exited(turn, VmExited(state.run, "while a move was prepared"))
        return
    stop_vm(turn, force=False)


def stop_vm(turn: Turn, *, force: bool) -> None:
    """stop_prim, or nothing where no VM is running."""
    state = turn.state
    turn.forget(Step.START_VM, Step.PROMOTE)
    text = _reason(state)
    turn.enter(state.role, Phase.STOPPING, Why("H2", f"stopping the VM: {text}"))
    turn.set(vm=Vm.STOPPING)
    turn.order(StopVm, Step.STOP_VM, run=state.run, force=force)


def _reason(state: ModuleState) -> str:
    """Why the VM is being stopped."""
    if state.handover is not None and state.handover.kind is HandoverKind.ROOM:
        return f"the disk is full, {state.config.peer} has room"
    return state.end.text if state.end else "stopping"


def vm_stopped(turn: Turn, event: VmDone) -> None:
    """The VM is gone: either it starts again here, or the final barrier follows."""
    state = turn.state
    if not event.ok:
        turn.tell(Level.ERROR, "L5", f"the VM could not be stopped: {event.text}")
        why = state.end or Why("L5", "the VM could not be stopped")
        killing.begin(turn, why, handover=_still_wanted(state))
        return
    turn.set(vm=Vm.ABSENT)
    if state.phase is Phase.RESTARTING:
        running.start_vm(turn)
        return
    if state.phase is Phase.STOPPING:
        flush(turn)


def _still_wanted(state: ModuleState) -> Handover | None:
    """The hand-over of a stop whose VM must be killed: what was acknowledged is on both nodes. What
    only moves it does not need an end; with a lease the witness decides (H3)."""
    handover = state.handover
    if handover is None or not handover.ready or state.config.leased:
        return None
    stops = state.goal is Goal.STOP and handover.kind is HandoverKind.STOP
    return handover if stops and state.link is Link.IN_SYNC and not state.frozen else None


def flush(turn: Turn) -> None:
    """The final barrier, as soon as nothing is held."""
    turn.enter(turn.state.role, Phase.FLUSHING, Why("H2", "final barrier"))
    if turn.state.frozen:
        turn.arm(Timer.PATIENCE, 2 * turn.state.config.timing.stall_limit_ms)
    else:
        turn.order(Barrier, Step.FINAL_BARRIER)


def swaps(turn: Turn) -> bool:
    """Whether the VM was stopped only to be moved: without the move it runs here again (H2)."""
    handover = turn.state.handover
    return handover is not None and handover.kind.moves_only


def flush_overdue(turn: Turn) -> None:
    """No proof came while the VM was already stopped: leave as after a crash, outdating nobody."""
    if turn.state.need is Need.HAND_OVER:
        _undecided(turn)
        return
    if swaps(turn):
        return  # Nobody asked for an end: whoever may answer first decides what becomes of it.
    if turn.state.frozen and not turn.state.awaits(Step.DEMOTE):
        turn.tell(Level.WARNING, "H1", "stops without the other node's word: neither is outdated")
        turn.set(handover=None)
        demote(turn)


def not_handed_over(turn: Turn, text: str) -> None:
    """The witness did not move the module: only this node may still run it (H2, H3)."""
    turn.cancel(Timer.PATIENCE)
    turn.tell(Level.ERROR, "H3", f"the VM is not handed over: {text}")
    if swaps(turn):
        stay(turn)
    else:
        _leave(turn, clean=True)


def _undecided(turn: Turn) -> None:
    """The witness may have the commit or not: neither runs the VM before it says which (H2)."""
    peer = turn.state.config.peer
    text = f"the witness does not say whether {peer} may run: the VM is down until it does"
    turn.tell(Level.ERROR, "H3", text)
    if swaps(turn):
        turn.set(goal=Goal.RESTART)
    arbitration.drop(turn)
    turn.set(handover=None)
    demote(turn)


def flushed(turn: Turn, event: EngineDone) -> None:
    """The commit, or the end of a node that leaves alone."""
    state = turn.state
    if state.phase is not Phase.FLUSHING:
        return
    if not event.ok:
        if state.link is Link.LOST or state.frozen:
            return
        turn.tell(Level.ERROR, "F2", f"the final barrier failed: {event.text}")
    handover = state.handover
    if handover is not None and handover.ready and state.link is Link.IN_SYNC and event.ok:
        if state.config.leased:
            arbitration.hand_over(turn)
        else:
            commit(turn, handover)
        return
    if swaps(turn):
        stay(turn)
        return
    if state.last_man and state.link is Link.IN_SYNC and event.ok:
        turn.send(LastManStopped(state.session_number))
    _leave(turn, clean=event.ok)


def _leave(turn: Turn, *, clean: bool) -> None:
    """Nobody takes over: the folder is left as it is."""
    lineage = replace(turn.state.lineage, intent_primary=not clean)
    turn.set(handover=None)
    turn.persist(lineage=lineage)
    demote(turn)


def stay(turn: Turn) -> None:
    """Before the commit only this node may run: the VM is started here again (H2)."""
    state = turn.state
    handover = state.handover
    assert handover is not None, "only a hand-over can be given up"
    text = f"{state.config.peer} cannot take over any more: the VM stays here"
    turn.tell(Level.WARNING, "H2", text)
    turn.send(HandoverCancelled(handover.epoch))
    turn.set(handover=None, last_man=False, goal=Goal.RUN)
    # The peer may have claimed the epoch durably: the next one must be a higher one.
    turn.persist(lineage=replace(state.lineage, epoch=max(state.lineage.epoch, handover.epoch)))
    turn.finish(False, text)
    running.start_vm(turn)


def commit(turn: Turn, handover: Handover) -> None:
    """One durable act: before it only this node may run, after it only the other one (H2)."""
    state = turn.state
    lineage = state.lineage.released(handover.epoch, leaves=handover.kind.leaves)
    turn.persist(lineage=lineage)
    if handover.kind is HandoverKind.ROOM:
        text = f"the disk was full: handed over to {state.config.peer}; make room, then start"
        turn.set(goal=Goal.STOP, end=Why("D11", text))
    turn.tell(Level.INFO, "H2", f"released to {state.config.peer} ({handover.kind})")
    demote(turn)


def demote(turn: Turn) -> None:
    """M2: the connection of the primary ends, with every page and handle in it."""
    turn.forget()
    turn.set(link=Link.NONE)
    turn.enter(turn.state.role, Phase.FLUSHING)
    turn.order(CloseSession, Step.CLOSE)
    turn.order(Demote, Step.DEMOTE)


def demoted(turn: Turn, event: EngineDone) -> None:
    """The folder is standby again: hand over, or uncover it."""
    state = turn.state
    turn.set(writable=False, link=Link.NONE, session=None, resync=None, frozen_since_ms=None)
    if not event.ok:
        # What the kernel caches in that mount must not outlive the other node's changes (M2).
        turn.tell(Level.ERROR, "M2", f"the folder could not be made standby: {event.text}")
        if state.handover is not None and state.handover.ready:
            send_released(turn)
            if not state.handover.kind.leaves:
                turn.set(goal=Goal.RESTART)
        covering.detach(turn)
        return
    if state.handover is not None and state.handover.ready:
        why = Why("H2", f"handed over to {state.config.peer}")
        turn.enter(Role.WAIT, Phase.HANDING_OVER, why)
        send_released(turn)
        turn.arm(Timer.PATIENCE, 2 * state.config.timing.takeover_wait_ms)
        return
    covering.detach(turn)


def send_released(turn: Turn) -> None:
    """The commit's news, again until it is confirmed."""
    handover = turn.state.handover
    if handover is not None:
        turn.send(Released(handover.epoch, handover.kind, handover.kind.leaves))
        turn.retry()


def taken(turn: Turn, message: Taken) -> None:
    """The other node has its intent durable."""
    state = turn.state
    handover = state.handover
    if state.phase is not Phase.HANDING_OVER or handover is None:
        return
    if handover.epoch != message.epoch:
        return
    turn.cancel(Timer.RETRY, Timer.PATIENCE)
    turn.tell(Level.INFO, "H2", f"{state.config.peer} has taken over")
    after_handover(turn)


def after_handover(turn: Turn) -> None:
    """A stop ends here; a swap goes on as secondary."""
    handover = turn.state.handover
    turn.set(handover=None)
    if handover is not None and not handover.kind.leaves:
        turn.set(goal=Goal.RUN, yielded=True)
        turn.finish(True, f"{turn.state.config.peer} runs the VM")
        turn.enter(Role.WAIT, Phase.WAITING, Why("H2", "follows after the swap"))
        return
    covering.detach(turn)


def handover_overdue(turn: Turn) -> None:
    """The other node was released but has not confirmed (H2)."""
    state = turn.state
    handover = state.handover
    if handover is None:
        return
    text = f"{state.config.peer} has not confirmed the hand-over"
    turn.tell(Level.WARNING, "H2", text)
    if handover.kind.leaves:
        after_handover(turn)
        return
    # Nobody will say more to whoever commanded it: it is settled by the rules from here on.
    runs = turn.peer_runs
    turn.finish(runs, f"{state.config.peer} runs the VM" if runs else text)
    if state.peer_heard:
        # It runs the VM, or was stopped instead: a join or a claim settles who may run (P7).
        turn.set(handover=None, goal=Goal.RUN)
        turn.cancel(Timer.RETRY)
        turn.enter(Role.WAIT, Phase.WAITING, Why("H2", text))
        return
    # Without a witness a released node behaves like a secondary after twice the wait (H2).
    turn.set(handover=None, goal=Goal.RUN)
    turn.persist(lineage=replace(state.lineage, released_to=None))
    turn.enter(Role.SECOND, Phase.FOLLOWING, Why("H2", text))
    turn.set(link=Link.LOST, session=None)
    turn.arm(Timer.TAKEOVER, 0)
