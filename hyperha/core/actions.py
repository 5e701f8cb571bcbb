"""What the core wants done, as values, in order.

`Persist` is a barrier: nothing behind it starts before it is durable, also not an action of a
later event (K1); only `Fence` and `KillVm` may overtake. Actions that end later carry an operation
number; their result comes back as an event with the same number, others are ignored (K2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hyperha.core.lease import Request
from hyperha.core.messages import PeerMessage
from hyperha.core.records import Generation, Lineage, Settings
from hyperha.domain import Epoch, Marker, SessionKey


class Action:
    """Root of all actions."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Persist(Action):
    """Make both records durable before anything that follows."""

    lineage: Lineage
    settings: Settings


@dataclass(frozen=True, slots=True)
class EngineAction(Action):
    """Root of the actions that the module's replication process performs.

    Each is answered by one `events.EngineDone` with the same operation number.
    """

    operation: int


@dataclass(frozen=True, slots=True)
class Attach(EngineAction):
    """Cover the folder in standby mode (M3, M5, M6); write the marker.

    `accept`: marker values of which the folder must carry one (R12). `fresh`: a module without
    data yet, whose folder may also carry none. A folder that carries another one, or none where
    one is expected, is covered all the same but reported, and `write` is then not written unless
    `adopt`.
    The answer carries `facts.AttachFacts`.
    """

    accept: tuple[Marker, ...]
    write: Marker
    adopt: bool
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Detach(EngineAction):
    """Write the marker (None: leave it), sync, uncover the folder, end the process."""

    write: Marker | None


@dataclass(frozen=True, slots=True)
class SetMarker(EngineAction):
    """Rewrite the folder's marker durably after the generation changed (R12)."""

    write: Marker


class SessionStart(StrEnum):
    """What both sides agreed that a session begins with."""

    IN_SYNC = "in-sync"
    """R5: nothing to move. Refused by the engine when either side has candidates (G4)."""
    CANDIDATES = "candidates"
    """R3, R4, R6, R7: the union of both nodes' logs and maps is compared by digest."""
    FULL = "full"
    """R2, R8, adopt, damaged log: everything is compared by digest."""


@dataclass(frozen=True, slots=True)
class ExpectSession(EngineAction):
    """Secondary: serve this session, and only this one, when the primary connects (T3)."""

    session: SessionKey
    start: SessionStart


@dataclass(frozen=True, slots=True)
class OpenSession(EngineAction):
    """Primary: connect to the peer and agree on the session; `EngineDone` at once,
    `events.SessionUp` or `events.SessionLost` later."""

    session: SessionKey
    start: SessionStart


@dataclass(frozen=True, slots=True)
class CloseSession(EngineAction):
    """Fence the stream: nothing more is acknowledged or applied from it; on a secondary what was
    acknowledged is applied and synced first (P8). Harmless without a session."""


@dataclass(frozen=True, slots=True)
class OpenSafety(EngineAction):
    """Secondary, before the first byte (R15, F8): from here on whatever a resync destroys is saved
    first. Done when that is durable; fails when there is no room for it.

    `resume`: the resync that the open copy belongs to goes on. Otherwise the copy is a new one, and
    one left open by a resync that came to nothing is not continued. `required`: rather no resync
    than none (N3). `rule` and `generation` (of the copy that is about to go) are for people.
    `gives_up`: the copy will be the only holder of what this node's line had acknowledged.
    """

    resume: bool
    required: bool
    rule: str
    generation: Generation
    gives_up: bool


class SafetyEnd(StrEnum):
    """Why nothing more needs to be saved for an undo."""

    COPIED = "copied"
    """The resync has ended: a required copy is kept, another one has no use any more."""
    UNDONE = "undone"
    """The folder holds again what the copy had saved."""
    FORCED = "forced"
    """An operator started the half made copy: what it was before is kept."""


@dataclass(frozen=True, slots=True)
class CloseSafety(EngineAction):
    """The copy opened for a resync is kept or deleted; harmless without one."""

    end: SafetyEnd


@dataclass(frozen=True, slots=True)
class UndoResync(EngineAction):
    """R15: the folder becomes what it was before the resync that the open copy belongs to."""


class Acknowledge(StrEnum):
    """Whose completion a write needs before the guest is answered."""

    LOCAL = "local"
    """ALONE, or PRIM's source during a resync: this node; everything is marked dirty."""
    BOTH = "both"
    """PRIM."""
    NONE = "none"
    """Frozen: parked until the core has decided (D1)."""


@dataclass(frozen=True, slots=True)
class Promote(EngineAction):
    """Standby to primary: mutations are accepted from here on, answered as `acknowledge` says."""

    epoch: Epoch
    acknowledge: Acknowledge


@dataclass(frozen=True, slots=True)
class Demote(EngineAction):
    """Primary to standby: a new standby layer on top, then the old connection is ended, with
    every page, handle and parked request in it (M2, M3)."""


@dataclass(frozen=True, slots=True)
class EnterAlone(EngineAction):
    """Z1: every record still in the log becomes dirty, durably, relative to `base`; nothing is
    answered yet. Everything that follows is marked dirty until a resync clears it."""

    base: str


@dataclass(frozen=True, slots=True)
class Release(EngineAction):
    """D4, D5: answer what is parked and go on with the local node's completion only."""


@dataclass(frozen=True, slots=True)
class Freeze(EngineAction):
    """D1: answer no mutation from here on; park them."""


@dataclass(frozen=True, slots=True)
class EndParked(EngineAction):
    """M7: end every parked request with EIO, so that the hypervisor pauses the guest."""


@dataclass(frozen=True, slots=True)
class Barrier(EngineAction):
    """Everything done so far is on stable storage on this node and, in a session, on the peer."""


@dataclass(frozen=True, slots=True)
class EndResync(EngineAction):
    """R11: switch to acknowledgement by both; done when everything sent earlier is acknowledged."""

    session: SessionKey


@dataclass(frozen=True, slots=True)
class ClearMap(EngineAction):
    """R11, F10: the target confirmed UPTODATE, or is the target itself: forget the dirty map."""


@dataclass(frozen=True, slots=True)
class VmAction(Action):
    """Root of the actions of the module's driver and scripts; answered by `events.VmDone`."""

    operation: int


@dataclass(frozen=True, slots=True)
class StartVm(VmAction):
    """start_prim: scripts and driver. The guardian is armed for this run first; `certify` as in
    AllowCertificate."""

    run: int
    epoch: Epoch
    certify: bool


@dataclass(frozen=True, slots=True)
class AllowCertificate(VmAction):
    """L8: whether the guardian may certify the end of this run to the peer. It may not from the
    first write on that is acknowledged here alone: the peer's copy lacks it. Done when the guardian
    knows; never fails, since writes are held until then."""

    allowed: bool


@dataclass(frozen=True, slots=True)
class StopVm(VmAction):
    """stop_prim: scripts and driver; `force` skips the graceful part. Nothing of the run remains,
    and its handles on the mount are released (M12), when this is done."""

    run: int
    force: bool


@dataclass(frozen=True, slots=True)
class Fence(VmAction):
    """L5': end the FUSE connection from outside, so that nothing more is answered. May overtake."""


@dataclass(frozen=True, slots=True)
class KillVm(VmAction):
    """L5': after the fence: kill the run's processes and wait until they are gone. May overtake."""

    run: int


@dataclass(frozen=True, slots=True)
class Preflight(VmAction):
    """Would the VM start here? Answered by `events.VmDone` with the reasons if not (H2)."""


@dataclass(frozen=True, slots=True)
class SendPeer(Action):
    """Send to the other node's core on every LAN; lost messages are sent again by timers."""

    message: PeerMessage


@dataclass(frozen=True, slots=True)
class Probe(Action):
    """Is this node the isolated one, and does the peer answer on any path (W6', W8)?
    Answered by `events.ProbeDone`."""

    operation: int


@dataclass(frozen=True, slots=True)
class PowerOff(Action):
    """Switch the peer off by the command that the operator has configured for it (D2c).
    Answered by `events.PoweredOff`."""

    operation: int


@dataclass(frozen=True, slots=True)
class AskWitness(Action):
    """Put a request to the lease witness. Answered by `events.WitnessDone`, within the time that a
    question may take (L3')."""

    operation: int
    request: Request


class Timer(StrEnum):
    """The named deadlines of a module."""

    RETRY = "retry"
    """Say it again: the last unanswered message to the peer."""
    PROOF = "proof"
    """Ask again for the proof that the peer is out (D2)."""
    RELEASE = "release"
    """stall_limit after the peer's last sign of life: the primary may continue at the earliest."""
    TAKEOVER = "takeover"
    """takeover_wait after the peer's last sign of life (L3')."""
    LISTEN = "listen"
    """A full window of listening after the start, before anything is concluded (L7, P6)."""
    PAUSE = "pause"
    """pause_after: a longer freeze pauses the guest (M7)."""
    SUSPENSION = "suspension"
    """The next end of a checker suspension."""
    OFFER = "offer"
    """How long an offered session waits to be taken."""
    QUARANTINE = "quarantine"
    """The end of the peer's quarantine (D8)."""
    PATIENCE = "patience"
    """How long a step waits for the peer before the other way is taken."""
    GRACE = "grace"
    """How long a VM found down at the end of a suspension has to come back by itself."""
    LOOK = "look"
    """When a secondary whose peer is silent looks around again (W8)."""
    WITNESS = "witness"
    RULES = "rules"
    """When the witness is asked again."""
    SPLIT = "split"
    """When two nodes that both run tell each other about their lines (R16)."""
    REJOIN = "rejoin"
    """When a secondary asks again to follow."""


@dataclass(frozen=True, slots=True)
class ArmTimer(Action):
    """Send `events.TimerFired` at this CLOCK_BOOTTIME; a timer of the same name is replaced."""

    timer: Timer
    at_ms: int


@dataclass(frozen=True, slots=True)
class CancelTimer(Action):
    """Forget the timer; harmless when there is none."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Finish(Action):
    """An operator's operation has ended."""

    operation_id: str
    done: bool
    text: str


class Level(StrEnum):
    """Weight of a log line."""

    INFO = "I"
    WARNING = "W"
    ERROR = "E"


@dataclass(frozen=True, slots=True)
class Tell(Action):
    """One line in the module's log: what happened, by which rule."""

    level: Level
    rule: str
    text: str
