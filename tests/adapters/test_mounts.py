"""Reading mountinfo while others mount and unmount: what is there must never seem gone (M6)."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from hyperha.replication import mounts
from hyperha.replication.mounts import parse, settled

pytestmark = pytest.mark.root


def _mount(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=False, stderr=subprocess.DEVNULL)


def test_a_mount_is_never_missed_while_others_come_and_go(tmp_path: Path) -> None:
    places = [tmp_path / f"{'x' * 60}{n}" for n in range(40)]
    ours = tmp_path / "ours"
    for place in (*places, ours):
        place.mkdir()
    stop = threading.Event()

    def churn(mine: list[Path]) -> None:
        while not stop.is_set():
            for place in mine:
                _mount(place)
            for place in mine:
                _unmount(place)

    for place in places[:20]:  # So that the file is longer than one read.
        _mount(place)
    _mount(ours)
    entry = mounts.on_top(str(ours))
    assert entry is not None
    lost: list[str] = []
    watch = mounts.MountWatch(str(ours), entry.number, lost.append)
    threads = [threading.Thread(target=churn, args=(places[20 + i :: 2],)) for i in range(2)]
    try:
        watch.start()
        for thread in threads:
            thread.start()
        for _ in range(4000):
            found = mounts.on_top(str(ours))
            assert found == entry
        stop.set()
        for thread in threads:
            thread.join()
        watch.stop()
        assert not lost
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for place in (*places, ours):
            _unmount(place)


def test_a_mount_that_is_really_gone_is_told(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    _mount(ours)
    told = threading.Event()
    entry = mounts.on_top(str(ours))
    assert entry is not None
    watch = mounts.MountWatch(str(ours), entry.number, lambda text: told.set())
    watch.start()
    try:
        _unmount(ours)
        assert told.wait(5)
    finally:
        watch.stop()
        _unmount(ours)


def test_a_torn_reading_is_no_change() -> None:
    """M6: neither a mount that seems gone for a moment, nor a cover that does."""
    readings = iter(["gone", ""])
    assert settled("", lambda: next(readings)) == ""
    readings = iter(["", "covered"])
    assert settled("covered", lambda: next(readings)) == "covered"
    assert settled("", lambda: "covered") == "covered"
    assert settled("covered", lambda: "") == ""


@pytest.mark.parametrize("name", ["plain", "Ångström", "архив", "内部", "no\u00a0break", "a\rb"])
def test_every_character_of_a_path_is_its_own(name: str) -> None:
    """Python takes some for the end of a line, or for a blank."""
    path = f"/srv/{name}"
    line = f"40 30 0:50 / {path} rw,relatime shared:1 - fuse.hyperha hyperha-vm rw\n"
    raw = (line + line.replace("40 30", "41 30")).encode().decode("latin-1")
    assert [entry.path for entry in parse(raw)] == [path, path]
