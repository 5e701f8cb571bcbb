"""Which LANs are up, and whether the peer is heard: pure, time comes with every call.

A LAN is up only while datagrams come in on it and this node's own counters come back (L9). The
peer is lost only when no LAN is up and no replication session shows life. After a stall of this
node itself everything is void and one full new window opens (L7).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LanChanged:
    """A LAN came up or went down."""

    lan: str
    up: bool


@dataclass(frozen=True, slots=True)
class PeerFound:
    """The peer is heard: for the first time, or again."""


@dataclass(frozen=True, slots=True)
class PeerLost:
    """Every path has been silent for `suspect`; the last sign of life came at that time."""

    last_heard_ms: int


Change = LanChanged | PeerFound | PeerLost
_KEPT_COUNTERS = 4096


@dataclass(slots=True)
class _Lan:
    name: str
    received_ms: int | None = None
    echoed_ms: int | None = None
    """When the newest counter of ours that came back on this LAN was sent."""
    up: bool = False


@dataclass(slots=True)
class Tracker:
    """The state of all LANs of one node; milliseconds of CLOCK_BOOTTIME throughout (K4)."""

    lans: tuple[str, ...]
    heartbeat_ms: int
    suspect_ms: int
    started_ms: int
    heard: bool = False
    last_heard_ms: int = 0
    _by_name: dict[str, _Lan] = field(init=False)
    _sent: deque[tuple[int, int]] = field(init=False)
    _window_ms: int = field(init=False)
    _session_ms: int | None = field(default=None, init=False)
    _told: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._by_name = {name: _Lan(name) for name in self.lans}
        self._sent = deque(maxlen=_KEPT_COUNTERS)
        self._window_ms = self.started_ms
        self.last_heard_ms = self.started_ms

    @property
    def echo_limit_ms(self) -> int:
        """How old an own counter may be when it comes back: it waits for the peer's next beat."""
        return self.suspect_ms + 2 * self.heartbeat_ms

    def sent(self, counter: int, now_ms: int) -> None:
        """Note when a heartbeat left; counters grow."""
        self._sent.append((counter, now_ms))

    def received(self, lan: str, echo_counter: int | None, now_ms: int) -> list[Change]:
        """A believed datagram came in on a LAN; `echo_counter` is ours, None if it echoes none."""
        found = self._by_name[lan]
        found.received_ms = now_ms
        if echo_counter is not None:
            sent_ms = self._sent_at(echo_counter)
            if sent_ms is not None and (found.echoed_ms is None or sent_ms > found.echoed_ms):
                found.echoed_ms = sent_ms
        if self._is_up(found, now_ms):
            self.last_heard_ms = now_ms
        return self.tick(now_ms)

    def session_alive(self, heard_ms: int, now_ms: int) -> list[Change]:
        """The replication session lives, and its last frame came in then: it counts as a LAN (P8).

        What is told now holds for a window from now, or a short one would end between two words of
        it; but a peer that is dead by now lived until `heard_ms`, not longer.
        """
        self._session_ms = now_ms
        self.last_heard_ms = max(self.last_heard_ms, min(heard_ms, now_ms))
        return self.tick(now_ms)

    def observe_gap(self, now_ms: int) -> None:
        """L7: this node did not run for a while; verdicts are void and a full window opens.

        LANs that were up stay so for that window; nothing is called silent before it has passed.
        """
        self._window_ms = now_ms

    def tick(self, now_ms: int) -> list[Change]:
        """What has changed by now."""
        changes: list[Change] = []
        for lan in self._by_name.values():
            up = self._is_up(lan, now_ms) or (lan.up and self._in_window(now_ms))
            if up != lan.up:
                lan.up = up
                changes.append(LanChanged(lan.name, up))
        session = self._session_ms
        alive = any(lan.up for lan in self._by_name.values()) or (
            session is not None and now_ms - session < self.suspect_ms
        )
        if alive and not self.heard:
            self.heard, self._told = True, True
            changes.append(PeerFound())
        elif not alive and not self._in_window(now_ms) and (self.heard or not self._told):
            self.heard, self._told = False, True
            changes.append(PeerLost(self.last_heard_ms))
        return changes

    @property
    def echoed_ms(self) -> int:
        """When the newest heartbeat of ours was sent that the peer has answered on any LAN (L6);
        0: none."""
        return max((lan.echoed_ms or 0 for lan in self._by_name.values()), default=0)

    def up(self) -> dict[str, bool]:
        """Which LANs are up."""
        return {lan.name: lan.up for lan in self._by_name.values()}

    def _in_window(self, now_ms: int) -> bool:
        return now_ms - self._window_ms < self.suspect_ms

    def _is_up(self, lan: _Lan, now_ms: int) -> bool:
        return (
            lan.received_ms is not None
            and now_ms - lan.received_ms < self.suspect_ms
            and lan.echoed_ms is not None
            and now_ms - lan.echoed_ms < self.echo_limit_ms
        )

    def _sent_at(self, counter: int) -> int | None:
        for sent, at_ms in reversed(self._sent):
            if sent == counter:
                return at_ms
            if sent < counter:
                return None
        return None
