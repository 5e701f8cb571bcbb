"""Barriers over both nodes, retirement of log records behind them, and the watch over the peer.

A barrier's two fsyncs begin after the operations that it covers were complete on both nodes (Z2);
only then may records be retired, and only on both nodes together (Z1). The watch tells the core
when the peer makes no progress while something waits for it (D8', T8).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hyperha.core.actions import Acknowledge
from hyperha.core.events import SessionStalled
from hyperha.replication import wire
from hyperha.replication.clock import now_ms
from hyperha.replication.control import LogLine
from hyperha.replication.lans import STABLE_LIMITS, Lans, silent_limit_ms
from hyperha.replication.stream import NOTHING_TOLD, PrimarySession
from hyperha.replication.wire import Kind

if TYPE_CHECKING:
    from hyperha.replication.primary import Primary

log = logging.getLogger(__name__)

Done = Callable[[bool, str], None]
NOT_PRIMARY: Final = "this node is not the primary"
_TICK_S: Final = 0.05
_TIMES_MS: Final = 1000
_BARRIER_MS: Final = 5000
_IDLE_MS: Final = 5000
"""A record is kept this long after its last use, so that a warm zone costs no disk write (Z2)."""
_ALIVE_MS: Final = 250
_GAP_MS: Final = 500
"""A tick that comes later than this: the process, or the machine, stood still."""
_FULL_MS: Final = 60_000
"""A log that runs full again and again is told of so often at most."""
_SILENT_LIMITS: Final = 3
"""A peer whose copy is being made equal is given up after so many times stall_limit."""


class Barrier:
    """One barrier under way."""

    __slots__ = ("covered", "done", "error", "forget_all", "local", "number", "remote", "session")

    def __init__(
        self, number: int, covered: int, session: PrimarySession | None, done: Done, forget: bool
    ) -> None:
        self.number = number
        self.covered = covered
        self.session = session
        self.done = done
        self.forget_all = forget
        self.local = False
        self.remote = session is None
        self.error = ""


class Barriers:
    """Owned by `Primary`; runs the watch thread."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        self._running: dict[int, Barrier] = {}
        self._held: list[tuple[Done, bool]] = []
        """Barriers that both nodes must do while there is no session: the core decides first."""
        self.covered = 0
        """Everything up to this operation is on stable storage on both nodes."""
        self._clear_behind = -1
        self._history: deque[tuple[int, int]] = deque()
        self._last_barrier_ms = now_ms()
        self._last_times_ms = 0
        self._periodic = False
        self._full_told = False
        """Of this node's log, and not yet that it has room again."""
        self._full_ms = -_FULL_MS
        self._waiting_since_ms = 0
        self._alive_ms = 0
        self._told_ms = 0
        self._watching_since_ms = now_ms()
        config = primary.config
        self.lans = Lans(config.links, STABLE_LIMITS * config.stall_limit_ms)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # --- barriers -------------------------------------------------------------------------

    def start(self, done: Done, *, forget_all: bool) -> None:
        """Begin a barrier on this node and, in a session, on the peer; `done` comes later.

        `forget_all`: retire every record that it covers, not only idle ones, so that both logs
        are empty after a barrier that nothing followed. Without a session it is this node's alone
        only while this node's word is enough; else it waits for a session or for that (R11, Z1).
        """
        primary = self._primary
        with primary.lock:
            covered = primary.done_number()
        # Only then: what is covered has its mtime in the stream before the peer syncs, so that
        # nothing is left to be told about a file whose records are retired (Z9).
        primary.send_all_times()
        with primary.lock:
            session = primary.session
            if session is not None and not session.up:
                session = None
            held = session is None and primary.mode is not Acknowledge.LOCAL
            if held:
                self._held.append((done, forget_all))
            else:
                number = primary.number = primary.number + 1
                barrier = Barrier(number, covered, session, done, forget_all)
                if session is not None:
                    self._running[number] = barrier
                    session.put(wire.frame(Kind.SYNC, session.tag, number), number)
        if held:
            if not primary.writable():
                # The node has stepped back meanwhile: nobody else ends what is held from now on.
                self.drop(NOT_PRIMARY)
            return
        self._last_barrier_ms = now_ms()
        primary.syncer.everything(lambda error: self._local_done(barrier, error))

    def resume(self) -> None:
        """Begin what was held: there is a session again, or this node's word is enough."""
        with self._primary.lock:
            held, self._held = self._held, []
        for done, forget_all in held:
            self.start(done, forget_all=forget_all)

    def drop(self, text: str) -> None:
        """End what is held: this node is not the primary any more."""
        with self._primary.lock:
            held, self._held = self._held, []
        for done, _ in held:
            done(False, text)

    def _local_done(self, barrier: Barrier, error: OSError | None) -> None:
        primary = self._primary
        again = False
        with primary.lock:
            barrier.local = True
            barrier.error = primary.failure
            if error is not None:
                barrier.error = f"syncfs failed: {error.strerror or error}"
            elif barrier.session is None and primary.mode is not Acknowledge.LOCAL:
                # Begun when this node's word was enough, which it is not any more.
                again = True
            ready = barrier.remote
            if ready and barrier.session is not None:
                # Else it has ended with its session meanwhile, and who waits knows.
                ready = self._running.pop(barrier.number, None) is barrier
        if again and not barrier.error:
            self.start(barrier.done, forget_all=barrier.forget_all)
        elif ready:
            self.finish(barrier)

    def remote_done(self, number: int) -> Barrier | None:
        """The peer has finished; the caller has the lock. A barrier to be finished, or None."""
        barrier = self._running.get(number)
        if barrier is None:
            return None
        barrier.remote = True
        if not barrier.local:
            return None
        del self._running[number]
        return barrier

    def running(self, session: PrimarySession) -> list[int]:
        """The barriers that the session's peer has not done; the caller has the lock."""
        found = self._running.items()
        return [number for number, one in found if one.session is session and not one.remote]

    def finish(self, barrier: Barrier) -> None:
        """Both nodes are done, or cannot be: retire what it covers and tell who waits."""
        if not barrier.error and barrier.session is not None:
            # File writes of the log do not belong into the thread that answers the kernel.
            self._primary.syncer.run(lambda: self._retire(barrier))
            return
        barrier.done(not barrier.error, barrier.error)

    def _retire(self, barrier: Barrier) -> None:
        primary, session = self._primary, barrier.session
        assert session is not None
        error = ""
        try:
            alive = self._retire_behind(barrier, session)
        except OSError as problem:
            alive = True
            primary.disk_failed(f"the intent log cannot be written: {problem}")
        except Exception as problem:
            # Whoever waits must hear it; records that are left are retired behind the next one.
            log.exception("the end of a barrier failed in an unforeseen way")
            alive, error = True, f"the end of the barrier failed: {problem!r}"
        if alive:
            barrier.done(not error, error)
        else:
            self._lost(barrier, "the session ended during the barrier")

    def _retire_behind(self, barrier: Barrier, session: PrimarySession) -> bool:
        """Retire on both nodes what a barrier covers (Z1); False when the session has ended."""
        primary = self._primary
        with primary.lock:
            if session is not primary.session:
                return False
            # From here on the session may end, and the node go on alone: then nothing is cleared.
            order = primary.intent.order
            self.covered = max(self.covered, barrier.covered)
            upto = barrier.covered if barrier.forget_all else self._idle_number()
            upto = min(upto, barrier.covered)
            payload = barrier.covered.to_bytes(8, "little")
            session.put(wire.frame(Kind.RETIRE, session.tag, upto, payload))
        if self._clear_behind >= 0 and self.covered >= self._clear_behind:
            self._clear(session, order)
        primary.intent.retire(upto, barrier.covered)
        return True

    def clear(self) -> None:
        """ClearMap: forget the map, now or behind the next barrier that allows it (F10)."""
        primary = self._primary
        with primary.lock:
            session, order = primary.session, primary.intent.order
        self._clear(session, order)

    def _clear(self, session: PrimarySession | None, order: int) -> None:
        """`order`: of the log, when the session was looked at."""
        primary = self._primary
        done = primary.intent.clear(self.covered, order)
        with primary.lock:
            if done or session is None or session is not primary.session:
                # Behind a barrier of another session nothing says that its peer's copy is equal.
                self._clear_behind = -1
            else:
                self._clear_behind = primary.number

    def session_ended(self, session: PrimarySession, text: str) -> None:
        """Barriers that wait for this session's peer cannot end."""
        with self._primary.lock:
            gone = [one for one in self._running.values() if one.session is session]
            for one in gone:
                del self._running[one.number]
            # What the next session's target has is for its own resync to say (R11).
            self._clear_behind = -1
        for one in gone:
            self._lost(one, text)

    def _lost(self, barrier: Barrier, text: str) -> None:
        """Its peer is gone: where that was not needed, this node does it alone."""
        if self._primary.mode is Acknowledge.LOCAL:
            self.start(barrier.done, forget_all=barrier.forget_all)
        else:
            barrier.done(False, text)

    def _idle_number(self) -> int:
        """The last operation that is older than what counts as idle."""
        limit = now_ms() - _IDLE_MS
        number = 0
        for at_ms, completed in self._history:
            if at_ms > limit:
                break
            number = completed
        return number

    # --- the watch ------------------------------------------------------------------------

    def run(self) -> None:
        """Start the watch thread."""
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.lans.close()

    def _watch(self) -> None:
        last = now_ms()
        while not self._stop.wait(_TICK_S):
            now = now_ms()
            if now - last > _GAP_MS:
                # This process stood still: it has not observed the peer meanwhile (L7).
                self._watching_since_ms = now
            last = now
            try:
                self._tick(now)
            except Exception:
                # Without the watch a dead peer would hold the guest for ever.
                log.exception("a tick of the watch failed in an unforeseen way")

    def _tick(self, now: int) -> None:
        if self._primary.keeps is not None:
            # The data path may stand still, at a disk or a lock: that is no silence of the peer's.
            self._primary.send_kept()
        self._watch_peer(now)
        self._watch_lan(now)
        self._say_alive(now)
        self._watch_log(now)
        if now - self._last_times_ms < _TIMES_MS:
            if self._logs_fill():
                self._maybe_barrier(now, pressed=True)
            return
        self._last_times_ms = now
        with self._primary.lock:
            self._history.append((now, self._primary.done_number()))
        while len(self._history) > 30:
            self._history.popleft()
        if self._primary.session is not None:
            self._primary.send_all_times()
        self._maybe_barrier(now, pressed=False)

    def _logs_fill(self) -> bool:
        """Whether a log is nearly full, of either node: for a file that is made the secondary needs
        a record of its own, the primary only that of the directory (N4)."""
        session, log_ = self._primary.session, self._primary.intent
        told = NOTHING_TOLD if session is None else session.peer_log
        return any(used * 4 >= room * 3 for used, room in ((log_.used, log_.capacity), told))

    def _watch_log(self, now: int) -> None:
        """Of this node, in any role: a log that runs full is told, and that it has overcome it."""
        log_ = self._primary.intent
        if self._full_told:
            if not log_.everything:
                self._full_told = False
                self._primary.report(LogLine("I", "Z5", "the intent log has room again"))
        elif log_.overflowed and now - self._full_ms >= _FULL_MS:
            self._full_told, self._full_ms = True, now
            text = "the intent log is full: until a barrier has ended, a crash would cost a compare"
            self._primary.report(LogLine("W", "Z5", f"{text} of everything"))

    def _maybe_barrier(self, now: int, *, pressed: bool) -> None:
        """A barrier of our own: every 5 s, and early when the log fills (Z2, N4)."""
        primary = self._primary
        session = primary.session
        if session is None or not session.up or not session.copied or self._periodic:
            return
        if primary.mode is not Acknowledge.BOTH or (
            primary.intent.retaining and self._clear_behind < 0
        ):
            return
        waits = primary.intent.used or primary.intent.overflowed or session.peer_log[0]
        if not waits or (not pressed and now - self._last_barrier_ms < _BARRIER_MS):
            return
        self._periodic = True
        self.start(self._periodic_done, forget_all=pressed)

    def _periodic_done(self, ok: bool, text: str) -> None:
        session = self._primary.session
        if session is not None:
            # Told before it retired records: what it says next counts.
            session.peer_log = NOTHING_TOLD
        self._periodic = False
        if not ok:
            log.info("a periodic barrier did not end: %s", text)

    def oldest_ms(self) -> int:
        """For how long the oldest operation has waited for the peer without progress."""
        since = self._waiting_since_ms
        session = self._primary.session
        if not since or session is None:
            return 0
        return now_ms() - max(since, session.progress_ms)

    def _say_alive(self, now: int) -> None:
        """So that the secondary hears of us also when the guest writes nothing (P8)."""
        primary = self._primary
        if now - self._alive_ms < _ALIVE_MS:
            return
        self._alive_ms = now
        with primary.lock:
            session = primary.session
            if session is not None and session.up:
                session.put_alive()

    def _watch_lan(self, now: int) -> None:
        """D12: before a silent LAN becomes a lost peer another one is tried, and later left again
        for the preferred one."""
        session = self._primary.session
        if session is None or not session.up or not session.copied:
            return
        link = session.link
        silent = now - max(session.told_ms, session.progress_ms, self._watching_since_ms)
        if silent >= silent_limit_ms(self._primary.config.suspect_ms):
            others = self.lans.others(link)
            if others and link is not None:
                session.move(others, f"{link.lan} has been silent for {silent} ms", alarm=True)
            return
        better = self.lans.better(link, now)
        if better is not None:
            session.move([better], f"{better.lan} is preferred and stable again", alarm=False)

    def _watch_peer(self, now: int) -> None:
        """D8': the limit is on time without progress while something waits for the peer."""
        primary = self._primary
        session = primary.session
        if session is None or not session.up:
            self._waiting_since_ms = 0
            return
        config = primary.config
        since = max(session.told_ms, session.progress_ms, self._watching_since_ms)
        silent = now - since
        if primary.mode is Acknowledge.LOCAL and silent >= _SILENT_LIMITS * config.stall_limit_ms:
            # Nobody asks the core about a peer that is not needed, and TCP waits for many minutes;
            # writes beyond the backlog wait for it too.
            session.fail(f"{config.peer} has been silent for {silent} ms")
        session.slow_sync_ms = config.stall_limit_ms + 3 * primary.syncer.last_ms
        with primary.lock:
            waits = session.last_number > primary.acknowledged_number
            waits = waits or bool(self._running) or primary.flushes_wait()
        if not waits:
            self._waiting_since_ms = self._told_ms = 0
            return
        if not self._waiting_since_ms:
            self._waiting_since_ms = now
        since = max(session.progress_ms, self._watching_since_ms)
        waited = now - max(self._waiting_since_ms, since)
        if waited < config.suspect_ms:
            self._told_ms = 0
        elif self._told_ms == 0:
            self._told_ms = config.suspect_ms
            primary.report(SessionStalled(session.key, waited, False))
        if waited >= config.stall_limit_ms > self._told_ms > 0:
            self._told_ms = config.stall_limit_ms
            primary.report(SessionStalled(session.key, waited, True))
