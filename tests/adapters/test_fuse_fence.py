"""Held answers, fencing, successors, layers and stale mounts (L5', M4, M5, M6, N1, T1)."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyperha.errors import RefusedError
from hyperha.replication import mounts, syscalls
from hyperha.replication.fuse import fence as fencing
from hyperha.replication.fuse import listing, local
from hyperha.replication.fuse import mount as mounting
from hyperha.replication.fuse.fence import FORCED_UNMOUNT, Fence
from hyperha.replication.fuse.layers import MountStack
from hyperha.replication.fuse.listing import Listing
from hyperha.replication.fuse.protocol import Feature
from hyperha.replication.operations import ROOT_ID, InDoubt
from hyperha.replication.store import Store
from tests.support import ROOT
from tests.support.engine_pair import wait_for
from tests.support.fuse_local import Served, compare

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture
def mirror(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "mirror")


@contextlib.contextmanager
def running(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is gone afterwards, whatever it was waiting for."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print("open", flush=True)
sys.stdin.read(0)
try:
    print("wrote", os.pwrite(fd, sys.argv[2].encode(), 0), flush=True)
    os.fsync(fd)
    print("synced", flush=True)
except OSError as problem:
    print("error", problem.errno, flush=True)
"""


def until_parked(session: Served, number: int = 1) -> None:
    deadline = time.monotonic() + 10
    while session.do("counters")["parked"] < number:
        assert time.monotonic() < deadline, "the request never arrived"


def line(process: subprocess.Popen[str], seconds: float = 10) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    assert ready, "nothing was said"
    return process.stdout.readline().strip()


def test_held_answers_hold_nobody_else(folder: Path, run: Path) -> None:
    with Served(folder, run) as session:
        (folder / "other").write_text("readable")
        (folder / "disk").write_text("")
        session.do("hold")
        with running(WRITER, folder / "disk", "data"):
            until_parked(session)
            assert (folder / "other").read_text() == "readable"
            assert (folder / "other").stat().st_size == 8
            assert os.listdir(folder)
            session.do("release")


def test_many_held_writes_leave_room_for_reads(folder: Path, run: Path) -> None:
    with Served(folder, run) as session:
        (folder / "disk").write_bytes(bytes(1 << 20))
        (folder / "other").write_bytes(b"x" * 100_000)
        session.do("hold")
        load = subprocess.Popen(
            [
                "fio",
                "--name=t",
                f"--filename={folder}/disk",
                "--size=1m",
                "--rw=randwrite",
                "--bs=4k",
                "--direct=1",
                "--ioengine=libaio",
                "--iodepth=128",
                "--overwrite=1",
            ],
            stdout=subprocess.DEVNULL,
        )
        try:
            until_parked(session, 100)
            with open(folder / "other", "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                before = time.monotonic()
                assert file.read() == b"x" * 100_000
                assert time.monotonic() - before < 1
            session.do("release")
            assert load.wait(30) == 0
        finally:
            load.kill()
            load.wait()


def test_a_freeze_ends_with_the_error_that_the_engine_gives(folder: Path, run: Path) -> None:
    with Served(folder, run) as session:
        (folder / "disk").write_text("")
        session.do("hold")
        with running(WRITER, folder / "disk", "data") as writer:
            assert line(writer) == "open"
            until_parked(session)
            session.do("release", errno.EIO)
            assert line(writer) == f"error {errno.EIO}"


@pytest.mark.parametrize("kind", ["abort-file", "forced-unmount"])
def test_the_fence_frees_a_process_that_sigkill_does_not(
    folder: Path, run: Path, kind: str
) -> None:
    with Served(folder, run) as session:
        (folder / "disk").write_text("")
        backing, device, table, abort = session.descriptors()
        fence = Fence.from_descriptors("abort-file", [abort])
        if kind == "forced-unmount":
            fence.close()
            fence = Fence(FORCED_UNMOUNT, [fencing.open_root(str(folder))])
        for number in (backing, device, table):
            os.close(number)
        session.do("hold")
        with running(WRITER, folder / "disk", "data") as writer:
            assert line(writer) == "open"
            until_parked(session)
            writer.kill()
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(0.3)
            before = time.monotonic()
            fence.abort()
            writer.wait(5)
            assert time.monotonic() - before < 0.1
            assert writer.returncode == -signal.SIGKILL
        # The dead mount goes on covering the plain folder (M3).
        with pytest.raises(OSError, match="onnect") as caught:
            os.listdir(folder)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        fence.abort()
        fence.close()
    assert (folder / "disk").read_text() == "data"


def test_a_successor_goes_on_with_writes_in_flight(folder: Path, run: Path, mirror: Path) -> None:
    first = Served(folder, run, mirror=mirror)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(first.kill)
        (folder / "disk").write_text("")
        with (
            open(folder / "kept", "w+") as kept,
            running(WRITER, folder / "disk", "data") as writer,
        ):
            kept.write("before")
            kept.flush()
            assert line(writer) == "open"
            assert line(writer) == "wrote 4"
            assert line(writer) == "synced"
            first.do("hold")
            kept_descriptors = first.descriptors()
            with running(WRITER, folder / "disk", "more") as held:
                assert line(held) == "open"
                until_parked(first)
                first.process.kill()
                first.process.wait()
                assert held.poll() is None
                second = Served(folder, run, mirror=mirror, inherited=kept_descriptors)
                with second:
                    assert line(held) == "wrote 4"
                    assert line(held) == "synced"
                    kept.write(" and after")
                    kept.flush()
                    assert (folder / "kept").read_text() == "before and after"
                    assert sorted(os.listdir(folder)) == ["disk", "kept"]
                    kept.close()
                    second.do("times")
                    assert compare(folder, mirror) == ""
                assert (folder / "disk").read_text() == "more"
        for number in kept_descriptors:
            os.close(number)


NAMES = """
import os, sys
os.chdir(sys.argv[1])
exec(sys.argv[2])
print("done", flush=True)
"""


OPERATIONS = [
    ("pass", "os.mkdir('new')", ["new", "old"]),
    ("pass", "open('new', 'x').write('x')", ["new", "old"]),
    ("pass", "os.symlink('old', 'new')", ["new", "old"]),
    ("pass", "os.link('old', 'new')", ["new", "old"]),
    ("pass", "os.unlink('old')", []),
    ("pass", "os.rename('old', 'new')", ["new"]),
    ("pass", "os.setxattr('old', 'user.x', b'v', os.XATTR_CREATE)", ["old"]),
    ("os.setxattr('old', 'user.x', b'v')", "os.removexattr('old', 'user.x')", ["old"]),
    ("pass", "os.setxattr('old', 'user.x', bytes(3000), os.XATTR_CREATE)", ["old"]),
]


@pytest.mark.parametrize(("setup", "operation", "result"), OPERATIONS)
def test_a_successor_answers_what_was_done_once(
    folder: Path, run: Path, mirror: Path, setup: str, operation: str, result: list[str]
) -> None:
    first = Served(folder, run, mirror=mirror)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(first.kill)
        (folder / "old").write_text("old")
        with running(NAMES, folder, setup) as before:
            assert line(before) == "done"
        first.do("hold")
        kept = first.descriptors()
        with running(NAMES, folder, operation) as held:
            until_parked(first)
            first.process.kill()
            first.process.wait()
            with Served(folder, run, mirror=mirror, inherited=kept) as second:
                assert line(held) == "done"
                assert sorted(os.listdir(folder)) == result
                assert second.do("pending") == []
                second.do("times")
                assert compare(folder, mirror) == ""
        for number in kept:
            os.close(number)


@pytest.mark.parametrize(("setup", "operation", "result"), OPERATIONS)
def test_a_successor_settles_what_was_begun(
    folder: Path, run: Path, mirror: Path, setup: str, operation: str, result: list[str]
) -> None:
    """Done locally and not noted, let alone sent: the peer must get it, the caller its answer."""
    first = Served(folder, run, mirror=mirror)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(first.kill)
        (folder / "old").write_text("old")
        with running(NAMES, folder, setup) as before:
            assert line(before) == "done"
        kept = first.descriptors()
        first.do("die")
        with running(NAMES, folder, operation) as held:
            assert first.process.wait(10) == -signal.SIGKILL
            with Served(folder, run, mirror=mirror, inherited=kept) as second:
                assert line(held) == "done"
                assert sorted(os.listdir(folder)) == result
                second.do("times")
                assert compare(folder, mirror) == ""
        for number in kept:
            os.close(number)


EXCHANGE = """
import ctypes, os, sys
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
print(libc.renameat2(-100, b"one", -100, b"two", 2), ctypes.get_errno(), flush=True)
"""


@pytest.mark.parametrize("gap", ["die renaming", "die"])
def test_a_successor_exchanges_what_its_predecessor_did_not(
    folder: Path, run: Path, mirror: Path, gap: str
) -> None:
    """M4: before and after it both names are there, and done twice it is not done at all."""
    first = Served(folder, run, mirror=mirror)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(first.kill)
        (folder / "one").write_text("1")
        (folder / "two").write_text("2")
        kept = first.descriptors()
        first.do(gap)
        with running(EXCHANGE, folder) as held:
            assert first.process.wait(10) == -signal.SIGKILL
            with Served(folder, run, mirror=mirror, inherited=kept) as second:
                assert line(held) == "0 0"
                assert [(folder / name).read_text() for name in ("one", "two")] == ["2", "1"]
                assert second.do("log") == ["Rename"]
                second.do("times")
                assert compare(folder, mirror) == ""
        assert [(folder / name).read_text() for name in ("one", "two")] == ["2", "1"]
        for number in kept:
            os.close(number)


LISTING = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.readdir.argtypes = libc.telldir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
libc.telldir.restype = ctypes.c_long
place = sys.argv[1]
directory = libc.opendir(place.encode())
def read(limit):
    found = []
    while len(found) < limit and (entry := libc.readdir(directory)):
        found.append(ctypes.string_at(entry + 19).decode())
    return found
seen = read(1000)
at = libc.telldir(directory)
seen += read(200)
for name in seen:
    if name not in (".", "..") and int(name[4:]) % 2:
        os.unlink(place + "/" + name)
for number in range(500):
    os.close(os.open(f"{place}/late{number}", os.O_CREAT))
print("changed", flush=True)
sys.stdin.readline()
rest = read(10000)
libc.seekdir(directory, at)
again = read(10000)
libc.rewinddir(directory)
anew = read(10000)
stayed = {f"file{n}" for n in range(3000)} & set(os.listdir(place))
print(
    len(stayed - {*seen, *rest}),
    len(seen) + len(rest) - len({*seen, *rest}),
    len(stayed - {*seen[:1000], *again}),
    sorted(anew) == sorted([".", "..", *os.listdir(place)]),
    at < 1 << 31,
    flush=True,
)
"""


@pytest.mark.parametrize("feature", [0, Feature.DO_READDIRPLUS])
@pytest.mark.parametrize("succeeded", [False, True])
def test_a_listing_goes_on_behind_what_was_read(
    folder: Path, run: Path, succeeded: bool, feature: int
) -> None:
    """M4: what was there all the time is read once, whichever process reads the directory on."""
    for number in range(3000):
        (folder / f"file{number}").touch()
    session = Served(folder, run, disabled=int(feature))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(session.kill)
        reader = subprocess.Popen(
            [sys.executable, "-c", LISTING, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        cleanup.enter_context(reader)
        cleanup.callback(reader.kill)
        assert line(reader) == "changed"
        if succeeded:
            kept = session.descriptors()
            session.process.kill()
            session.process.wait()
            session = cleanup.enter_context(Served(folder, run, inherited=kept))
            for number in kept:
                os.close(number)
        assert reader.stdin is not None
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert line(reader) == "0 0 0 True True"
        reader.wait(10)


def test_two_processes_list_alike() -> None:
    found = [(b"%d" % number, number, stat.S_IFREG) for number in range(1000)]
    first = list(Listing(7, found).behind(0))
    assert first == list(Listing(7, found[::-1]).behind(0))
    assert first[:2] == [(1, (b".", 7, stat.S_IFDIR)), (2, (b"..", 7, stat.S_IFDIR))]
    assert sorted(entry for _, entry in first[2:]) == sorted(found)
    cookie, gone = first[400]
    assert list(Listing(7, found).behind(cookie)) == first[401:]
    found.remove(gone)
    assert list(Listing(7, found).behind(cookie)) == first[401:]
    assert not list(Listing(7, found).behind(1 << 63))


def test_names_of_one_hash_have_cookies_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(b"%d" % number, number, stat.S_IFREG) for number in range(1000)]
    monkeypatch.setattr(listing, "_HASHES", 900)
    entries = list(Listing(7, found).behind(0))
    cookies = [cookie for cookie, _ in entries]
    assert cookies == sorted(set(cookies))
    assert sorted(entry for _, entry in entries[2:]) == sorted(found)
    assert entries == list(Listing(7, found[::-1]).behind(0))


MAPPED = """
import mmap, os, sys
fd = os.open("old", os.O_RDONLY)
mapped = mmap.mmap(fd, 4, mmap.MAP_PRIVATE, mmap.PROT_READ)
print(mapped[:4].decode(), flush=True)
sys.stdin.readline()
print(open("old").read(4), mapped[:4].decode(), flush=True)
"""


def test_what_was_mapped_as_standby_is_new_after_a_successor_was_promoted(
    folder: Path, run: Path
) -> None:
    """M2: a successor does not know what was opened through the one that died."""
    (folder / "old").write_text("old ")
    below = os.open(folder, os.O_RDONLY)
    first = Served(folder, run, primary=False)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, below)
        cleanup.callback(first.kill)
        reader = subprocess.Popen(
            [sys.executable, "-c", MAPPED],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        cleanup.enter_context(reader)
        cleanup.callback(reader.kill)
        assert line(reader) == "old"
        kept = first.descriptors()
        first.process.kill()
        first.process.wait()
        with Served(folder, run, primary=False, inherited=kept) as second:
            writing = os.open("old", os.O_WRONLY, dir_fd=below)
            os.pwrite(writing, b"new ", 0)
            os.close(writing)
            second.do("primary")
            assert reader.stdin is not None
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert line(reader).split() == ["new", "new"]
            reader.wait(10)
        for number in kept:
            os.close(number)


def test_a_successor_is_refused_where_the_kernel_cannot_resend(folder: Path, run: Path) -> None:
    first = Served(folder, run, disabled=int(Feature.HAS_RESEND))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(first.kill)
        kept = first.descriptors()
        first.process.kill()
        first.process.wait()
        with pytest.raises(RuntimeError):
            Served(folder, run, inherited=kept)
        for number in kept:
            os.close(number)


def test_a_new_layer_ends_the_old_connection_without_an_uncovered_moment(
    folder: Path, run: Path
) -> None:
    (folder / "file").write_text("x")
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            top = mounts.on_top(str(folder))
            seen.add("plain" if top is None else top.kind)

    with Served(folder, run) as session:
        old = os.open(folder / "file", os.O_RDONLY)
        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            for _ in range(3):
                assert session.do("replace")
        finally:
            stop.set()
            watcher.join()
        assert seen == {"fuse.hyperha"}
        with pytest.raises(OSError, match="onnect"):
            os.pread(old, 1, 0)
        with contextlib.suppress(OSError):
            os.close(old)
        assert (folder / "file").read_text() == "x"
        with pytest.raises(OSError, match="Read-only"):
            (folder / "file").write_text("y")
        session.do("primary")
        (folder / "file").write_text("y")
        assert session.do("events") == []
    assert mounts.on_top(str(folder)) is None
    assert (folder / "file").read_text() == "y"


def test_a_stale_mount_is_peeled(folder: Path, run: Path) -> None:
    (folder / "file").write_text("plain")
    dead = Served(folder, run)
    dead.process.kill()
    dead.process.wait()
    try:
        with pytest.raises(OSError, match="onnect"):
            os.listdir(folder)
        with Served(folder, run) as session:
            assert (folder / "file").read_text() == "plain"
            assert session.do("idle", 5000), "RELEASE comes after close has returned"
        assert mounts.on_top(str(folder)) is None
    finally:
        dead.kill()


def test_a_living_mount_is_not_taken_for_the_folder(folder: Path, run: Path) -> None:
    with Served(folder, run), pytest.raises(RefusedError, match="FUSE"):
        MountStack(str(folder), "x", str(run)).open_folder()


def test_mounts_inside_or_above_are_refused(folder: Path, run: Path) -> None:
    stack = MountStack(str(folder), "x", str(run))
    (folder / "inner").mkdir()
    mounting.raw_mount("none", str(folder / "inner"), "tmpfs", "")
    try:
        with pytest.raises(RefusedError, match="inner"):
            stack.open_folder()
    finally:
        mounting.raw_unmount(str(folder / "inner"), mounting.MNT_DETACH)
    os.close(stack.open_folder())


def test_somebody_elses_mount_on_top_is_noticed(folder: Path, run: Path) -> None:
    with Served(folder, run) as session:
        mounting.raw_mount("none", str(folder), "tmpfs", "")
        try:
            deadline = time.monotonic() + 5
            while not session.do("events"):
                assert time.monotonic() < deadline
            assert "covered" in session.do("events")[0]
        finally:
            mounting.raw_unmount(str(folder), mounting.MNT_DETACH)
        mounting.raw_unmount(str(folder), mounting.MNT_DETACH)
        deadline = time.monotonic() + 5
        while len(session.do("events")) < 2:
            assert time.monotonic() < deadline
        assert "no longer" in session.do("events")[1]


def test_mountinfo_is_understood() -> None:
    text = (
        "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
        "40 36 0:51 / /srv/a\\040b rw shared:3 - fuse.hyperha hyperha:VM1 rw\n"
        "41 40 0:52 / /srv/a\\040b rw - fuse.hyperha hyperha:VM1 rw\n"
        "42 41 0:53 / /srv/a\\040b/in rw - tmpfs none rw\n"
        "broken\n"
    )
    entries = mounts.parse(text)
    assert [entry.number for entry in mounts.layers("/srv/a b", list(reversed(entries)))] == [
        40,
        41,
    ]
    assert [entry.number for entry in mounts.beneath("/srv/a b", entries)] == [42]
    assert entries[1].minor == 51


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from tests.support.fuse_local import Served
folder, run = Path(sys.argv[1]), Path(sys.argv[2])
with Served(folder, run) as session:
    (folder / "a").write_text("hello")
    os.mkdir(folder / "d")
    os.rename(folder / "a", folder / "d" / "b")
    os.symlink("d/b", folder / "s")
    assert (folder / "s").read_text() == "hello"
    os.chmod(folder / "d" / "b", 0o444)
    print(sorted(os.listdir(folder)), session.do("log"))
assert (folder / "d" / "b").read_text() == "hello"
print("done")
"""


@contextlib.contextmanager
def device_for_everybody() -> Iterator[None]:
    """Let user nobody open /dev/fuse, as distributions do, for as long as it takes."""
    if os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        yield
        return
    subprocess.run(["setfacl", "-m", "u:65534:rw", "/dev/fuse"], check=True)
    try:
        yield
    finally:
        subprocess.run(["setfacl", "-b", "/dev/fuse"], check=True)


def test_a_mount_that_the_host_does_not_see_is_refused(folder: Path, run: Path) -> None:
    command = ["unshare", "-m", "--propagation", "private", sys.executable, "-m"]
    result = subprocess.run(
        [*command, "tests.support.fuse_local", str(folder), str(run), ""],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 1
    assert "not visible to the host" in result.stderr


def test_without_rights(tmp_path: Path) -> None:
    """As user nobody through fusermount3, the way the demo runs."""
    base = Path(f"/tmp/hyperha-nobody-{os.getpid()}")
    (base / "folder").mkdir(parents=True)
    (base / "run").mkdir()
    try:
        for path in (base, base / "folder", base / "run"):
            os.chown(path, 65534, 65534)
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        # The tests' own interpreter may lie where only root may look.
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
        with device_for_everybody():
            result = subprocess.run(
                [*user, python, "-c", UNPRIVILEGED, str(base / "folder"), str(base / "run")],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                env={"PATH": "/usr/bin:/bin:/usr/local/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            )
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith("done\n")
    finally:
        MountStack(str(base / "folder"), "x", str(base / "run")).peel_stale()
        subprocess.run(["rm", "-rf", str(base)], check=True)


def test_the_end_of_a_freeze_ends_names_and_opens_too(folder: Path, run: Path) -> None:
    """M7, M12: each ends with EIO, and what could not be opened is no open handle."""
    with Served(folder, run) as session:
        (folder / "old").write_text("x" * 10)
        failures: list[int | None] = []

        def attempt(action: Callable[[], object]) -> None:
            try:
                action()
            except OSError as error:
                failures.append(error.errno)

        for action in (
            lambda: os.mkdir(folder / "d"),
            lambda: os.open(folder / "new", os.O_CREAT | os.O_WRONLY),
            lambda: os.open(folder / "old", os.O_TRUNC | os.O_WRONLY),
        ):
            session.do("hold")
            thread = threading.Thread(target=attempt, args=(action,))
            thread.start()
            until_parked(session)
            session.do("release", errno.EIO)
            thread.join()
        assert failures == [errno.EIO] * 3
        wait_for(lambda: session.do("handles") == 0)
        # They were done all the same: to the caller their result is not known.
        assert sorted(os.listdir(folder)) == ["d", "new", "old"]


def halfway(number: int) -> Callable[[int, int, int, int], None]:
    def allocate(fd: int, mode: int, offset: int, length: int) -> None:
        if not mode:
            os.ftruncate(fd, offset + length // 2)
        raise OSError(number, os.strerror(number))

    return allocate


def test_an_allocation_that_fails_halfway_leaves_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Z4: nothing is sent of a failure, so nothing may have changed."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    before = path.stat()
    monkeypatch.setattr(syscalls, "allocate", halfway(errno.ENOSPC))
    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(OSError, match="No space") as plain:
            local.allocate(fd, 0, 0, 10000)
        assert not isinstance(plain.value, InDoubt)
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (100, before.st_mtime_ns)
        # Which part of a range was rewritten cannot be told.
        with pytest.raises(InDoubt):
            local.allocate(fd, syscalls.FALLOC_ZERO_RANGE, 0, 100)
        monkeypatch.setattr(syscalls, "allocate", halfway(errno.EOPNOTSUPP))
        with pytest.raises(OSError, match="not supported") as unsupported:
            local.allocate(fd, syscalls.FALLOC_ZERO_RANGE, 0, 100)
        assert not isinstance(unsupported.value, InDoubt)
    finally:
        os.close(fd)


def test_a_creation_that_fails_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Z4, Z9: the peer hears nothing of it, so the folder's time must be as before too."""
    fd = os.open(tmp_path, os.O_RDONLY)
    store = Store(fd)
    os.close(fd)
    before = tmp_path.stat().st_mtime_ns

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "assign_id", full)
    wish = local.Wish(ROOT_ID, b"f", stat.S_IFREG | 0o644, 0, 0, 0)
    with pytest.raises(OSError, match="No space"):
        local.make(store, wish, store.new_id(), again=False)
    assert os.listdir(tmp_path) == []
    assert tmp_path.stat().st_mtime_ns == before
    store.close()
