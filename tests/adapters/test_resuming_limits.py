"""What bounds the going on of a session over other connections: time, memory, descriptors (T4)."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperha.core.events import SessionLost, SessionStalled
from hyperha.replication import acceptor, lines, wire
from hyperha.replication.clock import now_ms
from hyperha.replication.connecting import Line
from hyperha.replication.control import PeerLink
from hyperha.replication.operations import ROOT_ID, FileId
from hyperha.replication.preamble import Direction, Preamble, cluster_hash
from hyperha.replication.stream import PrimarySession
from hyperha.replication.transport import Connection
from hyperha.replication.wire import Frame, Kind
from tests.support.cable import Cable
from tests.support.engine_pair import Guest, wait_for
from tests.support.wired import Wired, wired

pytestmark = pytest.mark.root


class FilteringCable(Cable):
    """Resets every connection over which a certain text is to go, as a packet filter may do."""

    TEXT = b"cursed"

    def _carry(self, one: socket.socket) -> None:
        try:
            found = self.TEXT in one.recv(1 << 18, socket.MSG_PEEK)
        except OSError:
            found = False
        if found:
            self.reset()
        else:
            super()._carry(one)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Wired]:
    with wired(tmp_path) as made:
        yield made


def first_file(guest: Guest) -> FileId:
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    return file


def test_connections_that_carry_nothing_new_are_no_progress(tmp_path: Path) -> None:
    """D8': a guest's write never waits longer than stall_limit, however often the session goes on
    in vain, and that is tried no more often than it can be borne."""
    pair = Wired(tmp_path, kind=FilteringCable)
    try:
        pair.in_sync()
        guest = Guest(pair.a)
        file = first_file(guest)
        guest.flush(file)
        wait_for(lambda: guest.answers == 2)
        made = sum(cable.made for cable in pair.cables)
        begun = time.monotonic()
        guest.write(file, 0, b"a cursed text")
        guest.flush(file)
        while not pair.a.wait(SessionStalled, 5).over_limit:
            pass
        took_s = time.monotonic() - begun
        assert took_s < pair.a.config.stall_limit_ms / 1000 + 0.5
        assert 4 < sum(cable.made for cable in pair.cables) - made < 60 * took_s
        assert guest.answers == 2
        assert not pair.a.has(SessionLost)
    finally:
        pair.close()


def test_signs_of_life_are_not_kept(pair: Wired) -> None:
    """An idle guest has nothing acknowledged: for days they would come together."""
    session = pair.a.primary.session
    assert session is not None
    served = pair.b.acceptor.session
    assert served is not None
    heard = {served.heard_ms}

    def heard_often() -> bool:
        heard.add(served.heard_ms)
        return len(heard) > 3

    wait_for(heard_often)
    assert session.retained.count == 0
    # Both ends count the same all the same.
    guest = Guest(pair.a)
    file = first_file(guest)
    pair.cables[0].reset()
    guest.write(file, 0, b"x" * 4096)
    wait_for(lambda: guest.answers == 2)
    pair.check_equal()
    pair.undisturbed()


def test_a_replay_that_waits_is_no_sign_of_life(
    pair: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: what this node waits for before it goes on, here its disk, says nothing of the peer."""
    real = PrimarySession._replay
    late_ms: list[int] = []
    operation = pair.a.primary.operation

    def replay(session: PrimarySession, *arguments: Any) -> None:
        begun_ms = now_ms()
        operation.acquire()
        threading.Timer(0.8, operation.release).start()
        real(session, *arguments)
        late_ms.append(session.heard_ms - begun_ms)

    monkeypatch.setattr(PrimarySession, "_replay", replay)
    pair.cables[0].reset()
    wait_for(lambda: late_ms)
    assert late_ms[0] < 400
    pair.undisturbed()


def test_breaks_leave_no_descriptors_and_threads_behind(
    pair: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, chance = Guest(pair.a), random.Random(1)
    file = first_file(guest)
    session, links = pair.a.primary.session, pair.a.config.links
    assert session is not None

    def break_often(times: int) -> None:
        for number in range(times):
            if chance.random() < 0.4:
                session.move([one for one in links if one is not session.link], "", alarm=False)
            if chance.random() < 0.8:
                for cable in pair.cables:
                    cable.reset()
            for size in (4096, 4096, 70_000):
                guest.write(file, number << 12, os.urandom(size))
            wait_for(lambda: not pair.a.primary.parked_count())

    def held() -> tuple[int, int]:
        # Breaks under way end soon; a guest that can write has been through all of them.
        time.sleep(0.3)
        with monkeypatch.context() as context:
            # One half of a pair whose other half never came is let go of a little later.
            context.setattr(acceptor, "_KEEP_MS", 0)
            pair.b.tick()
        time.sleep(0.1)
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    break_often(20)
    before = held()
    break_often(300)
    after = held()
    # By a line in between: each end keeps its former one until the next.
    assert after[0] <= before[0] + 8
    assert after[1] <= before[1] + 2
    assert not guest.errors
    pair.check_equal()
    pair.undisturbed()


def test_a_connection_that_comes_when_nothing_is_taken_any_more_is_closed(pair: Wired) -> None:
    """It was under way while the folder was uncovered: nobody else would close it."""
    config, taker = pair.b.config, pair.b.acceptor
    taker.shut()
    offered = Preamble(
        cluster_hash(config.cluster_id), config.module, config.number, config.peer, pair.key,
        Direction.FORWARD, b"p" * 16, encrypted=False, resumes=True,
    )  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.settimeout(5)
    taker.take(far, offered, None)
    assert near.recv(1) == b""
    near.close()


@pytest.mark.parametrize("how", ["close", "fail"])
def test_a_session_that_is_ended_while_another_line_is_found_ends(
    pair: Wired, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its receiver would wait for ever for a peer that has nothing to say, and whoever closes
    the session for its receiver."""
    session = pair.a.primary.session
    assert session is not None
    first_file(Guest(pair.a))
    found, go_on = threading.Event(), threading.Event()
    real = lines.Lines._received

    def late(self: lines.Lines, line: Line, answer: Frame) -> int:
        found.set()
        assert go_on.wait(10)
        return real(self, line, answer)

    monkeypatch.setattr(lines.Lines, "_received", late)
    pair.cables[0].reset()
    assert found.wait(10)
    if how == "fail":
        session.fail("enough")
    else:
        aborted = threading.Event()
        abort = session._lines.abort
        monkeypatch.setattr(session._lines, "abort", lambda: (abort(), aborted.set()))
        closing = threading.Thread(target=session.close, kwargs={"clean": False}, daemon=True)
        closing.start()
        assert aborted.wait(10)
    go_on.set()
    receiver = session._receiver
    assert receiver is not None
    receiver.join(5)
    assert not receiver.is_alive()
    if how == "fail":
        assert pair.a.wait(SessionLost).text == "enough"


def test_a_session_whose_data_path_stands_still_can_be_closed(
    pair: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs holds the guest's write; it must not hold the core's next order, too."""
    guest = Guest(pair.a)
    file = first_file(guest)
    entered, go_on = threading.Event(), threading.Event()
    real = pair.a.store.write

    def slow(file: FileId, offset: int, data: bytes) -> int:
        entered.set()
        assert go_on.wait(20)
        return real(file, offset, data)

    monkeypatch.setattr(pair.a.store, "write", slow)
    writing = threading.Thread(target=guest.write, args=(file, 0, b"x"))
    writing.start()
    assert entered.wait(10)
    pair.cables[0].reset()
    wait_for(lambda: pair.cables[0].made == 4)
    closing = threading.Thread(target=pair.a.primary.close_session, kwargs={"clean": False})
    closing.start()
    closing.join(3)
    try:
        assert not closing.is_alive()
    finally:
        go_on.set()
        writing.join()
        closing.join()


@contextlib.contextmanager
def line_that_says(link: PeerLink, *frames: bytes) -> Iterator[Line]:
    """A line over which the peer has said this, all of which is received at once, and hung up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = Connection(socket.create_connection(listening.getsockname()))
        far, _ = listening.accept()
        far.sendall(b"".join(frames))
        far.close()
    try:
        yield Line(link, near, near)
    finally:
        near.close()


@pytest.mark.parametrize("kind", [Kind.ACKNOWLEDGED, Kind.FLUSHED])
def test_a_barrier_that_was_asked_for_again_takes_no_acknowledgement_back(
    pair: Wired, kind: Kind
) -> None:
    """What asks again stands behind operations of higher numbers, and is acknowledged by its own:
    both together lost the higher one, and its write was never answered."""
    guest, primary = Guest(pair.a), pair.a.primary
    file = first_file(guest)
    for cable in pair.cables:
        cable.silent()
    guest.write(file, 0, b"x")
    session = primary.session
    assert session is not None
    number = session.last_number
    said = [
        wire.frame(one, session.tag, at) for one, at in ((kind, number), (Kind.ACKNOWLEDGED, 1))
    ]
    with line_that_says(pair.a.config.links[0], *said) as line:
        session._receive(primary, line)
    assert primary.acknowledged_number == number
    assert guest.answers == 2
