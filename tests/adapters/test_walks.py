"""Looking through the whole folder holds up no guest, however many files there are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import ResyncCopied, SessionUp
from hyperha.replication import syscalls
from hyperha.replication.operations import Attributes, Create, Record, RecordKind, Rename
from hyperha.replication.store import Store
from tests.support.engine_pair import ROOT_ID, Guest, Pair, Side, wait_for


@pytest.fixture
def parted(tmp_path: Path) -> Iterator[Pair]:
    """The secondary's log has a file that is gone: made and removed while both had everything."""
    pair = Pair(tmp_path)
    try:
        pair.in_sync()
        guest = Guest(pair.a)
        guest.create(ROOT_ID, b"disk")
        wait_for(lambda: guest.answers == 1)
        pair.barrier(pair.a)
        made = pair.a.store.new_id()

        def make() -> Create:
            now = time.time_ns()
            change = Create(ROOT_ID, b"lock", made, Attributes(0o100644, 0, 0, 0, now, 0), now)
            pair.a.store.apply(change)
            return change

        guest.change([Record(RecordKind.DIRECTORY, ROOT_ID)], make)
        wait_for(lambda: guest.answers == 2)
        guest.remove(ROOT_ID, b"lock")
        wait_for(lambda: guest.answers == 3)
        wait_for(lambda: made in {one.file for one in pair.b.intent.candidates() or ()})
        pair.a.primary.close_session(clean=False)
        pair.b.acceptor.close()
        pair.a.intent.enter_alone("g1")
        pair.a.primary.set_mode(Acknowledge.LOCAL)
        yield pair
    finally:
        pair.close()


def free(node: Side) -> bool:
    """Whether a guest could change something now."""
    found: list[bool] = []

    def ask() -> None:
        got = node.primary.operation.acquire(timeout=1)
        if got:
            node.primary.operation.release()
        found.append(got)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    return found[0]


@pytest.mark.parametrize("moves", [False, True], ids=["still", "moving"])
def test_a_resync_looks_for_what_is_gone_beside_the_guest(parted: Pair, moves: bool) -> None:
    """Only one that moves things all the time waits, at the end, for a walk that misses nothing."""
    node = parted.a
    walk, held = node.store.walk, []

    def watched(*arguments: Any) -> Any:
        held.append(not free(node))
        if moves and not held[-1]:
            node.primary.change((), lambda: rename(node, len(held)), lambda *_: None)
        yield from walk(*arguments)

    node.store.walk = watched
    parted.connect(SessionStart.CANDIDATES)
    node.wait(SessionUp)
    node.wait(ResyncCopied)
    assert held, "the folder was not looked through: this shows nothing"
    assert any(held) == moves
    assert held[-1] == moves


def rename(node: Side, number: int) -> Rename:
    """The guest's file gets another name."""
    old = b"disk" if number == 1 else b"disk%d" % (number - 1)
    now = time.time_ns()
    change = Rename(ROOT_ID, old, ROOT_ID, b"disk%d" % number, 0, now, now)
    node.store.apply(change)
    return change


def test_what_was_written_to_a_file_that_is_gone_is_not_looked_for(parted: Pair) -> None:
    """T4: the peer is sent again what it lacks; the session waits for the answer."""
    node = parted.a
    node.store._walked = False  # As in a process that has just begun.
    walked: list[int] = []
    walk = node.store.walk

    def watched(*arguments: Any) -> Any:
        walked.append(1)
        yield from walk(*arguments)

    node.store.walk = watched
    assert node.primary.read_again(node.store.new_id(), 0, 4096) == b""
    assert not walked


def test_a_walk_outlives_a_name_that_is_given_to_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lock of operations it may be looked at just then: `mv log log.1; mkdir log`."""
    (tmp_path / "log").write_text("x")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    store = Store(descriptor)
    os.close(descriptor)
    try:
        store.identify(ROOT_ID, b"log")
        real = syscalls.file_handle

        def handle(directory: int, name: bytes = b"") -> tuple[bytes, int]:
            found = real(directory, name)
            if name == b"log" and not (tmp_path / "log.1").exists():
                (tmp_path / "log").rename(tmp_path / "log.1")
                (tmp_path / "log").mkdir()
            return found

        monkeypatch.setattr(syscalls, "file_handle", handle)
        assert b"log" in {found.path for found in store.walk()}
        assert (tmp_path / "log.1").exists()
    finally:
        store.close()
