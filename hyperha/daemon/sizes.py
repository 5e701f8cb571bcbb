"""How large a copy is and how much would fit: read from the plain folder, below its mount (T1)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperha.api.wire_copies import CopyView, VerdictView
from hyperha.core.actions import SessionStart
from hyperha.errors import HyperhaError
from hyperha.replication.capacity import least_bytes, room_bytes
from hyperha.replication.tally import tree_bytes
from hyperha.text import size_text
from hyperha.threads import in_own_thread

if TYPE_CHECKING:
    from hyperha.daemon.module_host import ModuleHost
    from hyperha.daemon.peer_api import PeerApi

_FOLDER_S = 20.0
_FIELDS = ("tree_bytes", "least_bytes", "room_bytes")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a copy; None: not known."""

    tree: int | None = None
    """The sizes of all files."""
    least: int | None = None
    """What a copy of it needs at least."""
    room: int | None = None
    """The most that this folder's file system can hold in its place."""

    @property
    def fields(self) -> dict[str, int | None]:
        """As a `CopyView` has them."""
        return dict(zip(_FIELDS, (self.tree, self.least, self.room), strict=True))


async def sizes_of(host: ModuleHost) -> Sizes:
    """A node's copy; nothing is known where it cannot be read."""
    kept = host.engine.kept
    folder = dict(zip(kept.names, kept.descriptors, strict=True)).get("folder") if kept else None
    try:
        if folder is not None:
            # The plain folder below the mount: the mount itself is never touched (T1).
            return await in_own_thread("sizes", _read, folder)
        return await host.engine.in_plain_folder(_read_at, _FOLDER_S)
    except (OSError, HyperhaError):
        return Sizes()


async def with_sizes(host: ModuleHost, peer_api: PeerApi, one: CopyView) -> CopyView:
    """The view of a copy, of either node, with its sizes."""
    if one.node == host.node:
        return one.model_copy(update=(await sizes_of(host)).fields)
    found = await peer_api.copy_of(host.name, None, "", sizes=True)
    return one.model_copy(update={name: getattr(found, name) for name in _FIELDS})


def fits_in(verdict: VerdictView, copies: dict[str, CopyView]) -> tuple[bool | None, str]:
    """Whether the target has room for a whole copy, as far as is certain (D11); with a sentence."""
    if verdict.start != SessionStart.FULL.value:
        return None, ""
    least, room = copies[verdict.source].least_bytes, copies[verdict.target].room_bytes
    if least is None or room is None:
        return None, f"whether {verdict.target} has room for the copy is not known"
    if least <= room:
        return True, f"{verdict.target} has room for up to {size_text(room)}"
    return False, (
        f"the copy does not fit: it needs {size_text(least)} at least, reserved room included; "
        f"{verdict.target} has room for {size_text(room)}; the resync would be refused before its "
        "first byte"
    )


def _read(root: int) -> Sizes:
    least = least_bytes(root)
    return Sizes(tree_bytes(root), None if least < 0 else least, room_bytes(root))


def _read_at(path: str) -> Sizes:
    root = os.open(path, os.O_RDONLY)
    try:
        return _read(root)
    finally:
        os.close(root)
