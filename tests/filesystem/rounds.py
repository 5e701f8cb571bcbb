"""Rounds of a program under load: its node is killed, the survivor's copy checked, and again.

HYPERHA_PROGRAM_ROUNDS says how often; the nodes change places after each.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import Callable

from tests.acceptance.pair import OTHER, Pair
from tests.filesystem.loads import Load

ROUNDS = int(os.environ.get("HYPERHA_PROGRAM_ROUNDS", "1"))
LOAD_S = (1.0, 3.0)
LIMIT_S = 120 + 60 * ROUNDS


async def rounds(pair: Pair, load: Load, record_property: Callable[[str, object], None]) -> None:
    """Load on the primary, its node killed, the survivor's copy checked; and the other way."""
    await pair.redundant()
    primary = "node1"
    await asyncio.to_thread(load.prepare, pair.folder(primary))
    for number in range(ROUNDS):
        running = await asyncio.to_thread(load.start, pair.folder(primary))
        try:
            await asyncio.sleep(random.uniform(*LOAD_S))
            await asyncio.to_thread(load.wait_for_progress, 20.0)
            await pair.kill(primary)
        finally:
            end(running)
        survivor = OTHER[primary]
        await pair.roles(15, **{survivor: "ALONE"})
        kept = await asyncio.to_thread(load.check, pair.folder(survivor))
        assert kept > 0, "nothing was acknowledged: the round shows nothing"
        record_property("acknowledged", kept)
        print(f"round {number}: {kept} acknowledged on {primary}, all on {survivor}")
        if number + 1 < ROUNDS:
            await pair.start(primary)
            await pair.roles(60, **{primary: "SECOND", survivor: "PRIM"})
            primary = survivor


def end(process: subprocess.Popen[bytes]) -> None:
    """A load and everything it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(30)
