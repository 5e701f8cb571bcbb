"""The stream between two copies: order, acknowledgement, barriers, loss of the session."""

import errno
import os
import random
import stat
import threading
import time
from typing import Any

import pytest

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import (
    LocalDiskFailed,
    ResyncCopied,
    SessionLost,
    SessionStalled,
    SessionUp,
)
from hyperha.replication.operations import ROOT_ID, FileId, Record, RecordKind
from hyperha.replication.sender import Sender
from tests.support.engine_pair import Guest, Monkey, Pair, call, wait_for

pytestmark = pytest.mark.root


def test_what_the_primary_does_is_on_the_other_copy(pair: Pair) -> None:
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"disk.img")
    guest.write(file, 0, b"hello")
    guest.write(file, 3 << 20, b"far")
    directory = guest.create(ROOT_ID, b"d", stat.S_IFDIR | 0o750)
    guest.rename(ROOT_ID, b"disk.img", directory, b"disk")
    guest.link(file, ROOT_ID, b"link")
    guest.set_xattr(file, b"user.a", b"v")
    guest.flush(file)
    wait_for(lambda: guest.answers == 8)
    assert not guest.errors
    pair.check_equal()
    assert (pair.b.folder / "d" / "disk").read_bytes()[:5] == b"hello"


def test_a_session_in_sync_is_refused_while_candidates_are_left(pair: Pair) -> None:
    """Equal names never mean equal data (G4): a non-empty log on either side is never dropped."""
    pair.a.primary.promote(Acknowledge.LOCAL)
    guest = Guest(pair.a)
    guest.create(ROOT_ID, b"x")
    pair.connect(SessionStart.IN_SYNC)
    lost = pair.a.wait(SessionLost)
    assert lost.refused
    assert "G4" in lost.text
    assert pair.a.intent.candidate_count() == 2
    # The same when only the secondary has them.
    pair.a.intent.clear(10)
    pair.b.primary.promote(Acknowledge.LOCAL)
    Guest(pair.b).create(ROOT_ID, b"y")
    pair.connect(SessionStart.IN_SYNC)
    assert pair.a.wait(SessionLost).refused
    assert pair.b.intent.candidate_count() == 2


def test_no_answer_before_the_peer_has_it(pair: Pair) -> None:
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"1")
    wait_for(lambda: guest.answers == 2)
    pair.b.acceptor.close()
    pair.a.wait(SessionLost)
    guest.write(file, 1, b"2")
    guest.create(ROOT_ID, b"g")
    guest.flush(file)
    time.sleep(0.1)
    assert guest.answers == 2
    assert pair.a.primary.parked_count() == 3
    # Z1: everything in the log becomes dirty before anything is answered.
    pair.a.intent.enter_alone("g0")
    pair.a.primary.set_mode(Acknowledge.LOCAL)
    wait_for(lambda: guest.answers == 5)
    guest.write(file, 2, b"3")
    assert guest.answers == 6
    assert pair.a.intent.candidate_count() >= 3


def test_small_writes_wait_for_company_only_while_others_wait_for_the_peer(pair: Pair) -> None:
    """T6: what was kept is sent by one call, in its order, before the reader waits for anything."""
    pair.in_sync()
    guest, primary = Guest(pair.a), pair.a.primary
    # The watch sends what is kept too long.
    primary.barriers.close()
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"warm")
    wait_for(lambda: guest.answers == 2)
    guest.more = True
    guest.write(file, 0, b"alone")
    assert primary.keeps is None, "nobody else waits"
    wait_for(lambda: guest.answers == 3)
    with primary.lock:
        # As if the acknowledgement of the last one were on its way.
        primary.acknowledged_number -= 1
    for number in range(4):
        guest.write(file, number * 2, b"%d" % number)
    assert primary.keeps is not None
    time.sleep(0.1)
    assert guest.answers == 3
    # A zone that is not warm waits for the log's disk, which nothing kept may wait for.
    guest.write(file, 5 << 20, b"cold")
    wait_for(lambda: guest.answers >= 7)
    guest.more = False
    guest.write(file, 3, b"last")
    wait_for(lambda: guest.answers == 9)
    assert not guest.errors
    pair.check_equal()


def test_a_file_that_grows_by_a_hole_is_no_candidate_as_a_whole(pair: Pair) -> None:
    """Z4, Z5: its size is the inode's record; nothing was written there that could differ. An image
    of any size, made just before the secondary dies, is not compared from end to end."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"image")
    guest.truncate(file, 1 << 40)
    guest.write(file, 5 << 20, b"data")
    wait_for(lambda: guest.answers == 3)
    pair.b.acceptor.drain(10)
    found = {one for one in pair.b.intent.candidates() or () if one.file == file}
    assert found == {Record(RecordKind.INODE, file), Record(RecordKind.ZONE, file, 5)}
    guest.truncate(file, 5 << 20)
    wait_for(lambda: guest.answers == 4)
    pair.b.acceptor.drain(10)
    assert Record(RecordKind.WHOLE_FILE, file) in set(pair.b.intent.candidates() or ())
    pair.check_equal()


def test_what_was_kept_does_not_wait_for_a_disk_that_stands_still(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D8': a peer that is asked nothing would count as one that makes no progress."""
    pair.in_sync()
    guest, primary = Guest(pair.a), pair.a.primary
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"warm")
    wait_for(lambda: guest.answers == 2)
    entered, go_on = threading.Event(), threading.Event()
    real = pair.a.store.write

    def slow(file: FileId, offset: int, data: bytes) -> int:
        if data == b"slow":
            entered.set()
            assert go_on.wait(10)
        return real(file, offset, data)

    monkeypatch.setattr(pair.a.store, "write", slow)
    monkeypatch.setattr(primary, "_has_company", lambda number: True)
    guest.more = True
    guest.write(file, 0, b"kept")
    writing = threading.Thread(target=guest.write, args=(file, 4, b"slow"))
    writing.start()
    try:
        assert entered.wait(10)
        wait_for(lambda: guest.answers == 3, 0.5)
        assert primary.session is not None
        wait_for(lambda: primary.acknowledged_number == primary.session.last_number, 0.5)
    finally:
        go_on.set()
        writing.join()
    wait_for(lambda: guest.answers == 4)
    pair.check_equal()


def test_a_frozen_primary_answers_nothing_and_ends_writes_on_order(pair: Pair) -> None:
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    pair.a.primary.set_mode(Acknowledge.NONE)
    guest.write(file, 0, b"x")
    guest.flush(file)
    time.sleep(0.1)
    assert guest.answers == 1
    pair.a.primary.end_parked()
    assert guest.errors == [errno.EIO, errno.EIO]
    guest.write(file, 0, b"y")
    assert guest.errors == [errno.EIO] * 3
    pair.a.primary.set_mode(Acknowledge.LOCAL)
    guest.write(file, 0, b"z")
    assert guest.answers == 5
    assert len(guest.errors) == 3


def test_a_barrier_is_answered_when_the_peer_has_synced(pair: Pair, monkeypatch) -> None:
    """M1, F2: counts the peer's fsyncs, and holds one back."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    synced: list[bool] = []
    go_on = threading.Event()
    real = pair.b.store.sync

    def slow(which, data_only):
        assert go_on.wait(10)
        real(which, data_only)
        synced.append(data_only)

    monkeypatch.setattr(pair.b.store, "sync", slow)
    guest.write(file, 0, b"durable", barrier=True)
    guest.flush(file)
    guest.write(file, 7, b"plain")
    wait_for(lambda: guest.answers == 2)
    time.sleep(0.1)
    assert guest.answers == 2, "only the plain write may be answered"
    go_on.set()
    wait_for(lambda: guest.answers == 4)
    assert 1 <= len(synced) <= 2


def test_times_told_during_a_write_are_told_again_behind_it(pair: Pair, monkeypatch) -> None:
    """Z9: the watch tells times beside the data path; the time of before is not the last word."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"first")
    wait_for(lambda: guest.answers == 2)
    pair.a.primary.send_all_times()
    real = pair.a.store.write

    def between(file, offset, data):
        pair.a.primary.send_all_times()
        time.sleep(0.02)
        return real(file, offset, data)

    monkeypatch.setattr(pair.a.store, "write", between)
    guest.write(file, 0, b"second")
    wait_for(lambda: guest.answers == 3)
    pair.check_equal()


def test_times_of_what_is_gone_are_not_looked_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch would walk the whole folder, and not look at the peer meanwhile (D8')."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"t")
    guest.write(file, 0, b"x")
    guest.remove(ROOT_ID, b"t")
    pair.a.store.forget(file)
    walks: list[bool] = []
    monkeypatch.setattr(pair.a.store, "learn_all", lambda: walks.append(True))
    pair.a.primary.note_written(file)
    pair.a.primary.send_all_times()
    assert not walks


def test_overlapping_writes_never_differ(pair: Pair) -> None:
    """T2: many writes to the same few blocks; both copies end with the same bytes."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    for _ in range(3000):
        guest.write(file, chance.randrange(0, 8192), chance.randbytes(chance.choice((512, 4096))))
    wait_for(lambda: guest.answers == 3001)
    pair.check_equal()


@pytest.mark.parametrize("attempt", range(2))
def test_any_sequence_of_operations_gives_equal_copies(pair: Pair, attempt: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, attempt {attempt}")
    pair.in_sync()
    guest = Guest(pair.a)
    monkey = Monkey(guest, seed)
    for _ in range(600):
        monkey.step()
    wait_for(lambda: pair.a.primary.parked_count() == 0)
    assert not guest.errors
    pair.check_equal()
    assert pair.a.intent.candidate_count() == 0, "a barrier over both retires everything (Z2)"
    wait_for(lambda: pair.b.intent.candidate_count() == 0)


def test_the_next_session_waits_for_the_old_queue(pair: Pair, monkeypatch) -> None:
    """T3: what was acknowledged is applied before another session is answered."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    go_on = threading.Event()
    order: list[str] = []
    real = pair.b.store.write

    def slow(which, offset, data):
        assert go_on.wait(10)
        order.append("old")
        return real(which, offset, data)

    monkeypatch.setattr(pair.b.store, "write", slow)
    for number in range(5):
        guest.write(file, number, b"x")
    wait_for(lambda: guest.answers == 6)
    pair.a.primary.close_session(clean=False)
    pair.a.intent.enter_alone("g0")

    def next_session() -> None:
        pair.connect(SessionStart.CANDIDATES)
        order.append("new")

    thread = threading.Thread(target=next_session)
    thread.start()
    time.sleep(0.2)
    assert order == []
    go_on.set()
    thread.join(10)
    assert order == ["old"] * 5 + ["new"]
    pair.a.wait(SessionUp)


def test_a_peer_that_stands_still_is_noticed(pair: Pair, monkeypatch) -> None:
    """D8': suspect, then over the limit, on time without progress."""
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
        assert go_on.wait(10)
        return real(*arguments)

    monkeypatch.setattr(serving, "_receive", stuck)
    assert reached.wait(5)
    guest.write(file, 0, b"x")
    first = pair.a.wait(SessionStalled, 5)
    assert not first.over_limit
    second = pair.a.wait(SessionStalled, 5)
    assert second.over_limit
    assert second.waited_ms >= 1000
    go_on.set()
    wait_for(lambda: guest.answers == 2)


def test_a_secondary_that_cannot_apply_says_so_and_stops(pair: Pair, monkeypatch) -> None:
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)

    def full(which, offset, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pair.b.store, "write", full)
    guest.write(file, 0, b"x")
    failed = pair.b.wait(LocalDiskFailed)
    assert "No space" in failed.text
    assert "No space" in pair.a.wait(SessionLost).text
    assert "No space" in pair.b.acceptor.close()


def test_a_full_disk_on_the_primary_leaves_equal_copies(pair: Pair, monkeypatch) -> None:
    """Z4: a short write was sent whole; the peer gets what the file really holds."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"a" * 100)
    real = pair.a.store.write

    def short(which, offset, data):
        return real(which, offset, bytes(data)[:10])

    monkeypatch.setattr(pair.a.store, "write", short)
    guest.write(file, 50, b"b" * 100)
    monkeypatch.undo()
    wait_for(lambda: guest.answers == 3)
    assert guest.errors == [errno.ENOSPC]
    pair.check_equal()
    assert (pair.b.folder / "f").read_bytes() == b"a" * 50 + b"b" * 10 + b"a" * 40


def test_a_failed_fsync_is_never_answered(pair: Pair, monkeypatch) -> None:
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)

    def broken(which, data_only):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(pair.a.store, "sync", broken)
    guest.flush(file)
    assert "fsync failed" in pair.a.wait(LocalDiskFailed).text
    monkeypatch.undo()
    guest.flush(file)
    time.sleep(0.1)
    assert guest.answers == 1


def test_closing_the_secondary_applies_what_it_acknowledged(pair: Pair) -> None:
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    data = os.urandom(1 << 20)
    for number in range(20):
        guest.write(file, number << 20, data)
    wait_for(lambda: guest.answers == 21)
    assert pair.b.acceptor.close() == ""
    assert (pair.b.folder / "f").stat().st_size == 20 << 20
    assert (pair.b.folder / "f").read_bytes() == data * 20


def test_a_flush_of_the_frozen_time_is_answered_behind_the_next_resync(pair: Pair) -> None:
    """A successor gets fsyncs re-sent before there is a session (M4): a barrier answers them."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    pair.a.primary.set_mode(Acknowledge.NONE)
    pair.a.primary.close_session(clean=False)
    guest.write(file, 0, b"x")
    guest.flush(file)
    key = pair.connect(SessionStart.CANDIDATES)
    pair.a.wait(ResyncCopied)
    assert guest.answers == 1
    call(lambda done: pair.a.primary.switch_to_both(key, done))
    wait_for(lambda: guest.answers == 3)
    pair.check_equal()


def test_a_goodbye_reaches_the_peer_while_the_data_path_sends_by_itself(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: without it the peer takes a clean end for a broken connection and warns of it."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"x")
    wait_for(lambda: guest.answers == 2)
    began, go_on = threading.Event(), threading.Event()
    real = Sender.send_now

    def send_now(self: Sender, *arguments: Any) -> bool:
        began.set()
        assert go_on.wait(10)
        return real(self, *arguments)

    monkeypatch.setattr(Sender, "send_now", send_now)
    writer = threading.Thread(target=guest.write, args=(file, 0, b"y" * 100))
    writer.start()
    assert began.wait(10)
    closer = threading.Thread(target=lambda: pair.a.primary.close_session(clean=True))
    closer.start()
    closer.join(0.3)
    assert closer.is_alive(), "it waits for who is sending"
    go_on.set()
    writer.join()
    closer.join()
    lost = pair.b.wait(SessionLost)
    assert isinstance(lost, SessionLost)
    assert lost.text == "the primary ended the session"
    wait_for(lambda: (pair.b.folder / "f").read_bytes() == b"y" * 100)
