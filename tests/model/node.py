"""One node as a value: its core, its durable records, its engine, folder and VM.

Time is relative: `NOW_MS` is always the present, and what was or will be moves when time passes,
so that two histories which differ only in when they happened end in the same state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.explain import readiness
from hyperha.core.options import Config, Isolation, Timing, WitnessKind
from hyperha.core.records import Lineage, Settings
from hyperha.core.state import ModuleState, Phase
from hyperha.domain import Marker, Role, SessionKey

NOW_MS = 1_000_000
LONG_AGO_MS = NOW_MS - 5_000
"""Nothing asks how long ago anything was that is older."""
NAMES = ("node1", "node2")


class Broken(AssertionError):
    """A promise does not hold; the text begins with its id."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What is on a node's data disk. Writes are numbers."""

    marker: Marker | None = None
    data: frozenset[int] = frozenset()
    log: bool = False
    """Unresolved records in the write-intent log."""
    dirty: bool = False
    safety: frozenset[int] | None = None
    """What the copy held before the resync that is under way (R15)."""
    safety_required: bool = False
    kept: frozenset[int] = frozenset()
    """What is in safety copies that have ended."""
    half: bool = False
    """A resync has begun to overwrite it and has not ended."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node between two events."""

    core: ModuleState
    lineage: Lineage
    settings: Settings
    up: bool = True
    frozen: bool = False
    """Every process of the node stands still."""
    boot: int = 1
    timers: tuple[tuple[a.Timer, int], ...] = ()
    work: tuple[a.Action, ...] = ()
    """Decided and not done: the first one is the record that is being stored (K1)."""
    answers: tuple[e.Event, ...] = ()
    """What the engine has to say, in its order."""
    vm_answers: tuple[e.Event, ...] = ()
    folder: Folder = Folder()
    attached: bool = False
    writable: bool = False
    acknowledge: Acknowledge = Acknowledge.NONE
    parked: frozenset[int] = frozenset()
    unapplied: frozenset[int] = frozenset()
    """As a secondary: acknowledged in memory, not yet in the folder."""
    session: SessionKey | None = None
    source: bool = False
    session_up: bool = False
    session_start: SessionStart = SessionStart.IN_SYNC
    vm_run: int = 0
    certify: bool = False
    silent: bool = True
    told: e.PeerStatus | None = None
    """What the core was last told of the other node."""
    heard_ms: int = LONG_AGO_MS
    stalled_ms: int | None = None
    """Since when a session that needs the other node makes no progress."""
    stall_told: int = 0
    speechless: bool = False
    """Its heartbeats say nothing of the module (K1)."""
    held: tuple[a.Action, ...] = ()
    """What the engine was asked and cannot end before the other node is reached, or given up."""
    asked: a.AskWitness | None = None
    """What it wants of the witness."""
    shoots: a.PowerOff | None = None
    """It wants the other node switched off."""
    renewed_ms: int = LONG_AGO_MS
    """When it last asked the witness and was told that it may run (L2)."""
    made: int = 0
    """Random ids drawn so far."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a node does to the world around it, in order."""

    sent: tuple[m.PeerMessage, ...] = ()
    acknowledged: frozenset[int] = frozenset()
    dropped: bool = False
    """Its end of a session that was up is gone."""
    flushed: bool = False
    """A barrier on both nodes."""
    started: bool = False
    """A VM was started."""


def first(
    index: int, isolation: Isolation, witness: WitnessKind, ttl_ms: int, fences: bool
) -> Node:
    """A node that never ran."""
    name, peer = NAMES[index], NAMES[1 - index]
    # What is repeated is repeated less often, or there would be too many states.
    timing = Timing(retry_ms=1000) if ttl_ms or fences else Timing()
    config = Config(
        "VM1",
        1,
        name,
        peer,
        isolation,
        timing,
        first_node=NAMES[0],
        witness=witness,
        ttl_ms=ttl_ms,
        fences=fences,
    )
    lineage = Lineage(resource="r1", node=name, peer=peer)
    return Node(ModuleState(config, lineage, Settings()), lineage, Settings())


def status(node: Node) -> e.PeerStatus:
    """What its heartbeats say."""
    core = node.core
    epoch = core.lineage.held if core.role.runs_vm else core.lineage.epoch
    leaving = (Phase.STOPPING, Phase.FLUSHING, Phase.ASKING, Phase.DETACHING)
    return e.PeerStatus(
        core.role,
        readiness(core),
        core.lineage.data,
        epoch.counter,
        core.lineage.current.id[:16],
        core.phase in leaving,
        core.settings.wanted,
        str(node.boot),
    )


def deadline_ms(node: Node) -> int | None:
    """When its guardian ends the VM (L6); None where nobody else can be granted to run it."""
    ttl_ms = node.core.config.ttl_ms
    if not ttl_ms or not node.up or not node.vm_run or node.lineage.sole:
        return None
    told = node.told.role if node.told is not None else None
    promised = told is Role.SECOND or (node.core.config.pinged and told in (Role.WAIT, Role.STOP))
    return max(node.heard_ms if promised else LONG_AGO_MS, node.renewed_ms) + ttl_ms


def expired(node: Node) -> bool:
    """Whether the guardian has to end its VM, or had to while everything stood still."""
    deadline = deadline_ms(node)
    return deadline is not None and deadline <= NOW_MS


def advanced(node: Node, by_ms: int) -> Node:
    """The same node later; nothing happened."""
    core = node.core
    core = replace(
        core,
        last_heard_ms=_ago(core.last_heard_ms, by_ms),
        looked_ms=_ago(core.looked_ms, by_ms),
        hold_until_ms=_ago(core.hold_until_ms, by_ms),
        frozen_since_ms=None if core.frozen_since_ms is None else _ago(core.frozen_since_ms, by_ms),
    )
    return replace(
        node,
        core=core,
        timers=tuple((timer, at - by_ms) for timer, at in node.timers),
        heard_ms=_ago(node.heard_ms, by_ms),
        renewed_ms=_ago(node.renewed_ms, by_ms),
        stalled_ms=None if node.stalled_ms is None else _ago(node.stalled_ms, by_ms),
    )


def _ago(at_ms: int, by_ms: int) -> int:
    return max(LONG_AGO_MS, at_ms - by_ms)
