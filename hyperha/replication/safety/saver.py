"""Saves for one safety copy what is about to be changed, each thing at its first touch (R15).

`Saver` stages entries and makes them durable together; only then the caller may change anything.
It raises OSError when that fails, with the copy as whole as it was before.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from hyperha.core.facts import Shortage
from hyperha.errors import HyperhaError
from hyperha.replication import syscalls
from hyperha.replication.safety.copy import SafetyCopy, saved_inode, scan_listing
from hyperha.replication.safety.undo_log import (
    BATCH_BYTES,
    BLOCK_BYTES,
    BLOCK_SHIFT,
    STATES,
    Entry,
    Index,
    Kind,
    Saved,
    SavedInode,
    encode_blocks,
    encode_listing,
)
from hyperha.replication.steps import step

_BATCH_BLOCKS: Final = BATCH_BYTES >> BLOCK_SHIFT
_CLONED_FROM: Final = 16
"""Blocks: smaller files are not worth a clone."""
_NOTHING: Final = Saved()
_RESERVE_BYTES: Final = 1 << 30
_RESERVE_PART: Final = 20


def reserve_bytes(room: os.statvfs_result) -> int:
    """What safety copies leave free on a file system: a twentieth, at most 1 GiB."""
    return min(_RESERVE_BYTES, room.f_blocks * room.f_frsize // _RESERVE_PART)


class NoRoom(OSError):
    """Saving would take what is to stay free, or the disk is full by another measure (`text`)."""

    def __init__(self, needed: int, free: int, text: str = "") -> None:
        self.lacks = Shortage(needed, free, text)
        what = text or f"{needed} bytes needed"
        super().__init__(errno.ENOSPC, f"no room for the safety copy: {what}, {free} bytes free")


def check_room(directory: int, size: int) -> None:
    """Raise NoRoom unless `size` more bytes leave the reserve free."""
    room = os.fstatvfs(directory)
    free = room.f_bavail * room.f_frsize
    needed = size + reserve_bytes(room)
    if free < needed:
        raise NoRoom(needed, free)


def full_disk(directory: int, problem: OSError | HyperhaError) -> NoRoom | None:
    """What is short where a problem is a full disk, or a full quota; None when it is neither.

    Of a quota, and of inodes, the free bytes say nothing: then what the file system says is told.
    """
    if isinstance(problem, NoRoom):
        return problem
    cause = problem if isinstance(problem, OSError) else problem.__cause__
    if not isinstance(cause, OSError) or cause.errno not in syscalls.FULL_ERRORS:
        return None
    room = os.fstatvfs(directory)
    free = room.f_bavail * room.f_frsize
    needed = reserve_bytes(room) + BATCH_BYTES
    if room.f_files and not room.f_favail:
        text = "no inode is free"
    else:
        text = "" if free < needed else os.strerror(cause.errno)
    return NoRoom(needed, free, text)


def try_room(directory: int) -> None:
    """Raise NoRoom unless what is saved at once at most can be written: no quota is in the way
    either. By an inode without a name; where none can be had, saving needs none."""
    check_room(directory, BATCH_BYTES)
    try:
        flags = os.O_TMPFILE | os.O_WRONLY | syscalls.O_CLOEXEC
        descriptor = os.open(".", flags, 0o600, dir_fd=directory)
    except OSError:
        return
    try:
        syscalls.allocate(descriptor, 0, 0, BATCH_BYTES)
    except OSError as problem:
        lacks = full_disk(directory, problem)
        if lacks is not None:
            raise lacks from problem
    finally:
        os.close(descriptor)


def shortage(directory: int) -> Shortage | None:
    """The reserve and what is free of it; None when all of it is."""
    try:
        check_room(directory, 0)
    except NoRoom as problem:
        return problem.lacks
    return None


class Saver:
    """The writer of one copy's log. Not thread-safe: `Guard` takes turns."""

    def __init__(self, copy: SafetyCopy, root: bytes) -> None:
        self.copy = copy
        self.kept = copy.kept()
        """Inodes that have a name in `files`."""
        self.clones = 0
        """How often a file was cloned instead of saved by blocks."""
        self._root = root
        self._can_clone = True
        log = copy.open_log()
        self._log = log
        self._index = Index(log, runs=False)
        try:
            self._index.refresh()
            log.cut()
        except (OSError, HyperhaError):
            # Held open, its room would not be free when it is deleted.
            log.close()
            raise
        self._staged: list[bytes] = []
        self._entries: list[tuple[Entry, bytes]] = []
        self._keys: set[tuple[Kind, bytes]] = set()
        self._fresh: dict[bytes, SavedInode] = {}
        """Attributes that are staged."""
        self._news: set[bytes] = set()
        """Created inodes that are staged."""
        self._urgent = False
        """Something is to be changed that one of these must be known for."""
        self._bytes = 0

    @property
    def log_bytes(self) -> int:
        """How long the log is."""
        return self._log.end

    @property
    def files(self) -> int:
        """Inodes of which something is saved."""
        return sum(not one.created for one in self._index.inodes.values())

    @property
    def empty(self) -> bool:
        """Whether nothing was touched since the copy was opened."""
        return not self._index.inodes and not self.kept

    # --- what is to be saved --------------------------------------------------------------

    def saved(self, handle: bytes, offset: int, length: int) -> bool:
        """Whether a write to this range destroys nothing that is not saved."""
        saved = self._index.inodes.get(handle)
        if saved is None:
            return False
        if saved.created:
            return True
        if saved.inode is None:
            return False
        end = min(offset + length, saved.inode.size)
        return offset >= end or not saved.missing(offset >> BLOCK_SHIFT, (end - 1) >> BLOCK_SHIFT)

    def is_new(self, handle: bytes) -> bool:
        """Whether the inode was created after the copy was opened."""
        saved = self._index.inodes.get(handle)
        return saved is not None and saved.created

    def created(self, handle: bytes) -> None:
        """An inode was created. Durable with what is saved next; lost, it costs only room, but of
        a directory it is durable before anything gets a name in it."""
        self._note(Kind.CREATED, handle)
        saved = self._index.inodes.setdefault(handle, Saved())
        saved.created = True
        self._news.add(handle)

    def inode(self, descriptor: int, handle: bytes) -> SavedInode | None:
        """Save attributes; what they were, or None of an inode that is new."""
        saved = self._index.inodes.get(handle)
        if saved is not None and saved.created:
            return None
        known = self._fresh.get(handle) if saved is None else saved.inode
        if known is None:
            known = self._fresh[handle] = saved_inode(descriptor, handle)
            self._note(Kind.INODE, handle, known.encode())
        return known

    def directory(self, descriptor: int, handle: bytes) -> None:
        """Save the listing of a directory, and its attributes."""
        saved = self._index.inodes.get(handle)
        if saved is not None and (saved.created or saved.listing is not None):
            # Else what is moved into it would be taken for its own after a crash.
            self._urgent = self._urgent or handle in self._news
            return
        self.inode(descriptor, handle)
        if (Kind.DIRECTORY, handle) not in self._keys:
            listing = scan_listing(descriptor, root=handle == self._root)
            self._note(Kind.DIRECTORY, handle, encode_listing(listing))

    def data(self, descriptor: int, handle: bytes, offset: int, length: int) -> None:
        """Save what a range of a regular file holds; the descriptor must be readable."""
        former = self.inode(descriptor, handle)
        end = 0 if former is None else min(offset + length, former.size)
        if former is None or offset >= end or (Kind.CLONE, handle) in self._keys:
            return
        saved = self._index.inodes.get(handle, _NOTHING)
        missing = saved.missing(offset >> BLOCK_SHIFT, (end - 1) >> BLOCK_SHIFT)
        if not missing or self._clone(descriptor, handle, former.size, saved.count, missing):
            return
        for first, count in missing:
            self._blocks(descriptor, handle, former.size, first, count)

    def _clone(
        self,
        descriptor: int,
        handle: bytes,
        size: int,
        saved_blocks: int,
        missing: list[tuple[int, int]],
    ) -> bool:
        """Clone the file when more than a quarter of it would be saved by blocks otherwise."""
        total = (size + BLOCK_BYTES - 1) >> BLOCK_SHIFT
        wanted = saved_blocks + sum(count for _, count in missing)
        if not self._can_clone or total < _CLONED_FROM or wanted * 4 <= total:
            return False
        # What is staged of it stands before the clone in the log.
        self.commit()
        self._can_clone = self.copy.clone(descriptor, handle)
        if self._can_clone:
            self.clones += 1
            self._note(Kind.CLONE, handle)
        return self._can_clone

    def _blocks(self, descriptor: int, handle: bytes, size: int, first: int, count: int) -> None:
        at, stop = first, first + count
        while at < stop:
            data = next_data(descriptor, at << BLOCK_SHIFT)
            holes = (stop if data is None else min(data >> BLOCK_SHIFT, stop)) - at
            number = holes or min(_BATCH_BLOCKS, stop - at)
            runs: list[tuple[int, bytes]] = []
            if not holes:
                end = min((at + number) << BLOCK_SHIFT, size)
                runs = _read_runs(descriptor, at << BLOCK_SHIFT, end)
            self._note(Kind.BLOCKS, handle, encode_blocks(runs), at, number)
            at += number

    def last_name(self, directory: int, name: bytes, handle: bytes) -> None:
        """Keep the inode of a name that is about to go and is its last one."""
        if self.is_new(handle) or handle in self.kept:
            return
        self.copy.keep(directory, name, handle)
        self.kept.add(handle)

    def release(self, kept_names: Callable[[bytes], int]) -> None:
        """Let go of the inodes that have names of their own again, after an undo. `kept_names`:
        how many names of an inode are only copies'."""
        found = [one for one in self.kept if self.copy.names(one) > kept_names(one)]
        for handle in found:
            self.copy.release(handle)
            self.kept.discard(handle)

    # --- durable --------------------------------------------------------------------------

    def _note(
        self, kind: Kind, handle: bytes, payload: bytes = b"", first: int = 0, second: int = 0
    ) -> None:
        raw = self._log.entry(kind, handle, payload, first, second)
        step()
        if self._bytes and self._bytes + len(raw) > BATCH_BYTES:
            self.commit()
        self._staged.append(raw)
        kept = payload if kind in STATES else b""
        self._entries.append((Entry(kind, handle, first, second, 0, 0, b""), kept))
        self._keys.add((kind, handle))
        self._bytes += len(raw)

    def commit(self) -> None:
        """Make what was staged durable. OSError: it is not, and nothing may be changed."""
        only_news = all(entry.kind is Kind.CREATED for entry, _ in self._entries)
        if only_news and not self._urgent and self._bytes < BATCH_BYTES:
            return
        raw, entries, news = b"".join(self._staged), self._entries, self._news
        self._reset()
        try:
            if not self.copy.facts.stands:
                check_room(self.copy.directory, len(raw))
            self.copy.renew()
            self._log.append(raw)
        except OSError:
            self._news = news
            raise
        for entry, payload in entries:
            self._index.add(entry, payload)

    def abandon(self) -> None:
        """Forget what is staged, but not what was created."""
        news = self._news
        self._reset()
        for handle in news:
            self._note(Kind.CREATED, handle)
        self._news = news

    def _reset(self) -> None:
        self._staged, self._entries, self._bytes = [], [], 0
        self._keys.clear()
        self._fresh.clear()
        self._news = set()
        self._urgent = False

    def close(self) -> None:
        """Close the log; the copy stays open."""
        self._log.close()


def next_data(descriptor: int, offset: int) -> int | None:
    """Where data begins at or after an offset; None when there is none."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _read_runs(descriptor: int, start: int, end: int) -> list[tuple[int, bytes]]:
    """The data in a range, without the holes."""
    runs: list[tuple[int, bytes]] = []
    at = start
    while at < end and (data := next_data(descriptor, at)) is not None and data < end:
        hole = min(os.lseek(descriptor, data, os.SEEK_HOLE), end)
        at = data
        while at < hole:
            piece = os.pread(descriptor, hole - at, at)
            if not piece:
                raise OSError(errno.EIO, "a file that is being saved became shorter")
            runs.append((at, piece))
            at += len(piece)
    return runs


def is_regular(descriptor: int) -> bool:
    """Whether a regular file is behind the descriptor."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)
