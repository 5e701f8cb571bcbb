"""Commands about the copies that are no business of the core's: verify, and safety copies.

They go to the node that they concern, whichever is asked; each is an operation with an end.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from hyperha.api.service import Caller
from hyperha.api.wire import Accepted, ActionRequest, ModuleReport, OperationView
from hyperha.api.wire_copies import SafetyCopies, SafetyCopyView, VerifyReport
from hyperha.daemon.module_task import boottime_ms
from hyperha.daemon.observed import joined, next_serial
from hyperha.domain import Role
from hyperha.errors import BusyError, DeniedError, HyperhaError, RefusedError, UsageError
from hyperha.text import clean

if TYPE_CHECKING:
    from hyperha.daemon.module_host import ModuleHost
    from hyperha.daemon.node import NodeDaemon
    from hyperha.daemon.operations import Operations

UPKEEP = ("verify", "verify-stop", "safety-restore", "safety-delete")
"""Verbs of actions that are dealt with here."""
_TOLD_EVERY_MS = 1000
_OURSELVES = Caller("hyperha", "admin", "daemon")


class Upkeep:
    """One node's; belongs to the event loop."""

    def __init__(self, daemon: NodeDaemon, operations: Operations) -> None:
        self._daemon = daemon
        self._operations = operations

    def node_for(self, host: ModuleHost, request: ActionRequest) -> str:
        """The node that carries a command out: a verification is the primary's."""
        if request.verb in ("verify", "verify-stop"):
            if host.state.role.runs_vm:
                return host.node
            if host.state.role is Role.SECOND:
                # Known here; what the other node said of itself may be a second old.
                return host.peer
            other = self._reported(host.name)
            return host.peer if other is not None and other.side.role.runs_vm else host.node
        if request.node is not None:
            return request.node
        other = self._reported(host.name)
        theirs = {one.id for one in other.side.safety_copies} if other is not None else set()
        known = {one.id for one in host.safety.views}
        return host.peer if request.options.id in theirs - known else host.node

    def _reported(self, module: str) -> ModuleReport | None:
        report = self._daemon.peer_report
        return None if report is None else report.modules.get(module)

    async def verify_report(self, host: ModuleHost, caller: Caller) -> VerifyReport:
        """What both nodes know of verifications: the other one's word is fresh if it answers."""
        own = host.observed.verify
        if caller.peer_node:
            return own
        try:
            return joined(own, await self._daemon.peer_api.verify_report(host.name))
        except HyperhaError:
            other = self._reported(host.name)
            return joined(own, other.verify if other else VerifyReport())

    async def begin(self, host: ModuleHost, request: ActionRequest, caller: Caller) -> Accepted:
        """Begin a command on this node. Raises RefusedError with the reason."""
        if request.verb == "verify":
            return await self._verify(host, request, caller)
        if request.verb == "verify-stop":
            return self._stop_verify(host, request, caller)
        return self._safety(host, request, caller)

    async def _verify(self, host: ModuleHost, request: ActionRequest, caller: Caller) -> Accepted:
        verifying = host.verifying
        serial = next_serial(await self.verify_report(host, _OURSELVES))
        # While the other node was asked the same request may have come again.
        repeated = self._operations.repeated(request.request_id)
        if repeated is not None:
            return Accepted(operation=repeated)
        refusal = verifying.refusal()
        if refusal:
            kind = RefusedError if verifying.operation is None else BusyError
            raise kind(refusal)
        view = self._operations.begin(host.name, request.verb, caller.name, request.request_id)
        verifying.begin(view, request.options.repair, serial)
        return Accepted(operation=view.id)

    def _stop_verify(self, host: ModuleHost, request: ActionRequest, caller: Caller) -> Accepted:
        refusal = host.verifying.stop_refusal()
        if refusal:
            raise RefusedError(refusal)
        host.verifying.stop()
        view = self._operations.begin(host.name, request.verb, caller.name, request.request_id)
        self._operations.finish(view.id, True, "the verification ends with what it found so far")
        return Accepted(operation=view.id)

    # --- safety copies ------------------------------------------------------------------------

    async def safety_copies(self, host: ModuleHost, caller: Caller) -> SafetyCopies:
        """What is kept on both nodes; on this one only when the other node asks."""
        found: list[SafetyCopyView] = []
        missing: dict[str, str] = {}
        try:
            found += await host.safety.look()
        except HyperhaError as problem:
            missing[host.node] = problem.text
        if not caller.peer_node:
            try:
                other = await self._daemon.peer_api.safety_copies(host.name)
                found += other.copies
                missing |= other.missing
            except HyperhaError as problem:
                missing[host.peer] = problem.text
        return SafetyCopies(copies=sorted(found, key=lambda one: one.opened), missing=missing)

    def _safety(self, host: ModuleHost, request: ActionRequest, caller: Caller) -> Accepted:
        if not caller.may("admin"):
            # Restoring writes anywhere on the node, deleting is for good.
            raise DeniedError(
                f"{caller.name} has the role {caller.role or 'none'}, admin is needed",
                "Ask an administrator of the cluster.",
            )
        name, to = request.options.id, request.options.to
        restores = request.verb == "safety-restore"
        if not name:
            raise UsageError(
                f"{request.verb} needs the id of a safety copy",
                f"`hyperha safety {host.name} list` names them.",
            )
        if restores and not (to.startswith("/") and clean(to) == to):
            raise UsageError(
                f"{clean(to)!r} is no directory to restore into",
                "Name an absolute path on that node, missing or empty.",
            )
        view = self._operations.begin(host.name, request.verb, caller.name, request.request_id)
        host.go(self._keep(host, view, name, to if restores else ""))
        return Accepted(operation=view.id)

    async def _keep(self, host: ModuleHost, view: OperationView, name: str, to: str) -> None:
        told_ms = 0

        def progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal told_ms
            if boottime_ms() - told_ms >= _TOLD_EVERY_MS:
                told_ms = boottime_ms()
                self._operations.progress(view.id, done_bytes, total_bytes)

        what = (
            f"restores the safety copy {name} in {to}" if to else f"deletes the safety copy {name}"
        )
        host.log("I", "safety", "R15", f"{what}, by {view.by}")
        ok = False
        try:
            text = await (
                host.safety.restore(name, to, progress) if to else host.safety.delete(name)
            )
            ok = True
        except HyperhaError as problem:
            text = str(problem)
        host.log("I" if ok else "E", "safety", "R15", text)
        self._operations.finish(view.id, ok, text)
        with contextlib.suppress(HyperhaError):
            await host.safety.look()
