"""The search for another line of a session: who ends it, and who does not (T4)."""

from __future__ import annotations

import errno
import socket

import pytest

from hyperha.core.actions import SessionStart
from hyperha.domain import Epoch, SessionKey
from hyperha.replication import handshake
from hyperha.replication.clock import now_ms
from hyperha.replication.connecting import Connector, Line
from hyperha.replication.control import EngineConfig, PeerLink
from hyperha.replication.handshake import BROKEN, Hello, Refusal
from hyperha.replication.lines import Lines
from hyperha.replication.transport import Connection
from hyperha.replication.wire import Frame, Kind

ENOUGH_MS = 400
"""A search that goes on makes a pass every 50 ms."""


class ScriptedConnector(Connector):
    """Gives each offer the next word of its LAN's own list; the last one stays."""

    def __init__(self, config: EngineConfig, words: dict[str, list[str]]) -> None:
        super().__init__(config, 1)
        self.words = words
        self.asked = {lan: 0 for lan in words}

    def offer(
        self, link: PeerLink, hello: Hello, *, connect_s: float, answer_s: float
    ) -> tuple[Line, Frame]:
        self.asked[link.lan] += 1
        words = self.words[link.lan]
        word = words.pop(0) if len(words) > 1 else words[0]
        if word == "refused":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        if word == "silent":
            raise TimeoutError("timed out")
        assert word == "broken"
        line = Line(link, broken_connection(), broken_connection())
        said = handshake.encode_refusal(Refusal(BROKEN, "only one half of it came"))
        return line, Frame(Kind.REFUSED, 0, 0, said)


def broken_connection() -> Connection:
    """One that the other side has closed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        listening.accept()[0].close()
    return Connection(near)


@pytest.mark.parametrize(
    ("one", "other", "passes"),
    [
        ("refused silent", "broken silent", None),
        ("refused", "broken silent broken silent broken", None),
        ("refused", "broken silent", 3),
        ("refused", "silent", 1),
    ],
)
def test_a_refusal_is_no_news_while_the_peer_answers_over_another_lan(
    one: str, other: str, passes: int | None
) -> None:
    """That of an earlier pass says nothing any more, and one answer that is lost nothing yet."""
    links = tuple(PeerLink(lan, "127.0.0.1", 9, "127.0.0.1", None) for lan in ("one", "other"))
    config = EngineConfig("c", "m", 1, "a", "b", "/f", "/r", links)
    hello = Hello(SessionKey("g", Epoch(1, "a"), 1), SessionStart.IN_SYNC, 0, 7)
    lines = Lines(config, 1, lambda: hello, lambda: "")
    connector = ScriptedConnector(config, {"one": one.split(), "other": other.split()})
    lines.connector = connector
    found, why = lines.following(now_ms() + ENOUGH_MS, "it broke")
    assert found is None
    if passes is None:
        assert connector.asked["other"] > 3
        assert "refused" not in why
    else:
        assert connector.asked == {"one": passes, "other": passes}
        assert "one to 127.0.0.1:9: [Errno 111] Connection refused" in why
