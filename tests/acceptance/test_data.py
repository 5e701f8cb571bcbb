"""Folders that are not what they were, and disks that fill (C11, C18)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.demo.cluster import MODULE, NODES
from tests.acceptance.pair import Pair, PairOptions

pytestmark = pytest.mark.anyio


async def _down(pair: Pair) -> None:
    """Both nodes die at once: the copies are equal but for writes under way, and node1 ran last."""
    await asyncio.gather(*(pair.kill(node) for node in NODES))
    for node in NODES:
        if pair.mounted(node):
            await asyncio.to_thread(_command, "umount", "-l", str(pair.folder(node)))
        pair.check_folder(node)


async def _never_a_source(pair: Pair, says: str) -> None:
    """node1's folder is not its copy: it says so and waits, node2 runs and loses nothing."""
    await asyncio.gather(*(pair.start(node) for node in NODES))
    await pair.roles(30, node1="WAIT", node2="ALONE")
    side = await pair.side("node1")
    assert says in side.why.text, side.why.text
    assert side.data == "unknown"
    status, text = await pair.cli("node1", "prim", MODULE)
    assert status == 3, text
    await pair.more_orders()


async def _put_right(pair: Pair, former: Path, *, adopt: bool = False) -> None:
    """The right folder comes back, or an operator gives up what is there: then it follows."""
    await pair.act("node1", "stop")
    folder = pair.folder("node1")
    if not adopt:
        await asyncio.to_thread(_replace, former, folder)
        await pair.act("node1", "start")
    else:
        view = await pair.command("node1", "second", adopt=True)
        assert view.state != "failed", view.text
    await pair.roles(40, node2="PRIM", node1="SECOND")
    await pair.equal_and_nothing_lost()


async def test_c18_the_data_disk_is_not_mounted(protected: Pair, tmp_path: Path) -> None:
    """R12: an empty folder under the last primary's record is no empty copy of the data."""
    await _down(protected)
    folder, former = protected.folder("node1"), tmp_path / "former"
    await asyncio.to_thread(_replace, folder, former)
    folder.mkdir()
    await _never_a_source(protected, "no mark: is its file system mounted?")
    await _put_right(protected, former)


async def test_c18_the_folder_comes_from_a_backup(protected: Pair, tmp_path: Path) -> None:
    """N6: `.hyperha` travels with copies, too; its counters tell an old one."""
    await _down(protected)
    folder, backup = protected.folder("node1"), tmp_path / "backup"
    await asyncio.to_thread(_command, "cp", "-a", str(folder), str(backup))
    await asyncio.gather(*(protected.start(node) for node in NODES))
    await protected.roles(30, node1="PRIM", node2="SECOND")
    await protected.more_orders()
    await _down(protected)
    former = tmp_path / "former"
    await asyncio.to_thread(_replace, folder, former)
    await asyncio.to_thread(_command, "cp", "-a", str(backup), str(folder))
    await _never_a_source(protected, "is a copy or was restored")
    await _put_right(protected, former, adopt=True)


async def test_c18_the_folder_of_another_module(protected: Pair, tmp_path: Path) -> None:
    """R12: another module's marker, and files that look alike."""
    await _down(protected)
    folder, former = protected.folder("node1"), tmp_path / "former"
    await asyncio.to_thread(_replace, folder, former)
    await asyncio.to_thread(_command, "cp", "-a", str(former), str(folder))
    await asyncio.to_thread(_spoil, folder / ".hyperha" / "marker")
    await _never_a_source(protected, "unknown data in the folder")
    assert any("damaged mark" in line for line in protected.lines("node1"))
    await _put_right(protected, former)


@contextlib.contextmanager
def small_disk(place: Path, mib: int) -> Iterator[None]:
    """A file system of its own, of so many MiB, at a directory."""
    image = place.parent / f"{place.name}.img"
    with image.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield
    finally:
        # The nodes' processes end after this; the loop device goes with the last of them.
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, left: int) -> Path:
    """Take all room of a file system but so many bytes."""
    ballast = place / "ballast"
    room = os.statvfs(place)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - left)
        while True:
            free = os.statvfs(place)
            excess = free.f_bavail * free.f_frsize - left
            if excess < 65536:
                break
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), excess)
    return ballast


async def test_c11_the_disk_of_the_secondary_fills(pair: Pair) -> None:
    """D11: it leaves, loudly; the primary goes on alone; with room again it comes back."""
    place = pair.folder("node2").parent
    with small_disk(place, 160):
        pair.folder("node2").mkdir()
        await pair.protected()
        ballast = fill(place, 128 << 10)
        await pair.roles(60, node1="ALONE")
        line = await pair.log_has("node2", "No space left")
        assert "D1" in line
        await pair.more_orders()
        assert (await pair.side("node2")).data != "uptodate"
        ballast.unlink()
        await pair.act("node2", "start")
        await pair.roles(40, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()


async def test_c11_the_disk_of_the_primary_fills(pair: Pair) -> None:
    """D11: it is handed over once to the node with room, nothing that was acknowledged is lost, and
    it costs no recovery of the budget."""
    place = pair.folder("node1").parent
    with small_disk(place, 160):
        pair.folder("node1").mkdir()
        await pair.protected()
        ballast = fill(place, 128 << 10)
        await pair.roles(60, node1="STOP", node2="ALONE")
        await pair.more_orders()
        assert "the disk was full: handed over" in (await pair.side("node1")).why.text
        moved = [line for line in pair.lines("node1") if "the VM is moved to node2" in line]
        assert len(moved) == 1
        assert await pair.restarts_used("node1") == await pair.restarts_used("node2") == 0
        ballast.unlink()
        await pair.act("node1", "start")
        await pair.roles(60, node2="PRIM", node1="SECOND")
        await pair.equal_and_nothing_lost()


async def test_c11_the_disks_of_both_fill(pair: Pair) -> None:
    """D11: it stays where it is and is said, as the other one has no room either; with room again
    the program is started again, which costs no recovery of the budget."""
    places = {node: pair.folder(node).parent for node in NODES}
    with small_disk(places["node1"], 160), small_disk(places["node2"], 160):
        for node in NODES:
            pair.folder(node).mkdir()
        await pair.protected()
        fill(places["node2"], 48 << 20)
        await _knows_room(pair, 48 << 20)
        ballast = fill(places["node1"], 128 << 10)
        await pair.log_has("node1", "stays on this full disk: node2 has no room either", 60)
        await pair.log_has("node1", "the VM ended by itself")
        side = await pair.side("node1")
        assert (side.role, side.readiness, side.why.rule) == ("PRIM", "Transient", "D11")
        for part in ("is full since 20", "are free here", " MiB on node2", "make room on node1"):
            assert part in side.why.text, side.why.text
        status, text = await pair.cli("node1", "preflight", MODULE)
        assert status == 1, text
        assert "the disk is full since" in " ".join(text.split())
        ballast.unlink()
        await pair.more_orders()
        await pair.roles(10, node1="PRIM", node2="SECOND")
        side = await pair.side("node1")
        assert side.readiness == "Ready", side.why.text
        assert await pair.restarts_used("node1") == 0
        assert not any("handed over" in line for line in pair.lines("node1"))
        await pair.equal_and_nothing_lost()


KEEPING = PairOptions(module={"[stop]\n": '[safety_copy]\nmode = "required"\n\n[stop]\n'})


@pytest.mark.parametrize("options", [KEEPING], ids=["required"])
@pytest.mark.parametrize("left_mib", [1, 24], ids=["none", "some"])
async def test_c11_a_required_safety_copy_has_no_room(pair: Pair, left_mib: int) -> None:
    """N3: it waits and says how much is needed and free, before the first byte or in the middle;
    nothing is overwritten meanwhile that is not saved, and with room it goes on by itself."""
    place = pair.folder("node2").parent
    with small_disk(place, 240):
        pair.folder("node2").mkdir()
        await pair.protected()
        image = pair.folder("node1") / "image"
        await asyncio.to_thread(_write_image, image)
        await pair.act("node2", "stop")
        await pair.roles(15, node1="ALONE")
        await asyncio.to_thread(_write_image, image)
        ballast = fill(place, left_mib << 20)
        begun = asyncio.ensure_future(pair.command("node2", "start"))
        await pair.log_has("node2", "nothing is overwritten without a safety copy", 60)
        side = await pair.side("node2")
        assert (side.role, side.readiness, side.why.rule) == ("WAIT", "NotReady", "N3")
        assert "MiB at least, " in side.why.text
        assert "make room on node2, then it goes on" in side.why.text
        assert side.data == ("outdated" if left_mib == 1 else "inconsistent")
        status, text = await pair.cli("node2", "preflight", MODULE)
        assert status == 1
        assert "nothing is overwritten without a safety copy" in " ".join(text.split())
        assert not any("disk failed" in line for line in pair.lines("node2"))
        ballast.unlink()
        assert (await begun).state == "done"
        await pair.roles(60, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()


SLOW = PairOptions(module={"resync_rate_mib_s = 0": "resync_rate_mib_s = 4"})


async def _alone_beside_a_small_disk(pair: Pair, image_mib: int) -> None:
    """node1 runs with data that node2 never had; node2 is off, and starts the module at boot."""
    pair.folder("node2").mkdir()
    await pair.start("node1")
    await pair.act("node1", "prim")
    await pair.roles(15, node1="ALONE")
    await asyncio.to_thread(_write_image, pair.folder("node1") / "image", image_mib)


async def test_c11_a_copy_that_cannot_fit_is_refused(pair: Pair) -> None:
    """D11: before its first byte, with both figures, also in the plan; it goes on by itself when it
    fits."""
    with small_disk(pair.folder("node2").parent, 64):
        await _alone_beside_a_small_disk(pair, 96)
        await pair.start("node2")
        await pair.log_has("node2", "the copy of node1 does not fit here: it needs ", 30)
        side = await pair.side("node2")
        assert (side.role, side.readiness, side.data) == ("WAIT", "NotReady", "unknown")
        assert " MiB at least, reserved room included; there is room for " in side.why.text
        assert "make room on node2, then it goes on" in side.why.text
        assert [one.name for one in pair.folder("node2").iterdir()] == []
        _, text = await pair.cli("node2", "preflight", MODULE)
        assert "does not fit here" in " ".join(text.split())
        await pair.log_has("node1", "there is room for")
        status, text = await pair.cli("node1", "plan", MODULE)
        assert status == 0, text
        assert "the resync would be refused before its first byte" in " ".join(text.split())
        await pair.more_orders()
        (pair.folder("node1") / "image").unlink()
        await pair.roles(60, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()


@pytest.mark.parametrize("options", [SLOW], ids=["slow"])
async def test_c11_a_file_grows_past_the_room_of_the_target(pair: Pair) -> None:
    """D11: what could not be known before: the target leaves, loudly; nothing is lost."""
    with small_disk(pair.folder("node2").parent, 64):
        await _alone_beside_a_small_disk(pair, 24)
        await pair.start("node2")
        await pair.log_has("node1", "resync to node2 begins", 30)
        await asyncio.to_thread(_write_image, pair.folder("node1") / "more", 64)
        await pair.roles(60, node1="ALONE", node2="STOP")
        side = await pair.side("node2")
        assert "the disk is full" in side.why.text
        assert side.data == "inconsistent"
        await pair.more_orders()
        # Now it is known before the first byte.
        begun = asyncio.ensure_future(pair.command("node2", "start"))
        await pair.log_has("node2", "the copy of node1 does not fit here", 30)
        await pair.act("node2", "stop")
        assert (await begun).state == "failed"
        for node in NODES:
            (pair.folder(node) / "more").unlink()
        await pair.act("node2", "start")
        await pair.roles(60, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()


def _write_image(path: Path, mib: int = 64) -> None:
    """So much that was not there before, on the disk."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())


async def _knows_room(pair: Pair, most: int) -> None:
    """Wait until node1 has heard how much room node2 has: statfs shows the smaller one (D11)."""

    async def heard() -> bool:
        room = await asyncio.to_thread(os.statvfs, pair.folder("node1"))
        return room.f_bavail * room.f_frsize <= most

    await pair.eventually(heard, 10, "the room of node2 to be known on node1")


def _replace(former: Path, folder: Path) -> None:
    """Move a folder to a place, instead of what is there."""
    if folder.exists():
        shutil.rmtree(folder)
    former.rename(folder)


def _spoil(marker: Path) -> None:
    marker.write_bytes(marker.read_bytes()[::-1])


def _command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
