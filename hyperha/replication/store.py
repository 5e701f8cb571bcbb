"""The folder's files by id: the backing tree below the held folder descriptor (Z3, M13).

While a module is started the mount covers the folder's path; the plain files are reached only
through the descriptor that was opened before. The FUSE session (primary), the applier (secondary)
and resync (both) read and change them through `Store`. Every name is resolved one component at a
time below that descriptor, links are never followed, no other mount is entered, and `.hyperha` and
the attributes of hyperha do not exist for callers. Nothing here knows of peers, logs or roles.

Thread-safe: descriptors are closed when their last user drops them. Errors are OSError with errno;
ESTALE means that no inode carries the id.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from hyperha.replication import identity, syscalls
from hyperha.replication.entries import (
    PRIVATE_NAME,
    Descriptor,
    Entry,
    Found,
    attributes_of,
    check_name,
    type_of,
)
from hyperha.replication.inodes import BENEATH, PATH_ONLY, Inodes
from hyperha.replication.operations import (
    NO_ID,
    OFFSET_LIMIT,
    ROOT_ID,
    Attributes,
    Change,
    FileId,
    Target,
)
from hyperha.replication.steps import step
from hyperha.replication.trees import walk

__all__ = ["PRIVATE_NAME", "Descriptor", "Entry", "Found", "Store", "attributes_of", "check_name"]

# The method `list` hides the type inside the class.
_Names = list[bytes]
_Ranges = list[tuple[int, int]]
_Scan = list[tuple[bytes, int, int]]


def private_directory(folder_fd: int) -> int:
    """A new descriptor of a folder's `.hyperha`, created (0700) where missing, durably: what is
    said about it elsewhere must never be older than it (R12). The caller closes it."""
    try:
        os.mkdir(PRIVATE_NAME, 0o700, dir_fd=folder_fd)
        os.fsync(folder_fd)
    except FileExistsError:
        pass
    return os.open(PRIVATE_NAME, os.O_RDONLY | syscalls.O_DIRECTORY | BENEATH, dir_fd=folder_fd)


class Store(Inodes):
    """The backing tree of one folder: its names, and what is read from its inodes and written."""

    # --- identity by name -----------------------------------------------------------------

    def identify(self, parent: FileId, name: bytes) -> FileId:
        """The id of an entry; one is minted where the inode can carry it and has none."""
        entry = self.find(parent, name)
        if entry.file != NO_ID or not self.can_carry_id(entry.attributes.mode):
            return entry.file
        file = identity.new_id()
        self.assign_id(entry.handle, file)
        return file

    def bind(self, file: FileId, parent: FileId, name: bytes) -> bool:
        """Learn where an id lives. False when the inode there does not carry that id."""
        try:
            return self.find(parent, name).file == file
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return False
            raise

    def private_directory(self) -> int:
        """A new descriptor of `.hyperha`, created where missing; the caller closes it."""
        return private_directory(self._root.fd)

    # --- names ----------------------------------------------------------------------------

    def find(self, parent: FileId, name: bytes) -> Entry:
        """The entry `name` of a directory; ENOENT when there is none, EXDEV on another mount."""
        check_name(name)
        self.check_visible(parent, name)
        return self._entry(self.directory(parent), name)

    def list(self, directory: FileId) -> list[Entry]:
        """All entries of a directory in no order, without `.hyperha`."""
        held = self.directory(directory)
        entries = []
        for name in self.names(directory):
            try:
                entries.append(self._entry(held, name))
            except FileNotFoundError:
                # Removed between the listing and the look at it.
                continue
        return entries

    def names(self, directory: FileId) -> _Names:
        """The names in a directory, without `.hyperha`."""
        return [name for name, _, _ in self.scan(self.directory(directory))]

    def scan(self, held: Descriptor) -> _Scan:
        """Name, inode number and type (S_IFMT bits, or 0) of what a directory holds.

        On a descriptor of its own: listing moves a position that other threads may be using.
        """
        fd = os.open(".", os.O_RDONLY | syscalls.O_DIRECTORY, dir_fd=held.fd)
        try:
            with os.scandir(fd) as entries:
                found = [(os.fsencode(e.name), e.inode(), type_of(e)) for e in entries]
        finally:
            os.close(fd)
        if held is self._root:
            found = [item for item in found if item[0] != PRIVATE_NAME]
        return found

    def look(self, directory: Descriptor, name: bytes) -> tuple[bytes, FileId, os.stat_result]:
        """Handle, id and stat(2) of a checked name: `find` for who needs all that stat says."""
        handle, mount = syscalls.file_handle(directory.fd, name)
        self._check_mount(mount, name)
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        file = self._ids.get(handle)
        if file is None:
            file = identity.read_id(directory.fd, name, handle, self.privileged)
            held = None
            if not self.privileged:
                held = Descriptor(os.open(name, PATH_ONLY, dir_fd=directory.fd))
                self._anchors.setdefault(handle, held)
            if file != NO_ID:
                self._learn(file, handle, held)
        return handle, file, status

    def _entry(self, directory: Descriptor, name: bytes) -> Entry:
        step()
        handle, file, status = self.look(directory, name)
        return Entry(name, file, attributes_of(status), self.names_of(status, handle), handle)

    def names_of(self, status: os.stat_result, handle: bytes) -> int:
        """How many names an inode has for callers: not those that safety copies keep it by."""
        guard = self.guard
        return status.st_nlink if guard is None else status.st_nlink - guard.kept_names(handle)

    def walk(self) -> Iterator[Found]:
        """Every entry of the folder, a directory before what is in it.

        A directory that carries no id is reported and not entered; `identify` gives it one.
        """
        pending: list[tuple[FileId, bytes]] = [(ROOT_ID, b"")]
        while pending:
            parent, prefix = pending.pop()
            try:
                entries = self.list(parent)
            except OSError as error:
                # Gone, or looked at just when its name was given to a directory.
                if error.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
                    continue
                raise
            for entry in entries:
                path = prefix + entry.name
                yield Found(parent, path, entry)
                # Asked again: the caller may have given the directory its id just now.
                file = self._ids.get(entry.handle, entry.file)
                if entry.directory and file != NO_ID:
                    pending.append((file, path + b"/"))

    def learn_all(self) -> None:
        """Learn every id of the folder, once: after a start ids arrive that nobody has looked up.

        Nothing may be moved out of the visible tree and back meanwhile.
        """
        if self._walked:
            return
        with self._walk_lock:
            if self._walked or self._walking:
                # What vanished under this very walk is not looked for again.
                return
            self._walking = True
            try:
                for _ in self.walk():
                    pass
            finally:
                self._walking = False
            self._walked = True

    def learn_below(self, directory: Descriptor) -> None:
        """Learn the ids of what lies in a directory that is not shown, and below it; an id that
        the folder has as well stays where it is. Raises OSError."""
        for met in walk(directory.fd):
            try:
                handle, _ = syscalls.file_handle(met.parent, met.name)
                file = identity.read_id(met.parent, met.name, handle, self.privileged)
                held = Descriptor(os.open(met.name, PATH_ONLY, dir_fd=met.parent))
            except FileNotFoundError:
                continue
            if file != NO_ID and file not in self._handles:
                self._learn(file, handle, held)

    def path_of(self, file: FileId) -> bytes | None:
        """The path below the folder for a message, as far as the kernel knows it; else None."""
        try:
            root = os.readlink(b"/proc/self/fd/%d" % self._root.fd)
            held = self._path_descriptor(file)
            path = os.readlink(b"/proc/self/fd/%d" % held.fd)
        except OSError:
            return None
        return path[len(root) + 1 :] if path.startswith(root + b"/") else None

    # --- reading --------------------------------------------------------------------------

    def attributes(self, target: Target) -> Attributes:
        """The shared attributes of an inode."""
        return attributes_of(self.status(target))

    def status(self, target: Target) -> os.stat_result:
        """Everything that stat(2) says about an inode."""
        held = self.inode(target)
        return os.fstat(held.fd)

    def read(self, file: FileId, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        held = self.data(file)
        length = max(0, min(length, OFFSET_LIMIT - offset))
        data = os.pread(held.fd, length, offset)
        while 0 < len(data) < length:
            more = os.pread(held.fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_into(self, file: FileId, offset: int, room: memoryview) -> int:
        """Fill `room` from the file; how far it was filled, less only at the end of the file."""
        held = self.data(file)
        filled = 0
        room = room[: max(0, OFFSET_LIMIT - offset)]
        while filled < len(room):
            got = os.preadv(held.fd, (room[filled:],), offset + filled)
            if not got:
                break
            filled += got
        return filled

    def data_ranges(self, file: FileId, start: int, end: int) -> _Ranges:
        """The (offset, length) of data between holes in [start, end), below the end of the file."""
        held = self.data(file)
        ranges: _Ranges = []
        position = start
        while position < end:
            try:
                data = os.lseek(held.fd, position, os.SEEK_DATA)
                hole = os.lseek(held.fd, data, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            if data >= end:
                break
            ranges.append((data, min(hole, end) - data))
            position = hole
        return ranges

    def xattrs(self, target: Target) -> dict[bytes, bytes]:
        """The extended attributes of an inode, without those of hyperha."""
        held = self.inode(target)
        path = b"/proc/self/fd/%d" % held.fd
        found: dict[bytes, bytes] = {}
        try:
            names = [os.fsencode(name) for name in os.listxattr(path)]
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return found
            if error.errno == errno.E2BIG:
                shown = os.readlink(path)
                why = "has more names of extended attributes than Linux lists (64 KiB); remove some"
                raise OSError(errno.E2BIG, why, shown) from None
            raise
        for name in names:
            if identity.is_hidden_xattr(name):
                continue
            try:
                found[name] = os.getxattr(path, name)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EPERM, errno.EACCES):
                    raise
        return found

    def symlink_target(self, target: Target) -> bytes:
        """The text of a symbolic link; EINVAL for anything else."""
        held = self.inode(target)
        if not stat.S_ISLNK(os.fstat(held.fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.readlink(b"", dir_fd=held.fd)

    def statfs(self) -> os.statvfs_result:
        """Room and limits of the backing file system."""
        return os.fstatvfs(self._root.fd)

    # --- writing --------------------------------------------------------------------------

    def write(self, file: FileId, offset: int, data: bytes | memoryview) -> int:
        """Write at an offset; the number of bytes written, which is short only when disks fill."""
        held = self.data(file)
        if not held.writable:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        guard = self.guard
        if guard is not None:
            guard.data(held.fd, self.handle(file), offset, len(data))
            return guard.write(held.fd, data, offset)
        return os.pwrite(held.fd, data, offset)

    def sync(self, file: FileId, data_only: bool) -> None:
        """fsync or fdatasync of a file or directory."""
        held = self.data(file)
        if data_only:
            os.fdatasync(held.fd)
        else:
            os.fsync(held.fd)

    def sync_all(self) -> None:
        """syncfs of the backing file system (never sync(2), M9)."""
        syscalls.sync_file_system(self._root.fd)

    def start_writeback(self, file: FileId, offset: int, length: int) -> None:
        """Begin write-back of a range without waiting, so that barriers stay short (D8')."""
        held = self.data(file)
        syscalls.start_writeback(held.fd, offset, length)

    def apply(self, change: Change, *, again: bool = False) -> None:
        """Perform a change from the primary, with the ids, attributes and mtimes it carries.

        `again` accepts a change that may have been applied before (a stream replayed after a
        reconnect or by a successor, T4, N1): what is in effect already is not an error.
        """
        # Imported here because that module works on this class.
        from hyperha.replication import changes

        changes.apply(self, change, again=again)

    def created(self, descriptor: int) -> None:
        """An inode was just made: safety copies need nothing of it."""
        guard = self.guard
        if guard is not None:
            guard.created(descriptor)
