"""Ending a FUSE connection from outside, through descriptors held since the mount (L5').

A process in a held FUSE write does not die of SIGKILL; it does once the connection is aborted,
also when every thread of the session is stuck. The descriptors can be handed to another process
(the guardian) by SCM_RIGHTS. Fencing never touches a path inside the mount and leaves the dead
mount in place, so that the plain folder stays covered (M3).
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass, field
from typing import Final

from hyperha.errors import FailedError
from hyperha.replication import mounts, syscalls
from hyperha.replication.fuse import mount as mounting
from hyperha.replication.mounts import MountEntry

ABORT_FILE: Final = "abort-file"
"""Writes to the connection's `abort` file of fusectl."""

FORCED_UNMOUNT: Final = "forced-unmount"
"""umount2(MNT_FORCE) through a descriptor of the mount's root, which keeps it from going."""

_FUSECTL_MAGIC: Final = 0x65735543
_SYSTEM_FUSECTL: Final = "/sys/fs/fuse/connections"


@dataclass(slots=True)
class Fence:
    """The means to abort one connection. Close it when the connection is gone."""

    kind: str
    descriptors: list[int] = field(default_factory=list)

    def describe(self) -> str:
        """What travels beside the descriptors to the process that shall hold them."""
        return self.kind

    @classmethod
    def from_descriptors(cls, description: str, descriptors: list[int]) -> Fence:
        """The fence again, in the process that received it. ValueError for an unknown one."""
        if description not in (ABORT_FILE, FORCED_UNMOUNT) or len(descriptors) != 1:
            raise ValueError(f"not a fence: {description!r} with {len(descriptors)} descriptors")
        return cls(description, list(descriptors))

    def abort(self) -> None:
        """End the connection now: every call in the mount fails, nothing is acknowledged any more.

        Harmless when it has ended already. Raises OSError where the kernel refuses.
        """
        if self.kind == ABORT_FILE:
            os.write(self.descriptors[0], b"1")
            return
        try:
            mounting.raw_unmount(f"/proc/self/fd/{self.descriptors[0]}", mounting.MNT_FORCE)
        except OSError as error:
            # Aborted first, then found busy: that is what keeps the folder covered. EINVAL: it
            # is not mounted any more.
            if error.errno not in (errno.EBUSY, errno.EINVAL):
                raise

    def close(self) -> None:
        """Let go of the descriptors."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()


def open_fence(path: str, entry: MountEntry, run_directory: str) -> Fence:
    """The fence of the mount that was just made at `path`; nothing else may be on top yet.

    Raises FailedError where no way exists (without rights and without a mounted fusectl, M14).
    """
    abort = _open_abort(f"{_SYSTEM_FUSECTL}/{entry.minor}/abort")
    if abort is None and os.geteuid() == 0:
        abort = _open_by_private_mount(entry.minor, run_directory)
    if abort is not None:
        return Fence(ABORT_FILE, [abort])
    if os.geteuid() != 0:
        raise FailedError("without root rights and fusectl a connection cannot be fenced")
    return Fence(FORCED_UNMOUNT, [open_root(path)])


def open_root(path: str) -> int:
    """A descriptor of the root of what is mounted on top of `path`; no request is sent for it."""
    return os.open(path, syscalls.O_PATH | syscalls.O_DIRECTORY | syscalls.O_CLOEXEC)


def _open_abort(path: str) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | syscalls.O_CLOEXEC)
    except OSError:
        return None


def _open_by_private_mount(minor: int, run_directory: str) -> int | None:
    """Mount fusectl in our run directory for as long as the file takes to open."""
    directory = tempfile.mkdtemp(prefix="fusectl-", dir=run_directory)
    try:
        mounting.raw_mount("fusectl", directory, "fusectl", "")
    except OSError:
        os.rmdir(directory)
        return None
    try:
        return _open_abort(f"{directory}/{minor}/abort")
    finally:
        mounting.raw_unmount(directory, mounting.MNT_DETACH)
        os.rmdir(directory)


def peel(path: str, run_directory: str) -> int:
    """Abort and detach every hyperha mount on top of `path` (M5); how many there were."""
    peeled = 0
    while True:
        entry = mounts.on_top(path)
        if entry is None or entry.kind != mounts.FUSE_TYPE:
            return peeled
        try:
            fence = open_fence(path, entry, run_directory)
        except FailedError:
            # Detaching is all that can be done without rights.
            fence = None
        if fence is not None:
            fence.abort()
            fence.close()
        if not mounting.unmount(path):
            raise FailedError(f"the stale mount on {path} cannot be removed")
        peeled += 1


def inherited(descriptors: list[int]) -> Fence | None:
    """The fence that a predecessor's descriptor is; None when it had none."""
    if not descriptors:
        return None
    abort_file = syscalls.file_system_type(descriptors[0]) == _FUSECTL_MAGIC
    return Fence(ABORT_FILE if abort_file else FORCED_UNMOUNT, descriptors[:1])
