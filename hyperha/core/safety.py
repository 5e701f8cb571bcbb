"""Safety copies: what a resync destroys is saved before its first byte, and can be put back.

Order (R15, F8): the copy open and durable, then INCONSISTENT, then the first byte. A target whose
own line goes never lacks one (N3); otherwise a resync goes on without, and says so.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core.actions import CloseSafety, Level, OpenSafety, SafetyEnd, UndoResync
from hyperha.core.events import EngineDone, SafetyLost
from hyperha.core.facts import Shortage
from hyperha.core.lineage import Direction, Verdict
from hyperha.core.messages import JoinOffer
from hyperha.core.options import SafetyMode
from hyperha.core.records import DataLabel
from hyperha.core.state import Goal, ModuleState, Phase, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role
from hyperha.text import size_text


def required(state: ModuleState, verdict: Verdict) -> bool:
    """Whether this target is not overwritten without a safety copy (N3)."""
    lineage = state.lineage
    half = lineage.label is DataLabel.INCONSISTENT
    began = half and lineage.way_back and lineage.way_back_required
    return began or verdict.gives_up or state.config.safety is SafetyMode.REQUIRED


def wanted(state: ModuleState, verdict: Verdict) -> bool:
    """Whether a copy is opened, or continued, before this target follows."""
    lineage = state.lineage
    if verdict.direction is Direction.EQUAL:
        return False
    if lineage.label is DataLabel.INCONSISTENT:
        # What a half made copy holds is nothing to go back to, unless it began with a safety copy.
        return lineage.way_back
    if lineage.label is DataLabel.FRESH:
        return False
    return required(state, verdict) or state.config.safety is not SafetyMode.OFF


def open_copy(turn: Turn, offer: JoinOffer, verdict: Verdict) -> None:
    """Save from here on; `joining.safety_opened` goes on."""
    state = turn.state
    turn.set(offer=offer)
    turn.order(
        OpenSafety,
        Step.OPEN_SAFETY,
        resume=state.lineage.label is DataLabel.INCONSISTENT,
        required=required(state, verdict),
        rule=verdict.rule,
        generation=state.lineage.current,
        gives_up=verdict.gives_up,
    )


def no_room(state: ModuleState, lacks: Shortage) -> Why:
    """The sentence for a required copy without room (N3)."""
    needed, free = size_text(lacks.needed_bytes), size_text(lacks.free_bytes)
    what = lacks.text or f"it needs {needed} at least"
    return Why(
        "N3",
        f"nothing is overwritten without a safety copy, which has no room: {what}, "
        f"{free} are free; make room on {state.config.node}, then it goes on",
    )


def close(turn: Turn) -> None:
    """The copy is equal: whatever is open has ended, also one that the record does not know of."""
    turn.order(CloseSafety, Step.CLOSE_SAFETY, end=SafetyEnd.COPIED)


def closed(turn: Turn, event: EngineDone) -> None:
    """A copy that stays open goes on saving, and cannot be deleted: that is said (R15)."""
    if not event.ok:
        turn.tell(Level.WARNING, "R15", f"the safety copy is not ended: {event.text}")


def lost(turn: Turn, event: SafetyLost) -> None:
    """The copy was given up: the resync goes on without a way back."""
    lineage = turn.state.lineage
    if not lineage.way_back:
        return
    turn.tell(Level.WARNING, "R15", f"no way back during this resync: {event.text}")
    turn.persist(lineage=replace(lineage, way_back=False))


def untouched(turn: Turn) -> None:
    """The resync ended before its first byte: the copy is what it was, and so is its label."""
    lineage, before = turn.state.lineage, turn.state.before
    if before is None:
        return
    opened = lineage.way_back and before.label is not DataLabel.INCONSISTENT
    turn.persist(
        lineage=replace(
            lineage,
            label=before.label,
            former_label=before.former_label,
            sync_from=before.sync_from,
            target_generation=before.target_generation,
            way_back=before.way_back,
            full_compare_owed=before.full_compare_owed,
        )
    )
    turn.set(before=None)
    if opened:
        turn.order(CloseSafety, Step.CLOSE_SAFETY, end=SafetyEnd.UNDONE)


def can_undo(state: ModuleState) -> bool:
    """Whether an operator who wants to run this half made copy gets its former state."""
    lineage = state.lineage
    return (
        lineage.label is DataLabel.INCONSISTENT
        and lineage.way_back
        and state.goal is Goal.PRIMARY
        and not state.unknown_data
    )


def undo(turn: Turn) -> None:
    """Put the folder back to what it was before the resync."""
    source = turn.state.lineage.sync_from
    text = f"puts the copy back to what it was before it was being made equal to {source}"
    turn.enter(Role.WAIT, Phase.UNDOING, Why("R15", text))
    turn.tell(Level.INFO, "R15", text)
    turn.order(UndoResync, Step.UNDO)


def undone(turn: Turn, event: EngineDone) -> None:
    """The folder is what it was, and so is its label (R4', R15)."""
    if turn.state.phase is not Phase.UNDOING:
        return
    if not event.ok:
        turn.block("R15", f"the resync cannot be undone: {event.text}")
        return
    lineage = turn.state.lineage
    turn.persist(
        lineage=replace(
            lineage,
            label=lineage.former_label,
            sync_from="",
            target_generation="",
            way_back=False,
        )
    )
    turn.order(CloseSafety, Step.CLOSE_SAFETY, end=SafetyEnd.UNDONE)
    turn.tell(Level.INFO, "R15", f"the copy is {turn.state.lineage.data} again, as it was before")
    turn.enter(Role.WAIT, Phase.WAITING)
