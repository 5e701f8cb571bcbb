"""Two cores in a modelled world: virtual time, network, disks, engines, VMs.

The engine and the VM are modelled by what they promise (core.actions); the cores are the real
ones. Each write is a number; the world knows which were acknowledged, which copy holds which, and
checks after every event what must never happen.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field, replace

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core import room
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.facts import AttachFacts, MarkerState, Shortage
from hyperha.core.lease import Known, Lease, answered
from hyperha.core.machine import step
from hyperha.core.options import Config, Isolation, Timing, WitnessKind
from hyperha.core.records import DataLabel, Lineage, Settings
from hyperha.core.state import ModuleState, Phase
from hyperha.domain import Epoch, Marker, Role, SessionKey

HEARTBEAT_MS = 250
TTL_MS = 2750
SHOOT_MS = 2000
ROOMY_BYTES = 1 << 40
REFUSED_AGAIN_MS = 60_000


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


class Node:
    """One node: a core, its durable records, its folder, its engine and its VM."""

    def __init__(self, world: World, name: str, peer: str, config: Config) -> None:
        self.world = world
        self.name = name
        self.peer_name = peer
        self.config = config
        self.lineage = Lineage(resource="r1", node=name, peer=peer)
        self.settings = Settings()
        self.folder = Folder()
        self.alive = False
        self.boot = 0
        self.log: list[str] = []
        self.finished: dict[str, tuple[bool, str]] = {}
        self.start_fails = False
        self.safety_fails = False
        self.too_small = False
        """Its file system cannot take a whole copy."""
        self.half_allowed = False
        """An operator may start a half made copy (`primforce`)."""
        self.demote_fails = False
        self.free_bytes = ROOMY_BYTES
        """On the file system of its folder; 0: the guest is refused everything (D11)."""
        self.start()

    def start(self) -> None:
        self.alive = True
        self.boot += 1
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
        self.promised_ms = 0
        """Since when the other node has promised not to take over (L6)."""
        self.renewed_ms = 0
        """When it last asked the witness and was told that it may run (L2)."""

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
            self.world.now,
            1_700_000_000_000 + self.world.now,
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
        getattr(self, "do_" + type(action).__name__)(action)

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

    def do_Tell(self, action: a.Tell) -> None:
        self.log.append(
            f"{self.world.now:>7} {self.name} {action.level} {action.rule} {action.text}"
        )
        self.world.story.append(self.log[-1])

    def do_Finish(self, action: a.Finish) -> None:
        self.finished[action.operation_id] = (action.done, action.text)

    def do_SendPeer(self, action: a.SendPeer) -> None:
        world = self.world
        if isinstance(action.message, m.HandoverRequest):
            world.note_request(action.message)
        if world.connected(self, self.peer) and world.random.random() >= world.loss:
            self.world.deliver(self, action.message, world.random.randrange(1, 12))
        while world.random.random() < world.late:
            # The network kept a copy of it.
            self.world.deliver(self, action.message, world.random.randrange(12, 6000))

    def do_ArmTimer(self, action: a.ArmTimer) -> None:
        self.timers[action.timer] = action.at_ms

    def do_CancelTimer(self, action: a.CancelTimer) -> None:
        self.timers.pop(action.timer, None)

    def do_Attach(self, action: a.Attach) -> None:
        found = self.folder.marker
        if found is None:
            marker = MarkerState.ABSENT
        else:
            marker = MarkerState.MATCHES if found in action.accept else MarkerState.DIFFERS
        good = marker is MarkerState.MATCHES or (action.fresh and found is None)
        if good or action.adopt:
            self.folder.marker = action.write
        self.attached = True
        candidates = int(self.folder.log) + int(self.folder.dirty)
        facts = AttachFacts(marker, found, not self.folder.data, candidates)
        self.done(action.operation, attach=facts)

    def do_Detach(self, action: a.Detach) -> None:
        self.drop_session("detached")
        if action.write is not None and self.attached:
            self.folder.marker = action.write
        self.attached = self.writable = False
        self.parked.clear()
        self.done(action.operation)

    def do_SetMarker(self, action: a.SetMarker) -> None:
        self.folder.marker = action.write
        self.done(action.operation)

    def do_OpenSafety(self, action: a.OpenSafety) -> None:
        required = action.required or (action.resume and self.folder.safety_required)
        if self.safety_fails and (required or not action.resume):
            lacks = Shortage(2 << 30, 1 << 20)
            self.done(action.operation, False, "no room", lacks=lacks)
            return
        if action.resume != (self.lineage.label is DataLabel.INCONSISTENT):
            raise Violation("R15: a safety copy is opened for the wrong state")
        if not action.resume:
            self.folder.safety = set(self.folder.data)
        elif self.folder.safety is None:
            raise Violation("R15: the record names a way back that is not there")
        self.folder.safety_required = required
        self.done(action.operation)

    def do_CloseSafety(self, action: a.CloseSafety) -> None:
        former, self.folder.safety = self.folder.safety, None
        if former is not None and action.end is a.SafetyEnd.FORCED:
            self.folder.kept.append(former)
        self.done(action.operation)

    def do_UndoResync(self, action: a.UndoResync) -> None:
        if self.folder.safety is None:
            raise Violation("R15: a resync is undone without a safety copy")
        self.folder.data = set(self.folder.safety)
        self.folder.half = False
        self.done(action.operation)

    def do_ExpectSession(self, action: a.ExpectSession) -> None:
        self.drop_session("replaced")
        self.session, self.session_role, self.session_up = action.session, "target", False
        self.session_start = action.start
        self.done(action.operation)

    def do_OpenSession(self, action: a.OpenSession) -> None:
        self.session, self.session_role, self.session_up = action.session, "source", False
        self.session_start = action.start
        self.done(action.operation)
        self.world.at(self.world.connect_delay_ms(), self, "connect")

    def connect(self) -> None:
        if self.session is None or self.session_role != "source" or self.session_up:
            return
        other, session = self.peer, self.session
        fits = (
            self.world.connected(self, other)
            and other.session == session
            and other.session_role == "target"
        )
        if not fits:
            self.session = None
            self.later(e.SessionLost(session, "cannot connect"))
            return
        left = self.folder.log or self.folder.dirty or other.folder.log or other.folder.dirty
        if self.session_start is SessionStart.IN_SYNC and left:
            self.session = None
            other.session = None
            self.later(e.SessionLost(session, "candidates", refused=True))
            other.later(e.SessionLost(session, "candidates", refused=True))
            return
        if self.session_start is SessionStart.FULL and other.too_small:
            self.session = other.session = None
            lacks = Shortage(3 << 30, 1 << 30)
            self.later(e.SessionLost(session, "no room", refused=True))
            other.later(e.SessionLost(session, "no room", refused=True, lacks=lacks))
            return
        self.session_up = other.session_up = True
        self.later(e.SessionUp(session, int(left)))
        other.later(e.SessionUp(session, int(left)))
        if self.session_start is not SessionStart.IN_SYNC:
            mixed = sorted(self.folder.data | other.folder.data)
            other.folder.data = {one for one in mixed if self.world.random.random() < 0.5}
            other.folder.half = True
            self.world.at(self.world.random.randrange(50, 800), self, ("copied", session))

    def copied(self, session: SessionKey) -> None:
        if self.session == session and self.session_up:
            other = self.peer
            other.folder.data = set(self.folder.data)
            other.folder.half = False
            self.later(e.ResyncCopied(session))

    def drop_session(self, text: str) -> None:
        session, self.session = self.session, None
        up, self.session_up = self.session_up, False
        if session is None or not up:
            return
        other = self.peer
        if other.session == session and other.alive:
            other.session = None
            other.session_up = False
            other.later(e.SessionLost(session, text))

    def do_CloseSession(self, action: a.CloseSession) -> None:
        self.drop_session("closed")
        self.unapplied = set()
        self.done(action.operation)

    def do_Promote(self, action: a.Promote) -> None:
        self.writable = True
        self.acknowledge = action.acknowledge
        if action.acknowledge is Acknowledge.LOCAL:
            self.folder.dirty = self.folder.dirty or bool(self.lineage.base)
        self.done(action.operation)

    def do_Demote(self, action: a.Demote) -> None:
        if self.demote_fails:
            self.done(action.operation, False, "cannot be mounted")
            return
        self.writable = False
        self.parked.clear()
        self.done(action.operation)

    def do_EnterAlone(self, action: a.EnterAlone) -> None:
        self.folder.dirty = True
        self.done(action.operation)

    def do_Release(self, action: a.Release) -> None:
        self.acknowledge = Acknowledge.LOCAL
        self.world.acknowledge(self, self.parked)
        self.parked = set()
        self.done(action.operation)

    def do_Freeze(self, action: a.Freeze) -> None:
        self.acknowledge = Acknowledge.NONE
        self.done(action.operation)

    def do_EndParked(self, action: a.EndParked) -> None:
        self.parked.clear()
        self.done(action.operation)

    def do_Barrier(self, action: a.Barrier) -> None:
        both = self.acknowledge is Acknowledge.BOTH
        ok = not both or self.session_up
        if ok:
            self.folder.log = False
            if both:
                self.peer.folder.log = False
                self.peer.unapplied = set()
        self.done(action.operation, ok, "" if ok else "no session")

    def do_EndResync(self, action: a.EndResync) -> None:
        ok = self.session == action.session and self.session_up
        if ok:
            self.acknowledge = Acknowledge.BOTH
            if self.peer.folder.data != self.folder.data:
                raise Violation("R11: ended a resync with unequal copies")
        self.done(action.operation, ok, "" if ok else "no session")

    def do_ClearMap(self, action: a.ClearMap) -> None:
        self.folder.dirty = False
        self.done(action.operation)

    def do_StartVm(self, action: a.StartVm) -> None:
        if self.start_fails:
            self.later(e.VmDone(action.operation, False, "no such disk"))
            return
        self.world.vm_starts(self)
        self.vm_run = action.run
        self.certify = action.certify
        self.later(e.VmDone(action.operation, True), 50)

    def do_StopVm(self, action: a.StopVm) -> None:
        self.vm_run = 0
        self.later(e.VmDone(action.operation, True), 50)

    def do_AllowCertificate(self, action: a.AllowCertificate) -> None:
        self.certify = action.allowed
        self.later(e.VmDone(action.operation, True))

    def do_Fence(self, action: a.Fence) -> None:
        if self.failing_fences:
            self.failing_fences -= 1
            self.later(e.VmDone(action.operation, False, "cannot be fenced"), 1)
            return
        self.writable = False
        self.parked.clear()
        self.acknowledge = Acknowledge.NONE
        self.drop_session("fenced")
        self.later(e.VmDone(action.operation, True), 1)

    def do_KillVm(self, action: a.KillVm) -> None:
        self.vm_run = 0
        self.later(e.VmDone(action.operation, True), 5)

    def do_Preflight(self, action: a.Preflight) -> None:
        self.later(e.VmDone(action.operation, True))

    def do_Probe(self, action: a.Probe) -> None:
        answers = self.world.connected(self, self.peer)
        isolated = self.name in self.world.astray
        if self.config.pinged and not isolated:
            self.renewed_ms = self.world.now
        text = "nobody answers here" if isolated else "probe"
        self.later(e.ProbeDone(action.operation, isolated, answers, text), 20)

    def do_AskWitness(self, action: a.AskWitness) -> None:
        self.world.at(self.world.random.randrange(2, 40), self, ("ask", action, self.world.now))

    def do_PowerOff(self, action: a.PowerOff) -> None:
        self.world.at(self.world.shoot_ms[self.name], self, ("shoot", action))

    # --- third parties -----------------------------------------------------------------------

    def ask(self, action: a.AskWitness, asked_ms: int) -> None:
        """The request reaches the witness, or does not; so does the answer."""
        world = self.world
        if self.name in world.astray:
            self.world.at(1000, self, e.WitnessDone(action.operation, None, "no answer"))
            return
        world.known, answer = answered(world.known, action.request, world.now)
        if answer.holder == self.name and action.request.renewed_by(answer):
            self.renewed_ms = max(self.renewed_ms, asked_ms)
        world.at(world.random.randrange(2, 40), self, e.WitnessDone(action.operation, answer))

    def shoot(self, action: a.PowerOff) -> None:
        """The command that switches the other node off."""
        works = self.name not in self.world.astray and not self.world.jammed
        if works and self.peer.alive:
            self.world.crash(self.peer)
        self.later(e.PoweredOff(action.operation, works, "off" if works else "no answer"))

    @property
    def deadline_ms(self) -> int | None:
        """When its guardian ends the VM (L6)."""
        if not self.alive or not self.vm_run or not self.config.ttl_ms or self.lineage.sole:
            return None
        return max(self.promised_ms, self.renewed_ms) + self.config.ttl_ms

    def expires(self) -> None:
        """The guardian fences and kills."""
        self.world.story.append(f"{self.world.now:>7} {self.name} DEADLINE")
        self.vm_run = 0
        self.writable = False
        self.parked.clear()
        self.acknowledge = Acknowledge.NONE
        self.drop_session("fenced")
        self.event(e.LeaseExpired("its deadline has passed"))

    # --- the VM ------------------------------------------------------------------------------

    def refused(self) -> None:
        """The guest was refused room: the engine tells what is free here and, in session, there."""
        self.refused_ms = self.world.now
        theirs = self.peer.free_bytes if self.session_up else None
        self.event(e.DiskFull("No space left on device", self.free_bytes, theirs))

    def write(self) -> None:
        """One write of the guest, if it can make one."""
        if not self.alive or not self.writable or self.parked:
            return
        if not self.free_bytes:
            first = self.vm_run and self.state.full is None
            if first or self.world.now - self.refused_ms >= REFUSED_AGAIN_MS:
                self.refused()
            return
        if not self.vm_run:
            return
        self.world.counter += 1
        number = self.world.counter
        self.folder.data.add(number)
        if self.acknowledge is Acknowledge.LOCAL:
            if self.session_up:
                self.peer.folder.data.add(number)
            self.world.acknowledge(self, {number})
        elif self.acknowledge is Acknowledge.BOTH and self.session_up:
            self.folder.log = self.peer.folder.log = True
            self.peer.folder.data.add(number)
            self.peer.unapplied = {*sorted(self.peer.unapplied)[-2:], number}
            self.world.acknowledge(self, {number})
        else:
            self.folder.log = True
            self.parked.add(number)


class World:
    """Time, network and what must never happen."""

    def __init__(
        self,
        seed: int = 0,
        isolation: Isolation = Isolation.RUN,
        loss: float = 0,
        *,
        witness: WitnessKind = WitnessKind.NONE,
        fences: bool = False,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 1_000_000
        self.loss = loss
        self.late = 0.0
        """How likely the network delivers a message again, up to seconds later."""
        self.slow_disks = False
        self.slow_cables = False
        self.allow_force = False
        self.disk_failed = False
        self.forced = False
        """An operator has overridden what the nodes know: both may run, writes may be given up."""
        self.counter = 0
        self.cut = False
        self.astray: set[str] = set()
        """The nodes that reach neither the witness nor the power switch."""
        self.shoot_ms = {"node1": SHOOT_MS, "node2": SHOOT_MS}
        """How long the command takes that switches the other node off."""
        self.jammed = False
        """The power switch does nothing."""
        self.known = Known(None, Lease(0))
        """What a lease witness knows."""
        self.moved: tuple[Epoch | None, int] = (None, -room.APART_MS)
        """Epoch and time of the last request to take over because a disk is full."""
        self.queue: list[tuple[int, int, Node, object, int]] = []
        self.story: list[str] = []
        self.acknowledged: set[int] = set()
        self.forgiven: set[int] = set()
        self.both_may_run = isolation is Isolation.RUN and not (witness or fences)
        self.nodes: dict[str, Node] = {}
        ttl_ms = TTL_MS if witness else 0
        for name, peer in (("node1", "node2"), ("node2", "node1")):
            config = Config(
                "VM1", 1, name, peer, isolation, Timing(), first_node="node1",
                witness=witness, ttl_ms=ttl_ms, fences=fences,
            )  # fmt: skip
            self.nodes[name] = Node(self, name, peer, config)
        self.a, self.b = self.nodes["node1"], self.nodes["node2"]
        self._beat_at = self.now

    def connected(self, one: Node, other: Node) -> bool:
        return one.alive and other.alive and not self.cut

    def at(self, delay_ms: int, node: Node, event: object) -> None:
        self.counter += 1
        heapq.heappush(self.queue, (self.now + delay_ms, self.counter, node, event, node.boot))

    def deliver(self, sender: Node, message: object, delay_ms: int) -> None:
        """A message on its way; it is for the receiver's present process only."""
        if sender.peer.alive:
            self.at(delay_ms, sender.peer, ("message", sender, sender.boot, message))

    def store_delay_ms(self) -> int:
        """How long the disk takes for a record; zero when the world is not about that."""
        if not self.slow_disks:
            return 0
        return self.random.choice((1, 1, 2, 5, 20, 120))

    def connect_delay_ms(self) -> int:
        """How long a session takes to come about: with slow cables longer than some have patience,
        for heartbeats may get through where it does not."""
        if not self.slow_cables:
            return 5
        return self.random.choice((5, 5, 50, 500, 8000, self.random.randrange(2940, 3010)))

    def acknowledge(self, node: Node, numbers: set[int]) -> None:
        if not numbers <= node.folder.data:
            raise Violation("acknowledged what the node does not hold")
        self.acknowledged |= numbers

    def vm_starts(self, node: Node) -> None:
        other = node.peer
        if node.half_allowed:
            node.folder.half = False
        if node.folder.half:
            raise Violation(f"I9: {node.name} starts a half made copy")
        if self.forced:
            return
        if other.vm_run and other.alive and not self.both_may_run:
            raise Violation(f"I2: {node.name} starts a VM while {other.name} runs one")
        lost = self.acknowledged - self.forgiven - node.folder.data
        if lost and not self.both_may_run:
            raise Violation(f"I3: {node.name} starts without {len(lost)} acknowledged writes")

    def note_request(self, message: m.HandoverRequest) -> None:
        """Two disks that fill together must not pass the VM to and fro (D11)."""
        if message.kind is not m.HandoverKind.ROOM or message.epoch == self.moved[0]:
            return
        if self.now - self.moved[1] < room.APART_MS:
            raise Violation("D11: moved twice within an hour for want of room")
        self.moved = message.epoch, self.now

    def check(self, node: Node) -> None:
        both = [n for n in self.nodes.values() if n.alive and n.writable and n.vm_run]
        alone = [n for n in both if n.acknowledge is Acknowledge.LOCAL]
        if len(alone) > 1 and alone[0].lineage.current.id == alone[1].lineage.current.id:
            raise Violation("two lines share an id (G3')")
        if len(alone) > 1 and not self.both_may_run and not self.forced:
            raise Violation("I1: both acknowledge")

    # --- running -----------------------------------------------------------------------------

    def run(self, duration_ms: int, writes: bool = True) -> None:
        end = self.now + duration_ms
        while self.now < end:
            self._advance(end)
            if writes:
                for node in self.nodes.values():
                    node.write()

    def _advance(self, end: int) -> None:
        times = [self._beat_at, end]
        if self.queue:
            times.append(self.queue[0][0])
        times += [at for n in self.nodes.values() if n.alive for at in n.timers.values()]
        times += [at for n in self.nodes.values() if (at := n.deadline_ms) is not None]
        self.now = max(self.now, min(times))
        while self.queue and self.queue[0][0] <= self.now:
            _, _, node, event, boot = heapq.heappop(self.queue)
            if node.alive and node.boot == boot:
                self._deliver(node, event)
        for node in self.nodes.values():
            due = sorted(t for t, at in node.timers.items() if at <= self.now) if node.alive else []
            for timer in due:
                if node.timers.pop(timer, None) is not None:
                    node.event(e.TimerFired(timer))
        if self.now >= self._beat_at:
            self._beat_at = self.now + HEARTBEAT_MS
            for node in self.nodes.values():
                self._heartbeat(node)
        for node in self.nodes.values():
            if (deadline_ms := node.deadline_ms) is not None and deadline_ms <= self.now:
                node.expires()

    def _deliver(self, node: Node, event: object) -> None:
        if event == "connect":
            node.connect()
        elif isinstance(event, tuple) and event[0] == "beat":
            if self.connected(node, node.peer):
                self.hear(node, event[1])
        elif isinstance(event, tuple) and event[0] == "stored":
            if node.storing is event[1]:
                node.stored()
        elif isinstance(event, tuple) and event[0] == "ask":
            node.ask(*event[1:])
        elif isinstance(event, tuple) and event[0] == "shoot":
            node.shoot(event[1])
        elif isinstance(event, tuple) and event[0] == "message":
            sender, boot, message = event[1:]
            # What a former process of the other node sent is not believed (L9).
            if sender.boot == boot and not self.cut:
                node.event(e.MessageReceived(message))
        elif isinstance(event, tuple) and event[0] == "certificate":
            if not self.cut:
                node.event(event[1])
        elif isinstance(event, tuple):
            node.copied(event[1])
        else:
            assert isinstance(event, e.Event)
            node.event(event)

    def status_changed(self, node: Node) -> None:
        """A heartbeat is sent out of turn when what it says has changed."""
        status = _status(node)
        if status != node.sent and not node.speechless:
            node.sent = status
            if self.connected(node, node.peer):
                self.at(self.random.randrange(1, 12), node.peer, ("beat", status))

    def hear(self, node: Node, status: e.PeerStatus) -> None:
        node.heard_ms = self.now
        if node.silent or status != node.told:
            node.silent = False
            node.told = status
            node.event(e.PeerHeard(status))
        if node.state.promised:
            node.promised_ms = self.now - HEARTBEAT_MS  # It answers a beat of before.

    def _heartbeat(self, node: Node) -> None:
        if not node.alive:
            return
        other = node.peer
        if self.connected(node, other) and not other.speechless:
            self.hear(node, _status(other))
        elif (
            not node.silent
            and self.now - node.heard_ms >= node.config.timing.suspect_ms
            and not (node.session_up and self.connected(node, other) and not other.speechless)
        ):
            node.silent = True
            there = node.told is not None and node.told.role.runs_vm
            node.event(e.PeerSilent(node.heard_ms, int(bool(node.vm_run)), int(there)))

    # --- faults and commands -----------------------------------------------------------------

    def command(self, node: Node, verb: str, **fields: object) -> str:
        self.counter += 1
        name = f"op{self.counter}"
        node.event(e.CommandGiven(e.Verb(verb), name, "test", **fields))  # type: ignore[arg-type]
        return name

    def crash(self, node: Node, certificate: bool = False) -> None:
        """Every process of the node ends at once."""
        run, epoch = node.state.run, node.lineage.held
        ran = node.vm_run and node.certify
        if node.storing is not None and self.random.random() < 0.5:
            node.lineage, node.settings = node.storing.lineage, node.storing.settings
        node.drop_session("connection reset")
        node.alive = False
        node.vm_run = 0
        node.writable = False
        node.parked = set()
        self.story.append(f"{self.now:>7} {node.name} CRASH")
        if certificate and ran:
            node.settings = replace(node.settings, certified_epoch=epoch)
            told = ("certificate", e.CertificateReceived(run, epoch))
            self.at(20, node.peer, told)
            while self.random.random() < min(0.6, 3 * self.late):
                self.at(self.random.randrange(20, 9000), node.peer, told)

    def engine_dies(self, node: Node, recovered: bool) -> None:
        """The replication process dies: what it was asked is not answered, its queue is gone.

        With a successor the guest's writes stay held; without one nothing is served any more.
        """
        self.story.append(f"{self.now:>7} {node.name} ENGINE {recovered=}")
        told = (e.EngineDone, e.SessionUp, e.SessionLost, e.ResyncCopied)
        mine = [q for q in self.queue if q[2] is node and q[4] == node.boot]
        dead = [q for q in mine if isinstance(q[3], told) or q[3] == "connect"]
        dead += [q for q in mine if isinstance(q[3], tuple) and q[3][0] == "copied"]
        self.queue = [q for q in self.queue if q not in dead]
        heapq.heapify(self.queue)
        session = node.session
        node.drop_session("the stream ended")
        if session is not None and node.session_role == "target":
            node.folder.data -= set(sorted(node.unapplied)[-3:])
        recovered = recovered and node.attached
        node.acknowledge = Acknowledge.NONE
        if not recovered:
            node.writable = node.attached = False
            node.parked.clear()
        node.event(e.EngineLost("killed by SIGKILL", recovered))
        for _, _, _, event, _ in dead:
            if isinstance(event, e.EngineDone):
                failed = e.EngineDone(event.operation, False, "the replication process died")
                node.later(failed)

    def mount_lost(self, node: Node) -> None:
        """Somebody unmounted the folder: the guest's calls fail from here on (M6)."""
        self.story.append(f"{self.now:>7} {node.name} MOUNT LOST")
        node.writable = False
        node.parked.clear()
        node.event(e.MountLost("gone from mountinfo"))

    def disk_fails(self, node: Node) -> None:
        """The folder's disk fails: what a follower had in memory only does not reach it."""
        self.story.append(f"{self.now:>7} {node.name} DISK FAILS")
        self.disk_failed = True
        if node.session_role == "target":
            node.folder.data -= node.unapplied
        node.event(e.LocalDiskFailed("EIO"))

    def disk_fills(self, node: Node, free_bytes: int = 0) -> None:
        """The file system of the folder is full: a guest is refused, a follower leaves (D11)."""
        self.story.append(f"{self.now:>7} {node.name} DISK FULL")
        node.free_bytes = free_bytes
        if node.session_role == "target" and node.session_up:
            node.event(e.DiskFilling("No space left on device"))
        elif node.vm_run and node.writable:
            node.refused()

    def safety_short(self, node: Node) -> None:
        """In the middle of a resync the safety copy has no room any more (N3)."""
        node.safety_fails = True
        node.later(e.SafetyShort(Shortage(2 << 30, 1 << 20)), 0)
        node.drop_session("cannot be saved")

    def disk_has_room(self, node: Node) -> None:
        """Somebody made room."""
        node.free_bytes = ROOMY_BYTES
        if node.alive and node.writable:
            node.event(e.DiskHasRoom(ROOMY_BYTES))

    def boot_node(self, node: Node) -> None:
        self.story.append(f"{self.now:>7} {node.name} BOOT")
        node.start()
        if node.settings.wanted:
            self.command(node, "start", automatic=True)

    def cut_network(self) -> None:
        self.story.append(f"{self.now:>7} CUT")
        self.cut = True
        for node in self.nodes.values():
            session, up = node.session, node.session_up
            node.session, node.session_up = None, False
            if session is not None and up and node.alive:
                node.later(e.SessionLost(session, "reset"), 200)

    def heal_network(self) -> None:
        self.story.append(f"{self.now:>7} HEAL")
        self.cut = False

    def roles(self) -> tuple[Role | None, Role | None]:
        one, two = (n.state.role if n.alive else None for n in (self.a, self.b))
        return one, two

    def until(self, *roles: Role | None, timeout_ms: int = 60_000) -> None:
        end = self.now + timeout_ms
        while self.roles() != roles or any(
            n.alive and n.state.role not in (Role.STOP, Role.WAIT) and not _steady(n)
            for n in self.nodes.values()
        ):
            if self.now >= end:
                raise Violation(
                    f"not {roles} but {self.roles()} after {timeout_ms} ms\n{self.tell()}"
                )
            self.run(50)

    def tell(self) -> str:
        states = [
            f"{n.name}: {n.state.role} {n.state.phase} {n.state.link} {n.state.why} "
            f"{n.lineage.label} cur={n.lineage.current.ordinal} timers={n.timers}"
            for n in self.nodes.values()
        ]
        return "\n".join(self.story[-40:] + states)


def _status(node: Node) -> e.PeerStatus:
    state = node.state
    epoch = state.lineage.held if state.role.runs_vm else state.lineage.epoch
    return e.PeerStatus(
        state.role,
        _readiness(state),
        state.lineage.data,
        epoch.counter,
        state.lineage.current.id[:16],
        state.phase in (Phase.STOPPING, Phase.FLUSHING, Phase.ASKING, Phase.DETACHING),
        state.settings.wanted,
        str(node.boot),
    )


def _readiness(state: ModuleState):
    from hyperha.core.explain import readiness

    return readiness(state)


def _steady(node: Node) -> bool:
    return node.state.phase in (Phase.RUNNING, Phase.FOLLOWING, Phase.WAITING)


def pair(
    seed: int = 0,
    isolation: Isolation = Isolation.RUN,
    loss: float = 0,
    *,
    witness: WitnessKind = WitnessKind.NONE,
    fences: bool = False,
) -> World:
    """A world with node1 PRIM and node2 SECOND."""
    world = World(seed, isolation, loss, witness=witness, fences=fences)
    world.run(500)
    world.command(world.a, "prim")
    world.until(Role.ALONE, Role.STOP)
    world.command(world.b, "start")
    world.until(Role.PRIM, Role.SECOND)
    return world


__all__ = ["Epoch", "Violation", "World", "pair"]
