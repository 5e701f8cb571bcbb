"""What is sent again after a break is one whole (T4): nothing is answered by a part of it, no
verification is deceived by it, and no barrier waits for ever because of it (F2, R17, D8')."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hyperha.core.actions import Acknowledge
from hyperha.core.events import SessionLost, SessionStalled
from hyperha.replication import secondary, stream, wire
from hyperha.replication.connecting import Line
from hyperha.replication.control import StartVerify, VerifyTold
from hyperha.replication.handshake import Hello, Welcome
from hyperha.replication.operations import ROOT_ID, FileId
from hyperha.replication.repeats import Repeats
from hyperha.replication.resuming import Answers, NextLine, Offered
from hyperha.replication.retained import Kept, Read
from hyperha.replication.sender import Sender
from hyperha.replication.stream import PrimarySession
from hyperha.replication.transport import Connection
from hyperha.replication.verify import Verify
from hyperha.replication.wire import Frame, Kind
from tests.support.engine_pair import Guest, wait_for
from tests.support.verifying import Ending
from tests.support.wired import Wired, wired

pytestmark = pytest.mark.root
BLOCK = 4096


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Wired]:
    with wired(tmp_path) as made:
        yield made


def silent(pair: Wired) -> None:
    for cable in pair.cables:
        cable.silent()


def broken(pair: Wired) -> None:
    """What has not arrived is lost; connections can be made again."""
    for cable in pair.cables:
        cable.reset()
        cable.silent(False)


def first_file(guest: Guest) -> FileId:
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"o" * BLOCK)
    guest.flush(file)
    wait_for(lambda: guest.answers == 3)
    return file


# --- one whole ----------------------------------------------------------------------------


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize("what", ["cut", "removed"])
def test_nothing_is_answered_by_a_part_of_what_is_sent_again(
    pair: Wired, monkeypatch: pytest.MonkeyPatch, what: str, barrier: bool
) -> None:
    """A write whose file is shorter, or gone, by now is sent again without its data. Answered by
    that alone it would be nowhere when this node dies before the rest has arrived."""
    guest = Guest(pair.a)
    file = first_file(guest)
    silent(pair)
    guest.write(file, 0, b"A" * BLOCK, barrier=barrier)
    if what == "cut":
        guest.truncate(file, 0)
    else:
        guest.remove(ROOT_ID, b"f")
    send, front = PrimarySession._send_again, threading.Event()

    def send_front(session: PrimarySession, line: Line, frames: list[Kept], read: Read) -> None:
        kinds = [wire.HEAD.unpack_from(raw)[1] for raw, _ in frames]
        send(session, line, frames[: kinds.index(wire.WRITE) + 1], read)

    def nothing_follows(_sender: Sender, _connection: object) -> None:
        front.set()

    monkeypatch.setattr(PrimarySession, "_send_again", send_front)
    monkeypatch.setattr(Sender, "start", nothing_follows)
    broken(pair)
    assert front.wait(10)
    served = pair.b.acceptor.session
    assert served is not None
    wait_for(lambda: served.covered >= 0 and not served.waiting_bytes)
    assert pair.b.acceptor.close() == ""
    # Whatever it has said is heard by then.
    pair.a.wait(SessionLost)
    held = pair.b.folder / "f"
    assert guest.answers == 3, f"answered, and the other node has {held.read_bytes()[:1]!r}"
    assert not guest.errors


def test_what_was_sent_again_is_answered_when_all_of_it_has_come(pair: Wired) -> None:
    """Also the barriers in it, and what was begun meanwhile, without another word of the guest."""
    guest = Guest(pair.a)
    file = first_file(guest)
    for number in range(6):
        silent(pair)
        guest.write(file, 0, b"A" * BLOCK, barrier=number % 2 == 0)
        guest.flush(file)
        guest.truncate(file, 100 * number)
        if number % 3:
            guest.flush(file)
        broken(pair)
        wait_for(lambda: not pair.a.primary.parked_count())
    assert not guest.errors
    pair.check_equal()
    pair.undisturbed()


def test_answers_of_the_time_before_end_no_barrier() -> None:
    repeats = Repeats()
    assert (repeats.whole, repeats.flushed(5)) == (0, 5)
    repeats.begin(7, 9)
    assert [repeats.flushed(number) for number in (5, 9, 10)] == [None, None, 10]
    assert [repeats.asked_before(number) for number in (9, 10)] == [True, False]
    repeats.asked(11, 5)
    assert [repeats.question_came(number) for number in (5, 11, 12)] == [False, True, False]
    assert [repeats.flushed(11), repeats.flushed(12)] == [5, 12]
    repeats.asked(13, 9)
    repeats.begin(20, 20)
    assert repeats.flushed(13) is None
    # Its arrival may be said over the next line only.
    assert repeats.question_came(13)


# --- a barrier whose fsync hangs ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["flush", "barrier"])
def test_a_hung_fsync_is_told_of_however_often_the_line_breaks(
    pair: Wired, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """D8': that the question for the barrier comes anew over each line is no progress."""
    guest = Guest(pair.a)
    file = first_file(guest)
    go_on = threading.Event()
    monkeypatch.setattr(pair.b.store, "sync", lambda *_: go_on.wait(60))
    monkeypatch.setattr(pair.b.store, "sync_all", lambda *_: go_on.wait(60))

    session = pair.a.primary.session
    assert session is not None
    noted = session._note_progress

    def note_and_break(frame: Frame) -> None:
        noted(frame)
        pair.cables[0].reset()

    monkeypatch.setattr(session, "_note_progress", note_and_break)
    try:
        if kind == "flush":
            guest.flush(file)
        else:
            pair.a.primary.barriers.start(lambda _ok, _text: None, forget_all=False)
        while not pair.a.wait(SessionStalled, 10).over_limit:
            pass
    finally:
        go_on.set()
    assert not pair.a.has(SessionLost)


@pytest.mark.parametrize("mode", [Acknowledge.BOTH, Acknowledge.LOCAL])
def test_a_barrier_whose_session_ends_is_ended_once(
    pair: Wired, monkeypatch: pytest.MonkeyPatch, mode: Acknowledge
) -> None:
    """The peer is done and this node not yet: the loss ends it, or begins it anew, and no more."""
    first_file(Guest(pair.a))
    go_on, synced, real = threading.Event(), threading.Event(), pair.a.store.sync_all

    def slow() -> None:
        assert go_on.wait(20)
        real()
        synced.set()

    monkeypatch.setattr(pair.a.store, "sync_all", slow)
    barriers, ended, over = pair.a.primary.barriers, [], threading.Event()

    def done(ok: bool, text: str) -> None:
        ended.append((ok, text))
        over.set()

    barriers.start(done, forget_all=True)
    wait_for(lambda: any(one.remote for one in barriers._running.values()))
    pair.a.primary.set_mode(mode)
    session = pair.a.primary.session
    assert session is not None
    session.fail("enough")
    pair.a.wait(SessionLost)
    go_on.set()
    assert over.wait(10)
    assert synced.wait(10)
    pair.a.primary.syncer.close()
    assert len(ended) == 1


# --- a verification -----------------------------------------------------------------------


class Disturbed(Verify):
    """Breaks the lines around one question, while the guest goes on."""

    def __init__(self, pair: Wired, told: Callable[[VerifyTold], None], repair: bool) -> None:
        session = pair.a.primary.session
        assert session is not None
        super().__init__(pair.a.primary, session, told, StartVerify(1, repair))
        self.before: Callable[[], None] = lambda: None
        self.behind: Callable[[], None] = lambda: None
        self.question = ""
        self._pair = pair

    def _disturb(self, question: str, ask: Callable[[], object]) -> None:
        if question != self.question:
            ask()
            return
        self.question = ""
        silent(self._pair)
        self.before()
        ask()
        self.behind()
        broken(self._pair)

    def _zone(self, file: FileId, offset: int) -> bool:
        self._disturb("zone", lambda: super(Disturbed, self)._zone(file, offset))
        return True

    def _inode(self, file: FileId) -> int | None:
        found: list[int | None] = []
        self._disturb("inode", lambda: found.append(super(Disturbed, self)._inode(file)))
        return found[0]

    def _directory(self, directory: FileId) -> None:
        self._disturb("directory", lambda: super(Disturbed, self)._directory(directory))


@pytest.mark.parametrize("question", ["zone", "inode", "directory"])
@pytest.mark.parametrize("then", ["nothing", "a write", "a cut"])
def test_a_verification_is_not_deceived_by_what_is_sent_again(
    pair: Wired, question: str, then: str
) -> None:
    """R17: what is sent again holds data of after the question, which is asked once more then."""
    guest = Guest(pair.a)
    file = first_file(guest)
    guest.write(file, 0, random.Random(5).randbytes(1 << 20))
    pair.barrier(pair.a)
    ending = Ending()
    verify = Disturbed(pair, ending, repair=True)
    verify.question = question
    place = 0 if question == "zone" else 1 << 20
    verify.before = lambda: guest.write(file, place, b"A" * BLOCK)
    if then == "a write":
        verify.behind = lambda: guest.write(file, place, b"B" * BLOCK)
    elif then == "a cut":
        verify.behind = lambda: guest.truncate(file, 100)
    verify.start()
    ended = ending.within(10)
    wait_for(lambda: not pair.a.primary.parked_count())
    pair.check_equal()
    assert not pair.a.has(SessionLost)
    assert (ended.text, ended.blocks, ended.others) == ("", 0, 0)


# --- the same process, the last try -------------------------------------------------------


def test_another_process_does_not_take_the_session_up(
    pair: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Z1: what the former one had in memory only is not there."""
    guest = Guest(pair.a)
    file = first_file(guest)
    monkeypatch.setattr(secondary, "INSTANCE", "another process")
    broken(pair)
    guest.write(file, 0, b"x")
    assert "is not served by this process" in pair.a.wait(SessionLost).text
    assert guest.answers == 3


def test_a_session_is_not_gone_on_with_over_another_process(
    pair: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Guest(pair.a)
    file = first_file(guest)

    def of_another(candidates: int, _instance: str, received: int) -> Welcome:
        return Welcome(candidates, "another process", received)

    monkeypatch.setattr(secondary, "Welcome", of_another)
    broken(pair)
    guest.write(file, 0, b"x")
    assert "another process of the peer answers" in pair.a.wait(SessionLost).text
    assert guest.answers == 3


def test_a_try_that_comes_late_does_not_take_the_place_of_a_later_one(pair: Wired) -> None:
    """It lay in a slow LAN while another one was made: to serve it would end that one."""
    session = pair.a.primary.session
    assert session is not None
    first, second = session._hello(), session._hello()
    assert first.attempt < second.attempt

    with contextlib.ExitStack() as ends:
        listening = ends.enter_context(socket.create_server(("127.0.0.1", 0)))

        def offered(hello: Hello) -> Offered:
            near = Connection(socket.create_connection(listening.getsockname()))
            far = Connection(listening.accept()[0])
            ends.callback(near.close)
            ends.callback(far.close)
            return near, far, hello

        line, early, late = NextLine(), offered(second), offered(first)
        assert line.offer(early)
        assert not line.offer(late)
        assert line.take(0) is early
        early[0].send([b"open"])
        assert early[1].receive_exactly(4) == b"open"
        assert not line.offer(late)
        newest = offered(replace(second, attempt=second.attempt + 1))
        assert line.offer(newest)
        line.close()
        with pytest.raises(OSError, match="descriptor"):
            newest[0].send([b"open"])


# --- what a session may take ---------------------------------------------------------------


def test_more_files_than_have_an_index(pair: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    """M9: a session may last for months; an index means what it was last said to mean, also in
    what is sent again."""
    monkeypatch.setattr(stream, "FILES_ANNOUNCED", 3)
    guest, chance = Guest(pair.a), random.Random(1)
    files = [guest.create(ROOT_ID, b"%d" % number) for number in range(10)]
    for round_number in range(20):
        if round_number % 4 == 3:
            silent(pair)
        for file in chance.choices(files, k=8):
            guest.write(file, chance.randrange(1 << 20), chance.randbytes(chance.randrange(1, 999)))
        if round_number % 4 == 3:
            broken(pair)
    wait_for(lambda: not pair.a.primary.parked_count())
    pair.check_equal()
    pair.undisturbed()
    session, served = pair.a.primary.session, pair.b.acceptor.session
    assert session is not None
    assert served is not None
    assert served._applier is not None
    assert 0 < len(session.announced) <= 3
    assert len(served._applier._files) == 3


def test_a_session_is_closed_while_its_data_cannot_be_read_again(
    pair: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk hangs: whoever ends the session does not wait for that."""
    guest = Guest(pair.a)
    file = first_file(guest)
    entered, go_on, real = threading.Event(), threading.Event(), pair.a.store.read

    def slow(one: FileId, offset: int, length: int) -> bytes:
        entered.set()
        assert go_on.wait(30)
        return real(one, offset, length)

    monkeypatch.setattr(pair.a.store, "read", slow)
    silent(pair)
    guest.write(file, 0, b"x" * BLOCK)
    broken(pair)
    assert entered.wait(10)
    begun = time.monotonic()
    pair.a.primary.close_session(clean=False)
    assert time.monotonic() - begun < 10
    go_on.set()


def test_answers_of_a_resync_do_not_stay_in_memory() -> None:
    """T8: of a tree with large directories each is of hundreds of KiB."""
    answers = Answers()
    for number in range(100):
        answers.note(wire.frame(Kind.DIFFERENT, 1, number, b"x" * (400 << 10)))
    assert sum(map(len, answers._kept)) <= 4 << 20
    assert len(answers.behind(95)) == 5
