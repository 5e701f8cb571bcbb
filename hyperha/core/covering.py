"""Covering and uncovering the folder, and what its marker says (M3, R12).

The folder is covered from start to stop; what it carries decides whether its content is the one
that this node's record speaks of.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import arbitration, quarantine
from hyperha.core.actions import Attach, Detach, Level, Timer
from hyperha.core.events import EngineDone, Verb
from hyperha.core.facts import AttachFacts, MarkerState
from hyperha.core.records import DataLabel
from hyperha.core.state import Goal, Link, Phase, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role

STARTING = frozenset((Verb.START, Verb.PRIM, Verb.PRIMFORCE, Verb.SECOND))
"""Commands that begin by covering the folder where the module is stopped."""


def attach(turn: Turn, goal: Goal) -> None:
    """Cover the folder first; everything else follows (M3)."""
    command = turn.state.command
    accept = turn.state.lineage.acceptable_markers
    turn.set(goal=goal, listening=True, facts=None, unknown_data="", writable=False, end=None)
    turn.set(yielded=False, no_room=None, before=None, hold_until_ms=0, refusals=0)
    turn.enter(Role.WAIT, Phase.ATTACHING, Why("M3", "covering the folder"))
    turn.persist(
        lineage=turn.state.lineage.with_marker(),
        settings=replace(turn.state.settings, wanted=True),
    )
    marker = turn.state.lineage.marker
    adopt = bool(command and command.adopt)
    fresh = _fresh(turn)
    turn.order(Attach, Step.ATTACH, accept=accept, write=marker, adopt=adopt, fresh=fresh)
    turn.arm(Timer.LISTEN, turn.state.config.timing.takeover_wait_ms)
    # A stop forgets all deadlines; these outlive it.
    arm_suspension(turn)
    quarantine.arm(turn)
    arbitration.begin(turn)


def arm_suspension(turn: Turn) -> None:
    """When the next suspension of a checker ends, if one of them does."""
    ends = [s.until_wall_ms for s in turn.state.settings.suspensions if s.until_wall_ms is not None]
    if ends:
        turn.arm(Timer.SUSPENSION, min(ends) - turn.stimulus.wall_ms)
    else:
        turn.cancel(Timer.SUSPENSION)


def _fresh(turn: Turn) -> bool:
    """Whether this module never had data here: a folder without a marker is as expected (R12)."""
    lineage = turn.state.lineage
    return lineage.label is DataLabel.FRESH and not lineage.current.id


def attached(turn: Turn, event: EngineDone) -> None:
    """The folder is covered, or cannot be."""
    facts = event.attach
    if not event.ok or facts is None:
        turn.set(end=Why("M6", event.text))
        turn.tell(Level.ERROR, "M6", event.text)
        detach(turn)
        return
    turn.set(facts=facts)
    absent = facts.marker is MarkerState.ABSENT
    trusted = facts.marker is MarkerState.MATCHES or (absent and _fresh(turn))
    command = turn.state.command
    if not trusted and not (command and command.adopt):
        turn.set(unknown_data=_why_unknown(turn, facts))
        turn.tell(Level.ERROR, "R12", turn.state.unknown_data)
    else:
        lineage = replace(turn.state.lineage, marker_written=True)
        if not trusted:
            # An adopted folder is nobody's copy until a full compare has made it one.
            lineage = replace(lineage, full_compare_owed=True)
            if lineage.label is not DataLabel.FRESH:
                lineage = replace(lineage, label=DataLabel.OUTDATED, way_back=False)
        turn.persist(lineage=lineage)
    turn.enter(Role.WAIT, Phase.WAITING, Why("P2", "looking for the other node"))


def _why_unknown(turn: Turn, facts: AttachFacts) -> str:
    """What the folder carries, and what this node's record names (R12)."""
    marker = turn.state.lineage.marker
    data = marker.generation[:6] if marker else ""
    expected = f"mark {marker.counter} of {data or 'no data'}" if marker else "none"
    match facts.marker:
        case MarkerState.ABSENT:
            found = "no mark: is its file system mounted?"
        case MarkerState.DAMAGED:
            found = f"a damaged mark ({facts.text})."
        case _:
            other = facts.found
            known = f"mark {other.counter} of {other.generation[:6]}" if other else "another mark"
            found = f"{known}: restored or foreign data?"
    return (
        f"unknown data in the folder: this node's record names {expected}, the folder carries "
        f"{found} Put the right folder back, or take it as a start with --adopt"
    )


def detach(turn: Turn) -> None:
    """Uncover the folder and end in STOP (or start again, when the goal says so)."""
    was_attached = turn.state.attached
    turn.forget()
    turn.enter(turn.state.role, Phase.DETACHING)
    turn.cancel(*Timer)
    lineage = turn.state.lineage
    if was_attached and lineage.marker_written and not turn.state.unknown_data:
        lineage = lineage.with_marker()
        turn.persist(lineage=lineage)
        turn.order(Detach, Step.DETACH, write=lineage.marker)
    else:
        uncover(turn)


def uncover(turn: Turn) -> None:
    """Uncover without touching marker or record."""
    turn.forget()
    turn.enter(turn.state.role, Phase.DETACHING)
    turn.order(Detach, Step.UNCOVER, write=None)


def detached(turn: Turn, event: EngineDone) -> None:
    """The folder is plain again and carries the last marker."""
    if event.ok and turn.state.attached:
        turn.set(lineage=replace(turn.state.lineage, marker_written=True))
    uncovered(turn, event)


def uncovered(turn: Turn, event: EngineDone) -> None:
    """The folder is plain again; which marker it carries is as certain as it was before (R12)."""
    state = turn.state
    again = state.goal is Goal.RESTART
    lineage = state.lineage
    # What the daemon does by itself (a shutdown) leaves what the operator wanted.
    automatic = state.command is not None and state.command.automatic
    wanted = state.settings.wanted if automatic else again
    turn.persist(lineage=lineage, settings=replace(state.settings, wanted=wanted))
    end = state.end or Why("", "stopped")
    turn.set(facts=None, writable=False, goal=Goal.STOP, end=None, last_man=False, handover=None)
    turn.set(link=Link.NONE, session=None, resync=None, frozen_since_ms=None, paused=False)
    turn.set(growing=False, need=None, request=None, witnessed=None)
    turn.enter(Role.STOP, Phase.IDLE, end)
    if not event.ok:
        turn.tell(Level.WARNING, "M3", f"the folder could not be uncovered: {event.text}")
    if again:
        attach(turn, Goal.RUN)
    else:
        failed = state.command is not None and state.command.verb in STARTING
        turn.finish(not failed, end.text)
