"""What the reference product's own tests show on a pair, from the first start to the return."""

from __future__ import annotations

import asyncio
import os
import re

import pytest

from hyperha.demo.cluster import MODULE, NODES
from tests.acceptance.pair import APPLICATION, OTHER, Pair, PairOptions
from tests.acceptance.test_verifying import below_the_mount, turn_a_bit

pytestmark = pytest.mark.anyio
SLOW = PairOptions(module={"resync_rate_mib_s = 0": "resync_rate_mib_s = 60"})
"""So that somebody sees the copy being made."""


async def both_up(pair: Pair) -> None:
    """Daemons only; the module is told to start on neither."""
    await asyncio.gather(*(pair.start(node) for node in NODES))


async def waits(pair: Pair, node: str, text: str) -> None:
    """It waits, is not ready, and says why."""

    async def so() -> bool:
        side = await pair.side(node)
        return side.role == "WAIT" and side.readiness == "NotReady" and text in side.why.text

    await pair.eventually(so, 10, f"{node} to wait and say {text!r}")


async def starts(pair: Pair, node: str) -> int:
    """How often start_prim has begun on a node."""
    return sum('"begins"' in line and "start_prim" in line for line in pair.lines(node))


async def test_a06_first_start_of_two_stopped_nodes(pair: Pair) -> None:
    """Neither copy is known to be good: both wait, and say that `prim` is wanted."""
    await both_up(pair)
    for node in NODES:
        await pair.act(node, "stop")
    await asyncio.gather(*(pair.begin(node, "start") for node in NODES))
    for node in NODES:
        await waits(pair, node, "prim")
        await pair.log_has(node, "start by")
        assert not pair.processes(node, APPLICATION)
    await pair.command("node1", "prim")
    await pair.roles(30, node1="PRIM", node2="SECOND")
    await pair.more_orders()
    await pair.equal_and_nothing_lost()


async def test_a07_later_start_of_two_stopped_nodes(protected: Pair) -> None:
    """Both are started: as before, start_prim runs on one of them only."""
    await protected.act("node2", "stop")
    await protected.act("node1", "stop")
    before = [await starts(protected, node) for node in NODES]
    await asyncio.gather(*(protected.command(node, "start") for node in NODES))
    await protected.roles(30, node1="PRIM", node2="SECOND")
    after = [await starts(protected, node) for node in NODES]
    assert after == [before[0] + 1, before[1]]
    for node in NODES:
        sides = (await protected.cluster(node)).modules[MODULE].nodes
        assert [sides[one].role for one in NODES] == ["PRIM", "SECOND"], f"as {node} tells it"
    await protected.equal_and_nothing_lost()


async def test_a08_stop_of_the_primary(protected: Pair) -> None:
    """stop_prim runs; the other node takes over because it was told, and runs start_prim."""
    before = await starts(protected, "node2")
    await protected.act("node1", "stop")
    await protected.roles(15, node1="STOP", node2="ALONE")
    await protected.log_has("node1", "stop_prim")
    await protected.log_has("node2", "takes the VM over from node1 as planned (stop)")
    assert await starts(protected, "node2") == before + 1
    assert (await protected.side("node1")).readiness == "NotReady"
    await protected.more_orders()
    await protected.nothing_lost()


async def test_a09_start_of_the_stopped_node(protected: Pair) -> None:
    """The application of the node that runs it is not interrupted."""
    await protected.act("node1", "stop")
    await protected.roles(15, node2="ALONE")
    running = protected.one("node2", APPLICATION)
    await protected.command("node1", "start")
    await protected.roles(40, node1="SECOND", node2="PRIM")
    assert protected.one("node2", APPLICATION) == running
    await protected.equal_and_nothing_lost()


async def test_a10_restart_on_the_primary(protected: Pair) -> None:
    """stop_prim and start_prim here; the other node goes on following."""
    first = protected.one("node1", APPLICATION)
    before = await starts(protected, "node1")
    await protected.act("node1", "restart")
    assert (await protected.side("node2")).role == "SECOND"
    await protected.roles(15, node1="PRIM", node2="SECOND")
    assert protected.one("node1", APPLICATION) != first
    assert await starts(protected, "node1") == before + 1
    await protected.equal_and_nothing_lost()


async def test_a11_it_answers_on_its_own_address_from_where_it_runs(protected: Pair) -> None:
    """The application calls the same address from either node; who it is moves with it."""
    assert protected.processes("node1", APPLICATION)
    assert not protected.processes("node2", APPLICATION)
    for node, other in (("node1", "node2"), ("node2", "node1")):
        await protected.act(node, "stopstart")
        await protected.roles(40, **{node: "SECOND", other: "PRIM"})
        await protected.more_orders()
        assert protected.processes(other, APPLICATION)
        assert not protected.processes(node, APPLICATION)
    await protected.equal_and_nothing_lost()


@pytest.mark.parametrize("options", [SLOW], ids=["slow"])
async def test_a12_to_a15_replication_and_reintegration(protected: Pair) -> None:
    """A12, A13, A14, A15: files appear on the other node, are protected there, and come back."""
    first, second = protected.folder("node1"), protected.folder("node2")
    (first / "file1").write_bytes(b"1" * 5000)
    assert (second / "file1").read_bytes() == b"1" * 5000
    with pytest.raises(OSError, match="Read-only file system"):
        os.unlink(second / "file1")
    await protected.act("node1", "stop")
    await protected.roles(15, node2="ALONE")
    (second / "file2").write_bytes(os.urandom(120 << 20))
    assert not (first / "file2").exists()
    begin = asyncio.ensure_future(protected.command("node1", "start"))
    saw = await seen_copying(protected, "node1")
    await begin
    await protected.roles(60, node1="SECOND", node2="PRIM")
    assert saw, "SECOND Transient, with its figures, while it copies"
    ended = await protected.log_has("node2", "has copied everything")
    figures = re.search(r"(\d+) bytes compared, (\d+) sent in ([\d.]+) s", ended)
    assert figures is not None, ended
    assert int(figures[2]) >= 120 << 20
    assert (first / "file2").read_bytes() == (second / "file2").read_bytes()
    await protected.equal_and_nothing_lost()


async def seen_copying(pair: Pair, node: str) -> bool:
    """Whether the node shows a resync with figures before it is equal."""
    for _ in range(400):
        # The one that gives knows how much there is.
        side = (await pair.cluster(OTHER[node])).modules[MODULE].nodes[node]
        if side.resync is not None and side.resync.total_bytes:
            return side.role == "SECOND" and side.readiness == "Transient"
        if side.role == "SECOND" and side.readiness == "Ready":
            return False
        await asyncio.sleep(0.02)
    return False


async def test_a30_the_stale_node_is_started_alone(protected: Pair) -> None:
    """It waits for the other one; that one's start resolves it."""
    await protected.act("node2", "stop")
    await protected.roles(15, node1="ALONE")
    await protected.more_orders()
    await protected.act("node1", "stop")
    await protected.begin("node2", "start")
    await waits(protected, "node2", "out of date")
    await protected.begin("node1", "start")
    await protected.roles(30, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_a30_stop_and_prim_override_the_wait(protected: Pair) -> None:
    """What is given up is stated and must be confirmed."""
    await protected.act("node2", "stop")
    await protected.roles(15, node1="ALONE")
    await protected.more_orders()
    await protected.act("node1", "stop")
    await protected.begin("node2", "start")
    await waits(protected, "node2", "out of date")
    await protected.act("node2", "stop")
    status, said = await protected.cli("node2", "prim", "orders", "--node", "node2")
    assert status == 3, said
    assert "--confirm orders" in said
    status, said = await protected.cli("node2", "prim", "orders", "--confirm", "orders")
    assert status == 0, said
    await protected.roles(15, node2="ALONE")


async def test_a32_no_automatic_failover(protected: Pair) -> None:
    """The other node waits; the former primary's return restores the roles, `prim` overrides."""
    status, said = await protected.cli("node1", "failover", "orders", "off")
    assert status == 0, said
    await protected.kill("node1")
    await protected.roles(10, node2="WAIT")
    assert (await protected.side("node2")).readiness == "NotReady"
    await asyncio.sleep(2)
    assert not protected.processes("node2", APPLICATION)
    await protected.start("node1")
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.kill("node1")
    await protected.roles(10, node2="WAIT")
    status, said = await protected.cli("node2", "prim", "orders", "--confirm", "orders")
    assert status == 0, said
    await protected.roles(15, node2="ALONE")
    await protected.start("node1")
    await protected.roles(40, node1="SECOND", node2="PRIM")
    await protected.equal_and_nothing_lost()


async def test_a34_swap(protected: Pair) -> None:
    """Stopped on the one before it is started on the other."""
    await protected.act("node1", "swap")
    await protected.roles(15, node1="SECOND", node2="PRIM")
    stop = await protected.log_has("node1", '"stop_prim"')
    start = await protected.log_has("node2", '"start_prim"')
    assert stop
    assert start
    assert not protected.observer.faults
    await protected.equal_and_nothing_lost()


async def test_a39_commands_that_fit_no_role(protected: Pair) -> None:
    """`prim` while the other node is primary, `second` while it is not: both are refused."""
    status, said = await protected.cli("node2", "prim", "orders", "--node", "node2")
    assert status == 3, said
    assert "Traceback" not in said
    await protected.act("node2", "stop")
    await protected.roles(15, node1="ALONE")
    await protected.act("node1", "stop")
    view = await protected.command("node2", "second")
    assert view.state == "failed", view
    await protected.command("node1", "start")
    await protected.command("node2", "start")
    await protected.roles(30, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_a43_power_off_of_the_secondary(protected: Pair) -> None:
    """The application goes on, untouched; the node that returns follows."""
    running = protected.one("node1", APPLICATION)
    await protected.kill("node2")
    await protected.roles(10, node1="ALONE")
    await protected.more_orders()
    assert protected.one("node1", APPLICATION) == running
    await protected.start("node2")
    await protected.roles(40, node1="PRIM", node2="SECOND")
    assert protected.one("node1", APPLICATION) == running
    await protected.equal_and_nothing_lost()


async def test_a49_verify_finds_what_was_injected(protected: Pair) -> None:
    """No difference when idle; one that is made beside the product is found and named."""
    with (protected.folder("node1") / "big").open("wb") as file:
        file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    status, said = await protected.cli("node1", "verify", "orders")
    assert status == 0, said
    status, said = await protected.cli("node1", "diff", "orders")
    assert status == 0, said
    assert "in sync" in said
    turn_a_bit(below_the_mount(protected, "node2") / "big", 70_000)
    status, said = await protected.cli("node1", "verify", "orders")
    assert status == 1, said
    assert "1 block of 64 KiB differs in big at 65,536" in said
    status, said = await protected.cli("node1", "verify", "orders", "--repair")
    assert status == 0, said
    await protected.equal_and_nothing_lost()
