"""What kernel and interpreter do that rules rest on, where no other test shows it by the way.

Each experiment has its number. Shown elsewhere: E1, E7, E8, E9 fences, successors and layers
(`test_fuse_fence`), E3 barriers without fsync (`test_fuse_session`, C19), E5 and E6 standby mounts
(`test_fuse_session`), E10 who bypasses the mount (`test_occupancy`, `test_fuse_fence`), E11 held
writes (`test_fuse_fence`), E13 overlapping writes (`test_overlapping`), E14 the data path
(`tests.benchmarks`), E15 TLS in both directions (`test_transport`, and here), E16 parent-death
signals (`test_spawn`), E19 small durable records (`test_durable`, `tests/crash`).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core import actions
from hyperha.core.actions import SessionStart
from hyperha.core.events import ResyncCopied, SessionUp
from hyperha.replication.control import LogLine, Statistics
from hyperha.replication.fuse.protocol import Feature, Op
from hyperha.security.authority import Authority
from tests.support.certificates import certificates
from tests.support.engine_pair import free_ports, wait_for
from tests.support.engine_process import ProcessPair, tree
from tests.support.fuse_local import Served

pytestmark = [pytest.mark.root, pytest.mark.fuse]

BLOCK = 4096
AT_ONCE = 12


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    for name in ("folder", "run"):
        (tmp_path / name).mkdir()
    with Served(tmp_path / "folder", tmp_path / "run") as session:
        yield session


def test_e4_syncing_a_whole_file_system_is_no_barrier(served: Served) -> None:
    """M11: the kernel tells nobody of syncfs, sync and sync_file_range. The README states it."""
    path = served.folder / "f"
    path.write_bytes(b"x" * BLOCK)
    before = served.do("counters")["flushes"]
    library = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b", buffering=0) as file:
        file.write(b"y" * BLOCK)
        assert library.syncfs(file.fileno()) == 0
        os.sync()
        assert library.sync_file_range(file.fileno(), 0, 0, 7) == 0  # Written, and waited for.
        assert served.do("counters")["flushes"] == before
        os.fsync(file.fileno())
    assert served.do("counters")["flushes"] == before + 1
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert "`sync(2)`, syncfs and sync_file_range inside a replicated folder are no" in readme


def test_e12_a_buffered_write_asks_for_no_capability(served: Served) -> None:
    """M8: without HANDLE_KILLPRIV_V2 each one would cost a request more."""
    path = served.folder / "f"
    path.write_bytes(b"x" * BLOCK)
    before = served.do("count", int(Op.GETXATTR))
    writes = served.do("counters")["writes"]
    write_often(path)
    assert served.do("counters")["writes"] == writes + 100
    assert served.do("count", int(Op.GETXATTR)) - before <= 1


def test_e12_without_the_feature_each_one_asks(tmp_path: Path) -> None:
    """What the test above would see."""
    for name in ("folder", "run"):
        (tmp_path / name).mkdir()
    disabled = int(Feature.HANDLE_KILLPRIV_V2)
    with Served(tmp_path / "folder", tmp_path / "run", disabled=disabled) as served:
        path = served.folder / "f"
        path.write_bytes(b"x" * BLOCK)
        before = served.do("count", int(Op.GETXATTR))
        write_often(path)
        assert served.do("count", int(Op.GETXATTR)) - before >= 100


def write_often(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        for number in range(100):
            os.pwrite(file.fileno(), b"y" * 100, number)


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for number in range(2000):
    os.pwrite(fd, b"z" * 100, number % 40 * 100)
print("done", flush=True)
"""


def test_e17_invalidating_what_is_being_written_waits_for_nobody(served: Served) -> None:
    """M10: notifications have a thread of their own; else both sides wait for the page's lock."""
    path = served.folder / "f"
    path.write_bytes(b"x" * BLOCK)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        while writer.poll() is None:
            served.do("invalidate")
        assert writer.communicate(timeout=10)[0] == "done\n"
    finally:
        writer.kill()
        writer.communicate()
    assert path.read_bytes() == b"z" * 4000 + b"x" * 96


def test_e20_sync_of_the_host_does_not_wait_for_held_pages(served: Served) -> None:
    path = served.folder / "f"
    path.write_bytes(b"x" * BLOCK)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), BLOCK) as mapped:
        mapped[:4] = b"dirt"
        served.do("hold")
        begun = time.monotonic()
        os.sync()
        took = time.monotonic() - begun
        served.do("release")
    assert took < 5, f"sync(2) took {took:.1f} s beside pages whose answers are held"


# --- a pair of processes --------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[ProcessPair]:
    both = ProcessPair(tmp_path, free_ports(2))
    try:
        both.a.attach()
        both.b.attach()
        both.in_sync()
        yield both
    finally:
        both.close()


def write_directly(path: Path, content: int) -> None:
    """One write of the file's first block, past the page cache, as a disk image gets it."""
    room = mmap.mmap(-1, BLOCK)
    room[:] = bytes((content,)) * BLOCK
    held = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pwrite(held, room, 0) == BLOCK
    finally:
        os.close(held)


def test_e18_a_process_forks_beside_held_writes(pair: ProcessPair) -> None:
    """T1: a daemon that holds the kept descriptors, but none of the mount, has children that close
    none there; the replication process holds none either."""
    path = pair.a.folder / "f"
    path.write_bytes(b"x" * BLOCK)
    pair.a.do(actions.Freeze)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(one.parked for one in statistics(pair)))
        begun = time.monotonic()
        assert subprocess.run([sys.executable, "-c", ""], check=True).returncode == 0
        assert time.monotonic() - begun < 5
        device = pair.a.folder.stat().st_dev
        assert device in devices_held(writer.pid)
        for process in (os.getpid(), pair.a.process.pid):
            assert device not in devices_held(process)
    finally:
        pair.a.do(actions.Release)
        writer.wait(20)
    assert writer.returncode == 0


def devices_held(process: int) -> set[int]:
    """The file systems in which a process has something open."""
    found = set()
    for one in os.listdir(f"/proc/{process}/fd"):
        with contextlib.suppress(FileNotFoundError):
            # That of the listing itself is gone by now.
            found.add(os.stat(f"/proc/{process}/fd/{one}").st_dev)
    return found


def test_e21_what_a_successor_gets_again_in_another_order_is_alike_on_both(
    pair: ProcessPair,
) -> None:
    """M4, N1: writes of one block that nobody was answered for; the kernel re-sends them in an
    order of its own. Both copies end with the same one."""
    path = pair.a.folder / "f"
    path.write_bytes(b"x" * BLOCK)
    pair.a.do(actions.Barrier)
    pair.a.do(actions.Freeze)
    writers = [
        threading.Thread(target=write_directly, args=(path, number + 1))
        for number in range(AT_ONCE)
    ]
    for one in writers:
        one.start()
    wait_for(lambda: any(s.parked >= 1 for s in statistics(pair)))
    pair.a.kill()
    pair.a.succeed()
    pair.b.do(actions.CloseSession)
    key = pair.connect(SessionStart.CANDIDATES)
    pair.a.wait(SessionUp)
    pair.a.wait(ResyncCopied, limit_s=20)
    pair.a.do(actions.EndResync, key)
    for one in writers:
        one.join(20)
        assert not one.is_alive()
    pair.a.do(actions.Barrier)
    pair.b.do(actions.Barrier)
    ours, theirs = path.read_bytes(), (pair.b.folder / "f").read_bytes()
    assert ours == theirs
    assert ours == ours[:1] * BLOCK
    assert ours != b"x" * BLOCK


def statistics(pair: ProcessPair) -> list[Statistics]:
    return [one for one in list(pair.a.messages) if isinstance(one, Statistics)]


def test_e15_both_directions_of_tls_are_busy_at_once(tmp_path: Path) -> None:
    """T5: one thread owns each TLS object. HYPERHA_TLS_SECONDS=600 for the ten minutes."""
    seconds = float(os.environ.get("HYPERHA_TLS_SECONDS", "3"))
    authority = Authority.create("paris", "id")
    tls = {node: certificates(tmp_path, node, authority) for node in ("node1", "node2")}
    both = ProcessPair(tmp_path, free_ports(2), tls=tls)
    try:
        both.a.attach()
        both.b.attach()
        both.in_sync()
        end = time.monotonic() + seconds

        def work(number: int) -> None:
            path = both.a.folder / f"f{number}"
            while time.monotonic() < end:
                path.write_bytes(os.urandom(1 + number * 50_000))
                with path.open("r+b") as file:
                    file.write(b"again")
                    os.fsync(file.fileno())
                path.rename(path.with_suffix(".old"))

        workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for one in workers:
            one.start()
        for one in workers:
            one.join()
        both.a.do(actions.Barrier)
        both.b.do(actions.Barrier)
        assert tree(both.a.folder) == tree(both.b.folder)
        # A broken stream would have gone on over a new connection (T4). That a busy machine was
        # silent for a while, with the same consequence, breaks none.
        messages = [*both.a.messages, *both.b.messages]
        told = [one.text for one in messages if isinstance(one, LogLine)]
        assert not [text for text in told if "[SSL" in text]
    finally:
        both.close()
