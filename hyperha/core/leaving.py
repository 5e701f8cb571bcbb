"""Stopping, swapping and dying: every way out of a role, each with one commit point (H1, H2).

Before the commit only the old node may run, after it only the new one. OUTDATED is written by a
leaver only in answer to a durable claim of a peer that is not itself stopping.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import covering, failover, running, source
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
    Goodbye,
    HandoverCancelled,
    HandoverKind,
    HandoverReady,
    HandoverRefused,
    HandoverRequest,
    LastManStopped,
    LeaveAnswer,
    LeaveRequest,
    Released,
    Taken,
)
from hyperha.core.records import DataLabel
from hyperha.core.state import Goal, Handover, Link, Phase, Step, Vm, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role


def begin(turn: Turn, goal: Goal, why: Why, *, force: bool = False) -> None:
    """Leave ALONE or PRIM; the peer goes on when it is in sync and able to."""
    state = turn.state
    turn.set(goal=goal, end=why)
    in_sync = state.link is Link.IN_SYNC and state.role is Role.PRIM
    if in_sync and state.settings.failover and state.peer_heard and not state.peer_leaving:
        ask_handover(turn, HandoverKind.STOP)
    else:
        turn.set(last_man=state.peer_leaving)
        stop_vm(turn, force=force)


def ask_handover(turn: Turn, kind: HandoverKind) -> None:
    """H2: nothing is stopped before the peer has passed preflight and claimed the epoch."""
    state = turn.state
    epoch = state.lineage.epoch.next_for(state.config.peer)
    turn.set(handover=Handover(epoch, kind))
    why = Why("H2", f"asks {state.config.peer} to take over")
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
    if handover.epoch != message.epoch:
        return
    turn.set(handover=replace(handover, ready=True))
    turn.cancel(Timer.RETRY, Timer.PATIENCE)
    stop_vm(turn, force=False)


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
    if handover.kind is HandoverKind.SWAP:
        turn.enter(state.role, Phase.RUNNING, Why("R11", f"runs the VM; no swap: {reason}"))
        turn.finish(False, text)
        if state.vm is Vm.ABSENT:
            # It ended while the other node was being asked.
            turn.set(vm=Vm.RUNNING)
            failover.vm_exited(turn, VmExited(state.run, "while a swap was prepared"))
        return
    stop_vm(turn, force=False)


def stop_vm(turn: Turn, *, force: bool) -> None:
    """stop_prim, or nothing where no VM is running."""
    state = turn.state
    turn.forget(Step.START_VM, Step.PROMOTE)
    text = state.end.text if state.end else "stopping"
    turn.enter(state.role, Phase.STOPPING, Why("H2", f"stopping the VM: {text}"))
    turn.set(vm=Vm.STOPPING)
    turn.order(StopVm, Step.STOP_VM, run=state.run, force=force)


def vm_stopped(turn: Turn, event: VmDone) -> None:
    """The VM is gone: either it starts again here, or the final barrier follows."""
    state = turn.state
    if not event.ok:
        turn.tell(Level.ERROR, "L5", f"the VM could not be stopped: {event.text}")
        source.kill(turn, state.end or Why("L5", "the VM could not be stopped"))
        return
    turn.set(vm=Vm.ABSENT)
    if state.phase is Phase.RESTARTING:
        running.start_vm(turn)
        return
    if state.phase is Phase.STOPPING:
        flush(turn)


def flush(turn: Turn) -> None:
    """The final barrier, as soon as nothing is held."""
    turn.enter(turn.state.role, Phase.FLUSHING, Why("H2", "final barrier"))
    if turn.state.frozen:
        turn.arm(Timer.PATIENCE, 2 * turn.state.config.timing.stall_limit_ms)
    else:
        turn.order(Barrier, Step.FINAL_BARRIER)


def flush_overdue(turn: Turn) -> None:
    """No proof came while the VM was already stopped: leave as after a crash, outdating nobody."""
    if turn.state.frozen and not turn.state.awaits(Step.DEMOTE):
        turn.tell(Level.WARNING, "H1", "stops without the other node's word: neither is outdated")
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
        commit(turn, handover)
        return
    if state.last_man and state.link is Link.IN_SYNC and event.ok:
        turn.send(LastManStopped(state.session_number))
    lineage = replace(state.lineage, intent_primary=not event.ok)
    turn.set(handover=None)
    turn.persist(lineage=lineage)
    demote(turn)


def commit(turn: Turn, handover: Handover) -> None:
    """One durable act: before it only this node may run, after it only the other one (H2)."""
    state = turn.state
    stop = handover.kind is HandoverKind.STOP
    lineage = replace(
        state.lineage,
        released_to=handover.epoch,
        epoch=handover.epoch,
        intent_primary=False,
        was_primary=False,
        label=DataLabel.OUTDATED if stop else DataLabel.UPTODATE,
    )
    turn.persist(lineage=lineage)
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
            if state.handover.kind is HandoverKind.SWAP:
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
        stop = handover.kind is HandoverKind.STOP
        turn.send(Released(handover.epoch, handover.kind, stop))
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
    if handover is not None and handover.kind is HandoverKind.SWAP:
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
    if handover.kind is HandoverKind.STOP:
        after_handover(turn)
        return
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


def leave_second(turn: Turn, goal: Goal, why: Why) -> None:
    """A secondary stops: the primary must know first, so that it need not hold a write (D7)."""
    turn.set(goal=goal, end=why)
    state = turn.state
    if state.phase is Phase.FOLLOWING and state.link is Link.IN_SYNC and state.peer_heard:
        turn.enter(Role.SECOND, Phase.LEAVING, Why("D7", f"tells {state.config.peer}"))
        send_leave(turn)
        turn.arm(Timer.PATIENCE, state.config.timing.stall_limit_ms)
        return
    close_and_go(turn)


def send_leave(turn: Turn) -> None:
    """The request, again until it is answered."""
    turn.send(LeaveRequest(turn.state.session_number))
    turn.retry()


def leave_requested(turn: Turn, message: LeaveRequest) -> None:
    """Our secondary wants to stop: we go on, or are stopping too (H1)."""
    state = turn.state
    if not state.role.runs_vm or message.session != state.session_number:
        return
    stopping = state.phase in (Phase.ASKING, Phase.STOPPING, Phase.FLUSHING)
    turn.send(LeaveAnswer(message.session, not stopping, state.lineage.held))
    if stopping:
        turn.set(last_man=True, peer_leaving=True)
        if state.phase is Phase.ASKING:
            no_handover(turn, "it is stopping too")
        elif state.handover is not None and state.phase is Phase.STOPPING:
            turn.send(HandoverCancelled(state.handover.epoch))
            turn.set(handover=None)


def leave_answered(turn: Turn, message: LeaveAnswer) -> None:
    """Go as outdated, or stay for the final barrier."""
    state = turn.state
    if state.phase is not Phase.LEAVING or message.session != state.session_number:
        return
    turn.cancel(Timer.RETRY)
    if message.survivor:
        if not state.awaits(Step.LEAVE):
            turn.set(peer_leaving=False)
            turn.order(CloseSession, Step.LEAVE)
        return
    turn.set(peer_leaving=True)
    turn.arm(Timer.PATIENCE, 300_000)


def closed_for_leaving(turn: Turn, event: EngineDone) -> None:
    """The stream is closed: OUTDATED in answer to the survivor's claim, then goodbye (H1, F5)."""
    del event
    state = turn.state
    lineage = state.lineage
    if lineage.label is DataLabel.UPTODATE and not state.peer_leaving:
        lineage = replace(lineage, label=DataLabel.OUTDATED)
    turn.persist(lineage=lineage)
    turn.send(Goodbye(state.session_number, lineage.label is not DataLabel.UPTODATE))
    turn.set(link=Link.NONE, session=None, peer_leaving=False)
    covering.detach(turn)


def last_man_stopped(turn: Turn, message: LastManStopped) -> None:
    """Both are stopping and equal: neither is outdated (H1, C16)."""
    state = turn.state
    if state.phase is Phase.LEAVING and message.session == state.session_number:
        close_and_go(turn)


def close_and_go(turn: Turn) -> None:
    """Leave without writing OUTDATED: nobody has claimed to be the survivor (H1)."""
    state = turn.state
    turn.cancel(Timer.RETRY, Timer.PATIENCE)
    turn.order(CloseSession, Step.CLOSE)
    turn.send(Goodbye(state.session_number, state.lineage.label is not DataLabel.UPTODATE))
    turn.set(link=Link.NONE, session=None, peer_leaving=False)
    covering.detach(turn)
