"""The power supply of the rows on power cuts: what it forgets, and that it never stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.replication.mounts import beneath, mounted
from tests.support import ROOT
from tests.support.power import PoweredDisks
from tests.support.power_supply import NAME, loops

WRITER = """
import os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
while True:
    os.pwrite(file, os.urandom(65536), 0)
    os.fsync(file)
"""
MAIN = """
import sys
from pathlib import Path
from tests.support.power import PoweredDisks
place = Path(sys.argv[1])
disks = PoweredDisks(place, {"node1": place / "home"})
print(disks._supply.pid, disks.groups["node1"], flush=True)
sys.stdin.readline()
disks.cut("all", int(sys.argv[2]), ("node1",))
print("cut", flush=True)
sys.stdin.readline()
"""


def nothing_left(place: Path, limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        left = [one.path for one in beneath(str(place), mounted())]
        left += [file for _, file in loops() if (place / "images" / file).exists()]
        if not left:
            return
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def writer(group: str, path: Path) -> subprocess.Popen[bytes]:
    """A process of the node that writes and flushes without end."""
    enter = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
    return subprocess.Popen(
        ["/bin/sh", "-c", enter, group, sys.executable, "-c", WRITER, str(path)]
    )


class Client:
    """A test process that will be killed."""

    def __init__(self, place: Path, writes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MAIN, str(place), str(writes)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        pid, self.group = self.read().split()
        self.supply = int(pid)
        self.writer = writer(self.group, place / "home" / "file")

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    nothing_left(tmp_path)


def test_what_was_not_flushed_is_forgotten(place: Path) -> None:
    """C16: after a cut, a flushed file is there and one that was only written is not."""
    home = place / "home"
    disks = PoweredDisks(place, {"node1": home})
    try:
        (home / "flushed").write_text("yes")
        subprocess.run(["sync", "-f", str(home)], check=True)
        (home / "written").write_text("no")
        running = writer(disks.groups["node1"], home / "file")
        begun = time.monotonic()
        at, told = disks.cut("all", 50, ("node1",))
        print(told)
        assert at > begun
        assert running.wait(5) == -signal.SIGKILL
        assert disks.dark == {"node1"}
        assert not (home / "flushed").exists()
        disks.on("node1")
        assert (home / "flushed").read_text() == "yes"
        # The writer's flushes may have made the name durable, never the content.
        assert not (home / "written").exists() or (home / "written").read_text() == ""
    finally:
        disks.close()


def test_cuts_one_after_the_other_end_what_is_running(place: Path) -> None:
    """A cut by the clock leaves no cut behind that would come later."""
    disks = PoweredDisks(place, {"node1": place / "home"})
    try:
        for writes in (1_000_000, 20, 1, 40):
            running = writer(disks.groups["node1"], place / "home" / "file")
            while not (place / "home" / "file").exists():
                time.sleep(0.01)
            disks.cut("7", writes, ("node1",))
            assert running.wait(5) == -signal.SIGKILL
            disks.on("node1")
            (place / "home" / "file").unlink(missing_ok=True)
            subprocess.run(["sync", "-f", str(place / "home")], check=True, timeout=10)
    finally:
        disks.close()


def test_nothing_stays_behind_a_test_that_is_killed_in_the_middle_of_a_cut(place: Path) -> None:
    """The supply hears that its standard input has ended, ends the node, frees the disk."""
    client = Client(place, 1_000_000)
    client.go_on()
    time.sleep(0.5)  # Into the middle of the cut, which waits for a write that never comes.
    client.kill()
    nothing_left(place)
    assert client.writer.wait(10) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while os.path.exists(client.group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(client.group)


def test_the_next_supply_frees_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    """Only what is named after a supply that is dead."""
    other = PoweredDisks(tmp_path / "living", {"node1": tmp_path / "living" / "home"})
    try:
        client = Client(tmp_path / "dead", 30)
        client.go_on()
        assert client.read() == "cut\n"
        os.kill(client.supply, signal.SIGKILL)
        client.kill()
        client.writer.wait(10)
        assert beneath(str(tmp_path / "dead"), mounted())
        third = PoweredDisks(tmp_path / "third", {"node1": tmp_path / "third" / "home"})
        try:
            nothing_left(tmp_path / "dead", 5)
            assert not os.path.exists(client.group)
            (tmp_path / "living" / "home" / "file").write_text("on")
            subprocess.run(["sync", "-f", str(tmp_path / "living" / "home")], check=True)
        finally:
            third.close()
    finally:
        other.close()
    nothing_left(tmp_path)
    assert not [file for _, file in loops() if file.startswith(f"{NAME}-{client.supply}-")]


def test_a_supply_that_is_killed_with_a_file_system_on_it_is_swept(tmp_path: Path) -> None:
    """Loop device, file system and process of a node that has power are freed, too."""
    client = Client(tmp_path / "dead", 30)
    os.kill(client.supply, signal.SIGKILL)
    client.kill()
    assert [file for _, file in loops() if file.startswith(f"{NAME}-{client.supply}-")]
    next_one = PoweredDisks(tmp_path / "next", {"node1": tmp_path / "next" / "home"})
    try:
        nothing_left(tmp_path / "dead", 5)
        assert client.writer.wait(5) != 0
    finally:
        next_one.close()
    nothing_left(tmp_path)
