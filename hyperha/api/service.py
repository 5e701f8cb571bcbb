"""What the routes need from the daemon, as a Protocol; the daemon implements it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from hyperha.api.wire import (
    Accepted,
    ActionRequest,
    CheckerChange,
    ClusterView,
    LogPage,
    ModuleView,
    NodeReport,
    OperationView,
    PreflightItem,
    ScriptOutput,
    ScriptRun,
    SnapshotView,
    StreamLine,
)
from hyperha.api.wire_copies import CopyView, DiffView, PlanView, SafetyCopies, VerifyReport


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: name, role (`admin`, `control`, `monitor`) and from where; for rights and audit."""

    name: str
    role: str
    origin: str
    peer_node: str = ""
    """The other node, when it is the one that asks (forwarding, or reading our report)."""

    def may(self, needed: str) -> bool:
        """Whether the caller's role includes the needed one."""
        order = ("monitor", "control", "admin")
        return self.role in order and order.index(self.role) >= order.index(needed)


class NodeService(Protocol):
    """The answering node."""

    def node_report(self) -> NodeReport:
        """This node alone."""

    def cluster(self) -> ClusterView:
        """Both nodes, the other one's part with its age."""

    def module(self, name: str) -> ModuleView:
        """One module; raises NotFoundError."""

    def preflight(self, name: str) -> list[PreflightItem]:
        """Why a start or failover would not work now."""

    async def verify_report(self, name: str, caller: Caller) -> VerifyReport:
        """What the last verification found, on either node."""

    async def safety_copies(self, name: str, caller: Caller) -> SafetyCopies:
        """What is kept of former states of both copies; of one when the other node asks."""

    async def own_copy(self, name: str, against: str, target: str, *, sizes: bool) -> CopyView:
        """This node's copy; with `against`, the other node's summary as JSON, also its verdict.

        `target`: as if an operator had given that node's copy up. `sizes`: also of all files.
        Raises BusyError while the folder is being covered, UsageError for a wrong summary.
        """

    async def plan(self, name: str, target: str) -> PlanView:
        """What a resync would move now; raises RefusedError when `target` cannot be the target,
        and UnreachableError when the other node does not answer."""

    async def diff(self, name: str) -> DiffView:
        """What each copy's log says that it changed, as far as the nodes answer."""

    async def act(self, name: str, request: ActionRequest, caller: Caller) -> Accepted:
        """Begin a command here or on the node it names."""

    async def change_checker(
        self, name: str, checker: str, change: CheckerChange, caller: Caller
    ) -> Accepted:
        """Suspend or resume, on both nodes."""

    async def operation(self, operation_id: str) -> OperationView:
        """A command that was accepted, here or on the other node; raises NotFoundError."""

    async def log_page(
        self, name: str, after: int, limit: int, node: str | None, caller: Caller
    ) -> LogPage:
        """The newest lines of a module's log on a node, the answering one with None.

        Raises NotFoundError, and UnreachableError when the other node does not answer.
        """

    async def script_runs(self, name: str, node: str | None, caller: Caller) -> list[ScriptRun]:
        """The kept runs of the module's scripts on a node, newest first; raises as `log_page`."""

    async def script_output(
        self, name: str, run: str, node: str | None, caller: Caller
    ) -> ScriptOutput:
        """What one run on a node said; raises as `log_page`."""

    async def snapshot(self, name: str, node: str | None, caller: Caller) -> SnapshotView:
        """What a node's core knows of a module now; raises as `log_page`."""

    def stream(self, after: int | None) -> AsyncIterator[StreamLine]:
        """What happens from here on; the caller closes it."""

    def ready(self, name: str) -> tuple[bool, str]:
        """Whether the VM runs here and is ready, and the sentence."""
