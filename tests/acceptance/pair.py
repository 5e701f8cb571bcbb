"""Two real daemons on loopback with the order service under load, for the acceptance rows.

Builds on the demonstration's cluster; adds a fast timing profile, faults by kind of process, and
the checks that every row ends with. Leaves nothing: `running_pair` kills what still runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hyperha.api.wire import ActionRequest, LogPage, OperationView
from hyperha.client.node_client import NodeClient
from hyperha.demo import janitor
from hyperha.demo.cluster import ADDRESSES, MODULE, NODES, DemoCluster, until
from hyperha.demo.observer import Observer

DAEMON = "hyperha.cli.main\0node\0run"
ENGINE = "hyperha.replication.process"
GUARDIAN = "hyperha.daemon.guardian"
APPLICATION = "orders.py"
OTHER = {"node1": "node2", "node2": "node1"}
_BROKEN_RECORDS = ("WRONG_VERSION_NUMBER", "BAD_RECORD", "DECRYPTION_FAILED", "UNEXPECTED_RECORD")
"""What OpenSSL calls a TLS stream into which something else was mixed."""
_SETTLE_LOOKS = 25
"""At two copies, 0.4 s apart, until they are equal."""
FAST_TIMING = {
    "heartbeat_ms": 100,
    "suspect_ms": 300,
    "stall_limit_ms": 600,
    "takeover_wait_ms": 1000,
    "pause_after_ms": 5000,
}


def free_ports() -> int:
    """A number such that it and the next one are free on both nodes' addresses."""
    for _ in range(200):
        base = random.randrange(12000, 31000, 4)
        if all(_is_free(address, base + i) for address in ADDRESSES.values() for i in (0, 1)):
            return base
    raise AssertionError("no free ports found")


def _is_free(address: str, port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


@dataclass(slots=True)
class PairOptions:
    """What a row wants to be different."""

    timing: dict[str, int] | None = field(default_factory=lambda: dict(FAST_TIMING))
    module: dict[str, str] = field(default_factory=dict)
    """Replacements in the text of the module's file."""
    environment: dict[str, str] = field(default_factory=dict)


class Pair(DemoCluster):
    """The cluster of one row."""

    def __init__(self, directory: Path, ports: int, observer: Observer, options: PairOptions):
        super().__init__(directory, ports, observer.address)
        self.observer = observer
        self._options = options

    def _module_file(self, node: str, application: Path) -> str:
        text = super()._module_file(node, application)
        for old, new in self._options.module.items():
            assert old in text, f"{old!r} is not in the module file"
            text = text.replace(old, new)
        return text

    async def create(self, *, temporary: bool) -> None:
        """Configuration with the row's timing."""
        await super().create(temporary=temporary)
        for node in NODES:
            path = self.homes[node].cluster_file
            text = path.read_text(encoding="utf-8")
            for key, value in (self._options.timing or {}).items():
                head, _, rest = text.partition(f"\n{key} = ")
                assert rest, key
                text = f"{head}\n{key} = {value}\n{rest.partition(chr(10))[2]}"
            path.write_text(text, encoding="utf-8")

    # --- processes -----------------------------------------------------------------------------

    def processes(self, node: str, kind: str = "") -> list[int]:
        """The living processes of a node, of one kind (DAEMON, ENGINE, ...) or all."""
        wanted = f"HYPERHA_DEMO_NODE={self.mark}-{node}".encode()
        found = []
        for process in janitor.marked(self.mark):
            try:
                environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if wanted in environment and kind in command:
                found.append(process)
        return sorted(found)

    def one(self, node: str, kind: str) -> int:
        """The only process of a kind."""
        found = self.processes(node, kind)
        assert len(found) == 1, f"{kind!r} on {node}: {found}"
        return found[0]

    def mounted(self, node: str) -> bool:
        """Whether the node's folder is covered."""
        return str(self.folder(node)) in janitor.mounts_below(str(self.directory))

    def signal(self, node: str, kind: str, number: signal.Signals) -> float:
        """A signal to every process of a kind on a node; the moment it was sent."""
        found = self.processes(node, kind)
        assert found, f"no {kind!r} on {node}"
        at = time.monotonic()
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        return at

    @contextlib.contextmanager
    def frozen(self, node: str) -> Iterator[None]:
        """Every process of the node stopped, as if its host were frozen."""
        self.signal(node, "", signal.SIGSTOP)
        try:
            yield
        finally:
            for process in self.processes(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    async def daemon_gone(self, node: str) -> None:
        """Wait for the end of a daemon that was killed, and forget it."""
        run = self._runs.pop(node)

        async def ended() -> bool:
            return not run.running

        await until(ended, 10, f"the daemon of {node} to be gone")
        await run.let_go()

    # --- waiting -------------------------------------------------------------------------------

    async def protected(self, primary: str = "node1") -> None:
        """Both nodes up, the VM on `primary`, the copies equal, orders flowing."""
        await self.redundant(primary)
        await self.more_orders(30)

    async def redundant(self, primary: str = "node1") -> None:
        """Both nodes up, the VM on `primary`, the copies equal."""
        await asyncio.gather(*(self.start(node) for node in NODES))
        await self.act(primary, "prim")
        await self.roles(30, **{primary: "PRIM", OTHER[primary]: "SECOND"})

    async def redundant_again(self, limit_s: float = 30) -> None:
        """Wait until one of them runs the VM, whichever it is, and the other one is equal."""

        async def so() -> bool:
            sides = [await self.side(node) for node in NODES]
            return {side.role.value for side in sides} == {"PRIM", "SECOND"} and all(
                side.readiness == "Ready" for side in sides
            )

        await until(so, limit_s, "PRIM and SECOND")

    async def more_orders(self, count: int = 20, limit_s: float = 20) -> None:
        """Wait until the observer has heard of more."""
        wanted = self.observer.count + count

        async def enough() -> bool:
            return self.observer.count >= wanted

        await until(enough, limit_s, f"{count} more orders")

    async def eventually(
        self, check: Callable[[], Awaitable[bool]], limit_s: float, what: str
    ) -> None:
        """Wait until a check holds."""
        await until(check, limit_s, what)

    async def log_has(self, node: str, text: str, limit_s: float = 10) -> str:
        """Wait for a line in the module's log on a node; the line."""
        found = ""

        async def has() -> bool:
            nonlocal found
            for line in self.lines(node):
                if text in line:
                    found = line
                    return True
            return False

        await until(has, limit_s, f"{text!r} in the log of {node}")
        return found

    def lines(self, node: str) -> list[str]:
        """Everything in a node's journal, raw."""
        found: list[str] = []
        for path in sorted(self.homes[node].journal.glob("*")):
            found += path.read_text(encoding="utf-8", errors="replace").splitlines()
        return found

    async def start_prim_begins(self, node: str) -> float:
        """The moment of the next start_prim on a node; ask before the fault."""
        async with NodeClient(self.target(node)) as client:
            async for line in client.stream():
                log = line.log
                if log is not None and log.source == "start_prim" and log.text == "begins":
                    return time.monotonic()
        raise AssertionError("the stream ended")

    async def log(self, node: str) -> LogPage:
        """The newest lines of the module's log."""
        async with NodeClient(self.target(node)) as client:
            return await client.log(MODULE)

    async def begin(self, node: str, verb: str, **options: object) -> str:
        """A command with options, as soon as the node has taken it: its operation."""
        said = {"verb": verb, "options": options, "reason": "test"}
        request = ActionRequest.model_validate({**said, "request_id": os.urandom(8).hex()})
        async with NodeClient(self.target(node)) as client:
            return (await client.act(MODULE, request)).operation

    async def ended(self, node: str, operation: str) -> OperationView:
        """The end of an operation, whatever it is."""
        async with NodeClient(self.target(node)) as client:
            while True:
                view = await client.operation(operation)
                if view.state != "running":
                    return view
                await asyncio.sleep(0.05)

    async def command(self, node: str, verb: str, **options: object) -> OperationView:
        """A command with options, and its end, whatever it is."""
        return await self.ended(node, await self.begin(node, verb, **options))

    async def cli(self, node: str, *arguments: str, limit_s: float = 60) -> tuple[int, str]:
        """A command as an operator gives it: exit status, and what was said."""
        return await asyncio.to_thread(run_cli, self.directory / node, arguments, limit_s)

    async def lost(self, node: str) -> None:
        """SIGKILL to a node; until the other one has noticed, it takes it for what it was."""
        await self.kill(node)

        async def noticed() -> bool:
            async with NodeClient(self.target(OTHER[node])) as client:
                return not (await client.cluster()).nodes[node].reachable

        await until(noticed, 10, f"{OTHER[node]} to miss {node}")

    # --- what every row ends with --------------------------------------------------------------

    def no_faults(self) -> None:
        """The observer has seen neither two applications nor a number given out twice."""
        assert not self.observer.faults, self.observer.faults[:3]
        # A stream that breaks goes on over a new connection (T4), so nobody would notice (T5).
        lines = [line for node in NODES for line in self.lines(node)]
        broken = [line for line in lines if any(word in line for word in _BROKEN_RECORDS)]
        assert not broken, broken[:3]

    async def restarts_used(self, node: str) -> int:
        """Of the restart budget."""
        restarts = (await self.side(node)).restarts
        assert restarts is not None
        return restarts.used

    async def primary(self) -> str:
        """The node whose application runs."""
        for node in NODES:
            if (await self.side(node)).role.runs_vm:
                return node
        raise AssertionError("no primary")

    async def nothing_lost(self) -> None:
        """Both stopped, secondary first: every acknowledged order in both, the copies equal."""
        self.no_faults()
        primary = await self.primary()
        await self.act(OTHER[primary], "stop")
        await self.act(primary, "stop")
        self.check_folder(primary)

    async def equal_and_nothing_lost(self) -> None:
        """As `nothing_lost`, of a pair whose copies are equal: the secondary has it all, too."""
        self.no_faults()
        primary = await self.primary()
        other = OTHER[primary]
        await self.roles(40, **{primary: "PRIM", other: "SECOND"})
        for process in self.processes(primary, APPLICATION):
            os.kill(process, signal.SIGSTOP)  # No orders between the two stops.
        try:
            # The times of what was written last come with the next second (Z9).
            for _ in range(_SETTLE_LOOKS):
                await asyncio.sleep(0.4)
                if not await self._unequal(primary):
                    break
            await self.act(other, "stop")
            self.check_folder(other)
            unequal = await self._unequal(primary)
            assert not unequal, f"the copies differ:\n{unequal[:2000]}"
        finally:
            for process in self.processes(primary, APPLICATION):
                os.kill(process, signal.SIGCONT)
        await self.act(primary, "stop")
        self.check_folder(primary)

    async def _unequal(self, primary: str) -> str:
        first, second = self.folder(primary), self.folder(OTHER[primary])
        return await asyncio.to_thread(difference, first, second)

    async def dead_daemon_replaced(self) -> None:
        """node1's daemon was killed: its run is ended, node2 has it all, node1 follows again."""
        await self.daemon_gone("node1")
        await self.roles(10, node2="ALONE")
        assert not self.processes("node1", APPLICATION)
        await self.start("node1")
        await self.roles(40, node1="SECOND", node2="PRIM")
        await self.equal_and_nothing_lost()

    def check_folder(self, node: str) -> None:
        """The database in a node's folder has every acknowledged order and is intact."""
        found, state = read_orders(self.folder(node) / "orders.db")
        assert state == "ok", f"integrity_check on {node}: {state}"
        missing = sorted(self.observer.numbers() - found)
        assert not missing, f"{node} lost {len(missing)} acknowledged orders: {missing[:5]}"


def read_orders(path: Path) -> tuple[set[int], str]:
    """Numbers in a database and its integrity; a copy is read, the folder stays as it is."""
    place = path.parent.parent / f"checked-{os.urandom(4).hex()}"
    place.mkdir()
    try:
        subprocess.run(
            f"cp {shlex.quote(str(path))}* {shlex.quote(str(place))}/", shell=True, check=True
        )
        database = sqlite3.connect(place / path.name)
        try:
            state = str(database.execute("PRAGMA integrity_check").fetchone()[0])
            return {int(row[0]) for row in database.execute("SELECT number FROM orders")}, state
        finally:
            database.close()
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=True)


def run_cli(home: Path, arguments: tuple[str, ...], limit_s: float) -> tuple[int, str]:
    """`hyperha --home HOME ARGUMENTS`, without a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "hyperha.cli.main", "--home", str(home), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=limit_s,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def difference(first: Path, second: Path) -> str:
    """What rsync would change to make the second equal to the first; empty when they are equal.

    What went away while rsync looked, or could not be read, is a difference too. SQLite's shared
    memory is left out: it is a mapping that nobody has asked to write yet.
    """
    done = subprocess.run(
        ["rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes",
         "--exclude=/.hyperha", "--exclude=*-shm", "--filter=-x trusted.hyperha*",
         f"{first}/", f"{second}/"],
        capture_output=True, text=True, check=False, errors="replace",
    )  # fmt: skip
    found = done.stdout + done.stderr
    assert found or done.returncode == 0, f"rsync ended with {done.returncode} and said nothing"
    return found


Made = TypeVar("Made", bound=Pair)


@contextlib.asynccontextmanager
async def running_pair(
    directory: Path, options: PairOptions | None = None, kind: type[Made] = Pair
) -> AsyncIterator[Made]:
    """Two configured nodes, not started; everything is ended and unmounted at the end."""
    observer = Observer()
    pair = kind(directory, free_ports(), observer, options or PairOptions())
    try:
        await pair.create(temporary=False)
        yield pair
    except BaseException:
        for node in NODES:
            for line in pair.lines(node)[-60:]:
                print(node, line)
        raise
    finally:
        for node in NODES:
            await asyncio.shield(pair.kill(node))
        left = await asyncio.shield(pair.close())
        observer.close()
        left = [one for one in left if one.startswith("process")]
        assert not left, left
