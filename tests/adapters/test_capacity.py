"""What a copy needs at least and what a folder has room for: only what is certain counts (D11)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import SessionLost, SessionUp
from hyperha.replication import capacity, syscalls
from hyperha.replication.capacity import least_bytes, room_bytes, shortage
from hyperha.replication.operations import ROOT_ID
from tests.support.engine_pair import Guest, Pair, pair_at
from tests.support.safety import file_system

pytestmark = pytest.mark.root
MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory whose `b` is a file system of 48 MiB."""
    image, place = tmp_path / "image", tmp_path / "base"
    (place / "b").mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place / "b")], check=True)
    (place / "b" / "lost+found").rmdir()
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place / "b")], check=True)


def _least(place: Path) -> int:
    root = os.open(place, os.O_RDONLY)
    try:
        return least_bytes(root)
    finally:
        os.close(root)


def test_holes_and_zeros_need_nothing_and_reserved_room_all_of_it(tmp_path: Path) -> None:
    place = tmp_path / "f"
    place.mkdir()
    assert _least(place) == 0
    (place / "data").write_bytes(os.urandom(8 * MIB))
    os.link(place / "data", place / "again")
    (place / ".hyperha").mkdir()
    (place / ".hyperha" / "log").write_bytes(os.urandom(8 * MIB))
    with (place / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (place / "link").symlink_to("/dev/zero")
    assert 6 * MIB <= _least(place) <= 8 * MIB
    with (place / "reserved").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 16 * MIB)
        syscalls.allocate(file.fileno(), syscalls.FALLOC_KEEP_SIZE, 32 * MIB, 16 * MIB)
        assert 38 * MIB <= _least(place) <= 40 * MIB
        # On its way to the disk it is both; it counts as data.
        file.seek(4 * MIB)
        file.write(os.urandom(8 * MIB))
        file.flush()
        assert 38 * MIB <= _least(place) <= 40 * MIB
        os.fsync(file.fileno())
        assert 38 * MIB <= _least(place) <= 40 * MIB
    (place / "reserved").unlink()
    with (place / "zeros").open("wb") as file:
        file.write(bytes(8 * MIB))
        os.fsync(file.fileno())
    assert _least(place) <= 8 * MIB, "blocks of zeros become holes"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_what_is_reserved_between_many_pieces_of_data_counts(tmp_path: Path, kind: str) -> None:
    """More pieces than one answer of the kernel holds; what xfs took unasked does not count."""
    pieces, size = 600, 16384
    with (
        file_system(kind, tmp_path, 512) as place,
        (place / "thick").open("wb") as thick,
        (place / "log").open("wb") as log,
    ):
        syscalls.allocate(thick.fileno(), 0, 0, 2 * pieces * size)
        for number in range(pieces):
            os.pwrite(thick.fileno(), os.urandom(size), 2 * number * size)
        for number in range(20):
            os.pwrite(log.fileno(), os.urandom(MIB), number * MIB)
        os.fsync(thick.fileno())
        os.fsync(log.fileno())
        data = pieces * size + 20 * MIB
        assert pieces * size + data * 0.85 <= _least(place) <= pieces * size + data


def test_what_takes_too_long_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_bytes(os.urandom(MIB))
    monkeypatch.setattr(capacity, "_LIMIT_S", 0.0)
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        assert least_bytes(root) <= 0
        assert room_bytes(root) is None
    finally:
        os.close(root)


def test_what_a_folder_holds_may_make_room(small: Path) -> None:
    root = os.open(small / "b", os.O_RDONLY)
    try:
        empty = room_bytes(root)
        assert empty is not None
        assert 32 * MIB < empty < 48 * MIB
        (small / "b" / "data").write_bytes(os.urandom(24 * MIB))
        filled = room_bytes(root)
        assert filled is not None
        assert abs(filled - empty) < MIB
        assert shortage(root, 30 * MIB) is None
        lacks = shortage(root, 60 * MIB)
        assert lacks is not None
        assert lacks.needed_bytes == 60 * MIB
        assert abs(lacks.free_bytes - empty) < MIB
    finally:
        os.close(root)


def test_where_nothing_can_be_reserved_it_is_not_known_what_fits(tmp_path: Path) -> None:
    """A copy of reserved room needs none there, and is not refused for it."""
    with file_system("ext3", tmp_path, 64) as place, pair_at(tmp_path, far=place) as pair:
        with (pair.a.folder / "image").open("wb") as file:
            file.write(os.urandom(4 * MIB))
            syscalls.allocate(file.fileno(), 0, 0, 96 * MIB)
        pair.a.primary.promote(Acknowledge.LOCAL)
        pair.resync(SessionStart.FULL)
        pair.check_equal()


def _grow(pair: Pair, mib: int) -> None:
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"disk")
    for number in range(mib):
        guest.write(file, number * MIB, os.urandom(MIB))


@pytest.mark.parametrize(("mib", "fits"), [(30, True), (64, False)])
def test_a_full_copy_that_cannot_fit_is_refused_with_nothing_moved(
    small: Path, mib: int, fits: bool
) -> None:
    with pair_at(small) as pair:
        pair.in_sync()
        pair.a.primary.close_session(clean=True)
        pair.b.acceptor.close()
        pair.a.primary.set_mode(Acknowledge.LOCAL)
        pair.a.events.clear()
        pair.b.events.clear()
        _grow(pair, mib)
        pair.connect(SessionStart.FULL)
        if fits:
            pair.b.wait(SessionUp)
            return
        refused = pair.b.wait(SessionLost)
        assert isinstance(refused, SessionLost)
        assert refused.refused
        assert refused.lacks is not None
        assert 48 * MIB < refused.lacks.needed_bytes <= 64 * MIB
        assert refused.lacks.free_bytes < 48 * MIB
        heard = pair.a.wait(SessionLost)
        assert isinstance(heard, SessionLost)
        assert heard.refused
        assert "there is room for" in heard.text
        assert not pair.b.has(SessionUp)
        assert [one.name for one in (small / "b").iterdir()] == [".hyperha"]


def test_a_copy_that_lacks_reserved_room_only_is_refused_with_nothing_moved(small: Path) -> None:
    """Else it would be known after all data was copied, and again at the next start."""
    with pair_at(small) as pair:
        with (pair.a.folder / "image").open("wb") as file:
            file.write(os.urandom(4 * MIB))
            syscalls.allocate(file.fileno(), 0, 0, 64 * MIB)
        pair.a.primary.promote(Acknowledge.LOCAL)
        pair.connect(SessionStart.FULL)
        refused = pair.b.wait(SessionLost)
        assert isinstance(refused, SessionLost)
        assert refused.refused
        assert refused.lacks is not None
        assert 63 * MIB <= refused.lacks.needed_bytes <= 64 * MIB
        heard = pair.a.wait(SessionLost)
        assert isinstance(heard, SessionLost)
        assert "reserved room included; there is room for" in heard.text
        assert not pair.b.has(SessionUp)
        assert [one.name for one in (small / "b").iterdir()] == [".hyperha"]


def test_a_session_of_candidates_is_never_refused_for_room(small: Path) -> None:
    """What differs may be little: only a full copy's need is known."""
    with pair_at(small) as pair:
        pair.in_sync()
        pair.a.primary.close_session(clean=True)
        pair.b.acceptor.close()
        pair.b.events.clear()
        pair.a.events.clear()
        pair.a.primary.set_mode(Acknowledge.LOCAL)
        _grow(pair, 4)
        pair.resync(SessionStart.CANDIDATES)
        pair.check_equal()
