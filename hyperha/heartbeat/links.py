"""The thread that sends and receives heartbeats: one UDP socket per LAN, no disk, no waiting.

It tells the event loop what changed through `HeartbeatEvents`, always in the loop's own thread.
What it says about the modules is set by the daemon and is durable state only (P7).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hyperha.heartbeat.message import (
    NO_INSTANCE,
    Acknowledgement,
    Body,
    Certificate,
    FrameError,
    Header,
    Heartbeat,
    Message,
    ModuleStatus,
    decode,
    encode,
)
from hyperha.heartbeat.outbox import Inbox, Outbox
from hyperha.heartbeat.seal import NotAuthenticError, PeerGate, Sealer, Verdict
from hyperha.heartbeat.tracker import Change, LanChanged, PeerFound, PeerLost, Tracker

_log = logging.getLogger(__name__)
_REBIND_MS = 1000
_HURRY_MS = 20
"""Beats out of turn are at least that far apart, whoever asks for them."""


@dataclass(frozen=True, slots=True)
class LanPath:
    """One LAN as this node uses it: where to bind and where to send."""

    name: str
    own_address: str
    peer_address: str


@dataclass(frozen=True, slots=True)
class PeerView:
    """What the peer's newest heartbeat said: which machine boot and process, and its modules."""

    boot_id: str
    instance: str
    config_version: int
    modules: tuple[ModuleStatus, ...]


class HeartbeatEvents(Protocol):
    """What the links tell; every method is called in the event loop's thread."""

    def lan_changed(self, lan: str, up: bool) -> None:
        """A LAN came up or went down (L9)."""

    def peer_heard(self, view: PeerView, again: bool) -> None:
        """The peer is heard: the first time, again after silence, or with changed content."""

    def peer_silent(self, last_heard_ms: int) -> None:
        """Every path has been silent for suspect; told once per silence."""

    def message_received(self, module: int, payload: bytes) -> None:
        """A message of the peer's core, once."""

    def certificate_received(self, certificate: Certificate) -> None:
        """The peer's guardian certifies (L8); may come several times."""

    def stalled(self, gap_ms: int) -> None:
        """This node did not run for more than two heartbeats: it has observed nothing (L7)."""

    def refused(self, text: str, source: str) -> None:
        """Somebody sends what is not believed; told once per source (its address, or empty), and
        again after the peer has been heard."""


def boottime_ms() -> int:
    """Milliseconds of CLOCK_BOOTTIME (K4)."""
    clock: Callable[[int], int] = time.clock_gettime_ns
    return clock(time.CLOCK_BOOTTIME) // 1_000_000


def boot_id() -> bytes:
    """The id of this boot of the machine: 16 bytes."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return bytes.fromhex(file.read().strip().replace("-", ""))


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What the links need to know of cluster and node."""

    key: bytes
    cluster_id: str
    own_index: int
    lans: tuple[LanPath, ...]
    port: int
    heartbeat_ms: int
    suspect_ms: int
    config_version: int = 1


_REFUSED = {
    Verdict.REPLAYED: "were sent before: somebody repeats them",
    Verdict.OURSELVES: (
        "come from a node that has this one's name: the file `node` of one of the two must name "
        "the other one"
    ),
}


class HeartbeatLinks:
    """Sends this node's heartbeats and follows the peer's, in a thread of its own.

    `start` and `stop` belong to the event loop's thread; `set_status`, `send_message` and
    `session_alive` may be called from any thread and return at once.
    """

    def __init__(self, settings: LinkSettings, events: HeartbeatEvents) -> None:
        self._settings = settings
        self._events = events
        self._sealer = Sealer(settings.key, settings.cluster_id)
        self._gate = PeerGate(settings.own_index, secrets.token_bytes)
        self._instance = secrets.token_bytes(16)
        self._boot_id = boot_id()
        self._outbox = Outbox(retry_ms=max(20, settings.heartbeat_ms // 2))
        self._inbox = Inbox()
        self._counter = 0
        self._beaten_ms = 0
        self._ran_ms = 0
        self._lock = threading.Lock()
        self._status: tuple[ModuleStatus, ...] = ()
        self._version = settings.config_version
        self._orders: list[tuple[int, bytes, int]] = []
        self.echoed_ms = 0
        """When this node sent the newest heartbeat that the peer has answered: whatever the peer
        promises, it promises since then (L6)."""
        self._session_heard: deque[int] = deque(maxlen=16)
        """Told by other threads since the last turn."""
        self._sockets: dict[str, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._hurry = False
        self._rebind_ms: dict[str, int] = {}
        self._echo: dict[str, int] = {}
        self._acknowledge: dict[str, list[int]] = {}
        self._view: PeerView | None = None
        self._complained: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, "")
        names = tuple(lan.name for lan in settings.lans)
        self._tracker = Tracker(
            names, settings.heartbeat_ms, settings.suspect_ms, started_ms=boottime_ms()
        )

    @property
    def instance(self) -> str:
        """The random id of this daemon's process, as the peer sees it."""
        return self._instance.hex()

    def start(self) -> None:
        """Begin to send and listen; the current event loop gets the events."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the sockets; no event comes after this returns."""
        self._loop = None
        self._stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        for lan in list(self._sockets):
            self._close(lan)
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def set_status(self, modules: tuple[ModuleStatus, ...], *, config_version: int) -> None:
        """What the next heartbeats say; durable state only (P7). Sent at once when it changed."""
        with self._lock:
            changed = (modules, config_version) != (self._status, self._version)
            self._status, self._version = modules, config_version
        if changed:
            self._wake(b"s")

    def send_message(self, module: int, payload: bytes, *, timeout_ms: int) -> None:
        """Send to the peer's core on every LAN, until acknowledged or `timeout_ms` is over."""
        with self._lock:
            self._orders.append((module, payload, timeout_ms))
        self._wake()

    def session_alive(self, heard_ms: int) -> None:
        """The replication session lives; its last frame came in at `heard_ms` (milliseconds of
        CLOCK_BOOTTIME): the session counts as a LAN (P8)."""
        self._session_heard.append(heard_ms)

    def _wake(self, reason: bytes = b"m") -> None:
        with contextlib.suppress(OSError):
            self._wake_out.send(reason)

    def _tell(self, method: Callable[..., None], *arguments: Any) -> None:
        loop = self._loop
        if loop is not None:
            # A loop that is closed between the check and the call has no use for events.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._deliver, method, arguments)

    def _deliver(self, method: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self._loop is not None:
            method(*arguments)

    def _serve(self) -> None:
        while not self._stopping:
            try:
                self._turn_for_ever()
            except Exception:
                # A node that stops beating is taken for dead: go on with fresh sockets.
                _log.exception("the heartbeat thread failed and starts again")
                for lan in list(self._sockets):
                    self._close(lan)
                time.sleep(0.05)

    def _turn_for_ever(self) -> None:
        next_ms = self._ran_ms = boottime_ms()
        while not self._stopping:
            now_ms = self._time_to_judge()
            self._open_sockets(now_ms)
            if now_ms >= next_ms:
                self._beat(now_ms)
                next_ms = now_ms + self._settings.heartbeat_ms
            self._send_messages(now_ms)
            while self._session_heard:
                self._report(self._tracker.session_alive(self._session_heard.popleft(), now_ms))
            self._report(self._tracker.tick(now_ms))
            due = self._outbox.next_due_ms()
            until = next_ms if due is None else min(next_ms, due)
            if self._wait(max(0, until - boottime_ms())):
                next_ms = boottime_ms()

    def _time_to_judge(self) -> int:
        """The time, for whoever is about to judge; a gap that it shows is told first (L7)."""
        now_ms = boottime_ms()
        gap_ms = now_ms - self._ran_ms
        self._ran_ms = now_ms
        if gap_ms > 2 * self._settings.heartbeat_ms:
            self._tracker.observe_gap(now_ms)
            self._tell(self._events.stalled, gap_ms)
            _log.warning("L7: this node did not run for %d ms", gap_ms)
        return now_ms

    def _wait(self, timeout_ms: int) -> bool:
        """Receive for at most that long; True when a heartbeat is due at once."""
        for key, _ in self._selector.select(timeout_ms / 1000):
            if key.data:
                self._drain(key.data, self._sockets[key.data])
                continue
            with contextlib.suppress(BlockingIOError):
                self._hurry |= b"s" in self._wake_in.recv(4096)
        hurry, self._hurry = self._hurry, False
        return hurry

    def _open_sockets(self, now_ms: int) -> None:
        for lan in self._settings.lans:
            if lan.name in self._sockets or now_ms < self._rebind_ms.get(lan.name, 0):
                continue
            family = socket.AF_INET6 if ":" in lan.own_address else socket.AF_INET
            opened = socket.socket(family, socket.SOCK_DGRAM)
            try:
                opened.bind((lan.own_address, self._settings.port))
            except OSError as problem:
                opened.close()
                self._rebind_ms[lan.name] = now_ms + _REBIND_MS
                self._complain(
                    f"bind {lan.name}",
                    f"heartbeats on LAN {lan.name}: {lan.own_address} port {self._settings.port} "
                    f"cannot be used: {problem.strerror}",
                )
                continue
            opened.setblocking(False)
            self._sockets[lan.name] = opened
            self._selector.register(opened, selectors.EVENT_READ, lan.name)

    def _close(self, lan: str) -> None:
        one = self._sockets.pop(lan)
        self._selector.unregister(one)
        one.close()

    def _beat(self, now_ms: int) -> None:
        self._beaten_ms = now_ms
        with self._lock:
            modules, version = self._status, self._version
        for lan in self._settings.lans:
            if lan.name not in self._sockets:
                continue
            counter = self._send(
                lan,
                Heartbeat(
                    boot_id=self._boot_id,
                    clock_ms=now_ms,
                    echo_instance=self._gate.instance or NO_INSTANCE,
                    echo_counter=self._echo.get(lan.name, 0),
                    config_version=version,
                    modules=modules,
                ),
            )
            self._tracker.sent(counter, now_ms)

    def _send_messages(self, now_ms: int) -> None:
        with self._lock:
            orders, self._orders = self._orders, []
        for module, payload, timeout_ms in orders:
            self._outbox.add(module, payload, now_ms, timeout_ms)
        due = self._outbox.due(now_ms)
        for lan in self._settings.lans:
            if lan.name not in self._sockets:
                continue
            for message in due:
                self._send(lan, message)
            if ids := self._acknowledge.pop(lan.name, None):
                self._send(lan, Acknowledgement(tuple(ids[:64])))

    def _send(self, lan: LanPath, body: Body) -> int:
        self._counter += 1
        header = Header(
            cluster_tag=self._sealer.cluster_tag,
            sender=self._settings.own_index,
            instance=self._instance,
            counter=self._counter,
            nonce=self._gate.nonce,
            echoed_nonce=self._gate.peer_nonce,
        )
        datagram = self._sealer.seal(encode(header, body))
        try:
            self._sockets[lan.name].sendto(datagram, (lan.peer_address, self._settings.port))
        except OSError:
            pass  # A cut LAN is found by silence; an error here says nothing more.
        return self._counter

    def _drain(self, lan: str, one: socket.socket) -> None:
        while True:
            try:
                datagram, source = one.recvfrom(4096)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error of an earlier send, or the address went away: bind anew.
                if _address_is_gone(one):
                    self._close(lan)
                return
            self._take(lan, datagram, source[0])

    def _take(self, lan: str, datagram: bytes, source: str) -> None:
        try:
            header, body = decode(self._sealer.open(datagram))
        except NotAuthenticError:
            self._complain(
                f"key {source}", f"packets from {source} do not carry this cluster's key", source
            )
            return
        except FrameError as problem:
            self._complain(
                f"frame {source}", f"packets from {source} are not understood: {problem}", source
            )
            return
        if isinstance(body, Certificate):
            # Not part of the peer daemon's order of datagrams; bound to run and epoch instead (L8).
            if header.sender != self._settings.own_index:
                self._tell(self._events.certificate_received, body)
            return
        verdict = self._gate.admit(header)
        if verdict in (Verdict.OURSELVES, Verdict.REPLAYED):
            text = f"packets from {source} {_REFUSED[verdict]}"
            self._complain(f"{verdict} {source}", text, source)
            return
        if verdict is Verdict.UNPROVEN:
            # Answer soon, so that a process that starts is believed within one exchange.
            self._hurry = boottime_ms() - self._beaten_ms >= _HURRY_MS
            return
        if verdict is Verdict.NEW_INSTANCE:
            self._echo.clear()
            self._inbox.restart()
        now_ms = self._time_to_judge()
        if isinstance(body, Heartbeat):
            self._echo[lan] = max(self._echo.get(lan, 0), header.counter)
            mine = body.echo_instance == self._instance and body.echo_counter > 0
            changes = self._tracker.received(lan, body.echo_counter if mine else None, now_ms)
            self.echoed_ms = self._tracker.echoed_ms
            changed = self._note(header, body)
            self._report(changes)
            if changed and self._tracker.heard and PeerFound() not in changes:
                self._tell(self._events.peer_heard, self._view, False)
        elif isinstance(body, Message):
            self._acknowledge.setdefault(lan, []).append(body.id)
            if self._inbox.first_time(body):
                self._tell(self._events.message_received, body.module, body.payload)
        else:
            self._outbox.acknowledged(body.ids)

    def _note(self, header: Header, body: Heartbeat) -> bool:
        """Keep what the peer says; True when it is not what it said before."""
        view = PeerView(
            body.boot_id.hex(), header.instance.hex(), body.config_version, body.modules
        )
        changed = view != self._view
        self._view = view
        return changed

    def _report(self, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change, LanChanged):
                self._tell(self._events.lan_changed, change.lan, change.up)
            elif isinstance(change, PeerLost):
                self._tell(self._events.peer_silent, change.last_heard_ms)
            elif isinstance(change, PeerFound) and self._view is not None:
                self._complained.clear()
                self._tell(self._events.peer_heard, self._view, True)

    def _complain(self, about: str, text: str, source: str = "") -> None:
        """Say it once; a flood of wrong packets is not a flood of lines."""
        if about not in self._complained and len(self._complained) < 256:
            self._complained.add(about)
            self._tell(self._events.refused, text, source)


def _address_is_gone(one: socket.socket) -> bool:
    """Whether the address was taken from this machine since the socket was bound."""
    probe = socket.socket(one.family, socket.SOCK_DGRAM)
    try:
        probe.bind((one.getsockname()[0], 0))
    except OSError:
        return True
    finally:
        probe.close()
    return False
