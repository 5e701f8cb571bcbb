"""The replication engine of a modelled node, by what it promises (core.actions)."""

from __future__ import annotations

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.facts import AttachFacts, MarkerState, Shortage
from hyperha.core.records import DataLabel
from hyperha.domain import SessionKey
from hyperha.study.base_node import BaseNode, Violation


class EngineNode(BaseNode):
    """A node that can cover its folder and hold a session with the other one."""

    def do_attach(self, action: a.Attach) -> None:
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

    def do_detach(self, action: a.Detach) -> None:
        if self.detach_fails:
            self.done(action.operation, False, "target is busy")
            return
        self.drop_session("detached")
        if action.write is not None and self.attached:
            self.folder.marker = action.write
        self.attached = self.writable = False
        self.parked.clear()
        self.done(action.operation)

    def do_set_marker(self, action: a.SetMarker) -> None:
        self.folder.marker = action.write
        self.done(action.operation)

    def do_open_safety(self, action: a.OpenSafety) -> None:
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

    def do_close_safety(self, action: a.CloseSafety) -> None:
        former, self.folder.safety = self.folder.safety, None
        copied = action.end is a.SafetyEnd.COPIED and self.folder.safety_required
        if former is not None and (copied or action.end is a.SafetyEnd.FORCED):
            self.folder.kept.append(former)
        self.done(action.operation)

    def do_undo_resync(self, action: a.UndoResync) -> None:
        if self.folder.safety is None:
            raise Violation("R15: a resync is undone without a safety copy")
        self.folder.data = set(self.folder.safety)
        self.folder.half = False
        self.done(action.operation)

    def do_expect_session(self, action: a.ExpectSession) -> None:
        self.drop_session("replaced")
        self.session, self.session_role, self.session_up = action.session, "target", False
        self.session_start = action.start
        self.done(action.operation)

    def do_open_session(self, action: a.OpenSession) -> None:
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
            self.world.at(self.world.copy_delay_ms(), self, ("copied", session))

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

    def do_close_session(self, action: a.CloseSession) -> None:
        self.drop_session("closed")
        self.unapplied = set()
        self.done(action.operation)

    def do_promote(self, action: a.Promote) -> None:
        self.writable = True
        self.acknowledge = action.acknowledge
        if action.acknowledge is Acknowledge.LOCAL:
            self.folder.dirty = self.folder.dirty or bool(self.lineage.base)
        self.done(action.operation)

    def do_demote(self, action: a.Demote) -> None:
        if self.demote_fails:
            self.done(action.operation, False, "cannot be mounted")
            return
        self.writable = False
        self.parked.clear()
        self.done(action.operation)

    def do_enter_alone(self, action: a.EnterAlone) -> None:
        self.folder.dirty = True
        self.done(action.operation)

    def do_release(self, action: a.Release) -> None:
        self.acknowledge = Acknowledge.LOCAL
        self.world.acknowledge(self, self.parked)
        self.parked = set()
        self.done(action.operation)

    def do_freeze(self, action: a.Freeze) -> None:
        self.acknowledge = Acknowledge.NONE
        self.done(action.operation)

    def do_end_parked(self, action: a.EndParked) -> None:
        self.parked.clear()
        self.done(action.operation)

    def do_barrier(self, action: a.Barrier) -> None:
        both = self.acknowledge is Acknowledge.BOTH
        ok = (not both or self.session_up) and not self.barrier_fails
        if ok:
            self.folder.log = False
            if both:
                self.peer.folder.log = False
                self.peer.unapplied = set()
        self.done(action.operation, ok, "" if ok else "EIO" if self.barrier_fails else "no session")

    def do_end_resync(self, action: a.EndResync) -> None:
        ok = self.session == action.session and self.session_up
        if ok:
            self.acknowledge = Acknowledge.BOTH
            if self.peer.folder.data != self.folder.data:
                raise Violation("R11: ended a resync with unequal copies")
        self.done(action.operation, ok, "" if ok else "no session")

    def do_clear_map(self, action: a.ClearMap) -> None:
        self.folder.dirty = False
        self.done(action.operation)
