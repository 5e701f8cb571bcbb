"""Power cuts under order load: unflushed sectors are really gone (C01, C16, M1).

HYPERHA_POWER_ROUNDS says how many cuts each row makes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyperha.daemon.fencing import peel
from hyperha.demo.cluster import NODES
from hyperha.demo.observer import Observer
from tests.acceptance.pair import OTHER, Pair, PairOptions, free_ports
from tests.support.power import PoweredDisks

ROUNDS = int(os.environ.get("HYPERHA_POWER_ROUNDS", "2"))
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60 + 40 * ROUNDS)]


@contextlib.asynccontextmanager
async def powered_pair(directory: Path) -> AsyncIterator[tuple[Pair, PoweredDisks]]:
    """A pair whose homes lie on disks that can be cut."""
    homes = {node: directory / "cluster" / node for node in NODES}
    disks = await asyncio.to_thread(PoweredDisks, directory, homes)
    try:
        observer = Observer()
        pair = Pair(directory / "cluster", free_ports(), observer, PairOptions())
        try:
            await pair.create(temporary=False)
            for node in NODES:
                await asyncio.to_thread(disks.sync, node)
            yield pair, disks
        except BaseException:
            for node in NODES:
                with contextlib.suppress(OSError):
                    print(node, *pair.lines(node)[-60:], sep="\n")
            raise
        finally:
            for node in NODES:
                await asyncio.shield(pair.kill(node))
                await asyncio.to_thread(peel, str(pair.folder(node)))
            await asyncio.shield(pair.close())
            observer.close()
    finally:
        await asyncio.to_thread(disks.close)


async def cut(pair: Pair, disks: PoweredDisks, seed: str, *nodes: str) -> None:
    """The power of these nodes fails at one moment; then their disks are there again."""
    writes = random.randrange(1, 300)
    lost = await asyncio.to_thread(disks.power_off, seed, writes, nodes)
    for node in nodes:
        pair.signal(node, "", signal.SIGSTOP)
    print(f"power cut of {' and '.join(nodes)} after {writes} writes, seed {seed}: {lost}")
    await asyncio.to_thread(disks.fail, nodes)
    for node in nodes:
        await pair.kill(node)
        problem = await asyncio.to_thread(peel, str(pair.folder(node)))
        assert not problem, problem
    for node in nodes:
        await asyncio.to_thread(disks.power_on, node)


def seeds() -> list[str]:
    """What survives a cut: nothing that was not flushed, or a random part of it."""
    first = int.from_bytes(os.urandom(3), "big")
    return ["all" if number % 2 == 0 else str(first + number) for number in range(ROUNDS)]


async def test_power_cut_of_the_primary(tmp_path: Path) -> None:
    """No acknowledged order is missing on the other node; the former primary follows again."""
    async with powered_pair(tmp_path) as (pair, disks):
        await pair.protected()
        primary = "node1"
        for seed in seeds():
            await asyncio.sleep(random.random())
            await cut(pair, disks, seed, primary)
            other = OTHER[primary]
            await pair.roles(15, **{other: "ALONE"})
            await pair.more_orders(20)
            pair.no_faults()
            await pair.start(primary)
            await pair.roles(60, **{other: "PRIM", primary: "SECOND"})
            primary = other
        await pair.equal_and_nothing_lost()
        print(f"{ROUNDS} cuts, {pair.observer.count} acknowledged orders, 0 lost")


async def test_power_cut_of_both_nodes(tmp_path: Path) -> None:
    """What was acknowledged is on both disks; the pair runs again by itself."""
    async with powered_pair(tmp_path) as (pair, disks):
        await pair.protected()
        for seed in seeds():
            await asyncio.sleep(random.random())
            await cut(pair, disks, seed, *NODES)
            await asyncio.sleep(0.1)
            for node in NODES:
                await asyncio.to_thread(pair.check_folder, node)
            begun = time.monotonic()
            await asyncio.gather(*(pair.start(node) for node in NODES))
            await pair.roles(60, node1="PRIM", node2="SECOND")
            await pair.more_orders(20)
            pair.no_faults()
            print(f"redundant again after {time.monotonic() - begun:.1f} s")
        await pair.equal_and_nothing_lost()
        print(f"{ROUNDS} cuts, {pair.observer.count} acknowledged orders, 0 lost")


async def test_power_cut_of_the_secondary(tmp_path: Path) -> None:
    """C4, Z1: what it had only in memory is copied again; then it is worth a takeover."""
    async with powered_pair(tmp_path) as (pair, disks):
        await pair.protected()
        for seed in seeds():
            await cut(pair, disks, seed, "node2")
            await pair.roles(15, node1="ALONE")
            await pair.more_orders(20)
            await pair.start("node2")
            await pair.roles(60, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()
