"""The daemon's keeper of a replication process, with a real one (M3, M4)."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import psutil
import pytest

from hyperha.core import actions
from hyperha.core.events import EngineDone, EngineLost, Event
from hyperha.daemon.engine_host import Callbacks, EngineHost
from hyperha.daemon.fencing import layers, peel
from hyperha.demo.cluster import until
from hyperha.domain import Marker
from hyperha.replication.control import EngineConfig
from tests.support.engine_process import PROGRAM

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.fuse]

MARKER = Marker("rid", "node1", "ab" * 16, 1)


def nothing(_: object) -> None:
    """Whoever else is told."""


class Keeper:
    """A host, and what it tells the core."""

    def __init__(self, base: Path) -> None:
        self.folder = base / "folder"
        for one in (self.folder, base / "run"):
            one.mkdir()
        config = EngineConfig(
            "cluster", "VM1", 1, "node1", "node2", str(self.folder), str(base / "run"), ()
        )
        self.told: list[Event] = []
        told = Callbacks(self.told.append, nothing, nothing, nothing, nothing)
        self.host = EngineHost(config, None, told)

    def processes(self) -> list[psutil.Process]:
        found = []
        for one in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # It ended meanwhile.
                if PROGRAM in one.cmdline():
                    found.append(one)
        return found

    async def heard(self, kind: type[Event], count: int = 1) -> list[Event]:
        found: list[Event] = []

        async def enough() -> bool:
            found[:] = [one for one in self.told if isinstance(one, kind)]
            return len(found) >= count

        await until(enough, 15, f"{count} {kind.__name__}")
        return found


@pytest.fixture
async def keeper(tmp_path: Path):
    one = Keeper(tmp_path)
    try:
        yield one
    finally:
        await one.host.close()
        peel(str(one.folder))


async def test_a_death_while_uncovering_leaves_the_folder_plain(keeper: Keeper) -> None:
    """No successor covers it again, and the core is not told that the marker was written (R12)."""
    keeper.host.perform(actions.Attach(1, (), MARKER, False))
    (attached,) = await keeper.heard(EngineDone)
    assert attached.ok, attached.text
    (keeper.folder / "file").exists()
    (process,) = keeper.processes()
    process.suspend()
    keeper.host.perform(actions.Detach(2, MARKER))
    await asyncio.sleep(0.1)
    process.kill()
    (lost,) = await keeper.heard(EngineLost)
    assert not lost.recovered
    *_, uncovered = await keeper.heard(EngineDone, 2)
    assert keeper.told.index(lost) < keeper.told.index(uncovered)
    assert uncovered == EngineDone(2, True, "")
    assert not layers(str(keeper.folder))
    assert not keeper.processes()


async def test_an_order_that_fails_unforeseen_is_answered_and_the_next_one_done(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core waits for the end of every operation, and for the orders behind it."""

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such thing")

    with monkeypatch.context() as patched:
        patched.setattr("hyperha.daemon.engine_host.start", broken)
        keeper.host.perform(actions.Attach(1, (), MARKER, False))
        (failed,) = await keeper.heard(EngineDone)
    assert not failed.ok
    assert "no such thing" in failed.text
    keeper.host.perform(actions.Attach(2, (), MARKER, False))
    *_, attached = await keeper.heard(EngineDone, 2)
    assert attached.ok, attached.text


async def test_a_succession_that_fails_unforeseen_is_a_death_like_any_other(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M4: the core hears of it, with the reason."""

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such thing")

    keeper.host.perform(actions.Attach(1, (), MARKER, False))
    await keeper.heard(EngineDone)
    monkeypatch.setattr("hyperha.daemon.engine_host.start", broken)
    (process,) = keeper.processes()
    process.kill()
    (lost,) = await keeper.heard(EngineLost)
    assert not lost.recovered
    assert "no such thing" in lost.text
