"""Linux system calls that Python's `os` lacks, through ctypes: file handles, times, ranges.

Responsible for argument passing and errno only; it decides nothing and keeps no state. The C
library is looked up at the first call, so that the module imports anywhere.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import sys
import threading
from enum import Enum
from typing import Final, NamedTuple

O_PATH: Final[int] = getattr(os, "O_PATH", 0)
O_NOFOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)
O_DIRECTORY: Final[int] = getattr(os, "O_DIRECTORY", 0)
O_CLOEXEC: Final[int] = getattr(os, "O_CLOEXEC", 0)
O_NOATIME: Final[int] = getattr(os, "O_NOATIME", 0)
O_NONBLOCK: Final[int] = getattr(os, "O_NONBLOCK", 0)

FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10
FULL_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT)
"""The disk, or a quota on it, is full."""
FUSE_SUPER_MAGIC: Final = 0x65735546
EXT_SUPER_MAGIC: Final = 0xEF53
"""Of ext2 to ext4."""
XFS_SUPER_MAGIC: Final = 0x58465342
XFLAG_PREALLOC: Final = 0x02
"""xfs marks files for which room was reserved; other file systems have no such mark."""

_AT_EMPTY_PATH: Final = 0x1000
_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2
_SYNC_FILE_RANGE_WRITE: Final = 2
_FICLONE: Final = 0x40049409
_FS_IOC_GETFLAGS: Final = 0x80086601
_EXTENTS_FLAG: Final = 0x80000
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FSXATTR = struct.Struct("=I24x")
_HANDLE_BYTES: Final = 128
_HANDLE_HEAD = struct.Struct("=Ii")
_TYPE = struct.Struct("=i")
_TIMES = struct.Struct("@qqqq")
_FS_IOC_FIEMAP: Final = 0xC020660B
_FIEMAP = struct.Struct("=QQIIIxxxx")
_EXTENT = struct.Struct("=Q8xQ16xI12x")
_EXTENTS: Final = 256
_LAST: Final = 0x1
_UNWRITTEN: Final = 0x800


class Extent(NamedTuple):
    """A range of a file for which the file system keeps room. `unwritten`: it reads as zeros."""

    offset: int
    length: int
    unwritten: bool


class _Library:
    """The C library with the argument types of what is called."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        integer, text, offset = ctypes.c_int, ctypes.c_char_p, ctypes.c_int64
        unsigned, memory = ctypes.c_uint, ctypes.c_void_p
        self.name_to_handle_at = library.name_to_handle_at
        self.name_to_handle_at.argtypes = (integer, text, text, text, integer)
        self.open_by_handle_at = library.open_by_handle_at
        self.open_by_handle_at.argtypes = (integer, text, integer)
        self.utimensat = library.utimensat
        self.utimensat.argtypes = (integer, text, text, integer)
        self.syncfs = library.syncfs
        self.syncfs.argtypes = (integer,)
        self.sync_file_range = library.sync_file_range
        self.sync_file_range.argtypes = (integer, offset, offset, unsigned)
        self.fallocate = library.fallocate
        self.fallocate.argtypes = (integer, integer, offset, offset)
        self.renameat2 = library.renameat2
        self.renameat2.argtypes = (integer, text, integer, text, unsigned)
        self.fstatfs = library.fstatfs
        self.fstatfs.argtypes = (integer, text)
        self.setxattr = library.setxattr
        self.setxattr.argtypes = (text, text, memory, ctypes.c_size_t, integer)
        self.ioctl = library.ioctl
        self.ioctl.argtypes = (integer, ctypes.c_ulong, integer)


@functools.cache
def _library() -> _Library:
    return _Library()


def _raise() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def show_thread_name() -> None:
    """Let the kernel call this thread as Python does, for `top -H` and profiles; at most 15 bytes
    are kept. Nothing where the kernel does not offer that."""
    try:
        with open("/proc/thread-self/comm", "w", encoding="ascii", errors="replace") as file:
            file.write(threading.current_thread().name[:15])
    except OSError:
        # Only a name.
        pass


def file_handle(descriptor: int, name: bytes = b"") -> tuple[bytes, int]:
    """The kernel's handle of an inode, and the id of the mount it was reached through.

    `name` is one component below the directory `descriptor` (a symbolic link is not followed);
    without it the inode of `descriptor` itself. The handle survives rename and remount, and is
    never given to another inode of the file system (Z3).
    """
    memory = ctypes.create_string_buffer(_HANDLE_HEAD.pack(_HANDLE_BYTES, 0), 8 + _HANDLE_BYTES)
    mount = ctypes.create_string_buffer(4)
    flags = 0 if name else _AT_EMPTY_PATH
    if _library().name_to_handle_at(descriptor, name, memory, mount, flags) < 0:
        _raise()
    raw = memory.raw
    length, kind = _HANDLE_HEAD.unpack_from(raw)
    return _TYPE.pack(kind) + raw[8 : 8 + length], int.from_bytes(mount.raw, "little")


def open_handle(mount_descriptor: int, handle: bytes, flags: int) -> int:
    """Open an inode of the file system of `mount_descriptor` by its handle; needs rights of root.

    Raises ESTALE when the inode is gone.
    """
    (kind,) = _TYPE.unpack_from(handle)
    memory = _HANDLE_HEAD.pack(len(handle) - 4, kind) + handle[4:]
    descriptor: int = _library().open_by_handle_at(mount_descriptor, memory, flags | O_CLOEXEC)
    if descriptor < 0:
        _raise()
    return descriptor


class Now(Enum):
    """The present by the clock of the file system, which runs behind the precise one."""

    NOW = "now"


def set_times(
    descriptor: int, *, mtime_ns: int | Now | None, atime_ns: int | Now | None = None
) -> None:
    """Set the given times of the inode behind any descriptor (O_PATH too); None leaves one as is.

    Some kernels refuse an empty path here; the descriptor's entry in /proc serves then.
    """
    times = _TIMES.pack(*_time(atime_ns), *_time(mtime_ns))
    if _library().utimensat(descriptor, b"", times, _AT_EMPTY_PATH) == 0:
        return
    if _library().utimensat(-100, b"/proc/self/fd/%d" % descriptor, times, 0) < 0:
        _raise()


def _time(wanted: int | Now | None) -> tuple[int, int]:
    if wanted is None:
        return 0, _UTIME_OMIT
    return (0, _UTIME_NOW) if wanted is Now.NOW else divmod(wanted, 1_000_000_000)


def sync_file_system(descriptor: int) -> None:
    """syncfs(2): everything written to the file system is on stable storage afterwards."""
    if _library().syncfs(descriptor) < 0:
        _raise()


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Begin to write dirty pages of a range without waiting for them (D8')."""
    if _library().sync_file_range(descriptor, offset, length, _SYNC_FILE_RANGE_WRITE) < 0:
        _raise()


def allocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with its mode bits."""
    if _library().fallocate(descriptor, mode, offset, length) < 0:
        _raise()


def rename(old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
    """renameat2(2): atomic rename with RENAME_NOREPLACE 1 or RENAME_EXCHANGE 2."""
    if _library().renameat2(old_parent, old_name, new_parent, new_name, flags) < 0:
        _raise()


def set_xattr(descriptor: int, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set an extended attribute of the inode behind any descriptor (O_PATH, symlinks too).

    Unlike `os.setxattr` it passes names that are not valid text and values that hold NUL bytes.
    """
    path = b"/proc/self/fd/%d" % descriptor
    if _library().setxattr(path, name, value, len(value), flags) < 0:
        _raise()


def clone_file(descriptor: int, source: int) -> None:
    """Give a file the content of another one by sharing its blocks (FICLONE); EOPNOTSUPP where the
    file system cannot."""
    if _library().ioctl(descriptor, _FICLONE, source) < 0:
        _raise()


def file_system_type(descriptor: int) -> int:
    """The magic number of the file system (`f_type` of fstatfs(2))."""
    memory = ctypes.create_string_buffer(256)
    if _library().fstatfs(descriptor, memory) < 0:
        _raise()
    return int.from_bytes(memory.raw[:8], "little") & 0xFFFFFFFF


def file_flags(descriptor: int) -> int:
    """The flags that several file systems share (FS_XFLAG_*). Raises OSError, ENOTTY where the
    file system has none."""
    import fcntl

    memory = bytearray(_FSXATTR.size)
    fcntl.ioctl(descriptor, _FS_IOC_FSGETXATTR, memory)
    return int(_FSXATTR.unpack(memory)[0])


def keeps_extents(descriptor: int) -> bool:
    """Whether an inode of ext4 has extents: without them, as on ext2 and ext3, a file system of
    that family cannot reserve room. Raises OSError."""
    import fcntl

    # The kernel writes an int, whatever the size in the number says.
    memory = bytearray(8)
    fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, memory)
    return bool(int.from_bytes(memory[:4], sys.byteorder) & _EXTENTS_FLAG)


def extents(descriptor: int, start: int, end: int) -> tuple[list[Extent], int]:
    """Some of the extents in [start, end) of a regular file, and where to ask on; `end` when that
    were all. Raises OSError, EOPNOTSUPP where the file system cannot tell (FIEMAP).

    What was written and not yet given a place on the disk may be missing.
    """
    import fcntl

    memory = bytearray(_FIEMAP.size + _EXTENTS * _EXTENT.size)
    _FIEMAP.pack_into(memory, 0, start, end - start, 0, 0, _EXTENTS)
    fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, memory)
    _, _, _, count, _ = _FIEMAP.unpack_from(memory, 0)
    found: list[Extent] = []
    last = count < _EXTENTS
    for number in range(count):
        offset, length, flags = _EXTENT.unpack_from(memory, _FIEMAP.size + number * _EXTENT.size)
        first, behind = max(offset, start), min(offset + length, end)
        found.append(Extent(first, behind - first, bool(flags & _UNWRITTEN)))
        last = last or bool(flags & _LAST)
    return found, end if last else max(start + 1, found[-1].offset + found[-1].length)
