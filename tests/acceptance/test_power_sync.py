"""Writes that say by themselves that they are durable, and a cut right behind them (C19, M1)."""

from __future__ import annotations

import asyncio
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperha.demo.cluster import NODES
from tests.acceptance.powered import PoweredPair, powered_pair
from tests.acceptance.test_power import REST_LIMIT_S, ROUND_LIMIT_S, ROUNDS, Cuts

Record = Callable[[str, object], None]
SIZE = 4096

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(REST_LIMIT_S + ROUNDS * ROUND_LIMIT_S)]

WAYS: dict[str, tuple[int, int, Callable[[int], None] | None]] = {
    "O_DSYNC": (os.O_DSYNC, 0, None),
    "O_SYNC": (os.O_SYNC, 0, None),
    "RWF_DSYNC": (0, os.RWF_DSYNC, None),
    "RWF_SYNC": (0, os.RWF_SYNC, None),
    "O_DIRECT and O_DSYNC": (os.O_DIRECT | os.O_DSYNC, 0, None),
    "O_DIRECT and RWF_DSYNC": (os.O_DIRECT, os.RWF_DSYNC, None),
    "O_DIRECT, then fdatasync": (os.O_DIRECT, 0, os.fdatasync),
    "buffered, then fsync": (0, 0, os.fsync),
}
"""Flags of open, flags of the write, and what is called behind it. The ones with O_DIRECT are how a
guest's FUA arrives: the kernel sends a write and nothing else."""


def _file(name: str) -> str:
    return "sync-" + "".join(one if one.isalnum() else "-" for one in name)


def _write(folder: Path, name: str, number: int) -> None:
    """One block of that way, of which the caller may believe that it is durable."""
    opened, written, behind = WAYS[name]
    block = mmap.mmap(-1, SIZE)  # O_DIRECT wants an aligned address.
    block[:] = number.to_bytes(8, "little") * (SIZE // 8)
    descriptor = os.open(folder / _file(name), os.O_CREAT | os.O_RDWR | opened, 0o600)
    try:
        assert os.pwritev(descriptor, [block], (number % 512) * SIZE, written) == SIZE
        if behind is not None:
            behind(descriptor)
    finally:
        os.close(descriptor)


def _missing(folder: Path, number: int) -> list[str]:
    """The ways whose block of this number is not in a node's plain folder."""
    missing = []
    for name in WAYS:
        with (folder / _file(name)).open("rb") as file:
            file.seek((number % 512) * SIZE)
            if file.read(SIZE) != number.to_bytes(8, "little") * (SIZE // 8):
                missing.append(name)
    return missing


async def _begin(pair: PoweredPair) -> None:
    """Files that exist durably, so that only the writes themselves are tried."""

    def make() -> None:
        for name in WAYS:
            path = pair.folder("node1") / _file(name)
            with path.open("wb") as file:
                file.truncate(512 * SIZE)
                os.fsync(file.fileno())

    await asyncio.to_thread(make)


async def test_c19_a_write_that_is_its_own_barrier_survives_a_cut_of_both_nodes(
    tmp_path: Path, record_property: Record
) -> None:
    """C19, M1: each way in turn is the last one before the power of both nodes fails."""
    async with powered_pair(tmp_path) as pair:
        await pair.protected()
        cuts, number = Cuts(), 0
        await _begin(pair)
        dice = random.Random(cuts.seed)
        for survives in cuts:
            async with asyncio.timeout(ROUND_LIMIT_S):
                order = dice.sample(list(WAYS), len(WAYS))
                number += 1
                for name in order:
                    await asyncio.to_thread(_write, pair.folder("node1"), name, number)
                print(f"cut behind {order[-1]}")
                await pair.cut(survives, 1, *NODES)
                for node in NODES:
                    missing = await asyncio.to_thread(_missing, pair.folder(node), number)
                    assert not missing, f"{node} lost what was written by {missing}"
                await asyncio.gather(*(pair.start(node) for node in NODES))
                await pair.roles(60, node1="PRIM", node2="SECOND")
        record_property("cuts", ROUNDS)
        await pair.equal_and_nothing_lost()
