"""Room reserved by fallocate and never written is there on the target too after a resync."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import SessionLost
from hyperha.replication import allocation, syscalls
from hyperha.replication.operations import ROOT_ID, Allocate, Change, FileId, Record, RecordKind
from hyperha.replication.store import Store
from tests.adapters.test_resync import bytes_sent, go_alone
from tests.support.engine_pair import Guest, Pair, pair_at, wait_for
from tests.support.safety import file_system, fill

pytestmark = pytest.mark.root
MIB = 1 << 20
KINDS = ("ext4", "xfs", "btrfs")


@pytest.fixture(params=KINDS)
def disk_pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Two copies on a file system of that kind."""
    with file_system(request.param, tmp_path, 512) as place, pair_at(place) as both:
        yield both


def allocate(path: Path, mode: int, offset: int, length: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        syscalls.allocate(descriptor, mode, offset, length)
    finally:
        os.close(descriptor)


def room(path: Path) -> list[tuple[int, int, bool]]:
    """The file's extents as one list of (first byte, byte behind, never written)."""
    found: list[tuple[int, int, bool]] = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        position, end = 0, 1 << 40
        while position < end:
            some, position = syscalls.extents(descriptor, position, end)
            for one in some:
                behind = one.offset + one.length
                if found and found[-1][1:] == (one.offset, one.unwritten):
                    found[-1] = (found[-1][0], behind, one.unwritten)
                else:
                    found.append((one.offset, behind, one.unwritten))
    finally:
        os.close(descriptor)
    return found


def check_room(pair: Pair, name: str, unwritten: int) -> None:
    """Both copies keep the same room, of which so many bytes were never written."""
    here, there = room(pair.a.folder / name), room(pair.b.folder / name)
    assert sum(end - start for start, end, new in here if new) == unwritten
    assert [one for one in here if one[2]] == [one for one in there if one[2]]


def test_a_file_that_is_closed_for_another_one_is_still_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest opens files meanwhile, and the store keeps only so many of them open."""
    folder = os.open(tmp_path, os.O_RDONLY)
    store = Store(folder)
    os.close(folder)
    try:
        files = []
        for number in range(300):
            (tmp_path / f"f{number}").touch()
            files.append(store.identify(ROOT_ID, b"f%d" % number))
        allocate(tmp_path / "f0", syscalls.FALLOC_KEEP_SIZE, 0, MIB)
        look = syscalls.file_system_type

        def look_late(descriptor: int) -> int:
            for file in files[1:]:
                store.data(file)
            return look(descriptor)

        monkeypatch.setattr(syscalls, "file_system_type", look_late)
        ranges, _ = allocation.kept(store, files[0], 0, MIB)
        assert ranges == [(0, MIB)]
    finally:
        store.close()


def test_a_thick_image_keeps_its_room(disk_pair: Pair) -> None:
    pair, image = disk_pair, disk_pair.a.folder / "image"
    allocate(image, 0, 0, 24 * MIB)
    allocate(image, syscalls.FALLOC_KEEP_SIZE, 24 * MIB, 8 * MIB)
    with open(image, "r+b") as file:
        file.seek(5 * MIB)
        file.write(os.urandom(2 * MIB))
    # What the target has there is data that the source never had.
    (pair.b.folder / "image").write_bytes(os.urandom(9 * MIB))
    (pair.a.folder / "sparse").touch()
    os.truncate(pair.a.folder / "sparse", 20 * MIB)
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    check_room(pair, "image", 30 * MIB)
    assert image.stat().st_size == (pair.b.folder / "image").stat().st_size == 24 * MIB
    assert not room(pair.b.folder / "sparse")
    # A second time there is nothing to do.
    go_alone(pair)
    pair.resync(SessionStart.FULL)
    check_room(pair, "image", 30 * MIB)
    assert bytes_sent(pair) == 0


def reserve(guest: Guest, file: FileId, mode: int, offset: int, length: int) -> None:
    """What the data path does for fallocate."""

    def execute() -> Change:
        held = guest.side.store.data(file)
        syscalls.allocate(held.fd, mode, offset, length)
        status = os.fstat(held.fd)
        return Allocate(file, mode, offset, length, status.st_size, status.st_mtime_ns)

    records = [Record(RecordKind.INODE, file)]
    if mode & syscalls.FALLOC_ZERO_RANGE:
        first, last = offset // MIB, (offset + length - 1) // MIB
        records += [Record(RecordKind.ZONE, file, zone) for zone in range(first, last + 1)]
    guest.change(records, execute)


def test_what_was_reserved_alone_is_a_candidate(disk_pair: Pair) -> None:
    pair = disk_pair
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"image")
    for zone in range(4):
        guest.write(file, zone * MIB, os.urandom(MIB))
    wait_for(lambda: guest.answers == 5)
    pair.barrier(pair.a)
    go_alone(pair)
    reserve(guest, file, 0, 4 * MIB, 12 * MIB)
    reserve(guest, file, syscalls.FALLOC_ZERO_RANGE, MIB, MIB)
    assert not guest.errors
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    check_room(pair, "image", 12 * MIB + (0 if _zeroes_are_written(pair) else MIB))
    assert bytes_sent(pair) <= MIB


def _zeroes_are_written(pair: Pair) -> bool:
    """A file system may also write zeros where it was told to have some."""
    return (MIB, 2 * MIB, True) not in room(pair.a.folder / "image")


def grow(path: Path, mib: int) -> int:
    """Append to a file and leave it open: xfs takes room past its end meanwhile."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for number in range(mib):
        os.pwrite(descriptor, os.urandom(MIB), number * MIB)
    os.fsync(descriptor)
    return descriptor


def never_written(path: Path) -> list[tuple[int, int]]:
    return [(start, end) for start, end, new in room(path) if new]


def test_what_xfs_takes_of_its_own_accord_is_not_reserved_on_the_target(tmp_path: Path) -> None:
    """It takes up to a file's size again while that grows; the target would keep it for ever."""
    with file_system("xfs", tmp_path, 512) as place, pair_at(place) as pair:
        near, far = pair.a.folder, pair.b.folder
        log, image = grow(near / "log", 24), near / "image"
        skipped, thick = grow(near / "skipped", 24), grow(near / "thick", 1)
        try:
            # What was taken past the end is within the file from here on.
            os.pwrite(skipped, os.urandom(4096), 30 * MIB)
            os.fsync(skipped)
            syscalls.allocate(thick, syscalls.FALLOC_KEEP_SIZE, 8 * MIB, 4 * MIB)
            allocate(image, 0, 0, 8 * MIB)
            allocate(image, syscalls.FALLOC_KEEP_SIZE, 8 * MIB, 8 * MIB)
            assert never_written(near / "log")[-1][1] > 28 * MIB, "nothing was taken: no test"
            assert never_written(near / "skipped")[0][0] == 24 * MIB
            pair.a.primary.promote(Acknowledge.LOCAL)
            pair.resync(SessionStart.FULL)
            pair.check_equal()
            assert never_written(far / "log") == never_written(far / "skipped") == []
            assert (far / "log").stat().st_blocks * 512 == 24 * MIB
            check_room(pair, "image", 16 * MIB)
            assert (8 * MIB, 12 * MIB) in never_written(far / "thick")
        finally:
            for one in (log, skipped, thick):
                os.close(one)


def test_a_target_without_that_room_is_not_taken_for_an_equal_copy(tmp_path: Path) -> None:
    """Of a btrfs it is not known before how much it can hold."""
    near = tmp_path / "near"
    near.mkdir()
    with file_system("btrfs", tmp_path, 160) as small, pair_at(near, far=small) as pair:
        allocate(pair.a.folder / "image", 0, 0, 40 * MIB)
        fill(small, 20 * MIB)
        pair.a.primary.promote(Acknowledge.LOCAL)
        pair.connect(SessionStart.FULL)
        lost = pair.a.wait(SessionLost)
        assert isinstance(lost, SessionLost)
        assert "No space left" in lost.text


def test_where_it_cannot_be_told_nothing_is_copied(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(descriptor: int, start: int, end: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(syscalls, "extents", cannot)
    allocate(pair.a.folder / "image", 0, 0, 4 * MIB)
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    assert (pair.b.folder / "image").stat().st_blocks == 0


def test_many_extents_are_all_told(tmp_path: Path) -> None:
    """More than one answer of the kernel holds, each next to a hole."""
    with file_system("ext4", tmp_path, 128) as place:
        path = place / "f"
        for number in range(700):
            allocate(path, syscalls.FALLOC_KEEP_SIZE, number * 16384, 4096)
        found = room(path)
        assert [(start, end) for start, end, _ in found] == [
            (number * 16384, number * 16384 + 4096) for number in range(700)
        ]
        assert all(new for _, _, new in found)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            assert syscalls.extents(descriptor, 16384 + 1000, 16384 + 2000)[0] == [
                (16384 + 1000, 1000, True)
            ]
        finally:
            os.close(descriptor)
