"""Looking around before a takeover: does the peer answer anywhere, is this node the isolated one?

Begun at suspicion and repeated, so that the answer is there when the wait is over (W8, L3'): a host
that is gone answers no question, and waiting for that must not come on top of takeover_wait.
"""

from __future__ import annotations

from hyperha.core.actions import Probe, Timer
from hyperha.core.events import ProbeDone
from hyperha.core.state import Isolation, Phase, Step
from hyperha.core.turn import Turn

FRESH_MS = 1000
"""An older answer is asked again (W8)."""


def look(turn: Turn) -> None:
    """Ask, where an answer may be needed: a secondary whose peer is silent, under `run`."""
    state = turn.state
    needed = state.phase is Phase.FOLLOWING and not state.peer_heard
    if needed and state.config.isolation is Isolation.RUN and not state.awaits(Step.LOOK):
        turn.order(Probe, Step.LOOK)


def looked(turn: Turn, event: ProbeDone) -> None:
    """Remember what was found, and look again."""
    turn.set(looked=event, looked_ms=turn.now_ms)
    if turn.state.phase is Phase.FOLLOWING:
        turn.arm(Timer.LOOK, turn.state.config.timing.retry_ms)


def forget(turn: Turn) -> None:
    """What was found says nothing any more: the peer is heard, or this node stood still (L7)."""
    turn.set(looked=None)
    turn.forget(Step.LOOK)
    turn.cancel(Timer.LOOK)


def fresh(turn: Turn) -> ProbeDone | None:
    """The last answer, unless it is too old to rest a takeover on."""
    state = turn.state
    if state.looked is None or turn.now_ms - state.looked_ms > FRESH_MS:
        return None
    return state.looked
