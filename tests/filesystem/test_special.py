"""Cases that random sequences meet too seldom: many entries, several processes, limits, locks.

HYPERHA_ENTRIES is how many entries the large directory gets (10000; figures are printed).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core import actions
from hyperha.core.events import EngineDone
from hyperha.replication import syscalls
from tests.filesystem.copies import difference, snapshot
from tests.filesystem.pairing import Trio, backing
from tests.support import ROOT

pytestmark = [pytest.mark.root, pytest.mark.fuse]
ENTRIES = int(os.environ.get("HYPERHA_ENTRIES", "10000"))
CREATE = os.O_RDWR | os.O_CREAT
_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    made = Trio(tmp_path_factory.mktemp("special"))
    try:
        yield made
    finally:
        made.close()


def barrier(trio: Trio) -> None:
    """A slow disk may take its time for thousands of new inodes."""
    operation = trio.pair.a.order(actions.Barrier)
    limit_s = 100 + ENTRIES / 200
    assert trio.pair.a.wait(EngineDone, lambda one: one.operation == operation, limit_s).ok


def settled(trio: Trio) -> None:
    """Both nodes' copies are equal after a barrier."""
    barrier(trio)
    first, second = (snapshot(backing(node)) for node in (trio.pair.a, trio.pair.b))
    assert not difference(first, second, said="primary, secondary", nodes=True)


def on_the_peer(trio: Trio, name: str) -> Path:
    """A name in the secondary's plain folder, below its mount."""
    return Path(f"/proc/self/fd/{backing(trio.pair.b)}") / name


def test_a_changed_program_runs_with_the_rights_of_who_runs_it(trio: Trio) -> None:
    """A write takes set-id bits away, also from what the kernel remembers of the file's mode."""
    place = trio.mounted / "programs"
    place.mkdir()
    program = place / "program"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o6777)

    def as_a_stranger(*command: str) -> str:
        # From within: the folders above are for root only.
        stranger = ("setpriv", "--reuid=1001", "--regid=2001", "--clear-groups", *command)
        done = subprocess.run(stranger, cwd=place, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()

    assert as_a_stranger("./program", "-u") == "0", "the mount keeps set-id bits, else no test"
    below = place / "below"
    below.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "below", below), check=True)
    try:
        as_a_stranger("sh", "-c", "printf x >> program")
        assert as_a_stranger("./program", "-u") == "1001"
        assert below.is_mount(), "nothing else is forgotten for that"
    finally:
        subprocess.run(("umount", below), check=True)


def test_reading_a_directory_that_changes(trio: Trio) -> None:
    """What is there all the time is listed once, whatever else comes and goes."""
    place = trio.mounted / "changing"
    place.mkdir()
    fixed = {f"fixed-{number}" for number in range(300)}
    for name in fixed:
        (place / name).touch()
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (place / f"passing-{number}").touch()
            if number > 20:
                (place / f"passing-{number - 20}").rename(place / f"renamed-{number}")
                (place / f"renamed-{number}").unlink()

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        for _ in range(8):
            names = os.listdir(place)
            assert len(names) == len(set(names))
            assert fixed <= set(names)
    finally:
        stop.set()
        worker.join()
    settled(trio)


_APPEND = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(400):
    os.write(fd, b"%s %05d %s\\n" % (sys.argv[2].encode(), number, b"." * (number % 90)))
"""


def test_two_appending_processes(trio: Trio) -> None:
    """O_APPEND: no record lies over another one, each writer's are in order."""
    path = trio.mounted / "appended"
    path.touch()
    writers = [
        subprocess.Popen([sys.executable, "-c", _APPEND, str(path), name], cwd=ROOT)
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.wait(60) == 0
    lines = path.read_text().splitlines()
    for name in ("one", "two"):
        own = [line.split() for line in lines if line.startswith(name)]
        assert [int(words[1]) for words in own] == list(range(400))
    assert len(lines) == 800
    settled(trio)


def test_an_open_file_without_a_name(trio: Trio) -> None:
    """It stays readable and writable while it is open; the peer has it no more (Z7)."""
    path = trio.mounted / "nameless"
    fd = os.open(path, CREATE)
    try:
        os.write(fd, b"before")
        path.unlink()
        trio.pair.a.do(actions.Barrier)
        assert not on_the_peer(trio, "nameless").exists()
        os.pwrite(fd, b"after", 10_000)
        assert os.pread(fd, 20_000, 0) == b"before" + bytes(9_994) + b"after"
        assert os.fstat(fd).st_nlink == 0
        os.ftruncate(fd, 3)
        assert os.pread(fd, 10, 0) == b"bef"
    finally:
        os.close(fd)
    settled(trio)


def test_a_file_that_gets_its_first_name(trio: Trio) -> None:
    """O_TMPFILE and linkat(2): nothing of it on the peer before, all of it afterwards (Z7)."""
    fd = os.open(trio.mounted, os.O_TMPFILE | os.O_RDWR, 0o640)
    path = trio.mounted / "whole"
    data = os.urandom(3 << 20)
    try:
        os.pwrite(fd, data, 2 << 20)
        os.fsync(fd)
        barrier(trio)
        before = set(os.listdir(on_the_peer(trio, ".")))
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
        os.pwrite(fd, b"afterwards", 7)
    finally:
        os.close(fd)
    settled(trio)
    assert set(os.listdir(on_the_peer(trio, "."))) == before | {"whole"}
    found = on_the_peer(trio, "whole").read_bytes()
    assert found[2 << 20 :] == data
    assert found[7:17] == b"afterwards"
    fd = os.open(trio.mounted, os.O_TMPFILE | os.O_RDWR, 0o640)
    try:
        # More than is sent at once: the caller has to copy it.
        syscalls.allocate(fd, 0, 0, 65 << 20)
        with pytest.raises(OSError, match="not supported"):
            os.link(f"/proc/self/fd/{fd}", path.with_name("big"), src_dir_fd=fd)
    finally:
        os.close(fd)
    settled(trio)


def test_a_file_gets_its_first_name_with_its_rights_and_its_room(trio: Trio) -> None:
    """As installers do it. Its data is written again for the peer, which takes capabilities."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    path = trio.mounted / "installed"
    fd = os.open(trio.mounted, os.O_TMPFILE | os.O_RDWR, 0o755)
    try:
        os.write(fd, b"x" * 5000)
        syscalls.allocate(fd, syscalls.FALLOC_KEEP_SIZE, 0, 1 << 20)
        os.fchmod(fd, 0o6755)
        os.setxattr(fd, "security.capability", capability)
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)
    settled(trio)
    for one in (path, on_the_peer(trio, "installed")):
        assert os.getxattr(one, "security.capability") == capability
        assert stat.S_IMODE(one.stat().st_mode) == 0o6755
        assert one.stat().st_blocks * 512 >= 1 << 20


def test_a_shared_mapping_reaches_the_peer(trio: Trio) -> None:
    """msync(2) is enough: nothing is closed before the peer is looked at."""
    path = trio.mounted / "mapped"
    path.write_bytes(bytes(20_000))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 20_000) as mapping:
        mapping[9_000:9_005] = b"words"
        mapping.flush()
        trio.pair.a.do(actions.Barrier)
        assert on_the_peer(trio, "mapped").read_bytes()[8_999:9_006] == b"\0words\0"
    settled(trio)


def _flags(fd: int, wanted: int | None = None) -> int:
    if wanted is not None:
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("l", wanted))
    (found,) = struct.unpack("l", fcntl.ioctl(fd, _GET_FLAGS, bytes(8)))
    return int(found)


def test_an_immutable_file(trio: Trio) -> None:
    """Set below the mount (FUSE has no such flags): every change is refused, nothing breaks."""
    path = trio.mounted / "fixed"
    path.write_bytes(b"as it is")
    fd = os.open("fixed", os.O_RDONLY, dir_fd=backing(trio.pair.a))
    former = _flags(fd)
    _flags(fd, former | _IMMUTABLE)
    try:
        refused = {errno.EPERM, errno.EACCES}
        for change in (
            lambda: path.write_bytes(b"other"),
            lambda: path.unlink(),
            lambda: path.rename(path.with_name("moved")),
            lambda: path.chmod(0o600),
            lambda: os.truncate(path, 1),
            lambda: os.link(path, path.with_name("again")),
            lambda: os.utime(path, ns=(1, 1)),
            lambda: os.setxattr(path, "user.a", b"b"),
        ):
            with pytest.raises(OSError, match=r"not permitted|denied") as raised:
                change()
            assert raised.value.errno in refused
        assert path.read_bytes() == b"as it is"
    finally:
        _flags(fd, former)
        os.close(fd)
    path.write_bytes(b"free again")
    settled(trio)


def test_what_fuse_or_hyperha_does_not_offer(trio: Trio) -> None:
    """One clear error each, and nothing has changed."""
    path = trio.mounted / "plain"
    path.write_bytes(b"x" * 20_000)
    fd = os.open(path, os.O_RDWR)
    directory = os.open(trio.mounted, os.O_RDONLY)
    try:
        for mode in (0x08, 0x20):  # Collapse and insert.
            with pytest.raises(OSError, match="not supported"):
                syscalls.allocate(fd, mode, 4096, 4096)
        with pytest.raises(OSError, match="Invalid"):
            syscalls.rename(directory, b"plain", directory, b"other", 4)  # Whiteout.
        with pytest.raises(OSError, match="Inappropriate"):
            _flags(fd)
    finally:
        os.close(fd)
        os.close(directory)
    assert path.read_bytes() == b"x" * 20_000
    settled(trio)


def test_times(trio: Trio) -> None:
    """The time of last access is each node's own; that of the last change is the primary's (Z9)."""
    path = trio.mounted / "times"
    path.write_bytes(b"x")
    os.utime(path, ns=(1_000_000_007, 2_000_000_009))
    before = path.stat()
    assert (before.st_atime_ns, before.st_mtime_ns) == (1_000_000_007, 2_000_000_009)
    trio.pair.a.do(actions.Barrier)
    assert on_the_peer(trio, "times").stat().st_mtime_ns == 2_000_000_009
    path.chmod(0o600)
    after = path.stat()
    assert after.st_mtime_ns == 2_000_000_009
    assert after.st_ctime_ns > before.st_ctime_ns
    settled(trio)


def test_a_time_that_is_set_behind_a_write_through_a_mapping_stays(trio: Trio) -> None:
    """Once msync(2) has written it back; before that POSIX leaves open which of them comes last."""
    path = trio.mounted / "mapped"
    path.write_bytes(bytes(20_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[100:200] = b"x" * 100
        mapping.flush()
        os.utime(path, ns=(0, -1))
        mapping.flush()
    assert path.stat().st_mtime_ns == -1
    trio.pair.a.do(actions.Barrier)
    assert on_the_peer(trio, "mapped").stat().st_mtime_ns == -1
    settled(trio)


_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("flock is held")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 100)
except BlockingIOError:
    print("the range is held")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 200)
"""


def test_locks(trio: Trio) -> None:
    """flock(2) and fcntl(2) hold between processes; they are the kernel's and end with it."""
    path = trio.mounted / "locked"
    path.write_bytes(bytes(1000))
    ask = [sys.executable, "-c", _LOCK, str(path)]
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX, 50, 60)
        said = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
        assert said.splitlines() == ["flock is held", "the range is held"]
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == ""


def test_a_hundred_names_of_one_file(trio: Trio) -> None:
    """Hard links in several directories, renamed and removed: one inode on both nodes."""
    place = trio.mounted / "links"
    place.mkdir()
    for number in range(4):
        (place / f"d{number}").mkdir()
    first = place / "first"
    first.write_bytes(b"one")
    for number in range(100):
        os.link(first, place / f"d{number % 4}" / f"n{number}")
    for number in range(0, 100, 3):
        (place / f"d{number % 4}" / f"n{number}").rename(place / f"d{(number + 1) % 4}" / "moved")
    first.unlink()
    last = place / "d1" / "n1"
    last.write_bytes(b"all of them")
    assert stat.S_ISREG(last.stat().st_mode)
    settled(trio)


@pytest.mark.timeout(200 + ENTRIES // 50)
def test_a_large_directory(trio: Trio) -> None:
    """As many entries as asked for: made, listed, found again, half of them removed meanwhile."""
    place = trio.mounted / "large"
    place.mkdir()
    begun = time.monotonic()
    for number in range(ENTRIES):
        os.mknod(place / f"entry-{number:06}", stat.S_IFREG | 0o600)
    made = time.monotonic()
    with os.scandir(place) as listing:
        found = sorted(one.name for one in listing)
    listed = time.monotonic()
    assert found == [f"entry-{number:06}" for number in range(ENTRIES)]
    with os.scandir(place) as listing:
        seen = [one.name for number, one in enumerate(listing) if _keep(place, one.name, number)]
    assert len(seen) == ENTRIES - len(range(0, ENTRIES, 2))
    assert sorted(os.listdir(place)) == sorted(seen)
    ended = time.monotonic()
    print(
        f"{ENTRIES} entries: made in {made - begun:.1f} s, listed in {listed - made:.2f} s, "
        f"half removed in {ended - listed:.1f} s"
    )
    barrier(trio)
    there = on_the_peer(trio, "large")
    assert sorted(os.listdir(there)) == sorted(seen)


def _keep(place: Path, name: str, number: int) -> bool:
    """Every other entry is removed while the directory is being read."""
    if number % 2:
        return True
    os.unlink(place / name)
    return False
