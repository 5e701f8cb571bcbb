"""However the demonstration ends, it leaves no process, no mount and no directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyperha.demo import janitor
from hyperha.demo.cluster import NODES
from hyperha.spawn.tree import RunPlace, place_path
from tests.acceptance.pair import free_ports
from tests.support import ROOT
from tests.support.machine import lacking


def _groups(directory: Path) -> list[Path]:
    """Control groups of the demonstration's nodes."""
    paths = [place_path(node, directory / node / "run") for node in NODES]
    return [Path(path) for path in paths if path is not None and os.path.exists(path)]


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGKILL, -9)],
    ids=["ctrl-C", "SIGTERM", "kill-9"],
)
def test_demo_ended_by_a_signal(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """In the middle of its work, with a temporary directory of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hyperha.cli.main", "demo", "--headless",
         "--ports", str(free_ports())],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    mark = ""
    try:
        assert process.stdout is not None
        line = ""
        while "is PRIM on node1" not in line:
            line = process.stdout.readline()
            assert line, "the demonstration ended early"
        (directory,) = tmp_path.iterdir()
        mark = (directory / janitor.MARK_FILE).read_text(encoding="ascii")
        assert mark
        assert len(janitor.mounts_below(str(directory))) == 2
        assert _groups(directory) or RunPlace.for_home("node1", directory / "node1" / "run").limit
        process.send_signal(number)
        assert process.wait(60) == status

        end = time.monotonic() + 30
        while (
            janitor.marked(mark)
            or janitor.mounts_below(str(directory))
            or _groups(directory)
            or directory.exists()
        ) and time.monotonic() < end:
            time.sleep(0.1)
        assert not _groups(directory)
        assert not janitor.marked(mark)
        assert not janitor.mounts_below(str(directory))
        assert not directory.exists()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close() if process.stdout else None
        if mark:
            janitor.end(janitor.marked(mark))


def test_groups_of_dying_processes_are_removed_once_they_are_gone(tmp_path: Path) -> None:
    """A cgroup cannot be removed while a killed process still leaves it: tried again."""
    place = RunPlace.for_home("node1", tmp_path / "node1" / "run")
    if place.limit:
        lacking(place.limit)
    (tmp_path / "node1" / "run").mkdir(parents=True)
    (tmp_path / janitor.MARK_FILE).write_text("mark-of-nobody", encoding="ascii")
    group = Path(place.make("1-web"))
    process = subprocess.Popen(["sleep", "1"])
    try:
        (group / "cgroup.procs").write_text(str(process.pid), encoding="ascii")
        janitor.clean(str(tmp_path), "mark-of-nobody", remove=True)
        assert not _groups(tmp_path)
        assert not tmp_path.exists()
    finally:
        process.kill()
        process.wait()
        place.close()
