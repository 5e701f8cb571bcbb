"""One node of a modelled cluster: its core, its durable records, its folder, its hands.

The engine and the VM are modelled by what they promise (core.actions); the core is the real one.
Each write of the guest is a number, so that it can be told which copy holds which.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core.actions import Acknowledge
from hyperha.core.explain import readiness
from hyperha.core.machine import step
from hyperha.core.options import Config
from hyperha.core.records import Lineage, Settings
from hyperha.core.state import ModuleState, Phase
from hyperha.domain import Marker, SessionKey

if TYPE_CHECKING:
    from hyperha.study.model_node import Node
    from hyperha.study.timeline import Timeline

ROOMY_BYTES = 1 << 40
START_MS = 50


class Violation(AssertionError):
    """An invariant of the world does not hold."""


@dataclass
class Folder:
    """What is on a node's data disk."""

    marker: Marker | None = None
    data: set[int] = field(default_factory=set)
    log: bool = False
    """Unresolved intent-log records."""
    dirty: bool = False
    safety: set[int] | None = None
    """What the copy held before the resync that is under way (R15)."""
    safety_required: bool = False
    """As the record of the safety copy itself has it."""
    kept: list[set[int]] = field(default_factory=list)
    half: bool = False
    """A resync has begun to overwrite it and has not ended."""


class BaseNode:
    """A core with its records: what it is told, and what becomes of what it decides."""

    def __init__(self, world: Timeline, name: str, peer: str, config: Config) -> None:
        self.world = world
        self.name = name
        self.peer_name = peer
        self.config = config
        self.lineage = Lineage(resource="r1", node=name, peer=peer)
        self.settings = Settings()
        self.folder = Folder()
        self.alive = False
        self.boot = 0
        self.clock_ms = 0
        """How far its clock is ahead of the world's."""
        self.start_ms = START_MS
        """How long its hypervisor takes to start the VM."""
        self.stop_ms = START_MS
        self.log: list[str] = []
        self.finished: dict[str, tuple[bool, str]] = {}
        self.start_fails = False
        self.safety_fails = False
        self.too_small = False
        """Its file system cannot take a whole copy."""
        self.half_allowed = False
        """An operator may start a half made copy (`primforce`)."""
        self.demote_fails = False
        self.detach_fails = False
        self.barrier_fails = False
        self.stop_fails = False
        """Its hypervisor does not end the VM when it is told to."""
        self.free_bytes = ROOMY_BYTES
        """On the file system of its folder; 0: the guest is refused everything (D11)."""
        self.start()

    def start(self) -> None:
        """Its daemon begins, with the records that it finds."""
        self.alive = True
        self.boot += 1
        self.instance = str(self.boot)
        self.state = ModuleState(self.config, self.lineage, self.settings)
        self.timers: dict[a.Timer, int] = {}
        self.attached = False
        self.writable = False
        self.acknowledge = Acknowledge.NONE
        self.parked: set[int] = set()
        self.unapplied: set[int] = set()
        """As a secondary: acknowledged in memory, not yet in the folder."""
        self.session: SessionKey | None = None
        self.session_role = ""
        self.session_up = False
        self.vm_run = 0
        self.certify = False
        """Whether the guardian may certify the end of the run (L8)."""
        self.failing_fences = 0
        self.heard_ms = self.world.now
        self.silent = True
        self.told: e.PeerStatus | None = None
        self.sent: e.PeerStatus | None = None
        self.in_order_ms = 0
        self.work: list[a.Action] = []
        self.storing: a.Persist | None = None
        self.failing_persists = 0
        self.storing_fails = False
        self.refused_ms = 0
        self.stands_since = self.stands_until = 0
        self.promised_ms = 0
        """Since when the other node has promised not to take over (L6)."""
        self.renewed_ms = 0
        """When it last asked the witness and was told that it may run (L2)."""

    @property
    def stands(self) -> bool:
        """Whether nothing of it runs, as on a host that is held for a moment."""
        return self.stands_until > self.world.now

    @property
    def speechless(self) -> bool:
        """Its heartbeats say nothing of the module (K1)."""
        return self.storing_fails and not self.state.role.runs_vm

    @property
    def peer(self) -> Node:
        return self.world.nodes[self.peer_name]

    def event(self, event: e.Event) -> None:
        if not self.alive:
            return
        self.world.counter += 1
        stimulus = e.Stimulus(
            f"e{self.world.counter}",
            self.world.now + self.clock_ms,
            self.world.wall_ms,
            f"{self.world.random.getrandbits(128):032x}",
            event,
        )
        self.state, actions = step(self.state, stimulus)
        for action in actions:
            if isinstance(action, a.Fence | a.KillVm):
                self.perform(action)  # may overtake (K1)
            else:
                self.work.append(action)
        self.pump()
        self.world.check(self)
        self.world.status_changed(self)

    def pump(self) -> None:
        """Perform what was decided, in order; a Persist is a barrier that takes its time (K1)."""
        while self.work and self.storing is None:
            action = self.work.pop(0)
            if not isinstance(action, a.Persist):
                self.perform(action)
                continue
            self.storing = action
            delay_ms = self.world.store_delay_ms()
            if delay_ms:
                self.world.at(delay_ms, self, ("stored", action))
            else:
                self.stored()

    def stored(self) -> None:
        """The disk has answered: go on, or drop everything behind a failure (K1)."""
        action, self.storing = self.storing, None
        assert action is not None
        if self.failing_persists:
            self.failing_persists -= 1
            self.storing_fails = True
            self.work.clear()
            self.world.story.append(f"{self.world.now:>7} {self.name} PERSIST FAILED")
            self.event(e.PersistFailed("EIO", self.lineage, self.settings))
            return
        self.lineage, self.settings = action.lineage, action.settings
        self.storing_fails = False
        self.pump()

    def perform(self, action: a.Action) -> None:
        getattr(self, _method(type(action).__name__))(action)

    def later(self, event: e.Event, delay_ms: int | None = None) -> None:
        delay = self.world.random.randrange(1, 20) if delay_ms is None else delay_ms
        if not isinstance(event, e.MessageReceived):
            # What one engine tells arrives in the order it was told; messages may overtake.
            delay = max(delay, self.in_order_ms - self.world.now)
            self.in_order_ms = self.world.now + delay
        self.world.at(delay, self, event)

    def done(self, operation: int, ok: bool = True, text: str = "", **fields: object) -> None:
        candidates = int(self.folder.log) + int(self.folder.dirty)
        self.later(e.EngineDone(operation, ok, text, candidates=candidates, **fields))  # type: ignore[arg-type]

    # --- actions -----------------------------------------------------------------------------

    def do_tell(self, action: a.Tell) -> None:
        self.log.append(
            f"{self.world.now:>7} {self.name} {action.level} {action.rule} {action.text}"
        )
        self.world.story.append(self.log[-1])
        self.world.tells(self, action)

    def do_finish(self, action: a.Finish) -> None:
        self.finished[action.operation_id] = (action.done, action.text)

    def do_send_peer(self, action: a.SendPeer) -> None:
        world = self.world
        if isinstance(action.message, m.HandoverRequest):
            world.note_request(action.message)
        if world.connected(self, self.peer) and world.random.random() >= world.loss:
            self.world.deliver(self, action.message, world.random.randrange(1, 12))
        while world.random.random() < world.late:
            # The network kept a copy of it.
            self.world.deliver(self, action.message, world.random.randrange(12, 6000))

    def do_arm_timer(self, action: a.ArmTimer) -> None:
        self.timers[action.timer] = action.at_ms - self.clock_ms

    def do_cancel_timer(self, action: a.CancelTimer) -> None:
        self.timers.pop(action.timer, None)

    @property
    def status(self) -> e.PeerStatus:
        """What its heartbeats say."""
        state = self.state
        epoch = state.lineage.held if state.role.runs_vm else state.lineage.epoch
        return e.PeerStatus(
            state.role,
            readiness(state),
            state.lineage.data,
            epoch.counter,
            state.lineage.current.id[:16],
            state.phase in _LEAVING,
            state.settings.wanted,
            self.instance,
            state.config.version,
        )

    @property
    def steady(self) -> bool:
        """Whether it is in the middle of nothing."""
        return self.state.phase in (Phase.RUNNING, Phase.FOLLOWING, Phase.WAITING)


_LEAVING = (Phase.STOPPING, Phase.FLUSHING, Phase.ASKING, Phase.DETACHING)


@functools.cache
def _method(kind: str) -> str:
    return "do" + re.sub("([A-Z])", r"_\1", kind).lower()
