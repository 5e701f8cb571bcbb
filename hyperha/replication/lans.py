"""Which LAN carries the stream (D12): away from one that is silent, back to one that is preferred.

The configuration's order is the order of preference. A preferred LAN counts as stable when the
peer's port could be reached over it each time for twenty times stall_limit, with the defaults a
minute. Decides; the session moves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from hyperha.replication.control import PeerLink
from hyperha.replication.transport import connect

STABLE_LIMITS: Final = 20
SILENT_LEAST_MS: Final = 300
"""The peer owes a sign of life every 250 ms."""
_EVERY_MS: Final = 1000
_REACH_S: Final = 1.0


def silent_limit_ms(suspect_ms: int) -> int:
    """After so long without a word of the peer another LAN is tried: early enough to move before
    the core asks for a proof."""
    return max(SILENT_LEAST_MS, suspect_ms // 2)


Reaches = Callable[[PeerLink], bool]


def reaches(link: PeerLink) -> bool:
    """Whether the peer's replication port can be connected to over a LAN; waits for that."""
    try:
        connect(link.peer_address, link.peer_port, link.local_address, _REACH_S).close()
    except OSError:
        return False
    return True


class Lans:
    """The LANs of one module's stream. `tick` is called by one thread."""

    def __init__(
        self, links: Sequence[PeerLink], stable_ms: int, reaches: Reaches = reaches
    ) -> None:
        self._links = tuple(links)
        self.stable_ms = stable_ms
        self._reaches = reaches
        self._lock = threading.Lock()
        self._stable_since: dict[str, int] = {}
        self._looked_ms = 0
        self._looking: threading.Thread | None = None

    def others(self, link: PeerLink | None) -> list[PeerLink]:
        """The LANs but this one, in order of preference."""
        return [one for one in self._links if one is not link]

    def better(self, link: PeerLink | None, now_ms: int) -> PeerLink | None:
        """A LAN that is preferred to this one and stable, if there is one.

        To be called now and then: as long as there is a preferred one it is looked at, in a thread
        of its own.
        """
        preferred = self._links[: self._links.index(link)] if link in self._links else ()
        with self._lock:
            if not preferred:
                self._stable_since.clear()
                return None
            for one in preferred:
                since = self._stable_since.get(one.lan)
                if since is not None and now_ms - since >= self.stable_ms:
                    self._stable_since.clear()
                    return one
        busy = self._looking is not None and self._looking.is_alive()
        if not busy and now_ms - self._looked_ms >= _EVERY_MS:
            self._looked_ms = now_ms
            self._looking = threading.Thread(
                target=self._look, args=(preferred, now_ms), name="lans", daemon=True
            )
            self._looking.start()
        return None

    def _look(self, preferred: tuple[PeerLink, ...], now_ms: int) -> None:
        for link in preferred:
            reached = self._reaches(link)
            with self._lock:
                if reached:
                    self._stable_since.setdefault(link.lan, now_ms)
                else:
                    self._stable_since.pop(link.lan, None)

    def close(self) -> None:
        """Wait for a look that is under way."""
        if self._looking is not None:
            self._looking.join()
