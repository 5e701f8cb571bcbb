"""What goes over HTTP, as pydantic models: the contract between daemon, command line and console.

Requests refuse unknown keys; responses ignore them, so that an older console can talk to a newer
daemon. Keys are only added within a contract number. Times are RFC 3339 in UTC, sizes bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hyperha.api.wire_copies import SafetyCopyView, VerifyReport
from hyperha.domain import DataState, Readiness, ResourceState, Role

CONTRACT = 1
KEEPALIVE_S = 5.0
"""A stream line comes at least that often."""


class Response(BaseModel):
    """Root of what the daemon answers."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Request(BaseModel):
    """Root of what the daemon is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ProblemBody(Response):
    """Every error: a stable code, what is wrong, what to do."""

    code: str
    text: str
    fix: str = ""


class WitnessView(Response):
    """The witness as this node sees it."""

    kind: str
    state: ResourceState


class NodeView(Response):
    """One node; for the other one, as it was `seen_ms_ago`."""

    reachable: bool
    seen_ms_ago: int | None
    boot_id: str = ""
    version: str = ""
    config_version: int = 0
    lans: dict[str, ResourceState] = Field(default_factory=dict)
    witness: WitnessView | None = None
    limits: list[str] = Field(default_factory=list)
    """What is off on this node and why (not root, no cgroups), one sentence each."""


class Why(Response):
    """The sentence for the operator and the rule it follows from."""

    rule: str
    text: str


VmWord = Literal["running", "absent", "starting", "stopping", "unknown"]


class VmView(Response):
    """The VM on this node."""

    state: VmWord
    seen_by: Literal["hypervisor", "daemon"] = "daemon"
    run: int = 0


class SuspensionView(Response):
    """Who told a checker to give no verdict, why, until when."""

    by: str
    reason: str
    until: str | None


class CheckerView(Response):
    """One checker and its last verdict."""

    name: str
    kind: str
    state: ResourceState
    suspended: SuspensionView | None = None
    text: str = ""
    action: str = ""


class RestartsView(Response):
    """The restart budget."""

    used: int
    of: int
    window_h: int


class ResyncView(Response):
    """How far a resync is."""

    rule: str
    done_bytes: int
    total_bytes: int
    bytes_per_s: int
    """Of the whole resync so far."""
    seconds_left: int | None
    recent_bytes_per_s: int = 0
    """Of the last seconds."""
    held_back: str = ""
    """By what just now: `guest` (its latency rose), `rate` (resync_rate_mib_s), or nothing."""
    safety_copy: bool = False


class RefusedVerb(Response):
    """A command that is not allowed now, and why."""

    verb: str
    reason: str


class OperationView(Response):
    """A command that was accepted: `running`, `done` or `failed`."""

    id: str
    module: str
    node: str
    verb: str
    by: str
    state: Literal["running", "done", "failed"]
    text: str
    started: str
    ended: str | None = None
    done_bytes: int | None = None
    """How far it is, where that can be told."""
    total_bytes: int | None = None


class ModuleNodeView(Response):
    """One node's side of a module."""

    role: Role
    readiness: Readiness
    data: DataState
    since: str = ""
    why: Why = Why(rule="", text="")
    vm: VmView = VmView(state="unknown")
    boot: str = "on"
    checkers: list[CheckerView] = Field(default_factory=list)
    restarts: RestartsView | None = None
    resync: ResyncView | None = None
    allowed: list[str] = Field(default_factory=list)
    refused: list[RefusedVerb] = Field(default_factory=list)
    losses: dict[str, str] = Field(default_factory=dict)
    """Verb and the loss that must be confirmed before it is done."""
    frozen: bool = False
    """Whether the guest's writes are held."""
    generation: str = ""
    epoch: int = 0
    replication_lan: str = ""
    """Which LAN carries the stream, on the node that sends it; empty without a session."""
    operation: OperationView | None = None
    """The command that is being carried out on this node."""
    damage: str = ""
    """Why the module cannot be used on this node at all (a damaged record)."""
    safety_copies: list[SafetyCopyView] = Field(default_factory=list)
    """What is kept on this node of former states of its copy."""


class PreflightItem(Response):
    """A reason why a start or a failover would not work now, and its fix."""

    code: str
    node: str
    text: str
    fix: str = ""


class ModuleView(Response):
    """A module on both nodes."""

    number: int = 0
    driver: str = ""
    folder: str = ""
    generation: str
    redundant: bool
    failover: bool
    preflight: list[PreflightItem] = Field(default_factory=list)
    nodes: dict[str, ModuleNodeView]


class ClusterView(Response):
    """GET /v1/cluster and `state --json`."""

    contract: int = CONTRACT
    cluster: str
    answered_by: str
    at: str
    boot_id: str = ""
    """Of the answering daemon's process: another one means that sequence numbers began anew."""
    seq: int = 0
    """The newest sequence number of the stream."""
    nodes: dict[str, NodeView]
    modules: dict[str, ModuleView]


class ModuleReport(Response):
    """A module as one node alone sees it."""

    number: int
    driver: str
    folder: str
    generation: str
    failover: bool
    preflight: list[PreflightItem] = Field(default_factory=list)
    side: ModuleNodeView
    verify: VerifyReport = VerifyReport()


class NodeReport(Response):
    """GET /v1/node: the answering node alone."""

    contract: int = CONTRACT
    node: str
    view: NodeView
    modules: dict[str, ModuleReport]
    wall_ms: int = 0
    """Its clock when it answered, in milliseconds since 1970."""


class Expectation(Request):
    """What the operator saw; 409 when it is no longer so."""

    role: Role | None = None
    generation: str | None = None


class ActionOptions(Request):
    """`confirm` is the module's name and the only way past a stated loss. `repair` belongs to
    verify, `id` and `to` to safety copies."""

    confirm: str | None = None
    full: bool = False
    adopt: bool = False
    repair: bool = False
    id: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9._-]*$")] = ""
    to: Annotated[str, Field(max_length=4000)] = ""


VerbWord = Literal[
    "start",
    "stop",
    "prim",
    "primforce",
    "second",
    "swap",
    "restart",
    "stopstart",
    "forcestop",
    "failover-on",
    "failover-off",
    "boot-on",
    "boot-off",
    "boot-auto",
    "drain-on",
    "drain-off",
    "verify",
    "verify-stop",
    "safety-restore",
    "safety-delete",
]


class ActionRequest(Request):
    """POST /v1/modules/{m}/actions. A repeated `request_id` gets the first answer again."""

    verb: VerbWord
    node: str | None = None
    request_id: Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9-]+$")]
    expect: Expectation = Expectation()
    options: ActionOptions = ActionOptions()
    reason: Annotated[str, Field(max_length=500)] = ""


class Accepted(Response):
    """202: the operation goes on; its end comes as a stream line or by GET /v1/operations/{id}."""

    operation: str


class CheckerChange(Request):
    """PUT /v1/modules/{m}/checkers/{c}; the name `all` means every checker, on both nodes."""

    suspended: bool
    until: str | None = None
    reason: Annotated[str, Field(max_length=500)] = ""


LevelLetter = Literal["I", "W", "E"]


class LogLine(Response):
    """One line of a module's log."""

    seq: int
    at: str
    module: str
    node: str
    level: LevelLetter
    source: str
    """`daemon`, `replication`, `start_prim`, a checker's name."""
    rule: str = ""
    text: str
    cause: str = ""
    """Id of the event that caused it."""
    run: str | None = None
    """Id of the script run whose output is one key away."""


class LogPage(Response):
    """GET /v1/modules/{m}/log?after=SEQ&limit=N: the newest lines, oldest first."""

    lines: list[LogLine]
    next: int


class ScriptRun(Response):
    """One run of a script; `state` is `running` until it has ended."""

    id: str
    module: str
    node: str
    script: str
    started: str
    state: Literal["running", "ended"]
    exit_status: int | None = None
    signal: int | None = None
    timed_out: bool = False
    duration_ms: int | None = None
    lines: int = 0


class ScriptLine(Response):
    """One line of a script's output."""

    at: str
    stream: Literal["out", "err"]
    text: str


class ScriptOutput(Response):
    """GET /v1/modules/{m}/scripts/{run}."""

    run: ScriptRun
    output: list[ScriptLine]
    dropped: int = 0


class SnapshotView(Response):
    """GET /v1/modules/{m}/snapshot: what a node's core knows now, for a study of what it would do.

    `state` is for the same release; times are milliseconds of the node's CLOCK_BOOTTIME.
    """

    node: str
    now_ms: int
    wall_ms: int
    instance: str
    state: dict[str, Any]
    timers: list[tuple[str, int]]
    start_ms: int | None = None
    """How long the last start_prim here took; None: none is kept."""
    stop_ms: int | None = None


LineKind = Literal["hello", "reset", "alive", "cluster", "log", "operation"]


class StreamLine(Response):
    """One line of GET /v1/stream: NDJSON.

    `hello` comes first (with `boot_id` and `seq`); `reset` says that lines are missing and
    everything is to be read again; `alive` comes when there was nothing else; `cluster` carries the
    whole new state, `log` one line, `operation` a command that began or ended.
    """

    type: LineKind
    seq: int
    at: str
    boot_id: str | None = None
    cluster: ClusterView | None = None
    log: LogLine | None = None
    operation: OperationView | None = None
