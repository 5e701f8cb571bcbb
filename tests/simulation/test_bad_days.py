"""Days of a bad network in simulated time: the VM stays where it is (L3', L7).

HYPERHA_BAD_HOURS says how many of them, HYPERHA_BAD_SEED which.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from hyperha.core.options import Isolation, WitnessKind
from hyperha.domain import Role
from hyperha.study.world import World
from tests.support.world import pair

HOURS = float(os.environ.get("HYPERHA_BAD_HOURS", "1"))
HOUR_MS = 3_600_000
PAUSE_MS = 2000
WAYS = {
    "primary": (Isolation.PRIMARY, WitnessKind.NONE),
    "run": (Isolation.RUN, WitnessKind.NONE),
    "lease": (Isolation.HOLD, WitnessKind.LEASE),
    "ping": (Isolation.HOLD, WitnessKind.PING),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", WAYS)
def test_nobody_takes_over(way: str) -> None:
    """1 % loss; every half minute the network is out, or a node stands still, for 2 s."""
    seed = int(os.environ.get("HYPERHA_BAD_SEED") or random.SystemRandom().randrange(1 << 24))
    print(f"HYPERHA_BAD_SEED={seed}")
    dice = random.Random(seed)
    isolation, witness = WAYS[way]
    world = pair(seed, isolation, witness=witness)
    world.loss = 0.01
    run, began, pauses = world.a.vm_run, time.monotonic(), 0
    ends = world.now + int(HOURS * HOUR_MS)
    while world.now < ends:
        world.run(dice.randrange(10_000, 50_000))
        _pause(world, dice)
        pauses += 1
        assert world.a.vm_run == run, f"the VM was touched\n{world.tell()}"
        assert not world.b.state.role.runs_vm, f"a second one runs\n{world.tell()}"
    world.until(Role.PRIM, Role.SECOND)
    assert world.a.vm_run == run
    speed = HOURS * 3600 / (time.monotonic() - began)
    print(f"{way}: {HOURS:g} h, {pauses} pauses, {speed:.0f} times as fast as the clock")


def _pause(world: World, dice: random.Random) -> None:
    node = dice.choice((None, world.a, world.b))
    if node is None:
        world.cut_network()
        world.run(PAUSE_MS)
        world.heal_network()
    else:
        world.stand_still(node, PAUSE_MS)
        world.run(PAUSE_MS)
