"""The API's view of this node: `api.service.NodeService` on top of the module hosts."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import hyperha
from hyperha.api.service import Caller
from hyperha.api.wire import (
    Accepted,
    ActionRequest,
    CheckerChange,
    ClusterView,
    LogPage,
    ModuleView,
    NodeReport,
    NodeView,
    OperationView,
    PreflightItem,
    ScriptOutput,
    ScriptRun,
    SnapshotView,
    StreamLine,
)
from hyperha.api.wire_copies import CopyView, DiffView, PlanView, SafetyCopies, VerifyReport
from hyperha.core.commands import problem
from hyperha.core.covering import STARTING
from hyperha.core.events import CommandGiven, SettingsChanged, Verb
from hyperha.core.state import Phase
from hyperha.daemon.module_task import boottime_ms
from hyperha.daemon.operations import Operations
from hyperha.daemon.planning import diff, own_copy, plan, summary_of
from hyperha.daemon.stream import Subscribers, log_line
from hyperha.daemon.upkeep import UPKEEP, Upkeep
from hyperha.daemon.views import merged, resource_state, rfc3339
from hyperha.domain import Readiness
from hyperha.errors import (
    BusyError,
    HyperhaError,
    LossError,
    NotFoundError,
    RefusedError,
    StaleViewError,
    UsageError,
)
from hyperha.study.snapshot import snapshot_body

if TYPE_CHECKING:
    from hyperha.daemon.module_host import ModuleHost
    from hyperha.daemon.node import NodeDaemon

_PROBLEMS = {"stale-view": StaleViewError, "busy": BusyError, "loss": LossError}


class Service:
    """Implements `NodeService`."""

    def __init__(self, daemon: NodeDaemon) -> None:
        self._daemon = daemon
        self.node = daemon.configuration.node
        self.peer = daemon.configuration.peer
        self.subscribers = Subscribers(
            self.node, daemon.boot_id, daemon.logbook, lambda: self.cluster()
        )
        self.operations = Operations(self.node, self._operation_changed)
        self.upkeep = Upkeep(daemon, self.operations)

    # --- reading -----------------------------------------------------------------------------

    def _host(self, name: str) -> ModuleHost:
        host = self._daemon.modules.get(name)
        if host is None:
            known = ", ".join(self._daemon.modules) or "none"
            raise NotFoundError(f"there is no module {name!r}", f"Modules here: {known}.")
        return host

    def node_report(self) -> NodeReport:
        """This node alone."""
        return NodeReport(
            node=self.node,
            view=self._own_view(),
            modules={name: host.report() for name, host in self._daemon.modules.items()},
            wall_ms=time.time_ns() // 1_000_000,
        )

    def _own_view(self) -> NodeView:
        link, api = self._daemon.peer_link, self._daemon.peer_api
        return NodeView(
            reachable=True,
            seen_ms_ago=0,
            boot_id=self._daemon.boot_id,
            version=hyperha.__version__,
            config_version=self._daemon.configuration.cluster.version,
            lans={lan: resource_state(up) for lan, up in link.lans.items()},
            witness=self._daemon.witnesses.view(),
            limits=[
                *self._daemon.limits,
                *link.refusals,
                *(text for text in (api.distrust, api.clock.apart) if text),
            ],
        )

    def _peer_view(self) -> NodeView:
        link, report = self._daemon.peer_link, self._daemon.peer_report
        age = None if link.heard_at_ms is None else boottime_ms() - link.heard_at_ms
        reachable = not link.silent
        if report is None:
            return NodeView(reachable=reachable, seen_ms_ago=0 if reachable else age)
        return report.view.model_copy(
            update={"reachable": reachable, "seen_ms_ago": 0 if reachable else age}
        )

    def cluster(self) -> ClusterView:
        """Both nodes, the other one's part with its age."""
        nodes = {self.node: self._own_view(), self.peer: self._peer_view()}
        modules = {name: self._merged(host) for name, host in self._daemon.modules.items()}
        return ClusterView(
            cluster=self._daemon.configuration.cluster.cluster,
            answered_by=self.node,
            at=rfc3339(time.time_ns() // 1_000_000),
            boot_id=self._daemon.boot_id,
            seq=self._daemon.logbook.last_seq,
            nodes=dict(sorted(nodes.items())),
            modules=modules,
        )

    def module(self, name: str) -> ModuleView:
        """One module."""
        host = self._host(name)
        return self._merged(host)

    def _merged(self, host: ModuleHost) -> ModuleView:
        report = self._daemon.peer_report
        why = self._why_unseen()
        return merged(host.name, self.node, host.report(), self.peer, report, why_unseen=why)

    def _why_unseen(self) -> str:
        link = self._daemon.peer_link
        distrust = link.distrust if link.silent else self._daemon.peer_api.distrust
        if distrust:
            return f"refused: {distrust}"
        if link.silent:
            return "never heard since this daemon started"
        return "heard, but its daemon has not told its state yet"

    def preflight(self, name: str) -> list[PreflightItem]:
        """Why a start or failover would not work now."""
        return self.module(name).preflight

    async def verify_report(self, name: str, caller: Caller) -> VerifyReport:
        """What the last verification found, on either node."""
        return await self.upkeep.verify_report(self._host(name), caller)

    async def safety_copies(self, name: str, caller: Caller) -> SafetyCopies:
        """What is kept of former states of both copies."""
        return await self.upkeep.safety_copies(self._host(name), caller)

    async def own_copy(self, name: str, against: str, target: str, *, sizes: bool) -> CopyView:
        """This node's copy, and its verdict beside the other node's summary."""
        other = summary_of(against) if against else None
        return await own_copy(self._host(name), other, target, sizes=sizes)

    async def plan(self, name: str, target: str) -> PlanView:
        """What a resync would move now."""
        return await plan(self._host(name), self._daemon.peer_api, target)

    async def diff(self, name: str) -> DiffView:
        """What each copy's log says that it changed."""
        return await diff(self._host(name), self._daemon.peer_api)

    async def operation(self, operation_id: str) -> OperationView:
        """A command that was accepted, here or on the other node."""
        if operation_id.startswith(f"{self.peer}-"):
            return await self._daemon.peer_api.operation(operation_id)
        return self.operations.get(operation_id)

    def _other_is_meant(self, node: str | None, caller: Caller) -> bool:
        """Whether the other node is asked; it never asks back, so that no request goes round."""
        if node in (None, self.node):
            return False
        if node == self.peer and not caller.peer_node:
            return True
        raise NotFoundError(f"there is no node {node!r}", f"Nodes: {self.node}, {self.peer}.")

    async def log_page(
        self, name: str, after: int, limit: int, node: str | None, caller: Caller
    ) -> LogPage:
        """The newest lines of a module's log on a node."""
        self._host(name)
        if self._other_is_meant(node, caller):
            return await self._daemon.peer_api.log_page(name, after, limit, caller)
        logbook = self._daemon.logbook
        entries = logbook.messages(name, after=after, limit=limit)
        lines = [log_line(entry, self.node) for entry in entries]
        return LogPage(lines=lines, next=logbook.last_seq)

    async def script_runs(self, name: str, node: str | None, caller: Caller) -> list[ScriptRun]:
        """The kept runs of the module's scripts on a node, newest first."""
        host = self._host(name)
        if self._other_is_meant(node, caller):
            return await self._daemon.peer_api.script_runs(name, caller)
        return host.steps.runs()

    async def script_output(
        self, name: str, run: str, node: str | None, caller: Caller
    ) -> ScriptOutput:
        """What one run on a node said."""
        host = self._host(name)
        if self._other_is_meant(node, caller):
            return await self._daemon.peer_api.script_output(name, run, caller)
        return await host.steps.output(run)

    async def snapshot(self, name: str, node: str | None, caller: Caller) -> SnapshotView:
        """What a node's core knows of a module now."""
        host = self._host(name)
        if self._other_is_meant(node, caller):
            return await self._daemon.peer_api.snapshot(name, caller)
        return SnapshotView(node=self.node, **snapshot_body(host.snapshot(self._daemon.boot_id)))

    def stream(self, after: int | None) -> AsyncIterator[StreamLine]:
        """What happens from here on."""
        return self.subscribers.stream(after)

    def ready(self, name: str) -> tuple[bool, str]:
        """Whether the VM runs here and is ready."""
        side = self._host(name).report().side
        is_ready = side.role.runs_vm and side.readiness is Readiness.READY
        return is_ready, f"{side.role} {side.readiness}"

    def _operation_changed(self, view: OperationView) -> None:
        host = self._daemon.modules.get(view.module)
        if host is not None and view.state == "running":
            host.operation = view
        elif host is not None and host.operation is not None and host.operation.id == view.id:
            host.operation = None
        self.subscribers.operation_changed(view)

    # --- commands ----------------------------------------------------------------------------

    async def act(self, name: str, request: ActionRequest, caller: Caller) -> Accepted:
        """Begin a command here or on the node it names."""
        host = self._host(name)
        upkeep = request.verb in UPKEEP
        node = request.node or self.node
        if upkeep and not caller.peer_node:
            node = self.upkeep.node_for(host, request)
        if node == self.peer and not caller.peer_node:
            return await self._daemon.peer_api.act(name, request, caller)
        if node != self.node:
            raise NotFoundError(f"there is no node {node!r}", f"Nodes: {self.node}, {self.peer}.")
        repeated = self.operations.repeated(request.request_id)
        if repeated is not None:
            return Accepted(operation=repeated)
        if upkeep:
            accepted = await self.upkeep.begin(host, request, caller)
            self._audit(caller, f"{request.verb} {name}", request.reason)
            return accepted
        if "-" in request.verb:
            return await self._switch(host, request, caller)
        event = self._command(host, request, caller)
        self._check(host, event)
        await self._check_folder(host, event.verb)
        repeated = self.operations.repeated(request.request_id)
        if repeated is not None:
            return Accepted(operation=repeated)
        view = self.operations.begin(name, request.verb, caller.name, request.request_id)
        host.post(_with_id(event, view.id))
        self._audit(caller, f"{request.verb} {name}", request.reason)
        return Accepted(operation=view.id)

    def _command(self, host: ModuleHost, request: ActionRequest, caller: Caller) -> CommandGiven:
        confirm = request.options.confirm
        if confirm is not None and confirm != host.name:
            raise UsageError(
                f"the confirmation names {confirm!r}, the module is {host.name!r}",
                f"To accept the loss: --confirm {host.name}.",
            )
        return CommandGiven(
            verb=Verb(request.verb),
            operation_id="",
            by=caller.name,
            reason=request.reason,
            expect_role=request.expect.role,
            expect_generation=request.expect.generation,
            confirmed=confirm == host.name,
            full=request.options.full,
            adopt=request.options.adopt,
        )

    def _check(self, host: ModuleHost, event: CommandGiven) -> None:
        if host.task.broken:
            raise RefusedError(host.task.broken, "Restart the daemon and send a support bundle.")
        found = problem(host.state, event)
        if found is None:
            return
        kind = _PROBLEMS.get(found.code, RefusedError)
        fix = f"To accept the loss: --confirm {host.name}." if found.code == "loss" else ""
        raise kind(found.text, fix)

    async def _check_folder(self, host: ModuleHost, verb: Verb) -> None:
        if verb in STARTING and host.safety.busy:
            raise BusyError(f"{host.name}: {host.safety.busy}", "Wait for its end.")
        if verb in STARTING and host.state.phase is Phase.IDLE:
            missing = await host.vm.missing_folder()
            if missing is not None:
                raise RefusedError(missing.text, missing.fix, code=missing.code)

    async def _switch(self, host: ModuleHost, request: ActionRequest, caller: Caller) -> Accepted:
        what, _, value = request.verb.partition("-")
        view = self.operations.begin(host.name, request.verb, caller.name, request.request_id)
        self._audit(caller, f"{what} {value} {host.name}", request.reason)
        host.post(
            SettingsChanged(
                operation_id=view.id,
                by=caller.name,
                failover=value == "on" if what == "failover" else None,
                boot=value if what == "boot" else None,
                drained=value == "on" if what == "drain" else None,
                reason=request.reason,
            )
        )
        return Accepted(operation=view.id)

    async def change_checker(
        self, name: str, checker: str, change: CheckerChange, caller: Caller
    ) -> Accepted:
        """Suspend or resume, here and on the other node."""
        host = self._host(name)
        known = [one.name for one in host.config.checker]
        if checker != "all" and checker not in known:
            listed = ", ".join(known) or "none"
            raise NotFoundError(f"there is no checker {checker!r}", f"Checkers: {listed}.")
        if change.suspended and not change.reason:
            raise UsageError("a suspension needs a reason", "Say why, for whoever finds it.")
        until_ms = _wall_ms(change.until) if change.until else None
        word = "suspend" if change.suspended else "resume"
        view = self.operations.begin(name, f"checker-{word}", caller.name, "")
        self._audit(caller, f"{word} {checker} {name}", change.reason)
        which = "" if checker == "all" else checker
        host.post(
            SettingsChanged(
                operation_id=view.id,
                by=caller.name,
                suspend=which if change.suspended else None,
                resume=which if not change.suspended else None,
                reason=change.reason,
                until_wall_ms=until_ms,
            )
        )
        if not caller.peer_node:
            # An absent peer is told when it is back, by the one that runs.
            with contextlib.suppress(HyperhaError):
                await self._daemon.peer_api.change_checker(name, checker, change, caller)
        return Accepted(operation=view.id)

    def _audit(self, caller: Caller, what: str, reason: str) -> None:
        entry = {
            "at": rfc3339(time.time_ns() // 1_000_000),
            "who": caller.name,
            "role": caller.role,
            "from": caller.origin,
            "what": what,
            "why": reason,
        }
        self._daemon.audit.note(entry)


def _with_id(event: CommandGiven, operation_id: str) -> CommandGiven:
    from dataclasses import replace

    return replace(event, operation_id=operation_id)


def _wall_ms(text: str) -> int:
    """The end of a suspension."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no time", "Write RFC 3339: 2026-01-31T22:00:00Z.") from None
    if moment.tzinfo is None:
        raise UsageError(f"{text!r} has no time zone", "Add Z or +01:00.")
    until_ms = int(moment.timestamp() * 1000)
    now_ms = time.time_ns() // 1_000_000
    if until_ms <= now_ms:
        raise UsageError(
            f"{text} is not in the future: here it is {rfc3339(now_ms)}",
            "Name a later time, or none.",
        )
    return until_ms
