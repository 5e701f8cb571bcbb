"""A full disk under the VM (D11): moved to a node with room at most once an hour, else told.

The guest has its error already: a hypervisor pauses it by itself, a program goes on or ends. It is
moved by a hand-over like any other, which leaves it where it is when the peer refuses. After the
move this node is out: as a follower without room it would only show the VM its own lack of it.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import failover, leaving, quarantine
from hyperha.core.actions import Level
from hyperha.core.events import DiskFull, DiskHasRoom
from hyperha.core.messages import HandoverKind
from hyperha.core.state import FullDisk, Link, ModuleState, Phase, Vm
from hyperha.core.turn import Turn
from hyperha.domain import Role
from hyperha.text import minute_text, size_text

PEER_ROOM_BYTES = 64 << 20
"""Less than that on the peer is no room to move to."""
APART_MS = 3_600_000


def filled(turn: Turn, event: DiskFull) -> None:
    """The guest was refused room, or the figures have changed since; `settle` goes on."""
    state = turn.state
    if not state.role.runs_vm:
        return
    former = state.full
    full = FullDisk(
        former.since_wall_ms if former else turn.stimulus.wall_ms,
        event.free_bytes,
        event.peer_free_bytes,
        event.text,
        former.obstacle if former else "",
    )
    turn.set(full=full)
    if former is None:
        turn.tell(Level.ERROR, "D11", f"the disk is full ({event.text}): {_figures(state, full)}")


def settle(turn: Turn) -> None:
    """Hand over as soon as that may be and helps; called after every event while it is full."""
    state = turn.state
    full = state.full
    if full is None:
        return
    if not state.role.runs_vm or state.phase is Phase.KILLING:
        turn.set(full=None)
        return
    if state.phase is not Phase.RUNNING:
        return
    obstacle = _obstacle(turn, full)
    if obstacle:
        if obstacle != full.obstacle:
            turn.tell(Level.WARNING, "D11", f"the VM stays on this full disk: {obstacle}")
            turn.set(full=replace(full, obstacle=obstacle))
        return
    turn.set(full=replace(full, obstacle=""))
    turn.persist(settings=replace(state.settings, room_handover_wall_ms=turn.stimulus.wall_ms))
    turn.tell(Level.WARNING, "D11", f"the disk is full: the VM is moved to {state.config.peer}")
    leaving.ask_handover(turn, HandoverKind.ROOM)


def _obstacle(turn: Turn, full: FullDisk) -> str:
    """Why the VM is not moved now; empty when it may be."""
    state = turn.state
    peer = state.config.peer
    if state.role is not Role.PRIM or state.link is not Link.IN_SYNC:
        return f"{peer} has no equal copy"
    if full.peer_free_bytes is None:
        return f"how much room {peer} has is not known"
    if full.peer_free_bytes < PEER_ROOM_BYTES:
        return f"{peer} has no room either"
    if not state.settings.failover:
        return "failover is off"
    if quarantine.active(state):
        return quarantine.why(state)
    if state.unwitnessed:
        return "the witness does not answer"
    if moved_lately(turn):
        return "it was moved, or was to be, for want of room less than an hour ago"
    return ""


def moved_lately(turn: Turn) -> bool:
    """Whether one of the nodes asked for, or granted, such a move within the last hour.

    Also when a clock was set back since: two disks that fill together must not pass it to and fro.
    """
    at_wall_ms = turn.state.settings.room_handover_wall_ms
    return bool(at_wall_ms) and abs(turn.stimulus.wall_ms - at_wall_ms) < APART_MS


def back(turn: Turn, event: DiskHasRoom) -> None:
    """There is room again: a VM that ended for want of it is started, which never counts (M7)."""
    state = turn.state
    if state.full is None:
        return
    turn.set(full=None)
    free = size_text(event.free_bytes)
    turn.tell(Level.INFO, "D11", f"the disk has room again: {free} are free")
    failover.start_again(turn, "D11", "the VM ended while the disk was full")


def _figures(state: ModuleState, full: FullDisk) -> str:
    theirs = full.peer_free_bytes
    there = "an unknown amount" if theirs is None else size_text(theirs)
    return f"{size_text(full.free_bytes)} are free here, {there} on {state.config.peer}"


def sentence(state: ModuleState, full: FullDisk) -> str:
    """For operators: that it is full, since when, how much is free where, and what to do."""
    what = "the VM gets errors"
    if state.vm is Vm.ABSENT:
        what = "the VM ended and is started again when there is room"
    stays = f"; it is not moved: {full.obstacle}" if full.obstacle else ""
    return (
        f"the disk is full since {minute_text(full.since_wall_ms)}: {_figures(state, full)}; "
        f"{what}{stays}; make room on {state.config.node}"
    )
