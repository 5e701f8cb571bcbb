"""What the secondary needs to go on with a session over other connections (T4).

`NextLine` hands connections from the thread that accepted them to the one that serves the session;
`refuse` tells a primary that it cannot have one.
`Answers` keeps the last answers of this copy, since what was on its way when a connection broke is
lost; what acknowledges or reports is not kept: it is said anew.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Final

from hyperha.errors import ReplicationError
from hyperha.replication import handshake, wire
from hyperha.replication.handshake import Hello, Refusal
from hyperha.replication.transport import Connection
from hyperha.replication.wire import Kind, Parser

log = logging.getLogger(__name__)

_REFUSE_S: Final = 0.2
_KEPT: Final = 256
"""More answers than questions that a primary has under way."""
_KEPT_BYTES: Final = 4 << 20
"""Those of a verification are small; those of a resync, which is not resumed, need not be."""
_NOT_COUNTED: Final = (
    Kind.WELCOME,
    Kind.REFUSED,
    Kind.CANDIDATES,
    Kind.ACKNOWLEDGED,
    Kind.FLUSHED,
    Kind.PROGRESS,
    Kind.FAILED,
)
Offered = tuple[Connection, Connection, Hello]
"""Forward, backward, and what came over it."""


def is_answer(kind: Kind) -> bool:
    """Whether both ends count a frame of the secondary."""
    return kind not in _NOT_COUNTED


class NextLine:
    """A place for one pair of connections."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._offered: Offered | None = None
        self._attempt = 0
        """Of the primary's tries the last that came."""
        self._closed = False

    def offer(self, offered: Offered) -> bool:
        """Leave a pair; one that was not taken is closed. False when nobody will take it, also
        because the primary has tried another one since."""
        attempt = offered[2].attempt
        with self._changed:
            if self._closed or attempt <= self._attempt:
                return False
            self._attempt = attempt
            former, self._offered = self._offered, offered
            self._changed.notify_all()
        if former is not None:
            _close(former)
        return True

    def take(self, wait_s: float) -> Offered | None:
        """The pair that was left last, waited for; None when none came or `close` was called."""
        with self._changed:
            self._changed.wait_for(lambda: self._offered is not None or self._closed, wait_s)
            offered, self._offered = self._offered, None
            return offered

    def close(self) -> None:
        """Nothing is to be left any more; what is left is closed."""
        with self._changed:
            self._closed = True
            offered, self._offered = self._offered, None
            self._changed.notify_all()
        if offered is not None:
            _close(offered)


class Answers:
    """The answers of this copy, counted from the session's first one. Its user has a lock."""

    def __init__(self) -> None:
        self._kept: deque[bytes] = deque()
        self._bytes = 0
        self._count = 0

    def note(self, raw: bytes) -> None:
        """Frames that are about to be said."""
        position = 0
        while position < len(raw):
            length, kind, *_ = wire.HEAD.unpack_from(raw, position)
            end = position + wire.HEAD.size + length
            if is_answer(Kind(kind)):
                self._kept.append(raw[position:end])
                self._bytes += end - position
                self._count += 1
            position = end
        while len(self._kept) > _KEPT or self._bytes > _KEPT_BYTES:
            self._bytes -= len(self._kept.popleft())

    def behind(self, received: int) -> list[bytes]:
        """What the primary lacks that has so many. Raises ReplicationError when that is lost."""
        missing = self._count - received
        if not 0 <= missing <= len(self._kept):
            raise ReplicationError(
                f"the primary has {received} answers of {self._count}, "
                f"of which the last {len(self._kept)} are kept"
            )
        return list(self._kept)[len(self._kept) - missing :]


def read_hello(forward: Connection, tag: int) -> Hello:
    """The first frame of a connection. Raises ReplicationError when it is no hello."""
    head = forward.receive_exactly(wire.HEAD.size)
    length = wire.HEAD.unpack(head)[0]
    if length > wire.FRAME_LIMIT:
        raise ReplicationError(f"the session begins with a frame of {length} bytes")
    raw = head + forward.receive_exactly(length)
    frame = Parser(tag, from_primary=True).feed(raw)[0]
    if frame.kind is not Kind.HELLO:
        raise ReplicationError(f"the session begins with {frame.kind.name}, not with a hello")
    return handshake.decode_hello(frame.payload)


def refuse(backward: Connection, tag: int, refusal: Refusal) -> None:
    """Say why, as far as it can be said at once."""
    try:
        backward.set_timeout(_REFUSE_S)
        backward.send([wire.frame(Kind.REFUSED, tag, 0, handshake.encode_refusal(refusal))])
    except OSError as error:
        log.debug("the refused side has gone: %s", error)


def _close(offered: Offered) -> None:
    for connection in offered[:2]:
        connection.close()
