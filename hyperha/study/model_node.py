"""A whole modelled node: with its VM and guest, and what it asks third parties."""

from __future__ import annotations

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core.actions import Acknowledge
from hyperha.core.lease import answered
from hyperha.study.engine_node import EngineNode

REFUSED_AGAIN_MS = 60_000


class Node(EngineNode):
    """A core, its durable records, its folder, its engine and its VM."""

    def do_start_vm(self, action: a.StartVm) -> None:
        if self.start_fails:
            self.later(e.VmDone(action.operation, False, "no such disk"))
            return
        self.world.vm_starts(self)
        self.vm_run = action.run
        self.certify = action.certify
        self.later(e.VmDone(action.operation, True), self.start_ms)

    def do_stop_vm(self, action: a.StopVm) -> None:
        if self.stop_fails:
            self.later(e.VmDone(action.operation, False, "it does not end"), self.stop_ms)
            return
        self.vm_run = 0
        self.later(e.VmDone(action.operation, True), self.stop_ms)

    def do_allow_certificate(self, action: a.AllowCertificate) -> None:
        self.certify = action.allowed
        self.later(e.VmDone(action.operation, True))

    def do_fence(self, action: a.Fence) -> None:
        if self.failing_fences:
            self.failing_fences -= 1
            self.later(e.VmDone(action.operation, False, "cannot be fenced"), 1)
            return
        self.writable = False
        self.parked.clear()
        self.acknowledge = Acknowledge.NONE
        self.drop_session("fenced")
        self.later(e.VmDone(action.operation, True), 1)

    def do_kill_vm(self, action: a.KillVm) -> None:
        self.vm_run = 0
        self.later(e.VmDone(action.operation, True), 5)

    def do_preflight(self, action: a.Preflight) -> None:
        self.later(e.VmDone(action.operation, True))

    def do_probe(self, action: a.Probe) -> None:
        answers = self.world.connected(self, self.peer)
        isolated = self.name in self.world.astray
        if self.config.pinged and not isolated:
            self.renewed_ms = self.world.now
        text = "nobody answers here" if isolated else "probe"
        self.later(e.ProbeDone(action.operation, isolated, answers, text), 20)

    def do_ask_witness(self, action: a.AskWitness) -> None:
        self.world.at(self.world.random.randrange(2, 40), self, ("ask", action, self.world.now))

    def do_power_off(self, action: a.PowerOff) -> None:
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
