"""The secondary's end of a session: receive, acknowledge, hand to the applier (T3, T5, T7).

One thread receives, acknowledges once per received chunk, and applies small writes to warm zones; a
second one applies the rest. What they and the fsync pool have to say goes through a `Speaker`. It
stops receiving while the applier's queue is over its bound.
One session at a time: the next one is served only after this one's receiver and applier have ended.
A connection that ends without a goodbye ends the session only if the primary does not go on with it
over another one within stall_limit (T4): the applier and its queue know nothing of that.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import select
import threading
from collections.abc import Callable
from typing import Final

from hyperha.core.actions import SessionStart
from hyperha.core.events import (
    DiskFilling,
    Event,
    LocalDiskFailed,
    SafetyShort,
    SessionLost,
    SessionUp,
)
from hyperha.core.facts import Shortage
from hyperha.domain import SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication import handshake, wire
from hyperha.replication.applier import Applier
from hyperha.replication.buffers import Buffers
from hyperha.replication.capacity import no_room_text, shortage
from hyperha.replication.clock import now_ms
from hyperha.replication.control import LogLine
from hyperha.replication.handshake import Hello, Refusal, Welcome
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import ROOT_ID
from hyperha.replication.reserve import Reserve
from hyperha.replication.resuming import Answers, NextLine, read_hello, refuse
from hyperha.replication.resync_target import TargetSide
from hyperha.replication.speaker import Speaker
from hyperha.replication.store import Store
from hyperha.replication.syncer import Syncer
from hyperha.replication.syscalls import show_thread_name
from hyperha.replication.transport import RECEIVE_BYTES, Connection, HungUpError
from hyperha.replication.wire import Frame, Kind, Parser, PlainWrite

log = logging.getLogger(__name__)

Report = Callable[[Event | LogLine], None]
QUEUE_BYTES: Final = 64 << 20
"""Received and not yet applied; beyond it nothing is received (T7, T8)."""
_QUEUE_LEAST_BYTES: Final = 1 << 20
_EXPECTED_BYTES: Final = 256 << 10
"""Woken at most so often for the rest of a large frame: a wake-up costs as much as 64 KiB."""
_PROGRESS_MS: Final = 250
_HELLO_TIMEOUT_S: Final = 10.0
INSTANCE: Final = secrets.token_hex(8)
"""Of this process, so that a primary can tell it from its successor (T4)."""


class SecondarySession:
    """Serves one session over two accepted connections whose TLS is done."""

    def __init__(
        self,
        store: Store,
        intent: IntentLog,
        key: SessionKey,
        start: SessionStart,
        report: Report,
        patience_ms: int,
    ) -> None:
        self.key = key
        self.start_mode = start
        self._patience_s = patience_ms / 1000
        self._store = store
        self._intent = intent
        self._report = report
        self._tag = wire.session_tag(key)
        self._syncer = Syncer(store, self._sync_failed)
        self._buffers = Buffers()
        """Taken by the parser, given back by the applier."""
        self._speaker: Speaker | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_lock = threading.Lock()
        self._closing = False
        self.heard_ms = 0
        """When the last bytes of the primary came in."""
        self._failure = ""
        self._lacks: Shortage | None = None
        self._reserve: Reserve | None = None
        self._queue_bytes = QUEUE_BYTES
        self._forward: Connection | None = None
        self._backward: Connection | None = None
        self._applier: Applier | None = None
        self._thread: threading.Thread | None = None
        self._target: TargetSide | None = None
        self._goodbye = False
        self._former: tuple[Connection, ...] = ()
        """What carried it before: closed when nobody can be about to speak over it any more."""
        self._next = NextLine()
        self._answers = Answers()
        self._saying = threading.Lock()
        """Held while an answer is noted and while another line takes over: none falls between."""
        self._received = 0
        """Frames since the handshake, over all connections, but for signs of life."""
        self._acknowledged = 0
        """The number that was acknowledged last."""
        self.up = False
        """Whether the handshake is done and the stream has not ended."""

    @property
    def covered(self) -> int:
        """What the primary said is on stable storage on both nodes."""
        return 0 if self._applier is None else self._applier.covered

    @property
    def waiting_bytes(self) -> int:
        """Received and not yet applied."""
        return 0 if self._applier is None else self._applier.waiting_bytes

    @property
    def failure(self) -> str:
        """Why this copy does not hold all that was acknowledged, or nothing."""
        return self._failure

    @property
    def resyncing(self) -> bool:
        """Whether this copy is being made equal."""
        return self._target is not None and self._target.lenient

    def clear_behind_barrier(self) -> None:
        """Forget the dirty map when the primary next says that a barrier has ended."""
        if self._applier is not None:
            self._applier.clear_pending = True

    def serve(self, forward: Connection, backward: Connection) -> None:
        """Start to serve the connections; the thread owns them from here on."""
        self._forward, self._backward = forward, backward
        self._thread = threading.Thread(target=self._run, name="receive", daemon=True)
        self._thread.start()

    def close(self) -> str:
        """Fence: acknowledge nothing more, apply and sync what was acknowledged (P8).

        Why this copy does not hold all of that, or nothing.
        """
        self._closing = True
        self._next.close()
        _abort(self._forward, self._backward)
        if self._thread is not None:
            self._thread.join()
        if self._applier is not None:
            self._failure = self._applier.finish() or self._failure
        if not self._failure:
            try:
                self._store.sync_all()
            except OSError as error:
                self._failure = f"syncfs failed: {error.strerror or error}"
        self._syncer.close()
        if self._reserve is not None:
            self._reserve.close()
        with self._wake_lock:
            if self._wake >= 0:
                os.close(self._wake)
            self._wake = -1
        return self._failure

    def say(self, raw: bytes) -> None:
        """Send frames to the primary, from any thread; nothing for none."""
        if not raw or self._speaker is None:
            return
        with self._saying:
            self._answers.note(raw)
            speaker = self._speaker
        speaker.say(raw)

    def resume(self, forward: Connection, backward: Connection) -> None:
        """Go on over these connections, whose TLS is done, or refuse that and close them (T4).

        The primary may have several tries under way: only who has said hello gets the session.
        """
        refusal = self._hand_over(forward, backward)
        if refusal is None:
            return
        log.info("a try to go on with the session came to nothing: %s", refusal.text)
        refuse(backward, self._tag, refusal)
        forward.close()
        backward.close()

    def _hand_over(self, forward: Connection, backward: Connection) -> Refusal | None:
        """Give the session these connections; why not, or None when it has them.

        A broken half must not end in silence: to hang up says that nobody here has the session.
        """
        try:
            forward.set_timeout(_HELLO_TIMEOUT_S)
            hello = read_hello(forward, self._tag)
        except (OSError, HungUpError) as error:
            return Refusal(handshake.BROKEN, f"the line broke before it carried a hello: {error}")
        except ReplicationError as error:
            return Refusal(handshake.GONE, error.text)
        problem = self._why_not(hello)
        if problem:
            return Refusal(handshake.GONE, problem)
        if forward.hung_up():
            # It has lain here while this process stood still: the line that there is may live.
            return Refusal(handshake.BROKEN, "the line broke, or was given up, behind its hello")
        carrying = self._forward, self._backward
        if not self._next.offer((forward, backward, hello)):
            return Refusal(handshake.GONE, "the session is closed, or was tried since")
        # Also where nothing is wrong with it: the receiver is to find the next one.
        _abort(*carrying)
        return None

    def _why_not(self, hello: Hello) -> str:
        if hello.session != self.key or hello.instance != INSTANCE:
            return f"{hello.session} of {hello.instance} is not served by this process"
        if self._failure or self._goodbye or not self.up:
            return self._failure or "the session has ended"
        return "the copies are not equal yet" if self.resyncing else ""

    def _wake_up(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # --- thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        assert self._forward is not None
        assert self._backward is not None
        show_thread_name()
        try:
            text = self._begin(self._forward, self._backward)
            refused = bool(text)
            if not refused:
                text = self._serve_on()
        except ReplicationError as problem:
            text, refused = problem.text, False
        except OSError as problem:
            text, refused = f"the stream broke ({problem.strerror or problem})", False
        except Exception as problem:
            log.exception("the stream failed in an unforeseen way")
            text, refused = f"the stream failed: {problem!r}", False
        finally:
            self.up = False
            self._next.close()
            for connection in (*self._former, self._forward, self._backward):
                connection.close()
        if not self._closing:
            self._report(SessionLost(self.key, text, refused, self._lacks))

    def _serve_on(self) -> str:
        """Serve the session over one line after the other: why it ended."""
        while True:
            assert self._forward is not None
            try:
                self._serve(self._forward)
                text = "the primary ended the session" if self._goodbye else "the stream ended"
            except OSError as problem:
                text = f"the stream broke ({problem.strerror or problem})"
            if self._goodbye or self._closing or self._failure or self.resyncing:
                return text
            offered = self._next.take(self._patience_s)
            if offered is None:
                return text
            try:
                self._take_over(*offered)
            except OSError as problem:
                # Broken again: the loop finds it so, and waits for another one.
                log.info("the next line broke at once: %s", problem)

    def _take_over(self, forward: Connection, backward: Connection, hello: Hello) -> None:
        """Go on over these connections: say how far this copy is, and what may have been lost."""
        assert self._forward is not None
        assert self._backward is not None
        for connection in self._former:
            connection.close()
        self._former = self._forward, self._backward
        _abort(*self._former)
        self._forward, self._backward = forward, backward
        if self._closing:
            # `close` may have aborted the former ones only.
            _abort(forward, backward)
        welcome = Welcome(0, INSTANCE, self._received)
        frames = [wire.frame(Kind.WELCOME, self._tag, 0, handshake.encode_welcome(welcome))]
        frames.append(wire.frame(Kind.ACKNOWLEDGED, self._tag, self._acknowledged))
        speaker = Speaker(backward, self._wake_up)
        with self._saying:
            frames += self._answers.behind(hello.answers)
            self._speaker = speaker
            for frame in frames:
                speaker.say(frame)
        forward.set_timeout(None)
        backward.set_timeout(None)

    def _begin(self, forward: Connection, backward: Connection) -> str:
        """Read the hello and answer it. Why the session was refused, or nothing."""
        forward.set_timeout(_HELLO_TIMEOUT_S)
        hello = read_hello(forward, self._tag)
        mine = self._intent.candidate_count()
        problem = handshake.contradiction(self.start_mode, mine, hello.candidates)
        if hello.session != self.key or hello.start is not self.start_mode:
            problem = f"{hello.session}, {hello.start} was offered; expected {self.key}"
        elif not problem:
            self._lacks = shortage(self._store.directory(ROOT_ID).fd, hello.least_bytes)
            problem = no_room_text(self._lacks) if self._lacks is not None else ""
        if problem:
            refusal = handshake.encode_refusal(Refusal("contradiction", problem))
            backward.send([wire.frame(Kind.REFUSED, self._tag, 0, refusal)])
            return problem
        if self.start_mode is not SessionStart.IN_SYNC:
            self._intent.retain()
        self._set_aside()
        self._speaker = Speaker(backward, self._wake_up)
        self._target = TargetSide(self._store, self._intent, self._tag, hello)
        self._applier = Applier(
            self._store,
            self._intent,
            self._syncer,
            self._target,
            self._tag,
            self.say,
            self._apply_failed,
            self._buffers.give_back_view,
            self._make_room,
        )
        self._applier.start()
        welcome = handshake.encode_welcome(Welcome(mine, INSTANCE))
        backward.send([wire.frame(Kind.WELCOME, self._tag, 0, welcome)])
        if self.start_mode is SessionStart.CANDIDATES:
            backward.send(self._candidate_frames())
        forward.set_timeout(None)
        self.up = True
        self._report(SessionUp(self.key, mine))
        return ""

    def _candidate_frames(self) -> list[bytes]:
        records = self._intent.candidates() or []
        size = wire.RECORDS_PER_FRAME
        parts = [records[at : at + size] for at in range(0, len(records), size)] or [[]]
        return [
            wire.frame(
                Kind.CANDIDATES,
                self._tag,
                0,
                wire.encode_records(part),
                wire.FLAG_LAST if part is parts[-1] else 0,
            )
            for part in parts
        ]

    def _serve(self, forward: Connection) -> None:
        assert self._applier is not None
        assert self._speaker is not None
        applier, speaker, poll = self._applier, self._speaker, select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(forward.fileno(), select.POLLIN)
        listening = True
        parser = Parser(self._tag, from_primary=True, buffers=self._buffers)
        buffer = memoryview(Buffers().take(RECEIVE_BYTES))
        # At once first: a line that was just found must not pass for a silent one.
        next_progress = 0
        patient = forward.wait_at_most(_PROGRESS_MS)
        if forward.pending() and not self._receive(forward, parser, buffer):
            return
        while not self._goodbye:
            now = now_ms()
            if now >= next_progress:
                next_progress = now + _PROGRESS_MS
                self._buffers.trim()
                told = wire.frame(Kind.PROGRESS, self._tag, 0, self._progress(applier))
                speaker.say_now(told)
            if patient and listening:
                # One call instead of two for each chunk. Without TLS the others' words need this
                # thread only when the connection is full.
                if not self._receive(forward, parser, buffer):
                    return
                speaker.send_rest()
            else:
                for descriptor, _ in poll.poll(_PROGRESS_MS if listening else 20):
                    if descriptor == self._wake:
                        os.eventfd_read(self._wake)
                        speaker.send_rest()
                    elif not self._receive(forward, parser, buffer):
                        return
            room = applier.waiting_bytes < self._queue_bytes and not applier.leaving
            if room != listening:
                listening = room
                poll.modify(forward.fileno(), select.POLLIN if room else 0)

    def _progress(self, applier: Applier) -> bytes:
        room, log_ = self._store.statfs(), self._intent
        # Of what is kept for a resync no barrier retires anything (Z1).
        records = log_.used if applier.clear_pending or not log_.retaining else 0
        waits = applier.clear_pending or log_.overflowed
        return wire.encode_progress(
            wire.Progress(
                applier.applied + applier.steps.count,
                applier.waiting_bytes,
                self._syncer.running > 0,
                room.f_bavail * room.f_frsize,
                max(records, waits),
                log_.capacity,
            )
        )

    def _receive(self, forward: Connection, parser: Parser, buffer: memoryview) -> bool:
        """Receive what there is, acknowledge it, queue it. False at the end of the stream."""
        assert self._applier is not None
        applier = self._applier
        while True:
            room = parser.room()
            try:
                size = forward.receive_into(buffer[: parser.wanted] if room is None else room)
            except BlockingIOError:
                return True
            if size:
                self.heard_ms = now_ms()
            if not size or self._closing or self._failure:
                # Fenced, or this copy fell behind: nothing more is acknowledged.
                return False
            if room is not None:
                large = parser.filled(size)
                frames = [] if large is None else [large]
            else:
                chunk = buffer[:size]
                writes, used = parser.writes(chunk)
                if used == size and applier.announce_warm(writes, size):
                    parser.skipped()
                    self._received += len(writes)
                    self._take_warm(applier, writes, size)
                    frames = []
                else:
                    frames = parser.feed(chunk)
            if frames:
                self._take(frames)
            if self._goodbye or not forward.pending():
                rest = parser.room()
                forward.expect(1 if rest is None else min(len(rest), _EXPECTED_BYTES))
                return True

    def _take_warm(self, applier: Applier, writes: list[PlainWrite], size: int) -> None:
        """Acknowledge a chunk of small writes to warm zones, then apply it."""
        assert self._speaker is not None
        try:
            number = self._acknowledged = writes[-1][0]
            self._speaker.say_now(wire.HEAD.pack(0, wire.ACKNOWLEDGED, 0, 0, self._tag, number))
        finally:
            # A broken connection may have carried the acknowledgement all the same.
            applier.put_warm(writes, size)

    def _take(self, frames: list[Frame]) -> None:
        """Acknowledge what is in memory now, then have it applied."""
        assert self._applier is not None
        assert self._speaker is not None
        number = 0
        quiet = False
        for frame in frames:
            kind = frame.kind
            # Retire frames name an operation of the past; that a flush has ended is said anyway.
            if frame.number > number and kind is not Kind.RETIRE and kind is not Kind.FLUSH:
                number = frame.number
            if kind is Kind.GOODBYE:
                self._goodbye = True
            elif kind is Kind.ALIVE:
                quiet = True
            elif kind is Kind.HELLO:
                raise ReplicationError("a second hello in one session")
        if quiet:
            frames = [one for one in frames if one.kind is not Kind.ALIVE]
        self._received += len(frames)
        if self._goodbye:
            frames = [one for one in frames if one.kind is not Kind.GOODBYE]
        at_once = self._applier.announce(frames)
        try:
            if number:
                self._acknowledged = max(self._acknowledged, number)
                self._speaker.say_now(wire.HEAD.pack(0, wire.ACKNOWLEDGED, 0, 0, self._tag, number))
        finally:
            # A broken connection may have carried the acknowledgement all the same.
            self._applier.put(frames, at_once=at_once)

    # --- a full disk ----------------------------------------------------------------------

    def _set_aside(self) -> None:
        """Room for all that may be acknowledged and not yet be written (D11)."""
        try:
            self._reserve = Reserve(self._store, QUEUE_BYTES)
        except OSError as error:
            self._report(LogLine("W", "D11", f"no room can be set aside: {error.strerror}"))
            return
        # Of a small disk less: then less is acknowledged ahead of it.
        self._queue_bytes = min(QUEUE_BYTES, max(self._reserve.size, _QUEUE_LEAST_BYTES))
        if self._reserve.size < _QUEUE_LEAST_BYTES:
            room = self._store.statfs()
            free = room.f_bavail * room.f_frsize
            self._report(LogLine("W", "D11", f"the disk is almost full: {free} bytes are free"))

    def _make_room(self) -> bool:
        """Give up the reserve and leave; False when that was done before."""
        if self._reserve is None or not self._reserve.release():
            return False
        self._report(DiskFilling(os.strerror(errno.ENOSPC)))
        return True

    # --- failures -------------------------------------------------------------------------

    def _apply_failed(self, text: str, lacks: Shortage | None) -> None:
        self._failure = text
        if lacks is not None:
            self._report(SafetyShort(lacks))
        elif self.resyncing and self._applier is not None and self._applier.leaving:
            # Nobody relies on this copy yet: it is out of room, not of order.
            self._report(DiskFilling(text))
        else:
            self._report(LocalDiskFailed(f"the primary's stream cannot be applied: {text}"))

    def _sync_failed(self, error: OSError) -> None:
        self._failure = f"fsync failed: {error.strerror or error}"
        self.say(wire.frame(Kind.FAILED, self._tag, 0, self._failure.encode()))
        self._report(LocalDiskFailed(self._failure))


def _abort(*connections: Connection | None) -> None:
    for connection in connections:
        if connection is not None:
            connection.abort()
