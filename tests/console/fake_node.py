"""A node for the console's tests: real HTTP messages through httpx's mock transport, no socket.

It keeps a state, answers every endpoint that the console uses, and notes what it was sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from pydantic import BaseModel

from hyperha.api.wire import (
    CheckerView,
    ClusterView,
    LogLine,
    ModuleNodeView,
    ModuleView,
    NodeView,
    OperationView,
    RefusedVerb,
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
)
from hyperha.api.wire_copies import SafetyCopies
from hyperha.domain import DataState, Readiness, ResourceState, Role
from tests.support.fake_service import DIFF, KEPT, PLAN

AT = "2026-11-22T12:41:07.000Z"
VERBS = [
    *("start", "stop", "prim", "primforce", "second", "swap", "restart", "stopstart"),
    *("verify", "verify-stop", "safety-restore", "safety-delete"),
]


def side(role: Role = Role.PRIM, **changes: Any) -> ModuleNodeView:
    """One node's side that can do everything, unless told otherwise."""
    runs = role.runs_vm
    values: dict[str, Any] = {
        "role": role,
        "readiness": Readiness.NOT_READY if role is Role.STOP else Readiness.READY,
        "data": DataState.UPTODATE,
        "since": AT,
        "why": Why(rule="P1", text="runs the VM; node2 has an equal copy" if runs else "follows"),
        "vm": VmView(state="running" if runs else "absent"),
        "checkers": [
            CheckerView(name="web", kind="vm", state=ResourceState.UP, action="restart"),
            CheckerView(name="http", kind="tcp", state=ResourceState.UP, action="restart"),
        ],
        "restarts": RestartsView(used=0, of=3, window_h=24),
        "allowed": [*VERBS, "forcestop"],
        "generation": "3fa1c2" + "0" * 26,
        "epoch": 4,
    }
    return ModuleNodeView(**(values | changes))


def module(number: int = 1, **changes: Any) -> ModuleView:
    """A module that runs on node1 and is followed on node2."""
    values: dict[str, Any] = {
        "number": number,
        "driver": "process",
        "folder": "/srv/hyperha/web",
        "generation": "3fa1c2" + "0" * 26,
        "redundant": True,
        "failover": True,
        "nodes": {"node1": side(), "node2": side(Role.SECOND)},
    }
    return ModuleView(**(values | changes))


def cluster(modules: dict[str, ModuleView] | None = None, **changes: Any) -> ClusterView:
    """Two nodes that hear each other."""
    node = NodeView(
        reachable=True, seen_ms_ago=0, boot_id="b1", version="0.1.0", lans={"prod": "up"}
    )
    values: dict[str, Any] = {
        "cluster": "paris",
        "answered_by": "node1",
        "at": AT,
        "boot_id": "b1",
        "seq": 10,
        "nodes": {"node1": node, "node2": node},
        "modules": {"web": module()} if modules is None else modules,
    }
    return ClusterView(**(values | changes))


def log(seq: int, text: str, *, name: str = "web", **changes: Any) -> LogLine:
    """A line of a module's log."""
    values: dict[str, Any] = {
        "seq": seq,
        "at": AT,
        "module": name,
        "node": "node1",
        "level": "I",
        "source": "daemon",
        "text": text,
    }
    return LogLine(**(values | changes))


RESYNC = ResyncView(
    rule="R6",
    done_bytes=430 << 20,
    total_bytes=1000 << 20,
    bytes_per_s=180 << 20,
    recent_bytes_per_s=212 << 20,
    held_back="guest",
    seconds_left=130,
)
SUSPENDED = SuspensionView(by="anna", reason="patch night", until="2026-11-22T14:00:00Z")
REFUSED = [RefusedVerb(verb="prim", reason="node1 is PRIM already")]


class FakeNode:
    """Answers like a daemon; `sent` holds every request that changes something."""

    def __init__(self, view: ClusterView | None = None) -> None:
        self.view = view or cluster()
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.down = False
        self.other_silent = False
        self.lines: list[LogLine] = [
            log(1, "heartbeat prod up"),
            log(2, "begins", source="start_prim", run="17-start_prim"),
            log(3, "checker http slow (1.9 s)", level="W"),
        ]
        self.output = ScriptOutput(
            run=ScriptRun(
                id="17-start_prim",
                module="web",
                node="node1",
                script="start_prim",
                started=AT,
                state="ended",
                exit_status=0,
                duration_ms=1400,
                lines=2,
            ),
            output=[
                ScriptLine(at=AT, stream="out", text="mounting /data"),
                ScriptLine(at=AT, stream="err", text="vm web boots"),
            ],
        )
        self.snapshots: dict[str, SnapshotView] = {}
        self.operations: dict[str, OperationView] = {}
        self.copies: dict[str, BaseModel] = {
            "plan": PLAN,
            "diff": DIFF,
            "safety-copies": SafetyCopies(copies=[KEPT]),
        }
        self._readers: list[asyncio.Queue[StreamLine | None]] = []
        self.connections = 0
        self.after: list[str] = []
        self.nonsense = False
        self.scripts_silent = False

    def transport(self, _: object) -> httpx.AsyncBaseTransport:
        """For `Session(transport_of=...)`."""
        return httpx.MockTransport(self._answer)

    # --- what happens on the node ------------------------------------------------------------

    def change(self, view: ClusterView) -> None:
        """Another state."""
        self.view = view
        self._tell(StreamLine(type="cluster", seq=view.seq, at=AT, cluster=view))

    def say(self, line: LogLine) -> None:
        """A line of the log."""
        self.lines.append(line)
        if line.node != self.view.answered_by:
            return  # The stream has the answering node's lines only.
        self._tell(StreamLine(type="log", seq=line.seq, at=AT, log=line))

    def end(self, operation: str, state: str = "done", text: str = "stopped") -> None:
        """A command ends."""
        ended = self.operations[operation].model_copy(update={"state": state, "text": text})
        self.operations[operation] = ended
        self._tell(StreamLine(type="operation", seq=11, at=AT, operation=ended))

    def cut(self) -> None:
        """The node is gone: connections end, new ones are refused."""
        self.down = True
        for reader in self._readers:
            reader.put_nowait(None)

    def _tell(self, line: StreamLine) -> None:
        for reader in self._readers:
            reader.put_nowait(line)

    # --- HTTP --------------------------------------------------------------------------------

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("connection refused", request=request)
        path = request.url.path
        if request.method in ("POST", "PUT"):
            return self._command(request.method, path, json.loads(request.content))
        if path == "/v1/stream":
            self.connections += 1
            self.after.append(request.url.params["after"])
            return httpx.Response(200, content=self._stream())
        return self._read(path, request.url.params)

    def _read(self, path: str, query: httpx.QueryParams) -> httpx.Response:
        parts = path.split("/")
        node = query.get("node") or self.view.answered_by
        if node != self.view.answered_by and self.other_silent:
            problem = {"code": "unreachable", "text": f"{node} does not answer: no address"}
            return httpx.Response(502, json=problem)
        if path == "/v1/cluster" and self.nonsense:
            return _json({"cluster": 7})
        if path == "/v1/cluster":
            return _json(self.view.model_dump(mode="json"))
        if parts[2] == "operations":
            return _json(self.operations[parts[3]].model_dump(mode="json"))
        if parts[-1] in self.copies:
            return _json(self.copies[parts[-1]].model_dump(mode="json"))
        if parts[-1] == "snapshot" and node in self.snapshots:
            return _json(self.snapshots[node].model_dump(mode="json"))
        if path.endswith("/log"):
            after = int(query.get("after", "0"))
            found = [
                one.model_dump(mode="json")
                for one in self.lines
                if one.module == parts[3] and one.node == node and one.seq > after
            ]
            newest = max((one.seq for one in self.lines if one.node == node), default=0)
            return _json({"lines": found, "next": newest})
        if path.endswith("/scripts") and self.scripts_silent:
            problem = {"code": "unreachable", "text": f"{node} does not answer: timed out"}
            return httpx.Response(502, json=problem)
        if path.endswith("/scripts"):
            run = self.output.run
            return _json([run.model_dump(mode="json")] if run.node == node else [])
        if parts[-2] == "scripts":
            if self.output.run.node != node:
                problem = {"code": "not-found", "text": f"there is no run on {node}"}
                return httpx.Response(404, json=problem)
            return _json(self.output.model_dump(mode="json"))
        return httpx.Response(404, json={"code": "not-found", "text": path})

    def _command(self, method: str, path: str, body: dict[str, Any]) -> httpx.Response:
        self.sent.append((method, path, body))
        if self.refusal is not None:
            status, problem = self.refusal
            return httpx.Response(status, json=problem)
        name = f"node1-{len(self.sent):04d}"
        self.operations[name] = OperationView(
            id=name,
            module=path.split("/")[3],
            node=body.get("node") or "node1",
            verb=body.get("verb", "checker"),
            by="root",
            state="running",
            text="",
            started=AT,
        )
        return httpx.Response(202, json={"operation": name})

    async def _stream(self) -> AsyncIterator[bytes]:
        reader: asyncio.Queue[StreamLine | None] = asyncio.Queue()
        self._readers.append(reader)
        reader.put_nowait(
            StreamLine(type="hello", seq=self.view.seq, at=AT, boot_id=self.view.boot_id)
        )
        while True:
            line = await reader.get()
            if line is None:
                raise httpx.ReadError("connection reset")
            yield line.model_dump_json().encode() + b"\n"


def _json(body: Any) -> httpx.Response:
    return httpx.Response(200, json=body)
