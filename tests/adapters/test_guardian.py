"""The guardian fences, kills and certifies when the daemon is gone (L5', L6, L8)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hyperha.daemon.fencing import FORCED_UNMOUNT, fence, layers, peel
from hyperha.daemon.guardian_client import (
    FenceDescriptor,
    GuardianClient,
    GuardianSettings,
    Notice,
)
from hyperha.domain import Epoch
from hyperha.errors import FailedError, RefusedError
from hyperha.heartbeat.message import Certificate, decode
from hyperha.heartbeat.seal import Sealer
from hyperha.spawn.run import Run, start
from hyperha.spawn.tree import RunPlace
from tests.support import ROOT

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs Linux"),
    pytest.mark.anyio,
]
KEY = b"k" * 32
EPOCH = Epoch(3, "node1")


@dataclass
class Bench:
    """A guardian's home, its clients, and the peer's ear."""

    settings: GuardianSettings
    ear: socket.socket
    place: RunPlace
    clients: list[GuardianClient] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def client(self) -> GuardianClient:
        def noticed(notice: Notice) -> None:
            self.notices.append(notice)
            self.news.set()

        def lost(why: str) -> None:
            self.lost.append(why)
            self.news.set()

        made = GuardianClient(self.settings, on_lost=lost, on_notice=noticed)
        self.clients.append(made)
        return made

    async def run(self, command: list[str]) -> Run:
        made = await start(command, name="VM1", place=self.place)
        self.runs.append(made)
        return made

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def certificate(self) -> Certificate:
        loop = asyncio.get_running_loop()
        datagram = await asyncio.wait_for(loop.sock_recv(self.ear, 4096), 20)
        header, body = decode(Sealer(KEY, "c").open(datagram))
        assert header.sender == 0
        assert isinstance(body, Certificate)
        return body

    @property
    def runtime(self) -> str:
        return os.path.dirname(self.settings.socket)

    def log(self) -> str:
        return Path(self.settings.log).read_text("utf-8")


def _guardian_of(settings: GuardianSettings) -> int:
    return int(Path(settings.lock).read_text("ascii"))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.bind(("127.0.0.2", 0))
        ear.setblocking(False)
        settings = GuardianSettings(
            node="node1",
            own_index=0,
            cluster_id="c",
            key=str(tmp_path / "key"),
            socket=str(tmp_path / "run" / "guardian.sock"),
            lock=str(tmp_path / "run" / "guardian.lock"),
            record=str(tmp_path / "guardian.record"),
            log=str(tmp_path / "guardian.log"),
            port=ear.getsockname()[1],
            lans=(("127.0.0.1", "127.0.0.2"),),
            idle_ms=300,
            certificate_ms=5000,
        )
        made = Bench(settings, ear, RunPlace(f"guardian-{os.getpid()}"))
        try:
            yield made
        finally:
            for run in made.runs:
                await run.kill()
                await run.wait()
            for client in made.clients:
                await client.abandon()
            _end_guardian(settings)
            made.place.close()


def _end_guardian(settings: GuardianSettings) -> None:
    """Kill whoever holds the lock, and be sure that it is gone."""
    try:
        process = _guardian_of(settings)
        watched = os.pidfd_open(process)
    except (OSError, ValueError):
        return
    with open(f"/proc/{process}/cmdline", "rb") as file:
        if b"hyperha.daemon.guardian" in file.read():
            os.kill(process, signal.SIGKILL)
            select.select([watched], [], [], 10)
    os.close(watched)


async def _arm(client: GuardianClient, run: Run, **more: object) -> None:
    arguments = {
        "number": 1,
        "run": 7,
        "epoch": EPOCH,
        "trees": [run.tree],
        "fences": [],
        **more,
    }
    await client.arm("VM1", **arguments)  # type: ignore[arg-type]


async def test_a_dead_daemons_run_is_killed_and_certified(bench: Bench) -> None:
    client = bench.client()
    assert await client.connect() == ()
    run = await bench.run(["/bin/sh", "-c", "sleep 600 & sleep 600"])
    await _arm(client, run)
    begun = time.monotonic()
    await client.abandon()
    certificate = await bench.certificate()
    assert time.monotonic() - begun < 1.0
    assert (certificate.module, certificate.run, certificate.epoch) == (1, 7, EPOCH)
    assert run.tree.members() == []
    assert (await run.wait()).signal == signal.SIGKILL
    # The next daemon adopts the guardian and is told what binds it.
    successor = bench.client()
    (told,) = await successor.connect()
    assert (told.module, told.run, told.epoch) == ("VM1", 7, EPOCH)
    assert successor.instance == client.instance == certificate.guardian.hex()
    await successor.forget("VM1")
    await successor.release()


async def test_what_was_certified_survives_the_guardian(bench: Bench) -> None:
    client = bench.client()
    await client.connect()
    await _arm(client, await bench.run(["/bin/sleep", "600"]))
    await client.abandon()
    await bench.certificate()
    _end_guardian(bench.settings)
    successor = bench.client()
    (told,) = await successor.connect()
    assert told.run == 7
    assert successor.instance != client.instance
    await successor.forget("VM1")
    await successor.release()


async def test_a_clean_end_touches_nothing(bench: Bench) -> None:
    client = bench.client()
    await client.connect()
    run = await bench.run(["/bin/sleep", "600"])
    other = await bench.run(["/bin/sleep", "600"])
    await _arm(client, run)
    assert await client.disarm("VM1")
    await _arm(client, other)
    process = os.pidfd_open(_guardian_of(bench.settings))
    try:
        await client.release()
        await asyncio.to_thread(select.select, [process], [], [], 10)
    finally:
        os.close(process)
    assert run.running
    assert other.running
    assert "nothing to guard" in bench.log()
    with pytest.raises(BlockingIOError):
        bench.ear.recv(4096)
    assert os.listdir(bench.runtime) == ["guardian.lock"]


async def test_a_deadline_ends_the_run_while_the_daemon_lives(bench: Bench) -> None:
    client = bench.client()
    await client.connect()
    run = await bench.run(["/bin/sleep", "600"])
    await _arm(client, run)
    now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    await client.set_deadline("VM1", now_ms + 200)
    await bench.until(lambda: [n for n in bench.notices if n.what == "certified"])
    assert [n.what for n in bench.notices] == ["fired", "certified"]
    assert (await bench.certificate()).run == 7
    assert (await run.wait()).signal == signal.SIGKILL


async def test_a_deadline_that_is_moved_on_ends_nothing(bench: Bench) -> None:
    client = bench.client()
    await client.connect()
    run = await bench.run(["/bin/sleep", "600"])
    await _arm(client, run)
    for _ in range(5):
        now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        await client.set_deadline("VM1", now_ms + 1000)
        await asyncio.sleep(0.02)
    await client.set_deadline("VM1", None)
    assert run.running
    assert bench.notices == []
    await client.release()


async def test_one_daemon_and_one_guardian_at_a_time(bench: Bench) -> None:
    first, second = bench.client(), bench.client()
    await first.connect()
    with pytest.raises(RefusedError, match=f"daemon {os.getpid()} is already guarded"):
        await second.connect()
    assert first.connected
    assert not second.connected
    await first.release()


async def test_the_daemon_learns_that_its_guardian_is_gone(bench: Bench) -> None:
    client = bench.client()
    await client.connect()
    run = await bench.run(["/bin/sleep", "600"])
    await _arm(client, run)
    os.kill(_guardian_of(bench.settings), signal.SIGKILL)
    await bench.until(lambda: bench.lost)
    assert not client.connected
    with pytest.raises(FailedError, match="not connected"):
        await _arm(client, run)
    await client.connect()
    await _arm(client, run)
    assert run.running
    await client.release()


async def test_a_guardian_that_hangs_is_killed_and_replaced(bench: Bench) -> None:
    """Noticed while nothing is asked; killed before it could take a hang-up for our death."""
    client = bench.client()
    await client.connect()
    run = await bench.run(["/bin/sleep", "600"])
    await _arm(client, run)
    hung = _guardian_of(bench.settings)
    watched = os.pidfd_open(hung)
    try:
        os.kill(hung, signal.SIGSTOP)
        async with asyncio.timeout(8):
            await bench.until(lambda: bench.lost)
        assert f"killed (process {hung})" in bench.lost[0]
        assert (await asyncio.to_thread(select.select, [watched], [], [], 10))[0]
    finally:
        os.close(watched)
    await client.connect()
    assert _guardian_of(bench.settings) != hung
    await _arm(client, run, certify=False)
    assert run.running
    with pytest.raises(BlockingIOError):
        bench.ear.recv(4096)
    await client.release()


async def test_a_hung_guardian_does_not_keep_the_next_daemon_from_starting(bench: Bench) -> None:
    """It certifies nothing any more; the next daemon itself ends what is left of the run."""
    client = bench.client()
    await client.connect()
    run = await bench.run(["/bin/sleep", "600"])
    await _arm(client, run)
    hung = _guardian_of(bench.settings)
    os.kill(hung, signal.SIGSTOP)
    await client.abandon()
    successor = bench.client()
    async with asyncio.timeout(10):
        assert await successor.connect() == ()
    assert _guardian_of(bench.settings) != hung
    assert run.running
    with pytest.raises(BlockingIOError):
        bench.ear.recv(4096)
    await successor.release()


async def test_a_guardian_is_not_killed_for_our_own_freeze(bench: Bench) -> None:
    """After a freeze of the whole node its answer is there; it only has not been read yet."""
    client = bench.client()
    await client.connect()
    process = _guardian_of(bench.settings)
    asking = asyncio.ensure_future(_arm(client, await bench.run(["/bin/sleep", "600"])))
    await asyncio.sleep(0)
    # The event loop must stand still, as a frozen node does.
    time.sleep(2.5)  # noqa: ASYNC251
    await asking
    await asyncio.sleep(1.5)
    assert not bench.lost
    assert _guardian_of(bench.settings) == process
    await client.release()


async def test_malformed_requests_do_not_hurt(bench: Bench) -> None:
    client = bench.client()
    await client.connect()
    run = await bench.run(["/bin/sleep", "600"])
    with pytest.raises(FailedError, match="malformed"):
        await client.set_deadline("NONE", 5)
    with pytest.raises(FailedError, match="fences"):
        await _arm(client, run, fences=[FenceDescriptor("hammer", bench.ear.fileno())])
    await _arm(client, run)
    await client.release()


class HeldMount:
    """A FUSE mount of ours whose session takes every request and answers none after INIT."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.device = os.open("/dev/fuse", os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"hyperha", os.fsencode(path), b"fuse.hyperha", 0, options) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        self.taken = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self.device, 1 << 17)
            except OSError:
                return
            _, code, unique = struct.unpack_from("<IIQ", request)
            if code == 26:
                out = struct.pack("<IIIIHHI", 7, 31, 4096, 0, 12, 9, 4096).ljust(64, b"\0")
                os.write(self.device, struct.pack("<IiQ", 16 + len(out), 0, unique) + out)
            else:
                self.taken.set()

    def end(self) -> None:
        """What the fence does, here by the test."""
        root = os.open(self.path, os.O_PATH)
        try:
            assert fence(FORCED_UNMOUNT, root) == ""
        finally:
            os.close(root)

    def close(self) -> None:
        if layers(str(self.path)):
            self.end()
            peel(str(self.path))
        self._thread.join(10)
        os.close(self.device)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldMount]:
    (tmp_path / "folder").mkdir()
    mount = HeldMount(tmp_path / "folder")
    try:
        yield mount
    finally:
        mount.close()


@pytest.mark.root
@pytest.mark.fuse
async def test_a_run_with_a_held_request_is_fenced_first(bench: Bench, held: HeldMount) -> None:
    """SIGKILL alone does not end a process whose request the session holds (E1, L5')."""
    client = bench.client()
    await client.connect()
    run = await bench.run(["/bin/sh", "-c", f"exec stat {held.path}/file"])
    assert await asyncio.to_thread(held.taken.wait, 10)
    os.kill(run.pid, signal.SIGKILL)
    assert run.tree.members() == [run.pid], "killed, and still there"
    root = os.open(held.path, os.O_PATH)
    try:
        await _arm(client, run, fences=[FenceDescriptor(FORCED_UNMOUNT, root)], peel=str(held.path))
    finally:
        os.close(root)
    await client.abandon()
    assert (await bench.certificate()).run == 7
    assert run.tree.members() == []
    assert layers(str(held.path)) == 0, "the leftover mount is removed"
    assert os.listdir(held.path) == []


@pytest.mark.root
@pytest.mark.fuse
async def test_no_certificate_while_a_process_is_left(bench: Bench, held: HeldMount) -> None:
    client = bench.client()
    await client.connect()
    run = await bench.run(["/bin/sh", "-c", f"exec stat {held.path}/file"])
    assert await asyncio.to_thread(held.taken.wait, 10)
    await _arm(client, run, peel=str(held.path))
    now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    await client.set_deadline("VM1", now_ms)
    await bench.until(lambda: [n for n in bench.notices if n.what == "stuck"])
    assert str(run.pid) in bench.notices[-1].reason
    with pytest.raises(BlockingIOError):
        bench.ear.recv(4096)
    held.end()
    await bench.until(lambda: [n for n in bench.notices if n.what == "certified"])
    assert "ALERT" in bench.log()


async def test_no_certificate_while_nobody_can_look(bench: Bench) -> None:
    """A guardian without a free descriptor goes on guarding until it has one."""
    client = bench.client()
    await client.connect()
    run = await bench.run(["/bin/sleep", "600"])
    await _arm(client, run)
    guardian = _guardian_of(bench.settings)
    limit = resource.prlimit(guardian, resource.RLIMIT_NOFILE)
    resource.prlimit(guardian, resource.RLIMIT_NOFILE, (1, limit[1]))
    now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    await client.set_deadline("VM1", now_ms)
    await bench.until(lambda: bench.lost or [n for n in bench.notices if n.what == "stuck"])
    assert not bench.lost
    assert "Too many open files" in bench.notices[-1].reason
    with pytest.raises(BlockingIOError):
        bench.ear.recv(4096)
    resource.prlimit(guardian, resource.RLIMIT_NOFILE, limit)
    await bench.until(lambda: [n for n in bench.notices if n.what == "certified"])
    assert run.tree.members() == []
    # The certificate is sent again and again; where there is no socket for it, later.
    await bench.certificate()
    resource.prlimit(guardian, resource.RLIMIT_NOFILE, (1, limit[1]))
    await asyncio.sleep(0.5)
    with contextlib.suppress(BlockingIOError):
        while bench.ear.recv(4096):
            pass
    await asyncio.sleep(0.5)
    with pytest.raises(BlockingIOError):
        bench.ear.recv(4096)
    resource.prlimit(guardian, resource.RLIMIT_NOFILE, limit)
    assert (await bench.certificate()).run == 7
    assert not bench.lost


@pytest.mark.root
@pytest.mark.fuse
async def test_a_module_without_a_run_is_only_peeled(bench: Bench, held: HeldMount) -> None:
    bench.settings = replace(bench.settings, certificate_ms=100)
    client = bench.client()
    await client.connect()
    await client.arm(
        "VM2", number=2, run=0, epoch=EPOCH, trees=[], fences=[], peel=str(held.path), certify=False
    )
    process = os.pidfd_open(_guardian_of(bench.settings))
    try:
        await client.abandon()
        await asyncio.to_thread(select.select, [process], [], [], 10)
    finally:
        os.close(process)
    assert layers(str(held.path)) == 0
    with pytest.raises(BlockingIOError):
        bench.ear.recv(4096)


def test_the_guardian_stays_small() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import hyperha.daemon.guardian, sys; print(*sys.modules)",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"asyncio", "pydantic", "cryptography", "ssl", "subprocess", "httpx", "psutil"}
    assert not heavy & set(done.stdout.split())


_HALF_DEAD = """
import ctypes, json, os, socket, sys, threading, time
daemon = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
daemon.connect(sys.argv[1])
asked = {"id": 1, "do": "arm", "module": "VM1", "number": 7, "run": 4, "epoch": [3, "node1"],
         "trees": [[sys.argv[2], "", 0]], "fences": ["abort-file"], "peel": "", "certify": True}
socket.send_fds(daemon, [json.dumps(asked).encode()], [int(sys.argv[3])])
daemon.recv(65536)
threading.Thread(target=time.sleep, args=(100,)).start()
ctypes.CDLL(None).pthread_exit(None)  # of this thread only, the first one of the process
"""


async def test_a_dead_daemon_with_a_thread_that_hangs_is_dead(bench: Bench) -> None:
    """Killed while a thread waits for a disk, it keeps its descriptors, also this connection."""
    bench.settings = replace(bench.settings, idle_ms=20_000)
    await bench.client().connect()
    await bench.clients.pop().abandon()
    reading, writing = os.pipe()
    arguments = bench.settings.socket, "no-run", str(writing)
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HALF_DEAD, *arguments, pass_fds=(writing,)
    )
    try:
        certificate = await bench.certificate()
        assert certificate.run == 4
        assert os.read(reading, 8) == b"1"
        assert daemon.returncode is None, "its thread hangs until the end of the test"
    finally:
        daemon.kill()
        await daemon.wait()
    os.close(reading)
    os.close(writing)
