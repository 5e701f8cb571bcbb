"""When a long resync says something."""

from __future__ import annotations

from hyperha.replication.milestones import Milestones


def test_each_tenth_is_told_once() -> None:
    work = Milestones(0)
    told = [done for done in range(1001) if work.due(done, 1000, 3000 + done)]
    assert told == [0 + 100 * tenth for tenth in range(1, 11)]


def test_work_that_stands_still_is_told_of_every_minute() -> None:
    work = Milestones(0)
    told = [at for at in range(0, 200_000, 500) if work.due(5, 1000, at)]
    assert told == [60_000, 120_000, 180_000]


def test_short_work_and_work_without_a_size_say_nothing_in_between() -> None:
    work = Milestones(0)
    assert not any(work.due(done, 1000, done) for done in range(0, 1001, 50))
    assert not Milestones(0).due(0, 0, 30_000)
