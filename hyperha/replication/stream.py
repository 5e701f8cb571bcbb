"""The primary's end of one session: two connections, a sender thread and a receiver thread (T6).

The pipeline puts frames into the queue, in order, from the moment the session is made; they leave
once the handshake is done. The forward connection is written to by one thread at a time: the sender
or, without TLS, the data path, which never waits (T5, T8). Only the receiver reads the backward
one. Data of large writes is lent, not copied: its buffer is given back when it was sent. What the
peer says is handed to the listener; nothing here decides.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from queue import SimpleQueue
from typing import Final, Protocol

from hyperha.core.actions import SessionStart
from hyperha.domain import SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication import handshake, wire
from hyperha.replication.clock import now_ms
from hyperha.replication.control import EngineConfig, PeerLink
from hyperha.replication.handshake import Hello, Welcome
from hyperha.replication.operations import FileId, GiveBack, Record
from hyperha.replication.preamble import Direction, Preamble, cluster_hash
from hyperha.replication.preamble import encode as encode_preamble
from hyperha.replication.syscalls import show_thread_name
from hyperha.replication.transport import RECEIVE_BYTES, Connection, Piece, connect
from hyperha.replication.wire import Frame, Kind, Parser

log = logging.getLogger(__name__)

_BATCH_BYTES: Final = 4 << 20
_ACK_SIZE: Final = wire.HEAD.size
_CONNECT_TIMEOUT_S: Final = 1.0
_WELCOME_TIMEOUT_S: Final = 30.0
_RETRY_S: Final = 0.05


class Listener(Protocol):
    """Who hears what the peer says; called from the receiver thread."""

    def session_up(self, session: PrimarySession, welcome: Welcome, theirs: list[Record]) -> None:
        """The handshake is done; `theirs`: the peer's candidates when the start asks for them."""

    def session_lost(self, session: PrimarySession, text: str, refused: bool) -> None:
        """It ended, or could not begin; said once, not after `close`."""

    def acknowledged(self, session: PrimarySession, number: int) -> None:
        """The peer has everything up to `number` in memory."""

    def flushed(self, session: PrimarySession, number: int) -> None:
        """The peer has what frame `number` asked for on stable storage."""

    def peer_failed(self, session: PrimarySession, text: str) -> None:
        """The peer could not apply something: its copy is outdated."""


class PrimarySession:
    """One session as seen by the primary.

    Frames are put under the pipeline's lock. Exactly one thread at a time sends: whoever has set
    `_busy`. That is the sender thread, or the data path itself on an idle connection without TLS:
    it never waits (T8), and it saves the change of threads.
    """

    def __init__(
        self, config: EngineConfig, key: SessionKey, start: SessionStart, lock: threading.Lock
    ) -> None:
        self.config = config
        self.lock = lock
        self.key = key
        self.start = start
        self.tag = wire.session_tag(key)
        self.seed = secrets.randbits(63)
        self.announced: dict[FileId, int] = {}
        self._pending: list[Piece] = []
        """To be sent. A view is of a buffer that is ours until then."""
        self._busy = True
        """Somebody sends, or the handshake is not done; under the lock."""
        self._wake: SimpleQueue[list[Piece] | None] = SimpleQueue()
        """To the sender: what to send first, then all that is pending; None: end."""
        self._direct = False
        self.replies: SimpleQueue[Frame | None] = SimpleQueue()
        """What concerns a resync; None when the session has ended."""
        self._give_back: GiveBack | None = None
        """Called with each view that was sent: all are of the data path's buffers."""
        self.queued_bytes = 0
        """Written under the pipeline's lock."""
        self.sent_bytes = 0
        """Written by the sender."""
        self.last_number = 0
        """Of the last frame that is to be acknowledged; written under the pipeline's lock."""
        self.copied = False
        """Whether both copies are equal: at once, or since the resync has copied everything."""
        self.up = False
        self.progress_ms = now_ms()
        """When the peer last got on with its work (D8')."""
        self.told_ms = 0
        """When the peer last said how far it is."""
        self.peer_room_bytes: int | None = None
        """Free on the peer's file system, once it has told (D11)."""
        self._applied = -1
        self._syncing_since_ms = 0
        self.slow_sync_ms = 0
        """How long an fsync of the peer counts as progress; set by the pipeline's watch."""
        self._closing = False
        self._lost = False
        self._reason = ""
        """Why this side ended it; empty while it has not."""
        self._lock = threading.Lock()
        self._forward: Connection | None = None
        self._backward: Connection | None = None
        self._sender: threading.Thread | None = None
        self._receiver: threading.Thread | None = None

    # --- life -----------------------------------------------------------------------------

    def open(self, listener: Listener, candidates: int) -> None:
        """Begin to connect, in a thread of its own; returns at once."""
        self._receiver = threading.Thread(
            target=self._run, args=(listener, candidates), name="session", daemon=True
        )
        self._receiver.start()

    def close(self, *, clean: bool = True) -> None:
        """End the session without a report. `clean`: what is queued is sent first, with a goodbye.

        Not to be called from the session's own threads.
        """
        self._closing = True
        if clean and self.up:
            with self.lock:
                self.put(wire.frame(Kind.GOODBYE, self.tag))
            self._wake.put(None)
            if self._sender is not None:
                self._sender.join(1.0)
        self._abort()
        for thread in (self._sender, self._receiver):
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    def fail(self, text: str) -> None:
        """End the session for a reason of this side, from any thread: the listener hears of the
        loss as of any other. Returns at once."""
        self._reason = self._reason or text
        self._abort()

    def _abort(self) -> None:
        self._wake.put(None)
        with self._lock:
            connections = (self._forward, self._backward)
        for connection in connections:
            if connection is not None:
                connection.abort()

    def _run(self, listener: Listener, candidates: int) -> None:
        text, refused = "", False
        show_thread_name()
        try:
            text, refused = self._begin(listener, candidates)
            if not text:
                self._receive(listener)
                text = "the peer closed the replication connection"
        except ReplicationError as problem:
            text = problem.text
        except OSError as problem:
            text = f"the replication connection broke ({problem.strerror or problem})"
        except Exception as problem:
            # Whoever waits for the peer must learn it.
            log.exception("the session failed in an unforeseen way")
            text = f"the session failed: {problem!r}"
        self.up = False
        self._abort()
        if self._sender is not None:
            self._sender.join()
        for connection in (self._forward, self._backward):
            if connection is not None:
                connection.close()
        self.replies.put(None)
        if not self._closing and not self._lost:
            self._lost = True
            listener.session_lost(self, self._reason or text, refused)

    # --- handshake ------------------------------------------------------------------------

    def _begin(self, listener: Listener, candidates: int) -> tuple[str, bool]:
        """Connect and agree. (reason, refused) when it cannot be; an empty reason when it is up."""
        deadline = now_ms() + self.config.stall_limit_ms
        problem = "no LAN carries replication"
        while True:
            for link in self.config.links:
                if self._closing or self._reason:
                    return self._reason or "closed", False
                try:
                    answer = self._offer(link, candidates)
                except (OSError, ReplicationError) as error:
                    problem = f"{link.lan} to {link.peer_address}:{link.peer_port}: {error}"
                    self._drop()
                    continue
                if answer.kind is Kind.REFUSED:
                    refusal = handshake.decode_refusal(answer.payload)
                    problem = refusal.text
                    self._drop()
                    if refusal.code != handshake.NOT_EXPECTED:
                        return problem, True
                    continue
                return self._agree(listener, candidates, answer)
            if now_ms() >= deadline:
                return problem, False
            time.sleep(_RETRY_S)

    def _offer(self, link: PeerLink, candidates: int) -> Frame:
        pair = secrets.token_bytes(16)
        for direction in Direction:
            connection = connect(
                link.peer_address, link.peer_port, link.local_address, _CONNECT_TIMEOUT_S
            )
            with self._lock:
                if direction is Direction.FORWARD:
                    self._forward = connection
                else:
                    self._backward = connection
            connection.send([encode_preamble(self._preamble(link, direction, pair))])
            if link.tls is not None:
                peer = self.config.peer
                connection.secure(link.tls, peer, server=False, timeout_s=_WELCOME_TIMEOUT_S)
        assert self._forward is not None
        assert self._backward is not None
        hello = Hello(self.key, self.start, candidates, self.seed)
        self._forward.send([wire.frame(Kind.HELLO, self.tag, 0, handshake.encode_hello(hello))])
        self._backward.set_timeout(_WELCOME_TIMEOUT_S)
        return self._one_frame()

    def _preamble(self, link: PeerLink, direction: Direction, pair: bytes) -> Preamble:
        config = self.config
        return Preamble(
            cluster_hash(config.cluster_id),
            config.module,
            config.number,
            config.node,
            self.key,
            direction,
            pair,
            link.tls is not None,
        )

    def _one_frame(self) -> Frame:
        """A single frame, and not one byte beyond it."""
        assert self._backward is not None
        head = self._backward.receive_exactly(wire.HEAD.size)
        length = wire.HEAD.unpack(head)[0]
        if length > wire.FRAME_LIMIT:
            raise ReplicationError(f"the peer answers with a frame of {length} bytes")
        raw = head + self._backward.receive_exactly(length)
        return Parser(self.tag, from_primary=False).feed(raw)[0]

    def _agree(self, listener: Listener, mine: int, answer: Frame) -> tuple[str, bool]:
        if answer.kind is not Kind.WELCOME:
            raise ReplicationError(f"the peer answers the hello with {answer.kind.name}")
        welcome = handshake.decode_welcome(answer.payload)
        problem = handshake.contradiction(self.start, mine, welcome.candidates)
        if problem:
            return problem, True
        theirs: list[Record] = []
        while self.start is SessionStart.CANDIDATES:
            part = self._one_frame()
            if part.kind is not Kind.CANDIDATES:
                raise ReplicationError(f"the peer sends {part.kind.name} before its candidates")
            theirs += wire.decode_records(part.payload, "candidates")
            if part.flags & wire.FLAG_LAST:
                break
        assert self._forward is not None
        assert self._backward is not None
        self._forward.set_timeout(None)
        self._backward.set_timeout(None)
        self.progress_ms = now_ms()
        self._sender = threading.Thread(target=self._send, name="session-send", daemon=True)
        self.up = True
        self._sender.start()
        self._wake.put([])
        self._direct = not self._forward.encrypted
        listener.session_up(self, welcome, theirs)
        return "", False

    def _drop(self) -> None:
        with self._lock:
            connections = (self._forward, self._backward)
            self._forward = self._backward = None
        for connection in connections:
            if connection is not None:
                connection.close()

    # --- threads --------------------------------------------------------------------------

    def put(self, raw: bytes) -> None:
        """Queue a frame and have it sent; the caller has the pipeline's lock."""
        self._pending.append(raw)
        self.queued_bytes += len(raw)
        if not self._busy:
            self._busy = True
            self._wake.put([])

    def put_lent(self, head: bytes, data: memoryview, give_back: GiveBack) -> None:
        """Queue a frame whose data is lent, for the sender; the caller has the pipeline's lock."""
        self.queued_bytes += len(head) + len(data)
        self._give_back = give_back
        self._pending.append(head)
        self._pending.append(data)
        if not self._busy:
            self._busy = True
            self._wake.put([])

    def put_now(self, head: bytes, data: Piece = b"", give_back: GiveBack | None = None) -> bool:
        """Queue a frame; the caller has the pipeline's lock.

        True: the caller must give the same to `send_now` after releasing the lock. Else a view is
        copied, unless there is `give_back`: then its buffer is the session's until it calls that.
        """
        self.queued_bytes += len(head) + len(data)
        if not self._busy and self._direct:
            self._busy = True
            return True
        pending = self._pending
        pending.append(head)
        if give_back is not None:
            self._give_back = give_back
            pending.append(data)
        elif data:
            pending.append(bytes(data))
        if not self._busy:
            self._busy = True
            self._wake.put([])
        return False

    def send_now(self, head: bytes, data: Piece = b"", give_back: GiveBack | None = None) -> bool:
        """Send without waiting; the sender goes on with the rest. Whether all was sent at once:
        then the buffer is not kept."""
        assert self._forward is not None
        size = len(head) + len(data)
        rest = self._forward.send_some([head, data], size)
        with self.lock:
            self.sent_bytes += size - sum(map(len, rest)) if rest else size
            if not rest and not self._pending:
                self._busy = False
                return True
        if give_back is None:
            rest = list(map(bytes, rest))
        else:
            self._give_back = give_back
        self._wake.put(rest)
        return not rest

    def _send(self) -> None:
        """The sender thread."""
        show_thread_name()
        assert self._forward is not None
        get, send, lock = self._wake.get, self._forward.send, self.lock
        try:
            while (batch := get()) is not None:
                while True:
                    if batch:
                        send(batch)
                    with lock:
                        self.sent_bytes += sum(map(len, batch))
                        following = self._take()
                        if not following:
                            self._busy = False
                    give_back = self._give_back
                    if give_back is not None:
                        for piece in batch:
                            give_back(piece)
                    if not following:
                        break
                    batch = following
        except OSError:
            # The receiver sees the end too, and reports it.
            for connection in (self._forward, self._backward):
                if connection is not None:
                    connection.abort()

    def _take(self) -> list[Piece]:
        """What is to be sent next; the caller has the lock."""
        pending, total = self._pending, 0
        for i, raw in enumerate(pending):
            total += len(raw)
            if total >= _BATCH_BYTES:
                self._pending = pending[i + 1 :]
                return pending[: i + 1]
        self._pending = []
        return pending

    def _receive(self, listener: Listener) -> None:
        assert self._backward is not None
        parser = Parser(self.tag, from_primary=False)
        buffer = memoryview(bytearray(RECEIVE_BYTES))
        receive, feed = self._backward.receive_into, parser.feed
        acknowledged, flushed = listener.acknowledged, listener.flushed
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
                    self.progress_ms = now_ms()
                    acknowledged(self, number)
                    continue
                number = -1
            for frame in feed(buffer[:size]):
                kind = frame.kind
                if kind is Kind.ACKNOWLEDGED:
                    number = frame.number
                elif kind is Kind.FLUSHED:
                    self.progress_ms = now_ms()
                    flushed(self, frame.number)
                    # It has everything up to there, and does not say so twice.
                    number = max(number, frame.number)
                elif kind is Kind.PROGRESS:
                    self._note_progress(frame)
                elif kind is Kind.FAILED:
                    listener.peer_failed(self, bytes(frame.payload).decode("utf-8", "replace"))
                else:
                    self.replies.put(frame)
            if number >= 0:
                self.progress_ms = now_ms()
                acknowledged(self, number)

    def _note_progress(self, frame: Frame) -> None:
        """An fsync of the peer counts as progress, but not for ever (D8')."""
        progress = wire.decode_progress(frame.payload)
        syncing = progress.syncing
        now = self.told_ms = now_ms()
        self.peer_room_bytes = progress.room_bytes
        if not syncing:
            self._syncing_since_ms = 0
        elif not self._syncing_since_ms:
            self._syncing_since_ms = now
        moved = progress.applied != self._applied
        self._applied = progress.applied
        if moved or (syncing and now - self._syncing_since_ms <= self.slow_sync_ms):
            self.progress_ms = now
