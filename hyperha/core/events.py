"""What happened, as values. Names are in the past tense; results carry the operation number."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hyperha.core.actions import Timer
from hyperha.core.facts import AttachFacts, Shortage
from hyperha.core.lease import Answer
from hyperha.core.messages import PeerMessage
from hyperha.core.records import Lineage, Settings
from hyperha.domain import DataState, Epoch, Readiness, ResourceState, Role, SessionKey


class Event:
    """Root of all events."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Stimulus:
    """An event with what the core may not fetch for itself: id, time and random bits.

    `now_ms` is CLOCK_BOOTTIME; `wall_ms` only for people; `entropy` 32 hexadecimal digits that
    become a generation id or a nonce if one is needed.
    """

    id: str
    now_ms: int
    wall_ms: int
    entropy: str
    event: Event


class Verb(StrEnum):
    """The commands on a module that the core decides about."""

    START = "start"
    STOP = "stop"
    PRIM = "prim"
    PRIMFORCE = "primforce"
    SECOND = "second"
    SWAP = "swap"
    RESTART = "restart"
    STOPSTART = "stopstart"
    FORCESTOP = "forcestop"


@dataclass(frozen=True, slots=True)
class CommandGiven(Event):
    """An operator's command. What the operator saw is compared with what is: else refused."""

    verb: Verb
    operation_id: str
    by: str
    reason: str = ""
    expect_role: Role | None = None
    expect_generation: str | None = None
    confirmed: bool = False
    full: bool = False
    adopt: bool = False
    automatic: bool = False
    """Given by the daemon itself (boot, shutdown): does not reset the restart budget."""


@dataclass(frozen=True, slots=True)
class SettingsChanged(Event):
    """An operator switched failover or boot, drained or resumed the node, or suspended or resumed
    checkers."""

    operation_id: str
    by: str
    failover: bool | None = None
    boot: str | None = None
    drained: bool | None = None
    suspend: str | None = None
    """Checker name, or empty for all of them."""
    resume: str | None = None
    reason: str = ""
    until_wall_ms: int | None = None


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What the other node's heartbeats say about its side of the module; never a proof (P7)."""

    role: Role
    readiness: Readiness
    data: DataState
    epoch: int
    generation: str
    """First 16 hexadecimal digits of its current generation."""
    stopping: bool
    wanted: bool
    boot_id: str
    config_version: int = 0
    """Of the configuration that it works by (F13)."""


@dataclass(frozen=True, slots=True)
class PeerHeard(Event):
    """The peer's status is known: for the first time, again, or changed."""

    status: PeerStatus


@dataclass(frozen=True, slots=True)
class PeerSilent(Event):
    """Every LAN and the session have been silent for `suspect`; the last sign came at that time."""

    last_heard_ms: int
    runs_here: int = 0
    """How many VMs this node runs."""
    runs_there: int = 0
    """How many the peer ran, as it said last."""


@dataclass(frozen=True, slots=True)
class MessageReceived(Event):
    """A message of the other node's core."""

    message: PeerMessage


@dataclass(frozen=True, slots=True)
class CertificateReceived(Event):
    """The peer's guardian has fenced and killed this run of this epoch (L8)."""

    run: int
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class SelfStalled(Event):
    """This node itself did not run for a while: it has observed nothing (L7)."""

    gap_ms: int


@dataclass(frozen=True, slots=True)
class TimerFired(Event):
    """A deadline has come."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class PersistFailed(Event):
    """The records could not be made durable; everything queued behind was dropped (K1).

    The records are the last durable ones: the core goes on from there.
    """

    text: str
    lineage: Lineage
    settings: Settings


@dataclass(frozen=True, slots=True)
class EngineDone(Event):
    """The result of an engine action; `text` says why when it failed."""

    operation: int
    ok: bool
    text: str = ""
    attach: AttachFacts | None = None
    candidates: int | None = None
    """Unresolved log records plus dirty zones now, where a folder is covered (as AttachFacts)."""
    lacks: Shortage | None = None
    """It failed for want of this room."""


@dataclass(frozen=True, slots=True)
class SessionUp(Event):
    """Handshake done. `candidates` is the size of the united candidate set, 0 when in sync."""

    session: SessionKey
    candidates: int


@dataclass(frozen=True, slots=True)
class SessionLost(Event):
    """The session ended without being asked to, or could not begin. `refused`: the two sides do
    not agree (for example IN_SYNC with candidates left). `lacks`: the target has no room for the
    copy; then nothing was moved."""

    session: SessionKey
    text: str
    refused: bool = False
    lacks: Shortage | None = None


@dataclass(frozen=True, slots=True)
class SessionStalled(Event):
    """The peer made no progress for `waited_ms` while operations wait (D8'): told at suspect,
    and again at stall_limit with `over_limit`."""

    session: SessionKey
    waited_ms: int
    over_limit: bool


@dataclass(frozen=True, slots=True)
class ResyncProgressed(Event):
    """How far a resync is, for display. `bytes_per_s` is of the whole of it so far."""

    session: SessionKey
    done_bytes: int
    total_bytes: int
    bytes_per_s: int
    seconds_left: int | None
    recent_bytes_per_s: int = 0
    """The same of the last seconds."""
    held_back: str = ""
    """By what just now: `guest` (its latency, T7), `rate` (the one that was set), or nothing."""


@dataclass(frozen=True, slots=True)
class ResyncCopied(Event):
    """Source: every candidate is equal on both sides; R11 may begin."""

    session: SessionKey


@dataclass(frozen=True, slots=True)
class SafetyLost(Event):
    """The safety copy of the resync under way was given up: there is no way back from it."""

    text: str


@dataclass(frozen=True, slots=True)
class SafetyShort(Event):
    """A required safety copy has no room for what the other node's stream would overwrite next,
    which therefore was not (N3)."""

    lacks: Shortage


@dataclass(frozen=True, slots=True)
class LocalDiskFailed(Event):
    """The folder's disk failed here: fsync error, write error, ENOSPC on apply (D10, D11)."""

    text: str


@dataclass(frozen=True, slots=True)
class DiskFull(Event):
    """The folder's file system has refused the guest room (D11): told at the first refusal, and
    while there is none again when the figures change, at least every minute.

    Bytes free for the guest here and on the peer; None where no session tells."""

    text: str
    free_bytes: int
    peer_free_bytes: int | None


@dataclass(frozen=True, slots=True)
class DiskHasRoom(Event):
    """The file system that was full has room again, and refuses nothing any more (D11)."""

    free_bytes: int


@dataclass(frozen=True, slots=True)
class DiskFilling(Event):
    """A secondary's disk is full; what it has acknowledged finds room in its reserve, nothing more
    does (D11)."""

    text: str


@dataclass(frozen=True, slots=True)
class EngineLost(Event):
    """The replication process died. `recovered`: a successor has taken the mount over (M4)."""

    text: str
    recovered: bool


@dataclass(frozen=True, slots=True)
class MountLost(Event):
    """The mount is gone or covered by another one: an I/O failure (M6)."""

    text: str


@dataclass(frozen=True, slots=True)
class VmDone(Event):
    """The result of a VM action."""

    operation: int
    ok: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class VmExited(Event):
    """The VM's process ended without being asked to."""

    run: int
    text: str


class CheckerAction(StrEnum):
    """What a checker's verdict asks for."""

    RESTART = "restart"
    STOPSTART = "stopstart"
    STOP = "stop"
    WAIT = "wait"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class CheckerFailed(Event):
    """A confirmed verdict of a checker about this run (K2)."""

    checker: str
    run: int
    action: CheckerAction
    text: str


@dataclass(frozen=True, slots=True)
class WitnessDone(Event):
    """The lease witness has answered, or has not within its time (`answer` is None)."""

    operation: int
    answer: Answer | None
    text: str = ""


@dataclass(frozen=True, slots=True)
class ResourceSeen(Event):
    """What a checker of this node knows of its resource."""

    checker: str
    kind: str
    state: ResourceState
    text: str = ""

    @property
    def resource(self) -> str:
        """The name that rules give it."""
        return f"{self.kind}.{self.checker}"


@dataclass(frozen=True, slots=True)
class PeerResources(Event):
    """What the checkers of the other node know; nothing while it is not heard."""

    resources: tuple[ResourceSeen, ...]


@dataclass(frozen=True, slots=True)
class PoweredOff(Event):
    """`ok`: the command that switches the peer off has confirmed that it is off (D2c)."""

    operation: int
    ok: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class LeaseExpired(Event):
    """The guardian found the deadline passed: the VM is fenced and killed, or is about to be
    (L6)."""

    text: str


@dataclass(frozen=True, slots=True)
class ProbeDone(Event):
    """`isolated`: nothing but ourselves answers (None: cannot be told). `peer_answers`: its
    daemon, or its host behind a filter, answered on some path (W8)."""

    operation: int
    isolated: bool | None
    peer_answers: bool
    text: str
