"""What the end of small engine orders means: mostly nothing, unless it failed."""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import failover
from hyperha.core.actions import Level
from hyperha.core.events import EngineDone, LocalDiskFailed
from hyperha.core.records import DataLabel
from hyperha.core.turn import Turn


def closed(turn: Turn, event: EngineDone) -> None:
    """A secondary whose queue could not be applied whole is no equal copy any more (P8)."""
    lineage = turn.state.lineage
    if event.ok or turn.state.role.runs_vm or lineage.intent_primary:
        return
    if lineage.label is DataLabel.UPTODATE:
        turn.tell(Level.ERROR, "P8", f"what was acknowledged is not all here: {event.text}")
        turn.persist(lineage=replace(lineage, label=DataLabel.OUTDATED, full_compare_owed=True))


def marked(turn: Turn, event: EngineDone) -> None:
    """The folder carries the marker, or its disk has failed (R12)."""
    if event.ok:
        turn.set(lineage=replace(turn.state.lineage, marker_written=True))
    else:
        failover.disk_failed(turn, LocalDiskFailed(f"marker not written: {event.text}"))


def cleared(turn: Turn, event: EngineDone) -> None:
    """The dirty map is forgotten, or its disk has failed (F10)."""
    if not event.ok:
        failover.disk_failed(turn, LocalDiskFailed(f"map not cleared: {event.text}"))
