"""Two nodes in namespaces, and the third party of their cluster on a network of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from hyperha.demo.cluster import NODES, until
from hyperha.demo.observer import Observer
from hyperha.domain import ResourceState
from tests.acceptance.pair import PairOptions
from tests.acceptance.test_network import NetworkPair
from tests.support import ROOT
from tests.support.network import Network

PORT = 9012
_START_S = 20.0


class GuardedPair(NetworkPair):
    """Two nodes whose cluster.toml says with a table more who may go on alone."""

    def __init__(
        self, directory: Path, observer: Observer, network: Network, options: PairOptions
    ) -> None:
        super().__init__(directory, observer, network, "hold", options)
        self.table = ""

    async def prepare(self) -> None:
        """Before the nodes are made: start what they ask, and set `table`."""
        raise NotImplementedError

    async def create(self, *, temporary: bool) -> None:
        """The third party first."""
        await self.prepare()
        await super().create(temporary=temporary)
        for node in NODES:
            path = self.homes[node].cluster_file
            path.write_text(path.read_text(encoding="utf-8") + self.table, encoding="utf-8")

    def finish(self) -> None:
        """Leave nothing of it."""


class PingedPair(GuardedPair):
    """Two nodes that ping a witness: the observer's address, which answers whoever reaches it."""

    async def prepare(self) -> None:
        """Nothing to start: a kernel answers."""
        self.table = f'\n[witness]\nkind = "ping"\naddresses = ["{self.network.outside()}"]\n'

    def isolate(self, node: str) -> None:
        """It reaches nobody any more."""
        for lan in range(self.network.lans + 1):
            self.network.cut(lan, node)

    def reconnect(self, node: str) -> None:
        """All its cables are back."""
        for lan in range(self.network.lans + 1):
            self.network.mend(lan, node)


_SWITCH = """#!/bin/sh
cd "$(dirname "$0")" || exit 1
[ -e broken ] && { echo "the power switch does not answer"; exit 1; }
touch "asked-$1"
while [ ! -e "off-$1" ]; do sleep 0.05; done
echo "$1 is off"
"""


class FencedPair(GuardedPair):
    """Two nodes with a power switch, which the row plays: it is asked, and says when it is done."""

    async def prepare(self) -> None:
        """The operator's command."""
        self._switch = self.directory / "switch"
        self._switch.mkdir()
        command = self._switch / "off"
        command.write_text(_SWITCH, encoding="utf-8")
        command.chmod(0o755)
        lines = [f'{node} = ["{command}", "{node}"]' for node in NODES]
        self.table = "\n".join(("", "[fence]", *lines, ""))

    def breaks(self) -> None:
        """It fails from here on."""
        (self._switch / "broken").touch()

    async def asked_for(self, node: str, limit_s: float = 10) -> None:
        """Wait until somebody wants the node to be off."""

        async def asked() -> bool:
            return (self._switch / f"asked-{node}").exists()

        await until(asked, limit_s, f"somebody to switch {node} off")

    async def off(self, node: str) -> None:
        """It is off, and said to be."""
        await self.kill(node)
        (self._switch / f"off-{node}").touch()


class WitnessedPair(GuardedPair):
    """Two nodes that ask a lease witness."""

    def __init__(
        self, directory: Path, observer: Observer, network: Network, options: PairOptions
    ) -> None:
        super().__init__(directory, observer, network, options)
        self._witness: subprocess.Popen[str] | None = None

    async def prepare(self) -> None:
        """The nodes' configuration names its fingerprint."""
        await self.start_witness()

    def finish(self) -> None:
        """It ends with its cluster."""
        self.stop_witness()

    async def start_witness(self) -> None:
        """Run it, as its operator does; what it says belongs into cluster.toml."""
        await asyncio.to_thread(self._run_witness)
        self.table = await asyncio.wait_for(asyncio.to_thread(self._said), _START_S)

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


def _said_in(directory: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8")[-4000:] for log in directory.glob("*.log"))


Kind = TypeVar("Kind", bound=GuardedPair)


@asynccontextmanager
async def guarded_pair(
    directory: Path, kind: type[Kind], options: PairOptions | None = None
) -> AsyncIterator[Kind]:
    """Such a pair, redundant and under load; nothing is left of it."""
    network = Network(1)
    try:
        observer = Observer(network.listening())
        pair = kind(directory, observer, network, options or PairOptions())
        try:
            await pair.create(temporary=False)
            await pair.protected()
            yield pair
        except BaseException:
            for node in NODES:
                for line in pair.lines(node)[-60:]:
                    print(node, line)
            print(_said_in(directory))
            raise
        finally:
            for node in NODES:
                await asyncio.shield(pair.kill(node))
            pair.finish()
            left = await asyncio.shield(pair.close())
            observer.close()
            left = [one for one in left if one.startswith("process")]
            assert not left, left
    finally:
        network.close()
