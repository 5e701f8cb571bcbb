"""A lease witness: exactly one node continues, whatever is cut, and nothing moves without it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from hyperha.domain import ResourceState
from hyperha.errors import RefusedError
from tests.acceptance.pair import DAEMON
from tests.acceptance.witnessed import WitnessedPair, guarded_pair

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


async def _one_runs(pair: WitnessedPair) -> str:
    """Wait until one node runs alone and the other one runs nothing; the one that runs."""
    found = ""

    async def settled() -> bool:
        nonlocal found
        roles = {node: (await pair.side(node)).role.value for node in ("node1", "node2")}
        alone = [node for node, role in roles.items() if role == "ALONE"]
        found = alone[0] if len(alone) == 1 else ""
        return bool(found) and "WAIT" in roles.values()

    await pair.eventually(settled, 20, "one node to run alone and the other one to wait")
    return found


async def test_c04_only_the_links_between_the_nodes_are_cut(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, WitnessedPair) as pair:
        pair.cut_all()
        runs = await _one_runs(pair)
        await pair.more_orders(20)
        pair.mend_all()
        other = "node2" if runs == "node1" else "node1"
        await pair.roles(30, **{runs: "PRIM", other: "SECOND"})
        await pair.equal_and_nothing_lost()


async def test_c04_the_primary_is_the_isolated_one(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, WitnessedPair) as pair:
        began = asyncio.ensure_future(pair.start_prim_begins("node2"))
        await asyncio.sleep(0.2)
        cut = time.monotonic()
        for lan in (0, 1):
            pair.network.cut(lan, "node1")
        print(f"cut to start_prim: {await asyncio.wait_for(began, 15) - cut:.2f} s")
        await pair.roles(10, node2="ALONE")
        await pair.log_has("node1", "the lease has ended")
        for lan in (0, 1):
            pair.network.mend(lan, "node1")
        await pair.roles(30, node1="SECOND", node2="PRIM")
        await pair.equal_and_nothing_lost()


async def test_w3_the_witness_may_come_and_go(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, WitnessedPair) as pair:
        pair.stop_witness()
        await pair.log_has("node1", "the witness does not answer")
        with pytest.raises(RefusedError, match="the witness does not answer"):
            await pair.act("node1", "swap")
        await pair.more_orders(20)
        await pair.roles(5, node1="PRIM", node2="SECOND")
        await pair.start_witness()
        await pair.witness_is("node1", ResourceState.UP)
        await pair.act("node1", "swap")
        await pair.roles(30, node1="SECOND", node2="PRIM")


async def test_c05_a_certificate_ends_the_lease(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, WitnessedPair) as pair:
        began = asyncio.ensure_future(pair.start_prim_begins("node2"))
        await asyncio.sleep(0.2)
        killed = pair.signal("node1", DAEMON, 9)
        took_s = await asyncio.wait_for(began, 15) - killed
        print(f"daemon killed to start_prim: {took_s:.2f} s")
        assert took_s < 1.5
        await pair.roles(10, node2="ALONE")


async def test_a44_the_node_in_sync_starts_alone(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, WitnessedPair) as pair:
        for node in ("node1", "node2"):
            await pair.kill(node)
        await pair.start("node2")
        await pair.roles(20, node2="ALONE")
        await pair.start("node1")
        await pair.roles(30, node1="SECOND", node2="PRIM")
        await pair.equal_and_nothing_lost()
