"""Two real daemons whose homes lie on disks that can lose their power.

`PoweredPair` refuses to look at a node without power: a process that touches a disk which answers
nothing waits for ever, and nobody can end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from hyperha.client.node_client import Target
from hyperha.demo.cluster import NODES
from hyperha.demo.observer import Observer
from tests.acceptance.pair import Pair, PairOptions, free_ports
from tests.support.power import PoweredDisks

COPY_LIMIT_S = 20.0


class PoweredPair(Pair):
    """A pair of which each node is a control group and a disk."""

    reports_mib = 16
    """Changed all over without a flush: a database alone flushes after every few writes, always in
    the same zones of the intent log (Z2)."""

    def __init__(self, directory: Path, observer: Observer, disks: PoweredDisks) -> None:
        super().__init__(directory, free_ports(), observer, PairOptions())
        self._disks = disks

    def _lit(self, node: str) -> None:
        assert node not in self._disks.dark, f"{node} has no power, nothing of it may be asked for"

    def target(self, node: str) -> Target:
        """Where a node's API is; the node must have power."""
        self._lit(node)
        return super().target(node)

    def lines(self, node: str) -> list[str]:
        """Everything in a node's journal; the node must have power."""
        self._lit(node)
        return super().lines(node)

    def check_folder(self, node: str) -> None:
        """Every acknowledged order is there; the node must have power."""
        self._lit(node)
        super().check_folder(node)

    def launcher(self, node: str) -> list[str]:
        """Every process of the node is in its control group from the beginning."""
        entering = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        return ["/bin/sh", "-c", entering, self._disks.groups[node]]

    async def kill(self, node: str) -> None:
        """Every process of the node at once."""
        await asyncio.to_thread(self._disks.kill, node)
        await self._forget(node)

    async def _forget(self, node: str) -> None:
        run = self._runs.pop(node, None)
        if run is not None:
            await run.let_go()

    async def cut(self, seed: str, writes: int, *nodes: str) -> float:
        """The power of these nodes fails at one moment; it is there again when this returns.

        The moment of the cut.
        """
        at, told = await asyncio.to_thread(self._disks.cut, seed, writes, nodes)
        print(f"power cut of {' and '.join(nodes)} after {writes} writes, seed {seed}: {told}")
        for node in nodes:
            await self._forget(node)
            await asyncio.to_thread(self._disks.on, node)
        return at

    def keep_evidence(self) -> None:
        """After a failure: copies of the homes, and the end of the journals on the output.

        The copying is a process of its own, which may be left behind, never waited for.
        """
        for node in NODES:
            if node in self._disks.dark:
                self._disks.kill(node)
                self._disks.on(node)
            kept = self.directory.parent / "evidence" / node
            kept.mkdir(parents=True, exist_ok=True)
            copying = subprocess.Popen(["cp", "-ax", f"{self.directory / node}/.", str(kept)])
            copying.wait(COPY_LIMIT_S)
            journal = kept / self.homes[node].journal.relative_to(self.directory / node)
            for path in sorted(journal.glob("*")):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
                print(node, path.name, *lines[-60:], sep="\n")


@contextlib.asynccontextmanager
async def powered_pair(directory: Path) -> AsyncIterator[PoweredPair]:
    """A pair whose homes lie on disks that can be cut; nothing of it is left at the end."""
    homes = {node: directory / "cluster" / node for node in NODES}
    disks = await asyncio.to_thread(PoweredDisks, directory, homes)
    try:
        observer = Observer()
        pair = PoweredPair(directory / "cluster", observer, disks)
        try:
            await pair.create(temporary=False)
            for node in NODES:
                done = await asyncio.create_subprocess_exec("sync", "-f", str(homes[node]))
                assert await done.wait() == 0
            yield pair
        except BaseException:
            with contextlib.suppress(AssertionError, OSError, subprocess.TimeoutExpired):
                pair.keep_evidence()
            raise
        finally:
            for node in NODES:
                await asyncio.shield(pair.kill(node))
            await asyncio.shield(pair.close())
            observer.close()
    finally:
        await asyncio.shield(asyncio.to_thread(disks.close))
