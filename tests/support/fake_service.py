"""A node service with fixed answers, for the API's own tests and for clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hyperha.api.service import Caller
from hyperha.api.wire import (
    Accepted,
    ActionRequest,
    CheckerChange,
    CheckerView,
    ClusterView,
    LogLine,
    LogPage,
    ModuleNodeView,
    ModuleReport,
    ModuleView,
    NodeReport,
    NodeView,
    OperationView,
    PreflightItem,
    RestartsView,
    ResyncView,
    ScriptLine,
    ScriptOutput,
    ScriptRun,
    StreamLine,
    SuspensionView,
    VmView,
    Why,
    WitnessView,
)
from hyperha.domain import DataState, Readiness, ResourceState, Role
from hyperha.errors import (
    BusyError,
    LossError,
    NotFoundError,
    RefusedError,
    StaleViewError,
    UnreachableError,
)

AT = "2026-11-22T08:50:42.120Z"


def side(role: Role = Role.PRIM, readiness: Readiness = Readiness.READY) -> ModuleNodeView:
    return ModuleNodeView(
        role=role,
        readiness=readiness,
        data=DataState.UPTODATE,
        since=AT,
        why=Why(rule="P1", text="runs the VM; node2 has an equal copy"),
        vm=VmView(state="running", seen_by="hypervisor", run=1),
        boot="on",
        checkers=[CheckerView(name="VM1", kind="vm", state=ResourceState.UP, action="restart")],
        restarts=RestartsView(used=0, of=3, window_h=24),
        allowed=["stop", "swap"],
        generation="g17",
        epoch=4,
    )


def cluster() -> ClusterView:
    second = side(Role.SECOND, Readiness.TRANSIENT).model_copy(
        update={
            "data": DataState.INCONSISTENT,
            "vm": VmView(state="absent"),
            "resync": ResyncView(
                rule="R6", done_bytes=1, total_bytes=2, bytes_per_s=3, seconds_left=4
            ),
            "checkers": [
                CheckerView(
                    name="VM1",
                    kind="vm",
                    state=ResourceState.UNKNOWN,
                    suspended=SuspensionView(by="ann", reason="disk change", until=None),
                )
            ],
        }
    )
    node = NodeView(
        reachable=True,
        seen_ms_ago=0,
        boot_id="b1",
        version="0.3.0",
        config_version=12,
        lans={"prod": ResourceState.UP, "repl": ResourceState.UP},
        witness=WitnessView(kind="lease", state=ResourceState.UP),
    )
    item = PreflightItem(code="switch-missing", node="node2", text="no switch", fix="make it")
    module = ModuleView(
        number=1,
        driver="process",
        folder="/srv/VM1",
        generation="g17",
        redundant=False,
        failover=True,
        preflight=[item],
        nodes={"node1": side(), "node2": second},
    )
    return ClusterView(
        cluster="paris",
        answered_by="node1",
        at=AT,
        boot_id="b1",
        seq=7,
        nodes={"node1": node, "node2": node},
        modules={"VM1": module},
    )


def _lines(name: str, node: str, after: int) -> list[LogLine]:
    return [
        LogLine(seq=n, at=AT, module=name, node=node, level="I", source="daemon", text=f"l{n}")
        for n in range(1, 8)
        if n > after
    ]


class FakeService:
    """Implements `NodeService`; remembers what it was asked to do."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object, Caller]] = []
        self.problem: Exception | None = None

    def _known(self, name: str) -> None:
        if name != "VM1":
            raise NotFoundError(f"there is no module {name!r}", "Modules here: VM1.")

    def node_report(self) -> NodeReport:
        report = ModuleReport(
            number=1,
            driver="process",
            folder="/srv/VM1",
            generation="g17",
            failover=True,
            side=side(),
        )
        return NodeReport(node="node1", view=cluster().nodes["node1"], modules={"VM1": report})

    def cluster(self) -> ClusterView:
        return cluster()

    def module(self, name: str) -> ModuleView:
        self._known(name)
        return cluster().modules[name]

    def preflight(self, name: str) -> list[PreflightItem]:
        return self.module(name).preflight

    async def act(self, name: str, request: ActionRequest, caller: Caller) -> Accepted:
        self._known(name)
        self.asked.append((name, request, caller))
        if self.problem is not None:
            raise self.problem
        return Accepted(operation="node1-1")

    async def change_checker(
        self, name: str, checker: str, change: CheckerChange, caller: Caller
    ) -> Accepted:
        self._known(name)
        self.asked.append((checker, change, caller))
        return Accepted(operation="node1-2")

    async def operation(self, operation_id: str) -> OperationView:
        if operation_id != "node1-1":
            raise NotFoundError(f"there is no operation {operation_id!r}")
        return OperationView(
            id="node1-1",
            module="VM1",
            node="node1",
            verb="stop",
            by="ann",
            state="done",
            text="stopped",
            started=AT,
            ended=AT,
        )

    async def log_page(
        self, name: str, after: int, limit: int, node: str | None, caller: Caller
    ) -> LogPage:
        self._known(name)
        self._answers_for(node)
        return LogPage(lines=_lines(name, node or "node1", after)[-limit:], next=7)

    def _answers_for(self, node: str | None) -> None:
        if node == "node2":
            raise UnreachableError("node2 does not answer: connection refused")
        if node not in (None, "node1"):
            raise NotFoundError(f"there is no node {node!r}", "Nodes: node1, node2.")

    async def script_runs(self, name: str, node: str | None, caller: Caller) -> list[ScriptRun]:
        self._known(name)
        self._answers_for(node)
        return [
            ScriptRun(
                id="1700000000000-start_prim",
                module=name,
                node="node1",
                script="start_prim",
                started=AT,
                state="ended",
                exit_status=0,
                duration_ms=1200,
            )
        ]

    async def script_output(
        self, name: str, run: str, node: str | None, caller: Caller
    ) -> ScriptOutput:
        runs = {one.id: one for one in await self.script_runs(name, node, caller)}
        if run not in runs:
            raise NotFoundError(f"there is no script run {run!r}")
        return ScriptOutput(run=runs[run], output=[ScriptLine(at=AT, stream="out", text="up")])

    async def stream(self, after: int | None) -> AsyncIterator[StreamLine]:
        yield StreamLine(type="hello", seq=7, at=AT, boot_id="b1")
        yield StreamLine(type="cluster", seq=7, at=AT, cluster=cluster())
        for line in _lines("VM1", "node1", after or 7):
            yield StreamLine(type="log", seq=line.seq, at=AT, log=line)
        await asyncio.sleep(0)

    def ready(self, name: str) -> tuple[bool, str]:
        self._known(name)
        return True, "PRIM Ready"


PROBLEMS = [
    (StaleViewError("the role changed"), 409, "stale-view"),
    (BusyError("another operation runs"), 423, "busy"),
    (LossError("2 GiB would be given up"), 409, "loss"),
    (RefusedError("node2 has no equal copy"), 409, "refused"),
]
