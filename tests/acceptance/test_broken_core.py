"""A core that contradicts itself, or whose task ends: the module is made safe, the peer goes on."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyperha.demo.observer import Observer
from tests.acceptance.pair import DAEMON, Pair, PairOptions, free_ports

pytestmark = pytest.mark.anyio

# Read by every Python of the node when it starts; only the daemon is sent the signals.
_SABOTAGE = """
import gc, signal
from dataclasses import replace


def tasks():
    from hyperha.daemon.module_task import ModuleTask

    return [one for one in gc.get_objects() if isinstance(one, ModuleTask)]


def contradict(*_):
    from hyperha.core.actions import Timer
    from hyperha.core.events import TimerFired

    for task in tasks():
        lineage = replace(task.state.lineage, intent_primary=False)
        task.state = replace(task.state, lineage=lineage)
        task.post(TimerFired(Timer.REJOIN))


def confuse(*_):
    for task in tasks():
        task.post("no event at all")


signal.signal(signal.SIGUSR1, contradict)
signal.signal(signal.SIGUSR2, confuse)
"""


class SabotagedPair(Pair):
    """Daemons that can be made to contradict themselves."""

    def launcher(self, node: str) -> list[str]:
        """Through an environment that lets Python find the sabotage."""
        place = self.directory / "sabotage"
        place.mkdir(exist_ok=True)
        (place / "sitecustomize.py").write_text(_SABOTAGE, encoding="ascii")
        return ["env", f"PYTHONPATH={place}"]


@pytest.fixture
async def sabotaged(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Pair]:
    observer = Observer()
    try:
        pair = SabotagedPair(tmp_path, free_ports(), observer, PairOptions())
        await pair.create(temporary=False)
        try:
            await pair.protected()
            yield pair
        finally:
            left = await asyncio.shield(pair.close())
            assert not left, left
    finally:
        observer.close()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
async def test_a_core_that_cannot_go_on_is_made_safe(sabotaged: Pair, number: signal.Signals):
    """L5', L8: fenced, killed and certified by the guardian as for a dead daemon; nothing lost."""
    begins = asyncio.ensure_future(sabotaged.start_prim_begins("node2"))
    await asyncio.sleep(0.2)
    broke = sabotaged.signal("node1", DAEMON, number)
    began = await asyncio.wait_for(begins, 10)
    print(f"contradiction to start_prim: {began - broke:.2f} s")
    await sabotaged.roles(10, node2="ALONE")
    await sabotaged.more_orders()

    async def told() -> bool:
        side = await sabotaged.side("node1")
        return side.role.value == "STOP" and "made safe" in side.why.text

    await sabotaged.eventually(told, 10, "node1 to say what became of it")
    code, text = await sabotaged.cli("node1", "start", "orders")
    assert code != 0
    assert "made safe" in text
    assert "Restart the daemon" in text
    assert "split brain" not in "".join(sabotaged.lines("node2"))
    begun = time.monotonic()
    await sabotaged.stop("node1")
    assert time.monotonic() - begun < 20
    await sabotaged.start("node1")
    await sabotaged.roles(40, node1="SECOND", node2="PRIM")
    await sabotaged.equal_and_nothing_lost()
