"""The daemon of one node: builds everything, starts it in order, ends it in order.

The only module that knows everybody. It decides nothing about high availability.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Literal

from hyperha.api.app import build_app
from hyperha.api.server import ApiServer, local_socket, make_server, serve, tcp_socket
from hyperha.api.service import Caller
from hyperha.api.wire import CheckerChange, NodeReport
from hyperha.config import Home, load_all
from hyperha.core.events import CommandGiven, LeaseExpired, Verb
from hyperha.core.explain import readiness
from hyperha.core.fleet import Others
from hyperha.core.state import Phase
from hyperha.daemon.fleet import Fleet
from hyperha.daemon.guardian_client import GuardianClient, GuardianSettings, Notice
from hyperha.daemon.listener import ReplicationListener
from hyperha.daemon.module_host import ModuleHost, Surroundings
from hyperha.daemon.peer_api import PeerApi
from hyperha.daemon.peer_link import PeerLink
from hyperha.daemon.recorder import Recorder
from hyperha.daemon.service import Service
from hyperha.daemon.witnesses import Witnesses
from hyperha.domain import Readiness, Role
from hyperha.durable import DaemonLock
from hyperha.errors import ConfigError, DeniedError, FailedError, HyperhaError
from hyperha.heartbeat.links import HeartbeatLinks, LanPath, LinkSettings
from hyperha.logbook.audit import Audit
from hyperha.logbook.journal import Logbook
from hyperha.replication.preamble import Preamble
from hyperha.security.authority import holder_of
from hyperha.security.cluster_key import load_cluster_key
from hyperha.security.identity import local_identity
from hyperha.security.tls import api_server_context, node_client_context
from hyperha.spawn import looking
from hyperha.spawn.tree import RunPlace
from hyperha.threads import in_own_thread, prepare

_log = logging.getLogger(__name__)
POLL_S = 2.0
LOOK_AHEAD_S = 15.0
SHUTDOWN_MARGIN_S = 30.0
CERTIFICATE_AHEAD_S = 1.0
GUARDIAN_RETRY_S = 0.5


class NodeDaemon:
    """One node. `run` returns when it has been asked to end and everything is down."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.configuration = load_all(home)
        self.boot_id = secrets.token_hex(8)
        self.modules: dict[str, ModuleHost] = {}
        self.fleet = Fleet(self._others)
        self.limits: list[str] = []
        self.peer_report: NodeReport | None = None
        self._all_idle = asyncio.Event()
        cluster, peer = self.configuration.cluster, self.configuration.peer
        addresses = frozenset(lan.addresses[peer] for lan in cluster.lan)
        self.peer_link = PeerLink(self._changed, self._say_distrust, addresses)
        self._told_distrust = ""
        self._told_apart = False
        self._stop = asyncio.Event()
        self._peer_changed = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._servers: list[ApiServer] = []
        self._guarding: asyncio.Task[None] | None = None
        self._started = False

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Start, serve until told to stop, stop cleanly. Raises HyperhaError when it cannot."""
        if sys.platform == "win32":
            raise DeniedError("this release runs nodes on Linux only")
        self.home.create()
        with DaemonLock(self.home.daemon_lock):
            await self._open()
            try:
                await self._begin()
                ready()
                await self._stop.wait()
                await self._stop_modules()
            finally:
                await self._close()

    def stop(self) -> None:
        """Ask the daemon to end; the modules are stopped cleanly first."""
        self._stop.set()

    # --- starting ----------------------------------------------------------------------------

    async def _open(self) -> None:
        configuration, home = self.configuration, self.home
        cluster, node, peer = configuration.cluster, configuration.node, configuration.peer
        _prepare_threads()
        self.logbook = Logbook(home.journal)
        self.audit = Audit(home.audit, self._unaudited(asyncio.get_running_loop()))
        self.recorder = Recorder()
        self.place = RunPlace.for_home(node, home.run)
        if self.place.limit:
            self.limits.append(self.place.limit)
        if os.geteuid() != 0:
            self.limits.append(
                "not root: other users cannot use the folder, owners stay as they are"
            )
        self._client_context = node_client_context(
            home.authority_certificate, home.node_certificate, home.node_key
        )
        self.peer_api = PeerApi(peer, cluster.api_urls(peer), self._client_context, node)
        settings = GuardianSettings.of(home, configuration)
        linger_ms = os.environ.get("HYPERHA_GUARDIAN_LINGER_MS", "")
        if linger_ms.isdigit():
            # The demonstration ends for good with its processes: nobody is left to be told.
            settings = replace(settings, certificate_ms=int(linger_ms))
        self.guardian = GuardianClient(
            settings,
            on_lost=self._guardian_lost,
            on_notice=self._guardian_notice,
        )
        self._certified = await self.guardian.connect()
        await self._end_leftovers()
        self.links = HeartbeatLinks(
            LinkSettings(
                key=load_cluster_key(home.cluster_key),
                cluster_id=cluster.id,
                own_index=cluster.nodes.index(node),
                lans=tuple(
                    LanPath(lan.name, lan.addresses[node], lan.addresses[peer])
                    for lan in cluster.lan
                ),
                port=cluster.ports.peer,
                heartbeat_ms=cluster.timing.heartbeat_ms,
                suspect_ms=cluster.timing.suspect_ms,
                config_version=cluster.version,
            ),
            self.peer_link,
        )
        self.peer_link.links = self.links
        self.peer_link.lans = {lan.name: False for lan in cluster.lan}
        self.witnesses = Witnesses(
            configuration, home, self.place, self._client_context, self.guardian, self.links
        )
        self.peer_link.on_heard = self.witnesses.power.peer_heard
        self.service = Service(self)
        self.listener = ReplicationListener(
            cluster.ports.peer, cluster.id, peer, self._take, self.peer_link.refused
        )

    async def _end_leftovers(self) -> None:
        """Runs of a daemon that is dead, where no guardian ended them."""
        for tree in self.place.leftovers():
            with contextlib.suppress(OSError):
                if not tree.members():
                    continue
            self.logbook.log("", "W", f"ends processes left by a former daemon: {tree.marker}")
            tree.kill()

    async def _begin(self) -> None:
        cluster, node = self.configuration.cluster, self.configuration.node
        around = Surroundings(
            home=self.home,
            configuration=self.configuration,
            place=self.place,
            guardian=self.guardian,
            links=self.links,
            logbook=self.logbook,
            witnesses=self.witnesses,
            finished=self._finished,
            progressed=lambda *told: self.service.operations.progress(*told),
            changed=self._changed,
            fleet=self.fleet,
            recorder=self.recorder,
            runs_ready=self._runs_ready,
        )
        for name, config in self.configuration.modules.items():
            host = ModuleHost(config, around)
            host.certified = next((c.epoch for c in self._certified if c.module == name), None)
            try:
                await host.open()
            except ConfigError as problem:
                # What only the driver can judge is not known when the files are loaded.
                file = self.home.module_file(name)
                raise ConfigError(f"{file}: {problem.text}", problem.fix) from problem
            self.modules[name] = host
            self.peer_link.add(host)
        self._started = True
        self._changed()
        self.links.start()
        for lan in cluster.replication_lans():
            self.listener.listen(lan.name, lan.addresses[node])
        await self._serve_api()
        self._go(self._poll_peer())
        self._go(self._look_ahead())
        for work in self.witnesses.work(self._changed):
            self._go(work)
        for host in self.modules.values():
            self._go(self._boot(host))

    async def _serve_api(self) -> None:
        home, cluster = self.home, self.configuration.cluster
        app = build_app(self.service)
        local = make_server(app, _local_caller, None)
        self._serve(local, local_socket(home.api_socket))
        context = api_server_context(
            home.authority_certificate, home.node_certificate, home.node_key
        )
        for lan in cluster.lan:
            address = lan.addresses[self.configuration.node]
            server = make_server(app, self._remote_caller, context)
            self._serve(server, tcp_socket(address, cluster.ports.api, "API"))

    def _serve(self, server: ApiServer, listening: socket.socket) -> None:
        self._servers.append(server)
        self._go(serve(server, listening))

    def _go(self, work: Awaitable[Any]) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    async def _boot(self, host: ModuleHost) -> None:
        settings = host.state.settings
        if settings.boot == "off" or (settings.boot == "auto" and not settings.wanted):
            return
        await asyncio.sleep(host.config.boot_delay_s)
        if host.state.phase is Phase.IDLE and not self._stop.is_set():
            host.post(CommandGiven(Verb.START, "", "boot", automatic=True))

    # --- callers -----------------------------------------------------------------------------

    def _remote_caller(self, transport: asyncio.BaseTransport) -> Caller | None:
        connection: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        der = connection.getpeercert(binary_form=True) if connection is not None else None
        if der is None:
            return None
        found = holder_of(der)
        cluster = self.configuration.cluster
        if found.cluster_id != cluster.id or found.node not in cluster.nodes:
            return None
        if found.node == self.configuration.node:
            # This node's own key, used from here: as good as root on it.
            return Caller("root", "admin", found.node)
        return Caller(found.node, "admin", found.node, found.node)

    # --- what the parts tell -----------------------------------------------------------------

    def _take(self, lan: str, found: Preamble, raw: bytes, connection: socket.socket) -> bool:
        host = self.modules.get(found.module)
        if host is None or host.number != found.number:
            return False
        return host.take_socket(lan, found, raw, connection)

    def _others(self) -> Others:
        """All modules of the cluster, as the queue of starts wants to know them."""
        ready = frozenset(name for name in self.modules if self._runs_ready(name))
        stopped = {name for name, host in self.modules.items() if host.state.phase is Phase.IDLE}
        report = None if self.peer_link.silent else self.peer_report
        there = {} if report is None else report.modules
        stopped -= {name for name, one in there.items() if one.side.role is not Role.STOP}
        return Others(ready, frozenset(self.modules) - stopped - ready)

    def _runs_ready(self, module: str) -> str:
        host, report = self.modules.get(module), self.peer_report
        if host is not None and host.runs_vm and readiness(host.state) is Readiness.READY:
            return self.configuration.node
        there = None if report is None or self.peer_link.silent else report.modules.get(module)
        if there is not None and there.side.role.runs_vm and there.side.readiness == "Ready":
            return self.configuration.peer
        return ""

    def _finished(self, operation_id: str, done: bool, text: str) -> None:
        if operation_id:
            self.service.operations.finish(operation_id, done, text)

    def _changed(self) -> None:
        self._peer_changed.set()
        if not self._started:
            return
        if all(host.state.phase is Phase.IDLE for host in self.modules.values()):
            self._all_idle.set()
        else:
            self._all_idle.clear()
        told = (host.status() for host in self.modules.values())
        statuses = tuple(status for status in told if status is not None)
        self.links.set_status(statuses, config_version=self.configuration.cluster.version)
        self.service.subscribers.state_changed()
        self.fleet.changed()

    def _guardian_lost(self, why: str) -> None:
        if self._stop.is_set():
            return
        self._log_everywhere("E", f"the guardian {why}: another one is started")
        if self._guarding is None or self._guarding.done():
            self._guarding = asyncio.ensure_future(self._guard_again())
            self._tasks.append(self._guarding)

    async def _guard_again(self) -> None:
        """Until a guardian is there and knows every module, whatever is lost meanwhile (P1)."""
        while not self._stop.is_set():
            try:
                if not self.guardian.connected:
                    await self.guardian.connect()
                self.witnesses.guardian_is_new()
                for host in self.modules.values():
                    await host.vm.arm()
            except (HyperhaError, OSError) as problem:
                _log.error("no guardian: %s", problem)
                await asyncio.sleep(GUARDIAN_RETRY_S)
            else:
                if self.guardian.connected:
                    self._log_everywhere("I", "another guardian runs and is armed")
                    return

    def _log_everywhere(self, level: Literal["E", "I"], text: str, rule: str = "P1") -> None:
        """In the node's log and in that of every module: it concerns each of them."""
        for module in ("", *self.modules):
            self.logbook.log(module, level, text, rule=rule)

    def _unaudited(self, loop: asyncio.AbstractEventLoop) -> Callable[[str, str], None]:
        """Where the audit cannot be written, the node's log has it instead."""

        def tell(line: str, why: str) -> None:
            with contextlib.suppress(RuntimeError):  # The daemon has ended.
                loop.call_soon_threadsafe(self.logbook.log, "", "E", f"audit ({why}): {line}")

        return tell

    def _say_distrust(self, text: str) -> None:
        """A peer that is not believed is as good as absent: whoever waits for it must see why."""
        self._log_everywhere("E", f"refused: {text}", rule="")

    def _guardian_notice(self, notice: Notice) -> None:
        self.logbook.log(notice.module, "W", f"guardian {notice.what}: {notice.reason}", rule="L5'")
        host = self.modules.get(notice.module)
        if host is not None and notice.what == "fired":
            host.post(LeaseExpired(notice.reason))
        if host is not None and notice.what in ("certified", "ended"):
            # The certificate goes first: a follower that hears of STOP waits instead (P7, L8).
            loop = asyncio.get_running_loop()
            loop.call_later(CERTIFICATE_AHEAD_S, host.task.ended_for_good)

    async def _poll_peer(self) -> None:
        """Keep the other node's report fresh: at once when something changed."""
        absent = True
        while True:
            report = await self.peer_api.report() if not self.peer_link.silent else None
            distrust = self.peer_api.distrust
            if distrust and distrust != self._told_distrust:
                self._say_distrust(distrust)
            self._told_distrust = distrust
            self._tell_apart()
            if report is not None:
                if absent:
                    await self._tell_suspensions(report)
                absent = False
                if report != self.peer_report:
                    self.peer_report = report
                    self._tell_resources(report)
                    self.service.subscribers.state_changed()
            elif self.peer_link.silent:
                if not absent:
                    self._tell_resources(None)
                absent = True
                self.service.subscribers.state_changed()
            self._peer_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._peer_changed.wait()
            await asyncio.sleep(0.1)

    def _tell_apart(self) -> None:
        """The clocks of the two nodes: told when they part."""
        apart = self.peer_api.clock.apart
        if bool(apart) != self._told_apart:
            self._told_apart = bool(apart)
            self.logbook.log("", "W" if apart else "I", apart or "the clocks of both nodes agree")

    def _tell_resources(self, report: NodeReport | None) -> None:
        """What the other node's checkers say is for the rules of each module."""
        for name, host in self.modules.items():
            theirs = report.modules.get(name) if report is not None else None
            host.checks.peer_has(theirs.side.checkers if theirs is not None else [])

    async def _tell_suspensions(self, report: NodeReport) -> None:
        """A node that was absent learns what was suspended meanwhile, before it may act."""
        for name, host in self.modules.items():
            theirs = report.modules.get(name)
            if theirs is None or not host.state.role.runs_vm:
                continue
            held = {one.name for one in theirs.side.checkers if one.suspended}
            for one in host.checker_views():
                if one.suspended is None or one.name in held:
                    continue
                s = one.suspended
                change = CheckerChange(suspended=True, until=s.until, reason=s.reason)
                caller = Caller(s.by, "admin", self.configuration.node)
                with contextlib.suppress(HyperhaError):
                    await self.peer_api.change_checker(name, one.name, change, caller)

    async def _look_ahead(self) -> None:
        while True:
            for host in self.modules.values():
                with contextlib.suppress(HyperhaError):
                    await host.look_ahead()
            await asyncio.sleep(LOOK_AHEAD_S)

    # --- ending ------------------------------------------------------------------------------

    async def _stop_modules(self) -> None:
        limit_s = SHUTDOWN_MARGIN_S
        for host in self.modules.values():
            if host.state.phase is not Phase.IDLE:
                host.post(CommandGiven(Verb.STOP, "", "shutdown", automatic=True))
                limit_s = max(limit_s, host.config.stop.timeout_s + SHUTDOWN_MARGIN_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._all_idle.wait()

    async def _close(self) -> None:
        self._stop.set()
        for server in self._servers:
            server.should_exit = True
        # At once: each may wait for a disk that does not answer.
        closing = (host.close() for host in self.modules.values())
        ends = await asyncio.gather(*closing, return_exceptions=True)
        failures = [one for one in ends if isinstance(one, BaseException)]
        for failure in failures:
            _log.error("a module was not closed cleanly", exc_info=failure)
        await in_own_thread("close the audit", self.audit.close)
        await asyncio.sleep(0)  # What the audit could not keep is in the log now.
        self.logbook.close()
        self.recorder.close()
        for task in self._tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.listener.close()
        if self._started:
            self.links.stop()
        await self.witnesses.close()
        await self.peer_api.close()
        with contextlib.suppress(HyperhaError):
            if failures:
                # Something may still run: the guardian ends what is armed, and certifies it (L8).
                await self.guardian.abandon()
            else:
                await self.guardian.release()
        self.place.close()
        with contextlib.suppress(FileNotFoundError):
            self.home.api_socket.unlink()
        if failures:
            raise failures[0]


def _prepare_threads() -> None:
    try:
        prepare()
        looking.prepare()
    except RuntimeError as problem:
        raise FailedError(
            f"no thread can be started: {problem}",
            "Raise the limit of processes (ulimit -u, TasksMax, pids.max) or end some.",
        ) from None


def _local_caller(transport: asyncio.BaseTransport) -> Caller | None:
    connection = transport.get_extra_info("socket")
    try:
        found = local_identity(connection)
    except DeniedError:
        return None
    return Caller(found.name, found.access.value, found.origin)


def run_node(home: Home) -> None:
    """Run the daemon until SIGTERM or SIGINT; the whole program of `hyperha node run`."""

    async def main() -> None:
        daemon = NodeDaemon(home)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, daemon.stop)
        await daemon.run(lambda: print(f"{daemon.configuration.node} is running", flush=True))  # noqa: T201

    level = os.environ.get("HYPERHA_LOG_LEVEL", "WARNING").upper()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=level)
    asyncio.run(main())
