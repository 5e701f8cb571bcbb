"""Time, network and third parties of a modelled cluster, and what must never happen in it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import replace

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core import room
from hyperha.core.actions import Acknowledge
from hyperha.core.lease import Known, Lease
from hyperha.core.options import Config, Isolation
from hyperha.domain import Epoch
from hyperha.study.base_node import BaseNode, Violation
from hyperha.study.model_node import Node

HEARTBEAT_MS = 250
SHOOT_MS = 2000
START_AT_MS = 1_000_000


class Timeline:
    """Two nodes in virtual time. Each event that is due is delivered in the order of its time;
    after every one it is checked what must never happen (`Violation`)."""

    def __init__(self, configs: Sequence[Config], seed: int = 0, loss: float = 0) -> None:
        self.random = random.Random(seed)
        self.now = START_AT_MS
        self.began_wall_ms = 1_700_000_000_000
        """What the clock on the wall shows at the beginning."""
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
        self.shoot_ms = {config.node: SHOOT_MS for config in configs}
        """How long the command takes that switches the other node off."""
        self.jammed = False
        """The power switch does nothing."""
        self.known = Known(None, Lease(0))
        """What a lease witness knows."""
        self.moved: tuple[Epoch | None, int] = (None, -room.APART_MS)
        """Epoch and time of the last request to take over because a disk is full."""
        self.queue: list[tuple[int, int, BaseNode, object, int]] = []
        self.story: list[str] = []
        self.acknowledged: set[int] = set()
        self.forgiven: set[int] = set()
        self.both_may_run = configs[0].policy is Isolation.RUN
        self.nodes: dict[str, Node] = {}
        for config in configs:
            self.nodes[config.node] = Node(self, config.node, config.peer, config)
        self.a, self.b = self.nodes.values()
        self._beat_at = self.now

    @property
    def wall_ms(self) -> int:
        """What the clock on the wall shows now."""
        return self.began_wall_ms + self.now - START_AT_MS

    def connected(self, one: BaseNode, other: BaseNode) -> bool:
        return one.alive and other.alive and not self.cut

    def at(self, delay_ms: int, node: BaseNode, event: object) -> None:
        self.counter += 1
        heapq.heappush(self.queue, (self.now + delay_ms, self.counter, node, event, node.boot))

    def deliver(self, sender: BaseNode, message: object, delay_ms: int) -> None:
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

    def copy_delay_ms(self) -> int:
        """How long a resync takes."""
        return self.random.randrange(50, 800)

    def acknowledge(self, node: BaseNode, numbers: set[int]) -> None:
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

    def check(self, node: BaseNode) -> None:
        both = [n for n in self.nodes.values() if n.alive and n.writable and n.vm_run]
        alone = [n for n in both if n.acknowledge is Acknowledge.LOCAL]
        if len(alone) > 1 and alone[0].lineage.current.id == alone[1].lineage.current.id:
            raise Violation("two lines share an id (G3')")
        if len(alone) > 1 and not self.both_may_run and not self.forced:
            raise Violation("I1: both acknowledge")

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

    # --- running -----------------------------------------------------------------------------

    def run(self, duration_ms: int, writes: bool = True) -> None:
        end = self.now + duration_ms
        while self.now < end:
            self._advance(end)
            if writes:
                for node in self.nodes.values():
                    if not node.stands:
                        node.write()

    def _advance(self, end: int) -> None:
        times = [self._beat_at, end]
        if self.queue:
            times.append(self.queue[0][0])
        for node in self.nodes.values():
            awaited = [*node.timers.values()] if node.alive else []
            if (deadline_ms := node.deadline_ms) is not None:
                awaited.append(deadline_ms)
            times += [max(at, node.stands_until) for at in awaited]
        self.now = max(self.now, min(times))
        while self.queue and self.queue[0][0] <= self.now:
            _, _, whose, event, boot = heapq.heappop(self.queue)
            if whose.alive and whose.boot == boot:
                self._deliver(self.nodes[whose.name], event)
        self._thaw()
        for node in self.nodes.values():
            if node.stands:
                continue
            due = sorted(t for t, at in node.timers.items() if at <= self.now) if node.alive else []
            for timer in due:
                if node.timers.pop(timer, None) is not None:
                    node.event(e.TimerFired(timer))
        if self.now >= self._beat_at:
            self._beat_at = self.now + HEARTBEAT_MS
            for node in self.nodes.values():
                self._heartbeat(node)
        for node in self.nodes.values():
            deadline_ms = node.deadline_ms
            if deadline_ms is not None and deadline_ms <= self.now and not node.stands:
                node.expires()
        self.advanced()

    def tells(self, node: BaseNode, action: a.Tell) -> None:
        """A node has said something in its log; for who reads."""

    def advanced(self) -> None:
        """Something may have happened; for who watches."""

    def _thaw(self) -> None:
        """Whoever stood still notices that first (L7)."""
        for node in self.nodes.values():
            since_ms = node.stands_since
            if since_ms and not node.stands:
                node.stands_since = 0
                if node.alive:
                    node.event(e.SelfStalled(self.now - since_ms))

    def _deliver(self, node: Node, event: object) -> None:
        if node.stands:
            self.at(node.stands_until - self.now, node, event)
        elif event == "connect":
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

    def status_changed(self, node: BaseNode) -> None:
        """A heartbeat is sent out of turn when what it says has changed."""
        status = node.status
        if status != node.sent and not node.speechless:
            node.sent = status
            if self.connected(node, node.peer):
                self.at(self.random.randrange(1, 12), node.peer, ("beat", status))

    def hear(self, node: BaseNode, status: e.PeerStatus) -> None:
        node.heard_ms = self.now
        if node.silent or status != node.told:
            node.silent = False
            node.told = status
            node.event(e.PeerHeard(status))
        if node.state.promised:
            node.promised_ms = self.now - HEARTBEAT_MS  # It answers a beat of before.

    def _heartbeat(self, node: Node) -> None:
        if not node.alive or node.stands:
            return
        other = node.peer
        if self.connected(node, other) and not (other.speechless or other.stands):
            self.hear(node, other.status)
        elif (
            not node.silent
            and self.now - node.heard_ms >= node.config.timing.suspect_ms
            and not (node.session_up and self.connected(node, other) and not other.speechless)
        ):
            node.silent = True
            there = node.told is not None and node.told.role.runs_vm
            node.event(
                e.PeerSilent(node.heard_ms + node.clock_ms, int(bool(node.vm_run)), int(there))
            )
