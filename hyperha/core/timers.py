"""What the named deadlines of a module mean when they come."""

from __future__ import annotations

from collections.abc import Callable

from hyperha.core import (
    arbitration,
    failover,
    farewell,
    fencing,
    joining,
    killing,
    leaving,
    looking,
    losing,
    quarantine,
    rules,
    settings,
    source,
    splitting,
    takeover,
    waiting,
)
from hyperha.core.actions import Timer
from hyperha.core.events import TimerFired
from hyperha.core.messages import JoinAccept
from hyperha.core.state import Link, Phase, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role


def fired(turn: Turn, event: TimerFired) -> None:
    """A deadline of this module has come."""
    HANDLERS[event.timer](turn)


def _retry(turn: Turn) -> None:
    """Say the last unanswered message again."""
    state = turn.state
    if state.phase is Phase.CLAIMING:
        waiting.send_claim(turn)
    elif state.phase is Phase.JOINING:
        _retry_join(turn)
    elif state.phase is Phase.ASKING:
        leaving.send_request(turn)
    elif state.phase is Phase.HANDING_OVER:
        leaving.send_released(turn)
    elif state.phase is Phase.LEAVING:
        farewell.send_request(turn)
    elif state.phase is Phase.KILLING:
        killing.kill_again(turn)
    elif state.phase is Phase.FENCING:
        fencing.begin(turn)
    elif state.link is Link.ENDING and not (
        state.growing or state.awaits(Step.RESYNC_BARRIER) or state.awaits(Step.END_RESYNC)
    ):
        source.send_resync_done(turn)


def _retry_join(turn: Turn) -> None:
    state = turn.state
    if state.link is Link.OFFERED:
        if state.session is not None and not state.awaits(Step.EXPECT):
            turn.send(JoinAccept(state.session))
        turn.retry()
    else:
        joining.send_join(turn)


def _listen(turn: Turn) -> None:
    turn.set(listening=False)


def _patience(turn: Turn) -> None:
    """The peer did not answer in time: the other way."""
    state = turn.state
    if state.phase is Phase.ASKING:
        leaving.unanswered(turn)
    elif state.phase is Phase.HANDING_OVER:
        leaving.handover_overdue(turn)
    elif state.phase is Phase.LEAVING:
        farewell.close_and_go(turn)
    elif state.phase is Phase.OPENING:
        losing.request_outdate(turn)
    elif state.phase is Phase.FLUSHING:
        leaving.flush_overdue(turn)
    elif state.phase is Phase.JOINING:
        turn.set(yielded=False)
        turn.enter(Role.WAIT, Phase.WAITING, Why("T3", "the session did not come about"))
        joining.rejoin_later(turn)


def _rejoin(turn: Turn) -> None:
    """`waiting.settle` looks again at the end of this step."""


HANDLERS: dict[Timer, Callable[[Turn], None]] = {
    Timer.RETRY: _retry,
    Timer.PROOF: losing.proof_due,
    Timer.RELEASE: losing.release_due,
    Timer.TAKEOVER: takeover.takeover_due,
    Timer.LISTEN: _listen,
    Timer.PAUSE: losing.pause_due,
    Timer.SUSPENSION: settings.suspension_ended,
    Timer.OFFER: source.offer_overdue,
    Timer.QUARANTINE: quarantine.ended,
    Timer.PATIENCE: _patience,
    Timer.LOOK: looking.look,
    Timer.GRACE: failover.grace_over,
    Timer.WITNESS: arbitration.due,
    Timer.RULES: rules.due,
    Timer.SPLIT: splitting.due,
    Timer.REJOIN: _rejoin,
}
