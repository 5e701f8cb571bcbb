"""Switches of operators that hold in every role: failover, boot, suspended checkers."""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import covering, failover
from hyperha.core.actions import Finish, Level
from hyperha.core.events import SettingsChanged
from hyperha.core.records import Suspension
from hyperha.core.turn import Turn


def changed(turn: Turn, event: SettingsChanged) -> None:
    """failover, boot, suspend and resume: durable, allowed in every role."""
    settings = turn.state.settings
    if event.failover is not None:
        settings = replace(settings, failover=event.failover)
        turn.tell(Level.INFO, "command", f"failover {_on(event.failover)} by {event.by}")
    if event.boot is not None:
        settings = replace(settings, boot=event.boot)
    if event.drained is not None:
        settings = replace(settings, drained_by=event.by if event.drained else "")
        what = "is drained" if event.drained else "is resumed"
        turn.tell(Level.INFO, "command", f"{turn.state.config.node} {what} by {event.by}")
        turn.set(returned=event.drained or turn.state.returned)
    others = settings.suspensions
    if event.suspend is not None:
        others = tuple(s for s in others if s.checker != event.suspend)
        added = Suspension(event.suspend, event.by, event.reason, event.until_wall_ms)
        settings = replace(settings, suspensions=(*others, added))
        what = event.suspend or "all checkers"
        turn.tell(Level.WARNING, "command", f"{what} suspended by {event.by}: {event.reason}")
    if event.resume is not None:
        kept = tuple(s for s in others if event.resume and s.checker != event.resume)
        settings = replace(settings, suspensions=kept)
        what = event.resume or "all checkers"
        turn.tell(Level.INFO, "command", f"{what} resumed by {event.by}")
    turn.persist(settings=settings)
    covering.arm_suspension(turn)
    if event.suspend is not None or event.resume is not None:
        failover.suspension_over(turn)
    turn.do(Finish(event.operation_id, True, "done"))


def _on(value: bool) -> str:
    return "on" if value else "off"


def suspension_ended(turn: Turn) -> None:
    """Its time is over: the checker is watched again, with its grace."""
    now = turn.stimulus.wall_ms
    settings = turn.state.settings
    kept = tuple(
        s for s in settings.suspensions if s.until_wall_ms is None or s.until_wall_ms > now
    )
    for ended in (s for s in settings.suspensions if s not in kept):
        turn.tell(Level.INFO, "command", f"suspension of {ended.checker or 'all checkers'} ended")
    if kept != settings.suspensions:
        turn.persist(settings=replace(settings, suspensions=kept))
        failover.suspension_over(turn)
    covering.arm_suspension(turn)
