"""The undo log of a safety copy: what a file, inode or directory was before it was first touched.

Append only. An entry is durable before the change that it protects is made (R15), so what is not
whole of the last append belongs to a change that was never made. What is not whole before it was
damaged: then the log cannot be read, rather than being a shorter one. This module codes,
appends and reads; what is to be saved, and what follows from it, is decided elsewhere.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import xxhash

from hyperha.errors import RecordDamagedError
from hyperha.replication.operations import FileId
from hyperha.replication.safety.blocks import Blocks

BLOCK_SHIFT: Final = 16
BLOCK_BYTES: Final = 1 << BLOCK_SHIFT
BATCH_BYTES: Final = 4 << 20
"""What is made durable at once (R15)."""
_MAGIC: Final = b"Hu"
_HEAD: Final = struct.Struct("<2sBBIQQ16s")
"""Magic, kind, length of the handle, length of the payload, two numbers, digest of the payload."""
_DIGEST: Final = struct.Struct("<Q")
HEAD_BYTES: Final = _HEAD.size + _DIGEST.size
"""What stands before the handle of an entry."""
_INODE: Final = struct.Struct("<IIIIQqI16sI")
_NARROW: Final = struct.Struct("<IIIIQq16sI")
"""The same with a time of 64 bits of nanoseconds, which ends in 2262."""
_SECOND_NS: Final = 1_000_000_000
_PAIR: Final = struct.Struct("<HI")
_COUNT: Final = struct.Struct("<I")
_NAME: Final = struct.Struct("<HIB")
_RUN: Final = struct.Struct("<QQ")
_DURABLE: Final = _MAGIC + bytes([6])
"""How such an entry begins."""
_SCAN_BYTES: Final = 4 << 20
_UNVERIFIED_BYTES: Final = 4 * BATCH_BYTES
"""At the end of a log, where a cut may have left less than was written."""


class Kind(IntEnum):
    """What an entry says of the inode whose handle it carries."""

    NARROW_INODE = 1
    """INODE in a log of format 1: read, but not written any more."""
    DIRECTORY = 2
    """Its listing."""
    BLOCKS = 3
    """Content of `second` blocks from block `first` on; what is not in its runs was a hole."""
    CLONE = 4
    """A clone of it holds what no entry before has."""
    CREATED = 5
    """It did not exist when the copy was opened: nothing of it needs saving."""
    DURABLE = 6
    """Begins an append: all before this place, which is `first`, was on stable storage then."""
    INODE = 7
    """Its attributes and extended attributes; the size bounds the blocks that follow."""


STATES: Final = (Kind.INODE, Kind.NARROW_INODE, Kind.DIRECTORY)
"""Entries whose payload an index takes in."""


@dataclass(frozen=True, slots=True)
class SavedInode:
    """Former attributes. `size` of a regular file, `file` its id or NO_ID."""

    mode: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime_ns: int
    file: FileId
    xattrs: tuple[tuple[bytes, bytes], ...]

    def encode(self) -> bytes:
        """The payload of an INODE entry."""
        parts = [
            _INODE.pack(
                self.mode,
                self.uid,
                self.gid,
                self.rdev,
                self.size,
                *divmod(self.mtime_ns, _SECOND_NS),
                self.file,
                len(self.xattrs),
            )
        ]
        for name, value in self.xattrs:
            parts += [_PAIR.pack(len(name), len(value)), name, value]
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class SavedName:
    """One name of a former listing."""

    handle: bytes
    type: int
    """S_IFMT bits."""

    @property
    def directory(self) -> bool:
        """Whether the name is a directory's."""
        return stat.S_ISDIR(self.type)


Listing = dict[bytes, SavedName]


def decode_inode(payload: bytes, kind: Kind = Kind.INODE) -> SavedInode:
    """The attributes in an entry of such a kind."""
    layout = _NARROW if kind is Kind.NARROW_INODE else _INODE
    mode, uid, gid, rdev, size, *time, file, count = layout.unpack_from(payload)
    mtime_ns = time[0] if layout is _NARROW else time[0] * _SECOND_NS + time[1]
    at, xattrs = layout.size, []
    for _ in range(count):
        name_length, value_length = _PAIR.unpack_from(payload, at)
        at += _PAIR.size
        name = payload[at : at + name_length]
        at += name_length
        xattrs.append((name, payload[at : at + value_length]))
        at += value_length
    return SavedInode(mode, uid, gid, rdev, size, mtime_ns, FileId(file), tuple(xattrs))


def encode_listing(listing: Listing) -> bytes:
    """The payload of a DIRECTORY entry."""
    parts = [_COUNT.pack(len(listing))]
    for name, one in listing.items():
        parts += [_NAME.pack(len(name), one.type, len(one.handle)), name, one.handle]
    return b"".join(parts)


def decode_listing(payload: bytes) -> Listing:
    """The names in a DIRECTORY entry."""
    (count,) = _COUNT.unpack_from(payload)
    at, listing = _COUNT.size, {}
    for _ in range(count):
        name_length, kind, handle_length = _NAME.unpack_from(payload, at)
        at += _NAME.size
        name = payload[at : at + name_length]
        at += name_length
        listing[name] = SavedName(payload[at : at + handle_length], kind)
        at += handle_length
    return listing


def encode_blocks(runs: list[tuple[int, bytes]]) -> bytes:
    """The payload of a BLOCKS entry: data by its offset in the file."""
    heads = b"".join(_RUN.pack(offset, len(data)) for offset, data in runs)
    return _COUNT.pack(len(runs)) + heads + b"".join(data for _, data in runs)


def decode_blocks(payload: bytes) -> list[tuple[int, bytes]]:
    """The runs of data in a BLOCKS entry."""
    (count,) = _COUNT.unpack_from(payload)
    at, runs = _COUNT.size + count * _RUN.size, []
    for number in range(count):
        offset, length = _RUN.unpack_from(payload, _COUNT.size + number * _RUN.size)
        runs.append((offset, payload[at : at + length]))
        at += length
    return runs


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, its payload by its place in the log."""

    kind: Kind
    handle: bytes
    first: int
    second: int
    place: int
    length: int
    digest: bytes


def holds_data(entry: Entry) -> bool:
    """Whether not all blocks of a BLOCKS entry were holes."""
    return entry.length > _COUNT.size


def encode_entry(
    seed: int, kind: Kind, handle: bytes, payload: bytes = b"", first: int = 0, second: int = 0
) -> bytes:
    """The bytes of one entry. `seed` is of the copy: what another one left never counts."""
    digest = xxhash.xxh3_128_digest(payload, seed)
    head = _HEAD.pack(_MAGIC, kind, len(handle), len(payload), first, second, digest)
    return head + _DIGEST.pack(xxhash.xxh3_64_intdigest(head + handle, seed)) + handle + payload


class UndoLog:
    """One open log file. `end` is where the next entry goes; everything before it is whole."""

    def __init__(self, descriptor: int, identity: str) -> None:
        self._descriptor = descriptor
        self._name = identity
        self._seed = xxhash.xxh3_64_intdigest(identity.encode())
        self.end = 0

    def entry(
        self, kind: Kind, handle: bytes, payload: bytes = b"", first: int = 0, second: int = 0
    ) -> bytes:
        """The bytes of an entry of this log."""
        return encode_entry(self._seed, kind, handle, payload, first, second)

    def append(self, raw: bytes) -> None:
        """Add encoded entries, durably. OSError: the log is as before."""
        raw = self.entry(Kind.DURABLE, b"", first=self.end) + raw
        try:
            view, at = memoryview(raw), self.end
            while view:
                written = os.pwrite(self._descriptor, view, at)
                view, at = view[written:], at + written
            os.fdatasync(self._descriptor)
        except OSError:
            # Not whole, or not certain to be durable: what follows must not stand behind it.
            os.ftruncate(self._descriptor, self.end)
            raise
        self.end += len(raw)

    def follow(self) -> Iterator[Entry]:
        """The entries from `end` on that are whole by now; `end` moves behind each. Raises
        RecordDamagedError when it is not the last append that they end in."""
        size = os.fstat(self._descriptor).st_size
        while (entry := self._entry_at(self.end, size)) is not None:
            self.end = entry.place + entry.length
            if entry.kind is not Kind.DURABLE:
                yield entry
        if self.end < size:
            self._check_rest(size)

    def _check_rest(self, size: int) -> None:
        """What begins a later append says that this place was durable once."""
        at = self.end
        while at < size:
            chunk = os.pread(self._descriptor, min(_SCAN_BYTES, size - at), at)
            found = chunk.find(_DURABLE)
            while found >= 0:
                entry = self._entry_at(at + found, size)
                if entry is not None and entry.first == at + found:
                    raise RecordDamagedError(
                        f"the safety copy {self._name} is damaged at byte {self.end} of its log, "
                        "and more follows",
                        "What it saved there is lost; check the disk.",
                    )
                found = chunk.find(_DURABLE, found + 1)
            if at + len(chunk) >= size or not chunk:
                return
            at += len(chunk) - len(_DURABLE) + 1

    def cut(self) -> None:
        """Drop what stands behind `end`: the rest of an entry that a crash cut short. Durable with
        the next entry; until then it is dropped again."""
        if os.fstat(self._descriptor).st_size > self.end:
            os.ftruncate(self._descriptor, self.end)

    def _entry_at(self, at: int, size: int) -> Entry | None:
        head = os.pread(self._descriptor, HEAD_BYTES + 255, at)
        body = HEAD_BYTES
        if len(head) < body:
            return None
        magic, kind, handle_length, length, first, second, digest = _HEAD.unpack_from(head)
        handle = head[body : body + handle_length]
        (found,) = _DIGEST.unpack_from(head, _HEAD.size)
        if magic != _MAGIC or len(handle) != handle_length:
            return None
        if xxhash.xxh3_64_intdigest(head[: _HEAD.size] + handle, self._seed) != found:
            return None
        place = at + body + handle_length
        if place + length > size:
            return None
        entry = Entry(Kind(kind), handle, first, second, place, length, digest)
        if place + length > size - _UNVERIFIED_BYTES and not self._whole(entry):
            return None
        return entry

    def _whole(self, entry: Entry) -> bool:
        payload = os.pread(self._descriptor, entry.length, entry.place)
        return xxhash.xxh3_128_digest(payload, self._seed) == entry.digest

    def payload(self, entry: Entry) -> bytes:
        """What an entry holds. Raises RecordDamagedError when the disk does not give it back."""
        payload = os.pread(self._descriptor, entry.length, entry.place)
        if xxhash.xxh3_128_digest(payload, self._seed) != entry.digest:
            raise RecordDamagedError(
                f"the safety copy {self._name} is damaged at byte {entry.place} of its log",
                "What it saved there is lost; check the disk.",
            )
        return payload

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Saved:
    """What the log holds of one inode."""

    __slots__ = ("_blocks", "cloned", "created", "inode", "listing", "runs")

    def __init__(self) -> None:
        self.created = False
        self.cloned = False
        self.inode: SavedInode | None = None
        self.listing: Listing | None = None
        self._blocks: Blocks | None = None
        self.runs: list[Entry] = []

    @property
    def count(self) -> int:
        """How many blocks are saved."""
        return 0 if self._blocks is None else self._blocks.count

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """(first, count) of the blocks in [first, last] that are not saved."""
        if self.cloned:
            return []
        if self._blocks is None:
            return [(first, last + 1 - first)]
        return self._blocks.missing(first, last)

    def mark(self, first: int, count: int) -> None:
        """These blocks are saved."""
        if self._blocks is None:
            self._blocks = Blocks()
        self._blocks.mark(first, count)


class Index:
    """What a log holds, by the handles of inodes. With `runs` also where the blocks are."""

    def __init__(self, log: UndoLog, *, runs: bool) -> None:
        self.log = log
        self.inodes: dict[bytes, Saved] = {}
        self._runs = runs

    def refresh(self) -> None:
        """Take in what was appended since the last time."""
        for entry in self.log.follow():
            payload = b""
            if entry.kind in STATES:
                payload = self.log.payload(entry)
            self.add(entry, payload)

    def add(self, entry: Entry, payload: bytes) -> None:
        """Take in one entry; `payload` matters for attributes and listings only."""
        saved = self.inodes.get(entry.handle)
        if saved is None:
            saved = self.inodes[entry.handle] = Saved()
        if entry.kind in (Kind.INODE, Kind.NARROW_INODE):
            saved.inode = saved.inode or decode_inode(payload, entry.kind)
        elif entry.kind is Kind.DIRECTORY:
            saved.listing = decode_listing(payload) if saved.listing is None else saved.listing
        elif entry.kind is Kind.BLOCKS:
            saved.mark(entry.first, entry.second)
            if self._runs:
                saved.runs.append(entry)
        elif entry.kind is Kind.CLONE:
            saved.cloned = True
        else:
            saved.created = True

    def get(self, handle: bytes) -> Saved | None:
        """What is saved of an inode that existed before; None when nothing is."""
        saved = self.inodes.get(handle)
        return None if saved is None or saved.created else saved
