"""The frames of a session that the peer may not have: what is sent again after a break (T4). Pure.

Of a write only the head is kept: the file still holds its data, or what came after it in the same
stream. Frames are counted from the first one of the session, on both ends, over all its
connections, but for signs of life: the peer says how many it has, and everything behind them is
sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hyperha.errors import ReplicationError
from hyperha.replication import wire
from hyperha.replication.operations import FileId

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
        self._frames: deque[tuple[int, bytes]] = deque()
        self._gone = 0
        """Frames that were let go of: the peer has them."""

    def put(self, proof: int, raw: bytes) -> None:
        """One frame. An acknowledgement of `proof` or more says that the peer has it; `proof` must
        not fall."""
        self._frames.append((proof, raw))

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

    def behind(self, received: int) -> list[bytes]:
        """What the peer lacks that has `received` frames; the rest is let go of.

        Raises ReplicationError when that cannot be.
        """
        if not self._gone <= received <= self.count:
            raise ReplicationError(
                f"the peer says that it has {received} frames of the session; it was sent "
                f"{self.count} and has acknowledged {self._gone}"
            )
        while self._gone < received:
            self._frames.popleft()
            self._gone += 1
        return [raw for _, raw in self._frames]


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


def again(raw: bytes, tag: int, files: dict[int, FileId], read: Read) -> list[bytes]:
    """The pieces of a retained frame as it is sent again: always one frame.

    A write carries what its range holds by now. Whatever changed it since stands behind it in the
    stream, and neither was answered, so that a reader of the other copy may find either.
    """
    head = write_head_of(raw)
    if head is None:
        return [raw]
    data = read(files[head.index], head.offset, head.length)
    return [
        wire.write_head(len(data), tag, head.number, head.index, head.offset, head.barrier),
        data,
    ]
