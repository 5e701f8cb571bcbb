"""The secondary's side of connecting: which session is served, and which sockets belong to it (T3).

The core orders a session; the daemon hands over accepted sockets with their preambles. Both orders
of arrival are fine. Sockets that no expected session takes within a few seconds are refused with a
word that lets the primary try again.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass
from typing import Final

from hyperha.core.actions import SessionStart
from hyperha.domain import SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication import handshake, wire
from hyperha.replication.clock import now_ms
from hyperha.replication.control import EngineConfig, TlsFiles
from hyperha.replication.handshake import Refusal
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.preamble import Direction, Preamble, cluster_hash
from hyperha.replication.resuming import refuse
from hyperha.replication.secondary import Report, SecondarySession
from hyperha.replication.store import Store
from hyperha.replication.transport import Connection

log = logging.getLogger(__name__)

_KEEP_MS: Final = 2000
_TLS_TIMEOUT_S: Final = 5.0
_SOCKETS: Final = 16


@dataclass(slots=True)
class _Pair:
    """The connections of one attempt of the primary."""

    session: SessionKey
    since_ms: int
    resumes: bool
    """For a session that is served already (T4)."""
    forward: Connection | None = None
    backward: Connection | None = None

    def close(self) -> None:
        for connection in (self.forward, self.backward):
            if connection is not None:
                connection.close()


class Acceptor:
    """Owns the session that this node serves as secondary."""

    def __init__(
        self, store: Store, intent: IntentLog, config: EngineConfig, report: Report
    ) -> None:
        self._store = store
        self._intent = intent
        self._config = config
        self._report = report
        self._lock = threading.Lock()
        self._pairs: dict[bytes, _Pair] = {}
        self._expected: tuple[SessionKey, SessionStart] | None = None
        self._session: SecondarySession | None = None
        self._covered = 0
        self._shut = False

    @property
    def session(self) -> SecondarySession | None:
        """The session that is served, if any."""
        return self._session

    @property
    def covered(self) -> int:
        """What the last primary said is on stable storage on both nodes."""
        session = self._session
        return self._covered if session is None else session.covered

    def expect(self, key: SessionKey, start: SessionStart) -> str:
        """Serve this session and only it; the one before has ended when this returns (T3).

        Why what the former session acknowledged is not all on this copy, or nothing.
        """
        problem = self.close()
        with self._lock:
            self._expected = (key, start)
        self._match()
        return problem

    def close(self) -> str:
        """Fence and end the session: what was acknowledged is applied and synced (P8)."""
        with self._lock:
            self._expected = None
            session, self._session = self._session, None
        if session is None:
            return ""
        problem = session.close()
        self._covered = session.covered
        return problem

    def drain(self, limit_s: float) -> None:
        """Wait until what was acknowledged is applied, and sync it (P8).

        Raises ReplicationError when it could not be applied, or not in time.
        """
        end = time.monotonic() + limit_s
        while (session := self._session) is not None:
            # In this order: an applier that fails says so before it lets go of its queue.
            waiting = session.waiting_bytes
            if session.failure:
                raise ReplicationError(f"what was acknowledged is not all here: {session.failure}")
            if not waiting:
                break
            if time.monotonic() > end:
                raise ReplicationError("the queue of the stream is not applied yet")
            time.sleep(0.01)
        self._store.sync_all()

    def shut(self) -> None:
        """`close`, and let go of every socket; nothing is to be taken afterwards."""
        self.close()
        with self._lock:
            self._shut = True
            pairs = list(self._pairs.values())
            self._pairs.clear()
        for pair in pairs:
            pair.close()

    def clear_map(self) -> None:
        """The copy is up to date (R11): forget the map, or have the applier do it behind the next
        barrier of both nodes if operations are not behind one yet."""
        if self._intent.clear(self.covered):
            return
        session = self._session
        if session is None:
            raise ReplicationError("operations of the guest are not behind a barrier")
        session.clear_behind_barrier()

    def take(self, accepted: socket.socket, preamble: Preamble, tls: TlsFiles | None) -> None:
        """Take a socket over. Raises ReplicationError when it is not for this process.

        Runs the TLS handshake: not for the control thread.
        """
        config = self._config
        connection = Connection(accepted)
        try:
            self._check(preamble, tls)
            if tls is not None:
                connection.secure(tls, config.peer, server=True, timeout_s=_TLS_TIMEOUT_S)
        except ReplicationError:
            connection.close()
            raise
        with self._lock:
            if self._shut:
                connection.close()
                return
            pair = self._pairs.get(preamble.pair)
            if pair is None:
                pair = _Pair(preamble.session, now_ms(), preamble.resumes)
                self._pairs[preamble.pair] = pair
            if preamble.direction is Direction.FORWARD:
                former, pair.forward = pair.forward, connection
            else:
                former, pair.backward = pair.backward, connection
            whole = pair.forward is not None and pair.backward is not None
            if whole and pair.resumes:
                del self._pairs[preamble.pair]
        if former is not None:
            former.close()
        if not pair.resumes:
            self._match()
        elif whole:
            self._resume(pair)

    def _resume(self, pair: _Pair) -> None:
        """Give a pair to the session that is served, or refuse it at once (T4)."""
        session = self._session
        if session is None or session.key != pair.session:
            self._refuse(pair, handshake.GONE)
            return
        assert pair.forward is not None
        assert pair.backward is not None
        session.resume(pair.forward, pair.backward)

    def _check(self, preamble: Preamble, tls: TlsFiles | None) -> None:
        config = self._config
        if preamble.cluster_hash != cluster_hash(config.cluster_id):
            raise ReplicationError(f"{preamble.node} belongs to another cluster")
        if (preamble.module, preamble.number) != (config.module, config.number):
            raise ReplicationError(
                f"{preamble.node} wants module {preamble.module} (number {preamble.number}), "
                f"this is {config.module} (number {config.number})"
            )
        if preamble.node != config.peer:
            raise ReplicationError(f"{preamble.node} is not this node's peer {config.peer}")
        if preamble.encrypted != (tls is not None):
            raise ReplicationError(
                f"{preamble.node} {'uses' if preamble.encrypted else 'does not use'} TLS on this "
                "LAN, this node's configuration says otherwise"
            )

    def _match(self) -> None:
        """Bring expected session and sockets together; drop what has waited too long."""
        with self._lock:
            self._expire()
            if self._expected is None or self._session is not None:
                return
            key, start = self._expected
            for name, pair in list(self._pairs.items()):
                if pair.forward is None or pair.backward is None or pair.resumes:
                    continue
                del self._pairs[name]
                if pair.session == key:
                    patience_ms = self._config.stall_limit_ms
                    session = SecondarySession(
                        self._store, self._intent, key, start, self._report, patience_ms
                    )
                    self._session = session
                    session.serve(pair.forward, pair.backward)
                    return
                self._refuse(pair)

    def _expire(self) -> None:
        limit = now_ms() - _KEEP_MS
        for name, pair in list(self._pairs.items()):
            if pair.since_ms < limit or len(self._pairs) > _SOCKETS:
                del self._pairs[name]
                self._refuse(pair)

    def tick(self) -> None:
        """Drop what has waited too long; called every second."""
        with self._lock:
            self._expire()

    def _refuse(self, pair: _Pair, code: str = handshake.NOT_EXPECTED) -> None:
        text = f"session {pair.session.number} of {pair.session.epoch} is not expected here"
        if pair.backward is not None:
            refuse(pair.backward, wire.session_tag(pair.session), Refusal(code, text))
        pair.close()
