"""Short breaks of the replication connection: nothing changes but the connections (T4, D12)."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import SessionLost, SessionStalled, SessionUp
from hyperha.errors import ReplicationError
from hyperha.replication import wire
from hyperha.replication.control import LogLine, PeerLink, StartVerify
from hyperha.replication.lans import Lans
from hyperha.replication.operations import ROOT_ID, FileId
from hyperha.replication.resuming import Answers
from hyperha.replication.retained import Retained, again, write_head_of
from hyperha.replication.sender import Sender
from hyperha.replication.transport import Connection
from hyperha.replication.verify import Verify
from hyperha.replication.wire import Kind
from tests.support.engine_pair import Guest, Monkey, wait_for
from tests.support.verifying import Ending
from tests.support.wired import Wired, wired

STALL_MS = 1000


# --- what is kept -------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=40), st.lists(st.booleans(), min_size=40), st.data())
def test_what_the_peer_lacks_is_what_stands_behind_what_it_has(
    numbered: list[bool], kinds: list[bool], data: st.DataObject
) -> None:
    """Whatever was acknowledged and received: never less than it lacks, never what it has."""
    retained, number, frames, proofs = Retained(), 0, [], []
    for place, one in enumerate(numbered):
        number += one
        raw = wire.frame(Kind.CHANGE if kinds[place] else Kind.SYNC, 1, place)
        retained.put(number if one else number + 1, raw)
        frames.append(raw)
        proofs.append(number if one else 0)
    received = data.draw(st.integers(0, len(frames)))
    had = [one for one in proofs[:received] if one]
    if had:
        retained.acknowledged(data.draw(st.integers(0, max(had))))
    assert retained.count == len(frames)
    news = kinds[retained.gone : received]
    lacks = [(raw, None) for raw in frames[received:]]
    assert retained.behind(received) == (lacks, any(news))
    assert retained.behind(received) == (lacks, False)


def test_a_peer_that_has_what_was_never_sent_is_not_believed() -> None:
    retained = Retained()
    retained.put(1, wire.frame(Kind.ALIVE, 1))
    retained.acknowledged(1)
    for received in (0, 2):
        with pytest.raises(ReplicationError, match="frames of the session"):
            retained.behind(received)


def test_a_write_is_sent_again_with_what_its_range_holds_now() -> None:
    head = wire.write_head(4, 7, 11, 3, 4096, barrier=True)
    whole = wire.frame(Kind.FLUSH, 7, 12, b"f" * 16)
    assert write_head_of(whole) is None
    assert again((whole, None), 7, lambda *_: b"") == [whole]
    file = FileId(b"f" * 16)
    pieces = again((head, file), 7, lambda one, at, size: b"new" if one == file else b"")
    raw = b"".join(pieces)
    (frame,) = wire.Parser(7, from_primary=True).feed(raw)
    assert (frame.kind, frame.number, frame.flags) == (Kind.WRITE, 11, wire.FLAG_BARRIER)
    assert wire.decode_write(frame.payload) == (3, 4096, b"new")
    with pytest.raises(ReplicationError, match="cannot be sent again"):
        again((wire.block_head(4, 7, 1, file, 0), file), 7, lambda *_: b"")
    with pytest.raises(ReplicationError, match="whose write"):
        again((head, None), 7, lambda *_: b"")


@given(st.integers(0, 300), st.integers(-5, 310))
def test_answers_are_said_again_once_each(count: int, received: int) -> None:
    answers = Answers()
    said = [wire.frame(Kind.DIFFERENT, 1, number, b"\0\0") for number in range(count)]
    for one in said:
        # What is not an answer is not counted.
        answers.note(wire.frame(Kind.FLUSHED, 1, 5) + one)
    if 0 <= count - received <= min(count, 256):
        assert answers.behind(received) == said[received:]
    else:
        with pytest.raises(ReplicationError, match="answers"):
            answers.behind(received)


def test_the_preferred_lan_is_taken_again_when_it_was_stable() -> None:
    """D12: only after a whole time in which it could be reached each time."""
    first, second = (PeerLink(name, "", 0, "", None) for name in ("first", "second"))
    reached = [True]
    lans = Lans((first, second), 5000, lambda link: link is first and reached[0])

    def at(now_ms: int) -> PeerLink | None:
        found = lans.better(second, now_ms)
        lans.close()
        return found

    assert lans.others(second) == [first]
    assert lans.better(first, 0) is None
    assert [at(1000 * second) for second in range(1, 6)] == [None] * 5
    reached[0] = False
    assert at(6000) is first, "it was stable until now"
    reached[0] = True
    assert [at(1000 * second) for second in range(7, 10)] == [None] * 3
    reached[0] = False
    assert at(10_000) is None
    reached[0] = True
    assert [at(1000 * second) for second in range(11, 16)] == [None] * 5
    assert at(16_000) is first


def test_a_sender_may_be_ended_while_it_is_being_started(monkeypatch) -> None:
    """The one who closes a session does not wait until its handshake is done."""
    listening = socket.create_server(("127.0.0.1", 0))
    connection = Connection(socket.create_connection(listening.getsockname()))
    sender = Sender(threading.Lock())
    start = threading.Thread.start

    def late(thread: threading.Thread) -> None:
        if thread.name == "session-send":
            sender.end(0.1)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", late)
    sender.start(connection)
    sender.end(5)
    connection.close()
    listening.close()


# --- two copies and the cables between them ------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Wired]:
    with wired(tmp_path) as made:
        yield made


def reset(pair: Wired) -> None:
    """Whichever LAN carries the session: on a busy machine the first one may not answer in time."""
    for cable in pair.cables:
        cable.reset()


@pytest.mark.root
def test_a_reset_connection_changes_nothing(pair: Wired) -> None:
    """C15: a port flaps and TCP is reset; no freeze, no proof, no resync."""
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    for round_number in range(5):
        reset(pair)
        for number in range(20):
            guest.write(file, 4096 * number, os.urandom(4096))
        guest.flush(file)
        answers = 1 + 21 * (round_number + 1)
        wait_for(lambda answers=answers: guest.answers == answers)
    assert not guest.errors
    pair.check_equal()
    pair.undisturbed()
    assert sum(cable.made for cable in pair.cables) >= 12
    told = [one for one in pair.a.events if isinstance(one, LogLine) and one.rule == "T4"]
    assert len(told) == 1, "a line that breaks again and again is told of now and then"
    assert "goes on over" in told[0].text


@pytest.mark.root
@pytest.mark.parametrize("seed", range(4))
def test_anything_that_a_guest_does_while_connections_break(pair: Wired, seed: int) -> None:
    """The copies are equal at the end, and every operation was answered once and without error."""
    do_anything_while_connections_break(pair, seed)


@pytest.mark.root
def test_anything_that_a_guest_does_while_connections_with_tls_break(tmp_path: Path) -> None:
    """There all that is sent and said goes by the threads that own the connections (T5)."""
    with wired(tmp_path, tls=True) as made:
        do_anything_while_connections_break(made, 5)


def do_anything_while_connections_break(pair: Wired, seed: int) -> None:
    guest = Guest(pair.a)
    monkey, chance = Monkey(guest, seed), random.Random(seed)
    over = threading.Event()

    session, links = pair.a.primary.session, pair.a.config.links
    assert session is not None

    def break_lines() -> None:
        while not over.wait(chance.random() / 8):
            if chance.random() < 0.4:
                session.move([one for one in links if one is not session.link], "", alarm=False)
            else:
                chance.choice(pair.cables).reset()

    breaking = threading.Thread(target=break_lines)
    breaking.start()
    end, steps = time.monotonic() + 4, 0
    try:
        while time.monotonic() < end:
            monkey.step()
            steps += 1
            if steps % 50 == 0:
                pair.barrier(pair.a)
    finally:
        over.set()
        breaking.join()
    pair.check_equal()
    wait_for(lambda: not pair.a.primary.parked_count())
    assert not guest.errors
    assert sum(cable.made for cable in pair.cables) > 10
    pair.undisturbed()


@pytest.mark.root
def test_a_write_is_read_again_only_when_it_was_done_here(pair: Wired, monkeypatch) -> None:
    """It enters the stream before its local call: a break between them must not send the past."""
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"the past")
    wait_for(lambda: guest.answers == 2)
    entered, go_on = threading.Event(), threading.Event()
    real = pair.a.store.write

    def slow(*place):
        entered.set()
        assert go_on.wait(10)
        return real(*place)

    pair.cables[0].silent()
    monkeypatch.setattr(pair.a.store, "write", slow)
    writing = threading.Thread(target=guest.write, args=(file, 0, b"the news"))
    writing.start()
    assert entered.wait(10)
    pair.cables[0].reset()
    pair.cables[0].silent(False)
    wait_for(lambda: pair.cables[0].made == 4)
    time.sleep(0.1)
    assert guest.answers == 2
    go_on.set()
    writing.join()
    wait_for(lambda: guest.answers == 3)
    pair.check_equal()
    assert (pair.b.folder / "f").read_bytes() == b"the news"
    pair.undisturbed()


@pytest.mark.root
def test_large_writes_and_barriers_under_way_arrive(pair: Wired) -> None:
    guest, chance = Guest(pair.a), random.Random(3)
    file = guest.create(ROOT_ID, b"f")
    pair.cables[0].silent()
    for number in range(8):
        guest.write(file, number << 20, chance.randbytes(1 << 20), barrier=number % 2 == 0)
        guest.flush(file)
    guest.truncate(file, (7 << 20) + 5)
    assert guest.answers < 17
    pair.cables[0].reset()
    pair.cables[0].silent(False)
    wait_for(lambda: guest.answers == 18)
    assert not guest.errors
    pair.check_equal()
    pair.undisturbed()


@pytest.mark.root
def test_a_silent_lan_is_left_for_the_next_one(pair: Wired) -> None:
    """D12: before the peer counts as lost; the answers of the silent LAN are not missed."""
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    pair.cables[0].silent()
    guest.write(file, 0, b"x" * 5000)
    guest.flush(file)
    wait_for(lambda: guest.answers == 3, 2)
    assert pair.told("goes on over prod")
    # What was on its way in the silent cable comes out of it now, and must not matter.
    pair.cables[0].silent(False)
    guest.write(file, 0, b"y" * 5000)
    wait_for(lambda: guest.answers == 4)
    pair.check_equal()
    assert not pair.a.has(SessionLost)
    assert not pair.b.has(SessionLost)


@pytest.mark.root
def test_a_lan_that_refuses_does_not_speak_for_the_others(pair: Wired) -> None:
    """A firewall that resets what comes over one of them is no word of the peer's."""
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    pair.cables[0].close()
    guest.write(file, 0, b"x")
    wait_for(lambda: guest.answers == 2)
    assert pair.told("goes on over prod")
    pair.check_equal()
    pair.undisturbed()
    # Where all of them refuse, nobody is there: that is told at once.
    begun = time.monotonic()
    pair.cables[1].close()
    pair.a.wait(SessionLost)
    assert time.monotonic() - begun < STALL_MS / 1000 / 2


@pytest.mark.root
def test_a_break_that_lasts_is_a_loss_on_both_nodes(pair: Wired) -> None:
    """Within stall_limit and a little; what waits is parked for the core to decide (D1)."""
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    for cable in pair.cables:
        cable.silent()
    guest.write(file, 0, b"x")
    assert pair.a.wait(SessionStalled, 5).over_limit is False
    assert pair.a.wait(SessionStalled, 5).over_limit is True
    for cable in pair.cables:
        cable.reset()
    pair.a.wait(SessionLost, 5)
    pair.b.wait(SessionLost, 5)
    assert guest.answers == 1
    assert pair.a.primary.parked_count() == 1


@pytest.mark.root
def test_another_process_of_the_peer_is_not_taken_for_the_one_that_was(pair: Wired) -> None:
    """T4: its memory is gone, and with it what it had acknowledged (Z1); that is told at once."""
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    key = pair.key
    pair.b.acceptor.close()
    pair.b.acceptor.expect(key, SessionStart.IN_SYNC)
    pair.cables[0].reset()
    begun = time.monotonic()
    lost = pair.a.wait(SessionLost)
    assert time.monotonic() - begun < STALL_MS / 1000 / 2
    assert "not expected" in lost.text or "not served" in lost.text
    guest.write(file, 0, b"x")
    assert guest.answers == 1


@pytest.mark.root
def test_a_secondary_that_was_fenced_takes_no_session_up_again(pair: Wired) -> None:
    """P8: from the fence on nothing of the session is acknowledged, over whatever connection."""
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    assert pair.b.acceptor.close() == ""
    guest.write(file, 0, b"x")
    pair.a.wait(SessionLost)
    assert guest.answers == 1


@pytest.mark.root
def test_a_resync_is_not_resumed(pair: Wired) -> None:
    """Its questions are not kept: another session goes on with it (R13)."""
    pair.a.primary.close_session(clean=True)
    pair.a.primary.set_mode(Acknowledge.LOCAL)
    guest, chance = Guest(pair.a), random.Random(1)
    file = guest.create(ROOT_ID, b"f")
    for number in range(64):
        guest.write(file, number << 20, chance.randbytes(1 << 20))
    pair.a.primary.config = replace(pair.a.primary.config, resync_rate_mib_s=20)
    pair.connect(SessionStart.CANDIDATES)
    pair.a.wait(SessionUp)
    pair.cables[0].reset()
    pair.a.wait(SessionLost)


@pytest.mark.root
@pytest.mark.parametrize("moves", [False, True])
def test_a_verification_survives_breaks(pair: Wired, moves: bool) -> None:
    """Answers that a break has swallowed are said again, each one once: also those that come over
    the former line while the peer is asked for the next."""
    guest, chance = Guest(pair.a), random.Random(5)
    for number in range(6):
        file = guest.create(ROOT_ID, b"f%d" % number)
        for zone in range(8):
            guest.write(file, zone << 20, chance.randbytes(1 << 20))
    pair.barrier(pair.a)
    ending = Ending()
    session = pair.a.primary.session
    assert session is not None
    links = pair.a.config.links
    for repeat in range(5):
        Verify(pair.a.primary, session, ending, StartVerify(repeat, False)).start()
        while not ending.comes(0.001 if moves else 0.02):
            if moves:
                session.move([one for one in links if one is not session.link], "", alarm=False)
            else:
                reset(pair)
    assert [(one.text, one.blocks, one.others) for one in ending.ends] == [("", 0, 0)] * 5
    assert sum(cable.made for cable in pair.cables) > 10
    pair.undisturbed()


@pytest.mark.root
def test_the_session_goes_back_to_the_lan_that_is_preferred(tmp_path: Path) -> None:
    made = Wired(tmp_path)
    try:
        made.a.primary.barriers.lans.stable_ms = 1500
        made.in_sync()
        guest = Guest(made.a)
        file = guest.create(ROOT_ID, b"f")
        made.cables[0].silent()
        wait_for(lambda: made.told("goes on over prod"))
        made.cables[0].silent(False)
        for number in range(400):
            guest.write(file, number * 512, os.urandom(512))
            if made.told("preferred and stable"):
                break
            time.sleep(0.01)
        assert made.told("goes on over repl")
        made.check_equal()
        assert not made.a.has(SessionLost)
        assert not made.b.has(SessionLost)
    finally:
        made.close()
