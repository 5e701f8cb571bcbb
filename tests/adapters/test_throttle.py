"""The throttle of resyncs: properties over any latencies, and a model of a disk that both share."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperha.core.actions import Acknowledge
from hyperha.replication.fuse import protocol
from hyperha.replication.fuse.connection import Connection
from hyperha.replication.fuse.requests_attributes import AttributeRequests
from hyperha.replication.fuse.requests_files import FileRequests
from hyperha.replication.fuse.requests_names import NameRequests
from hyperha.replication.fuse.succession import SharedTable
from hyperha.replication.operations import ROOT_ID
from hyperha.replication.stopwatch import Stopwatch, Timed
from hyperha.replication.store import Store
from hyperha.replication.throttle import (
    BEGIN,
    BLOCK,
    CEILING,
    DECIDE_MS,
    FLOOR,
    PERIOD_MS,
    QUIET_MS,
    Throttle,
    percentile,
)
from tests.support.engine_pair import Guest, Pair, wait_for
from tests.support.fuse_local import LocalPipeline

LATENCIES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 20_000_000)), min_size=0, max_size=30
)
STEPS = st.lists(st.tuples(LATENCIES, st.lists(st.integers(0, 5_000_000), min_size=3, max_size=3)))


@given(STEPS)
def test_whatever_the_guest_feels_work_goes_on_and_the_window_has_its_bounds(
    steps: list[tuple[list[tuple[int, int]], list[int]]],
) -> None:
    """c-min-rate: at least the floor's pace over every second, and never more than the ceiling."""
    throttle, now, spent = Throttle(3, 0), 0, 0
    for samples, waiting in steps:
        for kind, latency in samples:
            throttle.note(kind, now, latency)
        throttle.decide(now, waiting)
        assert FLOOR <= throttle.window(now) <= CEILING
        assert 1 <= throttle.requests(now, 32) <= 32
        for _ in range(DECIDE_MS // 10):
            now += 10
            while throttle.may_go(now):
                throttle.spend(BLOCK)
                spent += BLOCK
                if spent > now * (CEILING + BLOCK) // 10:
                    break
    assert spent >= max(0, now - PERIOD_MS) * FLOOR // PERIOD_MS - BLOCK


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=400))
def test_the_percentile_is_a_sample_that_99_of_100_do_not_exceed(latencies: list[int]) -> None:
    found = percentile(latencies)
    assert found in latencies
    assert sum(one <= found for one in latencies) * 100 >= 99 * len(latencies)
    assert sum(one < found for one in latencies) * 100 < 99 * len(latencies)


class Model:
    """A guest whose latency grows with what the work beside it does; runs in virtual time."""

    def __init__(self, feels: Callable[[int], float], *, known: bool = True) -> None:
        self.throttle = Throttle(len(Timed), 0)
        self.feels = feels
        """Milliseconds of an operation while so many MiB/s are moved."""
        self.now = 0
        self.chance = random.Random(7)
        self.rate = 0
        for ms in range(0, 4000 if known else 0, 10):
            self.throttle.note(Timed.BARRIER, ms - 4000, self._latency())

    def _latency(self) -> int:
        return round(self.feels(self.rate) * 1000 * self.chance.uniform(0.8, 1.2))

    def run(self, seconds: float) -> list[int]:
        """The rates in MiB/s, every 200 ms."""
        rates = []
        for _ in range(round(seconds * 1000) // DECIDE_MS):
            moved = 0
            self.throttle.decide(self.now, [0] * len(Timed))
            for _ in range(DECIDE_MS // 4):
                self.now += 4
                while self.throttle.may_go(self.now) and moved < 400 << 20:
                    self.throttle.spend(BLOCK)
                    moved += BLOCK
                self.throttle.note(Timed.BARRIER, self.now, self._latency())
            self.rate = (moved >> 20) * 1000 // DECIDE_MS
            rates.append(self.rate)
        return rates


def hurt_above(limit: int, usual_ms: float = 1.0) -> Callable[[int], float]:
    """A disk that has room for `limit` MiB/s beside the guest."""
    return lambda rate: usual_ms + max(0, rate - limit) * 0.2


def test_work_takes_what_the_guest_does_not_feel_and_little_more() -> None:
    model = Model(hurt_above(100))
    model.run(10)
    rates = model.run(30)
    mean = sum(rates) / len(rates)
    assert 50 < mean < 125
    assert max(rates) < 200


def test_a_guest_that_feels_nothing_gets_a_resync_at_full_speed_soon() -> None:
    model = Model(hurt_above(10**9))
    model.run(3)
    assert model.throttle.rate(model.now) == 0


def test_an_unknown_guest_is_first_measured_at_the_floor() -> None:
    model = Model(hurt_above(100), known=False)
    assert max(model.run(0.6)) <= FLOOR * 1000 // PERIOD_MS // (1 << 20) + BLOCK
    rates = model.run(30)
    assert 40 < sum(rates) / len(rates) < 125


def test_a_guest_that_becomes_slower_by_itself_does_not_hold_the_work_down_for_ever() -> None:
    """At the floor whatever it feels is its own: the baseline follows."""
    model = Model(hurt_above(100))
    model.run(5)
    model.feels = hurt_above(100, usual_ms=12.0)
    down = model.run(10)
    assert min(down) <= FLOOR * 1000 // PERIOD_MS // (1 << 20)
    rates = model.run(20)
    assert sum(rates) / len(rates) > 50


def test_a_baseline_that_was_too_high_comes_down() -> None:
    """A freeze before the resync, or a load that has ended."""
    model = Model(hurt_above(100, usual_ms=50.0))
    model.run(1)
    model.feels = hurt_above(100)
    model.run(10)
    rates = model.run(20)
    assert sum(rates) / len(rates) < 160


def test_a_quiet_guest_leaves_all_the_room_and_a_stuck_one_does_not() -> None:
    throttle = Throttle(3, 0)
    assert throttle.window(0) == CEILING
    throttle.note(Timed.WRITE, 0, 100)
    throttle.decide(0, [0, 0, 0])
    assert throttle.window(0) == FLOOR < BEGIN
    assert throttle.window(QUIET_MS) == CEILING
    # Nothing is answered any more since a barrier hangs: that is no quiet guest.
    for now in range(200, 4000, 200):
        throttle.decide(now, [0, now * 1000, 0])
        assert throttle.window(now) == FLOOR


class Clock:
    """Nanoseconds that only move when told."""

    def __init__(self) -> None:
        self.now_ns = 10**9

    def __call__(self) -> int:
        return self.now_ns


def test_few_operations_are_timed_and_each_answer_is_given_once() -> None:
    clock, answers = Clock(), []
    watch = Stopwatch(clock)

    def answer(error: int, payload: bytes) -> None:
        answers.append((error, payload))

    timed = 0
    for _ in range(10_000):
        given = watch.begin(Timed.WRITE, answer)
        timed += given is not answer
        clock.now_ns += 20_000
        given(5, b"x")
    assert answers == [(5, b"x")] * 10_000
    assert 45 <= timed <= 51
    samples = watch.take(Timed.WRITE)
    assert len(samples) == timed
    assert {took for _, took in samples} == {20_000}
    assert watch.take(Timed.WRITE) == []


@pytest.mark.parametrize("kind", Timed)
def test_an_operation_without_an_answer_is_seen_while_it_waits(kind: Timed) -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    answer = watch.begin(kind, lambda error, payload: None)
    clock.now_ns += 7_000_000
    assert [watch.waiting_ns(one) for one in Timed if one is not kind] == [0, 0]
    assert watch.waiting_ns(kind) == 7_000_000
    answer(0, b"")
    assert watch.waiting_ns(kind) == 0
    # Forgotten with its connection: another one is timed some time later.
    lost = watch.begin(kind, lambda error, payload: None)
    clock.now_ns += 31_000_000_000
    assert watch.waiting_ns(kind) == 0
    fresh = watch.begin(kind, lambda error, payload: None)
    clock.now_ns += 1_000_000
    lost(0, b"")
    assert watch.waiting_ns(kind) == 1_000_000
    fresh(0, b"")
    assert watch.waiting_ns(kind) == 0


def test_work_in_a_pool_is_timed_from_when_it_was_given() -> None:
    clock = Clock()
    watch = Stopwatch(clock)

    def work() -> bytes:
        clock.now_ns += 3_000_000
        return b"data"

    def fails() -> bytes:
        raise OSError(5, "disk")

    timed = watch.timing(Timed.READ, work)
    clock.now_ns += 2_000_000
    assert watch.timing(Timed.READ, fails) is fails
    assert timed() == b"data"
    assert [took for _, took in watch.take(Timed.READ)] == [5_000_000]
    clock.now_ns += 10_000_000
    with pytest.raises(OSError, match="disk"):
        watch.timing(Timed.READ, fails)()
    assert watch.waiting_ns(Timed.READ) == 0


@pytest.mark.root
def test_writes_and_barriers_of_the_guest_are_timed(pair: Pair) -> None:
    pair.a.primary.promote(Acknowledge.LOCAL)
    guest, watch = Guest(pair.a), pair.a.primary.stopwatch
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"x")
    wait_for(lambda: guest.answers == 2)
    assert [len(watch.take(kind)) for kind in Timed] == [1, 0, 0]
    guest.write(file, 0, b"x", barrier=True)
    wait_for(lambda: guest.answers == 3)
    assert [len(watch.take(kind)) for kind in Timed] == [0, 1, 0]
    # Not sooner than some milliseconds after the former one.
    time.sleep(0.006)
    guest.flush(file)
    wait_for(lambda: guest.answers == 4)
    assert [len(watch.take(kind)) for kind in Timed] == [0, 1, 0]


@pytest.mark.root
def test_only_reads_that_wait_for_the_disk_are_timed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    folder = os.open(tmp_path, os.O_RDONLY)
    store = Store(folder)
    os.close(folder)
    kernel = os.open(os.devnull, os.O_WRONLY)
    connection = Connection(store, LocalPipeline(store, None), kernel, SharedTable())
    connection.primary = True
    try:
        file = store.identify(ROOT_ID, b"file")
        node = connection.nodes.looked_up(store.handle(file), file, directory=False)
        handle = connection.handles.add(node, os.O_RDONLY, 0, None)
        names, attributes = NameRequests(connection), AttributeRequests(connection)
        read = FileRequests(connection, names, attributes).handlers()[protocol.Op.READ]
        end = protocol.IN_SIZE + protocol.READ_IN.size
        body = protocol.READ_IN.pack(handle.number, 0, 1 << 20, 0, 0, 0, 0)
        connection.view[protocol.IN_SIZE : end] = body
        held = store.data(file)
        os.fsync(held.fd)
        os.posix_fadvise(held.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        timed = []
        for _ in range(2):
            read(9, node.number, end)
            connection.pool.shutdown(wait=True)
            connection.pool = ThreadPoolExecutor(1)
            timed.append(len(connection.stopwatch.take(Timed.READ)))
        assert timed == [1, 0]
    finally:
        connection.close()
        store.close()
