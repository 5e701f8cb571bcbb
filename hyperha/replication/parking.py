"""What was done and may not be answered yet, and by which rule it will be (D1, R11, F2, T6).

`Ledger` numbers operations, parks their answers, and gives them when the mode and the peer's
acknowledgements allow. It performs nothing on files and opens no session. One lock guards it, which
is never held across a system call; answers are given outside of it.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.domain import SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication.barriers import NOT_PRIMARY, Barriers
from hyperha.replication.control import EngineConfig
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import Answer, FileId, Record
from hyperha.replication.store import Store
from hyperha.replication.stream import PrimarySession
from hyperha.replication.syncer import Syncer

BACKLOG_BYTES: Final = 32 << 20
"""While acknowledgements need this node only: beyond this much unsent, writes wait for the peer."""

Parked = tuple[int, PrimarySession | None, Answer, int]
"""Number, session whose acknowledgement counts (None: of none), whom to answer, with what errno."""


class Flush:
    """A barrier that somebody waits for: done when both nodes have it on stable storage (F2).

    `session`: whose peer was asked; None when none was.
    """

    __slots__ = ("answer", "error", "local", "remote", "session")

    def __init__(self, answer: Answer, session: PrimarySession | None, *, remote: bool) -> None:
        self.answer = answer
        self.session = session
        self.local = False
        self.remote = remote
        self.error = 0


class Ledger:
    """State that the data path, the receiver of acknowledgements and the control thread share."""

    syncer: Syncer
    barriers: Barriers

    def __init__(self, store: Store, intent: IntentLog, config: EngineConfig) -> None:
        self.store = store
        self.intent = intent
        self.config = config
        self.lock = intent.lock
        self.mode = Acknowledge.NONE
        self.session: PrimarySession | None = None
        self.number = 0
        """Of the last operation or request; grows for the life of the process."""
        self.begun = 0
        """Number of the last write; it enters the stream before its local call returns."""
        self.completed = 0
        """Number of the last operation whose local call has returned."""
        self.acknowledged_number = 0
        self.version = 0
        """Grows when a change begins and when it is in the stream, and is odd between: who reads
        the tree between two equal, even values has read one position of the stream."""
        self.renames = 0
        """Grows with each rename, which a walk of the folder beside it may have missed."""
        self.watched: dict[tuple[FileId, int], int] = {}
        """Like `version`, for the zones that a resync reads just now: grows when a write to the
        zone enters the stream and when its local call has returned."""
        self.watched_ends: dict[FileId, int] = {}
        """How long the files of these zones were: a write behind that end makes zones before it
        longer, in which it writes nothing."""
        self.changed: Callable[[tuple[Record, ...]], None] | None = None
        """Hears the records of each change in the stream, under the lock, during a resync."""
        self._parked: deque[Parked] = deque()
        self._flushes: dict[int, Flush] = {}
        self._written: set[FileId] = set()
        self._ack_waiters: list[tuple[int, Callable[[bool, str], None]]] = []
        self._refusing = ""
        """Why nothing is done: a failed disk, a freeze that was ended (M7), or not the primary."""
        self._broken = False

    def done_number(self) -> int:
        """Everything in the stream up to here is done here; the caller has the lock. Behind the
        last operation that is what a resync or a verification has asked, which changes nothing
        here: the peer's records of it, too, are covered by a barrier that follows (Z2)."""
        return self.number if self.begun <= self.completed else self.completed

    # --- completing an operation ----------------------------------------------------------

    def _complete(
        self,
        number: int,
        session: PrimarySession | None,
        answer: Answer,
    ) -> None:
        """The local call has returned: answer, or park until the rules allow it."""
        error = 0
        with self.lock:
            self.completed = number
            if self.mode is Acknowledge.LOCAL:
                # Of a session that is gone no acknowledgement will come.
                now = (
                    session is None
                    or session is not self.session
                    or session.unsent_bytes < BACKLOG_BYTES
                    or number <= self.acknowledged_number
                )
            elif self.mode is Acknowledge.BOTH:
                now = number <= self.acknowledged_number and session is self.session
                now = now and session is not None
            else:
                # The order to end the freeze overtook the local call (M7).
                now = bool(self._refusing) and not self._broken
                error = errno.EIO if now else 0
            if not now:
                self._parked.append((number, session, answer, 0))
        if now:
            answer(error, b"")

    def _begin_barrier(self, number: int, session: PrimarySession | None, answer: Answer) -> Flush:
        """Note that somebody waits for a barrier; its session is the one to ask it of, or None.

        The caller has the lock. A peer whose copy is not equal yet cannot vouch for what came
        before; without an equal one the barrier waits until the core has decided (F2, M1).
        """
        local_only = self.mode is Acknowledge.LOCAL
        asked = session if session is not None and session.copied and not local_only else None
        flush = self._flushes[number] = Flush(answer, asked, remote=local_only)
        return flush

    def _complete_barrier(self, number: int, file: FileId, flush: Flush) -> None:
        """A write with O_DSYNC is answered when both nodes have it on stable storage (M1)."""
        with self.lock:
            self.completed = number
        self.syncer.file(file, True, lambda error: self._synced(number, flush, error))

    def _synced(self, number: int, flush: Flush, error: OSError | None) -> None:
        with self.lock:
            if error is not None or self._flushes.get(number) is not flush:
                # A failed disk: the answer stays away, the core abdicates (D10). Or forgotten:
                # the connection that waited for it has ended.
                return
            flush.local = True
            ripe = self._ripe(flush)
            # The order to end the freeze overtook the local call (M7).
            ended = self.mode is Acknowledge.NONE and bool(self._refusing) and not self._broken
            if ripe or ended:
                self._flushes.pop(number, None)
        if ripe or ended:
            flush.answer(errno.EIO if ended else 0, b"")

    def _ripe(self, flush: Flush) -> bool:
        if not flush.local or self.mode is Acknowledge.NONE:
            return False
        return self.mode is Acknowledge.LOCAL or flush.remote

    # --- the mode -------------------------------------------------------------------------

    def set_mode(self, mode: Acknowledge) -> None:
        """Answer by another rule from here on; also what is parked already."""
        with self.lock:
            ready, ripe = self._enter_mode(mode)
        self._answer(ready, ripe)
        if mode is Acknowledge.LOCAL:
            self.barriers.resume()

    def _enter_mode(self, mode: Acknowledge) -> tuple[list[Parked], list[Flush]]:
        """Change the mode; what may be answered by it. The caller has the lock."""
        self.mode = mode
        if not self._broken:
            self._refusing = ""
        ripe = [(number, one) for number, one in self._flushes.items() if self._ripe(one)]
        for number, _ in ripe:
            del self._flushes[number]
        return self._take_ready(), [one for _, one in ripe]

    def end_parked(self) -> None:
        """M7: everything parked ends with EIO, also what is new, until the mode changes.

        What was done and sent stays as it is, and in the log: to the caller its result is unknown,
        to a resync it is a candidate.
        """
        with self.lock:
            if self.mode is not Acknowledge.NONE and not self._broken:
                # The freeze ended before this order came.
                return
            self._refusing = self._refusing or "the freeze was ended"
            waiting = [one[2] for one in self._parked]
            waiting += [one.answer for one in self._flushes.values()]
            self._parked.clear()
            self._flushes.clear()
        for answer in waiting:
            answer(errno.EIO, b"")

    def forget_parked(self) -> None:
        """Forget what is parked, and take nothing more; its records stay in the log (M2, M3)."""
        with self.lock:
            self.mode = Acknowledge.NONE
            self._parked.clear()
            self._flushes.clear()
            if not self._broken:
                self._refusing = NOT_PRIMARY
        self.barriers.drop(NOT_PRIMARY)

    def switch_to_both(self, key: SessionKey, done: Callable[[bool, str], None]) -> None:
        """R11: acknowledgement by both; `done` when everything sent earlier is acknowledged."""
        ready: list[Parked] = []
        ripe: list[Flush] = []
        orphans: list[tuple[int, Flush]] = []
        waits = False
        with self.lock:
            session = self.session
            if session is None or session.key != key or not session.up:
                text = "the session is not up any more"
            elif session.start is not SessionStart.IN_SYNC and not session.copied:
                text = "the resync has not copied everything"
            else:
                text = ""
                # Whatever an earlier session left unanswered is on the peer by now.
                self._parked = deque((n, session, f, a) for n, _, f, a in self._parked)
                ready, ripe = self._enter_mode(Acknowledge.BOTH)
                orphans = [
                    (number, flush)
                    for number, flush in self._flushes.items()
                    if not flush.remote and flush.session is not session
                ]
                waits = session.last_number > self.acknowledged_number
                if waits:
                    self._ack_waiters.append((session.last_number, done))
        self._answer(ready, ripe)
        if not text:
            self.barriers.resume()
        if orphans:
            # Asked of no session, or of a dead one: a barrier now answers them all (F2).
            self.barriers.start(lambda ok, _: self._settle_orphans(orphans, ok), forget_all=False)
        if not waits:
            done(not text, text)

    def _settle_orphans(self, orphans: list[tuple[int, Flush]], ok: bool) -> None:
        if not ok:
            return
        ripe = []
        with self.lock:
            for number, flush in orphans:
                flush.remote = True
                if self._flushes.get(number) is flush and self._ripe(flush):
                    del self._flushes[number]
                    ripe.append(flush)
        self._answer([], ripe)

    def _take_ready(self) -> list[Parked]:
        """Take what may be answered; the caller has the lock."""
        parked = self._parked
        if self.mode is Acknowledge.LOCAL:
            if self._broken:
                return []
            ready = list(parked)
            parked.clear()
            return ready
        ready = []
        if self.mode is Acknowledge.BOTH and self.session is not None:
            number = self.acknowledged_number
            while parked and parked[0][0] <= number and parked[0][1] is self.session:
                ready.append(parked.popleft())
        return ready

    def _answer(self, ready: list[Parked], ripe: Iterable[Flush] = ()) -> None:
        for one in ready:
            one[2](one[3], b"")
        for flush in ripe:
            flush.answer(0, b"")

    # --- what the peer says ---------------------------------------------------------------

    def acknowledged(self, session: PrimarySession, number: int) -> None:
        """Cumulative: the peer has everything up to `number`. ReplicationError for one that it was
        not sent: what comes later would be answered before the peer has it (T2)."""
        with self.lock:
            if number > session.last_number:
                raise ReplicationError(f"the peer acknowledges {number}, which was not sent")
            if session is not self.session or number <= self.acknowledged_number:
                return
            self.acknowledged_number = number
            session.retained.acknowledged(number)
            parked, ready = self._parked, []
            if self.mode is not Acknowledge.NONE:
                while parked and parked[0][0] <= number and parked[0][1] is session:
                    ready.append(parked.popleft())
            waiters = self._ack_waiters
            if waiters:
                self._ack_waiters = [one for one in waiters if one[0] > number]
        self._answer(ready)
        for wanted, done in waiters:
            if wanted <= number:
                done(True, "")

    def flushed(self, session: PrimarySession, number: int) -> None:
        """The peer has what frame `number` asked for on stable storage."""
        with self.lock:
            flush = self._flushes.get(number)
            barrier = None
            if flush is not None and flush.session is session:
                flush.remote = True
                if not self._ripe(flush):
                    return
                del self._flushes[number]
            elif session is self.session:
                flush, barrier = None, self.barriers.remote_done(number)
        if flush is not None:
            flush.answer(0, b"")
        elif barrier is not None:
            self.barriers.finish(barrier)

    @property
    def failure(self) -> str:
        """Why this node's disk counts as failed, or nothing (D10)."""
        return self._refusing if self._broken else ""

    def flushes_wait(self) -> bool:
        """Whether a flush waits for the peer; the caller has the lock."""
        return any(one.local and not one.remote for one in self._flushes.values())

    def parked_count(self) -> int:
        """Operations that wait for their answer."""
        return len(self._parked) + len(self._flushes)
