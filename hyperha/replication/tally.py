"""What the records of a log stand for, file by file, for people; also of a folder nobody serves.

Counts and names; it changes nothing and decides nothing. A folder that is not covered is read
without being opened for writing: not a byte, stamp or name in it becomes another.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from hyperha.domain import Marker
from hyperha.errors import RefusedError
from hyperha.replication import identity, syscalls
from hyperha.replication.control import Candidate, CandidatesTold
from hyperha.replication.entries import PRIVATE_NAME
from hyperha.replication.intent_file import Reading, read_log
from hyperha.replication.marker import DamagedMarker, read_marker
from hyperha.replication.operations import NO_ID, ROOT_ID, FileId, Record, RecordKind
from hyperha.replication.safety.saver import reserve_bytes
from hyperha.replication.trees import walk
from hyperha.replication.wire import ZONE_BYTES
from hyperha.text import clean_bytes

LISTED: Final = 300
"""Candidates that are told one by one."""
_NOT_CONTENT: Final = {PRIVATE_NAME, b"lost+found"}
_DIRECTORY: Final = os.O_RDONLY | syscalls.O_DIRECTORY | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Tally:
    """Candidates of one log, those with most bytes first; None: everything is one."""

    candidates: tuple[Candidate, ...] | None

    @property
    def bytes(self) -> int:
        """What is compared of their data at most."""
        return sum(one.bytes for one in self.candidates or ())


@dataclass(frozen=True, slots=True)
class PlainFolder:
    """What was found in a folder that nobody serves."""

    reading: Reading
    tally: Tally
    empty: bool
    """Nothing in it but what hyperha or the file system put there."""
    marker: Marker | DamagedMarker | None
    free_bytes: int
    reserve_bytes: int
    """What safety copies leave free."""


def tally(
    records: Iterable[Record] | None,
    size: Callable[[FileId], int | None],
    path: Callable[[FileId], str],
) -> Tally:
    """The records by file. `size`: of a file, None when it is not there any more."""
    if records is None:
        return Tally(None)
    zones: dict[FileId, set[int]] = {}
    whole: set[FileId] = set()
    names: set[FileId] = set()
    for record in records:
        if record.kind is RecordKind.ZONE:
            zones.setdefault(record.file, set()).add(record.zone)
        elif record.kind is RecordKind.WHOLE_FILE:
            whole.add(record.file)
        else:
            names.add(record.file)
    found = []
    for file in sorted({*zones, *whole, *names}):
        length = (size(file) or 0) if file in whole or file in zones else 0
        parts = (length - zone * ZONE_BYTES for zone in zones.get(file, ()))
        span = length if file in whole else sum(max(0, min(ZONE_BYTES, one)) for one in parts)
        found.append(Candidate(path(file), span, file in whole, file in names))
    return Tally(tuple(sorted(found, key=lambda one: (-one.bytes, one.path))))


def told(request: int, base: str, found: Tally) -> CandidatesTold:
    """The answer to a question for the candidates."""
    listed = found.candidates or ()
    everything = found.candidates is None
    return CandidatesTold(request, everything, base, len(listed), found.bytes, listed[:LISTED])


def read_plain_folder(folder: str, resource: str) -> PlainFolder:
    """The log of a folder that nobody serves, with paths and sizes; blocks on the disk.

    Raises RefusedError when a mount covers it, OSError when it cannot be read.
    """
    root = os.open(folder, _DIRECTORY)
    try:
        if syscalls.file_system_type(root) == syscalls.FUSE_SUPER_MAGIC:
            raise RefusedError(f"{folder} is covered by a mount", "Ask the module instead.")
        reading = _read_log(root, resource)
        wanted = {one.file for one in reading.records or ()} - {ROOT_ID}
        known = _find(root, wanted)
        known[ROOT_ID] = (".", 0)

        def path(file: FileId) -> str:
            return known[file][0] if file in known else f"(removed) {file.hex()}"

        found = tally(reading.records, lambda file: known.get(file, ("", None))[1], path)
        empty = not {os.fsencode(name) for name in os.listdir(root)} - _NOT_CONTENT
        return PlainFolder(reading, found, empty, read_marker(root), *room_of(root))
    finally:
        os.close(root)


def _read_log(root: int, resource: str) -> Reading:
    try:
        private = os.open(PRIVATE_NAME, _DIRECTORY, dir_fd=root)
    except FileNotFoundError:
        return Reading(None, problem="there is no .hyperha in it")
    try:
        return read_log(private, resource)
    finally:
        os.close(private)


def room_of(folder: int) -> tuple[int, int]:
    """Bytes that are free on a folder's file system, and how many safety copies leave free."""
    room = os.fstatvfs(folder)
    return room.f_bavail * room.f_frsize, reserve_bytes(room)


def _find(root: int, wanted: set[FileId]) -> dict[FileId, tuple[str, int | None]]:
    """Path and size of each wanted file that is there."""
    found: dict[FileId, tuple[str, int | None]] = {}
    if not wanted:
        return found
    privileged = os.geteuid() == 0
    for met in walk(root, without=PRIVATE_NAME):
        try:
            handle, _ = syscalls.file_handle(met.parent, met.name)
            file = identity.read_id(met.parent, met.name, handle, privileged)
            if file != NO_ID and file in wanted and file not in found:
                status = os.stat(met.name, dir_fd=met.parent, follow_symlinks=False)
                found[file] = (clean_bytes(met.path), status.st_size)
        except FileNotFoundError:
            continue
        if len(found) == len(wanted):
            break
    return found


def tree_bytes(root: int) -> int:
    """The sizes of all regular files below a descriptor of a plain folder, each inode once."""
    seen: set[int] = set()
    total = 0
    for met in walk(root, without=PRIVATE_NAME):
        try:
            status = os.stat(met.name, dir_fd=met.parent, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_ino not in seen:
            seen.add(status.st_ino)
            total += status.st_size
    return total
