"""Files changed while nothing was mounted: known by their ctime and a stamp of life (R14).

While a folder is covered a stamp is made durable every few seconds, and a last one at a clean end.
At the next start whatever has a later ctime was changed beside us, and is compared whole: after a
clean end all of it; after a crash what is later than a next stamp would have been, and before that
what the log has no record of, since those moments may be our own. This module reads the tree and
writes the stamp; it announces nothing and resyncs nothing.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import xxhash

from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import NO_ID, ROOT_ID, FileId, Record, RecordKind
from hyperha.replication.store import Store

NAME: Final = "alive"
INTERVAL_S: Final = 5.0
_MARGIN_NS: Final = 2_000_000_000
_STAMP: Final = struct.Struct("<8sQB")
_MAGIC: Final = b"alive\n\0\1"
_SIZE: Final = 512


@dataclass(frozen=True, slots=True)
class Stamp:
    """When the folder was last known to be ours alone, in wall-clock nanoseconds."""

    wall_ns: int
    clean: bool


@dataclass(frozen=True, slots=True)
class Touched:
    """What was found: how many inodes, and one of them for people."""

    count: int
    example: str
    everything: str = ""
    """Why nothing can be excluded; empty when single files could be told."""


class StampFile:
    """The stamp of one folder, overwritten in place (S2)."""

    def __init__(self, directory_fd: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_DSYNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(NAME, flags, 0o600, dir_fd=directory_fd)

    def read(self) -> Stamp | None:
        """The last stamp; None when there is none or it cannot be read."""
        raw = os.pread(self._descriptor, _SIZE, 0)
        body = raw[16 : 16 + _STAMP.size]
        if len(raw) != _SIZE or xxhash.xxh3_128_digest(body) != raw[:16]:
            return None
        magic, wall_ns, clean = _STAMP.unpack(body)
        return Stamp(wall_ns, bool(clean)) if magic == _MAGIC else None

    def write(self, *, clean: bool) -> None:
        """Stamp now, durably."""
        body = _STAMP.pack(_MAGIC, time.time_ns(), clean)
        raw = xxhash.xxh3_128_digest(body) + body
        os.pwrite(self._descriptor, raw.ljust(_SIZE, b"\0"), 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def record_touched(store: Store, intent: IntentLog, stamp: Stamp | None) -> Touched:
    """Make candidates of what was changed since the stamp, but not by us (R14)."""
    if intent.everything:
        return Touched(0, "")
    if stamp is None:
        intent.mark_everything()
        return Touched(0, "", "the stamp of life in .hyperha is missing or unreadable")
    if stamp.wall_ns > time.time_ns():
        intent.mark_everything()
        return Touched(0, "", "the clock went back since the folder was last in use")
    limit_ns = ours_ns = stamp.wall_ns
    if not stamp.clean:
        limit_ns -= _MARGIN_NS
        # A later stamp would be there: what comes after it is none of what we did.
        ours_ns += int(INTERVAL_S * 1e9) + _MARGIN_NS
    # What only the attributes are known of may have got other data.
    known = {one.file for one in intent.candidates() or () if one.kind is not RecordKind.INODE}
    records: list[Record] = []
    count, example = 0, ""
    for parent, name, path, directory, changed_ns in _later_than(store, limit_ns):
        file = store.find(parent, name).file if name else ROOT_ID
        if file in known and changed_ns <= ours_ns:
            continue
        count += 1
        example = example or path
        if file == NO_ID:
            records.append(Record(RecordKind.DIRECTORY, parent))
        elif directory:
            records += (Record(RecordKind.DIRECTORY, file), Record(RecordKind.INODE, file))
        else:
            records += (Record(RecordKind.WHOLE_FILE, file), Record(RecordKind.INODE, file))
    if records:
        intent.activate(records, 0)
        intent.retain()
    return Touched(count, example)


def _later_than(store: Store, limit_ns: int) -> Iterator[tuple[FileId, bytes, str, bool, int]]:
    """(directory's id, name, path, whether a directory, ctime) of what has a later ctime.

    In a directory without an id nothing can be named: it counts itself, and is compared below.
    """
    root = store.directory(ROOT_ID)
    changed_ns = os.fstat(root.fd).st_ctime_ns
    if changed_ns > limit_ns:
        yield ROOT_ID, b"", ".", True, changed_ns
    pending: list[tuple[FileId, str]] = [(ROOT_ID, "")]
    while pending:
        parent, prefix = pending.pop()
        held = store.directory(parent)
        # Not by this descriptor: what came since it was opened may not be shown (btrfs).
        for name, _, _ in store.scan(held):
            status = os.stat(name, dir_fd=held.fd, follow_symlinks=False)
            directory = stat.S_ISDIR(status.st_mode)
            path = prefix + os.fsdecode(name)
            if status.st_ctime_ns > limit_ns:
                yield parent, name, path, directory, status.st_ctime_ns
            if directory:
                file = store.find(parent, name).file
                if file != NO_ID:
                    pending.append((file, f"{path}/"))
