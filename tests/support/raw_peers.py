"""The other node as bare sockets: says any bytes at all, and hears what is answered."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator

from hyperha.core.actions import SessionStart
from hyperha.domain import Epoch, SessionKey
from hyperha.replication import handshake, preamble, wire
from hyperha.replication.handshake import Hello, Welcome
from hyperha.replication.wire import Frame, Kind, Parser
from tests.support.engine_pair import Side

GENERATION = "ab" * 16
_LIMIT_S = 20.0


class RawPeer:
    """Two connections of a session whose handshake is done. `say` sends, `hear` receives."""

    def __init__(
        self, key: SessionKey, out: socket.socket, back: socket.socket, *, from_primary: bool
    ) -> None:
        self.key = key
        self.tag = wire.session_tag(key)
        self._out = out
        self._back = back
        self._parser = Parser(self.tag, from_primary=from_primary)
        self.heard: list[Frame] = []
        for one in (out, back):
            one.settimeout(_LIMIT_S)

    def say(self, raw: bytes) -> None:
        """Send bytes; nothing when the other side has hung up by now."""
        with contextlib.suppress(OSError):
            self._out.sendall(raw)

    def hear(self) -> bool:
        """Take in what comes next. False: the other side has hung up."""
        try:
            raw = self._back.recv(1 << 16)
        except ConnectionError:
            return False
        self.heard += self._parser.feed(raw)
        return bool(raw)

    def hear_until(self, kind: Kind, number: int = -1) -> bool:
        """Whether a frame of the kind came, of that number if one is given."""
        while True:
            for frame in self.heard:
                if frame.kind is kind and number in (-1, frame.number):
                    return True
            if not self.hear():
                return False

    def speak_to_the_end(self) -> None:
        """Say that nothing is to be said until the other side has hung up."""
        while self.hear():
            self.say(wire.frame(Kind.ALIVE, self.tag))

    def hang_up(self) -> None:
        """Close both connections."""
        self._out.close()
        self._back.close()


@contextlib.contextmanager
def raw_primary(side: Side, number: int, start: SessionStart) -> Iterator[RawPeer]:
    """A primary that `side` serves as secondary."""
    config = side.config
    key = SessionKey(GENERATION, Epoch(1, config.peer), number)
    side.acceptor.expect(key, start)
    pair = secrets.token_bytes(16)
    sockets = []
    for direction in preamble.Direction:
        one = socket.create_connection(("127.0.0.1", side.port))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw = preamble.Preamble(
            preamble.cluster_hash(config.cluster_id), config.module, config.number, config.peer,
            key, direction, pair, encrypted=False,
        )  # fmt: skip
        one.sendall(preamble.encode(raw))
        sockets.append(one)
    peer = RawPeer(key, *sockets, from_primary=False)
    hello = handshake.encode_hello(Hello(key, start, -1 if start is SessionStart.FULL else 0, 7))
    peer.say(wire.frame(Kind.HELLO, peer.tag, 0, hello))
    try:
        assert peer.hear_until(Kind.WELCOME)
        yield peer
    finally:
        peer.hang_up()


@contextlib.contextmanager
def raw_secondary(side: Side, number: int, start: SessionStart) -> Iterator[RawPeer]:
    """A secondary that `side` connects to; nobody else listens on the peer's port."""
    config = side.config
    key = SessionKey(GENERATION, Epoch(1, config.node), number)
    with socket.create_server(("127.0.0.1", config.links[0].peer_port)) as listener:
        listener.settimeout(_LIMIT_S)
        side.primary.open_session(key, start)
        ends = {}
        for _ in preamble.Direction:
            one, _ = listener.accept()
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw = preamble.decode(one.recv(preamble.SIZE, socket.MSG_WAITALL))
            ends[raw.direction] = one
    peer = RawPeer(
        key, ends[preamble.Direction.BACKWARD], ends[preamble.Direction.FORWARD],
        from_primary=True,
    )  # fmt: skip
    try:
        assert peer.hear_until(Kind.HELLO)
        count = -1 if start is SessionStart.FULL else 0
        welcome = handshake.encode_welcome(Welcome(count, "raw"))
        peer.say(wire.frame(Kind.WELCOME, peer.tag, 0, welcome))
        if start is SessionStart.CANDIDATES:
            peer.say(wire.frame(Kind.CANDIDATES, peer.tag, 0, b"", wire.FLAG_LAST))
        yield peer
    finally:
        peer.hang_up()
