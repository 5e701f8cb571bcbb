"""Two clocks that differ: said once, whatever the network takes."""

from __future__ import annotations

import pytest

from hyperha.daemon.clocks import PeerClock


@pytest.mark.parametrize(
    ("asked", "answered", "theirs", "said"),
    [
        (1000, 1010, 1005, ""),
        (1000, 1010, 13_010, "12 s ahead of that of node1"),
        (100_000, 100_010, 40_000, "60 s behind that of node1"),
        (1000, 9000, 5000, ""),  # A slow answer: anywhere between is right.
        (1000, 9000, 10_500, ""),
        (1000, 1010, 0, ""),
        (9000, 1000, 50_000, ""),  # Our own clock was set meanwhile.
    ],
)
def test_what_an_answer_tells(asked: int, answered: int, theirs: int, said: str) -> None:
    clock = PeerClock("node1", "node2")
    clock.heard(asked, answered, theirs)
    assert bool(clock.apart) == bool(said)
    assert said in clock.apart


def test_it_does_not_come_and_go() -> None:
    clock = PeerClock("node1", "node2")
    clock.heard(0, 1, 2100)
    assert clock.apart
    clock.heard(0, 1, 1500)
    assert clock.apart
    clock.heard(0, 1, 500)
    assert not clock.apart
    clock.heard(0, 1, 1500)
    assert not clock.apart
