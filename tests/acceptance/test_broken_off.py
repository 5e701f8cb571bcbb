"""Planned moves that are broken off by a failure: the module runs on, on one node or the other."""

from __future__ import annotations

import asyncio
import signal

import pytest

from hyperha.demo.cluster import NODES
from tests.acceptance.pair import DAEMON, Pair

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("delay_s", [0.02, 0.1, 0.2, 0.35])
async def test_a_swap_whose_other_node_dies_leaves_the_module_running(
    protected: Pair, delay_s: float
) -> None:
    """C17, H2: before the commit the VM stays, after it the other node has it; never nobody."""
    swap = await protected.begin("node1", "swap")
    await asyncio.sleep(delay_s)
    protected.signal("node2", DAEMON, signal.SIGKILL)
    await protected.daemon_gone("node2")
    view = await asyncio.wait_for(protected.ended("node1", swap), 60)
    print(view.state, view.text)
    await protected.start("node2")

    async def redundant() -> bool:
        sides = [await protected.side(node) for node in NODES]
        return {side.role.value for side in sides} == {"PRIM", "SECOND"}

    await protected.eventually(redundant, 60, "PRIM and SECOND")
    # Moved, it may have come back by a takeover; not moved, it never left.
    assert view.state == "done" or await protected.primary() == "node1", view.text
    await protected.more_orders()
    await protected.equal_and_nothing_lost()
