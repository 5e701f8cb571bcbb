"""Room that fallocate has reserved and nobody has written yet: a resync copies it, too.

A hypervisor that was promised room for a thick image must not meet a full disk on the other node
after a failover. To a reader such room is a hole; ext4, xfs and btrfs tell it by FIEMAP. Where a
file system cannot tell or cannot reserve, nothing is copied and nobody is troubled: there nothing
could be promised either. A target that has less room than the source fails as with any write.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from hyperha.replication import syscalls
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import Allocate, FileId, Record, RecordKind
from hyperha.replication.store import Store

_CANNOT: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL)

_Ranges = list[tuple[int, int]]


def kept(store: Store, file: FileId, start: int, end: int) -> tuple[_Ranges, int]:
    """(offset, length) of some of the room without data in [start, end), and where to ask on."""
    held = store.data(file)
    try:
        found, following = syscalls.extents(held.fd, start, end)
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


def take(store: Store, intent: IntentLog, number: int, wanted: tuple[FileId, int, int]) -> None:
    """Keep room in a range (file, offset, length) of this copy, as far as there is none yet."""
    file, offset, length = wanted
    missing = _missing(store, file, offset, offset + length)
    if not missing:
        return
    intent.activate([Record(RecordKind.INODE, file)], number)
    for start, size in missing:
        status = os.fstat(store.data(file).fd)
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
