"""A secondary whose disk fills: all that it acknowledged is written, then it leaves (D11)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core.events import DiskFilling, LocalDiskFailed, SessionLost
from hyperha.replication.operations import ROOT_ID
from hyperha.replication.reserve import NAME, Reserve
from hyperha.replication.store import Store
from tests.support.engine_pair import Guest, Pair, pair_at, wait_for

pytestmark = pytest.mark.root


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory whose `b` is a file system of 96 MiB."""
    image, place = tmp_path / "image", tmp_path / "base"
    (place / "b").mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place / "b")], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place / "b")], check=True)


@pytest.fixture
def pair(small: Path) -> Iterator[Pair]:
    with pair_at(small) as made:
        made.in_sync()
        yield made


def test_what_was_acknowledged_fits_and_nothing_more_is(pair: Pair) -> None:
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    block = os.urandom(1 << 18)
    primary = pair.a.primary
    begun = 0
    while not pair.b.has(DiskFilling) and begun < 96 << 20:
        guest.write(file, begun, block)
        begun += len(block)
        wait_for(lambda: primary.parked_count() < 8 or pair.b.has(DiskFilling))
    pair.b.wait(DiskFilling)
    acknowledged = guest.answers - 1
    assert pair.b.acceptor.close() == ""
    assert not pair.b.has(LocalDiskFailed)
    pair.a.wait(SessionLost)
    mine = (pair.a.folder / "f").read_bytes()
    theirs = (pair.b.folder / "f").read_bytes()
    assert acknowledged > 100
    assert len(theirs) >= acknowledged * len(block)
    assert theirs == mine[: len(theirs)]


def test_it_is_set_aside_again_when_there_is_room(small: Path) -> None:
    descriptor = os.open(small / "b", os.O_RDONLY)
    store = Store(descriptor)
    os.close(descriptor)
    try:
        reserve = Reserve(store, 64 << 20)
        assert 8 << 20 <= reserve.size <= 12 << 20, "a small disk spares an eighth"
        path = small / "b" / ".hyperha" / NAME
        assert path.stat().st_blocks * 512 >= reserve.size
        assert reserve.release()
        assert not reserve.release()
        assert path.stat().st_blocks == 0
        reserve.close()
        again = Reserve(store, 4 << 20)
        assert again.size == 4 << 20
        again.close()
        third = Reserve(store, 4 << 20)
        assert third.size == 4 << 20
        third.close()
    finally:
        store.close()
