"""Nodes and processes that stand still for a while, and go on as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.acceptance.pair import (
    APPLICATION,
    DAEMON,
    ENGINE,
    FAST_TIMING,
    Pair,
)

pytestmark = pytest.mark.anyio


async def test_c02_primary_frozen_and_thawed(protected: Pair) -> None:
    """C02: the peer takes over; thawed, the former primary acknowledges nothing and follows."""
    application = protected.one("node1", APPLICATION)
    with protected.frozen("node1"):
        at = time.monotonic()
        await protected.roles(10, node2="ALONE")
        await protected.more_orders()
    await protected.roles(40, node1="SECOND", node2="PRIM")
    assert application not in protected.processes("node1", APPLICATION)
    # It may tell of the one order that was acknowledged before; node2 has that, too (checked next).
    assert len(protected.observer.after(at + 1.0, "node1")) <= 1
    await protected.equal_and_nothing_lost()


async def test_c03_secondary_frozen(protected: Pair) -> None:
    """C03: writes stall at most stall_limit + 1 s, then ALONE; later SECOND again."""
    with protected.frozen("node2"):
        at = time.monotonic()
        await protected.roles(10, node1="ALONE")
        await protected.more_orders()
        pause = protected.observer.longest_pause_s(at)
        print(f"longest pause {pause:.2f} s")
        assert pause < FAST_TIMING["stall_limit_ms"] / 1000 + 1.0
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_short_freeze_of_the_secondary_changes_nothing(protected: Pair) -> None:
    """L3': a pause below suspect costs no generation."""
    before = (await protected.side("node1")).generation
    with protected.frozen("node2"):
        await asyncio.sleep(0.15)
    await protected.more_orders()
    assert (await protected.side("node1")).generation == before
    await protected.roles(5, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_replication_process_of_the_secondary_frozen(protected: Pair) -> None:
    """Its daemon ends it and agrees to be outdated (D9): no takeover, writes go on."""
    frozen = protected.signal("node2", ENGINE, signal.SIGSTOP)
    try:
        await protected.roles(10, node1="ALONE")
        await protected.more_orders()
        pause = protected.observer.longest_pause_s(frozen)
        print(f"longest pause {pause:.2f} s")
        assert pause < 4.5, pause
    finally:
        for process in protected.processes("node2", ENGINE):
            os.kill(process, signal.SIGCONT)
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


async def test_daemon_of_the_primary_frozen(protected: Pair) -> None:
    """The stream counts as a LAN (P8): a daemon that hangs moves nothing."""
    application = protected.one("node1", APPLICATION)
    protected.signal("node1", DAEMON, signal.SIGSTOP)
    try:
        await protected.more_orders(limit_s=10)
        await asyncio.sleep(1.5)
        await protected.more_orders(limit_s=10)
    finally:
        protected.signal("node1", DAEMON, signal.SIGCONT)
    await protected.roles(40, node1="PRIM", node2="SECOND")
    assert protected.one("node1", APPLICATION) == application
    await protected.equal_and_nothing_lost()


async def test_replication_process_of_the_primary_frozen(protected: Pair) -> None:
    """M4: one that hangs is ended like one that died: the application goes on."""
    application = protected.one("node1", APPLICATION)
    frozen = protected.signal("node1", ENGINE, signal.SIGSTOP)
    await protected.more_orders(limit_s=15)
    print(f"longest pause {protected.observer.longest_pause_s(frozen):.2f} s")
    assert protected.one("node1", APPLICATION) == application
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()


def _immutable(change: str, files: list[Path]) -> None:
    """A disk that takes no writes, also not from root."""
    subprocess.run(["chattr", change, *map(str, files)], check=True)


async def test_a_follower_whose_state_disk_fails_does_not_hold_the_primary(protected: Pair) -> None:
    """K1, D9: it cannot write that its copy is out, and its word is not waited for."""
    state = sorted(protected.homes["node2"].module_state("orders").glob("*"))
    assert state
    await asyncio.to_thread(_immutable, "+i", state)
    try:
        await protected.cli("node2", "checker", "orders", "suspend", "--reason", "test")
        await protected.roles(15, node1="ALONE")
        await protected.more_orders()
    finally:
        await asyncio.to_thread(_immutable, "-i", state)
    await protected.log_has("node2", "the state cannot be stored")
    assert len([one for one in protected.lines("node2") if "cannot be stored" in one]) <= 4
    done = await protected.command("node2", "start")
    assert done.state == "done", done.text
    await protected.roles(40, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()
