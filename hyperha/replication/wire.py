"""The frames of a replication session: kinds, framing, strict limits. Pure: no sockets, no files.

Every frame carries its session's tag (T3) and a number. Numbers of the primary's frames grow by
one; what the secondary says refers to them. A frame that is not exactly what it should be ends the
session with one ReplicationError and nothing of it is applied. Changes are in `wire_changes`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import xxhash

from hyperha.domain import SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication.buffers import Buffers
from hyperha.replication.operations import OFFSET_LIMIT, FileId, Record, RecordKind

ZONE_BYTES: Final = 1 << 20
"""One zone of the intent log."""
BLOCK_BYTES: Final = 1 << 16
"""What a resync compares and moves."""
BLOCKS_PER_ZONE: Final = ZONE_BYTES // BLOCK_BYTES
DATA_LIMIT: Final = 1 << 20
FRAME_LIMIT: Final = DATA_LIMIT + 4096
RECORDS_PER_FRAME: Final = 16384
_LARGE: Final = 128 << 10
_ALIGNMENT: Final = 64
"""Data of a large frame begins at such an address; see `buffers`."""
_AFTER_LARGE: Final = 4096
"""Received behind a large frame: the next one's head, and little of a payload that is moved."""

HEAD: Final = struct.Struct("<IBBHIQ")
"""Bytes behind the head, kind, flags, zero, session tag, number."""
WRITE_HEAD: Final = struct.Struct("<IBBHIQIQ")
"""A head followed by file index and offset, packed at once on the hot path."""
_WRITE: Final = struct.Struct("<IQ")
_BIND: Final = struct.Struct("<I16s")
_RECORD: Final = struct.Struct("<B16sQ")
_DIGESTS: Final = struct.Struct("<16sQHH")
_BLOCK: Final = struct.Struct("<16sQ")
_HOLE_RANGE: Final = struct.Struct("<16sQQ")
_PROGRESS: Final = struct.Struct("<QQBQQQ")
_HEAD_SIZE: Final = HEAD.size
_WRITE_HEAD_SIZE: Final = WRITE_HEAD.size

FLAG_BARRIER: Final = 1
"""On a write: answered when it is on stable storage on both nodes (M1)."""
FLAG_DATA_ONLY: Final = 1
"""On a flush: fdatasync is enough."""
FLAG_LAST: Final = 2
"""On listings and candidate lists: nothing follows."""
FLAG_CLEAN: Final = 1
"""On the answer to a mark: nothing was left unsettled since the last one."""
_ALL_FLAGS: Final = 3


class Kind(IntEnum):
    """What a frame is. Up to 31 the primary says, from 32 the secondary."""

    HELLO = 1
    BIND = 2
    WRITE = 3
    CHANGE = 4
    FLUSH = 5
    SYNC = 6
    RETIRE = 7
    GOODBYE = 8
    LISTING = 9
    INODE = 10
    DIGESTS = 11
    BLOCK = 12
    MARK = 13
    HOLE = 14
    ALIVE = 15
    """Nothing to say; the stream counts as a LAN while frames arrive (P8)."""
    COMPARE = 16
    """Digests of a zone, of an inode, of a directory: what differs is told, nothing is changed."""
    COMPARE_INODE = 17
    COMPARE_LISTING = 18
    RESERVE = 19
    """A range that the source keeps room for, and never wrote."""
    WELCOME = 32
    REFUSED = 33
    CANDIDATES = 34
    ACKNOWLEDGED = 35
    FLUSHED = 36
    PROGRESS = 37
    UNSETTLED = 38
    RECONCILED = 39
    DIFFERENT = 40
    MARKED = 41
    FAILED = 42


_KINDS: Final = {int(kind): kind for kind in Kind}
# Named here because attribute access on an enumeration is slow in a loop over frames.
WRITE: Final = int(Kind.WRITE)
ACKNOWLEDGED: Final = int(Kind.ACKNOWLEDGED)


class Frame(NamedTuple):
    """One received frame; `payload` belongs to the frame. A tuple, since one is made per write."""

    kind: Kind
    flags: int
    number: int
    payload: bytes | memoryview
    """A view only for large writes and blocks, which are received in place: whoever has the frame
    owns the buffer behind it, and gives it back to the parser's `buffers` when it is applied."""


def session_tag(session: SessionKey) -> int:
    """32 bits that stand for the session in every frame, never 0."""
    epoch = session.epoch
    text = f"{session.generation}/{epoch.counter}/{epoch.node}/{session.number}"
    return xxhash.xxh3_64_intdigest(text.encode()) & 0xFFFFFFFF or 1


def frame(kind: Kind, tag: int, number: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """The bytes of any frame."""
    if len(payload) > FRAME_LIMIT:
        raise ReplicationError(f"a {kind.name} frame of {len(payload)} bytes is too large")
    return HEAD.pack(len(payload), kind, flags, 0, tag, number) + payload


def write_head(length: int, tag: int, number: int, index: int, offset: int, barrier: bool) -> bytes:
    """The head of a write; `length` bytes of data follow it on the wire."""
    return WRITE_HEAD.pack(length + _WRITE.size, WRITE, barrier, 0, tag, number, index, offset)


PlainWrite = tuple[int, int, int, memoryview]
"""Number, file index, offset, data."""


class Parser:
    """Cuts a received byte stream into frames of one session; knows nothing of their meaning."""

    __slots__ = ("_buffers", "_filled", "_from_secondary", "_held", "_large", "_tag", "wanted")

    def __init__(self, tag: int, *, from_primary: bool, buffers: Buffers | None = None) -> None:
        self.wanted = FRAME_LIMIT
        """How many bytes are best received for the next `feed`, at most."""
        self._buffers = Buffers() if buffers is None else buffers
        """Where the payloads of large frames come from."""
        self._tag = tag
        self._held = bytearray()
        self._large: tuple[Kind, int, int, memoryview] | None = None
        self._filled = 0
        self._from_secondary = not from_primary

    @property
    def partial(self) -> bool:
        """Whether the stream stands inside a frame: its end there is a truncation."""
        return bool(self._held) or self._large is not None

    def room(self) -> memoryview | None:
        """Where the rest of a large frame is to be received, if one is under way."""
        if self._large is None:
            return None
        return self._large[3][self._filled :]

    def filled(self, size: int) -> Frame | None:
        """`size` bytes were received into `room`; the frame if it is complete."""
        assert self._large is not None
        self._filled += size
        kind, flags, number, payload = self._large
        if self._filled < len(payload):
            return None
        self._large = None
        # More of the same is likely: its payload, too, is to be received where it stays.
        self.wanted = _AFTER_LARGE
        return Frame(kind, flags, number, payload)

    def writes(self, data: memoryview) -> tuple[list[PlainWrite], int]:
        """Small writes without flags that stand whole at the front of `data`, and their length.

        Nothing is copied or kept: they are valid as long as `data`, and all of it may still be
        given to `feed`, which also refuses what this does not understand.
        """
        found: list[PlainWrite] = []
        position, size, mine, unpack = 0, len(data), self._tag, WRITE_HEAD.unpack_from
        if self._held:
            return found, 0
        while size - position >= _WRITE_HEAD_SIZE:
            length, kind, flags, zero, tag, number, index, offset = unpack(data, position)
            end = position + _HEAD_SIZE + length
            if (
                kind != WRITE
                or flags
                or zero
                or tag != mine
                or end > size
                or length <= _WRITE.size
                or offset + length - _WRITE.size > OFFSET_LIMIT
            ):
                break
            found.append((number, index, offset, data[position + _WRITE_HEAD_SIZE : end]))
            position = end
        return found, position

    def skipped(self) -> None:
        """What `writes` found was all, and was taken from there: it is not fed."""
        self.wanted = FRAME_LIMIT

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """The frames completed by `data`; not while `room` is given.

        Raises ReplicationError; then the stream is dead.
        """
        self.wanted = FRAME_LIMIT
        held = self._held
        if held:
            held += data
            source: bytearray | bytes | memoryview = held
        else:
            source = data
        position, size = 0, len(source)
        head_size, unpack, kinds = HEAD.size, HEAD.unpack_from, _KINDS
        frames: list[Frame] = []
        with memoryview(source) as view:
            while size - position >= head_size:
                length, number_of_kind, flags, zero, tag, number = unpack(view, position)
                kind = kinds.get(number_of_kind)
                if (
                    kind is None
                    or tag != self._tag
                    or length > FRAME_LIMIT
                    or zero
                    or flags > _ALL_FLAGS
                    or (number_of_kind >= 32) != self._from_secondary
                ):
                    self._refuse(length, number_of_kind, flags, zero, tag)
                    break
                end = position + head_size + length
                if end > size:
                    if length >= _LARGE and kind in (Kind.WRITE, Kind.BLOCK):
                        self._begin_large(kind, flags, number, length, view[position + head_size :])
                        position = size
                    break
                payload = bytes(view[position + head_size : end])
                position = end
                frames.append(Frame(kind, flags, number, payload))
        if held:
            del held[:position]
        elif position < size:
            held += data[position:]
        return frames

    def _begin_large(
        self, kind: Kind, flags: int, number: int, length: int, start: memoryview
    ) -> None:
        before = _ALIGNMENT - (_WRITE.size if kind is Kind.WRITE else _BLOCK.size)
        payload = memoryview(self._buffers.take(before + length))[before:]
        self._filled = len(start)
        payload[: self._filled] = start
        self._large = (kind, flags, number, payload)

    def _refuse(self, length: int, kind: int, flags: int, zero: int, tag: int) -> None:
        if tag != self._tag:
            text = f"a frame of another session (tag {tag:#x}, expected {self._tag:#x}, T3)"
        elif length > FRAME_LIMIT:
            text = f"a frame of {length} bytes, more than the {FRAME_LIMIT} allowed"
        else:
            text = f"a malformed frame (kind {kind}, flags {flags}, {zero})"
        raise ReplicationError(f"the replication stream carries {text}")


class Cursor:
    """Reads a payload piece by piece; anything missing or left over is an error."""

    __slots__ = ("_data", "_position", "_what")

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = bytes(data)
        self._position = 0
        self._what = what

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._position + size
        if end > len(self._data):
            raise ReplicationError(f"a {self._what} frame is truncated")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def fields(self, layout: struct.Struct) -> tuple[int, ...]:
        """Numbers (and byte strings) of a fixed layout."""
        return layout.unpack(self.take(layout.size))

    def short(self) -> bytes:
        """A byte string of at most 64 KiB with its length before it."""
        return self.take(int.from_bytes(self.take(2), "little"))

    def long(self) -> bytes:
        """A byte string with a 32-bit length before it."""
        return self.take(int.from_bytes(self.take(4), "little"))

    def more(self) -> bool:
        """Whether anything is left."""
        return self._position < len(self._data)

    def end(self) -> None:
        """Refuse what is left over."""
        if self.more():
            raise ReplicationError(f"a {self._what} frame is longer than what it says")


def decode_write(payload: bytes | memoryview) -> tuple[int, int, memoryview]:
    """File index, offset, data."""
    if len(payload) < _WRITE.size:
        raise ReplicationError("a write frame is truncated")
    index, offset = _WRITE.unpack_from(payload)
    if offset + len(payload) - _WRITE.size > OFFSET_LIMIT:
        raise ReplicationError(f"a write frame has the impossible offset {offset}")
    return index, offset, memoryview(payload)[_WRITE.size :]


def encode_bind(index: int, file: FileId) -> bytes:
    """Payload that lets `index` stand for a file in this session's writes."""
    return _BIND.pack(index, file)


def decode_bind(payload: bytes | memoryview) -> tuple[int, FileId]:
    """Index and file id."""
    if len(payload) != _BIND.size:
        raise ReplicationError(f"a bind frame of {len(payload)} bytes")
    index, file = _BIND.unpack(payload)
    return index, FileId(file)


def decode_id(payload: bytes | memoryview, what: str) -> FileId:
    """A payload that is one file id."""
    if len(payload) != 16:
        raise ReplicationError(f"a {what} frame of {len(payload)} bytes")
    return FileId(bytes(payload))


def encode_records(records: list[Record] | tuple[Record, ...]) -> bytes:
    """Payload of candidate lists and of what the target found unsettled."""
    return b"".join([_RECORD.pack(one.kind, one.file, one.zone) for one in records])


def decode_records(payload: bytes | memoryview, what: str) -> list[Record]:
    """The records of a payload."""
    if len(payload) % _RECORD.size:
        raise ReplicationError(f"a {what} frame of {len(payload)} bytes")
    try:
        return [
            Record(RecordKind(kind), FileId(file), zone)
            for kind, file, zone in _RECORD.iter_unpack(payload)
        ]
    except ValueError as problem:
        raise ReplicationError(f"a {what} frame is malformed ({problem})") from None


@dataclass(frozen=True, slots=True)
class ZoneDigests:
    """The source's digests of `len(digests)` blocks from `offset`; None: a hole there."""

    file: FileId
    offset: int
    digests: tuple[bytes | None, ...]


_HOLE: Final = b"\0" * 16


def encode_digests(zone: ZoneDigests) -> bytes:
    """Payload of a digest comparison; a bit per block says hole, digests of the others follow."""
    holes = sum(1 << i for i, one in enumerate(zone.digests) if one is None)
    head = _DIGESTS.pack(zone.file, zone.offset, len(zone.digests), holes)
    return head + b"".join([one for one in zone.digests if one is not None])


def decode_digests(payload: bytes | memoryview) -> ZoneDigests:
    """The digests of a payload."""
    cursor = Cursor(payload, "digest")
    file, offset, count, holes = _DIGESTS.unpack(cursor.take(_DIGESTS.size))
    beyond = offset + count * BLOCK_BYTES > OFFSET_LIMIT + 1 or offset > OFFSET_LIMIT
    if count > BLOCKS_PER_ZONE or holes >> count or offset % BLOCK_BYTES or beyond:
        raise ReplicationError(f"a digest frame for {count} blocks at {offset} is malformed")
    digests = tuple(None if holes >> i & 1 else cursor.take(16) for i in range(count))
    cursor.end()
    return ZoneDigests(FileId(file), offset, digests)


def encode_different(blocks: list[int]) -> bytes:
    """Payload of the answer: the numbers of blocks that differ."""
    return sum(1 << i for i in blocks).to_bytes(2, "little")


def decode_different(payload: bytes | memoryview) -> list[int]:
    """The numbers of the blocks that differ."""
    if len(payload) != 2:
        raise ReplicationError(f"an answer to digests of {len(payload)} bytes")
    bits = int.from_bytes(payload, "little")
    return [i for i in range(BLOCKS_PER_ZONE) if bits >> i & 1]


def encode_digest(file: FileId, digest: bytes) -> bytes:
    """Payload of a comparison that is one digest."""
    return file + digest


def decode_digest(payload: bytes | memoryview) -> tuple[FileId, bytes]:
    """File id and digest."""
    if len(payload) != 32:
        raise ReplicationError(f"a comparison of {len(payload)} bytes")
    return FileId(bytes(payload[:16])), bytes(payload[16:])


def block_head(length: int, tag: int, number: int, file: FileId, offset: int) -> bytes:
    """The head of a resync block; `length` bytes of data follow it on the wire."""
    return HEAD.pack(length + _BLOCK.size, Kind.BLOCK, 0, 0, tag, number) + _BLOCK.pack(
        file, offset
    )


def decode_block(payload: bytes | memoryview) -> tuple[FileId, int, memoryview]:
    """File id, offset, data."""
    if len(payload) < _BLOCK.size:
        raise ReplicationError("a block frame is truncated")
    file, offset = _BLOCK.unpack_from(payload)
    size = len(payload) - _BLOCK.size
    if offset + size > OFFSET_LIMIT or size > ZONE_BYTES:
        raise ReplicationError(f"a block of {len(payload)} bytes at {offset} is malformed")
    return FileId(file), offset, memoryview(payload)[_BLOCK.size :]


def encode_hole(file: FileId, offset: int, length: int) -> bytes:
    """Payload of a range that is a hole on the source, or room without data."""
    return _HOLE_RANGE.pack(file, offset, length)


def decode_hole(payload: bytes | memoryview) -> tuple[FileId, int, int]:
    """File id, offset, length."""
    if len(payload) != _HOLE_RANGE.size:
        raise ReplicationError(f"a hole frame of {len(payload)} bytes")
    file, offset, length = _HOLE_RANGE.unpack(payload)
    if offset + length > OFFSET_LIMIT:
        raise ReplicationError(f"a hole of {length} bytes at {offset} is impossible")
    return FileId(file), offset, length


@dataclass(frozen=True, slots=True)
class Progress:
    """The secondary's sign of life, four times a second (D8', D11)."""

    applied: int
    """Grows while it gets on: frames applied since the session began, and steps within one."""
    waiting_bytes: int
    """Received and not yet applied."""
    syncing: bool
    """An fsync runs."""
    room_bytes: int
    """Free on its file system."""
    log_records: int
    """Records of its log that a barrier of both nodes may retire, at least one while something else
    in it waits for such a barrier (N4)."""
    log_capacity: int
    """So many its log has room for."""


def encode_progress(progress: Progress) -> bytes:
    """Payload of the sign of life."""
    return _PROGRESS.pack(
        progress.applied,
        progress.waiting_bytes,
        progress.syncing,
        progress.room_bytes,
        progress.log_records,
        progress.log_capacity,
    )


def decode_progress(payload: bytes | memoryview) -> Progress:
    """The sign of life."""
    if len(payload) != _PROGRESS.size:
        raise ReplicationError(f"a progress frame of {len(payload)} bytes")
    applied, waiting, syncing, room, records, capacity = _PROGRESS.unpack(payload)
    return Progress(applied, waiting, bool(syncing), room, records, capacity)
