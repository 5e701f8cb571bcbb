"""Which inode carries which id, and the descriptors that lead to it (Z3, M14).

An id is kept with its inode: in a trusted attribute or by the file handle, or, without rights, in a
user attribute beside a descriptor that stays open. Names, reading and writing are the `Store`'s,
which stands on this.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from hyperha.replication import identity, syscalls
from hyperha.replication.entries import PRIVATE_NAME, Descriptor
from hyperha.replication.operations import NO_ID, ROOT_ID, FileId, Target

if TYPE_CHECKING:
    from hyperha.replication.safety.guard import Guard

BENEATH: Final = syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
PATH_ONLY: Final = syscalls.O_PATH | BENEATH

_OPEN_LIMIT: Final = 256
_DESCRIPTORS: Final = 1 << 18


def _stale(file: FileId) -> OSError:
    return OSError(errno.ESTALE, f"no file carries the id {file.hex()}")


class Inodes(ABC):
    """The inodes of one folder by id. Owns a duplicate of `folder_fd` and its caches.

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

    def has_learned(self, file: FileId) -> bool:
        """Whether the id is known without a walk; what was written here and is there still, is."""
        return file in self._handles

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

    @abstractmethod
    def learn_all(self) -> None:
        """Learn every id of the folder, once."""

    # --- descriptors ----------------------------------------------------------------------

    def open_inode(self, handle: bytes) -> Descriptor:
        """An O_PATH descriptor of the inode with this handle; ESTALE when it is gone."""
        if handle == self._root_handle:
            return self._root
        if self.privileged:
            held = Descriptor(syscalls.open_handle(self._root.fd, handle, PATH_ONLY))
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
        """A descriptor (possibly an O_PATH one) of an inode, by its id or its directory entry."""
        if target.file != NO_ID:
            return self._path_descriptor(target.file)
        directory = self.directory(target.parent)
        self.check_visible(target.parent, target.name)
        held = Descriptor(os.open(target.name, PATH_ONLY, dir_fd=directory.fd))
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
