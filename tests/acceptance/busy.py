"""Two real nodes under a mixed load, and whatever can go wrong with either, healed again.

Each node is a network namespace and a control group of its own. What the application was told is
durable is kept outside; after every round the copies are compared and it is looked for in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from hyperha.demo.cluster import NODES, until
from hyperha.demo.observer import Observer
from hyperha.errors import HyperhaError
from hyperha.spawn.tree import RunPlace
from tests.acceptance.copies import standing_still
from tests.acceptance.pair import APPLICATION, DAEMON, ENGINE, GUARDIAN, OTHER
from tests.acceptance.test_network import NetworkPair
from tests.support import ROOT, busy_guest
from tests.support.network import Network

REDUNDANT_S = 75.0
LANS = 2
REPLICATION_PORT = 9011


class Journals:
    """What the application was told is durable, of each journal the last record."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self._socket.settimeout(0.2)
        self._closed = False
        self.last = dict.fromkeys(range(busy_guest.JOURNALS), 0)
        self._thread = threading.Thread(target=self._listen, name="journals", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where the application tells it."""
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def _listen(self) -> None:
        while not self._closed:
            with contextlib.suppress(TimeoutError):
                news = json.loads(self._socket.recv(4096))
                journal, number = news["journal"], news["number"]
                self.last[journal] = max(number, self.last[journal])

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._thread.join()
        self._socket.close()

    def check(self, folder: Path, node: str, last: dict[int, int]) -> None:
        """Every record up to these is in the folder."""
        for journal, number in last.items():
            if not number:
                continue
            found = (folder / f"journal-{journal}").read_bytes()
            size = busy_guest.RECORD.size
            for one in range(1, number + 1):
                there = found[(one - 1) * size : one * size]
                assert there == busy_guest.record(one), (
                    f"{node} lost record {one} of journal {journal}, acknowledged up to {number}"
                )


class BusyPair(NetworkPair):
    """The pair of a row."""

    def __init__(
        self,
        directory: Path,
        observer: Observer,
        journals: Journals,
        network: Network,
        groups: RunPlace,
        isolation: str,
    ) -> None:
        super().__init__(directory, observer, network, isolation)
        self.journals = journals
        self._groups = groups
        self.story: list[str] = []
        """What was done in this round, for a failure's text."""

    def _module_file(self, node: str, application: Path) -> str:
        text = super()._module_file(node, application)
        program = ROOT / "tests" / "support" / "busy_guest.py"
        for old, new in (
            (f'"{application}"', f'"{program}", "{application}", "{self.journals.address}"'),
            # It stands still while the copies are compared.
            ("heartbeat = ", "# heartbeat = "),
            ("[stop]", "[restart_budget]\ncount = 1000\n\n[stop]"),
        ):
            assert old in text, old
            text = text.replace(old, new)
        return text

    def launcher(self, node: str) -> list[str]:
        """Into the node's control group and its network."""
        entering = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        return ["/bin/sh", "-c", entering, self._groups.make(node), *super().launcher(node)]

    def say(self, text: str) -> None:
        """A line of the story."""
        self.story.append(f"{time.monotonic():.2f} {text}")

    def no_faults(self) -> None:
        """No number was given out twice, and no two applications were acknowledged.

        One that was frozen may tell of the one order whose acknowledgement had reached its node
        before: the other node has it, which is looked at like at every other one (L1, F2).
        """
        twice = [one for one in self.observer.faults if "acknowledged twice" in one]
        assert not twice, twice[:3]
        running, gone, late = 0, set(), Counter[int]()
        for heard in list(self.observer._heard):
            if heard.pid in gone:
                late[heard.pid] += 1
            elif heard.pid != running:
                gone.add(running)
                running = heard.pid
        assert all(count == 1 for count in late.values()), f"two applications at once: {late}"

    # --- faults -----------------------------------------------------------------------------

    def _freeze(self, node: str, word: str) -> None:
        Path(self._groups.make(node), "cgroup.freeze").write_text(word)

    async def kill_part(self, dice: random.Random) -> None:
        """SIGKILL to a node, or to one kind of process of it."""
        kind = dice.choice(("", DAEMON, ENGINE, GUARDIAN, APPLICATION))
        node = dice.choice([one for one in NODES if self.processes(one, kind)] or NODES)
        self.say(f"kill -9 of {kind or 'everything'} on {node}")
        if not kind:
            await self.kill(node)
            return
        for process in self.processes(node, kind):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    async def freeze(self, dice: random.Random) -> None:
        """Everything on a node stands still for a while."""
        node = dice.choice(NODES)
        pause_s = dice.choice((0.1, 0.4, 0.8, 1.5, 3.0))
        self.say(f"freeze of {node} for {pause_s} s")
        self._freeze(node, "1")
        try:
            await asyncio.sleep(pause_s)
        finally:
            self._freeze(node, "0")
        self.say(f"thaw of {node}")

    async def cut_cables(self, dice: random.Random) -> None:
        """One network, or all of them, for a while."""
        lans = dice.choice(((0,), (1,), (0, 1), (0, 1)))
        node = dice.choice(NODES)
        pause_s = dice.choice((0.1, 0.5, 1.0, 3.0))
        self.say(f"cut of LANs {lans} at {node} for {pause_s} s")
        for lan in lans:
            self.network.cut(lan, node)
        await asyncio.sleep(pause_s)
        for lan in lans:
            self.network.mend(lan, node)
        self.say("mended")

    async def reset_connections(self, dice: random.Random) -> None:
        """The replication connections of a network are reset for a while (T4)."""
        lans = dice.choice(((0,), (1,), (0, 1)))
        node = dice.choice(NODES)
        pause_s = dice.choice((0.05, 0.2, 0.5, 2.0))
        self.say(f"resets on LANs {lans} at {node} for {pause_s} s")
        tables = [self.network.reset(lan, node, REPLICATION_PORT) for lan in lans]
        await asyncio.sleep(pause_s)
        for table in tables:
            self.network.unfilter(node, table)
        self.say("no resets any more")

    async def command_something(self, dice: random.Random) -> None:
        """What operators do: swap, stop of the module or of a whole node."""
        what = dice.choice(("swap", "stop", "node"))
        primary = [one for one in NODES if self.processes(one, APPLICATION)]
        node = dice.choice(primary if primary and what == "swap" else NODES)
        self.say(f"order: {what} on {node}")
        try:
            if what == "node":
                await self.stop(node)
            else:
                view = await self.command(node, what)
                self.say(f"{what} on {node}: {view.state} {view.text}")
        except (HyperhaError, OSError) as problem:
            self.say(f"{what} on {node}: {problem}")

    async def two_at_once(self, dice: random.Random) -> None:
        """Two of any kind within a second, of either side."""
        kinds: list[Callable[[random.Random], Awaitable[None]]] = [
            self.kill_part,
            self.freeze,
            self.cut_cables,
            self.reset_connections,
            self.command_something,
        ]

        async def later(fault: Callable[[random.Random], Awaitable[None]], wait_s: float) -> None:
            await asyncio.sleep(wait_s)
            await fault(dice)

        first, second = dice.choice(kinds), dice.choice(kinds)
        await asyncio.gather(later(first, 0), later(second, dice.random()))

    # --- afterwards -------------------------------------------------------------------------

    async def heal(self) -> None:
        """Cables, power, daemons and modules: all as it should be."""
        for lan in range(LANS):
            for node in NODES:
                self.network.mend(lan, node)
        for node in NODES:
            self._freeze(node, "0")
            run = self._runs.get(node)
            if run is not None and not self.processes(node, DAEMON):
                await self.daemon_gone(node)
            if node not in self._runs:
                self.say(f"start of {node}")
                await self.start(node)
        for node in NODES:
            if (await self.side(node)).role == "STOP":
                view = await self.command(node, "start")
                self.say(f"start on {node}: {view.state} {view.text}")

    async def whole_again(self) -> str:
        """Wait until one node is PRIM and the other one SECOND; the primary."""
        primary = ""

        async def reached() -> bool:
            nonlocal primary
            try:
                sides = {node: await self.side(node) for node in NODES}
            except HyperhaError:
                return False
            primary = next((n for n, side in sides.items() if side.role == "PRIM"), "")
            ready = all(side.readiness == "Ready" for side in sides.values())
            return ready and bool(primary) and sides[OTHER[primary]].role == "SECOND"

        await until(reached, REDUNDANT_S, "PRIM and SECOND")
        self.say(f"{primary} PRIM, {OTHER[primary]} SECOND")
        return primary

    async def check(self, primary: str) -> None:
        """The load stands still: the copies are equal, and hold whatever was acknowledged."""
        self.no_faults()
        async with standing_still(self, primary):
            last = dict(self.journals.last)
            for node in NODES:
                self.journals.check(self.folder(node), node, last)
                await asyncio.to_thread(self.check_folder, node)


@contextlib.asynccontextmanager
async def busy_pair(directory: Path, isolation: str) -> AsyncIterator[BusyPair]:
    """The pair, protected; nothing of it is left at the end."""
    network = Network(LANS)
    groups = RunPlace(f"hyperha-faults-{os.getpid()}")
    assert not groups.limit, groups.limit
    try:
        observer, journals = Observer(network.listening()), Journals(network.listening())
        try:
            pair = BusyPair(directory, observer, journals, network, groups, isolation)
            try:
                await pair.create(temporary=False)
                await pair.protected()
                yield pair
            except BaseException:
                print("the story:", *pair.story, sep="\n  ")
                for node in NODES:
                    for line in pair.lines(node)[-80:]:
                        print(node, line)
                raise
            finally:
                for node in NODES:
                    with contextlib.suppress(OSError):
                        pair._freeze(node, "0")
                    await asyncio.shield(pair.kill(node))
                left = await asyncio.shield(pair.close())
                left = [one for one in left if one.startswith("process")]
                assert not left, left
        finally:
            observer.close()
            journals.close()
    finally:
        network.close()
        for _ in range(50):
            if groups.close():
                break
            await asyncio.sleep(0.1)
