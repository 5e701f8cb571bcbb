"""Processes that die, one kind at a time, under load: nothing is lost, redundancy returns."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from tests.acceptance.pair import APPLICATION, DAEMON, ENGINE, GUARDIAN, OTHER, Pair

pytestmark = pytest.mark.anyio


async def test_c01_primary_node_killed(protected: Pair) -> None:
    """A17, C01: every process of the primary at once; started again within 4 s elsewhere."""
    begins = asyncio.ensure_future(protected.start_prim_begins("node2"))
    await asyncio.sleep(0.2)
    killed = time.monotonic()
    await protected.kill("node1")
    began = await asyncio.wait_for(begins, 10)
    assert began - killed < 4.0, began - killed
    await protected.roles(10, node2="ALONE")
    await protected.more_orders()
    await protected.start("node1")
    await protected.roles(40, node1="SECOND", node2="PRIM")
    await protected.equal_and_nothing_lost()


async def test_secondary_node_killed(protected: Pair) -> None:
    """C01 on the other side: the primary goes on and makes it equal again."""
    await protected.kill("node2")
    await protected.roles(10, node1="ALONE")
    await protected.more_orders()
    await protected.start("node2")
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_c05_daemon_of_primary_killed(protected: Pair) -> None:
    """C05: guardian, certificate, start_prim on the other node within 1.5 s."""
    begins = asyncio.ensure_future(protected.start_prim_begins("node2"))
    await asyncio.sleep(0.2)
    killed = protected.signal("node1", DAEMON, signal.SIGKILL)
    began = await asyncio.wait_for(begins, 10)
    print(f"kill to start_prim: {began - killed:.2f} s")
    assert began - killed < 1.5, began - killed
    await protected.dead_daemon_replaced()


async def test_c05_daemon_of_primary_killed_while_writes_are_frozen(protected: Pair) -> None:
    """C05: also with a held write the VM is really ended (L5'), and the peer starts it."""
    with protected.frozen("node2"):
        await asyncio.sleep(0.15)
        protected.signal("node1", DAEMON, signal.SIGKILL)
        await protected.daemon_gone("node1")

        async def ended() -> bool:
            return not protected.processes("node1", APPLICATION)

        await protected.eventually(ended, 5, "the application to be ended")
    await protected.roles(15, node2="ALONE")
    await protected.more_orders()
    await protected.start("node1")
    await protected.roles(40, node1="SECOND", node2="PRIM")
    await protected.equal_and_nothing_lost()


async def test_daemon_of_secondary_killed(protected: Pair) -> None:
    """The primary continues alone; the restarted daemon follows again."""
    protected.signal("node2", DAEMON, signal.SIGKILL)
    await protected.daemon_gone("node2")
    await protected.roles(10, node1="ALONE")
    await protected.more_orders()
    await protected.start("node2")
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_daemon_of_primary_restarted_at_once(protected: Pair) -> None:
    """A16: a supervisor starts the daemon again before the peer has acted: never two."""
    protected.signal("node1", DAEMON, signal.SIGKILL)
    await protected.daemon_gone("node1")
    await protected.start("node1")
    await protected.roles(40, node1="SECOND", node2="PRIM")
    await protected.more_orders()
    await protected.equal_and_nothing_lost()


async def test_application_killed(protected: Pair) -> None:
    """The VM's end is known at once: same-node restart, counted in the budget."""
    killed = protected.signal("node1", APPLICATION, signal.SIGKILL)

    async def again() -> bool:
        return protected.observer.first_after(killed + 0.05, "node1") is not None

    await protected.eventually(again, 10, "an order after the restart")
    first = protected.observer.first_after(killed + 0.05, "node1")
    assert first is not None
    assert first.at_s - killed < 4.0
    assert await protected.restarts_used("node1") == 1
    await protected.roles(10, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_application_killed_while_writes_are_frozen(protected: Pair) -> None:
    """SIGKILL alone does not end a process with a held write (L5'): still exactly one runs."""
    with protected.frozen("node2"):
        await asyncio.sleep(0.15)
        protected.signal("node1", APPLICATION, signal.SIGKILL)
        await asyncio.sleep(0.3)
    await protected.more_orders()
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_c10_a31_replication_of_primary_killed(protected: Pair) -> None:
    """C10: a successor adopts the mount: the application goes on, the budget is untouched (M4)."""
    application = protected.one("node1", APPLICATION)
    killed = protected.signal("node1", ENGINE, signal.SIGKILL)
    await protected.more_orders()
    assert protected.one("node1", APPLICATION) == application
    pause = protected.observer.longest_pause_s(killed)
    print(f"longest pause {pause:.2f} s")
    assert pause < 2.0, pause
    await protected.roles(40, node1="PRIM", node2="SECOND")
    assert await protected.restarts_used("node1") == 0
    await protected.equal_and_nothing_lost()


async def test_replication_of_primary_killed_while_writes_are_frozen(protected: Pair) -> None:
    """M4, N1: parked writes are sent again by the kernel and answered by the successor."""
    application = protected.one("node1", APPLICATION)
    with protected.frozen("node2"):
        await asyncio.sleep(0.15)
        protected.signal("node1", ENGINE, signal.SIGKILL)
        await asyncio.sleep(0.3)
    await protected.more_orders()
    assert protected.one("node1", APPLICATION) == application
    await protected.roles(40, node1="PRIM", node2="SECOND")
    assert await protected.restarts_used("node1") == 0
    await protected.equal_and_nothing_lost()


async def test_replication_of_secondary_killed(protected: Pair) -> None:
    """T4, Z1: the primary is not disturbed for long, the secondary comes back."""
    application = protected.one("node1", APPLICATION)
    killed = protected.signal("node2", ENGINE, signal.SIGKILL)
    await protected.more_orders()
    pause = protected.observer.longest_pause_s(killed)
    print(f"longest pause {pause:.2f} s")
    assert protected.one("node1", APPLICATION) == application
    await protected.roles(40, node1="PRIM", node2="SECOND")
    assert await protected.restarts_used("node1") == 0
    await protected.equal_and_nothing_lost()


async def test_guardian_of_primary_killed(protected: Pair) -> None:
    """The daemon starts another one and arms it: the death of the daemon is still survived."""
    first = protected.one("node1", GUARDIAN)
    protected.signal("node1", GUARDIAN, signal.SIGKILL)

    async def another() -> bool:
        found = protected.processes("node1", GUARDIAN)
        return bool(found) and first not in found

    await protected.eventually(another, 10, "another guardian")
    await protected.more_orders()
    await asyncio.sleep(0.5)
    protected.signal("node1", DAEMON, signal.SIGKILL)
    await protected.daemon_gone("node1")
    await protected.roles(10, node2="ALONE")
    await protected.more_orders()
    protected.no_faults()


async def test_c10_replication_of_primary_killed_on_an_old_kernel(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C10 without FUSE_NOTIFY_RESEND: the VM is restarted by rule, the budget is untouched."""
    monkeypatch.setenv("HYPERHA_KERNEL_FEATURES_OFF", "HAS_RESEND")
    await pair.protected()
    application = pair.one("node1", APPLICATION)
    pair.signal("node1", ENGINE, signal.SIGKILL)
    await pair.more_orders()
    assert application not in pair.processes("node1", APPLICATION)
    assert any("no successor" in line and "6.9" in line for line in pair.lines("node1"))
    primary = await pair.primary()
    await pair.roles(40, **{primary: "PRIM", OTHER[primary]: "SECOND"})
    assert await pair.restarts_used("node1") == 0
    await pair.equal_and_nothing_lost()


async def test_replication_of_the_lone_primary_killed(protected: Pair) -> None:
    """M4 while ALONE: the successor answers again, the map of changes is kept."""
    await protected.kill("node2")
    await protected.roles(10, node1="ALONE")
    application = protected.one("node1", APPLICATION)
    protected.signal("node1", ENGINE, signal.SIGKILL)
    await protected.more_orders()
    assert protected.one("node1", APPLICATION) == application
    await protected.start("node2")
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_replication_of_primary_killed_again_and_again(protected: Pair) -> None:
    """Eight deaths, each soon after a succession: the same application, nothing lost; also not what
    it wrote to open files that have no name (C10)."""
    application = protected.one("node1", APPLICATION)
    folder = protected.folder("node1")
    (folder / "temporary").touch()
    nameless = [
        os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600),
        os.open(folder / "temporary", os.O_RDWR),
    ]
    (folder / "temporary").unlink()
    for number in range(8):
        for descriptor in nameless:
            os.pwrite(descriptor, b"%d" % number, number)
        protected.signal("node1", ENGINE, signal.SIGKILL)

        async def served(wanted: int = number + 1) -> bool:
            lines = protected.lines("node1")
            return sum("a new replication process serves" in line for line in lines) >= wanted

        await protected.eventually(served, 10, "a successor")
        await asyncio.sleep(0.02 * number)
    for descriptor in nameless:
        assert os.pread(descriptor, 99, 0) == b"01234567"
        assert os.fstat(descriptor).st_nlink == 0
        os.close(descriptor)
    await protected.more_orders()
    assert protected.one("node1", APPLICATION) == application
    await protected.roles(40, node1="PRIM", node2="SECOND")
    assert await protected.restarts_used("node1") == 0
    await protected.equal_and_nothing_lost()
