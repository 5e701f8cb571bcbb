"""A broken resync can be undone, and what a copy gives up can be had again (C06, R15, N3)."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from hyperha.client.node_client import NodeClient
from hyperha.demo.cluster import MODULE
from tests.acceptance.pair import Pair, PairOptions, read_orders

pytestmark = pytest.mark.anyio

SLOW = PairOptions(module={"resync_rate_mib_s = 0": "resync_rate_mib_s = 4"})
"""Slow enough that the source can die in the middle."""
IMAGE_MIB = 48


def _fill(path: Path, seed: int) -> None:
    """An image of which every block differs from those of other seeds, on both disks."""
    block = bytes([seed]) * (1 << 20)
    with path.open("wb") as file:
        for number in range(IMAGE_MIB):
            file.write(number.to_bytes(8, "little") + block[8:])
        file.flush()
        os.fsync(file.fileno())


def _content(path: Path) -> bytes:
    return path.read_bytes()


async def _half_copied(pair: Pair) -> None:
    """node2 was away while node1 changed an image, then node1 died while it made node2 equal."""
    await asyncio.to_thread(_fill, pair.folder("node1") / "image", 1)
    await pair.act("node2", "stop")
    await pair.roles(15, node1="ALONE")
    await asyncio.to_thread(_fill, pair.folder("node1") / "image", 2)
    await asyncio.to_thread((pair.folder("node1") / "new").write_bytes, b"made meanwhile")
    await pair.more_orders()
    begun = asyncio.ensure_future(pair.command("node2", "start"))
    async with NodeClient(pair.target("node1")) as client:

        async def in_the_middle() -> bool:
            resync = (await client.cluster()).modules[MODULE].nodes["node2"].resync
            if resync is None or not resync.total_bytes:
                return False
            assert resync.safety_copy
            return 0.2 < resync.done_bytes / resync.total_bytes < 0.8

        await pair.eventually(in_the_middle, 60, "the middle of a resync")
    await pair.kill("node1")
    begun.cancel()
    await pair.roles(20, node2="WAIT")
    assert (await pair.side("node2")).data == "inconsistent"


@pytest.mark.parametrize("options", [SLOW], ids=["slow"])
async def test_c06_the_primary_dies_in_the_middle_of_a_resync(
    protected: Pair, tmp_path: Path
) -> None:
    """C06: the half made copy does not start; its last consistent state does, after the loss was
    stated; the other line is not thrown away either."""
    pair = protected
    await _half_copied(pair)
    status, said = await pair.cli("node2", "prim", MODULE)
    assert status == 3, said
    assert "half made" in said
    assert "put back to what it was" in said
    assert (await pair.side("node2")).role == "WAIT"
    status, said = await pair.cli("node2", "prim", MODULE, "--confirm", MODULE)
    assert status == 0, said
    await pair.roles(30, node2="ALONE")
    assert (await pair.side("node2")).vm.state == "running"
    await pair.act("node2", "stop")
    folder = pair.folder("node2")
    image = await asyncio.to_thread(_content, folder / "image")
    assert len(image) == IMAGE_MIB << 20
    assert {image[at] for at in range(100, len(image), 1 << 16)} == {1}
    assert not (folder / "new").exists()
    found, state = await asyncio.to_thread(read_orders, folder / "orders.db")
    assert state == "ok"
    assert len(found) > 20
    # node1's line has what was acknowledged there alone; nobody has overwritten it.
    await pair.start("node2")
    await pair.start("node1")
    await pair.log_has("node1", "split brain", 30)
    now = await asyncio.to_thread(_content, pair.folder("node1") / "new")
    assert now == b"made meanwhile"


@pytest.mark.parametrize("options", [SLOW], ids=["slow"])
async def test_a_broken_resync_goes_on_when_the_source_is_back(protected: Pair) -> None:
    """R3: the safety copy stays the one of the beginning; at the end it is gone."""
    pair = protected
    await _half_copied(pair)
    await pair.start("node1")
    await pair.roles(60, node1="PRIM", node2="SECOND")
    await pair.equal_and_nothing_lost()
    status, said = await pair.cli("node2", "safety", MODULE, "list")
    assert status == 0, said
    assert "kept" not in said


async def test_the_loser_of_a_split_brain_can_be_restored(protected: Pair, tmp_path: Path) -> None:
    """N3: what node1 acknowledged alone is kept when it gives way, and comes back as files."""
    pair = protected
    image = pair.folder("node1") / "image"
    await asyncio.to_thread(_fill, image, 1)
    await pair.act("node2", "stop")
    await pair.roles(15, node1="ALONE")
    await asyncio.to_thread(_fill, image, 2)
    await pair.more_orders()
    await pair.lost("node1")
    status, said = await pair.cli("node2", "prim", MODULE, "--confirm", MODULE)
    assert status == 0, said
    await pair.roles(20, node2="ALONE")
    await pair.start("node1")
    await pair.log_has("node1", "split brain", 30)
    await pair.act("node1", "stop")
    status, said = await pair.cli("node1", "second", MODULE, "--confirm", MODULE)
    assert status == 0, said
    await pair.roles(60, node2="PRIM", node1="SECOND")
    status, said = await pair.cli("node1", "safety", MODULE, "list", "--node", "node1")
    assert status == 0, said
    line = next(one for one in said.splitlines() if "kept" in one)
    name = next(word for word in line.split() if word.startswith("20"))
    # The guest goes on writing here, and what it overwrites is kept, too.
    await asyncio.to_thread(_fill, pair.folder("node2") / "image", 3)
    place = tmp_path / "restored"
    status, said = await pair.cli(
        "node1", "safety", MODULE, "restore", name, "--to", str(place), "--node", "node1"
    )
    assert status == 0, said
    restored = await asyncio.to_thread(_content, place / "image")
    assert {restored[at] for at in range(100, len(restored), 1 << 16)} == {2}
    found, state = await asyncio.to_thread(read_orders, place / "orders.db")
    assert state == "ok"
    assert pair.observer.numbers() & found
    status, said = await pair.cli("node1", "safety", MODULE, "delete", name, "--node", "node1")
    assert status == 0, said
    await asyncio.to_thread(shutil.rmtree, place)
