"""The observer outside the cluster: hears of every order after its commit had returned.

What it has heard of is what a customer was promised. It also notices two applications at once and
numbers that were given out twice: either would be a failure of the cluster.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heard:
    """One acknowledged order."""

    number: int
    node: str
    pid: int
    at_s: float
    """time.monotonic of its arrival."""


class Observer:
    """Listens on a loopback UDP port in a thread of its own."""

    def __init__(self, listening: socket.socket | None = None) -> None:
        if listening is None:
            listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            listening.bind(("127.0.0.1", 0))
        self._socket = listening
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.settimeout(0.5)
        self._lock = threading.Condition()
        self._heard: list[Heard] = []
        self._numbers: set[int] = set()
        self._gone: set[int] = set()
        self._late: set[int] = set()
        self._last_pid = 0
        self.faults: list[str] = []
        self._closed = False
        self._thread = threading.Thread(target=self._listen, name="observer", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where the application sends its news."""
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._thread.join(2)
        self._socket.close()

    @property
    def count(self) -> int:
        """How many acknowledged orders were heard of."""
        return len(self._heard)

    @property
    def highest(self) -> int:
        """The highest acknowledged number."""
        with self._lock:
            return max(self._numbers, default=0)

    def numbers(self) -> set[int]:
        """All acknowledged numbers."""
        with self._lock:
            return set(self._numbers)

    def _note_late(self, heard: Heard) -> None:
        """One that stood still may tell of the one order that was on both nodes before (L1, F2);
        the caller has the lock."""
        if heard.pid not in self._late:
            self._late.add(heard.pid)
            return
        self.faults.append(
            f"two applications at once: process {heard.pid} on {heard.node} acknowledged "
            f"order {heard.number} after another one had begun"
        )

    def after(self, at_s: float, node: str) -> list[Heard]:
        """The orders that a node acknowledged after a moment."""
        with self._lock:
            return [one for one in self._heard if one.at_s > at_s and one.node == node]

    def first_after(self, at_s: float, node: str) -> Heard | None:
        """The first order that a node acknowledged after a moment."""
        with self._lock:
            return next((h for h in self._heard if h.at_s > at_s and h.node == node), None)

    def longest_pause_s(self, since_s: float) -> float:
        """The longest time without an acknowledged order since a moment."""
        with self._lock:
            times = [since_s, *(h.at_s for h in self._heard if h.at_s >= since_s)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def _listen(self) -> None:
        while not self._closed:
            try:
                raw = self._socket.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                return
            body = json.loads(raw)
            self._add(Heard(body["number"], body["node"], body["pid"], time.monotonic()))

    def _add(self, heard: Heard) -> None:
        with self._lock:
            if heard.number in self._numbers:
                self.faults.append(
                    f"order {heard.number} was acknowledged twice, the second time by "
                    f"{heard.node}: the first one was lost"
                )
            if heard.pid in self._gone:
                self._note_late(heard)
            elif heard.pid != self._last_pid:
                if self._last_pid:
                    self._gone.add(self._last_pid)
                self._last_pid = heard.pid
            self._numbers.add(heard.number)
            self._heard.append(heard)
            self._lock.notify_all()
