"""Frames, changes, preamble and control messages: round trips, and refusal of everything else."""

import dataclasses
import random
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hyperha.core import actions, events, facts
from hyperha.domain import Epoch, Marker, SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication import control, preamble, wire, wire_changes
from hyperha.replication.operations import (
    NO_ID,
    OFFSET_LIMIT,
    ROOT_ID,
    Allocate,
    Attributes,
    Create,
    FileId,
    Link,
    Record,
    RecordKind,
    Remove,
    Rename,
    SetAttributes,
    SetTimes,
    SetXattr,
    Target,
    Truncate,
)

KEY = SessionKey("ab" * 16, Epoch(7, "node1"), 42)
FILE = FileId(b"f" * 16)
ATTRIBUTES = Attributes(0o100644, 1000, 1001, 5, -7, 0)
CHANGES = [
    Create(ROOT_ID, b"a\xff", FILE, ATTRIBUTES, 3, b"", ((b"user.x", b"\0y"),)),
    Link(Target(NO_ID, ROOT_ID, b"s"), ROOT_ID, b"t", 4),
    Remove(ROOT_ID, b"x" * 255, True, 5),
    Rename(ROOT_ID, b"x", FILE, b"y", 2, 6, 7),
    SetAttributes(Target(FILE), ATTRIBUTES),
    Truncate(FILE, 1 << 40, 8),
    Allocate(FILE, 3, 1, 2, 3, 4),
    SetXattr(Target(FILE), b"user.a", b""),
    SetXattr(Target(FILE), b"user.a", None),
    SetTimes(FILE, 1 << 62),
    SetTimes(FILE, (1 << 63) * 10**9 - 1),
    Truncate(FILE, (1 << 63) - 1, -(1 << 63) * 10**9),
]


def parse(data: bytes, tag: int, *, from_primary: bool = True) -> list[wire.Frame]:
    return list(wire.Parser(tag, from_primary=from_primary).feed(data))


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: type(one).__name__)
def test_changes_survive_the_wire(change) -> None:
    raw = wire_changes.encode_change(change)
    assert wire_changes.decode_change(raw) == change
    for cut in range(len(raw)):
        with pytest.raises(ReplicationError):
            wire_changes.decode_change(raw[:cut])
    with pytest.raises(ReplicationError):
        wire_changes.decode_change(raw + b"\0")


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 10**9 - 1))
def test_every_time_of_a_file_system_survives_the_wire(seconds: int, part_ns: int) -> None:
    """In 64 bits of nanoseconds it would have to lie between 1677 and 2262."""
    time_ns = seconds * 10**9 + part_ns
    attributes = dataclasses.replace(ATTRIBUTES, mtime_ns=time_ns)
    for change in (
        SetTimes(FILE, time_ns),
        Remove(ROOT_ID, b"x", False, time_ns),
        Rename(ROOT_ID, b"x", FILE, b"y", 0, time_ns, 1),
        SetAttributes(Target(FILE), attributes),
        Create(ROOT_ID, b"n", FILE, attributes, time_ns, b"", ()),
    ):
        assert wire_changes.decode_change(wire_changes.encode_change(change)) == change
    inode = wire_changes.Inode(Target(FILE), attributes, ())
    assert wire_changes.decode_inode(wire_changes.encode_inode(inode)) == inode


@pytest.mark.parametrize("time_ns", [(1 << 63) * 10**9, -(1 << 63) * 10**9 - 1])
def test_a_time_of_no_file_system_is_an_error_of_the_protocol(time_ns: int) -> None:
    with pytest.raises(ReplicationError, match="has no form for the peer"):
        wire_changes.encode_change(SetTimes(FILE, time_ns))
    with pytest.raises(ReplicationError, match="has no form for the peer"):
        wire_changes.encode_change(Truncate(FILE, 1 << 63, 0))


def test_a_second_has_a_thousand_million_nanoseconds_at_most() -> None:
    raw = wire_changes.encode_change(SetTimes(FILE, -1))
    assert raw.endswith((999_999_999).to_bytes(4, "little"))
    with pytest.raises(ReplicationError, match="nanoseconds"):
        wire_changes.decode_change(raw[:-4] + (10**9).to_bytes(4, "little"))


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0", b"n" * 256])
def test_names_that_leave_the_folder_are_refused(name: bytes) -> None:
    raw = wire_changes.encode_change(Remove(ROOT_ID, name, False, 0))
    with pytest.raises(ReplicationError, match="M13"):
        wire_changes.decode_change(raw)


def test_frames_are_cut_from_any_pieces() -> None:
    tag = wire.session_tag(KEY)
    data = b"d" * 5000
    stream = b"".join(
        (
            wire.frame(wire.Kind.BIND, tag, 1, wire.encode_bind(3, FILE)),
            wire.write_head(len(data), tag, 2, 3, 4096, True),
            data,
            wire.frame(wire.Kind.FLUSH, tag, 3, FILE, wire.FLAG_DATA_ONLY),
        )
    )
    for size in (1, 7, 64, len(stream)):
        parser = wire.Parser(tag, from_primary=True)
        frames = []
        for at in range(0, len(stream), size):
            frames += parser.feed(stream[at : at + size])
        assert [one.kind for one in frames] == [wire.Kind.BIND, wire.Kind.WRITE, wire.Kind.FLUSH]
        assert [one.number for one in frames] == [1, 2, 3]
        assert wire.decode_bind(frames[0].payload) == (3, FILE)
        assert frames[1].flags == wire.FLAG_BARRIER
        assert wire.decode_write(frames[1].payload) == (3, 4096, data)
        assert not parser.partial


def test_frames_of_another_session_end_the_stream() -> None:
    tag = wire.session_tag(KEY)
    for other in (
        dataclasses.replace(KEY, number=43),
        dataclasses.replace(KEY, epoch=Epoch(7, "node2")),
        dataclasses.replace(KEY, generation="cd" * 16),
    ):
        raw = wire.frame(wire.Kind.SYNC, wire.session_tag(other), 1)
        with pytest.raises(ReplicationError, match="another session"):
            parse(raw, tag)


def test_each_side_may_only_say_its_own_frames() -> None:
    with pytest.raises(ReplicationError, match="malformed"):
        parse(wire.frame(wire.Kind.ACKNOWLEDGED, 5, 1), 5)
    with pytest.raises(ReplicationError, match="malformed"):
        parse(wire.frame(wire.Kind.SYNC, 5, 1), 5, from_primary=False)


def test_noise_never_passes_and_never_crashes() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    decoders = [
        wire_changes.decode_change,
        wire_changes.decode_inode,
        wire_changes.decode_listing,
        wire.decode_write,
        wire.decode_bind,
        wire.decode_digests,
        wire.decode_different,
        wire.decode_block,
        wire.decode_progress,
        lambda raw: wire.decode_records(raw, "x"),
        preamble.decode,
        control.decode,
    ]
    good = [wire_changes.encode_change(one) for one in CHANGES]
    for _ in range(3000):
        raw = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        for decoder in decoders:
            try:
                decoder(bytes(raw))
            except ReplicationError:
                pass
        try:
            parse(chance.randbytes(200), 5)
        except ReplicationError:
            pass


def test_digests_blocks_records_and_progress() -> None:
    digests = wire.ZoneDigests(FILE, 1 << 20, (b"x" * 16, None, b"y" * 16))
    assert wire.decode_digests(wire.encode_digests(digests)) == digests
    assert wire.decode_different(wire.encode_different([0, 15])) == [0, 15]
    records = [Record(RecordKind.ZONE, FILE, 1 << 40), Record(RecordKind.DIRECTORY, ROOT_ID)]
    assert wire.decode_records(wire.encode_records(records), "x") == records
    progress = wire.Progress(1, 2, True, 3, 4, 5)
    assert wire.decode_progress(wire.encode_progress(progress)) == progress


@given(st.integers(0, OFFSET_LIMIT), st.integers(1, 1 << 16))
@example(OFFSET_LIMIT - 1, 1)
@example(OFFSET_LIMIT, 1)
@example((1 << 62) + 4096, 1)
def test_every_offset_of_a_file_is_accepted_and_none_behind(offset: int, length: int) -> None:
    def accepted(decode: Callable[[], object]) -> bool:
        try:
            decode()
        except ReplicationError:
            return False
        return True

    fits = offset + length <= (1 << 63) - 1
    data = bytes(length)
    raw = wire.write_head(length, 5, 1, 3, offset, False) + data
    block = wire.block_head(length, 5, 1, FILE, offset) + data
    hole = wire.encode_hole(FILE, offset, length)
    room = wire_changes.encode_change(Allocate(FILE, 1, offset, length, 0, 0))
    for decode in (
        lambda: wire.decode_write(parse(raw, 5)[0].payload),
        lambda: wire.decode_block(parse(block, 5)[0].payload),
        lambda: wire.decode_hole(hole),
        lambda: wire_changes.decode_change(room),
    ):
        assert accepted(decode) == fits
    parser = wire.Parser(5, from_primary=True)
    assert bool(parser.writes(memoryview(raw))[0]) == fits
    start, count = offset & -wire.BLOCK_BYTES, 1 + length % wire.BLOCKS_PER_ZONE
    zone = wire.ZoneDigests(FILE, start, (b"x" * 16,) * count)
    # The last block of all is whole in what counts blocks.
    whole = start + count * wire.BLOCK_BYTES <= 1 << 63
    assert accepted(lambda: wire.decode_digests(wire.encode_digests(zone))) == whole
    assert not accepted(lambda: wire.decode_hole(wire.encode_hole(FILE, 1, (1 << 63) - 1 + offset)))


def test_large_listings_and_inodes_come_in_several_frames() -> None:
    inode = wire_changes.Inode(Target(ROOT_ID), ATTRIBUTES, ())
    entries = tuple(
        wire_changes.ListedEntry(b"n%d" % i, FILE, ATTRIBUTES, ((b"user.x", b"v" * 900),), 1, b"")
        for i in range(3000)
    )
    listing = wire_changes.Listing(inode, entries)
    payloads = wire_changes.in_frames(wire_changes.encode_listing(listing))
    assert len(payloads) > 2
    assert all(len(one) <= wire.FRAME_LIMIT for one in payloads)
    assert wire_changes.decode_listing(b"".join(payloads)) == listing
    large = tuple((b"user.%d" % i, bytes((i,)) * 65536) for i in range(40))
    inode = dataclasses.replace(inode, xattrs=large)
    payloads = wire_changes.in_frames(wire_changes.encode_inode(inode))
    assert len(payloads) == 3
    assert all(len(wire.frame(wire.Kind.INODE, 1, 1, one)) for one in payloads)
    assert wire_changes.decode_inode(b"".join(payloads)) == inode


def test_a_change_that_is_larger_than_a_frame_is_an_error_of_the_protocol() -> None:
    large = tuple((b"user.%d" % i, bytes(65536)) for i in range(17))
    with pytest.raises(ReplicationError, match="has no form for the peer"):
        wire_changes.encode_change(Create(ROOT_ID, b"n", FILE, ATTRIBUTES, 0, b"", large))


def test_preamble() -> None:
    one = preamble.Preamble(
        preamble.cluster_hash("c"),
        "VM1",
        3,
        "node1",
        KEY,
        preamble.Direction.BACKWARD,
        b"p" * 16,
        True,
    )
    raw = preamble.encode(one)
    assert len(raw) == preamble.SIZE
    assert preamble.decode(raw) == one
    for at in (0, 9, 50, 255):
        broken = bytearray(raw)
        broken[at] ^= 1
        with pytest.raises(ReplicationError):
            preamble.decode(bytes(broken))
    with pytest.raises(ReplicationError):
        preamble.decode(raw[:-1])


MESSAGES = [
    actions.Attach(1, (Marker("r", "n", "g", 1),), Marker("r", "n", "g", 2), False),
    actions.Detach(2, None),
    actions.OpenSession(3, KEY, actions.SessionStart.FULL),
    actions.Promote(4, Epoch(1, "node1"), actions.Acknowledge.BOTH),
    events.EngineDone(
        1, True, attach=facts.AttachFacts(facts.MarkerState.ABSENT, None, True, -1, "x\u20ac")
    ),
    events.ResyncProgressed(KEY, 1, 2, 3, None),
    control.Start(
        control.EngineConfig(
            "id",
            "VM1",
            1,
            "node1",
            "node2",
            "/f",
            "/run",
            (
                control.PeerLink(
                    "repl", "10.0.0.2", 9011, "10.0.0.1", control.TlsFiles("a", "b", "c")
                ),
                control.PeerLink("prod", "::1", 9011, "::2", None),
            ),
        )
    ),
    control.TakeSocket("repl", "00ff"),
    control.Descriptors(("device", "table"), "x"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_control_messages(message) -> None:
    assert control.decode(control.encode(message)) == message


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"type":"Nothing"}', "unknown type 'Nothing'"),
        (b'{"type":"Freeze"}', "'operation' is missing"),
        (b'{"type":"Freeze","operation":"1"}', "int expected"),
        (b'{"type":"Freeze","operation":true}', "int expected"),
        (b'{"type":"Freeze","operation":1,"x":2}', "unknown key 'x'"),
        (
            b'{"type":"Promote","operation":1,"epoch":{"counter":1,"node":"n"},'
            b'"acknowledge":"maybe"}',
            "unknown value 'maybe'",
        ),
    ],
)
def test_control_refuses_what_is_malformed(raw: bytes, said: str) -> None:
    with pytest.raises(ReplicationError, match=said):
        control.decode(raw)


def test_every_engine_action_can_be_sent() -> None:
    for name, kind in vars(actions).items():
        if isinstance(kind, type) and issubclass(kind, actions.EngineAction):
            assert name == "EngineAction" or control._TYPES[name] is kind


def test_plain_writes_at_the_front_are_what_the_parser_would_cut() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(300):
        plain = [(n, chance.randbytes(chance.choice((1, 512, 4096)))) for n in range(3)]
        raw = b"".join(
            wire.write_head(len(data), 5, number, 1, number << 12, False) + data
            for number, data in plain
        )
        end = chance.choice(
            (
                b"",
                wire.frame(wire.Kind.FLUSH, 5, 9, b"f" * 16),
                wire.write_head(4, 5, 9, 1, 0, True) + b"sync",
                wire.write_head(4, 6, 9, 1, 0, False) + b"else",
                wire.write_head(4, 5, 9, 1, 1 << 63, False) + b"far!",
                wire.write_head(4, 5, 9, 1, 0, False) + b"cut",
                raw[: chance.randrange(32)],
            )
        )
        stream = memoryview(raw + end)
        parser = wire.Parser(5, from_primary=True)
        found, used = parser.writes(stream)
        assert used == len(raw)
        fed = wire.Parser(5, from_primary=True).feed(raw)
        assert [(n, *wire.decode_write(one.payload)) for n, one in enumerate(fed)] == [
            (number, index, offset, data) for number, index, offset, data in found
        ]
        # Nothing was taken: the parser still sees all of it.
        assert not parser.partial
        assert len(parser.feed(raw)) == 3
    parser.feed(raw[:7])
    assert parser.writes(stream) == ([], 0), "inside a frame nothing is at the front"
