"""What a folder holds, read below any mount, and how two of them differ.

Content is compared without regard to holes; those are compared apart, as room that is taken.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from hyperha.replication.identity import is_hidden_xattr
from tests.filesystem.world import plain_time

BLOCK = 4096
ROOM_TOLERANCE = 128 << 10
"""File systems fill small gaps between extents when they write back; how much is their business."""
_ZEROS = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Inode:
    """What must be the same in all copies, and what only in those of the two nodes."""

    mode: int
    uid: int
    gid: int
    links: int
    device: int
    size: int
    content: object
    xattrs: tuple[tuple[str, bytes], ...]
    first_name: bytes
    """Of the names of this inode; so groups of hard links can be compared."""
    mtime_ns: int
    allocated: int

    def shown(self, *, times: bool) -> tuple[object, ...]:
        """All that is compared with another copy."""
        return (
            oct(self.mode), self.uid, self.gid, self.links, self.device, self.size, self.content,
            self.xattrs, self.first_name,
            self.mtime_ns if times else plain_time(self.mtime_ns),
        )  # fmt: skip


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the file system says that there is data."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as problem:
            if problem.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, min(position, size)


def _content(fd: int, size: int) -> str:
    digest = xxhash.xxh3_128()
    for start, end in data_ranges(fd, size):
        at = start // BLOCK * BLOCK
        while at < end:
            read = os.pread(fd, min(1 << 20, end - at), at)
            for place in range(0, len(read), BLOCK):
                block = read[place : place + BLOCK].rstrip(b"\0")
                if block:
                    digest.update(b"%d:%d:" % (at + place, len(block)) + block)
            at += len(read)
    return digest.hexdigest()


def _xattrs(fd: int, name: bytes) -> tuple[tuple[str, bytes], ...]:
    path = b"/proc/self/fd/%d/" % fd + name
    found = []
    for one in sorted(os.listxattr(path, follow_symlinks=False)):
        if not is_hidden_xattr(os.fsencode(one)):
            found.append((one, os.getxattr(path, one, follow_symlinks=False)))
    return tuple(found)


def _inode(folder: int, name: bytes, path: bytes, first: dict[int, bytes]) -> Inode:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    content: object = None
    size = 0
    if stat.S_ISREG(status.st_mode):
        fd = os.open(name, os.O_RDONLY | os.O_NOATIME | os.O_NOFOLLOW, dir_fd=folder)
        try:
            content = _content(fd, status.st_size)
            status = os.fstat(fd)
        finally:
            os.close(fd)
        size = status.st_size
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(name, dir_fd=folder)
    return Inode(
        status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_rdev, size,
        content, _xattrs(folder, name), first.setdefault(status.st_ino, path),
        status.st_mtime_ns, status.st_blocks * 512,
    )  # fmt: skip


def snapshot(folder: int) -> dict[bytes, Inode]:
    """Everything below an open folder, and the folder itself as `.`; not what is hyperha's."""
    first: dict[int, bytes] = {}
    found = {b".": _inode(folder, b".", b".", first)}
    _fill(folder, b"", found, first)
    return found


def _fill(folder: int, at: bytes, found: dict[bytes, Inode], first: dict[int, bytes]) -> None:
    for name in sorted(os.fsencode(one) for one in os.listdir(folder)):
        if not at and name == b".hyperha":
            continue
        path = at + name
        found[path] = inode = _inode(folder, name, path, first)
        if stat.S_ISDIR(inode.mode):
            below = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                _fill(below, path + b"/", found, first)
            finally:
                os.close(below)


def difference(
    one: dict[bytes, Inode],
    other: dict[bytes, Inode],
    *,
    said: str,
    nodes: bool = False,
    resynced: bool = False,
) -> list[str]:
    """What differs, a line each; `nodes`: both are replicated copies, so times and room count.

    A resync keeps holes, not room that was reserved and never written.
    """
    lines = []
    for path in sorted(one.keys() | other.keys()):
        first, second = one.get(path), other.get(path)
        if first is None or second is None:
            place = "second" if first is None else "first"
            lines.append(f"{said}: {path!r} is only in the {place}")
            continue
        left, right = first.shown(times=nodes), second.shown(times=nodes)
        if left != right:
            places = [number for number in range(len(left)) if left[number] != right[number]]
            told = "; ".join(f"{_WORDS[n]} {left[n]!r}, {right[n]!r}" for n in places)
            lines.append(f"{said}: {path!r}: {told}")
        elif nodes and _room_differs(first, second, resynced):
            lines.append(f"{said}: {path!r}: takes {first.allocated}, {second.allocated} bytes")
    return lines


def _room_differs(first: Inode, second: Inode, resynced: bool) -> bool:
    more = second.allocated - first.allocated
    return more > ROOM_TOLERANCE or (-more > ROOM_TOLERANCE and not resynced)


_WORDS = ("mode", "uid", "gid", "links", "device", "size", "content", "xattrs", "inode of", "mtime")
