"""Puts a folder back to what it was when a safety copy was opened (R15).

State based: every step makes something equal to what the log says, so that it can be killed at any
point, started again and ends in the same state. Inodes are found by their handles wherever they
are. Nothing may be served meanwhile. Below the held descriptor only, one component at a time (M13).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from hyperha.errors import FailedError
from hyperha.replication import identity, syscalls
from hyperha.replication.entries import remove_tree
from hyperha.replication.operations import NO_ID, OFFSET_LIMIT
from hyperha.replication.safety.copy import (
    SafetyCopy,
    make_below,
    names_in,
    open_below,
    saved_inode,
    scan_listing,
)
from hyperha.replication.safety.undo_log import (
    BLOCK_BYTES,
    BLOCK_SHIFT,
    Saved,
    SavedInode,
    decode_blocks,
)
from hyperha.replication.trees import name_in, open_above

STAGE: Final = "stage"
_ASIDE: Final = "aside-"
_PATH: Final = syscalls.O_PATH | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
_PUNCH: Final = syscalls.FALLOC_PUNCH_HOLE | syscalls.FALLOC_KEEP_SIZE


class Undo:
    """One undoing of one copy. `run` is everything."""

    def __init__(self, root: int, copy: SafetyCopy) -> None:
        self._root = root
        self._copy = copy
        self._root_handle, _ = syscalls.file_handle(root)
        self._index = copy.read()
        self._now: dict[bytes, bytes] = {}
        """Directories that were made again: their handles now."""
        self._staged: dict[bytes, str] = {}
        """Directories that wait in the stage for their place, by their handles now."""
        self._stage = -1
        self._names = 0

    def run(self) -> None:
        """Undo everything; durable when this returns. OSError or HyperhaError: call it again."""
        try:
            self._begin_stage()
            listings = {
                handle: saved.listing
                for handle, saved in self._index.inodes.items()
                if not saved.created and saved.listing is not None
            }
            for handle in listings:
                self._make_again(handle)
            for handle, listing in listings.items():
                for name, one in listing.items():
                    if one.directory:
                        self._stage_misplaced(handle, name, one.handle)
            wanted = {
                handle: {name: self._now.get(one.handle, one.handle) for name, one in list_.items()}
                for handle, list_ in listings.items()
            }
            for handle, names in wanted.items():
                self._stage_extras(handle, names)
            for handle, names in wanted.items():
                self._place(handle, names)
            self._inodes(directories=False)
            self._inodes(directories=True)
            # Before what is left of the resync goes: it may hold the only durable names.
            syscalls.sync_file_system(self._root)
            self._end_stage()
        finally:
            if self._stage >= 0:
                os.close(self._stage)
            self._index.log.close()

    @property
    def made(self) -> tuple[bytes, ...]:
        """The inodes that were made again."""
        return tuple(self._now.values())

    # --- stage ----------------------------------------------------------------------------

    def _begin_stage(self) -> None:
        place = self._copy.directory
        try:
            aside = _ASIDE + os.urandom(8).hex()
            os.rename(STAGE, aside, src_dir_fd=place, dst_dir_fd=place)
        except FileNotFoundError:
            pass
        self._stage = make_below(place, STAGE)

    def _end_stage(self) -> None:
        for name in names_in(self._copy.directory):
            if name == STAGE or name.startswith(_ASIDE):
                remove_tree(self._copy.directory, name)

    def _new_name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}{self._names}"

    # --- finding --------------------------------------------------------------------------

    def _open(self, handle: bytes) -> int | None:
        """An O_PATH descriptor of an inode that has a name; None when there is none."""
        if handle == self._root_handle:
            return os.open(".", _PATH, dir_fd=self._root)
        try:
            descriptor = syscalls.open_handle(self._root, handle, _PATH)
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENOENT):
                return None
            raise
        if os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)
            return None
        return descriptor

    def _directory(self, former: bytes) -> int:
        descriptor = self._open(self._now.get(former, former))
        if descriptor is None:
            raise FailedError(
                f"a directory that the safety copy {self._copy.id} knows is gone",
                "Restore the copy to another place instead.",
            )
        try:
            return open_below(descriptor, ".")
        finally:
            os.close(descriptor)

    # --- directories ----------------------------------------------------------------------

    def _make_again(self, handle: bytes) -> None:
        found = self._open(handle)
        if found is not None:
            os.close(found)
            return
        name = self._new_name("made")
        made = make_below(self._stage, name)
        try:
            now, _ = syscalls.file_handle(made)
        finally:
            os.close(made)
        self._now[handle] = now
        self._staged[now] = name

    def _stage_misplaced(self, parent: bytes, name: bytes, child: bytes) -> None:
        """Every directory that is not in its place waits in the stage: so none has to be moved
        below itself."""
        if child in self._now:
            return
        held = self._directory(parent)
        try:
            if _handle_at(held, name) == child:
                return
        finally:
            os.close(held)
        descriptor = self._directory(child)
        try:
            above = open_above(self._root, descriptor)
            try:
                staged = self._new_name("moved")
                current = name_in(above, descriptor)
                if current is None:
                    raise FailedError("a directory of the folder has no name")
                syscalls.rename(above, current, self._stage, staged.encode(), 0)
            finally:
                os.close(above)
        finally:
            os.close(descriptor)
        self._staged[child] = staged

    def _stage_extras(self, directory: bytes, wanted: dict[bytes, bytes]) -> None:
        held = self._directory(directory)
        try:
            for name, one in scan_listing(held, root=directory == self._root_handle).items():
                if wanted.get(name) != one.handle:
                    aside = self._new_name("extra")
                    syscalls.rename(held, name, self._stage, aside.encode(), 0)
        finally:
            os.close(held)

    def _place(self, directory: bytes, wanted: dict[bytes, bytes]) -> None:
        held = self._directory(directory)
        try:
            present = scan_listing(held, root=directory == self._root_handle)
            for name in wanted.keys() - present.keys():
                staged = self._staged.get(wanted[name])
                if staged is not None:
                    syscalls.rename(self._stage, staged.encode(), held, name, 0)
                else:
                    self._link(held, name, wanted[name])
        finally:
            os.close(held)

    def _link(self, directory: int, name: bytes, handle: bytes) -> None:
        descriptor = self._open(handle)
        if descriptor is None:
            raise FailedError(
                f"{os.fsdecode(name)!r} is gone, and the safety copy {self._copy.id} has not kept "
                "it",
                "Restore what is there to another place instead.",
            )
        try:
            os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=directory)
        finally:
            os.close(descriptor)

    # --- inodes ---------------------------------------------------------------------------

    def _inodes(self, *, directories: bool) -> None:
        """Content and attributes; of directories last, since placing names changes their times."""
        for handle, saved in self._index.inodes.items():
            former = saved.inode
            if saved.created or former is None or stat.S_ISDIR(former.mode) != directories:
                continue
            descriptor = self._open(self._now.get(handle, handle))
            if descriptor is None:
                # It was in no directory of the former tree: only a descriptor held it.
                continue
            try:
                if stat.S_ISREG(former.mode):
                    self._content(descriptor, handle, saved, former)
                restore_attributes(descriptor, former)
                self._identify(descriptor, former)
                syscalls.set_times(descriptor, mtime_ns=former.mtime_ns)
            finally:
                os.close(descriptor)

    def _content(self, path: int, handle: bytes, saved: Saved, former: SavedInode) -> None:
        file = os.open(f"/proc/self/fd/{path}", os.O_RDWR | syscalls.O_NOATIME)
        try:
            if saved.cloned:
                clone = self._copy.open_clone(handle)
                try:
                    syscalls.clone_file(file, clone)
                finally:
                    os.close(clone)
            if os.fstat(file).st_size != former.size:
                os.ftruncate(file, former.size)
            for run in saved.runs:
                # Whole blocks: the last page of a file becomes a hole only as a whole.
                end = min((run.first + run.second) << BLOCK_SHIFT, OFFSET_LIMIT)
                put_back(file, run.first * BLOCK_BYTES, end, self._index.log.payload(run))
        finally:
            os.close(file)

    def _identify(self, descriptor: int, former: SavedInode) -> None:
        """The id is what it was, bound to the inode's handle of today (Z3)."""
        handle, _ = syscalls.file_handle(descriptor)
        if handle == self._root_handle:
            return
        now = identity.read_id(descriptor, b"", handle, privileged=True)
        if now == former.file:
            return
        if former.file != NO_ID:
            identity.write_id(descriptor, handle, former.file, privileged=True)
        else:
            path = b"/proc/self/fd/%d" % descriptor
            os.removexattr(path, identity.id_attribute(privileged=True))


def put_back(file: int, start: int, end: int, payload: bytes) -> None:
    """Give a range the content of a BLOCKS entry: its data, and holes where it has none."""
    at = start
    for offset, data in decode_blocks(payload):
        if offset > at:
            syscalls.allocate(file, _PUNCH, at, offset - at)
        view = memoryview(data)
        at = offset
        while view:
            written = os.pwrite(file, view, at)
            view, at = view[written:], at + written
    if at < end:
        syscalls.allocate(file, _PUNCH, at, end - at)


def restore_attributes(descriptor: int, former: SavedInode) -> None:
    """Owner, extended attributes and mode of the inode behind any descriptor, where they differ.

    In this order: a new owner clears capabilities and set-id bits, an access list changes the mode.
    """
    handle, _ = syscalls.file_handle(descriptor)
    path = b"/proc/self/fd/%d" % descriptor
    now = saved_inode(descriptor, handle)
    if (now.uid, now.gid) != (former.uid, former.gid):
        os.chown(path, former.uid, former.gid)
    wanted, present = dict(former.xattrs), dict(saved_inode(descriptor, handle).xattrs)
    for name in present.keys() - wanted.keys():
        os.removexattr(path, name)
    for name, value in wanted.items():
        if present.get(name) != value:
            syscalls.set_xattr(descriptor, name, value)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISLNK(mode) and stat.S_IMODE(mode) != stat.S_IMODE(former.mode):
        os.chmod(path, stat.S_IMODE(former.mode))


def _handle_at(directory: int, name: bytes) -> bytes:
    try:
        return syscalls.file_handle(directory, name)[0]
    except FileNotFoundError:
        return b""
