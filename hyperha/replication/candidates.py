"""What a resync still has to look at: directories, inodes, and zones or whole files (Z4, R13).

Shared between the resync's thread and the data path, which adds what live changes make necessary;
guarded by the pipeline's lock. It reads no files.
"""

from __future__ import annotations

import stat
import threading
from typing import Final

from hyperha.errors import ReplicationError
from hyperha.replication.operations import NO_ID, ROOT_ID, FileId, Record, RecordKind
from hyperha.replication.wire_changes import Listing

_ATTEMPTS: Final = 20
"""How often one object may be unsettled before directories are listed at one position."""
_STILL: Final = 10
"""How often it may then, before the resync gives up."""


class Candidates:
    """The work left. `everything`: the whole tree is visited from the root."""

    def __init__(self, lock: threading.Lock, records: list[Record], *, everything: bool) -> None:
        self.everything = everything
        self._lock = lock
        self._pending: set[FileId] = {ROOT_ID} if everything else set()
        self._visited: set[FileId] = set()
        self._seen: set[FileId] = set()
        self._inodes: set[FileId] = set()
        self._files: dict[FileId, set[int] | None] = {}
        self._attempts: dict[Record, int] = {}
        self._restless = False
        """Something was not settled often enough: the guest may undo it each time."""
        for record in records:
            self._add(record)

    def count(self) -> int:
        """Objects left, for people."""
        with self._lock:
            zones = sum(1 if one is None else len(one) for one in self._files.values())
            return len(self._pending) + len(self._inodes) + zones

    def any(self) -> bool:
        """Whether anything is left."""
        with self._lock:
            return self.left()

    def left(self) -> bool:
        """The same, for a caller who has the lock."""
        return bool(self._pending or self._inodes or self._files)

    def add(self, record: Record) -> None:
        """One candidate more."""
        with self._lock:
            self._add(record)

    def _add(self, record: Record) -> None:
        file = record.file
        if record.kind is RecordKind.DIRECTORY:
            self._pending.add(file)
        elif record.kind is RecordKind.INODE:
            self._inodes.add(file)
        elif record.kind is RecordKind.WHOLE_FILE:
            self._files[file] = None
        else:
            zones = self._files.setdefault(file, set())
            if zones is not None:
                zones.add(record.zone)

    def again(self, record: Record) -> None:
        """The target could not settle it. Raises ReplicationError when that does not end."""
        with self._lock:
            attempts = self._attempts.get(record, 0) + 1
            self._attempts[record] = attempts
            if attempts > _ATTEMPTS + _STILL:
                raise ReplicationError(
                    f"{record.kind.name.lower()} {record.file.hex()} cannot be made equal "
                    f"after {attempts - 1} attempts, of the last {_STILL} each while the guest "
                    "waited",
                    "The other node's log may say what it meets there.",
                )
            self._restless = self._restless or attempts >= _ATTEMPTS
            self._add(record)

    def note_live(self, records: tuple[Record, ...]) -> None:
        """A live change went into the stream; the caller has the lock.

        On a directory not yet reconciled the target may not have been able to do it, or have done
        it to another inode: all that it names is looked at again afterwards (R13).
        """
        directories = [one.file for one in records if one.kind is RecordKind.DIRECTORY]
        if all(self._is_settled(one) for one in directories):
            return
        for record in records:
            known = record.kind is not RecordKind.DIRECTORY or record.file in self._visited
            if known or not self.everything:
                self._add(record)

    def _is_settled(self, directory: FileId) -> bool:
        if directory in self._pending:
            return False
        return not self.everything or directory in self._visited

    def directories(self) -> list[FileId] | None:
        """The directories to be listed now; each stays pending until `listed`. None: no more."""
        with self._lock:
            return list(self._pending) or None

    def restless(self) -> list[FileId]:
        """Directories that are equal one by one, but not all at once: a guest moves names between
        them without end. To be listed at one position, so that what it does behind it finds all of
        them equal (R13). Empty as long as it goes without."""
        with self._lock:
            if not self._restless:
                return []
            self._restless = False
            tried = {one.file for one in self._attempts if one.kind is RecordKind.DIRECTORY}
            return list(tried | (self._pending & self._visited))

    def listed(self, directory: FileId, listing: Listing) -> None:
        """The listing went into the stream; the caller has the lock."""
        self._pending.discard(directory)
        self._visited.add(directory)
        if not self.everything:
            return
        for entry in listing.entries:
            if entry.file == NO_ID:
                continue
            if stat.S_ISDIR(entry.attributes.mode):
                if entry.file not in self._visited:
                    self._pending.add(entry.file)
            elif stat.S_ISREG(entry.attributes.mode) and entry.file not in self._seen:
                self._seen.add(entry.file)
                self._files[entry.file] = None

    def directory_gone(self, directory: FileId) -> None:
        """It does not exist on the source (any more): its parent's listing says so."""
        with self._lock:
            self._pending.discard(directory)
            self._visited.add(directory)

    def inodes(self) -> list[FileId]:
        """Take the inodes to be sent."""
        with self._lock:
            taken, self._inodes = list(self._inodes), set()
            return taken

    def files(self) -> list[tuple[FileId, list[int] | None]]:
        """Take the files whose data is to be compared: their zones, or None for all of it."""
        with self._lock:
            taken, self._files = self._files, {}
        return [(file, None if zones is None else sorted(zones)) for file, zones in taken.items()]
