"""Room that fallocate has reserved and nobody has written yet: a resync copies it, too.

A hypervisor that was promised room for a thick image must not meet a full disk on the other node
after a failover. To a reader such room is a hole; ext4, xfs and btrfs tell it by FIEMAP. Where a
file system cannot tell or cannot reserve, nothing is copied and nobody is troubled: there nothing
could be promised either. A target that has less room than the source fails as with any write.

Room that a file system took of its own accord was promised to nobody, and is not copied: reserved
on the target it would never be given back.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from hyperha.replication import syscalls
from hyperha.replication.operations import Allocate, FileId, Record, RecordKind
from hyperha.replication.store import Store

if TYPE_CHECKING:
    from hyperha.replication.intent_log import IntentLog

_CANNOT: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL)

_Ranges = list[tuple[int, int]]


def kept(store: Store, file: FileId, start: int, end: int) -> tuple[_Ranges, int]:
    """(offset, length) of some of the reserved room in [start, end), and where to ask on."""
    held = store.data(file)
    return reserved(held.fd, start, end)


def reserved(descriptor: int, start: int, end: int) -> tuple[_Ranges, int]:
    """`kept`, of an open file."""
    try:
        if not _may_be_reserved(descriptor):
            return [], end
        found, following = syscalls.extents(descriptor, start, end)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return [], end
    ranges: _Ranges = []
    for one in found:
        if not one.unwritten:
            continue
        if ranges and sum(ranges[-1]) == one.offset:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + one.length)
        else:
            ranges.append((one.offset, one.length))
    return ranges, following


def _may_be_reserved(descriptor: int) -> bool:
    """Whether room without data in the file may be there because somebody asked for it.

    xfs takes more than it needs for a file that grows, up to its size again: past its end, which a
    guest that goes on further behind moves to the middle of the file. It never clears the mark of
    a file for which room was reserved; without it nobody did. ext4 and btrfs take nothing unasked.
    """
    if syscalls.file_system_type(descriptor) != syscalls.XFS_SUPER_MAGIC:
        return True
    return bool(syscalls.file_flags(descriptor) & syscalls.XFLAG_PREALLOC)


def take(store: Store, intent: IntentLog, number: int, wanted: tuple[FileId, int, int]) -> None:
    """Keep room in a range (file, offset, length) of this copy, as far as there is none yet."""
    file, offset, length = wanted
    missing = _missing(store, file, offset, offset + length)
    if not missing:
        return
    intent.activate([Record(RecordKind.INODE, file)], number)
    held = store.data(file)
    for start, size in missing:
        status = os.fstat(held.fd)
        change = Allocate(
            file, syscalls.FALLOC_KEEP_SIZE, start, size, status.st_size, status.st_mtime_ns
        )
        try:
            store.apply(change)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            return


def _missing(store: Store, file: FileId, start: int, end: int) -> _Ranges:
    """Where in [start, end) no room is kept; all of it, where that cannot be told."""
    held = store.data(file)
    missing: _Ranges = []
    reached, position = start, start
    try:
        while position < end:
            found, position = syscalls.extents(held.fd, position, end)
            for one in found:
                if one.offset > reached:
                    missing.append((reached, one.offset - reached))
                reached = max(reached, one.offset + one.length)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return [(start, end - start)]
    if reached < end:
        missing.append((reached, end - reached))
    return missing
