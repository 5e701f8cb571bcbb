"""Logs that run full while both copies are equal: both nodes find room again behind a barrier.

Also what must not be forgotten for that: a map that is owed to the peer, an operation of which
nobody knows the end, and a log whose order to be kept came while it was being cleared.
"""

from __future__ import annotations

import os
import threading

import pytest

from hyperha.core.actions import Acknowledge
from hyperha.replication.operations import ROOT_ID, Record, RecordKind
from tests.support.engine_pair import Guest, Pair, wait_for

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
