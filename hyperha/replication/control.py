"""Messages between the daemon and a module's replication process, and their codec.

One message is one packet of the SOCK_SEQPACKET control channel: JSON with a type tag, decoded
strictly by the types of the dataclass. Descriptors travel beside a packet (SCM_RIGHTS) and are
named by what the message is. Pure: no sockets here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from hyperha.core import actions, events
from hyperha.core.facts import Shortage
from hyperha.encoding import EncodingError, from_plain, to_plain
from hyperha.errors import ReplicationError
from hyperha.replication.safety.copy import Facts

PACKET_LIMIT: Final = 160 * 1024
"""Bytes of one packet; below the smallest socket buffer that Linux gives by itself."""

ALIVE_MS: Final = 400
"""A frame of the peer that is younger proves that the session lives (P8); an idle one carries one
every 250 ms."""


class ProcessMessage:
    """Root of the messages that are neither actions nor events of the core."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files for mutual TLS are."""

    ca: str
    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class PeerLink:
    """One LAN that replication may use; `tls` None only where the operator declared it private."""

    lan: str
    peer_address: str
    peer_port: int
    local_address: str
    tls: TlsFiles | None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything a replication process is told at its start. Times in milliseconds."""

    cluster_id: str
    module: str
    number: int
    node: str
    peer: str
    folder: str
    run_directory: str
    links: tuple[PeerLink, ...]
    """In order of preference."""
    suspect_ms: int = 1500
    stall_limit_ms: int = 3000
    strict: bool = False
    """durability = "strict": every write is a barrier."""
    resync_rate_mib_s: int = 0
    """0: bounded by the guest's latency only."""
    safety_keep_days: int = 7
    """How long a kept safety copy is kept."""
    safety_max_gib: int = 0
    """How large kept safety copies may grow together; 0: as far as the file system has room."""
    kernel_features_off: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Start(ProcessMessage):
    """First message to the process. A successor (M4) gets with it the kept descriptors, in the
    order of `descriptors`, and answers with `TakenOver`. `ours`: as in `Descriptors`."""

    config: EngineConfig
    successor: bool = False
    descriptors: tuple[str, ...] = ()
    ours: bool = True


@dataclass(frozen=True, slots=True)
class TakeSocket(ProcessMessage):
    """A TCP connection that the daemon accepted on `lan`; its preamble was read (hexadecimal)."""

    lan: str
    preamble: str


@dataclass(frozen=True, slots=True)
class Descriptors(ProcessMessage):
    """Duplicates for the daemon to keep: names in the order of the descriptors beside it.

    `folder` (the plain folder below the mount), `device` (/dev/fuse) and `table` are kept for a
    successor (M4); `fence` arms the guardian (L5'), and the field of that name says of which kind
    it is. Without rights there may be no fence. A new set replaces the former one, whose
    descriptors are to be closed. Not `ours`: a folder whose marker was not accepted is covered; its
    log stays untouched, by a successor too (R12).
    """

    names: tuple[str, ...]
    fence: str = ""
    ours: bool = True


@dataclass(frozen=True, slots=True)
class HoldOrphan(ProcessMessage):
    """Hold the descriptor beside it: an open file without a name of a node of the table, which
    would die with the process (M4). Of one process each `serial` is another one."""

    serial: int
    node: int


@dataclass(frozen=True, slots=True)
class DropOrphan(ProcessMessage):
    """Close what is held under that number."""

    serial: int


@dataclass(frozen=True, slots=True)
class HeldOrphans(ProcessMessage):
    """To a successor, before `Start`: what its predecessor had held, each with its descriptor."""

    serials: tuple[int, ...]
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TakenOver(ProcessMessage):
    """A successor's first word: whether it serves the mount of its predecessor (M4)."""

    ok: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class Statistics(ProcessMessage):
    """What the process does, every second while the folder is covered."""

    session: str
    """`none`, `connecting`, `up`, `resync`, `serving`."""
    acknowledge: str
    """`local`, `both`, `none`, or `standby`."""
    parked: int
    oldest_parked_ms: int
    writes: int
    """Since the start."""
    written_bytes: int
    log_records: int
    log_capacity: int
    queue_bytes: int
    """Received and not yet applied (secondary), or not yet acknowledged (primary)."""
    handles_open: int
    heard_ms: int = 0
    """When the last frame of the peer came in (CLOCK_BOOTTIME, which the daemon reads as well), in
    a session that is up; 0 without one. Not how long ago: that would age on its way."""
    told_ms: int = 0
    """When this was said, by the same clock."""
    lan: str = ""
    """What carries the primary's stream; empty without a session."""

    def session_lives(self, now_ms: int, suspect_ms: int) -> bool:
        """Whether this proves that the session lives (P8): the peer had just been heard when it was
        said. On its way it may age, since a daemon that is late says nothing about the peer; but
        not for longer than a peer may be silent.
        """
        return self.heard_ms > self.told_ms - ALIVE_MS and now_ms - self.told_ms < suspect_ms


@dataclass(frozen=True, slots=True)
class Question(ProcessMessage):
    """Root of what the daemon asks beside the core's orders; answers name the `request`."""

    request: int


@dataclass(frozen=True, slots=True)
class StartVerify(Question):
    """Compare both copies (R17), which are in sync; `repair`: mend what differs on the secondary.
    Answered by `VerifyTold` twice a second and at the end."""

    repair: bool


@dataclass(frozen=True, slots=True)
class StopVerify(Question):
    """End a verification; its last `VerifyTold` follows."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the secondary's copy has otherwise: `length` bytes at `offset` of a file, or
    with a length of 0 its names or attributes."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class VerifyTold(ProcessMessage):
    """What a verification has come to, so far or, when `finished`, at its end."""

    request: int
    done_bytes: int = 0
    total_bytes: int = 0
    objects: int = 0
    """Files and directories compared."""
    blocks: int = 0
    """Blocks of 64 KiB that differ."""
    others: int = 0
    """Inodes and directories that differ in names or attributes."""
    repaired: int = 0
    """Blocks written again on the secondary."""
    examples: tuple[Difference, ...] = ()
    """The first differences."""
    finished: bool = False
    text: str = ""
    """Why it did not come to its end; empty when it did."""


@dataclass(frozen=True, slots=True)
class AskCandidates(Question):
    """What would a resync look at, by this copy's log? Answered by `CandidatesTold`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file or directory in the log. `bytes`: what is compared of its data at most."""

    path: str
    bytes: int
    whole: bool
    """All of it, not single zones."""
    names: bool
    """Also, or only, its names or attributes."""


@dataclass(frozen=True, slots=True)
class CandidatesTold(ProcessMessage):
    """The log's candidates, those with most bytes first, at most some hundred of them."""

    request: int
    everything: bool
    """Nothing can be excluded (Z6)."""
    base: str
    """The generation that the map is relative to; empty when there is none."""
    files: int
    bytes: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class ListSafety(Question):
    """Which safety copies are there? Answered by `SafetyCopies`."""


@dataclass(frozen=True, slots=True)
class SafetyCopies(ProcessMessage):
    """Every safety copy of the folder, oldest first."""

    request: int
    copies: tuple[Facts, ...]
    text: str = ""
    """Why they are not known; empty when they are."""
    lacks: Shortage | None = None
    """Room is short, and copies are kept that are not given up for it (N3)."""


@dataclass(frozen=True, slots=True)
class RestoreSafety(Question):
    """Make the state that a safety copy holds anew in `to` (absolute; missing or empty).
    Answered by `SafetyAnswered`, twice a second and at the end."""

    id: str
    to: str


@dataclass(frozen=True, slots=True)
class DeleteSafety(Question):
    """Delete a safety copy whose resync has ended. Answered by one `SafetyAnswered`."""

    id: str


@dataclass(frozen=True, slots=True)
class SafetyAnswered(ProcessMessage):
    """How far a restore or deletion has come, or when `finished` how it ended."""

    request: int
    ok: bool = True
    text: str = ""
    """What went wrong and what to do, or what was done."""
    done_bytes: int = 0
    total_bytes: int = 0
    finished: bool = False


@dataclass(frozen=True, slots=True)
class LogLine(ProcessMessage):
    """One line for the module's log. `level`: I, W or E; `rule`: the rule it follows, or empty."""

    level: str
    rule: str
    text: str


Message = actions.EngineAction | events.Event | ProcessMessage

_EVENTS: Final = (
    events.EngineDone,
    events.SessionUp,
    events.SessionLost,
    events.SessionStalled,
    events.ResyncProgressed,
    events.ResyncCopied,
    events.SafetyLost,
    events.SafetyShort,
    events.DiskFilling,
    events.DiskFull,
    events.DiskHasRoom,
    events.LocalDiskFailed,
    events.MountLost,
)


def _all_types() -> dict[str, type]:
    found: dict[str, type] = {kind.__name__: kind for kind in _EVENTS}
    # By name, since a class with slots leaves its unslotted twin among the subclasses.
    for root, home in ((actions.EngineAction, vars(actions)), (ProcessMessage, globals())):
        for name, kind in list(home.items()):
            if isinstance(kind, type) and issubclass(kind, root) and kind is not root:
                found[name] = kind
    return found


_TYPES: Final = _all_types()


def encode(message: Message) -> bytes:
    """The packet of one message. Raises ReplicationError when it would not fit."""
    name = type(message).__name__
    if _TYPES.get(name) is not type(message):
        raise ReplicationError(f"{name} is no message of the control channel")
    try:
        body = {"type": name, **to_plain(message)}
    except EncodingError as problem:
        raise ReplicationError(f"control message {name}: {problem}") from None
    raw = json.dumps(body, separators=(",", ":"), ensure_ascii=True).encode()
    if len(raw) > PACKET_LIMIT:
        raise ReplicationError(f"control message {name} of {len(raw)} bytes is too large")
    return raw


def decode(raw: bytes) -> Message:
    """The message of one packet. Raises ReplicationError naming what is wrong with it."""
    try:
        body = json.loads(raw)
    except ValueError as problem:
        raise ReplicationError(f"control message is not JSON ({problem})") from None
    if not isinstance(body, dict):
        raise ReplicationError("control message is not a JSON object")
    name = body.pop("type", None)
    kind = _TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ReplicationError(f"control message has the unknown type {name!r}")
    try:
        message: Message = from_plain(kind, body)
    except EncodingError as problem:
        raise ReplicationError(str(problem)) from None
    return message
