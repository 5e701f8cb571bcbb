"""A peer that comes and goes: counted, and not preferred for a while (D8).

Only losses of the peer or of the link to it count, never commands, clean goodbyes, checkers, or
this node's own parts. A quarantined node still takes over when nobody else is left, and the VM is
still moved there by a stop; it is only no place to move a healthy VM to.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core.actions import Level, Timer
from hyperha.core.state import ModuleState
from hyperha.core.turn import Turn

DEPARTURES = 3
WITHIN_MS = 3_600_000
LENGTH_MS = 2 * 3_600_000


def note(turn: Turn) -> None:
    """This node goes on alone: if the peer was lost, count it. The caller persists the settings."""
    if not turn.state.departed:
        return
    turn.set(departed=False)
    wall_ms = turn.stimulus.wall_ms
    settings = turn.state.settings
    kept = (*settings.departures_wall_ms, wall_ms)[-DEPARTURES:]
    settings = replace(settings, departures_wall_ms=kept)
    if len(kept) == DEPARTURES and 0 <= wall_ms - kept[0] <= WITHIN_MS:
        settings = replace(settings, quarantine_until_wall_ms=wall_ms + LENGTH_MS)
        hours = LENGTH_MS // 3_600_000
        again = f"{turn.state.config.peer} was lost again: for {hours} more h it is not preferred"
        turn.tell(Level.WARNING, "D8", again if active(turn.state) else why(turn.state))
    turn.set(settings=settings)
    arm(turn)


def why(state: ModuleState) -> str:
    """The sentence for operators."""
    return (
        f"{state.config.peer} was lost {DEPARTURES} times within an hour: "
        f"for {LENGTH_MS // 3_600_000} h it is not preferred"
    )


def active(state: ModuleState) -> bool:
    """Whether the peer is in quarantine."""
    return state.settings.quarantine_until_wall_ms is not None


def arm(turn: Turn) -> None:
    """Its end; nothing survives a stop of the module that would remember the deadline."""
    until_wall_ms = turn.state.settings.quarantine_until_wall_ms
    if until_wall_ms is not None:
        # A clock that was set back must not make it last for ever.
        turn.arm(Timer.QUARANTINE, min(LENGTH_MS, until_wall_ms - turn.stimulus.wall_ms))


def ended(turn: Turn) -> None:
    """It has been quiet for long enough."""
    settings = turn.state.settings
    if settings.quarantine_until_wall_ms is None:
        return
    turn.tell(Level.INFO, "D8", f"{turn.state.config.peer} is no longer in quarantine")
    settings = replace(settings, quarantine_until_wall_ms=None, departures_wall_ms=())
    turn.persist(settings=settings)
