"""What goes over HTTP about the copies themselves: verify, plan, diff, safety copies.

The same contract rules as in `wire`. Sizes are bytes, times RFC 3339 in UTC.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hyperha.domain import DataState


class Told(BaseModel):
    """Root of what is told about copies; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


# --- verify -------------------------------------------------------------------------------


class DifferenceView(Told):
    """Something that the secondary has otherwise: with a length of 0 its names or attributes."""

    path: str
    offset: int
    length: int


class VerifyView(Told):
    """One verification that has ended (R17)."""

    serial: int
    """Counts the verifications of the module, on either node."""
    node: str
    """Where the VM ran and the comparison was made."""
    by: str
    repair: bool
    started: str
    ended: str
    complete: bool
    """Whether everything was compared."""
    text: str
    objects: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    blocks: int = 0
    """Blocks of 64 KiB that differed."""
    others: int = 0
    """Inodes and directories whose names or attributes differed."""
    repaired: int = 0
    """Blocks that were written again on the secondary."""
    left: int = 0
    """Differences that are there still."""
    differences: list[DifferenceView] = Field(default_factory=list)
    """The first ones."""


class VerifyReport(Told):
    """GET /v1/modules/{m}/verify: what the last verification found, and what stands of it."""

    last: VerifyView | None = None
    standing: VerifyView | None = None
    """Differences that no complete verification since has found to be gone."""
    clean_serial: int = 0
    """The last verification that found both copies equal, or made them so."""


# --- plan and diff ------------------------------------------------------------------------


class CandidateView(Told):
    """A file or directory in a copy's log; `bytes`: what is compared of its data at most."""

    path: str
    bytes: int
    whole: bool = False
    names: bool = False


class CandidatesView(Told):
    """What a resync would look at by one copy's log; `everything`: nothing can be excluded."""

    everything: bool = False
    base: str = ""
    files: int = 0
    bytes: int = 0
    listed: list[CandidateView] = Field(default_factory=list)
    """Those with most bytes."""
    text: str = ""
    """Why everything is one."""


StartWord = Literal["in-sync", "candidates", "full"]


class VerdictView(Told):
    """Which copy is the source, as one node decides; nothing is moved without a source."""

    rule: str
    source: str = ""
    target: str = ""
    start: StartWord
    text: str
    gives_up: bool = False
    """The target has a line of its own that goes (N3)."""

    @property
    def same(self) -> tuple[str, str, str]:
        """What both nodes must agree on before a byte is moved."""
        return self.source, self.target, self.start if self.source else ""


SafetyKind = Literal["none", "best_effort", "required"]


class CopyView(Told):
    """GET /v1/modules/{m}/copy: what a node knows of its own copy, and what it would do."""

    node: str
    data: DataState
    generation: str = ""
    alone_since: str = ""
    """Since when its line goes on without the other copy; empty when it does not."""
    runs: bool = False
    in_sync: bool = False
    """Whether a session in sync connects both copies now."""
    candidates: CandidatesView = CandidatesView()
    tree_bytes: int | None = None
    """The sizes of all files; this and the next two only when they were asked for."""
    least_bytes: int | None = None
    """What a whole copy of it needs at least, as far as is certain."""
    room_bytes: int | None = None
    """The most that the folder's file system can hold in its place, as far as is certain."""
    free_bytes: int | None = None
    reserve_bytes: int = 0
    """What a safety copy leaves free."""
    resync_bytes_per_s: int = 0
    """Rate of the last resync; 0: nothing was copied yet."""
    summary: dict[str, Any] = Field(default_factory=dict)
    """What the lineage rules decide by."""
    verdict: VerdictView | None = None
    safety: SafetyKind = "none"
    """What would be kept of this copy, were it the target."""


class SafetyPlan(Told):
    """Whether the target's former state would be kept, and whether there is room for it."""

    kind: SafetyKind
    text: str
    needed_bytes: int | None = None
    """At most; None: not known."""
    free_bytes: int | None = None
    fits: bool | None = None


class PlanView(Told):
    """GET /v1/modules/{m}/plan: what a resync would move now, by which rule; nothing is done."""

    module: str
    answered_by: str
    asked_target: str = ""
    text: str
    agree: bool
    """Whether both nodes decide alike; else nothing is moved."""
    moves: bool
    in_sync: bool = False
    """Whether a session keeps both copies equal now; the verdicts are for the moment it ends."""
    verdict: VerdictView
    verdicts: dict[str, VerdictView]
    loss: str = ""
    """What the target gives up."""
    files: int | None = None
    bytes: int | None = None
    """Compared at most; None: not known."""
    bytes_per_s: int = 0
    seconds: int | None = None
    time_text: str
    safety: SafetyPlan
    fits: bool | None = None
    """Whether the target has room for a whole copy; None: not known, or only a part is copied."""
    room_text: str = ""
    copies: dict[str, CopyView]


class DiffView(Told):
    """GET /v1/modules/{m}/diff: what each copy's log says that it changed, file by file."""

    module: str
    answered_by: str
    text: str
    split: bool = False
    """Both sides went on by themselves."""
    base: str = ""
    """The generation that both maps are relative to; empty when there is none in common."""
    copies: dict[str, CopyView]
    missing: dict[str, str] = Field(default_factory=dict)
    """Node and why nothing is known of its copy."""


# --- safety copies ------------------------------------------------------------------------


class SafetyCopyView(Told):
    """One safety copy: `open` while its resync can be undone, `kept`, or `lost`."""

    id: str
    node: str
    opened: str
    state: Literal["open", "kept", "lost"]
    required: bool = False
    rule: str = ""
    generation: str = ""
    bytes: int = 0
    files: int = 0
    text: str = ""
    """Why it was lost."""
    expires: str = ""
    """When it is deleted at the earliest: only the time counts in which its folder was covered.
    Empty while its resync has not ended."""


class SafetyCopies(Told):
    """GET /v1/modules/{m}/safety-copies: of both nodes, oldest first."""

    copies: list[SafetyCopyView] = Field(default_factory=list)
    missing: dict[str, str] = Field(default_factory=dict)
    """Node and why its copies are not known."""
