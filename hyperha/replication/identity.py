"""File ids: 16 random bytes in an extended attribute, bound to the inode that carries them (Z3).

The attribute holds the id and the inode's own file handle. A copy of it on another inode (cp -a,
rsync -X, a restored backup) does not match that inode's handle and counts as "no id", so an id can
never name two files. This module reads and writes ids on descriptors; it keeps no table.
"""

from __future__ import annotations

import errno
import os
import secrets
from typing import Final

from hyperha.replication import syscalls
from hyperha.replication.operations import NO_ID, ROOT_ID, FileId

PRIVILEGED_ID: Final = b"trusted.hyperha.id"
"""The attribute as root: no user and no copy tool without rights can touch it."""

UNPRIVILEGED_ID: Final = b"user.hyperha.id"
"""The attribute without rights: regular files and directories only."""

REFUSED: Final = (errno.EPERM, errno.EACCES, *syscalls.FULL_ERRORS)
"""Errors by which an inode without an id gets none: it is immutable or append-only, not ours, or
there is no room for the attribute."""

_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)


def new_id() -> FileId:
    """A fresh random id; never one of the reserved ones."""
    while True:
        file = FileId(secrets.token_bytes(16))
        if file not in (NO_ID, ROOT_ID):
            return file


def id_attribute(privileged: bool) -> bytes:
    """The name of the extended attribute that carries ids."""
    return PRIVILEGED_ID if privileged else UNPRIVILEGED_ID


def is_hidden_xattr(name: bytes) -> bool:
    """Whether an extended attribute belongs to hyperha and is invisible through the mount."""
    return b".hyperha." in name


def read_id(descriptor: int, name: bytes, handle: bytes, privileged: bool) -> FileId:
    """The id of the inode behind `descriptor`, or of `name` in that directory; or NO_ID.

    `handle` is the inode's own handle; an attribute that names another inode is a copy (Z3).
    """
    path = b"/proc/self/fd/%d" % descriptor
    if name:
        path += b"/" + name
    try:
        value = os.getxattr(path, id_attribute(privileged), follow_symlinks=not name)
    except OSError as error:
        if error.errno in _ABSENT:
            return NO_ID
        raise
    if len(value) < 16 or value[16:] != handle:
        return NO_ID
    file = FileId(value[:16])
    return NO_ID if file == ROOT_ID else file


def write_id(descriptor: int, handle: bytes, file: FileId, privileged: bool) -> None:
    """Give the inode behind `descriptor` the id. Raises OSError where it cannot carry one."""
    if len(file) != 16 or file in (NO_ID, ROOT_ID):
        raise OSError(errno.EINVAL, f"not an id that a file can carry: {file.hex()}")
    syscalls.set_xattr(descriptor, id_attribute(privileged), file + handle)
