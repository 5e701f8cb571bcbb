"""The frames of a session that the peer may not have: what is sent again after a break (T4). Pure.

Of a write only the head is kept: the file still holds its data, or what came after it in the same
stream; therefore what is sent again counts as a whole only (`repeats`). Frames are counted from the
first one of the session, on both ends, over all its connections, but for signs of life: the peer
says how many it has, and everything behind them is sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hyperha.errors import ReplicationError
from hyperha.replication import wire
from hyperha.replication.operations import FileId
from hyperha.replication.wire import Kind

_LATER = (Kind.FLUSH, Kind.RETIRE)
"""Frames that the peer does not acknowledge as soon as they have come."""
Kept = tuple[bytes, FileId | None]
"""A frame, and the file of a write of which only the head is kept."""
Read = Callable[[FileId, int, int], bytes]
"""What a file holds now from an offset on, of at most so many bytes; fewer where it ends."""


@dataclass(frozen=True, slots=True)
class WriteHead:
    """The head of a write whose data was sent from its buffer."""

    number: int
    index: int
    offset: int
    length: int
    barrier: bool


class Retained:
    """Frames in the order of the stream, each with the acknowledgement that proves its arrival."""

    __slots__ = ("_frames", "_gone")

    def __init__(self) -> None:
        self._frames: deque[tuple[int, bytes, FileId | None]] = deque()
        self._gone = 0
        """Frames that were let go of: the peer has them."""

    def put(self, proof: int, raw: bytes, file: FileId | None = None) -> None:
        """One frame. An acknowledgement of `proof` or more says that the peer has it; `proof` must
        not fall. `file`: of a write of which this is only the head."""
        self._frames.append((proof, raw, file))

    def acknowledged(self, number: int) -> None:
        """The peer has acknowledged everything up to `number`."""
        frames = self._frames
        while frames and frames[0][0] <= number:
            frames.popleft()
            self._gone += 1

    @property
    def gone(self) -> int:
        """Frames that the peer is known to have."""
        return self._gone

    @property
    def count(self) -> int:
        """Frames since the session began."""
        return self._gone + len(self._frames)

    @property
    def whole(self) -> int:
        """The number of the last frame that the peer acknowledges as soon as it has come."""
        for _, raw, _ in reversed(self._frames):
            _, kind, _, _, _, number = wire.HEAD.unpack_from(raw)
            if number and kind not in _LATER:
                return int(number)
        return 0

    def behind(self, received: int) -> tuple[list[Kept], bool]:
        """What the peer lacks that has `received` frames; the rest is let go of. And whether there
        was anything in that but questions, which are put anew over each line (D8').

        Raises ReplicationError when that cannot be.
        """
        if not self._gone <= received <= self.count:
            raise ReplicationError(
                f"the peer says that it has {received} frames of the session; it was sent "
                f"{self.count} and has acknowledged {self._gone}"
            )
        came_on = False
        while self._gone < received:
            _, raw, _ = self._frames.popleft()
            came_on = came_on or wire.HEAD.unpack_from(raw)[1] != Kind.SYNC
            self._gone += 1
        return [(raw, file) for _, raw, file in self._frames], came_on


def write_head_of(raw: bytes) -> WriteHead | None:
    """The write whose head a retained frame is; None when the frame is whole."""
    length, kind, flags, _, _, number = wire.HEAD.unpack_from(raw)
    if len(raw) == wire.HEAD.size + length:
        return None
    if kind != wire.WRITE or len(raw) != wire.WRITE_HEAD.size:
        raise ReplicationError(f"a frame of kind {kind} cannot be sent again")
    *_, index, offset = wire.WRITE_HEAD.unpack(raw)
    size = length - (wire.WRITE_HEAD.size - wire.HEAD.size)
    return WriteHead(number, index, offset, size, bool(flags & wire.FLAG_BARRIER))


def again(kept: Kept, tag: int, read: Read) -> list[bytes]:
    """The pieces of a retained frame as it is sent again: always one frame.

    A write carries what its range holds by now. Whatever changed it since stands behind it in the
    stream, and none of that is answered before all of it has reached the peer.
    """
    raw, file = kept
    head = write_head_of(raw)
    if head is None:
        return [raw]
    if file is None:
        raise ReplicationError("nobody knows whose write is to be sent again")
    data = read(file, head.offset, head.length)
    return [
        wire.write_head(len(data), tag, head.number, head.index, head.offset, head.barrier),
        data,
    ]
