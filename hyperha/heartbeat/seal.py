"""Who is believed: authentication with the cluster's key, replays, and restarts of either side.

A datagram counts only with the key's HMAC over it and the cluster's id. A sending process that is
not known yet is believed only after it echoed this process's current challenge (L9, A21): what was
recorded before this process began, or before the last change of the peer's process, never passes.
Standard library only (the guardian seals certificates); randomness is handed in.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from enum import Enum

from hyperha.heartbeat.message import NO_NONCE, SEAL_BYTES, Header

WINDOW = 1024
_RETIRED_LIMIT = 256


class NotAuthenticError(ValueError):
    """A datagram that does not carry this cluster's key."""


class Sealer:
    """Seals and opens datagrams with the cluster's key (HMAC-SHA256, 128 bits)."""

    def __init__(self, key: bytes, cluster_id: str) -> None:
        self._key = hmac.new(key, b"hyperha heartbeat 1\0" + cluster_id.encode(), hashlib.sha256)
        self.cluster_tag = hashlib.sha256(cluster_id.encode()).digest()[:4]

    def _digest(self, frame: bytes) -> bytes:
        running = self._key.copy()
        running.update(frame)
        return running.digest()[:SEAL_BYTES]

    def seal(self, frame: bytes) -> bytes:
        """The frame with its authentication."""
        return frame + self._digest(frame)

    def open(self, datagram: bytes) -> bytes:
        """The frame in an authentic datagram; NotAuthenticError otherwise."""
        frame, found = datagram[:-SEAL_BYTES], datagram[-SEAL_BYTES:]
        if not frame or not hmac.compare_digest(found, self._digest(frame)):
            raise NotAuthenticError("the datagram does not carry this cluster's key")
        return frame


class ReplayWindow:
    """Remembers which counters of one sender were used; datagrams may arrive out of order."""

    def __init__(self) -> None:
        self._highest = -1
        self._seen = 0

    def accept(self, counter: int) -> bool:
        """True the first time a counter is offered, False for repeats and for the too old."""
        ahead = counter - self._highest
        if ahead > 0:
            self._seen = ((self._seen << min(ahead, WINDOW)) | 1) & ((1 << WINDOW) - 1)
            self._highest = counter
            return True
        bit = 1 << -ahead
        if -ahead >= WINDOW or self._seen & bit:
            return False
        self._seen |= bit
        return True


class Verdict(Enum):
    """What becomes of an authentic datagram."""

    ACCEPTED = "accepted"
    NEW_INSTANCE = "new instance"
    """Accepted, and the peer's process is another one than before."""
    UNPROVEN = "unproven"
    """Its process has not echoed our challenge yet; answer it, believe nothing."""
    REPLAYED = "replayed"
    OURSELVES = "ourselves"


class PeerGate:
    """Decides which authentic datagrams of the peer are believed (L9). Not thread-safe."""

    def __init__(self, own_index: int, random_bytes: Callable[[int], bytes]) -> None:
        self._own_index = own_index
        self._random = random_bytes
        self._window = ReplayWindow()
        self._retired: dict[bytes, None] = {}
        self.instance: bytes | None = None
        self.nonce = random_bytes(8)
        """Our current challenge; sent in every datagram."""
        self.peer_nonce = NO_NONCE
        """The challenge that the peer wants echoed."""

    def admit(self, header: Header) -> Verdict:
        """Judge one authentic datagram, in the order of arrival."""
        if header.sender == self._own_index:
            return Verdict.OURSELVES
        if header.instance == self.instance:
            if not self._window.accept(header.counter):
                return Verdict.REPLAYED
            self.peer_nonce = header.nonce
            return Verdict.ACCEPTED
        if header.instance in self._retired:
            return Verdict.REPLAYED
        if header.echoed_nonce != self.nonce:
            self.peer_nonce = header.nonce
            return Verdict.UNPROVEN
        if self.instance is not None:
            self._retired[self.instance] = None
            while len(self._retired) > _RETIRED_LIMIT:
                del self._retired[next(iter(self._retired))]
        self.instance = header.instance
        self._window = ReplayWindow()
        self._window.accept(header.counter)
        self.peer_nonce = header.nonce
        # What the former process recorded or sent under the old challenge is worth nothing now.
        self.nonce = self._random(8)
        return Verdict.NEW_INSTANCE
