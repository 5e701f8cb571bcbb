"""What ends a data path from outside, without its process and without touching the mount (L5').

Used by the guardian when the daemon is dead; standard library only, Linux only at run time, and
nothing here waits for a mount to answer.
"""

from __future__ import annotations

import errno
import os

_MNT_FORCE, _MNT_DETACH = 1, 2
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_ENDED = (errno.EBUSY, errno.EINVAL, errno.ENOENT, errno.ENODEV, errno.ENOTCONN)
"""Aborted first and then found busy, which keeps the folder covered (M3); or not there any more."""

ABORT_FILE, FORCED_UNMOUNT = FENCE_KINDS = ("abort-file", "forced-unmount")
"""What a fence descriptor is: the connection's fusectl file `abort`, opened for writing, or the
mount's root directory, opened with O_PATH."""


def fence(kind: str, descriptor: int) -> str:
    """End a FUSE connection: every call in it returns, nothing is acknowledged any more.

    Empty when it is ended (also when it was already), else why not.
    """
    try:
        if kind == ABORT_FILE:
            os.write(descriptor, b"1")
        else:
            _umount(f"/proc/self/fd/{descriptor}", _MNT_FORCE)
    except OSError as problem:
        if problem.errno not in _ENDED:
            return problem.strerror or str(problem)
    return ""


def layers(path: str) -> int:
    """How many mounts of ours cover exactly this directory."""
    wanted = path.rstrip("/") or "/"
    count = 0
    # At blanks and newlines only: a path may hold any other character that Python splits at.
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            before, _, after = line.partition(b" - ")
            found = os.fsdecode(before.split(b" ")[4])
            if _unescaped(found) == wanted and after.startswith(b"fuse.hyperha "):
                count += 1
    return count


def peel(path: str) -> str:
    """Detach every mount of ours from this directory; empty, or why one is still there."""
    for _ in range(64):
        if not layers(path):
            return ""
        try:
            _umount(path, _MNT_DETACH)
        except PermissionError:
            if not _fusermount(path):
                return "neither the right to unmount nor a working fusermount3"
        except OSError as problem:
            return problem.strerror or str(problem)
    return "more than 64 layers"


def lock_memory() -> bool:
    """Keep this process in memory, so that it can act when the machine swaps itself to death."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)


def _umount(path: str, flags: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def _fusermount(path: str) -> bool:
    arguments = ["fusermount3", "-u", "-z", "--", path]
    try:
        child = os.posix_spawnp("fusermount3", arguments, os.environ)
    except OSError:
        return False
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _unescaped(text: str) -> str:
    """mountinfo writes blanks and backslashes as octal numbers."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
