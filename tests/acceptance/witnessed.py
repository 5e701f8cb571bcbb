"""Two nodes in namespaces, and the lease witness of their cluster on a network of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hyperha.demo.cluster import NODES, until
from hyperha.demo.observer import Observer
from hyperha.domain import ResourceState
from tests.acceptance.pair import PairOptions
from tests.acceptance.test_network import NetworkPair
from tests.support import ROOT
from tests.support.network import Network

PORT = 9012
_START_S = 20.0


class WitnessedPair(NetworkPair):
    """Two nodes that ask a lease witness."""

    def __init__(
        self, directory: Path, observer: Observer, network: Network, options: PairOptions
    ) -> None:
        super().__init__(directory, observer, network, "hold", options)
        self._witness: subprocess.Popen[str] | None = None
        self._table = ""

    async def create(self, *, temporary: bool) -> None:
        """The witness first: the nodes' configuration names its fingerprint."""
        await self.start_witness()
        await super().create(temporary=temporary)
        for node in NODES:
            path = self.homes[node].cluster_file
            path.write_text(path.read_text(encoding="utf-8") + self._table, encoding="utf-8")

    async def start_witness(self) -> None:
        """Run it, as its operator does; what it says belongs into cluster.toml."""
        await asyncio.to_thread(self._run_witness)
        self._table = await asyncio.wait_for(asyncio.to_thread(self._said), _START_S)

    def _run_witness(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with (self.directory / "witness.log").open("a", encoding="utf-8") as log:
            self._witness = subprocess.Popen(
                ["ip", "netns", "exec", self.network.hub, sys.executable, "-m", "hyperha.cli.main",
                 "--home", str(self.directory / "witness"), "witness", "run",
                 "--listen", self.network.outside(), "--port", str(PORT)],
                stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
            )  # fmt: skip

    def _said(self) -> str:
        assert self._witness is not None
        assert self._witness.stdout is not None
        found: list[str] = []
        for line in self._witness.stdout:
            if found or line.startswith("[witness]"):
                found.append(line)
            if line.startswith("fingerprint"):
                return "\n" + "".join(found)
        raise AssertionError("the witness did not start: see witness.log")

    async def witness_is(self, node: str, wanted: ResourceState) -> None:
        """Wait until the node says so of its witness."""

        async def says() -> bool:
            view = (await self.cluster(node)).nodes[node].witness
            return view is not None and view.state is wanted

        await until(says, 10, f"{node} to call the witness {wanted}")

    def stop_witness(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, at once by default."""
        if self._witness is not None:
            self._witness.send_signal(number)
            self._witness.wait(10)
            assert self._witness.stdout is not None
            self._witness.stdout.close()
            self._witness = None


@asynccontextmanager
async def witnessed_pair(
    directory: Path, options: PairOptions | None = None
) -> AsyncIterator[WitnessedPair]:
    network = Network(1)
    try:
        observer = Observer(network.listening())
        pair = WitnessedPair(directory, observer, network, options or PairOptions())
        try:
            await pair.create(temporary=False)
            await pair.protected()
            yield pair
        except BaseException:
            for node in NODES:
                for line in pair.lines(node)[-60:]:
                    print(node, line)
            print((directory / "witness.log").read_text(encoding="utf-8")[-4000:])
            raise
        finally:
            for node in NODES:
                await asyncio.shield(pair.kill(node))
            pair.stop_witness()
            left = await asyncio.shield(pair.close())
            observer.close()
            left = [one for one in left if one.startswith("process")]
            assert not left, left
    finally:
        network.close()
