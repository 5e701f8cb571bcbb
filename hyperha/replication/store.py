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
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

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
from hyperha.replication.operations import (
    NO_ID,
    ROOT_ID,
    Attributes,
    Change,
    FileId,
    Target,
)

if TYPE_CHECKING:
    from hyperha.replication.safety.guard import Guard

__all__ = ["PRIVATE_NAME", "Descriptor", "Entry", "Found", "Store", "attributes_of", "check_name"]

# The method `list` hides the type inside the class.
_Names = list[bytes]
_Ranges = list[tuple[int, int]]
_Scan = list[tuple[bytes, int, int]]

_OPEN_LIMIT: Final = 256
_DESCRIPTORS: Final = 1 << 18
_BENEATH: Final = syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
_PATH: Final = syscalls.O_PATH | _BENEATH


def private_directory(folder_fd: int) -> int:
    """A new descriptor of a folder's `.hyperha`, created (0700) where missing, durably: what is
    said about it elsewhere must never be older than it (R12). The caller closes it."""
    try:
        os.mkdir(PRIVATE_NAME, 0o700, dir_fd=folder_fd)
        os.fsync(folder_fd)
    except FileExistsError:
        pass
    return os.open(PRIVATE_NAME, os.O_RDONLY | syscalls.O_DIRECTORY | _BENEATH, dir_fd=folder_fd)


def _stale(file: FileId) -> OSError:
    return OSError(errno.ESTALE, f"no file carries the id {file.hex()}")


class Store:
    """The backing tree of one folder. Owns a duplicate of `folder_fd` and its caches.

    `privileged` (default: whether this process is root) decides how ids are kept: trusted
    attributes and file handles, or user attributes and one descriptor per known inode, which is
    good for a demo only (M14). Raises OSError EOPNOTSUPP where the file system has no handles.
    """

    def __init__(self, folder_fd: int, *, privileged: bool | None = None) -> None:
        self.privileged = os.geteuid() == 0 if privileged is None else privileged
        # Reopened, since a descriptor opened with O_PATH can neither list nor sync.
        root = os.open(f"/proc/self/fd/{folder_fd}", os.O_RDONLY | syscalls.O_DIRECTORY)
        self._root = Descriptor(root, directory=True)
        self._root_handle, self._mount = syscalls.file_handle(root)
        self._device = os.fstat(root).st_dev
        self._handles: dict[FileId, bytes] = {ROOT_ID: self._root_handle}
        self._ids: dict[bytes, FileId] = {self._root_handle: ROOT_ID}
        self._open: dict[FileId, Descriptor] = {}
        self._anchors: dict[bytes, Descriptor] = {}
        self._lock = threading.Lock()
        self._walked = False
        self._walking = False
        self._walk_lock = threading.RLock()
        self._noatime = syscalls.O_NOATIME
        self.guard: Guard | None = None
        """Asked before anything is changed, while there are safety copies (R15). Another thread may
        take it away: read it once."""
        _raise_descriptor_limit(self.privileged)

    # --- identity -------------------------------------------------------------------------

    def new_id(self) -> FileId:
        """A fresh random id."""
        return identity.new_id()

    def assign_id(self, inode: int | bytes, file: FileId) -> None:
        """Give an inode (descriptor or handle) the id; any id it had is replaced (Z3)."""
        held = Descriptor(os.dup(inode)) if isinstance(inode, int) else self.open_inode(inode)
        handle, _ = syscalls.file_handle(held.fd)
        guard = self.guard
        if guard is not None:
            guard.inode(held.fd, handle)
        identity.write_id(held.fd, handle, file, self.privileged)
        former = self._ids.get(handle)
        if former is not None and former != file:
            self._handles.pop(former, None)
            self._open.pop(former, None)
        self._learn(file, handle, held)

    def identify(self, parent: FileId, name: bytes) -> FileId:
        """The id of an entry; one is minted where the inode can carry it and has none."""
        entry = self.find(parent, name)
        if entry.file != NO_ID or not self.can_carry_id(entry.attributes.mode):
            return entry.file
        file = identity.new_id()
        self.assign_id(entry.handle, file)
        return file

    def can_carry_id(self, mode: int) -> bool:
        """Whether an inode of this type can carry an id: as root any, else files and folders."""
        return self.privileged or stat.S_ISREG(mode) or stat.S_ISDIR(mode)

    def known(self, file: FileId) -> bool:
        """Whether the id leads to an inode now; walks the folder once if need be."""
        try:
            self._path_descriptor(file)
        except OSError:
            return False
        return True

    def bind(self, file: FileId, parent: FileId, name: bytes) -> bool:
        """Learn where an id lives. False when the inode there does not carry that id."""
        try:
            return self.find(parent, name).file == file
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return False
            raise

    def handle(self, file: FileId) -> bytes:
        """The local file handle of an id, for log records; ESTALE when unknown."""
        handle = self._handles.get(file)
        if handle is None:
            # Also when another thread is just walking: its result is waited for.
            self.learn_all()
            handle = self._handles.get(file)
        if handle is None:
            raise _stale(file)
        return handle

    def bind_handle(self, file: FileId, handle: bytes) -> bool:
        """Learn an id from a log record. False when the inode is gone or carries another id."""
        if file == ROOT_ID:
            return handle == self._root_handle
        try:
            held = self.open_inode(handle)
            if identity.read_id(held.fd, b"", handle, self.privileged) != file:
                return False
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENOENT, errno.EINVAL):
                return False
            raise
        self._learn(file, handle, held)
        return True

    def remember(self, file: FileId, handle: bytes) -> None:
        """Trust what a predecessor of this process knew: a handle never names another inode."""
        if self.privileged and file != NO_ID:
            self._learn(file, handle)

    def forget(self, file: FileId) -> None:
        """Drop what is kept for an id whose inode lost its last name."""
        handle = self._handles.pop(file, None)
        self._open.pop(file, None)
        if handle is not None:
            self._ids.pop(handle, None)
            self._anchors.pop(handle, None)

    def forget_handle(self, handle: bytes) -> None:
        """`forget` for an inode named by its handle, with or without an id."""
        file = self._ids.get(handle)
        if file is not None:
            self.forget(file)
        self._anchors.pop(handle, None)

    def _learn(self, file: FileId, handle: bytes, held: Descriptor | None = None) -> None:
        self._handles[file] = handle
        self._ids[handle] = file
        if not self.privileged and held is not None and handle not in self._anchors:
            self._anchors[handle] = held

    # --- descriptors ----------------------------------------------------------------------

    def open_inode(self, handle: bytes) -> Descriptor:
        """An O_PATH descriptor of the inode with this handle; ESTALE when it is gone."""
        if handle == self._root_handle:
            return self._root
        if self.privileged:
            held = Descriptor(syscalls.open_handle(self._root.fd, handle, _PATH))
            guard = self.guard
            if guard is not None and guard.only_kept(held.fd, handle):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return held
        anchor = self._anchors.get(handle)
        if anchor is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return anchor

    def reopen(self, held: Descriptor, flags: int) -> int:
        """Open for data what an O_PATH descriptor names; the caller closes the result."""
        path = f"/proc/self/fd/{held.fd}"
        flags |= syscalls.O_CLOEXEC
        if self._noatime:
            try:
                return os.open(path, flags | self._noatime)
            except PermissionError:
                # O_NOATIME is for the owner or root only (Z9 asks for it where allowed).
                if self.privileged:
                    raise
        return os.open(path, flags)

    def inode(self, target: Target) -> Descriptor:
        """A descriptor (possibly O_PATH) of an inode, by its id or its directory entry."""
        if target.file != NO_ID:
            return self._path_descriptor(target.file)
        directory = self.directory(target.parent)
        self.check_visible(target.parent, target.name)
        held = Descriptor(os.open(target.name, _PATH, dir_fd=directory.fd))
        _, mount = syscalls.file_handle(held.fd)
        self._check_mount(mount, target.name)
        return held

    def directory(self, file: FileId) -> Descriptor:
        """A readable descriptor of a directory; ENOTDIR for anything else."""
        if file == ROOT_ID:
            return self._root
        held = self._open.get(file)
        if held is None:
            held = self.data(file)
        held.recent = True
        if not held.directory:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return held

    def data(self, file: FileId) -> Descriptor:
        """The cached descriptor for reading and writing a regular file, or a directory."""
        held = self._open.get(file)
        if held is not None:
            held.recent = True
            return held
        if file == ROOT_ID:
            return self._root
        held = self.open_data(self._path_descriptor(file))
        self.keep_open(file, held)
        return held

    def keep_open(self, file: FileId, held: Descriptor) -> None:
        """Put a descriptor opened for reading and writing into the cache under its id."""
        with self._lock:
            while len(self._open) >= _OPEN_LIMIT:
                self._evict_one()
            self._open[file] = held

    def _evict_one(self) -> None:
        # Second chance: a dict keeps insertion order, and what was used lately goes to its end.
        for file in list(self._open):
            held = self._open.pop(file, None)
            if held is None:
                continue
            if not held.recent:
                return
            held.recent = False
            self._open[file] = held

    def open_data(self, path: Descriptor) -> Descriptor:
        """Open for reading and, where possible, writing what an O_PATH descriptor names."""
        mode = os.fstat(path.fd).st_mode
        if stat.S_ISDIR(mode):
            return Descriptor(self.reopen(path, os.O_RDONLY), directory=True)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "only regular files and directories hold data")
        try:
            return Descriptor(self.reopen(path, os.O_RDWR), writable=True)
        except OSError as error:
            # Immutable, or not ours to write without rights: reading may still be allowed.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return Descriptor(self.reopen(path, os.O_RDONLY))

    def _path_descriptor(self, file: FileId) -> Descriptor:
        if file == ROOT_ID:
            return self._root
        held = self._open.get(file)
        if held is not None:
            return held
        return self.open_inode(self.handle(file))

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
                held = Descriptor(os.open(name, _PATH, dir_fd=directory.fd))
                self._anchors.setdefault(handle, held)
            if file != NO_ID:
                self._learn(file, handle, held)
        return handle, file, status

    def _entry(self, directory: Descriptor, name: bytes) -> Entry:
        handle, file, status = self.look(directory, name)
        return Entry(name, file, attributes_of(status), self.names_of(status, handle), handle)

    def names_of(self, status: os.stat_result, handle: bytes) -> int:
        """How many names an inode has for callers: not those that safety copies keep it by."""
        guard = self.guard
        return status.st_nlink if guard is None else status.st_nlink - guard.kept_names(handle)

    def cached(self, file: FileId) -> Descriptor | None:
        """The descriptor of a file if one is open already."""
        return self._open.get(file)

    def check_visible(self, parent: FileId, name: bytes) -> None:
        """ENOENT for the engine's own directory: it does not exist for callers."""
        if parent == ROOT_ID and name == PRIVATE_NAME:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(name))

    def _check_mount(self, mount: int, name: bytes) -> None:
        if mount != self._mount:
            raise OSError(errno.EXDEV, "another file system is mounted here", os.fsdecode(name))

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
                if error.errno in (errno.ENOENT, errno.ESTALE):
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

    def reset(self) -> None:
        """Forget what is known of inodes: they were moved or made again beside this object."""
        self._open.clear()
        self._anchors.clear()
        self._handles = {ROOT_ID: self._root_handle}
        self._ids = {self._root_handle: ROOT_ID}
        self._walked = False

    def close(self) -> None:
        """Let go of every cached descriptor; the store is not to be used afterwards."""
        self._open.clear()
        self._anchors.clear()


def _raise_descriptor_limit(privileged: bool) -> None:
    """Every open file of the guest is a descriptor here (without rights, every known inode)."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, _DESCRIPTORS) if privileged else hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (OSError, ValueError):
        # Above what the kernel gives to anybody (fs.nr_open): the hard limit it is.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
