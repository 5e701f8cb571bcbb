"""What a change touches, for the secondary's own log (Z2, Z4)."""

from __future__ import annotations

from typing import Final

from hyperha.errors import ReplicationError
from hyperha.replication import syscalls
from hyperha.replication.operations import (
    NO_ID,
    Allocate,
    Change,
    Create,
    FileId,
    Link,
    Record,
    RecordKind,
    Remove,
    Rename,
    SetAttributes,
    SetTimes,
    SetXattr,
    Target,
    Truncate,
)
from hyperha.replication.store import Store
from hyperha.replication.wire import ZONE_BYTES

_ZONES_EACH: Final = 64
"""Of a change that covers more zones the whole file is recorded."""


def records_of(change: Change, store: Store) -> tuple[Record, ...]:
    """What this copy's log must know before it applies a change (Z2, Z4)."""
    if isinstance(change, Create):
        return (_directory(change.parent), Record(RecordKind.INODE, change.file))
    if isinstance(change, Link):
        return (_directory(change.parent), *_inode(change.source))
    if isinstance(change, Remove):
        return (_directory(change.parent),)
    if isinstance(change, Rename):
        return (_directory(change.old_parent), _directory(change.new_parent))
    if isinstance(change, SetAttributes | SetXattr):
        return _inode(change.inode)
    if isinstance(change, SetTimes):
        return (Record(RecordKind.INODE, change.file),)
    if isinstance(change, Truncate):
        return (Record(RecordKind.INODE, change.file), *_cut(change, store))
    if isinstance(change, Allocate):
        inode = Record(RecordKind.INODE, change.file)
        if not change.mode & (syscalls.FALLOC_PUNCH_HOLE | syscalls.FALLOC_ZERO_RANGE):
            # Only room is taken: a resync gives it to an inode that is a candidate.
            return (inode,)
        return (inode, *_range(change.file, change.offset, change.offset + change.length))
    raise ReplicationError(f"unknown change {type(change).__name__}")


def _directory(file: FileId) -> Record:
    return Record(RecordKind.DIRECTORY, file)


def _inode(target: Target) -> tuple[Record, ...]:
    if target.file == NO_ID:
        return (_directory(target.parent),)
    return (Record(RecordKind.INODE, target.file),)


def _cut(change: Truncate, store: Store) -> tuple[Record, ...]:
    """The zones whose data a truncation takes away."""
    try:
        former = store.attributes(Target(change.file)).size
    except OSError:
        return (Record(RecordKind.WHOLE_FILE, change.file),)
    return _range(change.file, change.size, max(change.size, former))


def _range(file: FileId, start: int, end: int) -> tuple[Record, ...]:
    if end <= start:
        return ()
    first, last = start // ZONE_BYTES, (end - 1) // ZONE_BYTES
    if last - first >= _ZONES_EACH:
        return (Record(RecordKind.WHOLE_FILE, file),)
    return tuple(Record(RecordKind.ZONE, file, zone) for zone in range(first, last + 1))
