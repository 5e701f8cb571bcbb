"""Whether a copy can fit at all: what a tree needs at least, and what a folder has room for (D11).

Only what is certain counts, since a resync that would fit is not to be refused. Nothing here takes
long: what is not known in time is not known. It changes nothing.
"""

from __future__ import annotations

import bisect
import os
import random
import stat
import time
from dataclasses import dataclass, field
from typing import Final

from hyperha.core.facts import Shortage
from hyperha.replication import allocation, syscalls
from hyperha.replication.entries import PRIVATE_NAME
from hyperha.replication.operations import OFFSET_LIMIT
from hyperha.replication.trees import walk
from hyperha.replication.wire import BLOCK_BYTES
from hyperha.text import size_text

_LIMIT_S: Final = 1.5
_SAMPLES: Final = 128
_MARGIN: Final = 0.1
"""A tree of which a tenth is zeros has one among so many samples, but for one in 700,000."""
_WIDE_MARGIN: Final = 0.25
"""Where there are zeros among the samples, their share is not known better than that."""
_READ: Final = os.O_RDONLY | syscalls.O_NONBLOCK | syscalls.O_NOATIME
_EXTENTS: Final = 200_000
_KEEPS_ZEROS: Final = (syscalls.EXT_SUPER_MAGIC, syscalls.XFS_SUPER_MAGIC, 0x01021994)
"""ext2 to ext4, xfs, tmpfs: they keep data as long as it is, neither compressed nor shared."""


@dataclass(slots=True)
class _Extents:
    """Data of a tree: the handle of its file, offset, and how much there is up to its end."""

    handles: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    reserved: int = 0
    """Bytes of room that was reserved and has no data; a resync reserves it, too."""

    @property
    def total(self) -> int:
        return self.ends[-1] if self.ends else 0

    def add(self, handle: bytes, offset: int, length: int) -> None:
        self.handles.append(handle)
        self.offsets.append(offset)
        self.ends.append(self.total + length)

    def block_at(self, position: int) -> tuple[bytes, int]:
        """File and offset of the block that holds a byte of all data."""
        index = bisect.bisect_right(self.ends, position)
        start = self.ends[index - 1] if index else 0
        offset = self.offsets[index] + position - start
        return self.handles[index], offset // BLOCK_BYTES * BLOCK_BYTES


def least_bytes(root: int) -> int:
    """What a copy of the tree below a descriptor needs at least; -1 when that is not known in time.

    Holes, and blocks of zeros, which a resync leaves as holes, need nothing; how many there are of
    those is told by samples. Reserved room is needed in full, although it reads as a hole.
    """
    until_s = time.monotonic() + _LIMIT_S
    try:
        extents = _data_of(root, until_s)
        if not extents.total:
            return extents.reserved
        zeros = _zeros_of(root, extents, until_s)
    except OSError:
        return -1  # The guest moves things about, or this process may not open by handle.
    if zeros < 0:
        return -1
    share = (_SAMPLES - zeros) / _SAMPLES - (_WIDE_MARGIN if zeros else _MARGIN)
    return extents.reserved + int(extents.total * max(0.0, share))


def _data_of(root: int, until_s: float) -> _Extents:
    """As much as is found in half of the time: less is still a least."""
    half_s = until_s - _LIMIT_S / 2
    found = _Extents()
    seen: set[int] = set()
    for met in walk(root, without=PRIVATE_NAME):
        if time.monotonic() > half_s or len(found.ends) >= _EXTENTS:
            break
        try:
            status = os.stat(met.name, dir_fd=met.parent, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or status.st_ino in seen or not status.st_blocks:
                continue
            seen.add(status.st_ino)
            handle, _ = syscalls.file_handle(met.parent, met.name)
        except FileNotFoundError:
            continue
        _add_file(root, handle, status, found, half_s)
    return found


def _add_file(
    root: int, handle: bytes, status: os.stat_result, found: _Extents, until_s: float
) -> None:
    descriptor = syscalls.open_handle(root, handle, _READ)
    try:
        before = found.total
        holes = _add_data(descriptor, handle, status.st_size, found)
        # Files have blocks for lists of their extents, too; and to ask for those takes time.
        if status.st_blocks * 512 - (found.total - before) >= BLOCK_BYTES:
            found.reserved += _reserved_in(descriptor, holes, until_s)
    finally:
        os.close(descriptor)


def _add_data(descriptor: int, handle: bytes, size: int, found: _Extents) -> list[tuple[int, int]]:
    """The holes between, as (start, end); what is behind the end of the file is one."""
    holes: list[tuple[int, int]] = []
    position = 0
    while position < size:
        if len(found.ends) >= _EXTENTS:
            return holes
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            behind = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError:
            break  # Nothing but a hole up to its end.
        if start > position:
            holes.append((position, start))
        found.add(handle, start, behind - start)
        position = behind
    return [*holes, (position, OFFSET_LIMIT)]


def _reserved_in(descriptor: int, holes: list[tuple[int, int]], until_s: float) -> int:
    """Reserved bytes, as many as are found in time. In holes only: what was written there and is
    on its way to the disk is data already, and counts as that."""
    total = position = passed = 0
    while position < OFFSET_LIMIT and time.monotonic() < until_s:
        ranges, position = allocation.reserved(descriptor, position, OFFSET_LIMIT)
        for start, length in ranges:
            while passed < len(holes) and holes[passed][1] <= start:
                passed += 1
            at = passed
            while at < len(holes) and holes[at][0] < start + length:
                total += min(holes[at][1], start + length) - max(holes[at][0], start)
                at += 1
    return total


def _zeros_of(root: int, extents: _Extents, until_s: float) -> int:
    """How many of the samples are zeros; -1 when there was not time for all of them."""
    zeros = 0
    for _ in range(_SAMPLES):
        if time.monotonic() > until_s:
            return -1
        handle, offset = extents.block_at(random.randrange(extents.total))
        descriptor = syscalls.open_handle(root, handle, _READ)
        try:
            zeros += not os.pread(descriptor, BLOCK_BYTES, offset).strip(b"\0")
        finally:
            os.close(descriptor)
    return zeros


def room_bytes(root: int) -> int | None:
    """The most that the tree below a descriptor can come to: what is free, and all that it holds
    by now, safety copies and what else is ours included. None when that is not certain."""
    kind = syscalls.file_system_type(root)
    if kind not in _KEEPS_ZEROS:
        return None
    if kind == syscalls.EXT_SUPER_MAGIC and not syscalls.keeps_extents(root):
        # It cannot reserve: a copy fits there with less than is said to be needed.
        return None
    room = os.fstatvfs(root)
    until_s = time.monotonic() + _LIMIT_S
    held = 0
    seen: set[int] = set()
    for met in walk(root):
        if time.monotonic() > until_s:
            return None
        try:
            status = os.stat(met.name, dir_fd=met.parent, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if status.st_ino not in seen:
            seen.add(status.st_ino)
            held += status.st_blocks * 512
    return held + room.f_bfree * room.f_frsize


def no_room_text(lacks: Shortage) -> str:
    """What people are told on both nodes."""
    needed, most = size_text(lacks.needed_bytes), size_text(lacks.free_bytes)
    return f"the copy needs {needed} at least, reserved room included; there is room for {most}"


def shortage(root: int, least: int) -> Shortage | None:
    """What a folder lacks for a copy that needs so much at least; None when it may fit."""
    room = os.fstatvfs(root)
    if least <= room.f_bfree * room.f_frsize:
        return None
    most = room_bytes(root)
    return None if most is None or least <= most else Shortage(least, most)
