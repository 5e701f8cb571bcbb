"""Two real nodes on this machine for the demonstration: homes, daemons, and ways to kill them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import hyperha
from hyperha.api.wire import (
    ActionRequest,
    ClusterView,
    Expectation,
    ModuleNodeView,
    OperationView,
    VerbWord,
)
from hyperha.client.node_client import NodeClient, Target
from hyperha.config import Home
from hyperha.demo import janitor
from hyperha.errors import FailedError, HyperhaError, TimedOutError
from hyperha.security.initialise import ClusterPlan, LanPlan, init_cluster
from hyperha.spawn.run import Run, start

NODES = ("node1", "node2")
ADDRESSES = {"node1": "127.0.0.1", "node2": "127.0.0.2"}
MODULE = "orders"
PAUSE_MS = 2
START_LIMIT_S = 60.0
"""A daemon imports for seconds where the machine is busy; one that ends is told of at once."""


class DemoCluster:
    """`create` once, `start` and `kill` nodes at will, `close` at the end."""

    def __init__(self, directory: Path, ports: int, observer: str) -> None:
        self.directory = directory
        self.mark = secrets.token_hex(8)
        self._ports = ports
        self._observer = observer
        self.homes = {node: Home.at(directory / node) for node in NODES}
        self._runs: dict[str, Run] = {}
        self._janitor: Run | None = None
        self._lifeline = -1

    isolation = "run"
    reports_mib = 0
    """Size of a file that the application keeps changing, so that a resync can be watched."""
    resync_rate_mib_s = 0

    def lans(self) -> tuple[LanPlan, ...]:
        """The networks between the nodes."""
        return (LanPlan("loopback", ADDRESSES),)

    def launcher(self, node: str) -> list[str]:
        """What a node's daemon is started through."""
        del node
        return []

    def folder(self, node: str) -> Path:
        """The replicated folder of a node."""
        return self.directory / node / "data" / MODULE

    def target(self, node: str) -> Target:
        """Where a node's API is."""
        return Target(node, socket=str(self.homes[node].api_socket))

    async def create(self, *, temporary: bool) -> None:
        """Make configuration and folders; from here on a janitor watches over us."""
        self._check_ports()
        (self.directory / janitor.MARK_FILE).write_text(self.mark, encoding="ascii")
        plan = ClusterPlan(
            cluster="demo",
            nodes=NODES,
            lans=self.lans(),
            isolation=self.isolation,
            api_port=self._ports,
            peer_port=self._ports + 1,
        )
        init_cluster(self.homes, plan)
        application = self.directory / "orders.py"
        source = Path(hyperha.__file__).parent / "demo" / "orders.py"
        shutil.copyfile(source, application)
        for node in NODES:
            self.folder(node).mkdir(parents=True, exist_ok=True)
            path = self.homes[node].module_file(MODULE)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._module_file(node, application), encoding="utf-8")
        await self._watch(temporary)

    def _module_file(self, node: str, application: Path) -> str:
        command = [sys.executable, "-u", str(application), self._observer, str(PAUSE_MS)]
        command.append(str(self.reports_mib))
        listed = ", ".join(f'"{part}"' for part in command)
        return (
            "schema = 1\n"
            f'name = "{MODULE}"\nnumber = 1\nfolder = "{self.folder(node)}"\n'
            'driver = "process"\nboot = "on"\n\n'
            f"[driver_options]\ncommand = [{listed}]\n"
            'heartbeat = { unix = "heartbeat.sock" }\n\n'
            f'[[checker]]\nname = "{MODULE}"\nkind = "vm"\naction = "restart"\n'
            "interval_s = 2\ntimeout_s = 2\n\n[stop]\ntimeout_s = 20\n\n"
            f"[replication]\nresync_rate_mib_s = {self.resync_rate_mib_s}\n"
        )

    def _check_ports(self) -> None:
        for address in ADDRESSES.values():
            for port in (self._ports, self._ports + 1):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        probe.bind((address, port))
                    except OSError as problem:
                        raise FailedError(
                            f"port {port} on {address} is taken: {problem.strerror}",
                            "Is another demonstration running? `hyperha demo --ports 9310`.",
                        ) from problem

    async def _watch(self, temporary: bool) -> None:
        reading, self._lifeline = os.pipe()
        what = "remove" if temporary else "keep"
        self._janitor = await start(
            [
                sys.executable,
                "-m",
                "hyperha.demo.janitor",
                str(self.directory),
                self.mark,
                what,
                str(reading),
            ],
            name="demo janitor",
            cwd=str(Path(hyperha.__file__).parent.parent),
            capture=False,
            keep_tree=True,
            outlive=True,
            pass_fds=(reading,),
        )
        os.close(reading)

    async def start(self, node: str) -> None:
        """Start a node's daemon and wait until it answers."""
        home = self.homes[node]
        log = home.log / "daemon.out"
        log.parent.mkdir(parents=True, exist_ok=True)
        run = await start(
            [
                *self.launcher(node),
                "/bin/sh",
                "-c",
                f'exec "$0" -m hyperha.cli.main node run >>"{log}" 2>&1',
                sys.executable,
            ],
            name=f"{node} of the demo",
            cwd=str(Path(hyperha.__file__).parent.parent),
            env={
                "HYPERHA_HOME": str(self.directory / node),
                "HYPERHA_GUARDIAN_LINGER_MS": "3000",
                janitor.MARK: self.mark,
                "HYPERHA_DEMO_NODE": f"{self.mark}-{node}",
            },
            capture=False,
            keep_tree=True,
        )
        self._runs[node] = run

        async def answers() -> bool:
            if not run.running:
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise FailedError(f"{node} ended at once: {said[-1] if said else 'no message'}")
            try:
                async with NodeClient(self.target(node)) as client:
                    await client.node()
            except HyperhaError:
                return False
            return True

        await until(answers, START_LIMIT_S, f"{node} to answer")

    def daemon_pid(self, node: str) -> int:
        """The process id of a node's daemon."""
        return self._runs[node].pid

    async def keep_running(self, pause_s: float) -> None:
        """What a service manager does: start a daemon again that has ended by itself."""
        while True:
            await asyncio.sleep(0.5)
            for node, run in list(self._runs.items()):
                if run.running:
                    continue
                await asyncio.sleep(pause_s)
                await run.let_go()
                with contextlib.suppress(HyperhaError):
                    await self.start(node)

    async def kill(self, node: str) -> None:
        """Every process of the node at once, as if the machine had gone (but for its disks)."""
        wanted = f"HYPERHA_DEMO_NODE={self.mark}-{node}".encode()
        for _ in range(100):
            found = [
                process for process in janitor.marked(self.mark) if wanted in _environment(process)
            ]
            if not found:
                break
            janitor.end(found)
            await asyncio.sleep(0.01)
        else:
            raise FailedError(f"processes of {node} do not end")
        run = self._runs.pop(node, None)
        if run is not None:
            await run.let_go()

    async def stop(self, node: str) -> None:
        """SIGTERM to the daemon: its modules stop cleanly first."""
        run = self._runs.pop(node, None)
        if run is None:
            return
        run.terminate()
        await until(_async(lambda: not run.running), 60.0, f"{node} to end")
        await run.let_go()

    async def close(self) -> list[str]:
        """End everything; what could not be ended is told."""
        for node in list(self._runs):
            try:
                await self.stop(node)
            except TimedOutError:
                await self.kill(node)
        try:
            await until(_async(lambda: not janitor.marked(self.mark)), 15.0, "the guardians to end")
        except TimedOutError:
            pass  # told below, and the janitor ends them
        left = [f"process {one}" for one in janitor.marked(self.mark)]
        left += [f"mount {one}" for one in janitor.mounts_below(str(self.directory))]
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._janitor is not None:
            keeper = self._janitor
            await until(_async(lambda: not keeper.running), 20.0, "the janitor to end")
            await keeper.let_go()
        return left

    # --- what the drill asks -----------------------------------------------------------------

    async def cluster(self, node: str) -> ClusterView:
        """The cluster as a node sees it."""
        async with NodeClient(self.target(node)) as client:
            return await client.cluster()

    async def side(self, node: str) -> ModuleNodeView:
        """A node's own side of the module."""
        async with NodeClient(self.target(node)) as client:
            return (await client.node()).modules[MODULE].side

    async def act(self, node: str, verb: VerbWord, limit_s: float = 60.0) -> OperationView:
        """A command, and its end."""
        async with NodeClient(self.target(node)) as client:
            request = ActionRequest(
                verb=verb,
                request_id=secrets.token_hex(8),
                expect=Expectation(),
                reason="demonstration",
            )
            accepted = await client.act(MODULE, request)
            view: OperationView | None = None

            async def ended() -> bool:
                nonlocal view
                view = await client.operation(accepted.operation)
                return view.state != "running"

            await until(ended, limit_s, f"{verb} on {node}")
        assert view is not None
        if view.state == "failed":
            raise FailedError(f"{verb} on {node}: {view.text}")
        return view

    async def roles(self, limit_s: float, **wanted: str) -> None:
        """Wait until nodes are Ready (or stopped) in these roles."""

        async def reached() -> bool:
            for node, role in wanted.items():
                side = await self.side(node)
                settled = side.readiness == "Ready" or role in ("STOP", "WAIT")
                if side.role != role or not settled:
                    return False
            return True

        what = " and ".join(f"{node} {role}" for node, role in wanted.items())
        try:
            await until(reached, limit_s, what)
        except TimedOutError as problem:
            states = []
            for node in wanted:
                side = await self.side(node)
                states.append(f"{node} {side.role} {side.readiness} ({side.why.text})")
            raise TimedOutError(f"{problem.text}; {', '.join(states)}") from None


def _environment(process: int) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _async(check: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def run() -> bool:
        return check()

    return run


async def until(check: Callable[[], Awaitable[bool]], limit_s: float, what: str) -> None:
    """Wait until the check holds. Raises TimedOutError naming what was waited for."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while not await check():
        if asyncio.get_running_loop().time() > deadline:
            raise TimedOutError(f"waited {limit_s:.0f} s for {what}")
        await asyncio.sleep(0.05)
