"""Makes the state that a safety copy holds anew in a folder of its own, while the module runs.

What the log has is taken from it, everything else from the live folder; then the log is looked at
once more. Since a thing is saved before it is changed, the second look proves that what was read
was still the former state. Nothing in the folder is changed.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperha.errors import FailedError, RefusedError
from hyperha.replication import syscalls
from hyperha.replication.operations import OFFSET_LIMIT
from hyperha.replication.safety.copy import (
    SafetyCopy,
    State,
    saved_inode,
    scan_listing,
)
from hyperha.replication.safety.saver import next_data
from hyperha.replication.safety.undo import restore_attributes
from hyperha.replication.safety.undo_log import (
    BATCH_BYTES,
    BLOCK_BYTES,
    BLOCK_SHIFT,
    Entry,
    Listing,
    Saved,
    SavedInode,
    decode_blocks,
    holds_data,
)
from hyperha.replication.trees import Descent

Progress = Callable[[int, int], None]
"""Bytes done and in all."""
_PATH: Final = syscalls.O_PATH | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | syscalls.O_DIRECTORY | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
_TRIES: Final = 100
_BATCH_BLOCKS: Final = BATCH_BYTES >> BLOCK_SHIFT


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """One name to be made in the target: where, and whose."""

    above: _File | None
    """Its directory; None for the target itself."""
    name: bytes
    handle: bytes
    inode: SavedInode
    depth: int = 0


class _Way:
    """The way through the directories that were made, one component at a time (M13)."""

    def __init__(self, target: int) -> None:
        self._descent = Descent(target)
        self._directories: list[_File] = []

    def to(self, directory: _File | None) -> int:
        """The descriptor of a directory, until the next call. Raises OSError."""
        missing: list[_File] = []
        while directory is not None and directory.depth and not self._passes(directory):
            missing.append(directory)
            directory = directory.above
        depth = 0 if directory is None else directory.depth
        while self._descent.depth > depth:
            self._directories.pop()
            self._descent.leave()
            if self._descent.depth != len(self._directories):
                raise OSError(errno.ESTALE, "a directory was moved away meanwhile")
        for one in reversed(missing):
            self._descent.enter(one.name)
            self._directories.append(one)
        return self._descent.descriptor

    def _passes(self, directory: _File) -> bool:
        depth = directory.depth
        return len(self._directories) >= depth and self._directories[depth - 1] is directory

    def close(self) -> None:
        self._descent.close()


class Restore:
    """One run. `progress` is called from its thread."""

    def __init__(self, root: int, copy: SafetyCopy, progress: Progress) -> None:
        self._root = root
        self._root_handle, _ = syscalls.file_handle(root)
        self._copy = copy
        self._progress = progress
        self._index = copy.read()
        self._runs: dict[bytes, _Runs] = {}
        self._made: dict[bytes, _File] = {}
        self._done = 0
        self._total = 0

    def run(self, folder: str, to: str) -> None:
        """Make the former tree in `to`, which is missing or empty and outside the folder.

        Raises RefusedError for a place that will not do, FailedError for what went wrong.
        """
        try:
            target = _prepare(folder, to)
            try:
                directories, files = self._tree()
                self._check_room(to, target, files)
                self._make(target, directories, files)
                syscalls.sync_file_system(target)
                self._check_held(to)
            except OSError as error:
                self._check_held(to)
                raise FailedError(
                    f"{to} cannot be filled: {error.strerror or error}",
                    "Delete what is there and try again.",
                ) from error
            finally:
                os.close(target)
        finally:
            self._index.log.close()

    def _check_held(self, to: str) -> None:
        """A copy that is given up says so before anything is changed that it has not saved: as long
        as it has not, everything that was read is the former state."""
        facts = self._copy.facts
        if facts.state is State.LOST:
            raise FailedError(
                f"the safety copy {facts.id} was given up meanwhile: {facts.text}",
                f"What is in {to} is not its state; delete it.",
            )

    # --- the former tree ------------------------------------------------------------------

    def _tree(self) -> tuple[list[_File], list[_File]]:
        """Both in an order in which the next one is near, however deep it is."""
        pending = [_File(None, b"", self._root_handle, self._inode(self._root_handle))]
        directories: list[_File] = []
        files: list[_File] = []
        while pending:
            one = pending.pop()
            directories.append(one)
            self._progress(0, 0)
            for name, entry in self._listing(one.handle).items():
                inode = self._inode(entry.handle)
                found = _File(one, name, entry.handle, inode, one.depth + 1)
                (pending if entry.directory else files).append(found)
        return directories, files

    def _look(self, handle: bytes) -> Saved | None:
        self._index.refresh()
        return self._index.get(handle)

    def _open(self, handle: bytes, flags: int) -> int:
        if handle == self._root_handle:
            return os.open(".", flags, dir_fd=self._root)
        return syscalls.open_handle(self._root, handle, flags)

    def _listing(self, handle: bytes) -> Listing:
        for _ in range(_TRIES):
            saved = self._look(handle)
            if saved is not None and saved.listing is not None:
                return saved.listing
            try:
                descriptor = self._open(handle, _DIRECTORY)
                try:
                    listing = scan_listing(descriptor, root=handle == self._root_handle)
                finally:
                    os.close(descriptor)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
                # It is being changed: then it is saved by now.
                continue
            saved = self._look(handle)
            if saved is None or saved.listing is None:
                return listing
        raise FailedError("a directory cannot be read, and the safety copy has not saved it")

    def _inode(self, handle: bytes) -> SavedInode:
        for _ in range(_TRIES):
            saved = self._look(handle)
            if saved is not None and saved.inode is not None:
                return saved.inode
            try:
                descriptor = self._open(handle, _PATH)
                try:
                    inode = saved_inode(descriptor, handle)
                finally:
                    os.close(descriptor)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE, errno.ENODATA):
                    raise
                continue
            saved = self._look(handle)
            if saved is None or saved.inode is None:
                return inode
        raise FailedError("an inode cannot be read, and the safety copy has not saved it")

    # --- the target -----------------------------------------------------------------------

    def _check_room(self, to: str, target: int, files: list[_File]) -> None:
        """Holes need no room; of saved files their former size counts."""
        needed = 0
        for one in {one.handle: one for one in files}.values():
            if stat.S_ISREG(one.inode.mode):
                self._total += one.inode.size
                try:
                    descriptor = self._open(one.handle, _PATH)
                except OSError:
                    needed += one.inode.size
                    continue
                used = os.fstat(descriptor).st_blocks * 512
                os.close(descriptor)
                saved = self._index.get(one.handle)
                used += 0 if saved is None else saved.count << BLOCK_SHIFT
                needed += min(used, one.inode.size)
        room = os.fstatvfs(target)
        free = room.f_bavail * room.f_frsize
        if free < needed:
            raise RefusedError(
                f"{to} has no room for the safety copy {self._copy.id}: up to {needed} bytes are "
                f"needed, {free} are free",
                "Choose a place with more room.",
            )

    def _make(self, target: int, directories: list[_File], files: list[_File]) -> None:
        way, other = _Way(target), _Way(target)
        try:
            for one in directories[1:]:
                os.mkdir(one.name, 0o700, dir_fd=way.to(one.above))
            for one in files:
                parent = way.to(one.above)
                first = self._made.setdefault(one.handle, one)
                if first is one:
                    self._make_file(parent, one)
                else:
                    _link(other.to(first.above), first.name, parent, one.name)
            for one in reversed(directories):
                _settle(way.to(one), one.inode)
        finally:
            way.close()
            other.close()

    def _make_file(self, parent: int, one: _File) -> None:
        name, mode = one.name, one.inode.mode
        if stat.S_ISREG(mode):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | syscalls.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        else:
            if stat.S_ISLNK(mode):
                link = self._open(one.handle, _PATH)
                text = os.readlink(b"", dir_fd=link)
                os.close(link)
                os.symlink(text, name, dir_fd=parent)
            else:
                os.mknod(name, stat.S_IFMT(mode) | 0o600, one.inode.rdev, dir_fd=parent)
            descriptor = os.open(name, _PATH, dir_fd=parent)
        try:
            if stat.S_ISREG(mode):
                self._content(descriptor, one)
            _settle(descriptor, one.inode)
        finally:
            os.close(descriptor)

    # --- content --------------------------------------------------------------------------

    def _content(self, made: int, one: _File) -> None:
        size = one.inode.size
        os.ftruncate(made, size)
        source = self._source(one.handle)
        at = 0
        try:
            while at < size:
                # Most of a sparse file is passed over at once.
                start = min(self._next(source, one.handle, at), size)
                end = min(start + BATCH_BYTES, size)
                runs = _data_runs(source, start, end)
                # After reading: what was not saved then had not been changed.
                self._index.refresh()
                for offset, data in runs:
                    _put(made, offset, data)
                if start < end:
                    self._overlay(made, one.handle, start, end)
                self._done += end - at
                at = end
                self._progress(self._done, self._total)
        finally:
            os.close(source)

    def _next(self, source: int, handle: bytes, at: int) -> int:
        """The first batch at or behind an offset that holds anything, by its offset."""
        found = [next_data(source, at)]
        # After looking: what was not saved then had not been changed, and what is no data was none.
        self._index.refresh()
        saved = self._index.get(handle)
        if saved is not None:
            found.append(self._taken(handle, saved).next_data(at))
            if saved.cloned:
                clone = self._copy.open_clone(handle)
                try:
                    found.append(next_data(clone, at))
                finally:
                    os.close(clone)
        first = min((one for one in found if one is not None), default=OFFSET_LIMIT)
        return max(at, first & -BATCH_BYTES)

    def _source(self, handle: bytes) -> int:
        """Where what the log has not is: the clone, or the live file. When a clone is made while
        the live file is being read, `_overlay` takes it instead."""
        saved = self._look(handle)
        if saved is not None and saved.cloned:
            return self._copy.open_clone(handle)
        return self._open(handle, os.O_RDONLY | syscalls.O_NOATIME)

    def _overlay(self, made: int, handle: bytes, start: int, end: int) -> None:
        saved = self._index.get(handle)
        if saved is None:
            return
        # The last page of a file becomes a hole only as a whole.
        end_block = min((end + BLOCK_BYTES - 1) & -BLOCK_BYTES, OFFSET_LIMIT)
        if saved.cloned:
            clone = self._copy.open_clone(handle)
            try:
                _clear(made, start, end_block)
                for offset, data in _data_runs(clone, start, end):
                    _put(made, offset, data)
            finally:
                os.close(clone)
        for run in self._runs_of(handle, saved, start >> BLOCK_SHIFT, end - 1 >> BLOCK_SHIFT):
            first = max(run.first << BLOCK_SHIFT, start)
            last = min((run.first + run.second) << BLOCK_SHIFT, end)
            _clear(made, first, last if last < end else end_block)
            for offset, data in decode_blocks(self._index.log.payload(run)):
                low, high = max(offset, first), min(offset + len(data), last)
                if low < high:
                    _put(made, low, data[low - offset : high - offset])

    def _runs_of(self, handle: bytes, saved: Saved, first: int, last: int) -> list[Entry]:
        """The entries that hold blocks of one batch of the file."""
        runs = self._taken(handle, saved)
        found = runs.wide + runs.batches.get(first // _BATCH_BLOCKS, [])
        return [run for run in found if run.first <= last and run.first + run.second > first]

    def _taken(self, handle: bytes, saved: Saved) -> _Runs:
        runs = self._runs.setdefault(handle, _Runs())
        runs.take(saved.runs)
        return runs


class _Runs:
    """A file's entries by the batch that they lie in; longer ones (holes) apart."""

    def __init__(self) -> None:
        self.batches: dict[int, list[Entry]] = {}
        self.wide: list[Entry] = []
        self._data: list[int] = []
        """First blocks of those that hold data, in order."""
        self._taken = 0

    def take(self, runs: list[Entry]) -> None:
        """Take in what is new in the list."""
        for run in runs[self._taken :]:
            first, last = run.first, run.first + run.second - 1
            if holds_data(run):
                insort(self._data, first)
            if last - first >= _BATCH_BLOCKS:
                self.wide.append(run)
            else:
                for batch in range(first // _BATCH_BLOCKS, last // _BATCH_BLOCKS + 1):
                    self.batches.setdefault(batch, []).append(run)
        self._taken = len(runs)

    def next_data(self, offset: int) -> int | None:
        """Where data is saved at or behind an offset; None when there is none."""
        # One that begins up to a batch earlier may reach beyond the offset.
        place = bisect_left(self._data, (offset >> BLOCK_SHIFT) - _BATCH_BLOCKS + 1)
        if place == len(self._data):
            return None
        return max(offset, self._data[place] << BLOCK_SHIFT)


def _prepare(folder: str, to: str) -> int:
    """Check the place, and make it where it is missing; a descriptor of it."""
    path = Path(to)
    if not path.is_absolute():
        raise RefusedError(f"{to} is not an absolute path")
    resolved, inside = Path(os.path.realpath(to)), Path(os.path.realpath(folder))
    if resolved == inside or inside in resolved.parents:
        raise RefusedError(f"{to} lies inside the folder {folder}", "Choose a place outside of it.")
    try:
        os.mkdir(resolved, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise RefusedError(f"{to} cannot be made: {error.strerror}") from error
    try:
        target = os.open(resolved, _DIRECTORY)
    except OSError as error:
        raise RefusedError(f"{to} cannot be used: {error.strerror}") from error
    if os.listdir(target):
        os.close(target)
        raise RefusedError(f"{to} is not empty", "Choose an empty or missing directory.")
    return target


def _link(first_parent: int, first: bytes, parent: int, name: bytes) -> None:
    os.link(first, name, src_dir_fd=first_parent, dst_dir_fd=parent, follow_symlinks=False)


def _settle(descriptor: int, inode: SavedInode) -> None:
    restore_attributes(descriptor, inode)
    syscalls.set_times(descriptor, mtime_ns=inode.mtime_ns)


def _data_runs(source: int, start: int, end: int) -> list[tuple[int, bytes]]:
    """Data in a range of a file that may become shorter meanwhile."""
    runs: list[tuple[int, bytes]] = []
    at = start
    while at < end:
        try:
            data = os.lseek(source, at, os.SEEK_DATA)
            hole = os.lseek(source, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = data
        while at < min(hole, end):
            piece = os.pread(source, min(hole, end) - at, at)
            if not piece:
                return runs
            runs.append((at, piece))
            at += len(piece)
        at = max(at, hole)
    return runs


def _put(made: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(made, view, offset)
        view, offset = view[written:], offset + written


def _clear(made: int, start: int, end: int) -> None:
    """Back to a hole, where the file system has any."""
    flags = syscalls.FALLOC_PUNCH_HOLE | syscalls.FALLOC_KEEP_SIZE
    try:
        syscalls.allocate(made, flags, start, end - start)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        _put(made, start, bytes(min(end, os.fstat(made).st_size) - start))
