"""The kernel's FUSE protocol as constants, structures and encoders (7.31 to 7.45). Pure.

Field names follow <linux/fuse.h>. It must not touch descriptors or know what a request is for.
"""

from __future__ import annotations

import os
from enum import IntEnum
from struct import Struct
from typing import Final

MAJOR: Final = 7
OLDEST_MINOR: Final = 31
NEWEST_MINOR: Final = 41
"""What is answered at most; later minors only add what is asked for by flags."""

ROOT_NODE: Final = 1
MAX_WRITE: Final = 1 << 20
MAX_PAGES: Final = 256
BUFFER_SIZE: Final = MAX_WRITE + 65536
IN_SIZE: Final = 40
OUT_SIZE: Final = 16
UNIQUE_RESEND: Final = 1 << 63
"""Set in `unique` of a request that an earlier server read and did not answer."""


class Op(IntEnum):
    """Request codes."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    TMPFILE = 51


OP_LIMIT: Final = 64


class Feature(IntEnum):
    """Bits of INIT (the upper 32 travel in `flags2`)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    HAS_RESEND = 1 << 39


WANTED_FEATURES: Final = (
    Feature.ASYNC_READ
    | Feature.ATOMIC_O_TRUNC
    | Feature.BIG_WRITES
    | Feature.DONT_MASK
    | Feature.DO_READDIRPLUS
    | Feature.READDIRPLUS_AUTO
    | Feature.ASYNC_DIO
    | Feature.PARALLEL_DIROPS
    | Feature.POSIX_ACL
    | Feature.ABORT_ERROR
    | Feature.MAX_PAGES
    | Feature.EXPLICIT_INVAL_DATA
    | Feature.HANDLE_KILLPRIV_V2
    | Feature.SETXATTR_EXT
    | Feature.INIT_EXT
    | Feature.DIRECT_IO_ALLOW_MMAP
    | Feature.HAS_RESEND
)
"""Never WRITEBACK_CACHE and never splice (M8); CACHE_SYMLINKS would outlive a standby's applier."""

# Flags of single requests and answers.
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6
SETATTR_MODE: Final = 1 << 0
SETATTR_UID: Final = 1 << 1
SETATTR_GID: Final = 1 << 2
SETATTR_SIZE: Final = 1 << 3
SETATTR_ATIME: Final = 1 << 4
SETATTR_MTIME: Final = 1 << 5
SETATTR_FH: Final = 1 << 6
SETATTR_ATIME_NOW: Final = 1 << 7
SETATTR_MTIME_NOW: Final = 1 << 8
SETATTR_KILL_SUIDGID: Final = 1 << 11
GETATTR_FH: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
OPEN_KILL_SUIDGID: Final = 1 << 0
FSYNC_DATA_ONLY: Final = 1 << 0
SETXATTR_ACL_KILL_SGID: Final = 1 << 0
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_RESEND: Final = 7

# Requests, after the header.
IN_HEADER: Final = Struct("<IIQQIIIHH")
OUT_HEADER: Final = Struct("<IiQ")
OWNER: Final = Struct("<II")
OWNER_OFFSET: Final = 24
PROCESS: Final = Struct("<I")
PROCESS_OFFSET: Final = 32
INIT_IN: Final = Struct("<IIII")
INIT_FLAGS2: Final = Struct("<I")
GETATTR_IN: Final = Struct("<IIQ")
SETATTR_IN: Final = Struct("<IIQQQqqq8I")
"""Times may lie before 1970."""
MKNOD_IN: Final = Struct("<IIII")
MKDIR_IN: Final = Struct("<II")
U64: Final = Struct("<Q")
RENAME2_IN: Final = Struct("<QII")
OPEN_IN: Final = Struct("<II")
CREATE_IN: Final = Struct("<IIII")
READ_IN: Final = Struct("<QQIIQII")
WRITE_IN: Final = Struct("<QQIIQII")
RELEASE_IN: Final = Struct("<QIIQ")
FSYNC_IN: Final = Struct("<QII")
SETXATTR_IN: Final = Struct("<IIII")
SETXATTR_IN_OLD: Final = Struct("<II")
GETXATTR_IN: Final = Struct("<II")
FALLOCATE_IN: Final = Struct("<QQQII")
LSEEK_IN: Final = Struct("<QQII")
FORGET_ONE: Final = Struct("<QQ")
BATCH_FORGET_IN: Final = Struct("<II")
DATA_OFFSET: Final = IN_SIZE + WRITE_IN.size
PAYLOAD_SIZE: Final = BUFFER_SIZE - DATA_OFFSET
"""Received apart, so that the data of a write begins where a buffer begins."""

# Answers.
WRITE_ANSWER: Final = Struct("<IiQII")
"""A whole answer to WRITE: header, size, padding."""
OPEN_OUT: Final = Struct("<QII")
INIT_OUT: Final = Struct("<IIIIHHIIHHII24x")
SIZE_OUT: Final = Struct("<II")
STATFS_OUT: Final = Struct("<QQQQQIIII24x")
DIRENT: Final = Struct("<QQII")
_PADDING: Final = tuple(bytes(-size % 8) for size in range(8))
INVAL_INODE: Final = Struct("<Qqq")
INVAL_ENTRY: Final = Struct("<QII")
"""Directory, length of the name, flags; the name follows with a zero byte."""
_ATTR: Final = Struct("<QQQQQQIIIIIIIIII")
_ENTRY: Final = Struct("<QQQQII")
_ATTR_OUT: Final = Struct("<QII")
ENTRY_SIZE: Final = _ENTRY.size + _ATTR.size

_MASK: Final = (1 << 64) - 1
_NANO: Final = 1_000_000_000


def encode_device(device: int) -> int:
    """A device number in the 32-bit form of the kernel's interface."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12) & 0xFFFFFFFF


def decode_device(encoded: int) -> int:
    """A device number for mknod(2) from the kernel's 32-bit form."""
    major = (encoded & 0xFFF00) >> 8
    minor = (encoded & 0xFF) | ((encoded >> 12) & 0xFFF00)
    return os.makedev(major, minor)


def encode_attributes(status: os.stat_result) -> bytes:
    """`struct fuse_attr` from what stat(2) said about the backing inode."""
    atime, mtime, ctime = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
    device = status.st_rdev
    return _ATTR.pack(
        status.st_ino,
        status.st_size,
        status.st_blocks,
        atime // _NANO & _MASK,
        mtime // _NANO & _MASK,
        ctime // _NANO & _MASK,
        atime % _NANO,
        mtime % _NANO,
        ctime % _NANO,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        encode_device(device) if device else 0,
        status.st_blksize,
        0,
    )


def encode_attributes_answer(status: os.stat_result, valid_s: int) -> bytes:
    """`struct fuse_attr_out`; the kernel may keep the attributes for `valid_s` seconds."""
    return _ATTR_OUT.pack(valid_s, 0, 0) + encode_attributes(status)


def encode_entry(node: int, status: os.stat_result, valid_s: int) -> bytes:
    """`struct fuse_entry_out`; node ids are never used twice, so the generation stays 0."""
    return _ENTRY.pack(node, 0, valid_s, valid_s, 0, 0) + encode_attributes(status)


NO_ENTRY: Final = bytes(ENTRY_SIZE)
"""In a READDIRPLUS answer: a name without its inode; the kernel looks it up when it needs it."""


def encode_dirent(inode: int, offset: int, kind: int, name: bytes) -> bytes:
    """`struct fuse_dirent`, padded; `offset` is where the listing goes on after this name, `kind`
    the S_IFMT bits of its mode."""
    size = len(name)
    return DIRENT.pack(inode, offset, size, kind >> 12) + name + _PADDING[size & 7]


def init_flags(offered: int, disabled: int) -> int:
    """The features to switch on: wanted, offered by the kernel and not disabled."""
    flags: int = WANTED_FEATURES & offered & ~disabled
    return flags


def encode_init(minor: int, max_readahead: int, flags: int) -> bytes:
    """The answer to INIT. max_background is the largest the field holds, above M8's 1,024."""
    return INIT_OUT.pack(
        MAJOR,
        minor,
        max_readahead,
        flags & 0xFFFFFFFF,
        4096,
        3072,
        MAX_WRITE if flags & Feature.MAX_PAGES else 32 * 4096,
        1,
        MAX_PAGES,
        0,
        flags >> 32,
        0,
    )
