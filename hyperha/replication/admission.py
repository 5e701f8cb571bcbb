"""Whether a folder may be used, and what covers it when it is not ours (M6, R12, N6).

It writes nothing and mounts nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from hyperha.core.facts import MarkerState
from hyperha.domain import Marker
from hyperha.errors import RefusedError, ReplicationError
from hyperha.replication import marker as markers
from hyperha.replication.marker import DamagedMarker, FolderFacts
from hyperha.replication.occupancy import Holder, holders, links_from_outside, slipped_in
from hyperha.replication.operations import Answer, Change, FileId, GiveBack, Record
from hyperha.text import clean


def admit(path: str, folder: int) -> FolderFacts:
    """Check a folder that was just opened. RefusedError naming who holds it or what it lacks."""
    _refuse(path, holders(path, ours=frozenset((folder,))))
    outside = links_from_outside(folder)
    if outside:
        raise RefusedError(
            f"in {path}, {clean(outside[0])}",
            "What is written by another name bypasses replication (M6): `find / -samefile FILE` "
            "names it; remove it there.",
        )
    found = markers.inspect(folder)
    if not found.xattrs or not found.handles:
        lack = "extended attributes" if not found.xattrs else "file handles"
        raise RefusedError(
            f"the file system of {path} has no {lack}",
            "Use ext4, xfs or btrfs.",
        )
    return found


def admit_covered(path: str, folder: int) -> None:
    """Look again when the mount covers the folder: reading its log may have taken a while."""
    _refuse(path, slipped_in(path, folder))


def _refuse(path: str, holding: list[Holder]) -> None:
    if holding:
        raise RefusedError(
            f"{path} is in use: {holding[0]}",
            "Stop that process; while it holds a file it would bypass replication (M6).",
        )


def judge(found: FolderFacts, accept: tuple[Marker, ...]) -> tuple[MarkerState, Marker | None]:
    """What the folder's marker says about it (R12, N6)."""
    marker = found.marker
    if marker is None:
        return MarkerState.ABSENT, None
    if isinstance(marker, DamagedMarker):
        # A crash between the two writes leaves two values, both of which the record knows; the
        # first ever has nothing to be in the other place.
        first = marker.attribute is None and any(one.counter == 1 for one in accept)
        if marker.file in accept and (first or marker.attribute in accept):
            return MarkerState.MATCHES, marker.file
        return MarkerState.DAMAGED, marker.attribute or marker.file
    return (MarkerState.MATCHES if marker in accept else MarkerState.DIFFERS), marker


def resource_of(folder: int) -> str:
    """Whose folder it is, for the successor of a process that had it accepted and may have died
    while it wrote the marker (M4, R12). Raises ReplicationError when the marker does not tell."""
    found = markers.read_marker(folder)
    marker = found.half_written if isinstance(found, DamagedMarker) else found
    if marker is None:
        reason = found.reason if isinstance(found, DamagedMarker) else "it has none"
        raise ReplicationError(f"the folder's marker cannot be used: {reason} (R12)")
    return marker.resource


class ReadOnly:
    """The pipeline of a folder that is covered but not ours: every mutation is refused (R12)."""

    keeps: object = None

    def writable(self) -> bool:
        """Never."""
        return False

    def write(
        self,
        file: FileId,
        offset: int,
        data: bytes | memoryview,
        *,
        barrier: bool,
        answer: Answer,
        give_back: GiveBack | None = None,
    ) -> bool:
        """EROFS."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def change(
        self,
        records: tuple[Record, ...],
        execute: Callable[[], Change | None],
        answer: Answer,
    ) -> None:
        """EROFS."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def flush(self, file: FileId, *, data_only: bool, answer: Answer) -> None:
        """Nothing was written: done."""
        answer(0, b"")

    def closed(self, file: FileId) -> None:
        """Nothing was written."""

    def send_kept(self) -> None:
        """Nothing was kept."""
