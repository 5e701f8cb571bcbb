"""What `Store` gives out: descriptors that close themselves, entries, attributes, checked names.

Values and one resource type; nothing here knows of a folder or keeps a table.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hyperha.replication.operations import Attributes, FileId
from hyperha.replication.trees import Descent

PRIVATE_NAME: Final = b".hyperha"
"""The engine's own directory in the folder's root: never replicated, never visible."""


class Descriptor:
    """An open descriptor, closed when the last user lets go of it.

    Whoever holds the object may use `fd`; a cache that drops it does not close it under a user. So
    keep it in a variable while `fd` is used: `store.data(file).fd` alone names a closed descriptor.
    """

    __slots__ = ("directory", "fd", "recent", "writable")

    def __init__(self, fd: int, *, writable: bool = False, directory: bool = False) -> None:
        self.fd = fd
        self.writable = writable
        self.directory = directory
        self.recent = True

    def __del__(self) -> None:
        try:
            os.close(self.fd)
        except OSError:
            # The number is free already; there is nobody to tell in a finaliser.
            pass


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory and its inode. `file` is NO_ID where the inode carries no id."""

    name: bytes
    file: FileId
    attributes: Attributes
    nlink: int
    handle: bytes
    """The inode's own handle, unique for its life on this node."""

    @property
    def directory(self) -> bool:
        """Whether the inode is a directory."""
        return stat.S_ISDIR(self.attributes.mode)


@dataclass(frozen=True, slots=True)
class Found:
    """What a walk meets: an entry, the id of its directory and its path below the folder."""

    parent: FileId
    path: bytes
    entry: Entry


def check_name(name: bytes) -> None:
    """Refuse what is not one plain component (M13): EINVAL, or ENAMETOOLONG above 255 bytes."""
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise OSError(errno.EINVAL, "not a plain file name", os.fsdecode(name))
    if len(name) > 255:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), os.fsdecode(name))


def attributes_of(status: os.stat_result) -> Attributes:
    """The attributes that both copies share; a size only for regular files."""
    regular = stat.S_ISREG(status.st_mode)
    device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return Attributes(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if regular else 0,
        mtime_ns=status.st_mtime_ns,
        rdev=status.st_rdev if device else 0,
    )


def type_of(entry: os.DirEntry[str]) -> int:
    """The type bits of a listed entry as far as listing told: 0 for anything unusual."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFLNK if entry.is_symlink() else 0


def remove_tree(
    parent: int, name: str | bytes, leaving: Callable[[int, bytes], None] | None = None
) -> None:
    """Delete what a directory's entry holds; nothing where there is none. Never through a link.

    `leaving` hears of each name below before it goes, a directory's before those in it.
    """
    descent = Descent(parent)
    pending = [[os.fsencode(name)]]
    try:
        while pending[-1] or descent.depth:
            if not pending[-1]:
                left, above = descent.name, descent.depth - 1
                descent.leave()
                del pending[descent.depth + 1 :]
                if descent.depth == above:
                    os.rmdir(left, dir_fd=descent.descriptor)
                continue
            at, one = descent.descriptor, pending[-1].pop()
            if leaving is not None and descent.depth:
                leaving(at, one)
            try:
                status = os.stat(one, dir_fd=at, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                descent.enter(one)
                pending.append([os.fsencode(inner) for inner in os.listdir(descent.descriptor)])
            else:
                os.unlink(one, dir_fd=at)
    finally:
        descent.close()
