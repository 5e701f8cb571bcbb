"""The state of one module on one node, as a frozen value.

Old states stay usable: logs, tests and `explain` compare them. Nothing here decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import PeerStatus, ProbeDone, ResourceSeen, Verb
from hyperha.core.facts import AttachFacts
from hyperha.core.lease import Answer, Request
from hyperha.core.messages import HandoverKind, JoinOffer, SplitReport
from hyperha.core.options import Config, WitnessKind
from hyperha.core.records import Lineage, Proof, Settings
from hyperha.domain import Epoch, Role, SessionKey


class Phase(StrEnum):
    """What a node is in the middle of; together with the role it selects what events mean."""

    IDLE = "idle"
    ATTACHING = "attaching"
    WAITING = "waiting"
    CLAIMING = "claiming"
    ARBITRATING = "arbitrating"
    """The witness is asked who may run."""
    PROVING = "proving"
    FENCING = "fencing"
    """The peer is being switched off (D2c)."""
    OPENING = "opening"
    JOINING = "joining"
    RESYNCING = "resyncing"
    UNDOING = "undoing"
    """The folder is put back to what it was before a resync that was broken off (R15)."""
    FOLLOWING = "following"
    LEAVING = "leaving"
    DRAINING = "draining"
    ENTERING = "entering"
    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    ASKING = "asking"
    STOPPING = "stopping"
    FLUSHING = "flushing"
    HANDING_OVER = "handing-over"
    KILLING = "killing"
    DETACHING = "detaching"


class Link(StrEnum):
    """How the replication session stands."""

    NONE = "none"
    OFFERED = "offered"
    OPENING = "opening"
    COPYING = "copying"
    ENDING = "ending"
    IN_SYNC = "in-sync"
    LOST = "lost"
    """Lost while acknowledgements needed the peer: frozen until proof (D1, D2)."""


class Vm(StrEnum):
    """What this daemon knows about the VM it started."""

    ABSENT = "absent"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Step(StrEnum):
    """What an outstanding operation was for; its result goes to the handler of that step (K2)."""

    ATTACH = "attach"
    DETACH = "detach"
    UNCOVER = "uncover"
    """Like DETACH, but the folder keeps the marker that it has."""
    MARK = "mark"
    OPEN_SAFETY = "open-safety"
    CLOSE_SAFETY = "close-safety"
    UNDO = "undo"
    EXPECT = "expect"
    OPEN = "open"
    CLOSE = "close"
    DRAIN = "drain"
    OUTDATE = "outdate"
    LEAVE = "leave"
    TAKE = "take"
    ENTER = "enter"
    RELEASE = "release"
    PROMOTE = "promote"
    DEMOTE = "demote"
    FREEZE = "freeze"
    END_PARKED = "end-parked"
    FINAL_BARRIER = "final-barrier"
    END_RESYNC = "end-resync"
    RESYNC_BARRIER = "resync-barrier"
    CLEAR = "clear"
    COUNT = "count"
    """What this node has acknowledged alone is asked for (R16)."""
    START_VM = "start-vm"
    STOP_VM = "stop-vm"
    FORBID_CERTIFICATE = "forbid-certificate"
    ALLOW_CERTIFICATE = "allow-certificate"
    FENCE = "fence"
    KILL = "kill"
    PREFLIGHT = "preflight"
    PROBE = "probe"
    LOOK = "look"
    """Like PROBE, ahead of the decision that may need it."""
    POWER_OFF = "power-off"
    WITNESS = "witness"


class Need(StrEnum):
    """What the witness is asked to change."""

    TAKEOVER = "takeover"
    SHRINK = "shrink"
    GROW = "grow"
    HAND_OVER = "hand-over"
    REGISTER = "register"
    CONFIRM = "confirm"
    """Nothing but a sign that it is there: before the VM is stopped for a move (H3)."""


class Agreed(StrEnum):
    """What the peer has granted before the witness is asked (P7)."""

    NOTHING = ""
    ALONE = "alone"
    """Its copy is out, durably."""
    IN_SYNC = "in-sync"
    """It will follow with an equal copy."""


class Goal(StrEnum):
    """What a node wants next, or wants after what it is doing now."""

    RUN = "run"
    """`start`: whatever role the rules give."""
    PRIMARY = "primary"
    """`prim`: an operator wants this node to run the VM."""
    FORCE = "force"
    """`primforce`: also on a copy that is not consistent."""
    SECONDARY = "secondary"
    STOP = "stop"
    RESTART = "restart"
    """stopstart: STOP, then RUN."""
    BLOCKED = "blocked"
    """Stay in WAIT with the reason until an operator commands."""


@dataclass(frozen=True, slots=True)
class Why:
    """The sentence for the operator, and the rule it follows from."""

    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """The operator's command that is being carried out."""

    operation_id: str
    verb: Verb
    by: str
    confirmed: bool = False
    full: bool = False
    adopt: bool = False
    automatic: bool = False


@dataclass(frozen=True, slots=True)
class Handover:
    """A planned move of the primary role, on either side."""

    epoch: Epoch
    kind: HandoverKind
    ready: bool = False
    taking: bool = False


@dataclass(frozen=True, slots=True)
class Resync:
    """Progress for display."""

    rule: str
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: int = 0
    seconds_left: int | None = None
    recent_bytes_per_s: int = 0
    held_back: str = ""


@dataclass(frozen=True, slots=True)
class RuleHolds:
    """A failover rule whose condition holds."""

    name: str
    since_ms: int
    fired: bool = False
    """Its action was carried out; again only when it has ceased to hold in between."""


@dataclass(frozen=True, slots=True)
class FullDisk:
    """The guest is refused room by the file system of its folder (D11)."""

    since_wall_ms: int
    free_bytes: int
    peer_free_bytes: int | None
    """None: not known."""
    text: str
    """The error that the guest gets."""
    obstacle: str = ""
    """Why the VM is not handed over; empty when it is."""


@dataclass(frozen=True, slots=True)
class Split:
    """Both nodes run: what each has told of its line."""

    mine: SplitReport | None = None
    theirs: SplitReport | None = None


@dataclass(frozen=True, slots=True)
class ModuleState:
    """Everything the decisions rest on."""

    config: Config
    lineage: Lineage
    settings: Settings
    role: Role = Role.STOP
    phase: Phase = Phase.IDLE
    goal: Goal = Goal.STOP
    why: Why = Why("", "stopped")
    since_wall_ms: int = 0

    peer: PeerStatus | None = None
    peer_heard: bool = False
    last_heard_ms: int = 0
    looked: ProbeDone | None = None
    """What was found around us since the peer fell silent; None: nothing that counts (W8)."""
    looked_ms: int = 0
    isolated: str = ""
    """Since the peer fell silent the ping witness once did not answer: that is final until the
    peer is heard (W8). How it was found; empty: it answered, or was not asked."""
    shoots_last: bool = False
    """When the peer fell silent it ran more VMs than this node: it may switch this one off before
    this one switches it off (D2c)."""
    listening: bool = True
    """A full window has not passed since the start or since this node itself stalled (L7)."""

    facts: AttachFacts | None = None
    """What was found when the folder was covered; None while it is not covered."""
    unknown_data: str = ""
    """Why the folder's content cannot be trusted (R12); empty when it can."""
    writable: bool = False
    acknowledge: Acknowledge = Acknowledge.NONE

    link: Link = Link.NONE
    session: SessionKey | None = None
    session_start: SessionStart = SessionStart.IN_SYNC
    session_number: int = 0
    attempt: int = 0
    offer: JoinOffer | None = None
    """What the source offered, while a safety copy is being opened for it."""
    resync: Resync | None = None
    before: Lineage | None = None
    """The record as it was before a session was accepted that is not up yet."""
    no_room: Why | None = None
    """Why this copy is not made equal though the other node runs: it is tried again, and goes on
    when there is room (N3)."""
    nonce: str = ""
    refusals: int = 0
    """How often the peer, whose copy is better, has refused our claim since it last changed."""
    hold_until_ms: int = 0
    """Not before this time is the peer asked again after a refusal."""
    departed: bool = False
    """The peer, or the link to it, was lost without a command (D8)."""
    leave_granted: int = -1
    """The session that the peer may leave by its own word: its end is no loss (D7, D8)."""
    frozen_since_ms: int | None = None
    paused: bool = False
    """The freeze was ended towards the hypervisor (M7)."""

    resources: tuple[ResourceSeen, ...] = ()
    """What this node's checkers found last."""
    peer_resources: tuple[ResourceSeen, ...] = ()
    """What the other node's found; empty while it is not heard."""
    rules_hold: tuple[RuleHolds, ...] = ()
    rules_next_ms: int = 0
    """When the next rule may have held for long enough; 0: none is awaited."""

    split: Split | None = None
    """While both nodes run the VM (R16)."""
    full: FullDisk | None = None
    """While this node runs the VM and its disk is full (D11)."""

    vm: Vm = Vm.ABSENT
    fenced: bool = False
    """While the VM is killed: whether its data path is cut off (L5')."""
    run: int = 0
    exited_early: str = ""
    """How the VM ended before the result of its start was known; empty while it has not."""
    proof: Proof | None = None
    """The proof that this node is about to continue with; in the record only with the generation
    that rests on it, so that it can never outlive what it proved (D2, P6)."""
    need: Need | None = None
    """What the witness is being asked for; None: only whether it is there."""
    request: Request | None = None
    """The last request to it, asked again under the same id until it is answered (W7)."""
    witnessed: Answer | None = None
    """What it said last, if that counts: not that it has lost what it knew (W4)."""
    witness_answers: bool = False
    witness_trouble: str = ""
    """What was said to be wrong with it: not again until that has changed (W3, W4)."""
    agreed: Agreed = Agreed.NOTHING
    growing: bool = False
    """The peer's copy is up to date on its disk, and the witness does not know that yet (R11)."""
    claim: Epoch | None = None
    granted: Epoch | None = None
    """The peer's claim that was granted last: asked again, it is answered again."""
    handover: Handover | None = None
    returned: bool = False
    """The peer has just come back with an equal copy: it may be preferred (P5)."""
    last_man: bool = False
    peer_leaving: bool = False
    told: str = ""
    """The last reason for waiting that was logged, without its figures: said once, not at every
    retry."""
    yielded: bool = False
    """The peer is about to run by our own grant or release: follow it, do not claim."""
    command: Command | None = None
    operation: int = 0
    awaiting: tuple[tuple[int, Step], ...] = ()
    engine_failures: int = 0
    end: Why | None = None
    """Why the module is being stopped or killed: becomes `why` when that is done."""

    @property
    def attached(self) -> bool:
        """Whether the folder is covered."""
        return self.facts is not None

    @property
    def frozen(self) -> bool:
        """Whether the guest's writes are held."""
        return self.frozen_since_ms is not None

    @property
    def unjudged(self) -> bool:
        """Whether the VM may be held up by what is no fault of its own: no checker judges it while
        its writes are held (K3), or while there is no room for them (D11)."""
        return self.frozen or self.full is not None

    @property
    def on_lease(self) -> bool:
        """Whether the VM may run only as long as nobody else can be granted to run it (L6)."""
        asks = self.config.witness is not WitnessKind.NONE
        return asks and self.role.runs_vm and not self.lineage.sole

    @property
    def promised(self) -> bool:
        """Whether what the peer says of itself promises not to take over for takeover_wait (L6).
        Where there is no lease to be granted, only a node that follows ever takes over."""
        if not self.peer_heard or self.peer is None:
            return False
        follows = self.peer.role is Role.SECOND
        return follows or (self.config.pinged and not self.peer.role.runs_vm)

    @property
    def unwitnessed(self) -> bool:
        """Whether there is a lease witness that does not answer: nothing can be moved (H3)."""
        return self.config.leased and not self.witness_answers

    def awaits(self, step: Step) -> bool:
        """Whether an operation of that step is outstanding."""
        return any(waiting is step for _, waiting in self.awaiting)
