"""What the kernel goes on believing when an operation that was done ends with an error (M7)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyperha.replication.fuse.nodes import Doubt, Node
from hyperha.replication.fuse.notify import Notifier
from hyperha.replication.operations import NO_ID
from tests.support.engine_pair import wait_for
from tests.support.fuse_local import Served

pytestmark = [pytest.mark.root, pytest.mark.fuse]

ATTEMPT = """
import ctypes, os, sys
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def exchange(one, two):
    if libc.renameat2(-100, one, -100, two, 2):
        raise OSError(ctypes.get_errno(), "exchange")
def punch(name, length):
    fd, size = os.open(name, os.O_RDWR), ctypes.c_int64(length)
    if libc.fallocate64(fd, 3, ctypes.c_int64(0), size):
        raise OSError(ctypes.get_errno(), "punch")
def write(name, text):
    # As programs do that could not put a new file in the place of the old one.
    fd = os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.write(fd, text)
    os.fsync(fd)
    os.close(fd)
try:
    exec(sys.argv[2])
    print("no error", flush=True)
except OSError as problem:
    number = problem.errno
    exec(sys.argv[3])
    print(number, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture
def served(tmp_path: Path, folder: Path) -> Iterator[Served]:
    (tmp_path / "run").mkdir()
    with Served(folder, tmp_path / "run") as session:
        yield session


@contextmanager
def ended(served: Served, operation: str, then: str = "pass") -> Iterator[None]:
    """A process whose operation is done and ends with EIO, and what it does at once afterwards."""
    served.do("hold")
    process = subprocess.Popen(
        [sys.executable, "-c", ATTEMPT, str(served.folder), operation, then],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: served.do("counters")["parked"] == 1)
        served.do("release", errno.EIO)
        said, _ = process.communicate(timeout=10)
        assert said == f"{errno.EIO}\n"
        yield
    finally:
        process.kill()
        process.communicate()


def plain(served: Served) -> dict[str, str]:
    """What is in the folder when nothing is mounted any more."""
    served.__exit__()
    names = [name for name in os.listdir(served.folder) if name != ".hyperha"]
    return {name: (served.folder / name).read_text() for name in sorted(names)}


@pytest.mark.parametrize("attempt", range(8))
@pytest.mark.parametrize(
    ("operation", "name", "others"),
    [
        ("os.unlink('old')", "old", {"other": "other"}),
        ("os.rename('other', 'old')", "old", {}),
        ("os.rename('other', 'old')", "other", {"old": "other"}),
        ("exchange(b'other', b'old')", "other", {"old": "other"}),
        ("exchange(b'other', b'old')", "old", {"other": "old"}),
    ],
)
def test_what_is_written_under_a_name_is_there_under_it(
    served: Served, folder: Path, operation: str, name: str, others: dict[str, str], attempt: int
) -> None:
    """Not in an inode that the name led to before; nobody would ever see that again."""
    (folder / "old").write_text("old")
    (folder / "other").write_text("other")
    with ended(served, operation, f"write({name!r}, b'precious')"):
        assert (folder / name).read_text() == "precious"
        assert sorted(os.listdir(folder)) == sorted({name, *others})
    assert plain(served) == {name: "precious", **others}


@pytest.mark.parametrize(
    ("operation", "gone", "there"),
    [
        ("os.unlink('old')", ["old"], ["other"]),
        ("os.rename('old', 'new')", ["old"], ["new", "other"]),
        ("os.mkdir('new')", [], ["new", "old", "other"]),
        ("os.link('old', 'new')", [], ["new", "old", "other"]),
    ],
)
def test_names_are_looked_up_again(
    served: Served, folder: Path, operation: str, gone: list[str], there: list[str]
) -> None:
    (folder / "old").write_text("old")
    (folder / "other").write_text("other")
    before = folder.stat().st_mtime_ns
    with ended(served, operation):
        wait_for(lambda: not any((folder / name).exists() for name in gone))
        assert sorted(os.listdir(folder)) == there
        assert folder.stat().st_mtime_ns > before
        if "link(" in operation and there == ["new", "old", "other"]:
            assert (folder / "old").stat().st_nlink == 2


def test_a_removed_file_frees_its_room(served: Served, folder: Path) -> None:
    """The kernel lets go of the inode, so that nothing here holds it any more."""
    (folder / "old").write_bytes(bytes(1 << 20))
    nodes = served.do("nodes")
    with ended(served, "os.unlink('old')"):
        wait_for(lambda: served.do("nodes") == nodes - 1)


@pytest.mark.parametrize(
    ("operation", "seen", "then"),
    [
        ("os.chmod('old', 0o600)", lambda old: stat.S_IMODE(old.stat().st_mode), 0o600),
        ("os.truncate('old', 10)", lambda old: old.stat().st_size, 10),
        ("os.open('old', os.O_TRUNC | os.O_WRONLY)", lambda old: old.read_bytes(), b""),
        ("os.setxattr('old', 'system.posix_acl_access', ACL)", lambda old: access(old), 0o660),
    ],
)
def test_attributes_are_looked_at_again(
    served: Served, folder: Path, operation: str, seen: Callable[[Path], object], then: object
) -> None:
    old = folder / "old"
    old.write_bytes(bytes(100))
    old.chmod(0o644)
    seen(old)
    entries = ((1, 6, -1), (2, 6, 1), (4, 4, -1), (16, 6, -1), (32, 0, -1))
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    with ended(served, operation.replace("ACL", repr(value))):
        wait_for(lambda: seen(old) == then)


def access(path: Path) -> int:
    """The mode, of which an access list is a part."""
    return stat.S_IMODE(path.stat().st_mode)


def test_pages_of_a_range_that_was_taken_out_are_read_again(served: Served, folder: Path) -> None:
    old = folder / "old"
    old.write_bytes(b"x" * 8192)
    assert old.read_bytes() == b"x" * 8192
    with ended(served, "punch('old', 4096)"):
        wait_for(lambda: old.read_bytes() == bytes(4096) + b"x" * 4096)


def test_the_thread_that_answers_never_waits_for_the_kernel(tmp_path: Path) -> None:
    """M10: until the answer the directory is locked, so that to tell the kernel would wait."""
    reading, writing = os.pipe()
    full = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, bytes(full))
    notifier = Notifier(writing)
    notifier.start()
    top, file = (Node(number, NO_ID, b"", number == 1) for number in (1, 2))
    doubt = Doubt([top], ((top, b"name"),), [file])
    notifier.settle(doubt)
    assert file.doubt is doubt
    assert not notifier.drain(100)
    assert not doubt.settled
    os.read(reading, full)
    assert notifier.drain(5000)
    assert doubt.settled
    # What is held open for a file without a name must not stay with it.
    assert not doubt.led
    assert b"name\0" in os.read(reading, full)
    notifier.stop()
    os.close(reading)
    os.close(writing)


def test_each_process_looks_a_name_up_again_once() -> None:
    doubt = Doubt([])
    refused = [number for number in (7, 7, 8, 7, 8) if doubt.refuses(number)]
    assert refused == [7, 8]
    assert not doubt.over
    for number in range(100):
        doubt.refuses(number)
    assert not doubt.over
    doubt.settled = True
    assert doubt.over


def test_a_file_that_was_renamed_can_be_opened_in_every_way(served: Served, folder: Path) -> None:
    old, new = folder / "old", folder / "new"
    old.write_text("text")
    with open(old) as kept, ended(served, "os.rename('old', 'new')"):
        for number in range(3):
            assert new.read_text() == "text"
            assert Path(f"/proc/self/fd/{kept.fileno()}").read_text() == "text", number


def test_a_reopened_descriptor_of_a_removed_file(served: Served, folder: Path) -> None:
    """It comes by no name at all."""
    old = folder / "old"
    old.write_text("text")
    with open(old) as kept, ended(served, "os.unlink('old')"):
        assert Path(f"/proc/self/fd/{kept.fileno()}").read_text() == "text"
