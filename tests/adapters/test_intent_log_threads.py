"""The intent log used by several threads at once: no slot is shared, nothing is forgotten (Z2, Z5).

One thread records; retiring and forgetting come from the pool of fsyncs, orders from the control
thread. Each interleaving is forced where it hurts, and one test lets two threads run freely.
"""

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

from hyperha.replication.intent_log import HOLD, IntentLog
from hyperha.replication.operations import Record, RecordKind
from tests.adapters.test_intent_log import file_id, found, open_log, zone


def inode(number: int) -> Record:
    return Record(RecordKind.INODE, file_id(number))


def slots_are_whole(log: IntentLog) -> None:
    """Each slot is in use once, or free once."""
    with log.lock:
        used = [one.slot for one in log.active.values()]
        everywhere = sorted(used + log._free)
    assert everywhere == list(range(log.capacity)), f"in use {used}, free {log._free}"


def beside(function: Callable[[], object], wait_s: float = 0.3) -> threading.Thread:
    """Run it in a thread of its own; it may have to wait for who has called this."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(wait_s)
    return thread


def test_zones_that_are_gathered_are_not_retired_meanwhile(tmp_path: Path, monkeypatch) -> None:
    """Z5: the record of the whole file is on its way to the disk when a barrier ends."""
    log = open_log(tmp_path, fresh=True, slots=8, limit=8)
    log.activate([zone(2, 0), zone(2, 1), zone(2, 2)], 10)
    log.activate([zone(2, 3), zone(2, 4)], 30)
    log.activate([zone(3, 0), zone(3, 1), zone(3, 2)], 30)
    real, retiring = log._write_runs, []

    def slow(entries):
        if not retiring:
            retiring.append(beside(lambda: log.retire(20)))
        real(entries)

    monkeypatch.setattr(log, "_write_runs", slow)
    log.activate([zone(3, 3)], 31)
    retiring[0].join()
    slots_are_whole(log)
    for number in range(3):
        log.activate([inode(100 + number)], 32 + number)
    slots_are_whole(log)
    known = set(log.candidates() or ())
    assert {zone(3, 3), Record(RecordKind.WHOLE_FILE, file_id(2))} <= known
    log.close()
    assert found(tmp_path) == known


def test_an_operation_between_gathering_and_its_end_counts(tmp_path: Path, monkeypatch) -> None:
    """Z2: a zone is written once more while the record of its file goes to the disk."""
    log = open_log(tmp_path, fresh=True, slots=8, limit=8)
    log.activate([zone(2, number) for number in range(8)], 10)
    real = log._write_runs

    def slow(entries):
        with log.lock:
            log.active[1, file_id(2), 3].last = 40
        monkeypatch.undo()
        real(entries)

    monkeypatch.setattr(log, "_write_runs", slow)
    log.activate([inode(9)], 11)
    log.retire(39)
    assert log.candidates() == [Record(RecordKind.WHOLE_FILE, file_id(2))]
    log.close()


def test_an_operation_without_a_slot_is_not_forgotten_by_a_clear_beside(
    tmp_path: Path, monkeypatch
) -> None:
    """R11, F10: the map is cleared while the data path finds the log full."""
    for place in ("before", "behind"):
        folder = tmp_path / place
        folder.mkdir()
        log = open_log(folder, fresh=True, slots=4, limit=4)
        log.activate([inode(1 + number) for number in range(4)], 50)
        log.enter_alone("g1")
        real = os.fdatasync if place == "behind" else log._release

        def meanwhile(argument, log=log, real=real):
            # Records of operations behind the barrier, as many as there are slots.
            log.activate([inode(number) for number in range(20, 25)], 51)
            assert log.everything
            return real(argument)

        where = (os, "fdatasync") if place == "behind" else (log, "_release")
        monkeypatch.setattr(*where, meanwhile)
        assert not log.clear(50), "operation 51 is nowhere"
        monkeypatch.undo()
        assert log.everything
        assert log.retaining
        assert log.base == "g1"
        assert log.clear(51)
        assert log.candidates() == []
        log.close()
        assert found(folder) == set()


def test_an_order_to_keep_the_map_is_not_undone_by_a_clear_beside(
    tmp_path: Path, monkeypatch
) -> None:
    """Z1, F10: the pool clears behind a barrier, and the session is lost meanwhile (D3)."""
    orders: list[Callable[[IntentLog], None]] = [
        lambda log: log.enter_alone("g2"),
        lambda log: log.mark_everything(),
        lambda log: log.retain(),
    ]
    for number, order in enumerate(orders):
        folder = tmp_path / str(number)
        folder.mkdir()
        log = open_log(folder, fresh=True)
        log.activate([zone(2, 0)], 5)
        log.retain()
        log.activate([zone(2, 1)], 7)
        real = os.fdatasync

        def meanwhile(descriptor, log=log, order=order, real=real):
            order(log)
            real(descriptor)

        monkeypatch.setattr(os, "fdatasync", meanwhile)
        assert not log.clear(6)
        monkeypatch.undo()
        assert log.retaining
        assert log.retire(100) == 0
        log.close()
        candidates = found(folder)
        assert candidates is None or zone(2, 1) in candidates


def test_an_order_to_keep_the_map_comes_before_a_full_log_is_forgiven(
    tmp_path: Path, monkeypatch
) -> None:
    """F4, N4: a barrier covers all that found no slot, and the session is lost meanwhile (D3)."""
    log = open_log(tmp_path, fresh=True, slots=4, limit=4)
    log.activate([inode(1 + number) for number in range(5)], 5)
    real = log._release

    def meanwhile(entries):
        log.enter_alone("g1")
        real(entries)

    monkeypatch.setattr(log, "_release", meanwhile)
    log.retire(5)
    assert log.candidates() is None
    log.close()
    assert found(tmp_path) is None


def test_an_operation_finds_no_slot_while_a_full_log_is_being_forgiven(
    tmp_path: Path, monkeypatch
) -> None:
    """Z2, N4: the barrier that has just ended does not cover it."""
    log = open_log(tmp_path, fresh=True, slots=4, limit=4)
    log.activate([inode(1 + number) for number in range(5)], 5)
    real, recording = log._write_header, []

    def meanwhile(**changes):
        recording.append(beside(lambda: log.activate([inode(20 + one) for one in range(5)], 6)))
        monkeypatch.undo()
        real(**changes)

    monkeypatch.setattr(log, "_write_header", meanwhile)
    log.retire(5)
    recording[0].join()
    assert log.overflowed
    log.retire(5)
    assert log.candidates() is None
    log.close()
    assert found(tmp_path) is None


def test_a_clear_that_was_decided_before_an_order_does_nothing(tmp_path: Path) -> None:
    """Z1, F10: the session was looked at, then it was lost and the node went on alone."""
    log = open_log(tmp_path, fresh=True)
    log.activate([zone(2, 0)], 5)
    order = log.order
    log.enter_alone("g1")
    assert not log.clear(100, order)
    assert log.base == "g1"
    assert log.candidates() == [zone(2, 0)]
    assert log.clear(100, log.order)
    log.close()


def test_two_threads_never_share_a_slot(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    log = open_log(tmp_path, fresh=True, slots=64, limit=64)
    numbers, ended = [0], threading.Event()

    def retire() -> None:
        while not ended.is_set():
            log.retire(numbers[0] - chance.randrange(10, 30))

    thread = threading.Thread(target=retire)
    thread.start()
    try:
        for number in range(1, 1500):
            numbers[0] = number
            record = zone(chance.randrange(2, 10), chance.randrange(60))
            log.activate([record], HOLD)
            with log.lock:
                log.touch([record], number)
                used = [one.slot for one in log.active.values()]
                assert len(set(used)) == len(used), f"round {number}: {sorted(used)}"
                assert not set(used) & set(log._free), f"round {number}"
                assert len(set(log._free)) == len(log._free), f"round {number}"
    finally:
        ended.set()
        thread.join()
    log.retire(0)
    slots_are_whole(log)
    known = log.candidates()
    log.close()
    got = found(tmp_path)
    assert (None if known is None else set(known)) == got
