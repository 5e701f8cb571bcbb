"""Mounting and unmounting FUSE over a folder, as root by mount(2), else by fusermount3 (M5, M6).

Leaves type `fuse.hyperha` in mountinfo, by which stale mounts are known. It opens no file inside a
mount and starts no session.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from typing import Any, Final

from hyperha.errors import FailedError, RefusedError
from hyperha.replication import mounts, syscalls
from hyperha.replication.mounts import FUSE_TYPE, MountEntry

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
_SUBTYPE: Final = "hyperha"
_DEVICE: Final = "/dev/fuse"
_HELPER_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class FuseMount:
    """A fresh mount: its open /dev/fuse descriptor and what mountinfo says about it."""

    device: int
    entry: MountEntry


@functools.cache
def _library() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def raw_mount(source: str, path: str, kind: str, options: str) -> None:
    """mount(2)."""
    arguments = (source.encode(), os.fsencode(path), kind.encode(), ctypes.c_ulong(0))
    _check(_library().mount(*arguments, options.encode()), path)


def raw_unmount(path: str, flags: int) -> None:
    """umount2(2)."""
    _check(_library().umount2(os.fsencode(path), flags), path)


def mount(path: str, name: str) -> FuseMount:
    """Cover `path` with a new FUSE mount named `name`; the caller serves its descriptor.

    Raises FailedError where it cannot be done, RefusedError where the host would not see it (M6).
    """
    device = _mount_as_root(path, name) if os.geteuid() == 0 else _mount_by_helper(path, name)
    try:
        entry = mounts.on_top(path)
        if entry is None or entry.kind != FUSE_TYPE:
            raise FailedError(f"{path} was mounted, but /proc/self/mountinfo does not show it")
        _check_visible(path, entry)
    except BaseException:
        os.close(device)
        unmount(path)
        raise
    return FuseMount(device, entry)


def _mount_as_root(path: str, name: str) -> int:
    try:
        device = os.open(_DEVICE, os.O_RDWR | syscalls.O_CLOEXEC)
    except OSError as error:
        raise FailedError(
            f"{_DEVICE} cannot be opened: {error.strerror}", "modprobe fuse"
        ) from None
    options = (
        f"fd={device},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,"
        "allow_other,default_permissions"
    )
    try:
        raw_mount(name, path, FUSE_TYPE, options)
    except OSError as error:
        os.close(device)
        raise FailedError(f"{path} cannot be mounted: {error.strerror}") from None
    return device


def _mount_by_helper(path: str, name: str) -> int:
    helper = shutil.which("fusermount3")
    if helper is None:
        raise FailedError(
            "mounting needs root rights or fusermount3", "Install fuse3, or run as root"
        )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        options = f"default_permissions,fsname={name},subtype={_SUBTYPE}"
        command = [helper, "-o", options, "--", path]
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        result = subprocess.run(
            command,
            env=environment,
            pass_fds=(theirs.fileno(),),
            capture_output=True,
            text=True,
            timeout=_HELPER_SECONDS,
            check=False,
        )
        if result.returncode != 0:
            raise FailedError(f"{path} cannot be mounted: {result.stderr.strip()}")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise FailedError("fusermount3 handed over no descriptor")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _check_visible(path: str, entry: MountEntry) -> None:
    """The host must see the mount, or others write beside it (M6, E10)."""
    try:
        host = mounts.mounted_on_host()
    except PermissionError:
        # Without rights this cannot be told; hyperha is a demo then (M14).
        return
    if not any(other.device == entry.device for other in host):
        raise RefusedError(
            f"the mount on {path} is not visible to the host: the daemon runs in a mount "
            "namespace of its own",
            "Remove PrivateTmp=, ProtectSystem= and the like from its unit",
        )


def unmount(path: str) -> bool:
    """Detach what lies on top of `path`, busy or not. False when nothing was mounted there."""
    if os.geteuid() != 0:
        helper = shutil.which("fusermount3")
        if helper is None or mounts.on_top(path) is None:
            return False
        command = [helper, "-u", "-z", "--", path]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False
        )
        return result.returncode == 0
    try:
        raw_unmount(path, MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return False
        raise FailedError(f"{path} cannot be unmounted: {error.strerror}") from None
    return True


def check_backing(path: str, folder_fd: int) -> None:
    """Refuse a folder that is not the plain one: on FUSE, covered, or with mounts inside (M5, M6).

    `folder_fd` was opened at `path` after stale mounts were peeled.
    """
    if syscalls.file_system_type(folder_fd) == syscalls.FUSE_SUPER_MAGIC:
        raise RefusedError(
            f"{path} lies on a FUSE file system", "Unmount it, or choose a folder on a disk"
        )
    entries = mounts.mounted()
    here = mounts.layers(path, entries)
    try:
        _, number = syscalls.file_handle(folder_fd)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EOVERFLOW):
            raise
        raise RefusedError(
            f"the file system of {path} gives no file handles", "Use ext4, xfs or btrfs."
        ) from error
    if here and here[-1].number != number:
        raise RefusedError(f"{path} is covered by a mount of type {here[-1].kind}", "Unmount it")
    inside = mounts.beneath(path, entries)
    if inside:
        raise RefusedError(f"{inside[0].path} is a mount inside the folder {path}", "Unmount it")
