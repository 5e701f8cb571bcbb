"""One module's engine on one node: folder, log, mount, pipeline and sessions, as the core orders.

Every `EngineAction` ends with one `EngineDone`. What answers or holds the guest's requests is done
at once by the thread that brings the order; what may wait for peer, disk or kernel is done in order
by another thread, so that nothing can hold up a freeze; barriers end when they end. The engine
decides nothing about roles: it does what it is told, or says why it cannot.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

from hyperha.core import actions
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import EngineDone, Event, MountLost
from hyperha.core.facts import AttachFacts, MarkerState, Shortage
from hyperha.errors import HyperhaError, RefusedError, ReplicationError
from hyperha.replication import marker as markers
from hyperha.replication import preamble as preambles
from hyperha.replication.acceptor import Acceptor
from hyperha.replication.admission import ReadOnly, admit, admit_covered, judge, resource_of
from hyperha.replication.clock import now_ms
from hyperha.replication.control import (
    Descriptors,
    EngineConfig,
    LogLine,
    ProcessMessage,
    Statistics,
    TakeSocket,
)
from hyperha.replication.fuse.fence import inherited
from hyperha.replication.fuse.layers import Layer, MountStack
from hyperha.replication.fuse.orphans import Given, Orphans
from hyperha.replication.fuse.protocol import Feature
from hyperha.replication.fuse.session import Session
from hyperha.replication.holding import DaemonHolder, SendNow
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.marker import DamagedMarker
from hyperha.replication.primary import Primary
from hyperha.replication.questions import Parts, Questions
from hyperha.replication.resync_source import ResyncSource
from hyperha.replication.safety.area import SafetyArea
from hyperha.replication.safety.retention import Keep
from hyperha.replication.safety.saver import NoRoom
from hyperha.replication.stamping import Stamping
from hyperha.replication.store import Store
from hyperha.replication.touched import last_moment, record_touched
from hyperha.text import clean

log = logging.getLogger(__name__)

Send = Callable[[Event | ProcessMessage, tuple[int, ...]], None]
_AT_ONCE: Final = (
    actions.Freeze,
    actions.EndParked,
    actions.EnterAlone,
    actions.Release,
    actions.EndResync,
    actions.ClearMap,
    actions.SetMarker,
)
_READY_S: Final = 5.0
_DRAIN_S: Final = 30.0


class Engine:
    """The process's one engine. `send` passes events and messages to the daemon; `send_now` one
    with a descriptor, before it returns."""

    def __init__(self, config: EngineConfig, send: Send, send_now: SendNow) -> None:
        self.config = config
        self.detached = threading.Event()
        """Set when the folder is uncovered and the process may end."""
        self._send = send
        self._holder = DaemonHolder(self.report, send_now)
        self._stack: MountStack | None = None
        self._folder = -1
        self._store: Store | None = None
        self._intent: IntentLog | None = None
        self._primary: Primary | None = None
        self._acceptor: Acceptor | None = None
        self._session: Session | None = None
        self._safety: SafetyArea | None = None
        self._stamping: Stamping | None = None
        self.questions = Questions(self._asked, lambda: self._safety, self.report)
        self._lan_tls = {link.lan: link.tls for link in config.links}
        self._orders: SimpleQueue[actions.EngineAction] = SimpleQueue()
        self._disabled = 0
        for name in config.kernel_features_off:
            if name not in Feature.__members__:
                known = ", ".join(sorted(Feature.__members__))
                raise ReplicationError(f"unknown kernel feature {name!r}", f"Known: {known}")
            self._disabled |= Feature[name]
        threading.Thread(target=self._work, name="orders", daemon=True).start()

    # --- orders ---------------------------------------------------------------------------

    def perform(self, action: actions.EngineAction) -> None:
        """Do one order of the core; its `EngineDone` comes now or later."""
        if isinstance(action, _AT_ONCE):
            self._perform(action)
        else:
            self._orders.put(action)

    def _work(self) -> None:
        while not self.detached.is_set():
            self._perform(self._orders.get())

    def _perform(self, action: actions.EngineAction) -> None:
        operation = action.operation
        try:
            self._HANDLERS[type(action)](self, action)
        except HyperhaError as problem:
            self._done(operation, False, str(problem))
        except OSError as problem:
            where = f" ({os.fsdecode(problem.filename)})" if problem.filename else ""
            lacks = problem.lacks if isinstance(problem, NoRoom) else None
            self._done(operation, False, f"{problem.strerror or problem}{where}", lacks=lacks)
        except Exception as problem:
            # The core waits for every operation's end, and the next order for this thread.
            log.exception("%s failed in an unforeseen way", type(action).__name__)
            self._done(operation, False, f"{type(action).__name__} failed: {problem!r}")

    def _done(
        self,
        operation: int,
        ok: bool,
        text: str = "",
        facts: AttachFacts | None = None,
        lacks: Shortage | None = None,
    ) -> None:
        intent = self._intent
        count = None if intent is None else intent.candidate_count()
        self._send(EngineDone(operation, ok, text, facts, count, lacks), ())

    def report(self, message: Event | ProcessMessage) -> None:
        """What pipeline, sessions, resync and answers to questions have to say."""
        self._send(message, ())

    def _asked(self) -> Parts | None:
        """What questions are answered from, while a folder that is ours is covered."""
        store, intent, primary = self._store, self._intent, self._primary
        if store is None or intent is None or primary is None:
            return None
        return store, intent, primary

    def _tell(self, level: str, rule: str, text: str) -> None:
        self._send(LogLine(level, rule, text), ())

    # --- covering -------------------------------------------------------------------------

    def _attach(self, action: actions.Attach) -> None:
        if self._stack is not None:
            raise RefusedError(f"{self.config.folder} is covered already")
        stack = MountStack(
            self.config.folder, f"hyperha-{self.config.module}", self.config.run_directory
        )
        peeled = stack.peel_stale()
        if peeled:
            self._tell("W", "M5", f"{peeled} stale mounts on {self.config.folder} were removed")
        folder = stack.open_folder()
        try:
            facts = self._prepare(folder, action)
            self._stack = stack
            self._session = self._serve(stack.cover())
            admit_covered(self.config.folder, folder)
            stack.watch(self._mount_lost)
            if self._stamping is not None:
                self._stamping.start()
        except BaseException:
            self._let_go()
            os.close(folder)
            raise
        self._folder = folder
        self._announce_descriptors()
        self._done(action.operation, True, "", facts)

    def _prepare(self, folder: int, action: actions.Attach) -> AttachFacts:
        """Check the plain folder and open store and log, before it is covered (M6, R12)."""
        found = admit(self.config.folder, folder)
        state, known = judge(found, action.accept)
        accepted = state is MarkerState.MATCHES or action.adopt
        fresh = state is MarkerState.ABSENT and (action.fresh or not action.accept)
        accepted = accepted or fresh
        self._open(folder, action.write.resource, fresh=fresh, usable=accepted)
        if state is MarkerState.MATCHES:
            self._look_for_touched()
        if accepted:
            markers.write_marker(folder, action.write)
        count = -1 if self._intent is None else self._intent.candidate_count()
        text = "" if self._intent is None else self._intent.damage
        if isinstance(found.marker, DamagedMarker):
            text = f"{found.marker.reason}; {text}" if text else found.marker.reason
        return AttachFacts(state, known, found.empty, count, text)

    def _open(self, folder: int, resource: str, *, fresh: bool, usable: bool) -> None:
        """Open store and log. A folder that is not ours keeps its own log untouched (R12)."""
        store = self._store = Store(folder)
        if usable:
            private = store.private_directory()
            try:
                self._intent = IntentLog(private, resource, store.handle, fresh=fresh)
                self._stamping = Stamping(private, self._beside_stamping, self._stamp_failed)
            finally:
                os.close(private)
            primary = Primary(store, self._intent, self.config, self.report)
            primary.resync_started = lambda session, welcome, theirs: ResyncSource(
                primary, session, welcome, theirs
            ).start()
            primary.barriers.run()
            self._primary = primary
            keep = Keep(self.config.safety_keep_days, self.config.safety_max_gib)
            self._safety = SafetyArea(
                folder, self.config.folder, store, keep, primary.writable, self.report
            )
            self._acceptor = Acceptor(store, self._intent, self.config, self.report)

    def _look_for_touched(self) -> None:
        """R14: what was changed while nothing was mounted is compared whole, and announced."""
        assert self._store is not None
        assert self._intent is not None
        assert self._stamping is not None
        found = record_touched(self._store, self._intent, self._stamping.read())
        if found.everything:
            self._tell("W", "R14", f"{found.everything}: every file is compared")
        elif found.count:
            self._tell(
                "W",
                "R14",
                f"{found.count} files were changed while {self.config.module} was not mounted, "
                f"among them {clean(found.example)}: they are compared whole",
            )

    def _beside_stamping(self) -> None:
        if self._safety is not None:
            self._safety.tick()

    def _stamp_failed(self, error: OSError) -> None:
        self._tell("E", "R14", f"the stamp of life cannot be written: {error.strerror}")

    def _serve(self, layer: Layer) -> Session:
        assert self._store is not None
        pipeline = self._primary or ReadOnly()
        watch = None if self._primary is None else self._primary.stopwatch
        session = Session(
            self._store, pipeline, layer.device, disabled=self._disabled,
            stopwatch=watch, orphans=Orphans(self._holder),
        )  # fmt: skip
        session.start()
        if not session.ready.wait(_READY_S):
            raise ReplicationError(f"the kernel did not begin to use {self.config.folder}")
        return session

    def _mount_lost(self, text: str) -> None:
        self._send(MountLost(text), ())

    def _announce_descriptors(self) -> None:
        """Give the daemon what a successor and the guardian need (M4, L5')."""
        stack, session = self._stack, self._session
        if stack is None or session is None or stack.top is None:
            return
        names = ["folder", "device", "table"]
        descriptors = [self._folder, session.device, session.table.descriptor]
        kind = ""
        if stack.top.fence is not None:
            kind = stack.top.fence.describe()
            for descriptor in stack.top.fence.descriptors:
                names.append("fence")
                descriptors.append(descriptor)
        ours = self._primary is not None
        self._send(Descriptors(tuple(names), kind, ours), tuple(descriptors))

    def _let_go(self, *, clean_end: bool = False) -> None:
        """Undo covering, as far as it went."""
        # Taken before others can reach the folder: what they change has a later time (R14).
        last = last_moment(self._folder) if clean_end else None
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.uncover()
        session, self._session = self._session, None
        if session is not None:
            session.close()
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is not None:
            acceptor.shut()
        primary, self._primary = self._primary, None
        if primary is not None:
            primary.close()
        stamping, self._stamping = self._stamping, None
        if stamping is not None:
            stamping.end(last)
        intent, self._intent = self._intent, None
        if intent is not None:
            intent.close()
        safety, self._safety = self._safety, None
        if safety is not None:
            safety.close()
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _detach(self, action: actions.Detach) -> None:
        """Uncover; what the kernel still sends meanwhile is refused, never done silently."""
        if self._stack is None:
            self._done(action.operation, True)
            self.detached.set()
            return
        problem = ""
        if self._primary is not None:
            self._primary.close_session(clean=True)
            self._primary.demote()
        if self._acceptor is not None:
            problem = self._acceptor.close()
        assert self._store is not None
        self._store.sync_all()
        if action.write is not None:
            markers.write_marker(self._folder, action.write)
        self._let_go(clean_end=True)
        os.close(self._folder)
        self._folder = -1
        self._done(action.operation, not problem, problem)
        self.detached.set()

    def _set_marker(self, action: actions.SetMarker) -> None:
        if self._folder < 0:
            raise RefusedError(f"{self.config.folder} is not covered")
        markers.write_marker(self._folder, action.write)
        self._done(action.operation, True)

    # --- roles ----------------------------------------------------------------------------

    def _parts(self) -> tuple[Primary, Acceptor, IntentLog, Session]:
        primary, acceptor, intent = self._primary, self._acceptor, self._intent
        if self._session is None:
            raise RefusedError(f"{self.config.folder} is not covered")
        if primary is None or acceptor is None or intent is None:
            raise RefusedError(
                f"the marker of {self.config.folder} is not this module's (R12)",
                "Check the folder; `second --adopt` takes it over.",
            )
        return primary, acceptor, intent, self._session

    def _promote(self, action: actions.Promote) -> None:
        primary, acceptor, _, session = self._parts()
        if not session.primary:
            problem = acceptor.close()
            if problem:
                raise ReplicationError(f"what was acknowledged is not all here: {problem}")
            try:
                session.become_primary()
            except ReplicationError as problem_of_kernel:
                # Pages of standby times are left: a new connection has none (M2, N7).
                self._tell("W", "M2", f"a new mount replaces the old one: {problem_of_kernel}")
                self._replace()
                assert self._session is not None
                self._session.become_primary()
        primary.promote(action.acknowledge)
        self._done(action.operation, True)

    def _demote(self, action: actions.Demote) -> None:
        primary, _, _, session = self._parts()
        primary.close_session(clean=False)
        primary.demote()
        if session.primary:
            self._replace()
        self._done(action.operation, True)

    def _replace(self) -> None:
        """A new standby layer on top; the connection below ends with all it holds (M2, M3)."""
        assert self._stack is not None
        old = self._session
        fresh: list[Session] = []
        self._stack.replace(lambda layer: fresh.append(self._serve(layer)))
        self._session = fresh[0]
        self._announce_descriptors()
        if old is not None and not old.close():
            self._tell("W", "M2", "the reader of the replaced mount has not ended yet")

    # --- acknowledging --------------------------------------------------------------------

    def _enter_alone(self, action: actions.EnterAlone) -> None:
        _, _, intent, _ = self._parts()
        intent.enter_alone(action.base)
        self._done(action.operation, True)

    def _release(self, action: actions.Release) -> None:
        self._parts()[0].set_mode(Acknowledge.LOCAL)
        self._done(action.operation, True)

    def _freeze(self, action: actions.Freeze) -> None:
        self._parts()[0].set_mode(Acknowledge.NONE)
        self._done(action.operation, True)

    def _end_parked(self, action: actions.EndParked) -> None:
        self._parts()[0].end_parked()
        self._done(action.operation, True)

    def _barrier(self, action: actions.Barrier) -> None:
        primary, acceptor, _, _ = self._parts()
        if primary.writable():
            primary.barriers.start(
                lambda ok, text: self._done(action.operation, ok, text), forget_all=True
            )
            return
        acceptor.drain(_DRAIN_S)
        self._done(action.operation, True)

    # --- safety copies --------------------------------------------------------------------

    def _safety_order(self, action: actions.EngineAction) -> None:
        _, acceptor, _, _ = self._parts()
        if isinstance(action, actions.UndoResync):
            acceptor.close()
        assert self._safety is not None
        self._safety.perform(action)
        self._done(action.operation, True)

    # --- sessions -------------------------------------------------------------------------

    def _expect(self, action: actions.ExpectSession) -> None:
        _, acceptor, _, _ = self._parts()
        problem = acceptor.expect(action.session, action.start)
        if problem and action.start is SessionStart.IN_SYNC:
            acceptor.close()
            raise ReplicationError(f"the former session left this copy behind: {problem}")
        self._done(action.operation, True)

    def _open_session(self, action: actions.OpenSession) -> None:
        primary, acceptor, _, _ = self._parts()
        acceptor.close()
        primary.open_session(action.session, action.start)
        self._done(action.operation, True)

    def _close_session(self, action: actions.CloseSession) -> None:
        primary, acceptor, _, _ = self._parts()
        primary.close_session(clean=True)
        problem = acceptor.close()
        self._done(action.operation, not problem, problem)

    def _end_resync(self, action: actions.EndResync) -> None:
        self._parts()[0].switch_to_both(
            action.session, lambda ok, text: self._done(action.operation, ok, text)
        )

    def _clear_map(self, action: actions.ClearMap) -> None:
        primary, acceptor, _, _ = self._parts()
        if primary.writable():
            primary.barriers.clear()
        else:
            acceptor.clear_map()
        self._done(action.operation, True)

    def take_socket(self, take: TakeSocket, descriptor: int) -> None:
        """A connection that the daemon has accepted for this module."""
        accepted = socket.socket(fileno=descriptor)
        accepted.setblocking(True)
        try:
            preamble = preambles.decode(bytes.fromhex(take.preamble))
            if self._acceptor is None:
                raise ReplicationError(f"{preamble.node} connects, but no folder is covered")
            if take.lan not in self._lan_tls:
                raise ReplicationError(f"replication is not configured on LAN {take.lan}")
        except (HyperhaError, ValueError) as problem:
            accepted.close()
            self._tell("W", "T3", f"a replication connection was refused: {problem}")
            return
        acceptor, tls = self._acceptor, self._lan_tls[take.lan]

        def work() -> None:
            try:
                acceptor.take(accepted, preamble, tls)
            except HyperhaError as problem:
                self._tell("W", "T3", f"a replication connection was refused: {problem}")

        threading.Thread(target=work, name="accept", daemon=True).start()

    # --- succession -----------------------------------------------------------------------

    def take_over(
        self, kept: dict[str, list[int]], orphans: Sequence[Given], *, ours: bool = True
    ) -> None:
        """Continue what a predecessor served on the same connection (M4, N1).

        Nothing is answered before the core orders it. Raises HyperhaError when it cannot be.
        """
        try:
            folder, device, table = (kept[name][0] for name in ("folder", "device", "table"))
        except (KeyError, IndexError):
            raise ReplicationError("the kept descriptors are not complete") from None
        resource = resource_of(folder) if ours else ""
        self._open(folder, resource, fresh=False, usable=ours)
        assert self._store is not None
        # Requests name inodes that this process has never looked up; later a walk would race
        # with the guest's renames.
        self._store.learn_all()
        stack = self._stack = MountStack(
            self.config.folder, f"hyperha-{self.config.module}", self.config.run_directory
        )
        stack.adopt(device, inherited(kept.get("fence", [])))
        self._folder = folder
        session = Session(
            self._store, self._primary or ReadOnly(), device, disabled=self._disabled,
            inherited=table, stopwatch=None if self._primary is None else self._primary.stopwatch,
            orphans=Orphans(self._holder, orphans),
        )  # fmt: skip
        self._session = session
        if session.primary and self._primary is not None:
            self._primary.promote(Acknowledge.NONE)
        session.start()
        stack.watch(self._mount_lost)
        if self._stamping is not None:
            self._stamping.start()
        self._announce_descriptors()
        self._tell("W", "M4", "a new replication process serves the mount of the one that died")

    # --- statistics -----------------------------------------------------------------------

    def handles_open(self) -> int:
        """File handles that the kernel has not released yet (M12)."""
        return self._session.handles_open() if self._session is not None else 0

    def statistics(self) -> Statistics | None:
        """What the daemon gets every second; None before the folder is covered."""
        primary, session = self._primary, self._session
        if primary is None or session is None or self._intent is None:
            return None
        acceptor = self._acceptor
        serving = None if acceptor is None else acceptor.session
        if acceptor is not None:
            acceptor.tick()
        primary.room.tick()
        ours = primary.session
        # statfs shows the smaller room of both nodes (D11).
        session.limit_room(None if ours is None else ours.peer_room_bytes)
        heard_ms = 0
        if ours is not None:
            heard_ms = ours.heard_ms if ours.up else 0
            state = "connecting" if not ours.up else "up" if ours.copied else "resync"
            queue = ours.unsent_bytes
        elif serving is not None and serving.up:
            state = "resync" if serving.resyncing else "serving"
            queue = serving.waiting_bytes
            heard_ms = serving.heard_ms
        else:
            state, queue = "none", 0
        return Statistics(
            session=state,
            acknowledge=primary.mode.value if primary.writable() else "standby",
            parked=primary.parked_count(),
            oldest_parked_ms=primary.barriers.oldest_ms(),
            writes=primary.writes,
            written_bytes=primary.written_bytes,
            log_records=self._intent.used,
            log_capacity=self._intent.capacity,
            queue_bytes=queue,
            handles_open=session.handles_open(),
            heard_ms=heard_ms,
            told_ms=now_ms(),
            lan="" if ours is None or ours.link is None or not ours.up else ours.link.lan,
        )

    _HANDLERS: Final[dict[type[actions.EngineAction], Callable[..., None]]] = {
        actions.Attach: _attach,
        actions.Detach: _detach,
        actions.SetMarker: _set_marker,
        actions.OpenSafety: _safety_order,
        actions.CloseSafety: _safety_order,
        actions.UndoResync: _safety_order,
        actions.ExpectSession: _expect,
        actions.OpenSession: _open_session,
        actions.CloseSession: _close_session,
        actions.Promote: _promote,
        actions.Demote: _demote,
        actions.EnterAlone: _enter_alone,
        actions.Release: _release,
        actions.Freeze: _freeze,
        actions.EndParked: _end_parked,
        actions.Barrier: _barrier,
        actions.EndResync: _end_resync,
        actions.ClearMap: _clear_map,
    }
