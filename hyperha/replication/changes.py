"""How a secondary performs the primary's changes on its own files (Z3, Z4, Z9, M13).

One function per kind of `Change`, on the descriptors that `Store` gives out; names are single
components below a directory found by id. It decides nothing about order or sessions.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any, Final

from hyperha.replication import identity, syscalls
from hyperha.replication.operations import (
    NO_ID,
    Allocate,
    Attributes,
    Change,
    Create,
    FileId,
    Link,
    Remove,
    Rename,
    SetAttributes,
    SetTimes,
    SetXattr,
    Target,
    Truncate,
)
from hyperha.replication.store import Descriptor, Entry, Store, check_name

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
ALLOCATE_MODES: Final = frozenset((0x00, 0x01, 0x03, 0x10, 0x11))
"""Modes of fallocate that are understood: plain, keep size, punch hole, zero range."""

_PATH: Final = syscalls.O_PATH | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
_ACCESS_LISTS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")


def apply(store: Store, change: Change, *, again: bool) -> None:
    """Perform one change; see `Store.apply`. EINVAL for a change that makes no sense."""
    performer = _PERFORMERS.get(type(change))
    if performer is None:
        raise OSError(errno.EINVAL, f"unknown change {type(change).__name__}")
    guard = store.guard
    if guard is not None:
        guard.change(store, change)
    performer(store, change, again)


def checked_name(store: Store, parent: FileId, name: bytes) -> Descriptor:
    """The directory's descriptor, after the name was found to be one that may be changed (M13)."""
    check_name(name)
    store.check_visible(parent, name)
    return store.directory(parent)


def existing(store: Store, parent: FileId, name: bytes) -> Entry | None:
    """The entry of that name, or None."""
    try:
        return store.find(parent, name)
    except FileNotFoundError:
        return None


def forget_victim(store: Store, victim: Entry | None) -> None:
    """Drop what is kept for an inode that has just lost the last of its names."""
    if victim is None:
        return
    if victim.directory or victim.nlink <= 1:
        store.forget_handle(victim.handle)


def make_inode(
    directory: int, name: bytes, mode: int, rdev: int, target: bytes, *, exact: bool = False
) -> int:
    """Create the inode; an open descriptor (O_PATH unless a regular file).

    With minimal rights, so that nobody opens it before its owner and mode are set; `exact` asks
    for the mode at once, which an inherited access list is computed from.
    """
    bits = stat.S_IMODE(mode) if exact else 0o600
    if stat.S_ISREG(mode):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
        return os.open(name, flags, bits, dir_fd=directory)
    if stat.S_ISDIR(mode):
        os.mkdir(name, bits if exact else 0o700, dir_fd=directory)
    elif stat.S_ISLNK(mode):
        os.symlink(target, name, dir_fd=directory)
    else:
        os.mknod(name, stat.S_IFMT(mode) | bits, rdev, dir_fd=directory)
    return os.open(name, _PATH, dir_fd=directory)


def remove_made(directory: int, name: bytes, mode: int) -> None:
    """Take back an inode whose creation could not be finished."""
    try:
        if stat.S_ISDIR(mode):
            os.rmdir(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)
    except OSError:
        # The error that made it unwanted is the one to report.
        pass


def set_owner_and_mode(store: Store, fd: int, wanted: Attributes) -> None:
    """chown then chmod (chown clears set-id bits), each only where it differs.

    Without rights other owners cannot be given away; the demo lives with its own (M14).
    """
    status = os.fstat(fd)
    path = f"/proc/self/fd/{fd}"
    if (status.st_uid, status.st_gid) != (wanted.uid, wanted.gid):
        try:
            os.chown(path, wanted.uid, wanted.gid)
        except PermissionError:
            if store.privileged:
                raise
    if not stat.S_ISLNK(status.st_mode):
        status = os.fstat(fd)
        if stat.S_IMODE(status.st_mode) != stat.S_IMODE(wanted.mode):
            os.chmod(path, stat.S_IMODE(wanted.mode))


def set_xattr(fd: int, name: bytes, value: bytes | None, *, again: bool) -> None:
    """Set or remove one extended attribute of the inode behind a descriptor."""
    if value is not None:
        syscalls.set_xattr(fd, name, value)
        return
    try:
        os.removexattr(b"/proc/self/fd/%d" % fd, name)
    except OSError as error:
        if not (again and error.errno == errno.ENODATA):
            raise


def _settle_directory(store: Store, directory: FileId, mtime_ns: int) -> None:
    held = store.directory(directory)
    syscalls.set_times(held.fd, mtime_ns=mtime_ns)


def _finish_create(store: Store, fd: int, change: Create) -> None:
    set_owner_and_mode(store, fd, change.attributes)
    given = dict(change.xattrs)
    if not stat.S_ISLNK(change.attributes.mode):
        present = os.listxattr(f"/proc/self/fd/{fd}")
        for name in _ACCESS_LISTS:
            # Inherited here from a default list that the primary's directory did not have.
            if name.decode() in present and name not in given:
                set_xattr(fd, name, None, again=True)
    for name, value in given.items():
        set_xattr(fd, name, value, again=True)
    if given and not stat.S_ISLNK(change.attributes.mode):
        os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(change.attributes.mode))
    if stat.S_ISREG(change.attributes.mode) and os.fstat(fd).st_size != change.attributes.size:
        os.truncate(f"/proc/self/fd/{fd}", change.attributes.size)
    syscalls.set_times(fd, mtime_ns=change.attributes.mtime_ns)


def _save_found(store: Store, held: Descriptor, found: Entry) -> None:
    """What is found in the place of what was to be created is made equal to that (R15)."""
    guard = store.guard
    if guard is None:
        return
    if stat.S_ISREG(found.attributes.mode):
        held = store.data(found.file)
    guard.everything(held.fd, found.handle)


def _create(store: Store, change: Create, again: bool) -> None:
    directory = checked_name(store, change.parent, change.name)
    mode = change.attributes.mode
    if again:
        there = existing(store, change.parent, change.name)
        if there is not None and there.file == change.file != NO_ID:
            held = store.inode(Target(change.file))
            _save_found(store, held, there)
            _finish_create(store, held.fd, change)
            _settle_directory(store, change.parent, change.parent_mtime_ns)
            return
    fd = make_inode(directory.fd, change.name, mode, change.attributes.rdev, change.target)
    held = Descriptor(fd, writable=stat.S_ISREG(mode))
    try:
        store.created(fd)
        if change.file != NO_ID and store.can_carry_id(mode):
            store.assign_id(fd, change.file)
        _finish_create(store, fd, change)
    except OSError:
        store.forget(change.file)
        remove_made(directory.fd, change.name, mode)
        raise
    if stat.S_ISREG(mode) and change.file != NO_ID:
        store.keep_open(change.file, held)
    _settle_directory(store, change.parent, change.parent_mtime_ns)


def _link(store: Store, change: Link, again: bool) -> None:
    directory = checked_name(store, change.parent, change.name)
    source = store.inode(change.source)
    try:
        os.link(f"/proc/self/fd/{source.fd}", change.name, dst_dir_fd=directory.fd)
    except FileExistsError:
        there = existing(store, change.parent, change.name)
        if not again or there is None:
            raise
        if there.handle != syscalls.file_handle(source.fd)[0]:
            raise
    _settle_directory(store, change.parent, change.parent_mtime_ns)


def _remove(store: Store, change: Remove, again: bool) -> None:
    directory = checked_name(store, change.parent, change.name)
    victim = existing(store, change.parent, change.name)
    if victim is None:
        if not again:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(change.name))
    elif change.directory:
        os.rmdir(change.name, dir_fd=directory.fd)
    else:
        os.unlink(change.name, dir_fd=directory.fd)
    forget_victim(store, victim)
    _settle_directory(store, change.parent, change.parent_mtime_ns)


def _rename(store: Store, change: Rename, again: bool) -> None:
    old = checked_name(store, change.old_parent, change.old_name)
    new = checked_name(store, change.new_parent, change.new_name)
    if change.flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
        raise OSError(errno.EINVAL, f"rename flags {change.flags:#x} are not supported")
    source = existing(store, change.old_parent, change.old_name)
    victim = existing(store, change.new_parent, change.new_name)
    if again and source is None and victim is not None and not change.flags & RENAME_EXCHANGE:
        victim = None
    else:
        syscalls.rename(old.fd, change.old_name, new.fd, change.new_name, change.flags)
    same = source is not None and victim is not None and source.handle == victim.handle
    if not change.flags & RENAME_EXCHANGE and not same:
        forget_victim(store, victim)
    _settle_directory(store, change.old_parent, change.old_parent_mtime_ns)
    _settle_directory(store, change.new_parent, change.new_parent_mtime_ns)


def _set_attributes(store: Store, change: SetAttributes, again: bool) -> None:
    held = store.inode(change.inode)
    set_owner_and_mode(store, held.fd, change.attributes)
    syscalls.set_times(held.fd, mtime_ns=change.attributes.mtime_ns)


def _truncate_file(store: Store, change: Truncate, again: bool) -> None:
    held = store.data(change.file)
    os.ftruncate(held.fd, change.size)
    syscalls.set_times(held.fd, mtime_ns=change.mtime_ns)


def _allocate(store: Store, change: Allocate, again: bool) -> None:
    if change.mode not in ALLOCATE_MODES:
        raise OSError(errno.EOPNOTSUPP, f"fallocate mode {change.mode:#x} is not supported")
    held = store.data(change.file)
    syscalls.allocate(held.fd, change.mode, change.offset, change.length)
    if os.fstat(held.fd).st_size != change.size:
        os.ftruncate(held.fd, change.size)
    syscalls.set_times(held.fd, mtime_ns=change.mtime_ns)


def _set_xattr(store: Store, change: SetXattr, again: bool) -> None:
    if change.name == identity.PRIVILEGED_ID:
        # An inode that existed before it had an id: the primary gave it one (Z3).
        if change.value is None:
            raise OSError(errno.EINVAL, "an id cannot be taken away")
        held = store.inode(change.inode)
        store.assign_id(held.fd, FileId(change.value))
        return
    if identity.is_hidden_xattr(change.name):
        raise OSError(errno.EPERM, "an attribute of hyperha is not replicated")
    held = store.inode(change.inode)
    set_xattr(held.fd, change.name, change.value, again=again)


def _set_times(store: Store, change: SetTimes, again: bool) -> None:
    held = store.inode(Target(change.file))
    syscalls.set_times(held.fd, mtime_ns=change.mtime_ns)


_PERFORMERS: Final[dict[type[Change], Callable[[Store, Any, bool], None]]] = {
    Create: _create,
    Link: _link,
    Remove: _remove,
    Rename: _rename,
    SetAttributes: _set_attributes,
    Truncate: _truncate_file,
    Allocate: _allocate,
    SetXattr: _set_xattr,
    SetTimes: _set_times,
}
