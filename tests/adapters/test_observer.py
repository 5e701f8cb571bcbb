"""What the observer of orders takes for a fault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hyperha.demo.observer import Heard, Observer


@pytest.fixture
def observer() -> Iterator[Observer]:
    made = Observer()
    try:
        yield made
    finally:
        made.close()


def _hear(observer: Observer, *orders: tuple[int, int, str]) -> list[str]:
    for number, pid, node in orders:
        observer._add(Heard(number=number, node=node, pid=pid, at_s=float(number)))
    return observer.faults


def test_one_that_stood_still_may_tell_of_one_order(observer: Observer) -> None:
    told = [(1, 10, "node1"), (3, 20, "node2"), (2, 10, "node1"), (4, 20, "node2")]
    assert _hear(observer, *told) == []
    (fault,) = _hear(observer, (5, 10, "node1"))
    assert "two applications at once" in fault
    assert [one.number for one in observer.after(1.5, "node1")] == [2, 5]


def test_a_number_given_out_twice_is_a_lost_order(observer: Observer) -> None:
    (fault,) = _hear(observer, (1, 10, "node1"), (1, 20, "node2"))
    assert "acknowledged twice" in fault
