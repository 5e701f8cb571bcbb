"""Streams that are not what they should be: they end, and nothing of them is done or believed."""

from __future__ import annotations

import pytest

from hyperha.core.actions import SessionStart
from hyperha.replication import wire
from hyperha.replication.operations import ROOT_ID, Attributes, Create, FileId
from hyperha.replication.wire import Kind
from tests.support.engine_pair import Pair
from tests.support.raw_peers import raw_primary

pytestmark = pytest.mark.root
FILE = FileId(b"f" * 16)


def test_what_was_acknowledged_with_a_malformed_frame_is_never_taken_for_applied(
    pair: Pair,
) -> None:
    """P8: all of a chunk is acknowledged at once, before a part of it is found to be no write."""
    pair.b.store.apply(Create(ROOT_ID, b"f", FILE, Attributes(0o100600, 0, 0, 0, 1), 1))
    with raw_primary(pair.b, 1, SessionStart.IN_SYNC) as peer:
        bind = wire.frame(Kind.BIND, peer.tag, 0, wire.encode_bind(1, FILE))
        peer.say(bind + wire.write_head(4, peer.tag, 1, 1, 0, False) + b"warm")
        peer.say(wire.frame(Kind.SYNC, peer.tag, 2))
        assert peer.hear_until(Kind.FLUSHED, 2)
        truncated = wire.frame(Kind.WRITE, peer.tag, 3, b"short")
        peer.say(truncated + wire.write_head(4, peer.tag, 4, 1, 0, False) + b"lost")
        # Said, or hung up, which may swallow what was said before.
        peer.hear_until(Kind.FAILED)
    assert "truncated" in pair.b.acceptor.close()
