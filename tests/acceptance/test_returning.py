"""What travels when a node returns: what was written meanwhile, however large the rest (F1, Z1).

HYPERHA_RETURN_SET_MIB is the size of the sparse file set, HYPERHA_RETURN_MIB how much of it is
written while one node is alone. 20480 and 1024, with HYPERHA_POWER_DISK_MIB=8192, is the full row.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.powered import PoweredPair, powered_pair
from tests.support import ROOT

SET_MIB = int(os.environ.get("HYPERHA_RETURN_SET_MIB", "480"))
WRITE_MIB = int(os.environ.get("HYPERHA_RETURN_MIB", "24"))
LOG_MIB = 1024
"""Zones that the intent log holds."""
QUEUE_MIB = 64
"""What the killed node may have had in memory only."""
OWN_MIB = 64
"""The order service's reports, which are written again and again, and its database."""
WRITE_S = 600.0
_TOLD = re.compile(r"copied everything: (\d+) bytes compared, (\d+) sent")

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(3600)]
Record = Callable[[str, object], None]


async def begin_writing(pair: PoweredPair, node: str, seed: int) -> asyncio.subprocess.Process:
    """A guest in the node's control group, so that it ends with the node."""
    folder = pair.folder(node) / "images"
    return await asyncio.create_subprocess_exec(
        *pair.launcher(node), sys.executable, "-m", "tests.support.image_writer",
        str(folder), str(SET_MIB), str(WRITE_MIB), str(seed),
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip


async def written(writer: asyncio.subprocess.Process) -> None:
    told, _ = await asyncio.wait_for(writer.communicate(), WRITE_S)
    assert told.decode() == f"{WRITE_MIB} MiB written\n"


def travelled_mib(pair: PoweredPair, node: str) -> tuple[float, float]:
    """MiB compared and sent by the node's last resync."""
    found = [match for line in pair.lines(node) if (match := _TOLD.search(line))]
    compared, sent = map(int, found[-1].groups())
    return compared / (1 << 20), sent / (1 << 20)


async def found_equal(pair: PoweredPair, node: str) -> None:
    """By the product itself, which passes over holes and lets the guest write."""
    view = await pair.command(node, "verify")
    assert view.state == "done", view.text
    print(view.text)


async def test_a36_a37_a_return_moves_what_was_written(
    tmp_path: Path, record_property: Record
) -> None:
    async with powered_pair(tmp_path) as pair:
        await pair.protected()
        await written(await begin_writing(pair, "node1", 1))

        await pair.kill("node2")
        await pair.roles(15, node1="ALONE")
        await written(await begin_writing(pair, "node1", 2))
        await pair.start("node2")
        await pair.roles(WRITE_S, node1="PRIM", node2="SECOND")
        compared, sent = travelled_mib(pair, "node1")
        print(
            f"{WRITE_MIB} MiB written alone in {SET_MIB} MiB: on return {compared:.0f} MiB "
            f"compared, {sent:.0f} MiB sent"
        )
        record_property("alone_sent_mib", round(sent))
        # Compared is also what the log held of the time before: nobody knows whether it arrived.
        assert WRITE_MIB <= compared <= WRITE_MIB + min(WRITE_MIB, LOG_MIB) + OWN_MIB
        assert sent <= WRITE_MIB + QUEUE_MIB + 2 * OWN_MIB
        await found_equal(pair, "node1")

        writer = await begin_writing(pair, "node1", 3)
        await asyncio.sleep(1.0)
        await pair.cut("all", 50, "node1")
        await writer.wait()
        await pair.roles(15, node2="ALONE")
        await pair.start("node1")
        await pair.roles(WRITE_S, node2="PRIM", node1="SECOND")
        compared, sent = travelled_mib(pair, "node2")
        print(
            f"power cut of the primary under load: on return {compared:.0f} MiB compared, "
            f"{sent:.0f} MiB sent"
        )
        record_property("cut_sent_mib", round(sent))
        assert compared <= 2 * min(WRITE_MIB, LOG_MIB) + OWN_MIB
        await found_equal(pair, "node2")
