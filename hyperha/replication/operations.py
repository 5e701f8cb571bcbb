"""What changes in a replicated folder, as values; and the port between data path and engine.

The data path (on Linux the FUSE session) sees every change of the guest and hands it to the
engine's `Pipeline`; the engine makes it durable in the intent log, has it done on the local
folder, sends it, and answers when the rules allow. The secondary's applier performs the same
`Change` values through the same `Store`. Files are named by ids, never by paths (Z3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NewType, Protocol

FileId = NewType("FileId", bytes)
"""16 bytes, minted at random by the primary with the file's creation; the same on both nodes."""

ROOT_ID = FileId(b"\0" * 15 + b"\1")
"""The folder itself."""

NO_ID = FileId(b"\0" * 16)
"""Of an inode that cannot carry an id (no right to write its xattr): named by its entry."""
OFFSET_LIMIT: Final = (1 << 63) - 1
"""No file is longer, on any file system. Only what is counted in whole blocks may reach one byte
further."""


class RecordKind(IntEnum):
    """The kinds of intent-log records (Z4)."""

    ZONE = 1
    """Data of one zone (1 MiB) of a file."""
    INODE = 2
    """Size, attributes and xattrs of an inode."""
    DIRECTORY = 3
    """The entries of a directory."""
    WHOLE_FILE = 4
    """Every zone of a file: coarser, for operations over more than 64 zones (Z5)."""


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that the intent log must know before a change is applied or sent (Z1-Z4)."""

    kind: RecordKind
    file: FileId
    zone: int = 0


@dataclass(frozen=True, slots=True)
class Attributes:
    """What both copies of an inode have in common. Times in nanoseconds; no atime, no ctime."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """An inode named by its id, or, where it carries none (`NO_ID`), by its directory entry."""

    file: FileId
    parent: FileId = NO_ID
    name: bytes = b""


class Change:
    """A mutation other than a plain write: done locally first, sent with its result (Z4)."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Create(Change):
    """A new inode of any type (the type is in `attributes.mode`); `target` is a symlink's text."""

    parent: FileId
    name: bytes
    file: FileId
    attributes: Attributes
    parent_mtime_ns: int
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """Extended attributes the new inode has from birth (inherited ACLs)."""


@dataclass(frozen=True, slots=True)
class Link(Change):
    """Another name for an inode."""

    source: Target
    parent: FileId
    name: bytes
    parent_mtime_ns: int


@dataclass(frozen=True, slots=True)
class Remove(Change):
    """unlink or rmdir."""

    parent: FileId
    name: bytes
    directory: bool
    parent_mtime_ns: int


@dataclass(frozen=True, slots=True)
class Rename(Change):
    """rename; flags as in renameat2(2) (RENAME_NOREPLACE 1, RENAME_EXCHANGE 2)."""

    old_parent: FileId
    old_name: bytes
    new_parent: FileId
    new_name: bytes
    flags: int
    old_parent_mtime_ns: int
    new_parent_mtime_ns: int


@dataclass(frozen=True, slots=True)
class SetAttributes(Change):
    """The resulting mode, owner and mtime of an inode (not its size)."""

    inode: Target
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Truncate(Change):
    """The resulting size of a file, with its mtime."""

    file: FileId
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Allocate(Change):
    """fallocate with its mode (keep size 1, punch hole 2, zero range 16) and the resulting size."""

    file: FileId
    mode: int
    offset: int
    length: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class SetXattr(Change):
    """An extended attribute set, or removed where `value` is None."""

    inode: Target
    name: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class SetTimes(Change):
    """A written file's mtime on the primary (Z9): sent at barrier, close and each second."""

    file: FileId
    mtime_ns: int


Answer = Callable[[int, bytes], None]
"""Answers the kernel for one request: (errno or 0, payload). Callable from any thread, once."""


def discard(number: int, payload: bytes) -> None:
    """The answer to a change that no request waits for."""


def done_already(change: Change) -> Change:
    """Performs a change that is so here already: only the peer is to do it."""
    return change


class InDoubt(OSError):
    """A change failed when it may have been done in part: the copies may differ now (Z4)."""


GiveBack = Callable[[object], None]
"""Takes back what was lent; ignores what is not of its buffers."""


class Pipeline(Protocol):
    """What the data path calls for every mutation; implemented by the engine.

    All methods are called from the one thread that reads /dev/fuse, in the order of arrival; that
    order is the order of the stream, on both nodes (T2). No method waits for the peer (T1): the
    answer is parked and given by the thread that receives acknowledgements (T6). An OSError
    raised here has changed nothing and is for the caller to answer at once.
    """

    def writable(self) -> bool:
        """False outside PRIM and ALONE: the data path then answers EROFS (M2, M3)."""

    def write(
        self,
        file: FileId,
        offset: int,
        data: bytes | memoryview,
        *,
        barrier: bool,
        answer: Answer,
        give_back: GiveBack | None = None,
    ) -> bool:
        """Log, send, apply and park one write. `data` is only valid during the call, unless there
        is `give_back`: then True says that it is kept until that is called with it, by any thread.

        `barrier` is true when the request's open flags carry O_DSYNC or O_SYNC (M1), or
        durability is strict: answered when both nodes have it on stable storage. A write that
        failed or was short locally after it was sent is the engine's to settle (Z4).
        """

    def change(
        self,
        records: tuple[Record, ...],
        execute: Callable[[], Change | None],
        answer: Answer,
    ) -> None:
        """Make the records durable, run `execute`, send its result.

        `answer` is called when the rules allow, with an error when a freeze was ended (M7); None
        from `execute`: nothing to send, answered now. Where `execute` raises OSError, nothing may
        have been changed; it raises `InDoubt`, or anything else, when that is not certain.
        """

    def flush(self, file: FileId, *, data_only: bool, answer: Answer) -> None:
        """A barrier on a file or directory: fsync here and there, then the answer."""

    @property
    def keeps(self) -> object:
        """What was not sent yet, in the hope of company: then `send_kept` must be called before
        the data path waits for a request, or after some more of them. None: nothing."""

    def send_kept(self) -> None:
        """Send several small writes by one call: several at once cost the peer little more."""

    def closed(self, file: FileId) -> None:
        """The last handle of a file that was open for writing is gone: its mtime may be sent."""
