"""A node in the middle of an event: the real core decides, engine and VM do as they promise.

What `core.actions` says of an action is what the method named after it does.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.facts import AttachFacts, MarkerState
from hyperha.core.machine import step
from hyperha.core.records import DataLabel, Lineage, Settings
from hyperha.core.state import ModuleState, Why
from hyperha.domain import SessionKey
from tests.model.node import LONG_AGO_MS, NAMES, NOW_MS, Broken, Folder, Node, Outcome

WALL_MS = 1_700_000_000_000


class Doing:
    """A node in the middle of one event; `result` is the node after it."""

    def __init__(self, node: Node, *, peer_answers: bool = False, reaches: bool = False) -> None:
        for one in fields(Node):
            setattr(self, one.name, getattr(node, one.name))
        self.timers = dict(node.timers)
        self.work = list(node.work)
        self.answers = list(node.answers)
        self.vm_answers = list(node.vm_answers)
        self.held = list(node.held)
        self.peer_answers = peer_answers
        self.reaches = reaches
        self.sent: list[m.PeerMessage] = []
        self.acknowledged: frozenset[int] = frozenset()
        self.dropped = False
        self.flushed = False
        self.started = False

    # What a dataclass field of Node is here, for the type checker.
    core: ModuleState
    lineage: Lineage
    settings: Settings
    up: bool
    frozen: bool
    boot: int
    folder: Folder
    attached: bool
    writable: bool
    acknowledge: Acknowledge
    parked: frozenset[int]
    unapplied: frozenset[int]
    session: SessionKey | None
    source: bool
    session_up: bool
    session_start: SessionStart
    vm_run: int
    certify: bool
    silent: bool
    told: e.PeerStatus | None
    heard_ms: int
    stalled_ms: int | None
    stall_told: int
    speechless: bool
    asked: a.AskWitness | None
    shoots: a.PowerOff | None
    renewed_ms: int
    made: int

    def result(self) -> tuple[Node, Outcome]:
        """The node as a value, in its canonical form, and what it did."""
        if self.session is None or not self.source or not self.session_up:
            self.stalled_ms = None
            self.stall_told = 0
        values = {one.name: getattr(self, one.name) for one in fields(Node)}
        values["timers"] = tuple(sorted(self.timers.items()))
        values["work"] = tuple(self.work)
        values["answers"] = tuple(self.answers)
        values["vm_answers"] = tuple(self.vm_answers)
        values["held"] = tuple(self.held)
        values["core"] = self._plain_core()
        outcome = Outcome(
            tuple(self.sent), self.acknowledged, self.dropped, self.flushed, self.started
        )
        return Node(**values), outcome

    def _plain_core(self) -> ModuleState:
        """Without the words, which decide nothing, and with small operation numbers."""
        core = self.core
        idle = not (core.awaiting or self.work or self.answers or self.vm_answers)
        looked = core.looked
        return replace(
            core,
            why=Why(core.why.rule, ""),
            end=None if core.end is None else Why(core.end.rule, ""),
            isolated="found" if core.isolated else "",
            no_room=None if core.no_room is None else Why(core.no_room.rule, ""),
            told="",
            since_wall_ms=0,
            operation=0 if idle else core.operation,
            looked=None if looked is None else replace(looked, operation=0),
            looked_ms=LONG_AGO_MS if looked is None else core.looked_ms,
            request=core.request if core.need else None,
            last_heard_ms=max(LONG_AGO_MS, core.last_heard_ms),
            hold_until_ms=max(LONG_AGO_MS, core.hold_until_ms),
        )

    def event(self, event: e.Event) -> None:
        """The core decides; what can be done at once is done."""
        entropy = f"{self.boot_index()}{self.made:07x}".ljust(32, "0")
        wall_ms = WALL_MS + 1000 * self.boot
        self.core, actions = step(self.core, e.Stimulus("e", NOW_MS, wall_ms, entropy, event))
        lineage, split = self.core.lineage, self.core.split
        told = split.mine.nonce if split is not None and split.mine is not None else ""
        if entropy in (lineage.current.id, lineage.pending, self.core.nonce, told):
            self.made += 1
        for action in actions:
            if isinstance(action, a.Fence | a.KillVm):
                self.perform(action)  # May overtake (K1).
            else:
                self.work.append(action)
        self.pump()

    def boot_index(self) -> int:
        """The node's digit in its random ids."""
        return NAMES.index(self.core.config.node) + 1

    def pump(self) -> None:
        """Do what was decided, up to the next record that has to be stored."""
        while self.work and not isinstance(self.work[0], a.Persist):
            self.perform(self.work.pop(0))

    def stored(self) -> None:
        """The disk has the record."""
        action = self.work.pop(0)
        assert isinstance(action, a.Persist)
        self.lineage, self.settings = action.lineage, action.settings
        self.speechless = False
        self.pump()

    def store_fails(self) -> None:
        """The disk refuses the record: everything behind it is dropped (K1)."""
        self.work.clear()
        self.speechless = True
        self.event(e.PersistFailed("EIO", self.lineage, self.settings))

    def perform(self, action: a.Action) -> None:
        getattr(self, "do_" + type(action).__name__)(action)

    def done(self, operation: int, ok: bool = True, text: str = "", **more: Any) -> None:
        candidates = int(self.folder.log) + int(self.folder.dirty)
        answer = e.EngineDone(operation, ok, text, candidates=candidates, **more)
        self.answers.append(answer)

    def vm_done(self, operation: int, ok: bool = True, text: str = "") -> None:
        self.vm_answers.append(e.VmDone(operation, ok, text))

    def change(self, **changes: Any) -> None:
        """Of the folder."""
        self.folder = replace(self.folder, **changes)

    def drop_session(self) -> None:
        """Its end of the session is gone."""
        self.dropped = self.dropped or (self.session is not None and self.session_up)
        self.session, self.session_up = None, False
        self.go_on()

    def go_on(self) -> None:
        """What could not be ended is tried again."""
        held, self.held = self.held, []
        for action in held:
            self.perform(action)

    def waits(self, action: a.Action) -> bool:
        """Whether it cannot end now: the other node is needed, and out of reach unnoticed."""
        if self.session_up and not self.peer_answers:
            self.held.append(action)
            return True
        return False

    # --- what the core orders ------------------------------------------------------------------

    def do_Tell(self, action: a.Tell) -> None:
        if not action.text:
            raise Broken("I11: a line that says nothing")

    def do_Finish(self, action: a.Finish) -> None:
        pass

    def do_SendPeer(self, action: a.SendPeer) -> None:
        self.sent.append(action.message)

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
            self.change(marker=action.write)
        self.attached = True
        candidates = int(self.folder.log) + int(self.folder.dirty)
        facts = AttachFacts(marker, found, not self.folder.data, candidates)
        self.done(action.operation, attach=facts)

    def do_Detach(self, action: a.Detach) -> None:
        self.drop_session()
        if action.write is not None and self.attached:
            self.change(marker=action.write)
        self.attached = self.writable = False
        self.parked = frozenset()
        self.done(action.operation)

    def do_SetMarker(self, action: a.SetMarker) -> None:
        self.change(marker=action.write)
        self.done(action.operation)

    def do_OpenSafety(self, action: a.OpenSafety) -> None:
        if action.resume != (self.lineage.label is DataLabel.INCONSISTENT):
            raise Broken("R15: a safety copy is opened for the wrong state")
        required = action.required or (action.resume and self.folder.safety_required)
        if not action.resume:
            self.change(safety=self.folder.data)
        elif self.folder.safety is None:
            raise Broken("R15: the record names a way back that is not there")
        self.change(safety_required=required)
        self.done(action.operation)

    def do_CloseSafety(self, action: a.CloseSafety) -> None:
        former = self.folder.safety
        keep = action.end is a.SafetyEnd.FORCED or (
            action.end is a.SafetyEnd.COPIED and self.folder.safety_required
        )
        if former is not None and keep:
            self.change(kept=self.folder.kept | former)
        self.change(safety=None)
        self.done(action.operation)

    def do_UndoResync(self, action: a.UndoResync) -> None:
        if self.folder.safety is None:
            raise Broken("R15: a resync is undone without a safety copy")
        self.change(data=self.folder.safety, half=False)
        self.done(action.operation)

    def do_ExpectSession(self, action: a.ExpectSession) -> None:
        self.drop_session()
        self.session, self.source, self.session_up = action.session, False, False
        self.session_start = action.start
        self.done(action.operation)

    def do_OpenSession(self, action: a.OpenSession) -> None:
        self.session, self.source, self.session_up = action.session, True, False
        self.session_start = action.start
        if not self.attached:
            raise Broken("M3: a session is opened for a folder that is not covered")
        self.done(action.operation)

    def do_CloseSession(self, action: a.CloseSession) -> None:
        self.drop_session()
        self.unapplied = frozenset()
        self.done(action.operation)

    def do_Promote(self, action: a.Promote) -> None:
        self.writable = True
        self.acknowledge = action.acknowledge
        if action.acknowledge is Acknowledge.LOCAL and self.lineage.base:
            self.change(dirty=True)
        self.done(action.operation)

    def do_Demote(self, action: a.Demote) -> None:
        self.writable = False
        self.parked = frozenset()
        self.done(action.operation)

    def do_EnterAlone(self, action: a.EnterAlone) -> None:
        self.change(dirty=True)
        self.done(action.operation)

    def do_Release(self, action: a.Release) -> None:
        self.acknowledge = Acknowledge.LOCAL
        self.acknowledged |= self.parked
        self.parked = frozenset()
        self.done(action.operation)

    def do_Freeze(self, action: a.Freeze) -> None:
        self.acknowledge = Acknowledge.NONE
        self.done(action.operation)

    def do_EndParked(self, action: a.EndParked) -> None:
        self.parked = frozenset()
        self.done(action.operation)

    def do_Barrier(self, action: a.Barrier) -> None:
        both = self.acknowledge is Acknowledge.BOTH
        if both and self.waits(action):
            return
        ok = not both or self.session_up
        if ok:
            self.change(log=False)
            self.flushed = self.flushed or both
        self.done(action.operation, ok, "" if ok else "no session")

    def do_EndResync(self, action: a.EndResync) -> None:
        if self.session == action.session and self.waits(action):
            return
        ok = self.session == action.session and self.session_up
        if ok:
            self.acknowledge = Acknowledge.BOTH
        self.done(action.operation, ok, "" if ok else "no session")

    def do_ClearMap(self, action: a.ClearMap) -> None:
        self.change(dirty=False)
        self.done(action.operation)

    def do_StartVm(self, action: a.StartVm) -> None:
        self.started = True
        self.vm_run, self.certify = action.run, action.certify
        self.vm_done(action.operation)

    def do_StopVm(self, action: a.StopVm) -> None:
        self.vm_run = 0
        self.vm_done(action.operation)

    def do_AllowCertificate(self, action: a.AllowCertificate) -> None:
        self.certify = action.allowed
        self.vm_done(action.operation)

    def do_Fence(self, action: a.Fence) -> None:
        self.writable = False
        self.parked = frozenset()
        self.acknowledge = Acknowledge.NONE
        self.drop_session()
        self.vm_done(action.operation)

    def do_KillVm(self, action: a.KillVm) -> None:
        self.vm_run = 0
        self.vm_done(action.operation)

    def do_Preflight(self, action: a.Preflight) -> None:
        self.vm_done(action.operation)

    def do_Probe(self, action: a.Probe) -> None:
        pinged = self.core.config.pinged
        if pinged and self.reaches:
            self.renewed_ms = NOW_MS
        isolated = pinged and not self.reaches
        answer = e.ProbeDone(action.operation, isolated, self.peer_answers, "asked")
        self.vm_answers.append(answer)

    def do_PowerOff(self, action: a.PowerOff) -> None:
        self.shoots = action

    def do_AskWitness(self, action: a.AskWitness) -> None:
        self.asked = action

    # --- what happens to the node ---------------------------------------------------------------

    def dies(self, *, stored: bool, certified: bool) -> e.CertificateReceived | None:
        """Every process of it ends at once; its guardian may still send a certificate (L8)."""
        if stored and self.work and isinstance(self.work[0], a.Persist):
            self.lineage, self.settings = self.work[0].lineage, self.work[0].settings
        proof = None
        if certified and self.vm_run and self.certify:
            proof = e.CertificateReceived(self.core.run, self.lineage.held)
            self.settings = replace(self.settings, certified_epoch=self.lineage.held)
        self.drop_session()
        self.up = self.frozen = False
        self.core = ModuleState(self.core.config, self.lineage, self.settings)
        self._forget()
        return proof

    def _forget(self) -> None:
        self.timers.clear()
        self.work.clear()
        self.answers.clear()
        self.vm_answers.clear()
        self.held.clear()
        self.attached = self.writable = self.certify = self.speechless = False
        self.acknowledge = Acknowledge.NONE
        self.parked = self.unapplied = frozenset()
        self.vm_run = 0
        self.silent, self.told, self.heard_ms = True, None, LONG_AGO_MS
        self.asked, self.shoots, self.renewed_ms = None, None, LONG_AGO_MS

    def boots(self) -> None:
        """Its daemon is there again, and starts the module if it is wanted."""
        self.up = True
        self.boot += 1
        self.heard_ms = NOW_MS
        if self.settings.wanted:
            self.event(e.CommandGiven(e.Verb.START, "boot", "boot", automatic=True))

    def engine_dies(self, *, recovered: bool) -> None:
        """The replication process dies; what it was asked fails, what it had to say is unsaid."""
        asked = [one.operation for one in self.answers if isinstance(one, e.EngineDone)]
        asked += [one.operation for one in self.held if isinstance(one, a.EngineAction)]
        self.answers.clear()
        self.held.clear()
        if self.session is not None and not self.source:
            self.change(data=self.folder.data - self.unapplied)
        self.unapplied = frozenset()
        self.drop_session()
        recovered = recovered and self.attached
        self.acknowledge = Acknowledge.NONE
        if not recovered:
            self.writable = self.attached = False
            self.parked = frozenset()
        self.event(e.EngineLost("killed", recovered))
        for one in asked:
            self.answers.append(e.EngineDone(one, False, "the process died"))
