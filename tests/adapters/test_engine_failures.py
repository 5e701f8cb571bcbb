"""What is parked always ends, and by the right word: failed disks, ended freezes, lost sessions."""

import errno
import os
import threading
import time
from queue import SimpleQueue

import pytest

from hyperha.core import actions
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import (
    EngineDone,
    LocalDiskFailed,
    ResyncCopied,
    SessionLost,
    SessionStalled,
    SessionUp,
)
from hyperha.errors import ReplicationError
from hyperha.replication import barriers, clock, parking
from hyperha.replication.engine import Engine
from hyperha.replication.operations import ROOT_ID, Change, FileId, Record, RecordKind
from hyperha.replication.syncer import Syncer
from tests.support.engine_pair import Guest, Pair, call, wait_for

pytestmark = pytest.mark.root


def started(pair: Pair) -> tuple[Guest, FileId]:
    """A primary in sync whose guest has made one file."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    return guest, file


def fails(number: int):
    def broken(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return broken


# --- failed disks ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_that_cannot_be_read_back_stays_parked(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Z4, D10: neither answered nor forgotten; the end of the freeze answers it."""
    guest, file = started(pair)
    monkeypatch.setattr(pair.a.store, "write", fails(number))
    monkeypatch.setattr(pair.a.store, "read", fails(errno.EIO))
    guest.write(file, 0, b"x")
    pair.a.wait(LocalDiskFailed)
    guest.write(file, 1, b"y")
    # Whatever the peer acknowledges meanwhile.
    session = pair.a.primary.session
    assert session is not None
    wait_for(lambda: pair.a.primary.acknowledged_number >= session.last_number)
    assert guest.answers == 1
    assert pair.a.primary.parked_count() == 2
    pair.a.primary.set_mode(Acknowledge.NONE)
    pair.a.primary.end_parked()
    assert guest.errors == [errno.EIO, errno.EIO]
    assert pair.a.primary.parked_count() == 0


def test_a_failed_disk_takes_nothing_any_more(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """D10: not after the parked requests were forgotten or ended either."""
    guest, file = started(pair)
    monkeypatch.setattr(pair.a.store, "write", fails(errno.EIO))
    guest.write(file, 0, b"x")
    pair.a.wait(LocalDiskFailed)
    monkeypatch.undo()
    pair.a.primary.end_parked()
    guest.write(file, 0, b"y")
    pair.a.primary.demote()
    guest.write(file, 0, b"z")
    pair.a.primary.promote(Acknowledge.LOCAL)
    guest.write(file, 0, b"!")
    assert (pair.a.folder / "f").read_bytes() == b""
    assert guest.answers - len(guest.errors) == 1


def test_a_barrier_of_a_failed_disk_is_none(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """D10: what was sent and could not be written here is on no stable storage of this node."""
    guest, file = started(pair)
    monkeypatch.setattr(pair.a.store, "write", fails(errno.EIO))
    guest.write(file, 0, b"x")
    pair.a.wait(LocalDiskFailed)
    results: list[bool] = []
    pair.a.primary.barriers.start(lambda ok, _: results.append(ok), forget_all=True)
    wait_for(lambda: results)
    assert results == [False]


def test_a_change_that_meets_a_failed_disk_is_told(pair: Pair) -> None:
    """D10: a part of it may be done, and nothing was sent."""
    guest, file = started(pair)
    with pytest.raises(OSError, match="Input/output"):
        guest.change([Record(RecordKind.INODE, file)], fails(errno.EIO))
    pair.a.wait(LocalDiskFailed)


def test_a_change_with_an_unknown_result_ends_the_session(pair: Pair) -> None:
    """Z4: it may be done here and was not sent, so the copies may differ until a resync."""
    guest, file = started(pair)
    pair.barrier(pair.a)

    def halfway() -> Change:
        os.truncate(pair.a.folder / "f", 10)
        raise MemoryError

    with pytest.raises(MemoryError):
        guest.change([Record(RecordKind.INODE, file)], halfway)
    assert "not known" in pair.a.wait(SessionLost).text
    assert Record(RecordKind.INODE, file) in (pair.a.intent.candidates() or [])


def test_a_secondary_that_could_not_apply_is_not_drained(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: an empty queue is no proof when its content was dropped."""
    guest, file = started(pair)
    monkeypatch.setattr(pair.b.store, "write", fails(errno.ENOSPC))
    guest.write(file, 0, b"x")
    pair.b.wait(LocalDiskFailed)
    with pytest.raises(ReplicationError, match="No space"):
        pair.b.acceptor.drain(5.0)


def test_a_resync_sees_that_a_write_failed_halfway(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Z5: what was read of the zone during the write is older than what was sent after it."""
    guest, file = started(pair)
    real, primary = pair.a.store.write, pair.a.primary

    def short(which, offset, data):
        # A resync begins to read the zone in the middle of the local call.
        primary.watched[which, 0] = 0
        return real(which, offset, bytes(data)[:10])

    monkeypatch.setattr(pair.a.store, "write", short)
    guest.write(file, 0, b"x" * 100)
    assert guest.errors == [errno.ENOSPC]
    assert primary.watched[file, 0] > 0
    primary.watched.clear()


class FailingMeanwhile:
    """A session whose applier fails, and lets go of its queue, while somebody looks at it."""

    def __init__(self) -> None:
        self.failure = ""

    @property
    def waiting_bytes(self) -> int:
        self.failure = "No space left"
        return 0


def test_a_failure_between_two_looks_at_the_queue_is_seen(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: the queue is empty because its content was dropped."""
    monkeypatch.setattr(pair.b.acceptor, "_session", FailingMeanwhile())
    try:
        with pytest.raises(ReplicationError, match="No space"):
            pair.b.acceptor.drain(5.0)
    finally:
        monkeypatch.undo()


def test_a_write_that_the_receiver_applies_itself_is_waited_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: it is acknowledged, and not in the queue of the applier's thread."""
    guest, file = started(pair)
    guest.write(file, 0, b"cold")
    session = pair.b.acceptor.session
    assert session is not None
    wait_for(lambda: guest.answers == 2 and not session.waiting_bytes)
    begun, go_on = threading.Event(), threading.Event()
    real = pair.b.store.write

    def slow(which, offset, data):
        assert threading.current_thread().name == "receive"
        begun.set()
        assert go_on.wait(10)
        return real(which, offset, data)

    monkeypatch.setattr(pair.b.store, "write", slow)
    guest.write(file, 0, b"warm")
    wait_for(lambda: guest.answers == 3 and begun.is_set())
    with pytest.raises(ReplicationError, match="not applied yet"):
        pair.b.acceptor.drain(0.05)
    go_on.set()
    pair.b.acceptor.drain(5.0)
    assert (pair.b.folder / "f").read_bytes() == b"warm"


def test_what_is_acknowledged_counts_as_waiting_at_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: also between the acknowledgement and the queue."""
    guest, file = started(pair)
    session = pair.b.acceptor.session
    assert session is not None
    assert session._applier is not None
    real = session._applier.put
    go_on = threading.Event()

    def late(*arguments, **options) -> None:
        assert go_on.wait(10)
        real(*arguments, **options)

    monkeypatch.setattr(session._applier, "put", late)
    guest.write(file, 0, b"x")
    wait_for(lambda: guest.answers == 2)
    with pytest.raises(ReplicationError, match="not applied yet"):
        pair.b.acceptor.drain(0.05)
    go_on.set()
    pair.b.acceptor.drain(5.0)
    assert (pair.b.folder / "f").read_bytes() == b"x"


# --- ended freezes ---------------------------------------------------------------------------


def test_every_parked_request_ends_with_an_error(pair: Pair) -> None:
    """M7: changes of names and barriers too; what was done stays a candidate."""
    guest, file = started(pair)
    primary = pair.a.primary
    pair.barrier(pair.a)
    primary.set_mode(Acknowledge.NONE)
    primary.close_session(clean=False)
    guest.write(file, 0, b"x")
    guest.write(file, 1, b"y", barrier=True)
    made = guest.create(ROOT_ID, b"g")
    guest.flush(file)
    primary.end_parked()
    assert guest.errors == [errno.EIO] * 4
    assert primary.parked_count() == 0
    with pytest.raises(OSError, match="freeze"):
        guest.create(ROOT_ID, b"h")
    assert sorted(os.listdir(pair.a.folder)) == [".hyperha", "f", "g"]
    wanted = {Record(RecordKind.DIRECTORY, ROOT_ID), Record(RecordKind.INODE, made)}
    assert wanted <= set(pair.a.intent.candidates() or [])
    pair.a.intent.enter_alone("g0")
    primary.set_mode(Acknowledge.LOCAL)
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    guest.create(ROOT_ID, b"h")
    wait_for(lambda: guest.answers == 6)
    assert len(guest.errors) == 4


def test_an_order_that_comes_too_late_ends_nothing(pair: Pair) -> None:
    """M7 is for freezes: nothing that the peer may still acknowledge is ended."""
    guest, file = started(pair)
    pair.a.primary.end_parked()
    guest.write(file, 0, b"x")
    wait_for(lambda: guest.answers == 2)
    assert not guest.errors


def test_the_end_of_a_resync_takes_requests_again(pair: Pair) -> None:
    """M7: refused only until the mode changes, also when it changes by R11."""
    guest, file = started(pair)
    primary = pair.a.primary
    primary.set_mode(Acknowledge.NONE)
    primary.end_parked()
    call(lambda done: primary.switch_to_both(pair.key, done))
    guest.write(file, 0, b"x")
    wait_for(lambda: guest.answers == 2)
    assert not guest.errors


# --- lost sessions ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Acknowledge.BOTH, Acknowledge.NONE])
def test_a_barrier_without_a_session_waits_for_the_core(pair: Pair, mode: Acknowledge) -> None:
    """R11, Z1: the sync of this node alone never ends a barrier that needs both."""
    started(pair)
    primary = pair.a.primary
    pair.b.acceptor.close()
    pair.a.wait(SessionLost)
    primary.set_mode(mode)
    results: list[tuple[bool, str]] = []
    primary.barriers.start(lambda ok, text: results.append((ok, text)), forget_all=True)
    time.sleep(0.2)
    assert results == []
    assert pair.a.intent.candidate_count() > 0
    primary.set_mode(Acknowledge.LOCAL)
    wait_for(lambda: results)
    assert results == [(True, "")]
    # And one that waits when the node steps back ends too.
    primary.set_mode(mode)
    primary.barriers.start(lambda ok, text: results.append((ok, text)), forget_all=True)
    primary.demote()
    wait_for(lambda: len(results) == 2)
    assert not results[1][0]


def test_a_barrier_that_syncs_while_the_node_steps_back_ends(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K2: begun when this node's word was enough; nobody else will ever say how it ended."""
    primary = pair.a.primary
    primary.promote(Acknowledge.LOCAL)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(10)

    monkeypatch.setattr(pair.a.store, "sync_all", slow)
    results: list[bool] = []
    primary.barriers.start(lambda ok, _: results.append(ok), forget_all=True)
    assert begun.wait(10)
    primary.demote()
    go_on.set()
    wait_for(lambda: results, 5)
    assert results == [False]


def test_a_barrier_that_fails_unforeseen_at_its_end_is_answered_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K2: the core waits for it, and nothing says again how it ended."""
    started(pair)

    def broken(upto: int, covered: int) -> None:
        raise MemoryError

    monkeypatch.setattr(pair.a.intent, "retire", broken)
    results: list[tuple[bool, str]] = []
    pair.a.primary.barriers.start(lambda ok, text: results.append((ok, text)), forget_all=True)
    wait_for(lambda: results, 5)
    pair.a.primary.close_session(clean=False)
    assert len(results) == 1
    assert not results[0][0]
    assert "MemoryError" in results[0][1]


def test_a_barrier_of_the_frozen_time_is_done_by_the_next_session(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(pair)
    primary = pair.a.primary
    primary.set_mode(Acknowledge.NONE)
    primary.close_session(clean=False)
    results: list[bool] = []
    primary.barriers.start(lambda ok, _: results.append(ok), forget_all=True)
    synced = threading.Event()
    real = pair.b.store.sync_all
    key = pair.connect(SessionStart.CANDIDATES)
    pair.a.wait(ResyncCopied)

    def watched() -> None:
        synced.set()
        real()

    monkeypatch.setattr(pair.b.store, "sync_all", watched)
    assert results == []
    call(lambda done: primary.switch_to_both(key, done))
    wait_for(lambda: results)
    assert results == [True]
    assert synced.is_set()


def test_the_core_hears_of_the_loss_before_the_barrier_fails(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1: a barrier that cannot end is no failure of its own; what follows is the freeze."""
    started(pair)
    go_on = threading.Event()
    monkeypatch.setattr(pair.b.store, "sync_all", lambda: go_on.wait(10))
    results: list[tuple[bool, bool]] = []
    pair.a.primary.barriers.start(
        lambda ok, _: results.append((ok, pair.a.has(SessionLost))), forget_all=True
    )
    serving = pair.b.acceptor.session
    assert serving is not None
    assert serving._forward is not None
    serving._forward.abort()
    wait_for(lambda: results)
    go_on.set()
    assert results == [(False, True)]


def test_a_flush_during_a_resync_is_no_barrier_of_the_peer(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2: what the peer flushed before it had the earlier writes proves nothing about them."""
    guest, file = started(pair)
    primary = pair.a.primary
    primary.set_mode(Acknowledge.NONE)
    primary.close_session(clean=False)
    guest.write(file, 0, b"x")
    real = primary.resync_started
    begins: list[tuple] = []
    monkeypatch.setattr(primary, "resync_started", lambda *one: begins.append(one))
    key = pair.connect(SessionStart.CANDIDATES)
    wait_for(lambda: begins)
    guest.flush(file)
    guest.write(file, 1, b"y", barrier=True)
    session = primary.session
    assert session is not None
    wait_for(lambda: primary.acknowledged_number >= session.last_number)
    time.sleep(0.1)
    real(*begins[0])
    pair.a.wait(ResyncCopied)
    go_on = threading.Event()
    monkeypatch.setattr(pair.b.store, "sync_all", lambda: go_on.wait(10))
    call(lambda done: primary.switch_to_both(key, done))
    wait_for(lambda: guest.answers == 2)
    time.sleep(0.1)
    assert guest.answers == 2, "only the plain write may be answered"
    go_on.set()
    wait_for(lambda: guest.answers == 4)
    assert not guest.errors


def test_a_barrier_write_during_the_switch_to_both_ends(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M1: sent when this node's word was enough, so the peer is not going to answer for it."""
    guest, file = started(pair)
    primary = pair.a.primary
    primary.set_mode(Acknowledge.LOCAL)
    real = pair.a.store.write

    def switching(which, offset, data):
        written = real(which, offset, data)
        primary.switch_to_both(pair.key, lambda ok, text: None)
        return written

    monkeypatch.setattr(pair.a.store, "write", switching)
    guest.write(file, 0, b"x", barrier=True)
    wait_for(lambda: guest.answers == 2, 5)
    assert not guest.errors


def silent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The peer's process stands still, and its connections stay."""
    go_on, stands = threading.Event(), threading.Event()
    serving = pair.b.acceptor.session
    assert serving is not None
    real = serving._receive

    def stuck(*arguments):
        stands.set()
        assert go_on.wait(30)
        return real(*arguments)

    monkeypatch.setattr(serving, "_receive", stuck)
    # It waits for bytes in the real one still, which may take the next ones.
    assert stands.wait(10)
    return go_on


def test_writes_that_wait_for_room_end_with_the_session(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While this node's word is enough, no write waits for a session that is gone."""
    guest, file = started(pair)
    primary = pair.a.primary
    primary.set_mode(Acknowledge.LOCAL)
    go_on = silent(pair, monkeypatch)
    monkeypatch.setattr(parking, "BACKLOG_BYTES", 0)
    guest.write(file, 0, b"x")
    assert guest.answers == 1
    real = pair.a.store.write

    def closing(which, offset, data):
        # In the middle of a write.
        primary.close_session(clean=False)
        return real(which, offset, data)

    monkeypatch.setattr(pair.a.store, "write", closing)
    guest.write(file, 1, b"y")
    go_on.set()
    assert guest.answers == 3
    assert not guest.errors


def test_a_silent_peer_of_a_resync_does_not_hold_the_guest(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T8: a host that is gone without a word leaves its connections open for many minutes."""
    guest, file = started(pair)
    pair.a.primary.set_mode(Acknowledge.LOCAL)
    go_on = silent(pair, monkeypatch)
    monkeypatch.setattr(parking, "BACKLOG_BYTES", 0)
    guest.write(file, 0, b"x")
    assert "silent" in pair.a.wait(SessionLost, 10).text
    wait_for(lambda: guest.answers == 2)
    go_on.set()


def test_an_order_to_forget_the_map_dies_with_its_session(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R11: the next resync's own barrier must not clear the map before its target says so."""
    started(pair)
    primary, intent = pair.a.primary, pair.a.intent
    monkeypatch.setattr(intent, "clear", lambda covered, order: False)
    primary.barriers.clear()
    monkeypatch.undo()
    pair.b.acceptor.close()
    pair.a.wait(SessionLost)
    primary.set_mode(Acknowledge.NONE)
    intent.enter_alone("g0")
    primary.set_mode(Acknowledge.LOCAL)
    Guest(pair.a).create(ROOT_ID, b"g")
    key = pair.connect(SessionStart.CANDIDATES)
    pair.a.wait(SessionUp)
    pair.a.wait(ResyncCopied)
    call(lambda done: primary.switch_to_both(key, done))
    pair.barrier(pair.a)
    assert intent.retaining
    assert intent.base == "g0"


def test_a_node_that_stood_still_has_observed_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L7: after a pause the peer gets a full new time before it is judged."""
    guest, file = started(pair)
    go_on = silent(pair, monkeypatch)
    guest.write(file, 0, b"x")
    wait_for(lambda: pair.a.primary.barriers.oldest_ms() > 0)
    monkeypatch.setattr(barriers, "now_ms", lambda: clock.now_ms() + 60_000)
    stalled = pair.a.wait(SessionStalled, 5)
    assert isinstance(stalled, SessionStalled)
    assert stalled.waited_ms < 10_000
    go_on.set()


# --- the unforeseen --------------------------------------------------------------------------


def fails_oddly(*_: object) -> None:
    raise KeyError("odd")


def test_an_unforeseen_error_of_the_applier_outdates_the_copy(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: what was acknowledged and is not applied must stop a takeover, whatever the reason."""
    guest, file = started(pair)
    monkeypatch.setattr(pair.b.store, "write", fails_oddly)
    guest.write(file, 0, b"x")
    guest.write(file, 5 << 20, b"y")
    assert "odd" in pair.b.wait(LocalDiskFailed, 5).text
    assert "odd" in pair.b.acceptor.close()


@pytest.mark.parametrize("node", ["a", "b"])
def test_an_unforeseen_error_of_a_receiver_is_the_loss_of_the_session(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """D1: told, not found out by a limit of time."""
    guest, file = started(pair)
    if node == "a":
        monkeypatch.setattr(pair.a.primary.session, "_note_progress", fails_oddly)
    else:
        monkeypatch.setattr(pair.b.acceptor.session, "_take", fails_oddly)
        guest.write(file, 0, b"x")
    side = pair.a if node == "a" else pair.b
    assert "odd" in side.wait(SessionLost, 5).text


def test_an_order_that_fails_in_an_unforeseen_way_is_answered(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K2: the core waits for every operation's end."""
    answers: SimpleQueue[object] = SimpleQueue()
    engine = Engine(pair.a.config, lambda message, _: answers.put(message), lambda *_: None)
    monkeypatch.setitem(Engine._HANDLERS, actions.CloseSession, fails_oddly)
    monkeypatch.setitem(Engine._HANDLERS, actions.Freeze, fails_oddly)
    for number, order in enumerate((actions.Freeze, actions.CloseSession, actions.Detach)):
        engine.perform(order(number) if number < 2 else actions.Detach(number, None))
        done = answers.get(timeout=5)
        assert isinstance(done, EngineDone)
        assert (done.operation, done.ok) == (number, number == 2)
    assert engine.detached.wait(5)


def test_an_fsync_that_fails_in_an_unforeseen_way_is_answered() -> None:
    """F2: as an error, to everybody who waits, also when one of them fails itself."""

    class Broken:
        def sync(self, file: FileId, data_only: bool) -> None:
            raise ValueError("nobody thought of this")

    heard: SimpleQueue[OSError | None] = SimpleQueue()
    failures: SimpleQueue[OSError] = SimpleQueue()
    syncer = Syncer(Broken(), failures.put)  # type: ignore[arg-type]  # only `sync` is asked for
    try:
        syncer.file(ROOT_ID, False, lambda error: heard.put(error) or fails(errno.EIO)())
        assert isinstance(heard.get(timeout=5), OSError)
        syncer.file(ROOT_ID, False, heard.put)
        assert "nobody thought of this" in str(heard.get(timeout=5))
        assert failures.qsize() == 1
    finally:
        syncer.close()
