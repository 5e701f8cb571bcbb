"""One of the two connections of another line does not do, and the other one lives (T4).

That says nothing of the peer, which still has the session.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.replication import acceptor, secondary
from hyperha.replication.control import PeerLink
from hyperha.replication.handshake import Hello
from hyperha.replication.operations import ROOT_ID, FileId
from hyperha.replication.preamble import SIZE
from hyperha.replication.transport import Connection
from tests.support.cable import Cable
from tests.support.engine_pair import Guest, free_ports, wait_for
from tests.support.wired import Wired

pytestmark = pytest.mark.root

FORWARD, BACKWARD = 0, 1


class HalvingCable(Cable):
    """Treats the two connections of the line that is made next unlike each other."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.cuts: int | None = None
        """Of the next line this connection ends with a reset, before it has carried a hello."""
        self.holds = False
        """Of the next line the forward connection carries nothing."""
        self.halves: list[tuple[socket.socket, socket.socket]] = []
        self._said = 0
        """Bytes of the primary that the forward connection carried."""

    def cut(self, half: int) -> None:
        """End one connection of the line that was made last with a reset."""
        with self._lock:
            for end in self.halves[half]:
                self._joined.pop(end)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()
        self._wake.send(b"x")

    def _accept(self) -> None:
        before = set(self._joined)
        super()._accept()
        near, far = (one for one in self._joined if one not in before)
        self.halves = [*self.halves, (near, far)] if len(self.halves) == 1 else [(near, far)]
        if len(self.halves) == 1:
            self._said = 0

    def _carry(self, one: socket.socket) -> None:
        forward = self.halves[FORWARD] if self.halves else ()
        if one not in forward or (self.cuts is None and not self.holds):
            super()._carry(one)
        elif self.cuts is not None:
            with self._lock:
                other = self._joined.get(one)
            if other is None:
                return
            if self._said < SIZE:
                self._said += other.send(one.recv(SIZE - self._said))
            elif len(self.halves) == 2:
                # The peer knows what it is for, and the hello is said but not carried.
                half, self.cuts = self.cuts, None
                self.cut(half)


class Halved(Wired):
    """A pair over one such cable, and a file with one write to come."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, kind=HalvingCable)
        self.in_sync()
        self.guest = Guest(self.a)
        self.file: FileId = self.guest.create(ROOT_ID, b"f")
        wait_for(lambda: self.guest.answers == 1)
        only = self.cables[0]
        assert isinstance(only, HalvingCable)
        self.only = only

    def check_it_goes_on(self) -> None:
        self.guest.write(self.file, 0, b"x")
        wait_for(lambda: self.guest.answers == 2)
        self.check_equal()
        self.undisturbed()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Halved]:
    made = Halved(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("half", [FORWARD, BACKWARD])
def test_one_half_breaks_before_the_hello(pair: Halved, half: int) -> None:
    pair.only.cuts = half
    pair.only.reset()
    pair.check_it_goes_on()
    assert pair.only.cuts is None


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_half_breaks_while_nobody_listens_on_another_lan(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    """Refused over one LAN means a dead peer only if it says nothing over the others."""
    made = Wired(tmp_path, kind=HalvingCable)
    try:
        first = made.a.config.links[0]
        both = (first, PeerLink("dead", "127.0.0.1", free_ports(1)[0], "127.0.0.1", None))
        made.use((both[order[0]], both[order[1]]))
        made.in_sync()
        guest = Guest(made.a)
        file = guest.create(ROOT_ID, b"f")
        wait_for(lambda: guest.answers == 1)
        (cable, _) = made.cables
        assert isinstance(cable, HalvingCable)
        cable.cuts = FORWARD
        cable.reset()
        guest.write(file, 0, b"x")
        wait_for(lambda: guest.answers == 2)
        made.check_equal()
        made.undisturbed()
    finally:
        made.close()


def test_one_half_breaks_behind_the_hello(pair: Halved, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = secondary.read_hello, threading.Event()

    def read(forward: Connection, tag: int) -> Hello:
        hello = real(forward, tag)
        if not seen.is_set():
            seen.set()
            pair.only.cut(FORWARD)
            wait_for(forward.hung_up)
        return hello

    monkeypatch.setattr(secondary, "read_hello", read)
    pair.only.reset()
    pair.check_it_goes_on()
    assert seen.is_set()


def test_one_half_does_not_come(pair: Halved, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer says so when it has waited long enough for it."""
    monkeypatch.setattr(acceptor, "_KEEP_MS", 0)
    pair.only.holds = True
    pair.only.reset()
    wait_for(lambda: pair.b.acceptor._pairs)
    pair.b.tick()
    pair.only.holds = False
    pair.check_it_goes_on()
