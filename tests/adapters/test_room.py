"""The guest of a primary is refused room: told once, with figures, until there is some (D11)."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core.events import DiskFull, DiskHasRoom
from hyperha.replication import room
from hyperha.replication.fuse.local import allocate
from hyperha.replication.operations import ROOT_ID, Change, FileId, Record, RecordKind
from tests.support.engine_pair import Guest, Pair, pair_at, wait_for

pytestmark = pytest.mark.root


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """In sync; the folder of the primary lies on a file system of 64 MiB."""
    image, place = tmp_path / "image", tmp_path / "base"
    (place / "a").mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place / "a")], check=True)
    (place / "a" / "lost+found").rmdir()
    try:
        with pair_at(place) as made:
            made.in_sync()
            wait_for(lambda: made.a.primary.session.peer_room_bytes is not None)
            yield made
    finally:
        subprocess.run(["umount", "-l", str(place / "a")], check=True)


def _fill(guest: Guest) -> FileId:
    file = guest.create(ROOT_ID, b"f")
    block = os.urandom(1 << 20)
    for number in range(80):
        guest.write(file, number << 20, block)
    wait_for(lambda: guest.answers == 81)
    assert set(guest.errors) == {errno.ENOSPC}
    return file


def test_many_refusals_are_told_once_and_the_end_when_there_is_room(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_QUIET_MS", 100)
    guest = Guest(pair.a)
    file = _fill(guest)
    told = [one for one in pair.a.events if isinstance(one, DiskFull)]
    assert len(told) == 1
    assert told[0].free_bytes < 2 << 20
    assert told[0].peer_free_bytes is not None
    assert told[0].peer_free_bytes > 64 << 20
    assert told[0].text == os.strerror(errno.ENOSPC)
    pair.a.primary.room.tick()
    assert not pair.a.has(DiskHasRoom)
    pair.check_equal()
    guest.truncate(file, 0)
    wait_for(lambda: pair.a.primary.room.tick() or pair.a.has(DiskHasRoom))
    back = pair.a.wait(DiskHasRoom)
    assert isinstance(back, DiskHasRoom)
    assert back.free_bytes > 32 << 20


def test_while_it_lasts_other_figures_are_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = pair.a.primary.room
    # The other copy's file system is the machine's, on which others write.
    theirs = watch._peer_room
    monkeypatch.setattr(watch, "_peer_room", lambda: None if theirs() is None else 1 << 40)
    _fill(Guest(pair.a))
    pair.a.wait(DiskFull)
    watch.tick()
    assert not pair.a.has(DiskFull)
    pair.a.primary.close_session(clean=True)
    watch.tick()
    again = pair.a.wait(DiskFull)
    assert isinstance(again, DiskFull)
    assert again.peer_free_bytes is None


def test_who_asks_for_what_cannot_be_has_not_filled_the_disk(pair: Pair) -> None:
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")

    def execute() -> Change | None:
        held = pair.a.store.data(file)
        allocate(held.fd, 0, 0, 1 << 30)
        return None

    with pytest.raises(OSError, match="No space left"):
        guest.change([Record(RecordKind.INODE, file)], execute)
    with pytest.raises(OSError, match="No space left"):
        guest.set_xattr(file, b"user.large", b"x" * 60_000)
    assert not pair.a.has(DiskFull)


def test_a_quota_is_told_whatever_the_disk_has(pair: Pair) -> None:
    pair.a.primary.room.refused(OSError(errno.EDQUOT, "quota"), plain_write=False)
    told = pair.a.wait(DiskFull)
    assert isinstance(told, DiskFull)
    assert told.text == os.strerror(errno.EDQUOT)
    pair.a.primary.room.refused(OSError(errno.EFBIG, "large"), plain_write=True)
    assert not pair.a.has(DiskFull)
