"""Whoever holds a file under the folder is found and named (M6)."""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core.actions import Attach
from hyperha.core.events import EngineDone
from hyperha.domain import Marker
from hyperha.replication import admission
from hyperha.replication import engine as engine_module
from hyperha.replication.control import EngineConfig
from hyperha.replication.engine import Engine
from hyperha.replication.occupancy import Holder, holders, links_from_outside, slipped_in
from tests.support.machine import lacking


@contextlib.contextmanager
def child(code: str, folder: Path) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", code + "\nprint('up', flush=True); input()", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("code", "what", "name"),
    [
        ("import sys; f = open(sys.argv[1] + '/file')", "open file", "/file"),
        ("import sys, os; os.chdir(sys.argv[1])", "working directory", ""),
        ("import sys, os; os.chdir(sys.argv[1] + '/sub')", "working directory", "/sub"),
        (
            "import sys, mmap; f = open(sys.argv[1] + '/file', 'rb');"
            "m = mmap.mmap(f.fileno(), 0, prot=1); f.close()",
            "mapping",
            "/file",
        ),
        (
            "import sys, os; f = open(sys.argv[1] + '/file'); os.unlink(sys.argv[1] + '/file')",
            "open file",
            "/file (deleted)",
        ),
    ],
)
def test_processes(tmp_path: Path, code: str, what: str, name: str) -> None:
    folder, near = tmp_path / "folder", tmp_path / "folder-near"
    folder.mkdir()
    near.mkdir()
    (folder / "file").write_bytes(bytes(4096))
    (folder / "sub").mkdir()
    assert holders(str(folder)) == []
    with child(code, folder) as pid:
        found = holders(str(folder))
        assert [(h.pid, h.what, h.path) for h in found if h.what == what] == [
            (pid, what, str(folder) + name)
        ]
        assert f"process {pid}" in str(found[0])
        assert holders(str(near)) == []
    assert holders(str(folder)) == []


def test_our_own_folder_descriptor_is_left_out(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert [h.what for h in holders(str(tmp_path))] == ["open file"]
        assert holders(str(tmp_path), ours=frozenset((fd,))) == []
    finally:
        os.close(fd)


def test_our_own_mapping_counts(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    with open(tmp_path / "file", "r+b") as file, mmap.mmap(file.fileno(), 4096):
        assert {h.what for h in holders(str(tmp_path))} == {"open file", "mapping"}


@pytest.mark.root
def test_loop_devices_and_mounts(tmp_path: Path) -> None:
    if shutil.which("losetup") is None:
        pytest.fail("losetup is needed")
    with open(tmp_path / "image", "wb") as file:
        file.truncate(1 << 20)
    device = subprocess.run(
        ["losetup", "--show", "-f", str(tmp_path / "image")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    try:
        expected = Holder(0, device, "loop device", str(tmp_path / "image"))
        assert holders(str(tmp_path)) == [expected]
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    (tmp_path / "in").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path / "in")], check=True)
    try:
        assert [h.what for h in holders(str(tmp_path))] == ["mount inside"]
    finally:
        subprocess.run(["umount", str(tmp_path / "in")], check=True)


def test_links_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("x")
    os.link(folder / "a", folder / "b")
    fd = os.open(folder, os.O_RDONLY)
    try:
        assert links_from_outside(fd) == []
        (folder / "sub").mkdir()
        os.symlink("sub", folder / "link")
        os.link(folder / "link", folder / "sub" / "link", follow_symlinks=False)
        assert links_from_outside(fd) == []
        os.link(folder / "a", tmp_path / "outside")
        (found,) = links_from_outside(fd)
        assert found.endswith(" has 3 names, the folder shows 2 of them")
        assert found[0] in "ab"
    finally:
        os.close(fd)


@pytest.mark.root
def test_links_from_outside_into_mounts_inside(tmp_path: Path) -> None:
    """Two file systems in the folder use one inode number; each file has a name outside."""
    folder = tmp_path / "folder"
    folder.mkdir()
    numbers: set[int] = set()
    with contextlib.ExitStack() as undo:
        for name in ("one", "two"):
            whole, inside = tmp_path / name, folder / name
            whole.mkdir()
            inside.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "none", str(whole)], check=True)
            undo.callback(subprocess.run, ["umount", str(whole)], check=True)
            (whole / "shown").mkdir()
            (whole / "shown" / "file").write_text("x")
            os.link(whole / "shown" / "file", whole / "outside")
            numbers.add((whole / "outside").stat().st_ino)
            subprocess.run(["mount", "--bind", str(whole / "shown"), str(inside)], check=True)
            undo.callback(subprocess.run, ["umount", str(inside)], check=True)
        if len(numbers) > 1:
            lacking("a kernel that numbers the inodes of each tmpfs by themselves")
        descriptor = os.open(folder, os.O_RDONLY)
        undo.callback(os.close, descriptor)
        found = sorted(links_from_outside(descriptor))
    assert found == [
        f"{name}/file has 2 names, the folder shows 1 of them" for name in ("one", "two")
    ]


@pytest.mark.root
def test_who_came_between_the_look_and_the_cover_is_found(tmp_path: Path) -> None:
    """M6: the plain file that was opened then is written to unseen; one in the mount is not."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"plain")
    plain = os.open(folder, os.O_RDONLY)
    opened = "import sys; f = open(sys.argv[1] + '/file', 'r+')"
    try:
        with child(opened, folder) as before:
            subprocess.run(["mount", "-t", "tmpfs", "cover", str(folder)], check=True)
            try:
                (folder / "file").write_bytes(b"covered")
                with child(opened, folder) as after:
                    found = slipped_in(str(folder), plain)
                    assert [holder.pid for holder in found] == [before]
                    assert after != before
            finally:
                subprocess.run(["umount", str(folder)], check=True)
    finally:
        os.close(plain)


@pytest.mark.root
@pytest.mark.fuse
def test_a_folder_taken_hold_of_while_it_is_covered_is_refused(tmp_path, monkeypatch) -> None:
    """M6: as `test_who_came_between...`, in the process that covers; the folder is plain again."""
    folder, run = tmp_path / "folder", tmp_path / "run"
    folder.mkdir()
    run.mkdir()
    (folder / "file").write_bytes(b"plain")
    holding: list[subprocess.Popen[bytes]] = []

    def admit_and_be_late(path: str, descriptor: int):
        found = admission.admit(path, descriptor)
        with (folder / "file").open("rb+") as file:
            holding.append(subprocess.Popen(["sleep", "60"], stdin=file))
        return found

    monkeypatch.setattr(engine_module, "admit", admit_and_be_late)
    config = EngineConfig("c", "VM1", 1, "node1", "node2", str(folder), str(run), ())
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()
    engine = Engine(config, lambda message, _: answers.put(message), lambda *_: None)
    marker = Marker("r1", "node1", "", 1)
    try:
        engine.perform(Attach(1, accept=(), write=marker, adopt=True, fresh=True))
        done = answers.get(timeout=10)
        while not isinstance(done, EngineDone):
            done = answers.get(timeout=10)
        assert not done.ok
        assert f"process {holding[0].pid} (sleep): open file" in done.text
        assert not os.path.ismount(folder)
    finally:
        for one in holding:
            one.kill()
            one.wait()
