"""Creating inodes on the primary's backing as the caller would have made them (Z3, Z4).

The session runs as root for everybody: owner, set-group-id directories, umask and inherited access
lists are settled here as a local file system would, and read back to be sent.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Final

from hyperha.replication import identity, syscalls
from hyperha.replication.changes import make_inode, remove_made
from hyperha.replication.operations import NO_ID, Create, FileId, InDoubt
from hyperha.replication.store import Descriptor, Store, attributes_of

_DEFAULT_LIST: Final = "system.posix_acl_default"
_ACCESS_LIST: Final = "system.posix_acl_access"
_REWRITES: Final = syscalls.FALLOC_PUNCH_HOLE | syscalls.FALLOC_ZERO_RANGE
_HALFWAY: Final = (*syscalls.FULL_ERRORS, errno.EINTR)
"""Errors that a rewriting of a range may meet in its middle."""
_NO_LIST: Final = (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks to be created."""

    parent: FileId
    name: bytes
    mode: int
    umask: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""


@dataclass(frozen=True, slots=True)
class Made:
    """What was created: `held` is readable and writable for a regular file, else O_PATH."""

    held: Descriptor
    handle: bytes
    file: FileId
    status: os.stat_result
    change: Create


def access_list(fd: int, name: str) -> bytes | None:
    """An access list of an inode, or None."""
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", name)
    except OSError as error:
        if error.errno in _NO_LIST:
            return None
        raise


def _settled(store: Store, wish: Wish) -> tuple[Descriptor, bool, int, int]:
    """The directory, whether it hands an access list down, and the mode and group that result."""
    directory = store.directory(wish.parent)
    inherits = access_list(directory.fd, _DEFAULT_LIST) is not None
    mode = wish.mode if inherits or stat.S_ISLNK(wish.mode) else wish.mode & ~wish.umask
    gid = wish.gid
    folder = os.fstat(directory.fd)
    if folder.st_mode & stat.S_ISGID:
        gid = folder.st_gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
    return directory, inherits, mode, gid


def make_nameless(store: Store, wish: Wish, file: FileId) -> Descriptor:
    """Create a file of the id that has no name yet (O_TMPFILE); it is not replicated (Z7)."""
    directory, inherits, mode, gid = _settled(store, wish)
    flags = os.O_TMPFILE | os.O_RDWR | syscalls.O_CLOEXEC
    held = Descriptor(os.open(".", flags, stat.S_IMODE(mode), dir_fd=directory.fd), writable=True)
    identity.write_id(held.fd, syscalls.file_handle(held.fd)[0], file, store.privileged)
    _own(store, wish, held.fd, mode, gid, inherits)
    return held


def make(store: Store, wish: Wish, file: FileId, *, again: bool) -> Made:
    """Create what is wished under the id. With `again` a predecessor may have begun it (M4)."""
    directory, inherits, mode, gid = _settled(store, wish)
    folder = os.fstat(directory.fd)
    held = _adopt(store, wish, file) if again else None
    fresh = held is None
    if held is None:
        fd = make_inode(directory.fd, wish.name, mode, wish.rdev, wish.target, exact=True)
        held = Descriptor(fd, writable=stat.S_ISREG(mode))
    try:
        return _finish(store, wish, file, directory, held, mode, gid, inherits)
    except OSError:
        if fresh:
            store.forget(file)
            remove_made(directory.fd, wish.name, mode)
            # The peer hears nothing of it (Z4).
            syscalls.set_times(directory.fd, mtime_ns=folder.st_mtime_ns)
        raise


def _adopt(store: Store, wish: Wish, file: FileId) -> Descriptor | None:
    """What a predecessor created under this id, or created and could not give its id any more."""
    try:
        entry = store.find(wish.parent, wish.name)
    except FileNotFoundError:
        return None
    if entry.file not in (file, NO_ID):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(wish.name))
    held = store.open_inode(entry.handle)
    if stat.S_ISREG(entry.attributes.mode):
        return Descriptor(store.reopen(held, os.O_RDWR), writable=True)
    return held


def _own(store: Store, wish: Wish, fd: int, mode: int, gid: int, inherits: bool) -> os.stat_result:
    status = os.fstat(fd)
    wanted = stat.S_IMODE(status.st_mode if inherits else mode)
    path = f"/proc/self/fd/{fd}"
    if (status.st_uid, status.st_gid) != (wish.uid, gid):
        try:
            os.chown(path, wish.uid, gid)
        except PermissionError:
            # Without rights every file belongs to who runs the demo (M14).
            if store.privileged:
                raise
        status = os.fstat(fd)
    if not stat.S_ISLNK(mode) and stat.S_IMODE(status.st_mode) != wanted:
        os.chmod(path, wanted)
        status = os.fstat(fd)
    return status


def _finish(
    store: Store,
    wish: Wish,
    file: FileId,
    directory: Descriptor,
    held: Descriptor,
    mode: int,
    gid: int,
    inherits: bool,
) -> Made:
    fd = held.fd
    store.created(fd)
    if store.can_carry_id(mode):
        store.assign_id(fd, file)
    else:
        file = NO_ID
    status = _own(store, wish, fd, mode, gid, inherits)
    if stat.S_ISREG(mode) and file != NO_ID:
        store.keep_open(file, held)
    change = Create(
        parent=wish.parent,
        name=wish.name,
        file=file,
        attributes=attributes_of(status),
        parent_mtime_ns=os.fstat(directory.fd).st_mtime_ns,
        target=wish.target,
        xattrs=_inherited(fd) if inherits and not stat.S_ISLNK(mode) else (),
    )
    handle, _ = syscalls.file_handle(fd)
    return Made(held, handle, file, status, change)


def _inherited(fd: int) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for name in (_ACCESS_LIST, _DEFAULT_LIST):
        value = access_list(fd, name)
        if value is not None:
            found.append((name.encode(), value))
    return tuple(found)


def allocate(fd: int, mode: int, offset: int, length: int) -> os.stat_result:
    """fallocate(2); what stat(2) says afterwards. OSError: nothing has changed; else `InDoubt`."""
    before = os.fstat(fd)
    try:
        syscalls.allocate(fd, mode, offset, length)
    except OSError as error:
        if mode & _REWRITES and error.errno in _HALFWAY:
            raise InDoubt(error.errno, f"fallocate: {error.strerror}") from error
        if os.fstat(fd).st_size != before.st_size:
            # A disk without room may keep what it could allocate, and the size with it.
            os.ftruncate(fd, before.st_size)
            syscalls.set_times(fd, mtime_ns=before.st_mtime_ns)
        raise
    return os.fstat(fd)


def identify(store: Store, handle: bytes, file: FileId) -> bytes:
    """Give an inode of before hyperha an id; the attribute's name on the wire."""
    store.assign_id(handle, file)
    return identity.PRIVILEGED_ID
