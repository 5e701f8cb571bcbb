"""A network on a bad day, and nodes that stand still for a moment: nobody takes over (L3', L7).

HYPERHA_BAD_SECONDS says for how long, HYPERHA_BAD_SEED what happens when.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperha.demo.cluster import NODES
from tests.acceptance.pair import APPLICATION, PairOptions
from tests.acceptance.test_network import NetworkPair, network_pair
from tests.support.bad_cable import BadCable, Weather

SECONDS = int(os.environ.get("HYPERHA_BAD_SECONDS", "60"))
STANDS_S = 2.0
EVERY_S = 40.0
"""Between two moments in which a node stands still, on the average."""
_TELLING = ('"L9"', '"L7"', '"D1"', '"D3"', '"D8\'"', '"T4"', '"R11"')
"""What leads to a node that goes on alone."""
pytestmark = [pytest.mark.anyio, pytest.mark.netns, pytest.mark.timeout(SECONDS + 240)]


async def test_no_false_failover(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """1 % loss, spikes of 200 ms, pauses of 2 s of the network and of a node, at default timing."""
    seed = int(os.environ.get("HYPERHA_BAD_SEED") or random.SystemRandom().randrange(1 << 24))
    print(f"HYPERHA_BAD_SEED={seed}")
    dice = random.Random(seed)
    async with network_pair(tmp_path, 1, "run", PairOptions(timing=None)) as pair:
        running = pair.one("node1", APPLICATION)
        cable = BadCable(pair.network, 0, Weather(), seed)
        try:
            stood = await _bad_day(pair, cable, dice)
            carried = cable.carried
            cable.calm = True
            await pair.roles(60, node1="PRIM", node2="SECOND")
            assert pair.one("node1", APPLICATION) == running, "the VM was started again"
            lines = [line for node in NODES for line in pair.lines(node)]
            said = "".join(lines)
            assert '"P8"' not in said, "a takeover was begun"
            alone = said.count('"D3"') - 1
            print(f"{SECONDS} s: {carried}; nodes stood still {stood} times; {alone} times alone")
            if alone:
                print(*(one for one in lines if any(rule in one for rule in _TELLING)), sep="\n")
            for name, count in (("pauses", carried.pauses + stood),
                                ("lost_frames", carried.lost), ("alone", alone)):  # fmt: skip
                record_property(name, count)
            await pair.equal_and_nothing_lost()
        finally:
            cable.close()


async def _bad_day(pair: NetworkPair, cable: BadCable, dice: random.Random) -> int:
    """Until the time is over; how often a node has stood still."""
    stood = 0
    ends = time.monotonic() + SECONDS
    next_s = time.monotonic() + EVERY_S * dice.uniform(0.3, 1.0)
    while time.monotonic() < ends:
        await asyncio.sleep(0.5)
        pair.no_faults()
        assert [node for node in NODES if pair.processes(node, APPLICATION)] == ["node1"]
        # A pause behind the other is a longer one, which may be a loss.
        if time.monotonic() >= next_s and not cable.pausing():
            cable.put_off()
            with pair.frozen(dice.choice(NODES)):
                await asyncio.sleep(STANDS_S)
            stood += 1
            next_s = time.monotonic() + EVERY_S * dice.uniform(0.5, 1.5)
    return stood
