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
    SnapshotView,
    StreamLine,
    SuspensionView,
    VmView,
    Why,
    WitnessView,
)
from hyperha.api.wire_copies import (
    CandidatesView,
    CandidateView,
    CopyView,
    DifferenceView,
    DiffView,
    PlanView,
    SafetyCopies,
    SafetyCopyView,
    SafetyPlan,
    VerdictView,
    VerifyReport,
    VerifyView,
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
from hyperha.study.snapshot import snapshot_body
from tests.support.world import pair, snapshots

NOBODY = Caller("", "", "")
AT = "2026-11-22T08:50:42.120Z"

VERIFIED = VerifyView(
    serial=3,
    node="node1",
    by="ann",
    repair=False,
    started=AT,
    ended=AT,
    complete=True,
    text="compared 4 files and directories with 3.1 MiB: "
    "1 block of 64 KiB differs in disk at 65,536",
    objects=4,
    done_bytes=3245733,
    total_bytes=3245733,
    blocks=1,
    left=1,
    differences=[DifferenceView(path="disk", offset=65536, length=65536)],
)
KEPT = SafetyCopyView(
    id="20261122-085042-a1b2",
    node="node2",
    opened=AT,
    state="kept",
    required=True,
    rule="R9",
    generation="g16",
    bytes=5 << 20,
    files=12,
    expires="2026-11-29T08:50:42.120Z",
)
_LISTED = [
    CandidateView(path="disk", bytes=1 << 20),
    CandidateView(path="etc", bytes=0, names=True),
]
AHEAD = CopyView(
    node="node1",
    data=DataState.UPTODATE,
    generation="g17",
    alone_since=AT,
    runs=True,
    candidates=CandidatesView(base="g16", files=2, bytes=1 << 20, listed=_LISTED),
    resync_bytes_per_s=100 << 20,
)
BEHIND = CopyView(node="node2", data=DataState.OUTDATED, generation="g16", free_bytes=9 << 30)
_VERDICT = VerdictView(
    rule="R7",
    source="node1",
    target="node2",
    start="candidates",
    text="node1 went on without node2",
)
PLAN = PlanView(
    module="VM1",
    answered_by="node1",
    text="node2 would be made equal to node1: node1 went on without node2; "
    "what stands in either log is compared",
    agree=True,
    moves=True,
    verdict=_VERDICT,
    verdicts={"node1": _VERDICT, "node2": _VERDICT.model_copy(update={"rule": "R6"})},
    files=2,
    bytes=1 << 20,
    bytes_per_s=100 << 20,
    seconds=1,
    time_text="about 1 s at 100 MiB/s, as the last resync went",
    safety=SafetyPlan(
        kind="best_effort", text="a safety copy keeps what node2 has now (best effort)", fits=True
    ),
    copies={"node1": AHEAD, "node2": BEHIND},
)
DIFF = DiffView(
    module="VM1",
    answered_by="node1",
    text="node1 went on by itself since 2026-11-22 08:50 UTC",
    base="g16",
    copies={"node1": AHEAD},
    missing={"node2": "node2 does not answer: connection refused"},
)


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

    async def verify_report(self, name: str, caller: Caller) -> VerifyReport:
        self._known(name)
        return VerifyReport(last=VERIFIED, standing=VERIFIED)

    async def safety_copies(self, name: str, caller: Caller) -> SafetyCopies:
        self._known(name)
        return SafetyCopies(copies=[KEPT])

    async def own_copy(self, name: str, against: str, target: str, *, sizes: bool) -> CopyView:
        self._known(name)
        self.asked.append((name, (against, target, sizes), NOBODY))
        return CopyView(node="node1", data=DataState.UPTODATE, summary={"node": "node1"})

    async def plan(self, name: str, target: str) -> PlanView:
        self._known(name)
        if target not in ("", "node2"):
            raise RefusedError(f"{target} cannot be the target (R7): node1 went on without node2")
        return PLAN

    async def diff(self, name: str) -> DiffView:
        self._known(name)
        return DIFF

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

    async def snapshot(self, name: str, node: str | None, caller: Caller) -> SnapshotView:
        self._known(name)
        self._answers_for(node)
        (found,) = (one for key, one in snapshots(pair()).items() if key == "node1")
        return SnapshotView(node="node1", **snapshot_body(found))

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
