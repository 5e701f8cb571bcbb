"""Buffers that are used again: never filled anew before their contents were used."""

import random
import threading

import pytest

from hyperha.errors import ReplicationError
from hyperha.replication import wire
from hyperha.replication.buffers import Buffer, Buffers
from hyperha.replication.operations import ROOT_ID, FileId
from tests.support.engine_pair import Guest, Pair, wait_for

FILE = FileId(b"f" * 16)
LARGE = 1 << 20


def test_a_buffer_has_one_owner() -> None:
    buffers = Buffers()
    first, second = buffers.take(LARGE), buffers.take(LARGE)
    assert first is not second
    buffers.give_back(first)
    assert buffers.take(LARGE - 1) is not first, "of exactly the size that was asked for"
    buffers.give_back(second)
    assert buffers.take(LARGE) is second
    buffers.give_back(second)
    buffers.trim()
    assert buffers.take(LARGE) is second, "was used since the last time"
    buffers.give_back(second)
    buffers.trim()
    buffers.trim()
    assert buffers.take(LARGE) is not second


def test_large_frames_are_cut_from_any_pieces_into_used_buffers() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    frames = []
    for number in range(1, 41):
        size = chance.choice((0, 1, 4096, 128 << 10, 500_000, LARGE, LARGE))
        frames.append((number, number << 20, chance.randbytes(size)))
    stream = memoryview(
        b"".join(
            wire.write_head(len(data), 5, number, 1, offset, False) + data
            for number, offset, data in frames
        )
    )
    buffers = Buffers()
    parser = wire.Parser(5, from_primary=True, buffers=buffers)
    position = 0
    held: list[wire.Frame] = []
    while position < len(stream):
        room = parser.room()
        limit = min(parser.wanted, 1 << 19) if room is None else len(room)
        size = min(limit, chance.choice((1, 30, 5000, 1 << 19, 1 << 21)), len(stream) - position)
        piece = stream[position : position + size]
        position += size
        if room is None:
            held += parser.feed(piece)
        else:
            room[:size] = piece
            one = parser.filled(size)
            held += [] if one is None else [one]
        while held and (len(held) > 3 or position == len(stream)):
            frame = held.pop(0)
            number, offset, data = frames.pop(0)
            assert (frame.number, wire.decode_write(frame.payload)) == (number, (1, offset, data))
            buffers.give_back_view(frame.payload)
    assert not frames
    assert not parser.partial


def test_the_frame_behind_a_large_one_is_checked() -> None:
    parser = wire.Parser(5, from_primary=True)
    raw = wire.write_head(LARGE, 5, 1, 1, 0, False) + bytes(LARGE)
    parser.feed(raw[:4096])
    room = parser.room()
    assert room is not None
    room[:] = raw[4096:]
    assert parser.filled(len(room)) is not None
    with pytest.raises(ReplicationError, match="another session"):
        parser.feed(wire.write_head(LARGE, 6, 2, 1, 0, False))


@pytest.mark.root
def test_no_payload_is_overwritten_before_it_is_applied(pair: Pair, monkeypatch) -> None:
    """T2, T3: the applier is always four frames behind what was received and acknowledged."""
    pair.in_sync()
    guest = Guest(pair.a)
    files = [guest.create(ROOT_ID, b"%d" % i) for i in range(3)]
    sizes = (LARGE, LARGE, LARGE - 4096, 200_000, LARGE, 4096, LARGE, 300_000)
    writes = [
        (files[i % 3], (i % 5) << 20, random.Random(i).randbytes(sizes[i % len(sizes)]))
        for i in range(120)
    ]
    wait_for(lambda: guest.answers == len(files))
    expected = iter(writes)
    seen: list[object] = []
    done = len(files)
    real = pair.b.store.write

    def slow(file, offset, data):
        nonlocal done
        done += 1
        behind = min(done + 4, len(files) + len(writes))
        wait_for(lambda: guest.answers >= behind)
        assert (file, offset, bytes(data)) == next(expected)
        seen.append(data.obj)
        return real(file, offset, data)

    monkeypatch.setattr(pair.b.store, "write", slow)
    for file, offset, data in writes:
        guest.write(file, offset, data)
    wait_for(lambda: done == len(files) + len(writes))
    assert not guest.errors
    assert len({id(one) for one in seen}) < len(seen), "no buffer was used twice"
    pair.check_equal()


class _Held:
    """In the place of a queue: what is put waits."""

    def __init__(self) -> None:
        self.held: list[object] = []

    def put(self, one: object) -> None:
        self.held.append(one)


@pytest.mark.root
def test_what_two_have_lent_comes_back_to_the_one_it_was_of(pair: Pair, monkeypatch) -> None:
    """T2: a resync sends beside the data path, which still writes here what was sent already. Its
    buffer, given to the resync, would be filled anew under that write."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"warm")
    wait_for(lambda: guest.answers == 2)
    session = pair.a.primary.session
    assert session is not None
    line, sender = session._lines.line, session.sender
    assert line is not None
    monkeypatch.setattr(line.forward, "send_some", lambda pieces, total: pieces)
    wake, held = sender._wake, _Held()
    monkeypatch.setattr(sender, "_wake", held)
    ours, theirs = Buffers(), Buffers()
    written, block = ours.take(LARGE), theirs.take(LARGE)
    perform = pair.a.store.write

    def filled_anew(which, offset, data):
        """What a resync does while the local call has not returned."""
        with pair.a.primary.lock:
            head = wire.frame(wire.Kind.BIND, session.tag, 0, wire.encode_bind(9, FILE))
            sender.put_lent(head[:-16], memoryview(block)[:16], theirs.give_back_view)
        for one in held.held:
            wake.put(one)
        wait_for(lambda: len(ours._free) + len(theirs._free) == 2)
        while theirs._free:
            memoryview(theirs.take(LARGE))[:] = bytes(LARGE)
        return perform(which, offset, data)

    monkeypatch.setattr(pair.a.store, "write", filled_anew)
    memoryview(written)[:] = b"w" * LARGE
    pair.a.primary.write(
        file, 0, memoryview(written), barrier=False, answer=guest._answered,
        give_back=ours.give_back_view,
    )  # fmt: skip
    assert pair.a.store.read(file, 0, LARGE) == b"w" * LARGE
    assert ours.take(LARGE) is written


@pytest.mark.root
def test_what_was_lent_is_kept_until_it_was_sent(pair: Pair, monkeypatch) -> None:
    """T2: the peer stands still while the data path goes on with other buffers."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    go_on, reached = threading.Event(), threading.Event()
    serving = pair.b.acceptor.session
    assert serving is not None
    real = serving._receive

    def stuck(*arguments):
        reached.set()
        assert go_on.wait(20)
        return real(*arguments)

    monkeypatch.setattr(serving, "_receive", stuck)
    assert reached.wait(5)
    buffers = Buffers()
    back: list[object] = []

    def give_back(view: object) -> None:
        back.append(getattr(view, "obj", None))
        buffers.give_back_view(view)

    def lend(number: int) -> bool:
        view = memoryview(buffers.take(LARGE))
        view[:] = random.Random(number).randbytes(LARGE)
        answer = guest._answered
        kept = pair.a.primary.write(
            file, number << 20, view, barrier=False, answer=answer, give_back=give_back
        )
        if not kept:
            # What the data path does with it: the next request overwrites it.
            view[:] = bytes(LARGE)
            buffers.give_back_view(view)
        return kept

    kept = [lend(number) for number in range(40)]
    assert any(kept), "40 MiB fit into no connection"
    assert len([one for one in back if one is not None]) < sum(kept)
    monkeypatch.setattr(serving, "_receive", real)
    go_on.set()
    wait_for(lambda: guest.answers == 41)
    wait_for(lambda: len([one for one in back if isinstance(one, Buffer)]) == sum(kept))
    assert not guest.errors
    pair.check_equal()
    for number in range(40):
        expected = random.Random(number).randbytes(LARGE)
        assert pair.b.store.read(file, number << 20, LARGE) == expected
