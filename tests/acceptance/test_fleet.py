"""As many modules as a cluster may have, half of them on each node; one node is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperha.api.wire import ActionRequest, ClusterView
from hyperha.client.node_client import NodeClient
from hyperha.core.fleet import AT_ONCE
from hyperha.demo.cluster import MODULE, NODES, until
from tests.acceptance.pair import Pair, PairOptions, running_pair

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(1200)]
MODULES = 32
_QUIET = {"heartbeat_ms": 500, "suspect_ms": 2500, "stall_limit_ms": 5000,
          "takeover_wait_ms": 6000, "pause_after_ms": 8000}  # fmt: skip
"""Sixty processes begin on two cores: a node that is busy must not look like one that is gone."""


class Fleet(Pair):
    """The order service, and others that only live."""

    async def create(self, *, temporary: bool) -> None:
        """One file more for each."""
        await super().create(temporary=temporary)
        for node in NODES:
            for number in range(2, MODULES + 1):
                folder = self.directory / node / "data" / f"vm{number}"
                folder.mkdir(parents=True)
                self.homes[node].module_file(f"vm{number}").write_text(
                    f'schema = 1\nname = "vm{number}"\nnumber = {number}\nfolder = "{folder}"\n'
                    f'driver = "process"\nboot = "on"\npriority = {_priority(number)}\n\n'
                    '[driver_options]\ncommand = ["/bin/sh", "-c", "date > began; sleep 1000000"]\n'
                    "\n[stop]\ntimeout_s = 20\n",
                    encoding="utf-8",
                )

    def names(self, node: str = "") -> list[str]:
        """Those whose VM begins on a node: odd numbers on node1."""
        every = [MODULE, *(f"vm{number}" for number in range(2, MODULES + 1))]
        if not node:
            return every
        return every[0::2] if node == "node1" else every[1::2]

    async def all_are(self, limit_s: float, wanted: Callable[[ClusterView], bool]) -> None:
        """Wait until the state that node2 tells is so."""

        async def so() -> bool:
            return wanted(await self.cluster("node2"))

        await until(so, limit_s, "all modules")

    async def tell(self, node: str, module: str, verb: str) -> None:
        """A command, without waiting for its end."""
        request = ActionRequest.model_validate(
            {"verb": verb, "request_id": f"{verb}-{module}-{time.time_ns()}", "reason": "test"}
        )
        async with NodeClient(self.target(node)) as client:
            await client.act(module, request)


def _priority(number: int) -> int:
    return 10 if number % 5 == 0 else 100


def _redundant(view: ClusterView) -> bool:
    sides = [side for module in view.modules.values() for side in module.nodes.values()]
    roles = [{s.role.value for s in module.nodes.values()} for module in view.modules.values()]
    return (
        len(roles) == MODULES
        and all(one == {"PRIM", "SECOND"} for one in roles)
        and all(side.readiness == "Ready" for side in sides)
    )


def _all_on_node2(view: ClusterView) -> bool:
    sides = [module.nodes["node2"] for module in view.modules.values()]
    return all(s.role.runs_vm and s.readiness == "Ready" for s in sides)


async def test_b21_thirty_two_modules_and_one_node_lost(tmp_path: Path) -> None:
    """All run on the other node: low priority numbers first, four starts at a time; the node goes
    on answering. Then all is redundant again, and `drain` moves half of them back (C15)."""
    async with running_pair(tmp_path, PairOptions(timing=_QUIET), Fleet) as pair:
        for node in NODES:
            await pair.start(node)
        for node in NODES:
            for name in pair.names(node):
                await pair.tell(node, name, "prim")
        await pair.all_are(400, _redundant)
        lost = pair.names("node1")
        slowest = [0.0]
        asking = asyncio.ensure_future(_asking(pair, slowest))
        at = time.monotonic()
        await pair.kill("node1")
        await pair.all_are(200, _all_on_node2)
        asking.cancel()
        print(
            f"{len(lost)} taken over in {time.monotonic() - at:.1f} s, answers {slowest[0]:.2f} s"
        )
        began, most = await _starts(pair, lost)
        assert most <= AT_ONCE, f"{most} starts at once"
        first = [name for name in began if name.startswith("vm") and int(name[2:]) % 5 == 0]
        assert began[: len(first)] == first or set(began[: len(first)]) == set(first), began
        assert slowest[0] < 2.0
        await pair.start("node1")
        await pair.all_are(400, _redundant)
        status, said = await pair.cli("node2", "node", "drain", "--reason", "test", limit_s=300)
        assert status == 0, said
        await pair.all_are(300, lambda view: not any(
            module.nodes["node2"].role.runs_vm for module in view.modules.values()))  # fmt: skip
        await asyncio.sleep(5)
        status, said = await pair.cli("node2", "node", "resume", limit_s=120)
        assert status == 0, said
        await asyncio.sleep(5)
        view = await pair.cluster("node2")
        assert not any(module.nodes["node2"].role.runs_vm for module in view.modules.values())
        assert not pair.observer.faults


async def _asking(pair: Pair, slowest: list[float]) -> None:
    """What a console does."""
    async with NodeClient(pair.target("node2")) as client:
        while True:
            at = time.monotonic()
            await client.cluster()
            slowest[0] = max(slowest[0], time.monotonic() - at)
            await asyncio.sleep(0.2)


async def _starts(pair: Pair, names: list[str]) -> tuple[list[str], int]:
    """The modules in the order in which start_prim began on node2, and how many ran at once."""
    events: list[tuple[str, int, str]] = []
    async with NodeClient(pair.target("node2")) as client:
        for name in names:
            runs = [r for r in await client.scripts(name) if r.script == "start_prim"]
            page = await client.log(name)
            for line in page.lines:
                if line.source == "start_prim" and line.text == "begins":
                    events.append((line.at, 1, name))
                elif line.source == "start_prim" and "after" in line.text:
                    events.append((line.at, -1, name))
            assert runs, name
    events.sort()
    running = most = 0
    for _, change, _ in events:
        running += change
        most = max(most, running)
    return [name for _, change, name in events if change > 0], most
