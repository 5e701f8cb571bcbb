"""Disk images in a folder: what travels when the other node is back (B20, B12)."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess

import pytest

from hyperha.client.node_client import NodeClient
from hyperha.demo.cluster import MODULE
from tests.acceptance.pair import Pair
from tests.support.machine import lacking

pytestmark = pytest.mark.anyio


def _command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


async def _quiet(pair: Pair, name: str) -> None:
    """Wait until both logs have forgotten a file: what was written is on both disks (Z2)."""
    async with NodeClient(pair.target("node1")) as client:

        async def forgotten() -> bool:
            copies = (await client.diff(MODULE)).copies.values()
            return not any(name in one.path for c in copies for one in c.candidates.listed)

        await pair.eventually(forgotten, 60, f"{name} to leave the logs")


async def test_b20_only_the_overlays_zones_travel(protected: Pair) -> None:
    """B20: a base image and a differencing one; what was written into the second travels."""
    if shutil.which("qemu-img") is None or shutil.which("qemu-io") is None:
        lacking("qemu-img and qemu-io (qemu-utils)")
    folder = protected.folder("node1")
    base, overlay = folder / "base.raw", folder / "overlay.qcow2"
    copy = ["dd", "if=/dev/urandom", f"of={base}", "bs=1M", "count=64", "conv=fsync"]
    await asyncio.to_thread(_command, *copy)
    create = ["create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(overlay)]
    await asyncio.to_thread(_command, "qemu-img", *create)
    await _quiet(protected, "base.raw")
    await protected.act("node2", "stop")
    await protected.roles(15, node1="ALONE")
    writes = ["-c", "write -P 7 5M 1M", "-c", "write -P 9 40M 64k", "-c", "flush"]
    await asyncio.to_thread(_command, "qemu-io", *writes, str(overlay))
    status, said = await protected.cli("node1", "plan", MODULE)
    assert status == 0, said
    assert "R7" in said or "R6" in said, said
    assert "overlay" in (await protected.cli("node1", "diff", MODULE))[1]
    await protected.act("node2", "start")
    await protected.roles(60, node1="PRIM", node2="SECOND")
    lines = [one for one in protected.lines("node1") if "has copied everything" in one]
    found = re.search(r"(\d+) bytes compared, (\d+) sent", lines[-1])
    assert found is not None, lines[-1]
    compared, sent = map(int, found.groups())
    # The overlay has some MiB, the orders have a few zones; the base has 64.
    assert compared <= 24 << 20, lines[-1]
    assert sent <= 12 << 20, lines[-1]
    await protected.equal_and_nothing_lost()
