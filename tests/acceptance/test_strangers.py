"""A peer that is not believed: why stands in the log, once, and in the state."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from hyperha.config import Home
from hyperha.demo.cluster import ADDRESSES, MODULE, NODES
from hyperha.security.cluster_key import new_cluster_key, write_secret
from hyperha.security.initialise import ClusterPlan, LanPlan, init_cluster
from tests.acceptance.pair import OTHER, Pair

pytestmark = pytest.mark.anyio


async def refused(pair: Pair, node: str, reason: str) -> None:
    """Wait until the state of a node gives the reason for the other one; it is logged once."""
    other = OTHER[node]

    async def shown() -> bool:
        side = (await pair.cluster(node)).modules[MODULE].nodes[other]
        return side.why.text.startswith("refused: ") and reason in side.why.text

    await pair.eventually(shown, 15, f"{node} to say why {other} is refused")
    await asyncio.sleep(3)
    lines = [line.text for line in (await pair.log(node)).lines if reason in line.text]
    # Once per LAN, since each LAN has its own address of the other node.
    assert 1 <= len(lines) <= 2, lines
    assert len(set(lines)) == len(lines)
    status, said = await pair.cli(node, "log", MODULE)
    assert status == 0
    assert reason in said
    status, said = await pair.cli(node, "state")
    assert status == 0
    assert reason in said
    assert "never heard" not in said


async def test_a_peer_with_another_clusters_key_is_named_as_the_reason(pair: Pair) -> None:
    """A46, in the module's log and in `state`, and once among what limits the node."""
    path = pair.homes["node2"].cluster_key
    path.unlink()
    write_secret(path, new_cluster_key())
    await asyncio.gather(*(pair.start(node) for node in NODES))
    await asyncio.gather(*(refused(pair, node, "this cluster's key") for node in NODES))
    for node in NODES:
        view = await pair.cluster(node)
        limits = view.nodes[node].limits
        assert len([one for one in limits if "key" in one]) == 1, limits
        assert not view.nodes[OTHER[node]].reachable


async def test_a_peer_with_another_clusters_certificate_is_named_as_the_reason(pair: Pair) -> None:
    """Heartbeats say that all is well, and neither API nor replication can be used."""
    others = {node: Home.at(pair.directory / "other" / node) for node in NODES}
    lan = LanPlan("lo", ADDRESSES)
    init_cluster(others, ClusterPlan("rome", NODES, (lan,)))
    ours, theirs = pair.homes["node2"], others["node2"]
    for name in ("authority_certificate", "node_certificate", "node_key"):
        shutil.copy2(getattr(theirs, name), getattr(ours, name))
    await asyncio.gather(*(pair.start(node) for node in NODES))
    await asyncio.gather(*(refused(pair, node, "each other's certificates") for node in NODES))
    await pair.command("node1", "prim")
    await pair.roles(15, node1="ALONE")
    await pair.log_has("node1", "no TLS with node2")
    found = [line.text for line in (await pair.log("node1")).lines if "each other's" in line.text]
    assert len(found) == 1, found
