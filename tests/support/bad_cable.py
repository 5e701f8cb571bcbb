"""A cable that loses frames, holds them back and stands still, as a network on a bad day.

It takes the place of the switch between two nodes of a `Network`: frames are carried by a thread,
in order, later than they came. The nodes see nothing but what a network may do to them.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import random
import select
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass

from tests.support.network import NODES, Network, inside

_SIOCETHTOOL = 0x8946
_OFFLOADS = {"checksum": 0x17, "scatter": 0x19, "segments": 0x1F, "generic": 0x24, "receive": 0x2C}
"""ETHTOOL_STXCSUM and its like: what a card would do later must be in the frame already."""
_ALL_FRAMES = 0x0003
_OUTGOING = 4
_LARGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad it is; times in seconds, the pauses between two of a kind on the average."""

    loss: float = 0.01
    spike_s: float = 0.2
    spike_every_s: float = 5.0
    spike_lasts_s: float = 0.5
    pause_s: float = 2.0
    pause_every_s: float = 40.0


@dataclass(slots=True)
class Carried:
    """What the cable has done."""

    frames: int = 0
    lost: int = 0
    late: int = 0
    pauses: int = 0


class BadCable:
    """Between the two nodes on one LAN; `close` takes it away, and nothing connects them then."""

    def __init__(self, network: Network, lan: int, weather: Weather, seed: int) -> None:
        self._weather, self._dice = weather, random.Random(seed)
        self.carried = Carried()
        self.calm = False
        """Told to carry everything at once, without a loss."""
        ports = [f"p{lan}{node[-1]}" for node in NODES]
        for node, port in zip(NODES, ports, strict=True):
            command = ["ip", "-n", network.hub, "link", "set", port, "nomaster", "promisc", "on"]
            subprocess.run(command, check=True)
            inside(network.hub, lambda port=port: _without_offloads(port))
            inside(network.namespace(node), lambda: _without_offloads(f"lan{lan}"))
        self._ends = [inside(network.hub, lambda port=port: _raw(port)) for port in ports]
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._numbers = itertools.count()
        self._last = [0.0, 0.0]
        """When the last frame of each direction is due: none overtakes another one."""
        now = time.monotonic()
        self._spike = now + self._after(weather.spike_every_s), 0.0
        self._pause = now + self._after(weather.pause_every_s), 0.0
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="bad cable", daemon=True)
        self._thread.start()

    def _after(self, mean_s: float) -> float:
        """Until the next one: not at once, and not too regular."""
        return mean_s * self._dice.uniform(0.5, 1.5)

    def pausing(self) -> bool:
        """Whether it stands still, or is about to, or has just been."""
        begins, ends = self._pause
        now = time.monotonic()
        return begins - 1.0 < now or now < ends + 1.0

    def put_off(self) -> None:
        """No pause for a while: something else happens to the nodes."""
        self._pause = time.monotonic() + self._after(self._weather.pause_every_s), self._pause[1]

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now:
                _, _, to, frame = heapq.heappop(self._waiting)
                self._put(to, frame)
            rest_s = self._waiting[0][0] - now if self._waiting else 1.0
            for one in select.select([*self._ends, self._woken], [], [], min(rest_s, 1.0))[0]:
                if one is self._woken:
                    return
                self._take(self._ends.index(one))

    def _take(self, source: int) -> None:
        try:
            frame, address = self._ends[source].recvfrom(_LARGEST)
        except OSError:
            return  # The port is down: the cable is out on that side.
        if address[2] == _OUTGOING:
            return
        self.carried.frames += 1
        now = time.monotonic()
        due = now if self.calm else self._due(now)
        if due is None:
            self.carried.lost += 1
            return
        self.carried.late += due > now
        due = self._last[source] = max(due, self._last[source])
        if due <= now:
            self._put(1 - source, frame)
        else:
            heapq.heappush(self._waiting, (due, next(self._numbers), 1 - source, frame))

    def _due(self, now: float) -> float | None:
        """When a frame that came now arrives; None: never."""
        weather = self._weather
        begins, ends = self._pause
        if begins <= now:
            ends = now + weather.pause_s
            self._pause = ends + self._after(weather.pause_every_s), ends
            self.carried.pauses += 1
        if self._dice.random() < weather.loss:
            return None
        if now < ends:
            return ends
        begins, ends = self._spike
        if begins <= now:
            ends = now + self._after(weather.spike_lasts_s)
            self._spike = ends + self._after(weather.spike_every_s), ends
        return now + weather.spike_s if now < ends else now

    def _put(self, to: int, frame: bytes) -> None:
        try:
            self._ends[to].send(frame)
        except OSError:
            self.carried.lost += 1  # The queue is full, or the port is down.

    def close(self) -> None:
        """End the thread."""
        self._wake.send(b"x")
        self._thread.join()
        for one in (*self._ends, self._wake, self._woken):
            one.close()


def _raw(port: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_FRAMES))
    raw.bind((port, _ALL_FRAMES))
    return raw


def _without_offloads(interface: str) -> None:
    """Frames as they would be on a wire: whole, and with their checksums."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for command in _OFFLOADS.values():
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
            fcntl.ioctl(asking, _SIOCETHTOOL, request.ljust(40, b"\0"))
