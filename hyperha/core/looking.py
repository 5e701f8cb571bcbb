"""Looking around: does the peer answer anywhere, is this node the isolated one?

Begun at suspicion and repeated, so that the answer is there when the wait is over (W8, L3'): a host
that is gone answers no question, and waiting for that must not come on top of takeover_wait. Where
there is a ping witness the node that runs the VM asks as well, and the first "no" is final.
"""

from __future__ import annotations

from hyperha.core.actions import Level, Probe, Timer
from hyperha.core.events import ProbeDone
from hyperha.core.options import Isolation
from hyperha.core.state import Link, ModuleState, Phase, Step
from hyperha.core.turn import Turn

FRESH_MS = 1000
"""An older answer is asked again (W8)."""


def look(turn: Turn) -> None:
    """Ask, where an answer may be needed, unless a question is on its way."""
    if _needed(turn.state) and not turn.state.awaits(Step.LOOK):
        turn.order(Probe, Step.LOOK)


def _needed(state: ModuleState) -> bool:
    if state.peer_heard:
        return False
    config = state.config
    if state.phase is Phase.FOLLOWING:
        return config.policy is Isolation.RUN or config.pinged or config.fences
    # The node that runs the VM asks until it may go on alone; under `run`, to tell it later (R16).
    asks = config.policy is Isolation.RUN or config.pinged or config.fences
    return state.role.runs_vm and state.link is Link.LOST and asks


def looked(turn: Turn, event: ProbeDone) -> None:
    """Remember what was found, and look again."""
    remember(turn, event)
    if _needed(turn.state):
        turn.arm(Timer.LOOK, turn.state.config.timing.retry_ms)


def remember(turn: Turn, event: ProbeDone) -> None:
    """What was found; that the ping witness did not answer is final (W8)."""
    state = turn.state
    turn.set(looked=event, looked_ms=turn.now_ms)
    if state.config.pinged and event.isolated and not state.isolated and not state.peer_heard:
        turn.set(isolated=event.text)
        turn.tell(Level.WARNING, "W8", f"{event.text}: it does not go on alone any more")


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
