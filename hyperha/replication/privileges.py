"""What a file loses when somebody writes to it: capabilities, and set-id bits.

The kernel takes capabilities from a file at each write, at each reservation of room and with a new
owner, whoever does it; set-id bits only from who has no right to keep them. The guest's own changes
carry that as changes of their own. But what a resync or a repair writes on the other node, the
guest has not written: there the source gives again what the file has.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from hyperha.replication.entries import attributes_of
from hyperha.replication.operations import Change, FileId, SetAttributes, SetXattr, Target
from hyperha.replication.store import Store

CAPABILITY: Final = b"security.capability"
SET_ID: Final = stat.S_ISUID | stat.S_ISGID


def capability(descriptor: int) -> bytes | None:
    """The capabilities of the inode behind any descriptor; None: it has none."""
    try:
        return os.getxattr(b"/proc/self/fd/%d" % descriptor, CAPABILITY)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def has_any(store: Store, file: FileId) -> bool:
    """Whether the file has something that writing takes. Raises OSError."""
    held = store.inode(Target(file))
    return bool(os.fstat(held.fd).st_mode & SET_ID) or capability(held.fd) is not None


def given_again(store: Store, file: FileId) -> list[Change]:
    """What gives the file on the other node again what writing to it there has taken; as it is
    while no operation is under way. Raises OSError."""
    target = Target(file)
    held = store.inode(target)
    status, value = os.fstat(held.fd), capability(held.fd)
    found: list[Change] = []
    if status.st_mode & SET_ID:
        found.append(SetAttributes(target, attributes_of(status)))
    if value is not None:
        found.append(SetXattr(target, CAPABILITY, value))
    return found
