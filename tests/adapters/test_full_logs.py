"""Logs that run full while both copies are equal: both nodes find room again behind a barrier.

Also what must not be forgotten for that: a map that is owed to the peer, an operation of which
nobody knows the end, and a log whose order to be kept came while it was being cleared.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import SessionLost, SessionUp
from hyperha.replication.control import LogLine
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import (
    ROOT_ID,
    Attributes,
    Create,
    Record,
    RecordKind,
    Target,
)
from tests.support.engine_pair import Guest, Pair, pair_at, wait_for

pytestmark = pytest.mark.root


def test_a_clear_behind_a_barrier_gives_way_to_the_end_of_its_session(
    pair: Pair, monkeypatch
) -> None:
    """F10, D3: the pool was about to clear the map when the peer was lost and the node went on."""
    pair.in_sync()
    guest, primary, log = Guest(pair.a), pair.a.primary, pair.a.intent
    primary.barriers.close()
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    # As after a resync whose last operations were not behind a barrier yet.
    log.retain()
    primary.barriers._clear_behind = 0
    real = os.fdatasync

    def lost(descriptor: int) -> None:
        monkeypatch.undo()
        primary.set_mode(Acknowledge.NONE)
        primary.close_session(clean=False)
        log.enter_alone("ab" * 16)
        primary.set_mode(Acknowledge.LOCAL)
        guest.write(file, 0, b"alone")
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", lost)
    pair.barrier(pair.a)
    assert log.retaining
    assert log.base == "ab" * 16
    assert any(one.file == file for one in log.candidates() or ())
    assert primary.barriers._clear_behind < 0, "the next session's barriers clear nothing (R11)"


SLOTS = 64


@pytest.fixture
def small(tmp_path: Path, monkeypatch) -> Iterator[Pair]:
    """Both copies equal, with logs that are soon full."""
    defaults = IntentLog.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "slots", SLOTS // 2)
    monkeypatch.setitem(defaults, "slots_limit", SLOTS)
    with pair_at(tmp_path) as both:
        both.in_sync()
        yield both


class Maker(Guest):
    """Makes files as the FUSE session does: it records their directory only."""

    def make(self, count: int) -> None:
        for _ in range(count):
            self._make(b"file%d" % self.answers)

    def _make(self, name: bytes) -> None:
        store = self.side.store
        file = store.new_id()

        def execute() -> Create:
            now = time.time_ns()
            wanted = Attributes(stat.S_IFREG | 0o644, 0, 0, 0, now, 0)
            store.apply(Create(ROOT_ID, name, file, wanted, now))
            made = store.attributes(Target(file))
            return Create(ROOT_ID, name, file, made, self._mtime(ROOT_ID))

        before = self.answers
        self.change([Record(RecordKind.DIRECTORY, ROOT_ID)], execute)
        wait_for(lambda: self.answers > before)


def applied(pair: Pair) -> bool:
    session = pair.b.acceptor.session
    return session is not None and not session.waiting_bytes


def begins_in_sync(pair: Pair) -> None:
    """A planned end, and a session that needs no resync (G4)."""
    pair.barrier(pair.a)
    pair.a.primary.close_session(clean=True)
    pair.b.acceptor.close()
    pair.a.events.clear()
    pair.connect(SessionStart.IN_SYNC)
    pair.a.wait(SessionUp)
    assert not pair.a.has(SessionLost)


def test_a_log_that_fills_on_the_secondary_only_presses_a_barrier(small: Pair) -> None:
    """N4: of a file that is made the primary records the directory, the secondary each inode."""
    guest = Maker(small.a)
    for _ in range(4):
        guest.make(SLOTS * 7 // 8)
        # Long before the records count as idle.
        wait_for(lambda: small.b.intent.used < SLOTS // 4, 3)
        assert not small.b.intent.everything
    begins_in_sync(small)
    small.check_equal()


def test_a_secondary_whose_log_ran_full_needs_no_resync(small: Pair) -> None:
    """Z5, N4: behind a barrier that covers what found no slot there is nothing to look at."""
    guest = Maker(small.a)
    small.a.primary.barriers._periodic = True
    guest.make(3 * SLOTS)
    wait_for(lambda: applied(small))
    assert small.b.intent.candidate_count() == -1
    assert small.b.intent.overflowed
    assert not small.b.intent.retaining
    small.a.primary.barriers._periodic = False
    wait_for(lambda: not small.b.intent.everything, 8)
    begins_in_sync(small)
    small.check_equal()
    assert small.b.intent.candidate_count() == 0


def test_a_primary_whose_log_ran_full_needs_no_resync(small: Pair) -> None:
    guest = Guest(small.a)
    small.a.primary.barriers._periodic = True
    for number in range(2 * SLOTS):
        guest.create(ROOT_ID, b"f%d" % number)
    assert small.a.intent.candidate_count() == -1
    wait_for(lambda: any(isinstance(one, LogLine) and one.rule == "Z5" for one in small.a.events))
    small.a.primary.barriers._periodic = False
    wait_for(lambda: not small.a.intent.everything, 8)
    wait_for(lambda: not small.b.intent.everything, 8)
    begins_in_sync(small)
    small.check_equal()
    assert small.a.intent.candidate_count() == 0


def test_nothing_is_left_of_a_resync_without_a_guest(small: Pair) -> None:
    """R11, G4: its questions stand behind the guest's last operation, and ran the log full, too."""
    guest = Guest(small.a)
    for number in range(2 * SLOTS):
        guest.write(guest.create(ROOT_ID, b"f%d" % number), 0, b"x")
    small.barrier(small.a)
    small.a.primary.close_session(clean=True)
    small.b.acceptor.close()
    small.resync(SessionStart.FULL)
    wait_for(lambda: not small.b.intent.everything and not small.b.intent.used, 8)
    small.a.events.clear()
    begins_in_sync(small)
    small.check_equal()


def test_a_barrier_does_not_cover_a_write_that_is_under_way(pair: Pair, monkeypatch) -> None:
    """Z2: neither while frames that change nothing here stand behind it in the stream."""
    pair.in_sync()
    guest, primary = Guest(pair.a), pair.a.primary
    file = guest.create(ROOT_ID, b"f")
    wait_for(lambda: guest.answers == 1)
    begun, go_on, real = threading.Event(), threading.Event(), pair.a.store.write

    def slow(*place) -> int:
        begun.set()
        assert go_on.wait(10)
        return real(*place)

    monkeypatch.setattr(pair.a.store, "write", slow)
    thread = threading.Thread(target=guest.write, args=(file, 0, b"x"))
    thread.start()
    try:
        assert begun.wait(10)
        with primary.lock:
            # As a question of a resync or a verification.
            primary.number += 1
            assert primary.done_number() == 1
        pair.barrier(pair.a)
        hot = Record(RecordKind.ZONE, file, 0)
        assert pair.a.intent.candidates() == [hot]
        wait_for(lambda: pair.b.intent.candidates() == [hot])
    finally:
        go_on.set()
        thread.join()
    pair.barrier(pair.a)
    assert pair.a.intent.candidates() == []
    pair.check_equal()


def test_both_find_room_again_under_a_guest_that_never_pauses(small: Pair) -> None:
    """What a barrier covers goes also while everything is a candidate: the next one finds slots."""
    guest, ended = Guest(small.a), threading.Event()
    # Until it is full: a barrier that is pressed in time would be in the way.
    small.a.primary.barriers._periodic = True

    def make() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            guest.create(ROOT_ID, b"f%d" % number)
            if number > 3 * SLOTS:
                time.sleep(0.01)

    thread = threading.Thread(target=make)
    thread.start()
    try:
        wait_for(lambda: small.a.intent.everything)
        small.a.primary.barriers._periodic = False
        wait_for(lambda: not small.a.intent.everything and not small.b.intent.everything, 20)
    finally:
        ended.set()
        thread.join()
    small.check_equal()
