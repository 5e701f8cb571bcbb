"""Which copy runs and which is overwritten, when it was stopped half way (A33, A35, A38)."""

from __future__ import annotations

import asyncio

import pytest

from hyperha.client.node_client import NodeClient
from hyperha.demo.cluster import MODULE
from tests.acceptance.pair import Pair, PairOptions
from tests.acceptance.test_safety_copies import _fill

pytestmark = pytest.mark.anyio
PREFERRED = PairOptions(module={'boot = "on"': 'boot = "on"\ndefault_primary = "node1"'})
NO_WAY_BACK = PairOptions(
    module={
        "resync_rate_mib_s = 0": "resync_rate_mib_s = 4",
        "[stop]\n": '[safety_copy]\nmode = "off"\n\n[stop]\n',
    }
)


@pytest.mark.parametrize("options", [PREFERRED], ids=["preferred"])
async def test_a33_the_preferred_node_gets_it_back(protected: Pair) -> None:
    """As soon as its copy is equal, without a word."""
    await protected.kill("node1")
    await protected.roles(15, node2="ALONE")
    await protected.more_orders()
    await protected.start("node1")
    await protected.roles(60, node1="PRIM", node2="SECOND")
    await protected.log_has("node2", "node1 is preferred: the VM is moved to node1")
    await protected.equal_and_nothing_lost()


async def _in_the_middle(pair: Pair) -> None:
    async with NodeClient(pair.target("node1")) as client:

        async def so() -> bool:
            resync = (await client.cluster()).modules[MODULE].nodes["node2"].resync
            if resync is None or not resync.total_bytes:
                return False
            return 0.2 < resync.done_bytes / resync.total_bytes < 0.8

        await pair.eventually(so, 60, "the middle of a resync")


@pytest.mark.parametrize("options", [NO_WAY_BACK], ids=["no-way-back"])
async def test_a35_a_half_copied_node_is_forced(protected: Pair) -> None:
    """`prim` is refused, `primforce` states the loss and works, and the next copy is a full one."""
    pair = protected
    image = pair.folder("node1") / "image"
    await asyncio.to_thread(_fill, image, 1)
    await pair.act("node2", "stop")
    await pair.roles(15, node1="ALONE")
    await asyncio.to_thread(_fill, image, 2)
    begun = asyncio.ensure_future(pair.command("node2", "start"))
    await _in_the_middle(pair)
    await pair.act("node2", "stop")
    begun.cancel()
    await pair.act("node1", "stop")
    assert (await pair.side("node2")).data == "inconsistent"
    for confirmed in ((), ("--confirm", MODULE)):
        status, said = await pair.cli("node2", "prim", MODULE, *confirmed)
        assert status != 0, said
        assert "half made" in said, said
        assert (await pair.side("node2")).role == "STOP"
    status, said = await pair.cli("node2", "primforce", MODULE)
    assert status == 3, said
    status, said = await pair.cli("node2", "primforce", MODULE, "--confirm", MODULE)
    assert status == 0, said
    await pair.roles(30, node2="ALONE")
    status, said = await pair.cli("node1", "second", MODULE, "--confirm", MODULE)
    assert status == 0, said
    await pair.roles(90, node1="SECOND", node2="PRIM")
    await pair.log_has("node1", "(full)")


async def test_a38_a_full_copy_is_compared_by_digest(protected: Pair) -> None:
    """Lineage decides who gives; `second --full` compares everything and sends what differs."""
    pair = protected
    await asyncio.to_thread(_fill, pair.folder("node1") / "image", 1)
    await pair.act("node2", "stop")
    await pair.roles(15, node1="ALONE")
    await pair.more_orders()
    status, said = await pair.cli("node2", "second", MODULE, "--full")
    assert status == 0, said
    await pair.roles(60, node1="PRIM", node2="SECOND")
    await pair.log_has("node2", "a full compare was asked for")
    told = await pair.log_has("node1", "copied everything")
    print(told)
    await pair.equal_and_nothing_lost()
