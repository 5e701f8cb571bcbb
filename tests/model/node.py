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
from hyperha.core.records import Lineage, Settings
from hyperha.core.state import Config, Isolation, ModuleState, Phase, Timing
from hyperha.domain import Marker, SessionKey

NOW_MS = 1_000_000
LONG_AGO_MS = NOW_MS - 20_000
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


def first(index: int, isolation: Isolation) -> Node:
    """A node that never ran."""
    name, peer = NAMES[index], NAMES[1 - index]
    config = Config("VM1", 1, name, peer, isolation, Timing(), first_node=NAMES[0])
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
        stalled_ms=None if node.stalled_ms is None else _ago(node.stalled_ms, by_ms),
    )


def _ago(at_ms: int, by_ms: int) -> int:
    return max(LONG_AGO_MS, at_ms - by_ms)
