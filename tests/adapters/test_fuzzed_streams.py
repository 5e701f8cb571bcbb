"""Streams that are not what they should be: they end, and nothing of them is done or believed."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import SessionLost
from hyperha.domain import Epoch, SessionKey
from hyperha.replication import handshake, resync_target, wire, wire_changes
from hyperha.replication.handshake import Hello, Refusal, Welcome
from hyperha.replication.operations import (
    ROOT_ID,
    Attributes,
    Create,
    FileId,
    Record,
    RecordKind,
    Target,
)
from hyperha.replication.wire import Kind, Progress, ZoneDigests
from hyperha.replication.wire_changes import Inode, ListedEntry, Listing
from tests.support.engine_pair import Guest, Side, free_ports, snapshot, wait_for
from tests.support.raw_peers import GENERATION, raw_primary, raw_secondary

pytestmark = pytest.mark.root
FILE = FileId(b"f" * 16)
OTHER = FileId(b"o" * 16)
_MADE = Attributes(0o100600, 0, 0, 0, 1)
_ZONE = wire.encode_digests(ZoneDigests(FILE, 0, (b"x" * 16, None, b"y" * 16)))
_INODE = Inode(Target(FILE), _MADE, ((b"user.a", b"b"),))
_ENTRY = ListedEntry(b"n", OTHER, _MADE, (), 1, b"")
_ROOT = Inode(Target(ROOT_ID), Attributes(0o40755, 0, 0, 0, 1), ())
_LISTING = wire_changes.encode_listing(Listing(_ROOT, (_ENTRY,)))
_RECORDS = wire.encode_records([Record(RecordKind.ZONE, FILE, 3), Record(RecordKind.INODE, OTHER)])
_BLOCK = wire.block_head(9, 0, 0, FILE, 0)[wire.HEAD.size :] + b"new block"
_WRITE = wire.write_head(5, 0, 0, 1, 0, False)[wire.HEAD.size :] + b"newer"
_NUMBER = (7).to_bytes(8, "little")

_KEY = SessionKey(GENERATION, Epoch(1, "node2"), 1)

SAID_BY_PRIMARY: dict[Kind, bytes] = {
    Kind.HELLO: handshake.encode_hello(Hello(_KEY, SessionStart.FULL, -1, 7)),
    Kind.BIND: wire.encode_bind(2, FILE),
    Kind.WRITE: _WRITE,
    Kind.CHANGE: wire_changes.encode_change(Create(ROOT_ID, b"made", OTHER, _MADE, 1)),
    Kind.FLUSH: FILE,
    Kind.SYNC: b"",
    Kind.RETIRE: _NUMBER,
    Kind.GOODBYE: b"",
    Kind.LISTING: _LISTING,
    Kind.INODE: wire_changes.encode_inode(_INODE),
    Kind.DIGESTS: _ZONE,
    Kind.BLOCK: _BLOCK,
    Kind.MARK: b"",
    Kind.HOLE: wire.encode_hole(FILE, 0, 65536),
    Kind.RESERVE: wire.encode_hole(FILE, 0, 65536),
    Kind.ALIVE: b"",
    Kind.COMPARE: _ZONE,
    Kind.COMPARE_INODE: wire.encode_digest(FILE, b"d" * 16),
    Kind.COMPARE_LISTING: wire.encode_digest(ROOT_ID, b"d" * 16),
}
SAID_BY_SECONDARY: dict[Kind, bytes] = {
    Kind.WELCOME: handshake.encode_welcome(Welcome(-1, "raw")),
    Kind.REFUSED: handshake.encode_refusal(Refusal("no", "no")),
    Kind.CANDIDATES: _RECORDS,
    Kind.ACKNOWLEDGED: b"",
    Kind.FLUSHED: b"",
    Kind.PROGRESS: wire.encode_progress(Progress(1, 2, True, 3, 4, 5)),
    Kind.UNSETTLED: _RECORDS,
    Kind.RECONCILED: _RECORDS,
    Kind.DIFFERENT: wire.encode_different([0, 15]),
    Kind.MARKED: b"",
    Kind.FAILED: b"the disk is broken",
}
_OPEN_ENDED = {Kind.WRITE: 12, Kind.BLOCK: 24}
"""Any content behind a head of that length is a frame."""
_HAS_CONTENT = [kind for kind, payload in SAID_BY_PRIMARY.items() if payload]


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    """One node; the other one is played."""
    one = Side(tmp_path / "f", "node1", "node2", *free_ports(2))
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def chance() -> random.Random:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def test_every_kind_of_frame_is_fuzzed() -> None:
    assert {*SAID_BY_PRIMARY, *SAID_BY_SECONDARY} == set(Kind)


def _malformed(kind: Kind, payload: bytes, chance: random.Random) -> list[bytes]:
    """Payloads that are none: shorter, or longer where the length is fixed."""
    limit = _OPEN_ENDED.get(kind, len(payload))
    cuts = {0, limit // 2, limit - 1, chance.randrange(limit)}
    if kind is Kind.LISTING:
        # Up to here it is one of an empty directory.
        cuts.discard(len(wire_changes.encode_inode(_ROOT)))
    found = [payload[:cut] for cut in sorted(cuts)]
    return found if kind in _OPEN_ENDED else [*found, payload + b"\0"]


def _garbled(payload: bytes, chance: random.Random) -> bytes:
    raw = bytearray(payload or b"\0")
    for _ in range(chance.randrange(1, 5)):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(raw)


def _unforeseen(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if "unforeseen" in one.getMessage()]


# --- what a primary says ------------------------------------------------------------------


def _with_a_file(side: Side) -> None:
    side.store.apply(Create(ROOT_ID, b"f", FILE, _MADE, 1))
    side.store.write(FILE, 0, b"old content")


def test_what_was_acknowledged_with_a_malformed_frame_is_never_taken_for_applied(
    side: Side,
) -> None:
    """P8: all of a chunk is acknowledged at once, before a part of it is found to be no write."""
    _with_a_file(side)
    with raw_primary(side, 1, SessionStart.FULL) as peer:
        bind = wire.frame(Kind.BIND, peer.tag, 0, wire.encode_bind(1, FILE))
        peer.say(bind + wire.write_head(4, peer.tag, 1, 1, 0, False) + b"warm")
        peer.say(wire.frame(Kind.SYNC, peer.tag, 2))
        assert peer.hear_until(Kind.FLUSHED, 2)
        truncated = wire.frame(Kind.WRITE, peer.tag, 3, b"short")
        peer.say(truncated + wire.write_head(4, peer.tag, 4, 1, 0, False) + b"lost")
        # Said, or hung up, which may swallow what was said before.
        peer.hear_until(Kind.FAILED)
    assert "truncated" in side.acceptor.close()


@pytest.mark.parametrize("kind", _HAS_CONTENT, ids=lambda one: one.name)
def test_a_malformed_frame_of_a_primary_changes_nothing(
    side: Side, chance: random.Random, kind: Kind
) -> None:
    _with_a_file(side)
    before, number = snapshot(side.folder), 0
    for start in (SessionStart.FULL, SessionStart.IN_SYNC):
        for malformed in _malformed(kind, SAID_BY_PRIMARY[kind], chance):
            number += 1
            side.intent.clear(1 << 61)
            with raw_primary(side, number, start) as peer:
                peer.say(wire.frame(Kind.BIND, peer.tag, 0, wire.encode_bind(1, FILE)))
                # Of what comes in several frames it is the last one.
                last = wire.FLAG_LAST if kind in (Kind.INODE, Kind.LISTING) else 0
                peer.say(wire.frame(kind, peer.tag, 5, malformed, last))
                # It hangs up, or says what is wrong: then it hangs up when more is said.
                peer.speak_to_the_end()
            side.acceptor.close()
            assert snapshot(side.folder) == before, (kind, start, malformed)


@pytest.mark.parametrize("kind", [Kind.INODE, Kind.LISTING], ids=lambda one: one.name)
def test_an_inode_or_a_listing_that_is_broken_off_changes_nothing(side: Side, kind: Kind) -> None:
    _with_a_file(side)
    before = snapshot(side.folder)
    with raw_primary(side, 1, SessionStart.FULL) as peer:
        peer.say(wire.frame(kind, peer.tag, 1, SAID_BY_PRIMARY[kind][:7]))
        peer.say(wire.frame(Kind.MARK, peer.tag, 2, b"", wire.FLAG_LAST))
        peer.speak_to_the_end()
    assert f"{kind.name} frames end in MARK" in side.acceptor.close()
    assert snapshot(side.folder) == before


@pytest.mark.parametrize("kind", [Kind.INODE, Kind.LISTING], ids=lambda one: one.name)
def test_an_inode_or_a_listing_without_end_ends_the_session(
    side: Side, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setattr(resync_target, "_FRAMES", 3)
    _with_a_file(side)
    with raw_primary(side, 1, SessionStart.FULL) as peer:
        for number in range(4):
            peer.say(wire.frame(kind, peer.tag, number + 1, bytes(1000)))
        peer.speak_to_the_end()
    assert f"{kind.name}: one of more than 3 frames" in side.acceptor.close()


@pytest.mark.parametrize("kind", SAID_BY_PRIMARY, ids=lambda one: one.name)
def test_any_frame_of_a_primary_is_served_or_ends_the_session(
    side: Side, chance: random.Random, kind: Kind
) -> None:
    _with_a_file(side)
    outside = sorted(side.folder.parent.iterdir())
    for number, start in enumerate([SessionStart.FULL, SessionStart.IN_SYNC] * 12, 1):
        side.intent.clear(1 << 61)
        with raw_primary(side, number, start) as peer:
            payload = SAID_BY_PRIMARY[kind]
            if number > 2:
                payload = _garbled(payload, chance)
            peer.say(wire.frame(Kind.BIND, peer.tag, 0, wire.encode_bind(1, FILE)))
            flags = chance.randrange(4)
            peer.say(wire.frame(kind, peer.tag, chance.choice((0, 1, 1 << 40)), payload, flags))
            peer.say(wire.frame(Kind.SYNC, peer.tag, 2))
            # Served, or the end, of which it may say the reason first.
            while not any(one.kind in (Kind.FLUSHED, Kind.FAILED) for one in peer.heard):
                if not peer.hear():
                    break
        side.acceptor.close()
    assert sorted(side.folder.parent.iterdir()) == outside
    side.intent.clear(1 << 61)
    with raw_primary(side, 99, SessionStart.FULL) as peer:
        peer.say(wire.frame(Kind.SYNC, peer.tag, 1))
        assert peer.hear_until(Kind.FLUSHED, 1), "it serves as before"


# --- what a secondary says ----------------------------------------------------------------


def test_more_than_was_sent_cannot_be_acknowledged(side: Side) -> None:
    """T2: what comes later would be answered before the peer has it."""
    side.primary.promote(Acknowledge.BOTH)
    guest = Guest(side)
    for number, kind in enumerate((Kind.ACKNOWLEDGED, Kind.FLUSHED), 1):
        side.intent.clear(1 << 61)
        with raw_secondary(side, number, SessionStart.IN_SYNC) as peer:
            wait_for(lambda: side.primary.session is not None and side.primary.session.up)
            peer.say(wire.frame(kind, peer.tag, 1 << 62))
            assert "was not sent" in side.wait(SessionLost).text
            guest.create(ROOT_ID, b"%d" % number)
            assert guest.answers == 0


@pytest.mark.parametrize("kind", SAID_BY_SECONDARY, ids=lambda one: one.name)
def test_no_frame_of_a_secondary_is_believed_but_an_acknowledgement(
    side: Side, chance: random.Random, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        for number, start in enumerate([SessionStart.FULL, SessionStart.IN_SYNC] * 8, 1):
            side.primary.promote(Acknowledge.BOTH)
            guest = Guest(side)
            side.intent.clear(1 << 61)
            with raw_secondary(side, number, start) as peer:
                wait_for(lambda: side.primary.session is not None and side.primary.session.up)
                guest.create(ROOT_ID, b"%d" % number)
                payload = SAID_BY_SECONDARY[kind]
                if number > 2:
                    payload = _garbled(payload, chance)
                flags, about = chance.randrange(4), chance.choice((0, 1, 2, 3))
                peer.say(wire.frame(kind, peer.tag, about, payload, flags))
            side.wait(SessionLost)
            if kind not in (Kind.ACKNOWLEDGED, Kind.FLUSHED):
                assert guest.answers == 0, (start, payload)
            side.primary.demote()
            side.events.clear()
    assert not _unforeseen(caplog)
