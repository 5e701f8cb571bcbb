"""Power cuts under order load: unflushed sectors are really gone (C01, C16, M1).

HYPERHA_POWER_ROUNDS says how many cuts each row makes, HYPERHA_POWER_SEED which ones.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyperha.demo.cluster import NODES
from tests.acceptance.copies import equal_now
from tests.acceptance.pair import OTHER
from tests.acceptance.powered import PoweredPair, powered_pair

ROUNDS = int(os.environ.get("HYPERHA_POWER_ROUNDS", "2"))
ROUND_LIMIT_S = 150.0
REST_LIMIT_S = 240.0
"""For what a row does before its first cut and after its last one."""
Record = Callable[[str, object], None]

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(REST_LIMIT_S + ROUNDS * ROUND_LIMIT_S)]


class Cuts:
    """The cuts of a row, from one seed that is printed."""

    def __init__(self) -> None:
        self.seed = int(os.environ.get("HYPERHA_POWER_SEED") or random.randrange(1 << 24))
        print(f"HYPERHA_POWER_SEED={self.seed}")
        self._dice = random.Random(self.seed)

    def __iter__(self) -> Iterator[str]:
        """What survives each cut: nothing that was not flushed, or a random part of it."""
        for number in range(ROUNDS):
            yield "all" if (number + self.seed) % 2 == 0 else str(self.seed + number)

    async def make(self, pair: PoweredPair, survives: str, *nodes: str) -> float:
        """One at a random moment, which is returned."""
        await asyncio.sleep(self._dice.random())
        first = self._dice.sample(nodes, len(nodes))
        return await pair.cut(survives, self._dice.randrange(1, 300), *first)


def tell(pair: PoweredPair, record: Record, begun: float) -> None:
    """What a row has done, for the output and for a campaign's tally, once all was checked."""
    for name, value in (("cuts", ROUNDS), ("orders", pair.observer.count)):
        record(name, value)
    took = time.monotonic() - begun
    print(f"{ROUNDS} cuts in {took:.0f} s, all {pair.observer.count} acknowledged orders are there")


async def test_c01_power_cut_of_the_primary(tmp_path: Path, record_property: Record) -> None:
    """No acknowledged order is missing on the other node; the former primary follows again."""
    begun = time.monotonic()
    async with powered_pair(tmp_path) as pair:
        await pair.protected()
        primary, cuts = "node1", Cuts()
        for survives in cuts:
            async with asyncio.timeout(ROUND_LIMIT_S):
                at = await cuts.make(pair, survives, primary)
                other = OTHER[primary]
                await pair.roles(15, **{other: "ALONE"})
                await pair.more_orders(20)
                pair.no_faults()
                first = pair.observer.first_after(at, other)
                assert first is not None
                record_property("first_order_s", round(first.at_s - at, 3))
                returned = time.monotonic()
                await pair.start(primary)
                await pair.roles(60, **{other: "PRIM", primary: "SECOND"})
                record_property("redundant_s", round(time.monotonic() - returned, 3))
                await equal_now(pair, other)
            primary = other
        await pair.equal_and_nothing_lost()
        tell(pair, record_property, begun)


async def test_c01_power_cut_of_both_nodes(tmp_path: Path, record_property: Record) -> None:
    """What was acknowledged is on both disks; the pair runs again by itself."""
    begun = time.monotonic()
    async with powered_pair(tmp_path) as pair:
        await pair.protected()
        cuts = Cuts()
        for survives in cuts:
            async with asyncio.timeout(ROUND_LIMIT_S):
                await cuts.make(pair, survives, *NODES)
                await asyncio.sleep(0.1)
                for node in NODES:
                    await asyncio.to_thread(pair.check_folder, node)
                returned = time.monotonic()
                await asyncio.gather(*(pair.start(node) for node in NODES))
                await pair.roles(60, node1="PRIM", node2="SECOND")
                record_property("redundant_s", round(time.monotonic() - returned, 3))
                await pair.more_orders(20)
                await equal_now(pair, "node1")
        await pair.equal_and_nothing_lost()
        tell(pair, record_property, begun)


async def test_c01_power_cut_of_the_secondary(tmp_path: Path, record_property: Record) -> None:
    """C4, Z1: what it had only in memory is copied again; then it is worth a takeover."""
    begun = time.monotonic()
    async with powered_pair(tmp_path) as pair:
        await pair.protected()
        cuts = Cuts()
        for survives in cuts:
            async with asyncio.timeout(ROUND_LIMIT_S):
                await cuts.make(pair, survives, "node2")
                await pair.roles(15, node1="ALONE")
                await pair.more_orders(20)
                returned = time.monotonic()
                await pair.start("node2")
                await pair.roles(60, node1="PRIM", node2="SECOND")
                record_property("redundant_s", round(time.monotonic() - returned, 3))
                await equal_now(pair, "node1")
        await pair.kill("node1")
        await pair.roles(15, node2="ALONE")
        await pair.more_orders(20)
        await pair.start("node1")
        await pair.roles(60, node2="PRIM", node1="SECOND")
        await pair.equal_and_nothing_lost()
        tell(pair, record_property, begun)
