"""The secondary's way out: the primary knows first, so that it need not hold a write (D7, H1).

OUTDATED is written by a leaver only in answer to a durable claim of a peer that is not itself
stopping; when both stop, neither is outdated.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import covering, leaving
from hyperha.core.actions import CloseSession, Timer
from hyperha.core.events import EngineDone
from hyperha.core.messages import (
    Goodbye,
    HandoverCancelled,
    LastManStopped,
    LeaveAnswer,
    LeaveRequest,
)
from hyperha.core.records import DataLabel
from hyperha.core.state import Goal, Link, Phase, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role


def begin(turn: Turn, goal: Goal, why: Why) -> None:
    """A secondary stops: the primary must know first, so that it need not hold a write (D7)."""
    turn.set(goal=goal, end=why)
    state = turn.state
    if state.phase is Phase.FOLLOWING and state.link is Link.IN_SYNC and state.peer_heard:
        turn.enter(Role.SECOND, Phase.LEAVING, Why("D7", f"tells {state.config.peer}"))
        send_request(turn)
        turn.arm(Timer.PATIENCE, state.config.timing.stall_limit_ms)
        return
    close_and_go(turn)


def send_request(turn: Turn) -> None:
    """The request, again until it is answered."""
    turn.send(LeaveRequest(turn.state.session_number))
    turn.retry()


def requested(turn: Turn, message: LeaveRequest) -> None:
    """Our secondary wants to stop: we go on, or are stopping too (H1)."""
    state = turn.state
    if not state.role.runs_vm or message.session != state.session_number:
        return
    if state.lineage.released_to is not None:
        return  # Committed (H2): only the node that asks may run now, and hears so next.
    stopping = state.phase in (Phase.ASKING, Phase.STOPPING, Phase.FLUSHING)
    if stopping and leaving.swaps(turn):
        _no_swap(turn)
        stopping = False
    turn.send(LeaveAnswer(message.session, not stopping, state.lineage.held))
    if not stopping:
        turn.set(leave_granted=message.session)
        return
    turn.set(last_man=True, peer_leaving=True)
    if state.phase is Phase.ASKING:
        leaving.no_handover(turn, "it is stopping too")
    elif state.handover is not None and state.phase is Phase.STOPPING:
        turn.send(HandoverCancelled(state.handover.epoch))
        turn.set(handover=None)


def _no_swap(turn: Turn) -> None:
    """The node that was to run is stopping: this one goes on, it was not told to stop (H1)."""
    handover = turn.state.handover
    if turn.state.phase is Phase.ASKING:
        leaving.no_handover(turn, "it is stopping")
    elif handover is not None:
        turn.send(HandoverCancelled(handover.epoch))
        turn.set(handover=replace(handover, ready=False))


def answered(turn: Turn, message: LeaveAnswer) -> None:
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


def closed(turn: Turn, event: EngineDone) -> None:
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
