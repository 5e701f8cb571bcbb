"""Random sequences on a replicated folder and on a plain one: same results, three equal copies.

HYPERHA_POSIX_SEED and HYPERHA_POSIX_COUNT choose the sequences; a failure prints the seed and the
smallest sequence found that fails.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.filesystem.sequences import Runner, breaking
from tests.filesystem.steps import Dice, Step

COUNT = int(os.environ.get("HYPERHA_POSIX_COUNT", "0"))
pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    # With time to make a failing sequence small.
    pytest.mark.timeout(240 + COUNT // 2),
]


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    made = Runner(tmp_path)
    try:
        yield made
    finally:
        made.close()


def seeds(usual: int) -> range:
    """As many as are wanted, from a random one on."""
    fixed = os.environ.get("HYPERHA_POSIX_SEED")
    first = int(fixed) if fixed else random.SystemRandom().randrange(1 << 32)
    print(f"HYPERHA_POSIX_SEED={first}")
    return range(first, first + (COUNT or usual))


def test_sequences(runner: Runner, record_property: Callable[[str, object], None]) -> None:
    """Every user's steps give what they give on a plain folder (rights, errors, times, holes)."""
    steps = 0
    for seed in seeds(40):
        dice = Dice(seed)
        top, sequence = dice.top(), dice.sequence()
        runner.check(seed, top, sequence)
        steps += len(sequence)
    record_property("steps", steps)


@pytest.mark.parametrize(
    "mode", [0o10644, 0o12644, 0o12654, 0o16755, 0o142644, 0o102644, 0o104644, 0o106755]
)
def test_a_new_group_takes_set_id_bits_from_everything_but_directories(
    runner: Runner, mode: int
) -> None:
    """By an owner who is not in the former group; found once in many thousand sequences."""
    steps = [Step(2, "node", ("a", mode, 3)), Step(2, "chown", ("a", -1, 2004))]
    runner.check(0, (0o2777, 1001, 0), steps)


def test_sequences_without_the_peer(runner: Runner) -> None:
    """The secondary is lost in the middle and comes back: resync under the rest of the steps."""
    for seed in seeds(2):
        runner.check(seed, *breaking(seed, ("lose", "return_")))


def test_sequences_with_a_successor(runner: Runner) -> None:
    """The primary's process dies in the middle: a successor takes the mount over (M4)."""
    for seed in seeds(2):
        runner.check(seed, *breaking(seed, ("succeed",)))
