"""A ping witness: the side that still reaches somebody goes on, the isolated one does not (W8)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from hyperha.domain import ResourceState
from tests.acceptance.witnessed import PingedPair, guarded_pair

pytestmark = [pytest.mark.anyio, pytest.mark.netns, pytest.mark.root]


async def test_b18_a40_the_primary_is_isolated(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, PingedPair) as pair:
        began = asyncio.ensure_future(pair.start_prim_begins("node2"))
        await asyncio.sleep(0.2)
        cut = time.monotonic()
        pair.isolate("node1")
        print(f"cut to start_prim: {await asyncio.wait_for(began, 15) - cut:.2f} s")
        await pair.roles(10, node1="WAIT", node2="ALONE")
        await pair.log_has("node1", "the lease has ended")
        await pair.more_orders(20)
        pair.reconnect("node1")
        await pair.roles(30, node1="SECOND", node2="PRIM")
        await pair.equal_and_nothing_lost()


async def test_b18_a40_the_secondary_is_isolated(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, PingedPair) as pair:
        pair.isolate("node2")
        await pair.roles(10, node1="ALONE", node2="WAIT")
        assert "is the isolated one" in (await pair.side("node2")).why.text
        await pair.more_orders(20)
        pair.reconnect("node2")
        await pair.roles(30, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()


async def test_b19_a41_nobody_reaches_the_witness(tmp_path: Path) -> None:
    """And its return changes nothing: the first "no" is final, else both would go on (A1)."""
    async with guarded_pair(tmp_path, PingedPair) as pair:
        for node in ("node1", "node2"):
            pair.isolate(node)
        await pair.roles(15, node1="WAIT", node2="WAIT")
        for node in ("node1", "node2"):
            why = (await pair.side(node)).why
            assert why.rule in ("W8", "L8"), why
            assert "command prim" in why.text
        for node in ("node1", "node2"):
            pair.network.mend(pair.network.lans, node)
        await asyncio.sleep(3)
        await pair.roles(1, node1="WAIT", node2="WAIT")
        pair.mend_all()
        for node in ("node1", "node2"):
            pair.reconnect(node)
        await pair.redundant_again()
        await pair.equal_and_nothing_lost()


async def test_w3_a_witness_that_is_silent_is_told_and_harms_nobody(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, PingedPair) as pair:

        async def called(state: ResourceState) -> None:
            async def so() -> bool:
                view = (await pair.cluster("node1")).nodes["node1"].witness
                return view is not None and view.kind == "ping" and view.state is state

            await pair.eventually(so, 15, f"node1 to call the witness {state}")

        await called(ResourceState.UP)
        pair.network.cut(pair.network.lans, "node1")
        await called(ResourceState.DOWN)
        await pair.roles(2, node1="PRIM", node2="SECOND")


async def test_a41_both_reach_the_witness(tmp_path: Path) -> None:
    """Only the cable between them is cut: a ping cannot tell them apart. Both run, which is said
    where the witness is configured, and one gives way when they hear each other (N8, R16)."""
    async with guarded_pair(tmp_path, PingedPair) as pair:
        pair.cut_all()
        await pair.roles(15, node1="ALONE", node2="ALONE")
        pair.mend_all()
        await pair.log_has("node2", "this node gives way to node1", 20)
        await pair.roles(60, node1="PRIM", node2="SECOND")
