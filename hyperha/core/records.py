"""What must survive a crash: the lineage of a module's data on a node, and the operator's settings.

Both are stored by the shell in one durable step (`actions.Persist`); the core alone decides what
stands in them. What a copy is worth is derived from the lineage and never stored (G5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from hyperha.domain import NO_EPOCH, DataState, Epoch, Marker


class DataLabel(StrEnum):
    """What the node durably knows about its own copy."""

    FRESH = "fresh"
    """Never held the module's data: a new module, or a folder that was never replicated."""
    UPTODATE = "uptodate"
    OUTDATED = "outdated"
    INCONSISTENT = "inconsistent"


class ProofKind(StrEnum):
    """Why a node may continue without its peer (D2)."""

    PEER_SAID_SO = "peer-said-so"
    CERTIFICATE = "certificate"
    POWER_FENCED = "power-fenced"
    WITNESS = "witness"
    PING = "ping"
    """Only this node reached the ping witness, as far as the network lets only one (W8)."""
    POLICY_PRIMARY = "policy-primary"
    POLICY_RUN = "policy-run"
    OPERATOR = "operator"

    @property
    def durable(self) -> bool:
        """Whether it still proves after a crash that the peer is out (P6)."""
        return self not in (ProofKind.PING, ProofKind.POLICY_RUN, ProofKind.OPERATOR)


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof that the peer is out, and the epoch it was obtained in."""

    kind: ProofKind
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Generation:
    """One line of data: the id decides, ordinal, reason and wall time are for people (G2)."""

    id: str
    ordinal: int
    reason: str
    at_wall_ms: int


NO_GENERATION = Generation("", 0, "", 0)
HISTORY_LENGTH = 16


@dataclass(frozen=True, slots=True)
class Lineage:
    """The lineage record of one module on one node."""

    resource: str
    """Random id of the module: folders and records of another one are foreign (R0, R12)."""
    node: str
    peer: str
    current: Generation = NO_GENERATION
    base: str = ""
    """Generation that the dirty map is relative to; empty while the peer is in sync (G3')."""
    history: tuple[str, ...] = ()
    label: DataLabel = DataLabel.FRESH
    sync_from: str = ""
    """Node that an INCONSISTENT copy is being made from."""
    target_generation: str = ""
    former_label: DataLabel = DataLabel.FRESH
    """The label before INCONSISTENT: restored when a resync is undone (R4', R15)."""
    way_back: bool = False
    """While INCONSISTENT: whether a safety copy can undo the resync that is under way (R15)."""
    way_back_required: bool = False
    """While there is a way back: whether the resync does not go on without it either (N3). Under
    which rule it began is forgotten when it goes on by R3."""
    intent_primary: bool = False
    """Durable before the VM can write (P4); found at start-up it means a crashed primary (P2)."""
    peer_out: Proof | None = None
    epoch: Epoch = NO_EPOCH
    """Highest epoch that this node ever held, granted or saw."""
    held: Epoch = NO_EPOCH
    """The epoch under which this node ran last; its runs and sessions carry it (L1)."""
    released_to: Epoch | None = None
    """The hand-over's commit: only the node of this epoch may run (H2)."""
    marker: Marker | None = None
    """The folder marker that was last ordered to be written (R12)."""
    marker_written: bool = False
    """Whether the engine has confirmed that the folder carries it."""
    markers_before: tuple[Marker, ...] = ()
    """Values that the folder may still carry, because a crash came between record and folder."""
    full_compare_owed: bool = False
    was_primary: bool = False
    """Whether this node was the last of the two to run the module, as far as it knows."""
    alone_since_wall_ms: int = 0
    ran_before: bool = False
    """Whether this node ran the VM already when it lost its peer, and went on alone (R16)."""
    reached: bool | None = None
    """Whether it reached others then; None: it did not ask (R16)."""
    yields_to: str = ""
    """The generation that this line gives way to after a split brain; empty while it does not."""
    pending: str = ""
    """The generation that the witness was asked to shrink to: the next one (W9)."""
    shrink_owed: bool = False
    """This node went on alone by another proof, which the witness has not been told yet (W9)."""
    sole: bool = False
    """Nobody else can be granted to run: the witness counts no other copy, or the other node has
    written that its own is out (L6)."""
    witness_version: int = 0
    """The highest version of the witness's record that this node has seen (W10)."""

    @property
    def data(self) -> DataState:
        """What people are shown."""
        match self.label:
            case DataLabel.UPTODATE:
                return DataState.UPTODATE
            case DataLabel.OUTDATED:
                return DataState.OUTDATED
            case DataLabel.INCONSISTENT:
                return DataState.INCONSISTENT
            case DataLabel.FRESH:
                return DataState.UNKNOWN

    def released(self, epoch: Epoch, *, leaves: bool) -> Lineage:
        """The commit of a hand-over: only the node of this epoch may run from here on (H2)."""
        return replace(
            self,
            released_to=epoch,
            epoch=epoch,
            intent_primary=False,
            was_primary=False,
            label=DataLabel.OUTDATED if leaves else DataLabel.UPTODATE,
        )

    def minted(self, generation_id: str, reason: str, at_wall_ms: int) -> Lineage:
        """A new generation: history is pushed, the base moves only when there was none (G3')."""
        history = self.history
        if self.current.id:
            history = (self.current.id, *history)[:HISTORY_LENGTH]
        return replace(
            self,
            current=Generation(generation_id, self.current.ordinal + 1, reason, at_wall_ms),
            history=history,
            base=self.base or self.current.id,
        )

    def with_marker(self) -> Lineage:
        """The marker to be written next; what may be on the disk stays acceptable (R12)."""
        counter = self.marker.counter + 1 if self.marker else 1
        marker = Marker(self.resource, self.node, self.current.id, counter)
        return replace(
            self, marker=marker, marker_written=False, markers_before=self.acceptable_markers
        )

    @property
    def acceptable_markers(self) -> tuple[Marker, ...]:
        """What the folder may carry if it is the one this record speaks of (R12)."""
        if self.marker is None:
            return ()
        if self.marker_written:
            return (self.marker,)
        return (self.marker, *self.markers_before)[:8]


@dataclass(frozen=True, slots=True)
class Suspension:
    """A checker, or all of them (`checker` empty), told to give no verdict."""

    checker: str
    by: str
    reason: str
    until_wall_ms: int | None


@dataclass(frozen=True, slots=True)
class Settings:
    """What operators and the restart budget want remembered."""

    wanted: bool = False
    """Whether the module was last told to run here."""
    boot: str = "on"
    failover: bool = True
    suspensions: tuple[Suspension, ...] = ()
    recoveries_wall_ms: tuple[int, ...] = ()
    """Automatic recoveries in the sliding window (restart budget)."""
    start_failed: str = ""
    """Why the last start_prim here failed; keeps the other node from handing over to us."""
    departures_wall_ms: tuple[int, ...] = ()
    """When the peer was last lost without a command (D8)."""
    quarantine_until_wall_ms: int | None = None
    """Until when the peer is not preferred, since it was lost too often."""
    room_handover_wall_ms: int = 0
    """When the VM was last handed over, or was to be, because a disk was full, on either node
    (D11); 0: never."""
    drained_by: str = ""
    """Who drained this node for maintenance: nothing is moved here until it is resumed."""
    took_over: bool = False
    """Whether this node runs the VM because the peer, which ran it, was lost or stopped (P5)."""
    peer_config: int = 0
    """The version of the configuration that the peer was last heard with (F13); 0: never heard."""
    certified_epoch: Epoch | None = None
    """A certificate was sent for this epoch: no start under it before the peer answered (L8)."""
