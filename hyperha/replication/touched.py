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
_TICK_S: Final = 0.02
_STAMP: Final = struct.Struct("<8sQB16sQ")
_MAGIC: Final = b"alive\n\0\2"
_FORMER: Final = struct.Struct("<8sQB")
_FORMER_MAGIC: Final = b"alive\n\0\1"
"""Of releases that did not note the boot."""
_SIZE: Final = 512
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Stamp:
    """When the folder was last known to be ours alone, in wall-clock nanoseconds."""

    wall_ns: int
    clean: bool
    boot: bytes = b""
    """The boot of the machine that it was made in; empty when that is not known."""
    boottime_ns: int = 0
    """CLOCK_BOOTTIME of then."""

    @property
    def set_back_ns(self) -> int:
        """By how much the wall clock was set back since, as far as this boot can tell: moments
        behind the stamp may carry times that are so much earlier."""
        now = _now(clean=True)
        if not self.boot or self.boot != now.boot:
            return 0
        return max(0, self.wall_ns - self.boottime_ns - (now.wall_ns - now.boottime_ns))


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
        if len(raw) != _SIZE:
            return None
        former = raw[16 : 16 + _FORMER.size]
        if xxhash.xxh3_128_digest(former) == raw[:16]:
            magic, wall_ns, clean = _FORMER.unpack(former)
            return Stamp(wall_ns, bool(clean)) if magic == _FORMER_MAGIC else None
        body = raw[16 : 16 + _STAMP.size]
        if xxhash.xxh3_128_digest(body) != raw[:16]:
            return None
        magic, wall_ns, clean, boot, boottime_ns = _STAMP.unpack(body)
        return Stamp(wall_ns, bool(clean), boot, boottime_ns) if magic == _MAGIC else None

    def write(self, *, clean: bool, at: Stamp | None = None) -> None:
        """Stamp now, or the moment that was taken before, durably."""
        at = at or _now(clean=clean)
        body = _STAMP.pack(_MAGIC, at.wall_ns, clean, at.boot, at.boottime_ns)
        raw = xxhash.xxh3_128_digest(body) + body
        os.pwrite(self._descriptor, raw.ljust(_SIZE, b"\0"), 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _now(*, clean: bool) -> Stamp:
    with open(_BOOT_ID, encoding="ascii") as file:
        boot = bytes.fromhex(file.read().strip().replace("-", ""))
    return Stamp(time.time_ns(), clean, boot, time.clock_gettime_ns(time.CLOCK_BOOTTIME))


def last_moment(folder_fd: int) -> Stamp:
    """The end of what this node does in the folder; when it returns, every time that a file gets
    is later, though a kernel gives times of up to one of its ticks ago, and some file systems whole
    seconds only (ext3, small inodes of ext4)."""
    moment = _now(clean=True)
    time.sleep(_TICK_S)
    if _whole_seconds(folder_fd):
        time.sleep(1 - moment.wall_ns % 10**9 / 1e9)
    return moment


def _whole_seconds(folder_fd: int) -> bool:
    """Whether the file system keeps no parts of a second."""
    found = os.fstat(folder_fd)
    return not any(one % 10**9 for one in (found.st_ctime_ns, found.st_mtime_ns))


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
    limit_ns = ours_ns = stamp.wall_ns - stamp.set_back_ns
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
