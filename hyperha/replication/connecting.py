"""The primary's side of connecting: the two connections of a session over one LAN, and the hello.

One attempt at a time per `Connector`; `abort` ends it from any thread. Decides nothing.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass

from hyperha.errors import ReplicationError
from hyperha.replication import handshake, wire
from hyperha.replication.control import EngineConfig, PeerLink
from hyperha.replication.handshake import Hello
from hyperha.replication.preamble import Direction, Preamble, cluster_hash
from hyperha.replication.preamble import encode as encode_preamble
from hyperha.replication.transport import Connection, connect
from hyperha.replication.wire import Frame, Kind, Parser


@dataclass(frozen=True, slots=True)
class Line:
    """The connections that carry a session: one per direction, each used by one thread (T5)."""

    link: PeerLink
    forward: Connection
    backward: Connection

    def set_timeout(self, timeout_s: float | None) -> None:
        """Bound the next calls on both; None: wait for ever."""
        self.forward.set_timeout(timeout_s)
        self.backward.set_timeout(timeout_s)

    def abort(self) -> None:
        """End both from any thread."""
        self.forward.abort()
        self.backward.abort()

    def close(self) -> None:
        """Close both; for the owner, when no thread uses them any more."""
        self.forward.close()
        self.backward.close()


class Connector:
    """Offers one session to the peer."""

    def __init__(self, config: EngineConfig, tag: int) -> None:
        self._config = config
        self._tag = tag
        self._lock = threading.Lock()
        self._made: list[Connection] = []
        self._stopped = False

    def offer(
        self, link: PeerLink, hello: Hello, *, connect_s: float, answer_s: float
    ) -> tuple[Line, Frame]:
        """Connect over a LAN, say hello, and read the answer; the caller owns the connections.

        Raises OSError when the peer cannot be reached there, ReplicationError when it hangs up or
        answers what is no answer.
        """
        pair = secrets.token_bytes(16)
        made: list[Connection] = []
        try:
            for direction in Direction:
                connection = connect(
                    link.peer_address, link.peer_port, link.local_address, connect_s
                )
                made.append(connection)
                self._note(made)
                connection.set_timeout(answer_s)
                connection.send([encode_preamble(self._preamble(link, direction, pair, hello))])
                if link.tls is not None:
                    peer = self._config.peer
                    connection.secure(link.tls, peer, server=False, timeout_s=answer_s)
            line = Line(link, *made)
            line.set_timeout(answer_s)
            raw = wire.frame(Kind.HELLO, self._tag, 0, handshake.encode_hello(hello))
            line.forward.send([raw])
            return line, self.one_frame(line)
        except BaseException:
            for connection in made:
                connection.close()
            raise
        finally:
            self._note([])

    def one_frame(self, line: Line) -> Frame:
        """A single frame of the peer, and not one byte beyond it."""
        head = line.backward.receive_exactly(wire.HEAD.size)
        length = wire.HEAD.unpack(head)[0]
        if length > wire.FRAME_LIMIT:
            raise ReplicationError(f"the peer answers with a frame of {length} bytes")
        raw = head + line.backward.receive_exactly(length)
        return Parser(self._tag, from_primary=False).feed(raw)[0]

    def abort(self) -> None:
        """End the attempt that is under way, and every later one."""
        with self._lock:
            self._stopped = True
            made = list(self._made)
        for connection in made:
            connection.abort()

    def _note(self, made: list[Connection]) -> None:
        with self._lock:
            self._made = list(made)
            stopped = self._stopped
        if stopped and made:
            raise ReplicationError("the session was closed")

    def _preamble(
        self, link: PeerLink, direction: Direction, pair: bytes, hello: Hello
    ) -> Preamble:
        config = self._config
        return Preamble(
            cluster_hash(config.cluster_id),
            config.module,
            config.number,
            config.node,
            hello.session,
            direction,
            pair,
            link.tls is not None,
            bool(hello.instance),
        )
