"""The primary's end of one session: its connections, a sender and a receiver thread (T6).

The pipeline puts frames into the queue, in order, from the moment the session is made; they leave
once the handshake is done. The forward connection is written to by one thread at a time, which is
the sender's affair (T5, T8). Only the receiver reads the backward one. What the peer says is handed
to the listener; nothing here decides.

A session outlives its connections (T4, D12): while both copies are equal and the peer's process is
the same, it goes on over another one, on any LAN, and what the peer lacks is sent again. Whatever
speaks against that ends it: a peer that refuses or hangs up, and `stall_limit`.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Final, Protocol

from hyperha.core.actions import SessionStart
from hyperha.domain import SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication import handshake, wire
from hyperha.replication.clock import now_ms
from hyperha.replication.connecting import Line
from hyperha.replication.control import EngineConfig, PeerLink
from hyperha.replication.handshake import Hello, Welcome
from hyperha.replication.lines import Found, Lines, not_over, welcome_of
from hyperha.replication.operations import FileId, GiveBack, Record
from hyperha.replication.repeats import Repeats
from hyperha.replication.resuming import is_answer
from hyperha.replication.retained import Kept, Read, Retained, again
from hyperha.replication.sender import BATCH_BYTES, Sender
from hyperha.replication.syscalls import show_thread_name
from hyperha.replication.transport import RECEIVE_BYTES, Piece
from hyperha.replication.wire import Frame, Kind, Parser

log = logging.getLogger(__name__)

_ACK_SIZE: Final = wire.HEAD.size
_CONNECT_TIMEOUT_S: Final = 1.0
_WELCOME_TIMEOUT_S: Final = 30.0
_RETRY_S: Final = 0.05
FILES_ANNOUNCED: Final = 4096
"""Files that have an index in the stream; a session may last for months (M9)."""
_CLOSE_S: Final = 2.0
"""So long a receiver that stands still at a disk is waited for."""
NOTHING_TOLD: Final = (0, 1)
"""Of the peer's log: no record that a barrier may retire."""
_ACCOUNT_MS: Final = 10_000
"""A line that breaks again and again is told of so often at most."""


class Listener(Protocol):
    """Who hears what the peer says; called from the receiver thread."""

    def session_up(self, session: PrimarySession, welcome: Welcome, theirs: list[Record]) -> None:
        """The handshake is done; `theirs`: the peer's candidates when the start asks for them."""

    def session_lost(self, session: PrimarySession, text: str, refused: bool) -> None:
        """It ended, or could not begin; said once, not after `close`."""

    def session_resumed(self, session: PrimarySession, text: str, alarm: bool) -> None:
        """It goes on over other connections; what the peer said over the former ones may be lost,
        and barriers are to be asked for anew (`ask_again`). `text`: why and how, or nothing to be
        told; `alarm`: something was wrong."""

    def acknowledged(self, session: PrimarySession, number: int) -> None:
        """The peer has everything up to `number` in memory."""

    def flushed(self, session: PrimarySession, number: int) -> None:
        """The peer has what frame `number` asked for on stable storage."""

    def peer_failed(self, session: PrimarySession, text: str) -> None:
        """The peer could not apply something: its copy is outdated."""

    def read_again(self, file: FileId, offset: int, length: int) -> bytes:
        """What a file holds there now; nothing when it is gone."""

    operation: threading.Lock
    """Held while an operation is under way: what is in the stream may not be done here yet."""


class PrimarySession:
    """One session as seen by the primary. Frames are put under the pipeline's lock."""

    def __init__(
        self, config: EngineConfig, key: SessionKey, start: SessionStart, lock: threading.Lock
    ) -> None:
        self.config = config
        self.lock = lock
        self.key = key
        self.start = start
        self.tag = wire.session_tag(key)
        self.seed = secrets.randbits(63)
        self.least_bytes = -1
        """What the peer needs room for at least, for its hello; set before `open`."""
        self.announced: dict[FileId, int] = {}
        self.sender = Sender(lock)
        """Of the connection that carries the session now; replaced under the pipeline's lock."""
        self.retained = Retained()
        self.repeats = Repeats()
        self.resumes = 0
        """How often it went on. What was asked before the last time may have met data of later."""
        self.replies: SimpleQueue[Frame | None] = SimpleQueue()
        """Answers of the peer's copy; None when the session has ended."""
        self._answers = 0
        """How many came; after a break the peer says again what is missing (T4)."""
        self._attempt = 0
        """To go on over another line."""
        self._accounted_lan = ""
        self._accounted_ms = 0
        self._untold = 0
        """How often it went on since that was last told."""
        self._twice = 0
        """So many answers came over the former line, too, while the peer was asked for this one."""
        self.last_number = 0
        """Of the last frame that is to be acknowledged; written under the pipeline's lock."""
        self.copied = False
        """Whether both copies are equal: at once, or since the resync has copied everything."""
        self.up = False
        self.progress_ms = now_ms()
        """When the peer last got on with its work (D8')."""
        self.told_ms = 0
        """When the peer last said how far it is."""
        self.heard_ms = 0
        """When the peer last said anything that shows life (P8)."""
        self.peer_room_bytes: int | None = None
        """Free on the peer's file system, once it has told (D11)."""
        self.peer_log = NOTHING_TOLD
        """Records of the peer's log that a barrier may retire, and how many it has room for, as it
        last told since a barrier retired some (N4)."""
        self._acknowledged = 0
        """The highest number; the peer says it again over each line, which is no progress."""
        self._applied = -1
        self._syncing_since_ms = 0
        self.slow_sync_ms = 0
        """How long an fsync of the peer counts as progress; set by the pipeline's watch."""
        self._closing = False
        self._lost = False
        self._reason = ""
        """Why this side ended it; empty while it has not."""
        self._lines = Lines(config, self.tag, self._hello, self._ended)
        self._receiver: threading.Thread | None = None

    @property
    def unsent_bytes(self) -> int:
        """Queued and not yet handed to the kernel."""
        sender = self.sender
        return sender.queued_bytes - sender.sent_bytes

    @property
    def link(self) -> PeerLink | None:
        """The LAN that carries the session."""
        line = self._lines.line
        return None if line is None else line.link

    # --- life -----------------------------------------------------------------------------

    def open(self, listener: Listener, candidates: int) -> None:
        """Begin to connect, in a thread of its own; returns at once."""
        self._receiver = threading.Thread(
            target=self._run, args=(listener, candidates), name="session", daemon=True
        )
        self._receiver.start()

    def close(self, *, clean: bool = True) -> None:
        """End the session without a report. `clean`: what is queued is sent first, with a goodbye.

        Not to be called from the session's own threads. One that stands still at a disk is left to
        itself: it finds the session closed, and touches nothing else.
        """
        self._closing = True
        if clean and self.up:
            with self.lock:
                self.put(wire.frame(Kind.GOODBYE, self.tag))
                sender = self.sender
            sender.end(1.0)
        self._lines.abort()
        if self._receiver is not None and self._receiver is not threading.current_thread():
            self._receiver.join(_CLOSE_S)
        self._lines.join()

    def fail(self, text: str) -> None:
        """End the session for a reason of this side, from any thread: the listener hears of the
        loss as of any other. Returns at once."""
        self._reason = self._reason or text
        self._lines.abort()

    def move(self, links: Sequence[PeerLink], why: str, *, alarm: bool) -> None:
        """Have the session go on over one of these LANs, if one can be had (D12). The line it has
        stays until then. Returns at once. `alarm`: something is wrong with that line."""
        if self.copied and self.up:
            self._lines.move(links, why, alarm=alarm)

    def _ended(self) -> str:
        """Why nothing is to be tried any more, or nothing."""
        return self._reason or ("the session was closed" if self._closing else "")

    def _run(self, listener: Listener, candidates: int) -> None:
        text, refused = "", False
        show_thread_name()
        try:
            text, refused = self._begin(listener, candidates)
            while not text:
                text = self._go_on(listener, self._until_it_breaks(listener))
        except ReplicationError as problem:
            text = problem.text
        except OSError as problem:
            text = _broken(problem)
        except Exception as problem:
            # Whoever waits for the peer must learn it.
            log.exception("the session failed in an unforeseen way")
            text = f"the session failed: {problem!r}"
        self.up = False
        self._lines.abort()
        self.sender.end()
        self._lines.close()
        self.replies.put(None)
        if not self._closing and not self._lost:
            self._lost = True
            listener.session_lost(self, self._reason or text, refused)

    def _until_it_breaks(self, listener: Listener) -> str:
        """Hear the peer until the line ends: how it did."""
        line = self._lines.line
        assert line is not None
        try:
            self._receive(listener, line)
        except OSError as problem:
            return _broken(problem)
        return "the peer closed the replication connection"

    # --- handshake ------------------------------------------------------------------------

    def _begin(self, listener: Listener, candidates: int) -> tuple[str, bool]:
        """Connect and agree. (reason, refused) when it cannot be; an empty reason when it is up."""
        deadline = now_ms() + self.config.stall_limit_ms
        problem = "no LAN carries replication"
        hello = Hello(self.key, self.start, candidates, self.seed, self.least_bytes)
        while True:
            for link in self.config.links:
                if self._ended():
                    return self._ended(), False
                try:
                    line, answer = self._lines.connector.offer(
                        link, hello, connect_s=_CONNECT_TIMEOUT_S, answer_s=_WELCOME_TIMEOUT_S
                    )
                except (OSError, ReplicationError) as error:
                    problem = not_over(link, error)
                    continue
                if answer.kind is Kind.REFUSED:
                    refusal = handshake.decode_refusal(answer.payload)
                    problem = refusal.text
                    line.close()
                    if refusal.code not in handshake.WORTH_ANOTHER_TRY:
                        return problem, True
                    continue
                self._lines.begin(line)
                if self._ended():
                    # While it was made: nobody else would abort it any more.
                    self._lines.abort()
                return self._agree(listener, candidates, line, answer)
            if now_ms() >= deadline:
                return problem, False
            time.sleep(_RETRY_S)

    def _agree(self, listener: Listener, mine: int, line: Line, answer: Frame) -> tuple[str, bool]:
        welcome = welcome_of(answer)
        problem = handshake.contradiction(self.start, mine, welcome.candidates)
        if problem:
            return problem, True
        theirs: list[Record] = []
        while self.start is SessionStart.CANDIDATES:
            part = self._lines.connector.one_frame(line)
            if part.kind is not Kind.CANDIDATES:
                raise ReplicationError(f"the peer sends {part.kind.name} before its candidates")
            theirs += wire.decode_records(part.payload, "candidates")
            if part.flags & wire.FLAG_LAST:
                break
        line.set_timeout(None)
        self._lines.instance = welcome.instance
        self.progress_ms = self.heard_ms = now_ms()
        self.up = True
        self.sender.start(line.forward)
        listener.session_up(self, welcome, theirs)
        return "", False

    # --- another line ---------------------------------------------------------------------

    def _go_on(self, listener: Listener, broke: str) -> str:
        """Go on over another line (T4). Why that cannot be, or nothing."""
        begun_ms = now_ms()
        deadline_ms = begun_ms + self.config.stall_limit_ms
        while self.copied and not self._ended():
            found, problem = self._lines.following(deadline_ms, broke)
            if found is None:
                return problem
            try:
                self._replay(listener, found, begun_ms)
                return ""
            except OSError as error:
                broke = _broken(error)
                if now_ms() >= deadline_ms:
                    break
        return self._ended() or broke

    def _hello(self) -> Hello:
        self._attempt += 1
        return Hello(
            self.key,
            self.start,
            0,
            self.seed,
            instance=self._lines.instance,
            answers=self._answers,
            attempt=self._attempt,
        )

    def _replay(self, listener: Listener, found: Found, begun_ms: int) -> None:
        """Send what the peer lacks, then all that was put meanwhile and is put from now on."""
        former, line = self.sender, found.line
        # It has just answered. Whoever holds what is waited for below says nothing about it.
        self.heard_ms = now_ms()
        # No operation is under way: whatever was put has been done here, so that a write's data
        # can be read again. What begins behind this point is in the next sender's queue.
        with self._between_operations(listener), self.lock:
            frames, came_on = self.retained.behind(found.received)
            self.sender = Sender(self.lock)
        former.end()
        self._twice = self._answers - found.answers
        self._send_again(line, frames, listener.read_again)
        with self._between_operations(listener), self.lock:
            # All that what was read can hold is in the stream by now: up to here it is one whole.
            self.repeats.begin(self.retained.whole, self.last_number)
            self.resumes += 1
        self.sender.start(line.forward)
        self.told_ms = now_ms()
        if came_on:
            # Else the guest would wait as long as there are lines that carry nothing (D8').
            self.progress_ms = self.told_ms
        listener.session_resumed(self, self._account(found, len(frames), begun_ms), found.alarm)

    def _account(self, found: Found, frames: int, begun_ms: int) -> str:
        """The line for the log; nothing when the same LAN was told of a short time ago."""
        now, lan = now_ms(), found.line.link.lan
        if lan == self._accounted_lan and now - self._accounted_ms < _ACCOUNT_MS:
            self._untold += 1
            return ""
        more = f" (and {self._untold} times untold before)" if self._untold else ""
        self._accounted_lan, self._accounted_ms, self._untold = lan, now, 0
        return (
            f"the session with {self.config.peer} goes on over {lan} after {now - begun_ms} ms"
            f"{more}, {frames} frames were sent again: {found.why}"
        )

    @contextmanager
    def _between_operations(self, listener: Listener) -> Iterator[None]:
        """Hold the lock of operations. An operation may stand still with its disk: who closes the
        session must not wait for that."""
        while not listener.operation.acquire(timeout=_RETRY_S):
            if self._ended():
                raise ReplicationError(self._ended())
        try:
            yield
        finally:
            listener.operation.release()

    def _send_again(self, line: Line, frames: list[Kept], read: Read) -> None:
        batch: list[Piece] = []
        size = 0
        for kept in frames:
            pieces = again(kept, self.tag, read)
            batch += pieces
            size += sum(map(len, pieces))
            if size >= BATCH_BYTES:
                line.forward.send(batch)
                batch, size = [], 0
        if batch:
            line.forward.send(batch)

    # --- the stream -----------------------------------------------------------------------

    def put(self, raw: bytes, number: int = 0) -> None:
        """Queue a frame and have it sent; the caller has the pipeline's lock. `number`: what the
        peer acknowledges it by, if it does."""
        self._retain(raw, number)
        self.sender.put(raw)

    def write_head(self, number: int, file: FileId, offset: int, size: int, barrier: bool) -> bytes:
        """What precedes a write in the stream; the caller has the pipeline's lock and puts both."""
        index = self.announced.get(file)
        if index is None:
            if len(self.announced) >= FILES_ANNOUNCED:
                # The stream is in order: an index means what it was last said to mean.
                self.announced.clear()
            index = self.announced[file] = len(self.announced) + 1
            self.put(wire.frame(Kind.BIND, self.tag, 0, wire.encode_bind(index, file)))
        return wire.write_head(size, self.tag, number, index, offset, barrier)

    def ask_again(self, barrier: int, number: int) -> None:
        """Ask the peer anew for a barrier that was asked for over a former line; `number`: of the
        question. The caller has the pipeline's lock."""
        self.repeats.asked(number, barrier)
        self.put(wire.frame(Kind.SYNC, self.tag, number), number)

    def put_alive(self) -> None:
        """Queue a sign of life; the caller has the pipeline's lock. Neither end counts it and it is
        not sent again: an idle guest has nothing acknowledged that would let go of it."""
        self.sender.put(wire.frame(Kind.ALIVE, self.tag))

    def put_lent(self, head: bytes, data: memoryview, number: int, give_back: GiveBack) -> None:
        """`put` for a frame whose data is lent; not sent again after a break."""
        self._retain(head, number)
        self.sender.put_lent(head, data, give_back)

    def put_write(
        self, head: bytes, data: Piece, number: int, file: FileId, give_back: GiveBack | None
    ) -> Sender | None:
        """`put` for a write of the data path. If there is a sender, the caller must give it head
        and data to `send_now` after releasing the lock; see `Sender.put_now`."""
        self.last_number = number
        self.retained.put(number, head, file)
        sender = self.sender
        return sender if sender.put_now(head, data, give_back) else None

    def put_flush(self, change: bytes, flush: bytes, number: int) -> Sender | None:
        """`put_write` for a flush, with a change before it or nothing: to be sent as they are."""
        if change:
            self._retain(change, 0)
        self._retain(flush, number)
        sender = self.sender
        return sender if sender.put_now(change, flush, None) else None

    def _retain(self, raw: bytes, number: int) -> None:
        if number:
            self.last_number = number
        # What has no number was received when something behind it was.
        self.retained.put(number or self.last_number + 1, raw)

    def _receive(self, listener: Listener, line: Line) -> None:
        parser = Parser(self.tag, from_primary=False)
        buffer = memoryview(bytearray(RECEIVE_BYTES))
        receive, feed = line.backward.receive_into, parser.feed
        acknowledged, flushed = listener.acknowledged, listener.flushed
        repeats = self.repeats
        unpack = wire.HEAD.unpack_from
        while True:
            size = receive(buffer)
            if not size:
                return
            number = -1
            if size == _ACK_SIZE and not parser.partial and buffer[4] == wire.ACKNOWLEDGED:
                # The usual case: one acknowledgement, alone.
                _, _, _, _, tag, number = unpack(buffer)
                if tag == self.tag:
                    self._note_acknowledged(number)
                    if number >= repeats.whole:
                        acknowledged(self, number)
                    continue
                number = -1
            for frame in feed(buffer[:size]):
                kind = frame.kind
                if kind is Kind.ACKNOWLEDGED:
                    number = max(number, frame.number)
                elif kind is Kind.FLUSHED:
                    self.progress_ms = self.heard_ms = now_ms()
                    barrier = repeats.flushed(frame.number)
                    if barrier is not None:
                        flushed(self, barrier)
                    # It has everything up to there, and does not say so twice.
                    number = max(number, frame.number)
                elif kind is Kind.PROGRESS:
                    self._note_progress(frame)
                elif kind is Kind.FAILED:
                    listener.peer_failed(self, bytes(frame.payload).decode("utf-8", "replace"))
                elif is_answer(kind) and self._twice:
                    self._twice -= 1
                else:
                    self._answers += is_answer(kind)
                    self.replies.put(frame)
            if number >= 0:
                self._note_acknowledged(number)
                if number >= repeats.whole:
                    acknowledged(self, number)

    def _note_acknowledged(self, number: int) -> None:
        """That a question put anew has come is no progress: it is put over each line (D8')."""
        if number > self._acknowledged:
            self._acknowledged = number
            if not self.repeats.question_came(number):
                self.progress_ms = self.heard_ms = now_ms()

    def _note_progress(self, frame: Frame) -> None:
        """An fsync of the peer counts as progress, but not for ever (D8')."""
        progress = wire.decode_progress(frame.payload)
        syncing = progress.syncing
        now = self.told_ms = self.heard_ms = now_ms()
        self.peer_room_bytes = progress.room_bytes
        self.peer_log = progress.log_records, progress.log_capacity
        if not syncing:
            self._syncing_since_ms = 0
        elif not self._syncing_since_ms:
            self._syncing_since_ms = now
        moved = progress.applied != self._applied
        self._applied = progress.applied
        if moved or (syncing and now - self._syncing_since_ms <= self.slow_sync_ms):
            self.progress_ms = now


def _broken(problem: OSError) -> str:
    return f"the replication connection broke ({problem.strerror or problem})"
