"""The operator's commands on a running pair, as in a first installation."""

from __future__ import annotations

import asyncio
import os

import pytest

from hyperha.client.node_client import NodeClient
from hyperha.demo.cluster import MODULE, NODES
from hyperha.errors import NotFoundError, UnreachableError
from tests.acceptance.pair import APPLICATION, DAEMON, Pair, PairOptions

pytestmark = pytest.mark.anyio


async def test_b08_to_b12_first_start_join_stop_and_return(pair: Pair) -> None:
    """B08, B10, B11, B12, A13: ALONE, then redundant; stop moves the VM; the return is partial."""
    await pair.start("node1")
    await pair.command("node1", "prim")
    await pair.roles(15, node1="ALONE")
    await pair.more_orders()
    assert (await pair.log("node1")).lines
    await pair.log_has("node1", "start_prim")
    await pair.start("node2")
    await pair.roles(30, node1="PRIM", node2="SECOND")
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(pair.folder("node2") / "new", os.O_CREAT | os.O_WRONLY, 0o600)
    assert not (pair.folder("node2") / ".hyperha").exists()

    before = pair.observer.highest
    await pair.act("node1", "stop")
    await pair.roles(15, node1="STOP", node2="ALONE")
    await pair.more_orders()
    first = min(h for h in pair.observer.numbers() if h > before)
    assert first == before + 1 or first in pair.observer.numbers()
    await pair.act("node1", "start")
    await pair.roles(40, node1="SECOND", node2="PRIM")
    line = await pair.log_has("node2", "candidates")
    assert "everything is compared" not in line
    await pair.equal_and_nothing_lost()


async def test_each_nodes_log_and_scripts_can_be_read_through_the_other(protected: Pair) -> None:
    """A node's lines are its own, whoever is asked; one that is dead is said to be silent."""
    status, said = await protected.cli("node1", "log", "orders", "--node", "node2")
    assert status == 0, said
    assert {line.split()[1] for line in said.splitlines()} == {"node2"}
    status, said = await protected.cli("node1", "log", "orders")
    assert status == 0, said
    assert {line.split()[1] for line in said.splitlines()} == {"node1", "node2"}
    times = [line.split()[0] for line in said.splitlines()]
    assert times == sorted(times), "one time line"
    status, said = await protected.cli("node1", "log", "orders", "--since", "yesterday")
    assert status == 2
    assert "--since 'yesterday' is no time" in said
    async with NodeClient(protected.target("node2")) as client:
        page = await client.log(MODULE, node="node1")
        assert {line.node for line in page.lines} == {"node1"}
        assert page.lines == (await protected.log("node1")).lines
        (run,) = [r for r in await client.scripts(MODULE, node="node1") if r.script == "start_prim"]
        assert run.node == "node1"
        assert (await client.script(MODULE, run.id, node="node1")).run.id == run.id
        assert await client.scripts(MODULE, node="node2") == await client.scripts(MODULE) == []
        await protected.kill("node1")
        with pytest.raises(UnreachableError, match="node1 does not answer"):
            await client.log(MODULE, node="node1")
        with pytest.raises(NotFoundError, match="node3"):
            await client.log(MODULE, node="node3")


async def test_b13_prim_on_an_old_copy_states_the_loss(protected: Pair) -> None:
    """B13: node1's copy is behind; `prim` is refused with the loss (exit 3), then confirmed."""
    await protected.act("node1", "stop")
    await protected.roles(15, node1="STOP", node2="ALONE")
    await protected.more_orders()
    await protected.lost("node2")
    kept = protected.observer.highest
    status, said = await protected.cli("node1", "prim", "orders")
    assert status == 3, said
    assert "--confirm orders" in said
    assert "Traceback" not in said
    assert (await protected.side("node1")).role == "STOP"
    status, said = await protected.cli("node1", "prim", "orders", "--confirm", "orders")
    assert status == 0, said
    await protected.roles(15, node1="ALONE")
    assert kept


async def test_a47_both_stopped_and_started(protected: Pair) -> None:
    """A47, `stop --all`, `start --all`: the secondary first, the last primary runs again."""
    status, said = await protected.cli("node2", "stop", "orders", "--all")
    assert status == 0, said
    await protected.roles(10, node1="STOP", node2="STOP")
    protected.check_folder("node1")
    status, said = await protected.cli("node2", "start", "orders", "--all")
    assert status == 0, said
    await protected.roles(20, node1="PRIM", node2="SECOND")
    await protected.more_orders()
    await protected.equal_and_nothing_lost()


async def test_a47_both_started_where_the_first_one_waits_for_the_second(protected: Pair) -> None:
    """`start --all` on the node whose copy is out of date: it waits for the other one's start."""
    await protected.act("node2", "stop")
    await protected.roles(15, node1="ALONE")
    await protected.more_orders()
    await protected.act("node1", "stop")
    status, said = await protected.cli("node2", "start", "orders", "--all")
    assert status == 0, said
    await protected.roles(20, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


@pytest.mark.parametrize("order", [NODES, NODES[::-1]], ids=["node1-first", "node2-first"])
async def test_c16_both_nodes_shut_down_in_the_same_second(
    protected: Pair, order: tuple[str, str]
) -> None:
    """C16, H1: a UPS; neither calls itself outdated, the last primary runs again, loss zero."""
    await asyncio.gather(*(protected.stop(node) for node in order))
    assert not protected.processes("node1", APPLICATION)
    protected.check_folder("node1")
    for node in order:
        await protected.start(node)
        await asyncio.sleep(0.5)
    await protected.roles(30, node1="PRIM", node2="SECOND")
    await protected.more_orders()
    assert not any("copy outdated" in line for node in NODES for line in protected.lines(node))
    await protected.equal_and_nothing_lost()


async def test_c01_both_nodes_killed_and_started(protected: Pair) -> None:
    """C01 on both at once: no acknowledged order is missing when they are back."""
    await asyncio.gather(*(protected.kill(node) for node in NODES))
    await asyncio.gather(*(protected.start(node) for node in NODES))
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.more_orders()
    await protected.equal_and_nothing_lost()


async def test_alone_killed_and_started_while_the_peer_is_away(protected: Pair) -> None:
    """P6: a clean stop of the peer is a durable proof: the line goes on alone after a crash."""
    await protected.act("node2", "stop")
    await protected.roles(10, node1="ALONE")
    await protected.kill("node1")
    await protected.start("node1")
    await protected.roles(20, node1="ALONE")
    await protected.more_orders()
    await protected.act("node2", "start")
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_swap_there_and_back(protected: Pair) -> None:
    """H2: both copies stay equal, no generation is minted."""
    before = (await protected.side("node1")).generation
    await protected.act("node1", "swap")
    await protected.roles(15, node1="SECOND", node2="PRIM")
    await protected.more_orders()
    await protected.act("node2", "swap")
    await protected.roles(15, node1="PRIM", node2="SECOND")
    await protected.more_orders()
    assert (await protected.side("node1")).generation == before
    await protected.equal_and_nothing_lost()


async def test_restart_and_stopstart(protected: Pair) -> None:
    """restart stays here; stopstart moves the VM and comes back as the secondary; budget kept."""
    first = protected.one("node1", APPLICATION)
    await protected.act("node1", "restart")
    await protected.roles(15, node1="PRIM", node2="SECOND")
    assert protected.one("node1", APPLICATION) != first
    await protected.act("node1", "stopstart")
    await protected.roles(30, node1="SECOND", node2="PRIM")
    await protected.more_orders()
    assert await protected.restarts_used("node1") == 0
    await protected.equal_and_nothing_lost()


async def test_a16_sigterm_of_the_primary_is_a_clean_stop(protected: Pair) -> None:
    """A16: the other node takes over as planned, nothing is held back."""
    await protected.stop("node1")
    await protected.roles(15, node2="ALONE")
    await protected.more_orders()
    await protected.start("node1")
    await protected.roles(40, node1="SECOND", node2="PRIM")
    await protected.equal_and_nothing_lost()


@pytest.mark.parametrize(
    "options", [PairOptions(module={"command = [": 'command = ["/bin/false", '})], ids=["false"]
)
async def test_b09_start_prim_fails(pair: Pair) -> None:
    """B09: never Ready; the reason is shown; the module stops there."""
    await pair.start("node1")
    view = await pair.command("node1", "prim")
    assert view.state == "failed"
    assert "start_prim failed" in view.text
    await pair.roles(10, node1="STOP")
    side = await pair.side("node1")
    assert "start_prim failed" in side.why.text
    status, said = await pair.cli("node1", "log", "orders", "--script", "start_prim")
    assert status == 0, said


async def test_b22_a_process_in_the_folder_refuses_the_start(pair: Pair) -> None:
    """B22, C20, M6: process and file are named, nothing is mounted."""
    held = pair.folder("node1") / "held.img"
    held.write_bytes(b"x")
    descriptor = os.open(held, os.O_RDONLY)
    try:
        await pair.start("node1")
        view = await pair.command("node1", "prim")
    finally:
        os.close(descriptor)
    assert view.state == "failed", view
    assert "held.img" in view.text
    assert str(os.getpid()) in view.text
    await pair.roles(10, node1="STOP")
    assert not pair.mounted("node1")
    await pair.command("node1", "prim")
    await pair.roles(15, node1="ALONE")
    assert pair.mounted("node1")
    assert pair.one("node1", DAEMON)


async def test_b22_a_file_with_another_name_outside_refuses_the_start(pair: Pair) -> None:
    """M6: whoever writes by that name is not seen; removed, the module starts."""
    (pair.folder("node1") / "disk.img").write_bytes(b"x")
    outside = pair.directory / "linked.img"
    os.link(pair.folder("node1") / "disk.img", outside)
    await pair.start("node1")
    view = await pair.command("node1", "prim")
    assert view.state == "failed", view
    assert "disk.img has 2 names, the folder shows 1 of them" in view.text
    assert not pair.mounted("node1")
    outside.unlink()
    await pair.command("node1", "prim")
    await pair.roles(15, node1="ALONE")


async def test_c20_a_shell_in_the_mount_blocks_no_role_change(protected: Pair) -> None:
    """M3: role changes never wait for foreign holders; they get ENOTCONN, not the plain folder."""
    sleeper = await asyncio.create_subprocess_exec("sleep", "60", cwd=protected.folder("node1"))
    try:
        await protected.act("node1", "swap")
        await protected.roles(15, node1="SECOND", node2="PRIM")
        with pytest.raises(OSError, match="not connected"):
            os.listdir(f"/proc/{sleeper.pid}/cwd/")
    finally:
        sleeper.kill()
        await sleeper.wait()
    await protected.equal_and_nothing_lost()
