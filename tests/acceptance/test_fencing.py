"""A command that switches the other node off: only its confirmed end lets anybody go on (D2c)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.acceptance.witnessed import FencedPair, guarded_pair

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


async def test_c14_the_primary_goes_on_when_the_other_node_is_off(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, FencedPair) as pair:
        pair.cut_all()
        await pair.asked_for("node2")
        held = pair.observer.count
        await asyncio.sleep(1)
        assert pair.observer.count <= held + 1, "nothing is acknowledged before it is off"
        await pair.off("node2")
        await pair.roles(10, node1="ALONE")
        await pair.more_orders(20)
        pair.mend_all()
        await pair.start("node2")
        await pair.roles(30, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()


async def test_c14_a_command_that_fails_holds(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, FencedPair) as pair:
        pair.breaks()
        pair.cut_all()
        await pair.log_has("node1", "the power switch does not answer")
        await pair.log_has("node2", "the power switch does not answer")
        held = pair.observer.count
        await asyncio.sleep(1)
        assert pair.observer.count <= held + 1
        assert (await pair.side("node2")).role.value == "WAIT"
        pair.mend_all()
        await pair.roles(30, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()


async def test_c14_the_secondary_takes_over_when_the_other_node_is_off(tmp_path: Path) -> None:
    async with guarded_pair(tmp_path, FencedPair) as pair:
        pair.cut_all()
        await pair.kill("node1")
        await pair.asked_for("node1")
        assert (await pair.side("node2")).role.value == "WAIT"
        await pair.off("node1")
        await pair.roles(10, node2="ALONE")
        await pair.more_orders(20)
        pair.mend_all()
        await pair.start("node1")
        await pair.roles(30, node1="SECOND", node2="PRIM")
        await pair.equal_and_nothing_lost()
