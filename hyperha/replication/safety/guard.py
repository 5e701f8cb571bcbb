"""Asked before every change of the folder while there are safety copies (R15).

What a change destroys is saved durably for each copy that lacks it. When that fails, a copy that
is required stops the change, and any other one is given up, so that nobody waits for room. One that
holds what nobody else has is never given up for want of room: where it is kept, the change meets a
full disk like any other (N3, D11). It does not change the folder, apart from a name in `files` for
an inode that loses its last one.

Thread-safe. The bound methods that take no descriptor resolve ids through the store that is passed.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from hyperha.core.facts import Shortage
from hyperha.errors import FailedError, HyperhaError, ReplicationError
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
from hyperha.replication.runs import runs
from hyperha.replication.safety.copy import State
from hyperha.replication.safety.saver import Saver, full_disk, is_regular
from hyperha.replication.safety.undo_log import BLOCK_SHIFT

if TYPE_CHECKING:
    from hyperha.replication.store import Store

_ZONE_BYTES: Final = 1 << 20
_END: Final = 1 << 63
"""Behind all that a file can hold."""
_EXCHANGE: Final = 2
_NOT_HERE: Final = (
    errno.ENOENT,
    errno.ESTALE,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EINVAL,
    errno.ELOOP,
    errno.EXDEV,
    errno.ENAMETOOLONG,
)
_DIRECTORY: Final = os.O_RDONLY | syscalls.O_DIRECTORY | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC


class NotSaved(ReplicationError):
    """A change was not made, since a required copy has no room for what it destroys (N3)."""

    def __init__(self, text: str, lacks: Shortage) -> None:
        super().__init__(text, "Make room on the folder's file system; the resync goes on then.")
        self.lacks = lacks


class Guard:
    """The savers of one folder's copies. `failed` gives one up or says that it must not be (the
    last argument: for want of room); `drop_lost` frees what one that was given up has left;
    `serving`: single writes of a guest come here, each of which waits for the disk."""

    def __init__(
        self,
        failed: Callable[[Saver, str, bool], bool],
        drop_lost: Callable[[], bool],
        serving: Callable[[], bool],
    ) -> None:
        self.lock = threading.RLock()
        self.tidying = threading.Lock()
        """Held by who deletes what a resync has moved aside, and by an undo."""
        self._failed = failed
        self._drop_lost = drop_lost
        self._serving = serving
        self._savers: tuple[Saver, ...] = ()

    def set_savers(self, savers: Iterable[Saver]) -> None:
        """From now on these are guarded."""
        with self.lock:
            self._savers = tuple(savers)

    @property
    def savers(self) -> tuple[Saver, ...]:
        """What is guarded now."""
        return self._savers

    # --- by descriptor --------------------------------------------------------------------

    def saved(self, handle: bytes, offset: int, length: int) -> bool:
        """Whether a write destroys nothing that is not saved: it has not to wait for a disk."""
        with self.lock:
            return all(one.saved(handle, offset, length) for one in self._savers)

    def data(self, descriptor: int, handle: bytes, offset: int, length: int) -> None:
        """Before data in a range is overwritten, punched or cut off."""
        with self.lock:
            if not all(one.saved(handle, offset, length) for one in self._savers):
                if self._serving():
                    # The whole zone: the next writes to it find everything saved.
                    end = (offset + length + _ZONE_BYTES - 1) & -_ZONE_BYTES
                    offset &= -_ZONE_BYTES
                    length = end - offset
                self._each(lambda one: one.data(descriptor, handle, offset, length))

    def inode(self, descriptor: int, handle: bytes) -> None:
        """Before attributes or extended attributes change."""
        self._each(lambda one: one.inode(descriptor, handle))

    def directory(self, descriptor: int) -> None:
        """Before names in a directory change."""
        handle, _ = syscalls.file_handle(descriptor)
        self._each(lambda one: one.directory(descriptor, handle))

    def everything(self, descriptor: int, handle: bytes) -> None:
        """Before an inode is changed in any way; the descriptor of a file must be readable."""

        def save(one: Saver) -> None:
            one.inode(descriptor, handle)
            if is_regular(descriptor):
                one.data(descriptor, handle, 0, _END)

        self._each(save)

    def last_name(self, directory: int, name: bytes) -> None:
        """Before a name goes: an inode that has no other one is kept (moved, not deleted)."""
        try:
            handle, _ = syscalls.file_handle(directory, name)
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            held = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                self.directory(held)
            finally:
                os.close(held)
            return
        with self.lock:
            if status.st_nlink - self.kept_names(handle) <= 1:
                self._each(lambda one: one.last_name(directory, name, handle))

    def moved(self, directory: int, name: bytes) -> None:
        """Before a name moves to another directory: on some file systems that changes the times
        of a directory that it names."""
        try:
            held = os.open(name, _DIRECTORY, dir_fd=directory)
        except OSError:
            # No directory: what moves keeps its times; or nothing that could be moved.
            return
        try:
            self.inode(held, syscalls.file_handle(held)[0])
        finally:
            os.close(held)

    def created(self, descriptor: int) -> None:
        """After an inode was made: nothing of it needs saving."""
        handle, _ = syscalls.file_handle(descriptor)
        self._each(lambda one: one.created(handle))

    def kept_names(self, handle: bytes) -> int:
        """How many of an inode's names are only those that copies gave it."""
        return sum(handle in one.kept for one in self._savers)

    def make_room(self, *, ahead: bool = False) -> bool:
        """The disk is full: free what copies that were given up have left, then give up the oldest
        one that may be. False when there is none. `ahead`: nothing has failed yet, so the way back
        of a resync that is under way stays."""
        with self.lock:
            if self._drop_lost():
                return True
            for one in self._savers:
                if ahead and one.copy.facts.state is not State.KEPT:
                    continue
                if self._failed(one, "the disk is full", True):
                    return True
        return False

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        """Write what was guarded before; where the disk is full, copies that may go make room."""
        while True:
            try:
                written = os.pwrite(descriptor, data, offset)
            except OSError as error:
                if error.errno != errno.ENOSPC or not self.make_room():
                    raise
                continue
            if written == len(data) or not self.make_room():
                return written

    def _each(self, save: Callable[[Saver], object]) -> None:
        with self.lock:
            for one in self._savers:
                try:
                    save(one)
                    one.commit()
                except (OSError, HyperhaError) as problem:
                    one.abandon()
                    self._settle(one, problem)
                except (struct.error, OverflowError) as problem:
                    # No fault of the disk: the log has no form for what it was to hold.
                    one.abandon()
                    self._settle(one, FailedError(f"it has no form in the log: {problem}"))

    def only_kept(self, descriptor: int, handle: bytes) -> bool:
        """Whether an inode has no name but those that copies keep it by: for callers it is gone."""
        kept = self.kept_names(handle)
        return kept > 0 and os.fstat(descriptor).st_nlink <= kept

    def _settle(self, one: Saver, problem: OSError | HyperhaError) -> None:
        text = (problem.strerror if isinstance(problem, OSError) else "") or str(problem)
        full = full_disk(one.copy.directory, problem)
        if self._failed(one, text, full is not None):
            return
        if full is not None and (one.copy.facts.stands or self._serving()):
            raise OSError(getattr(problem, "errno", errno.ENOSPC), text)
        text = f"what the resync would destroy cannot be saved: {text}"
        if full is not None:
            raise NotSaved(text, full.lacks)
        raise ReplicationError(text)

    # --- by id ----------------------------------------------------------------------------

    def prepare(self, store: Store, ranges: Iterable[tuple[FileId, int, int]]) -> None:
        """Save what many writes will destroy with few waits for the disk."""
        blocks: dict[FileId, set[int]] = {}
        for file, offset, length in ranges:
            touched = range(offset >> BLOCK_SHIFT, (offset + max(length, 1) - 1 >> BLOCK_SHIFT) + 1)
            blocks.setdefault(file, set()).update(touched)
        wanted = []
        for file, numbers in blocks.items():
            try:
                held, handle = store.data(file), store.handle(file)
            except OSError:
                # Not here: there is nothing of it to save.
                continue
            wanted += [(held, handle, first, count) for first, count in runs(sorted(numbers))]

        def save(one: Saver) -> None:
            for held, handle, first, count in wanted:
                offset, length = first << BLOCK_SHIFT, count << BLOCK_SHIFT
                if not one.saved(handle, offset, length):
                    one.data(held.fd, handle, offset, length)

        if wanted:
            self._each(save)

    def records(self, store: Store, records: tuple[Record, ...]) -> None:
        """Before the primary does what these records of its log announce."""
        for record in records:
            try:
                if record.kind is RecordKind.DIRECTORY:
                    held = store.directory(record.file)
                    self.directory(held.fd)
                elif record.kind is RecordKind.INODE:
                    self._attributes(store, Target(record.file))
                else:
                    whole = record.kind is RecordKind.WHOLE_FILE
                    start = 0 if whole else record.zone * _ZONE_BYTES
                    self._content(store, record.file, start, _END if whole else _ZONE_BYTES)
            except OSError as error:
                # The inode is not here (yet): the change itself says what is wrong, if anything.
                if error.errno not in _NOT_HERE:
                    raise

    def change(self, store: Store, change: Change) -> None:
        """Before a change from the primary, or of a resync, is performed."""
        try:
            self._before(store, change)
        except OSError as error:
            # What it names is not here: the change will meet the same and say so.
            if error.errno not in _NOT_HERE:
                raise

    def _before(self, store: Store, change: Change) -> None:
        if isinstance(change, Create | Link):
            held = store.directory(change.parent)
            self.directory(held.fd)
        elif isinstance(change, Remove):
            held = store.directory(change.parent)
            self.directory(held.fd)
            self.last_name(held.fd, change.name)
        elif isinstance(change, Rename):
            old, new = store.directory(change.old_parent), store.directory(change.new_parent)
            self.directory(old.fd)
            self.directory(new.fd)
            self.moved(old.fd, change.old_name)
            if change.flags & _EXCHANGE:
                self.moved(new.fd, change.new_name)
            else:
                self.last_name(new.fd, change.new_name)
        elif isinstance(change, SetAttributes | SetXattr):
            self._attributes(store, change.inode)
        elif isinstance(change, SetTimes):
            self._attributes(store, Target(change.file))
        elif isinstance(change, Truncate):
            self._content(store, change.file, change.size, _END)
        elif isinstance(change, Allocate):
            self._attributes(store, Target(change.file))
            # Also where it only allocates: what was a hole is to be one again.
            self._content(store, change.file, change.offset, change.length)
            self._content(store, change.file, change.size, _END)

    def _attributes(self, store: Store, target: Target) -> None:
        held = store.inode(target)
        handle = syscalls.file_handle(held.fd)[0]
        self.inode(held.fd, handle)

    def _content(self, store: Store, file: FileId, start: int, length: int) -> None:
        if file == NO_ID:
            return
        held = store.data(file)
        self.data(held.fd, syscalls.file_handle(held.fd)[0], start, length)
