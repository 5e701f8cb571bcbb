"""What a successor of a dead session needs, kept in shared memory as it changes (M4, N1).

A memfd of 64 KiB chunks, each cut into slots of one kind: nodes (id, lookups, file id, handle),
open handles (number, node, flags) and namespace operations that the kernel has no answer for yet.
A slot counts only while its last-written key is not zero, so a process that dies in the middle of
an update leaves the slot as it was or absent. The daemon holds a duplicate of the descriptor; this
module knows neither the kernel's protocol nor when an operation may be answered.
"""

from __future__ import annotations

import marshal
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, Final

from hyperha.errors import ReplicationError
from hyperha.replication.operations import FileId

_CHUNK: Final = 65536
_LARGE_CHUNK: Final = 131072
_MAGIC: Final = b"hyperha-table-2\n"
_HEADER: Final = 4096
_HEAD: Final = Struct("<16sQIIQQ")
_CHUNK_HEAD: Final = Struct("<QQ")
_KEY: Final = Struct("<Q")
_NODE: Final = Struct("<QQ16sHBx")
_HANDLE: Final = Struct("<QQIIB3x")
_RESULT: Final = Struct("<QQ16sBBxxI")
"""Key, sequence, id, progress, length of the mark, length of the body. The mark stands first and is
never written over, so that a process which dies while it notes a body leaves it whole. A table of
before there were marks reads as one whose marks are empty."""


class _Kind(IntEnum):
    NODE = 1
    HANDLE = 2
    RESULT = 3
    LARGE_RESULT = 4


_SLOT: Final = {
    _Kind.NODE: 192,
    _Kind.HANDLE: 32,
    _Kind.RESULT: 1024,
    _Kind.LARGE_RESULT: _LARGE_CHUNK - 64,
}
_HANDLE_LIMIT: Final = 192 - _NODE.size
_MARK_LIMIT: Final = _HANDLE_LIMIT
"""A mark may be the handle of an inode."""


class Progress(IntEnum):
    """How far a namespace operation had come when it was last noted."""

    STARTED = 1
    DONE = 2


@dataclass(slots=True)
class Slot:
    """One place in the table: where it is; free again when `release` was called."""

    memory: mmap.mmap
    offset: int
    kind: _Kind


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node that the kernel knows."""

    slot: Slot
    node: int
    lookups: int
    file: FileId
    handle: bytes
    directory: bool


@dataclass(frozen=True, slots=True)
class HandleRecord:
    """An open handle that the kernel knows."""

    slot: Slot
    number: int
    node: int
    flags: int
    answer_flags: int
    directory: bool


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """A namespace operation without an answer: `body` is what the session stored with it."""

    slot: Slot
    unique: int
    sequence: int
    file: FileId
    progress: Progress
    mark: bytes
    """What the session noted before it began; nothing once the body has moved to a larger place."""
    body: object


class SharedTable:
    """The table of one session, new or inherited by its descriptor.

    Changed by the thread that reads requests; `release` may be called from any thread, and
    `set_lookups` by whoever holds the lock of the nodes.

    Raises ReplicationError when an inherited descriptor does not hold such a table.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._chunks: list[tuple[_Kind, mmap.mmap]] = []
        self._closing = threading.Lock()
        self._closed = False
        self._free: dict[_Kind, list[Slot]] = {kind: [] for kind in _Kind}
        if descriptor is None:
            self.descriptor = os.memfd_create("hyperha-table", os.MFD_CLOEXEC)
            os.ftruncate(self.descriptor, _HEADER)
            self._size = _HEADER
            self._head = mmap.mmap(self.descriptor, _HEADER)
            self.features = self.minor = self.sequence = 0
            self.primary = False
            self.save_header()
        else:
            self.descriptor = os.dup(descriptor)
            self._size = os.fstat(self.descriptor).st_size
            self._adopt()

    def _adopt(self) -> None:
        if self._size < _HEADER:
            raise ReplicationError("the inherited table of the FUSE session is empty")
        self._head = mmap.mmap(self.descriptor, _HEADER)
        magic, features, minor, primary, sequence, _ = _HEAD.unpack_from(self._head)
        if magic != _MAGIC:
            raise ReplicationError("the inherited descriptor holds no table of a FUSE session")
        self.features, self.minor, self.sequence = features, minor, sequence
        self.primary = bool(primary)
        offset = _HEADER
        while offset < self._size:
            with mmap.mmap(self.descriptor, mmap.PAGESIZE, offset=offset) as head:
                number, _ = _CHUNK_HEAD.unpack_from(head)
            if number == 0:
                # The predecessor died between growing the file and naming the chunk.
                self._size = offset
                break
            kind = _Kind(number)
            size = _chunk_size(kind)
            self._chunks.append((kind, mmap.mmap(self.descriptor, size, offset=offset)))
            offset += size
        for slot in self._slots():
            if _KEY.unpack_from(slot.memory, slot.offset)[0] == 0:
                self._free[slot.kind].append(slot)

    def close(self) -> None:
        """Unmap and let go of the descriptor; the memory lives while another process holds it."""
        with self._closing:
            self._closed = True
            for _, memory in self._chunks:
                memory.close()
            self._chunks.clear()
        self._head.close()
        os.close(self.descriptor)

    def save_header(self) -> None:
        """Note what INIT negotiated, the mode and the sequence number."""
        _HEAD.pack_into(
            self._head, 0, _MAGIC, self.features, self.minor, self.primary, self.sequence, 0
        )

    def _slots(self) -> Iterator[Slot]:
        for kind, memory in self._chunks:
            step = _SLOT[kind]
            for offset in range(64, len(memory) - step + 1, step):
                yield Slot(memory, offset, kind)

    def _take(self, kind: _Kind) -> Slot:
        free = self._free[kind]
        if not free:
            size = _chunk_size(kind)
            os.ftruncate(self.descriptor, self._size + size)
            memory = mmap.mmap(self.descriptor, size, offset=self._size)
            _CHUNK_HEAD.pack_into(memory, 0, kind, 0)
            self._size += size
            self._chunks.append((kind, memory))
            step = _SLOT[kind]
            free.extend(Slot(memory, o, kind) for o in range(64, size - step + 1, step))
        return free.pop()

    def release(self, slot: Slot) -> None:
        """Make a slot free; nothing when the table has been closed meanwhile."""
        with self._closing:
            if self._closed:
                return
            _KEY.pack_into(slot.memory, slot.offset, 0)
            self._free[slot.kind].append(slot)

    # --- nodes ----------------------------------------------------------------------------

    def add_node(self, node: int, file: FileId, handle: bytes, directory: bool) -> Slot:
        """Note a node; lookups are set apart. Raises ReplicationError on an oversized handle."""
        if len(handle) > _HANDLE_LIMIT:
            raise ReplicationError(
                f"the file system gives handles of {len(handle)} bytes",
                f"Use a file system with handles of at most {_HANDLE_LIMIT} bytes",
            )
        slot = self._take(_Kind.NODE)
        memory, offset = slot.memory, slot.offset
        _NODE.pack_into(memory, offset, 0, 0, file, len(handle), directory)
        start = offset + _NODE.size
        memory[start : start + len(handle)] = handle
        _KEY.pack_into(memory, offset, node)
        return slot

    @staticmethod
    def set_lookups(slot: Slot, lookups: int) -> None:
        """Note how many lookups of a node the kernel holds; written before the answer is given."""
        _KEY.pack_into(slot.memory, slot.offset + 8, lookups)

    @staticmethod
    def set_file(slot: Slot, file: FileId) -> None:
        """Note the id that a node's inode has been given."""
        slot.memory[slot.offset + 16 : slot.offset + 32] = file

    def nodes(self) -> Iterator[NodeRecord]:
        """All nodes of an inherited table."""
        for slot in self._used(_Kind.NODE):
            node, lookups, file, length, directory = _NODE.unpack_from(slot.memory, slot.offset)
            start = slot.offset + _NODE.size
            handle = bytes(slot.memory[start : start + length])
            yield NodeRecord(slot, node, lookups, FileId(file), handle, bool(directory))

    # --- open handles ---------------------------------------------------------------------

    def add_handle(
        self, number: int, node: int, flags: int, answer_flags: int, directory: bool
    ) -> Slot:
        """Note an open handle, before the kernel learns its number."""
        slot = self._take(_Kind.HANDLE)
        _HANDLE.pack_into(slot.memory, slot.offset, 0, node, flags, answer_flags, directory)
        _KEY.pack_into(slot.memory, slot.offset, number)
        return slot

    def handles(self) -> Iterator[HandleRecord]:
        """All open handles of an inherited table."""
        for slot in self._used(_Kind.HANDLE):
            number, node, flags, answer, directory = _HANDLE.unpack_from(slot.memory, slot.offset)
            yield HandleRecord(slot, number, node, flags, answer, bool(directory))

    # --- namespace operations -------------------------------------------------------------

    def start_operation(self, unique: int, file: FileId, mark: bytes = b"") -> Slot:
        """Note that an operation is about to be done locally; `file` is the id it will create, and
        `mark` (at most `_MARK_LIMIT` bytes) is for who has to tell whether it was done."""
        if len(mark) > _MARK_LIMIT:
            raise ReplicationError(f"the mark of an operation has {len(mark)} bytes")
        self.sequence += 1
        slot = self._take(_Kind.RESULT)
        memory, offset = slot.memory, slot.offset
        size = len(mark)
        _RESULT.pack_into(memory, offset, 0, self.sequence, file, Progress.STARTED, size, 0)
        start = offset + _RESULT.size
        memory[start : start + size] = mark
        _KEY.pack_into(memory, offset, unique)
        return slot

    def finish_operation(self, slot: Slot, body: tuple[Any, ...]) -> Slot:
        """Note the result; the returned slot is the one to release when the kernel has it."""
        unique, sequence, file, _, mark, _ = _RESULT.unpack_from(slot.memory, slot.offset)
        data = marshal.dumps(body)
        place = slot
        if len(data) > _SLOT[slot.kind] - _RESULT.size - mark:
            place, mark = self._take(_Kind.LARGE_RESULT), 0
            if len(data) > _SLOT[place.kind] - _RESULT.size:
                self._free[place.kind].append(place)
                raise ReplicationError(f"the result of an operation has {len(data)} bytes")
        memory, offset = place.memory, place.offset
        start = offset + _RESULT.size + mark
        memory[start : start + len(data)] = data
        key = unique if place is slot else 0
        _RESULT.pack_into(memory, offset, key, sequence, file, Progress.DONE, mark, len(data))
        if place is not slot:
            _KEY.pack_into(memory, offset, unique)
            self.release(slot)
        return place

    def operations(self) -> list[OperationRecord]:
        """The unanswered operations of an inherited table, in the order in which they began.

        Where one was being moved to a larger place, the finished record counts.
        """
        found: dict[int, OperationRecord] = {}
        for kind in (_Kind.RESULT, _Kind.LARGE_RESULT):
            for slot in self._used(kind):
                memory, offset = slot.memory, slot.offset
                head = _RESULT.unpack_from(memory, offset)
                unique, sequence, file, progress, size, length = head
                start = offset + _RESULT.size
                mark = bytes(memory[start : start + size])
                start += size
                body: object = None
                if progress == Progress.DONE:
                    try:
                        body = marshal.loads(memory[start : start + length])
                    except (EOFError, ValueError, TypeError):
                        # The predecessor died while it noted the result: done, but untold.
                        progress = Progress.STARTED
                record = OperationRecord(
                    slot, unique, sequence, FileId(file), Progress(progress), mark, body
                )
                if unique in found:
                    self.release(found[unique].slot)
                found[unique] = record
        records = sorted(found.values(), key=lambda record: record.sequence)
        self.sequence = max([self.sequence, *(record.sequence for record in records)])
        return records

    def _used(self, kind: _Kind) -> Iterator[Slot]:
        for slot in list(self._slots()):
            if slot.kind is kind and _KEY.unpack_from(slot.memory, slot.offset)[0] != 0:
                yield slot


def _chunk_size(kind: _Kind) -> int:
    return _LARGE_CHUNK if kind is _Kind.LARGE_RESULT else _CHUNK
