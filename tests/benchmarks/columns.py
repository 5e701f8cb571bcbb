"""What is compared: a mount without a peer, two replicated ones, and QEMU's quorum driver.

All files are written once before (but for the cold row), lie on one file system, and are kept in
memory by the kernel until a barrier: neither hyperha nor QEMU bypasses the page cache of the node.
Before a sample of writes no page of them is in memory: a small write into one of the large pages
that a sequential row has left costs the file system several times as much (ext4 from Linux 6.16).
`local`: one replication process, its folder mounted, no peer. `plain`, `tls`: two processes, the
stream over loopback; TLS by the files that `hyperha cluster init` makes. fio drives these mounts.

`quorum`: `qemu-img bench` writes to a `quorum` node with vote-threshold 2, in its own process as a
guest's device would: the first child is a file, the second one NBD over TCP on loopback to a
qemu-storage-daemon, which writes another file. Three things favour QEMU: no mount lies between
the load and the driver, the offsets are sequential where fio's are random, and the server inherits
TCP_NODELAY from its listening socket, without which QEMU 7.2 waits 40 ms for delayed
acknowledgements at depth 8. Writes and barriers mean the same on both sides: a write is in memory
of both, a barrier (fdatasync, flush) on stable storage of both. A read of `quorum` asks both.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperha.config import Home
from hyperha.core import actions
from hyperha.core.actions import Acknowledge
from hyperha.domain import Epoch
from hyperha.errors import FailedError
from hyperha.replication.control import TlsFiles
from hyperha.replication.syscalls import sync_file_system
from hyperha.security.initialise import ClusterPlan, LanPlan, init_cluster
from tests.benchmarks.table import LOCAL, PLAIN, TLS, Row
from tests.benchmarks.usage import Processes, Uses, between, look
from tests.support.engine_pair import free_ports
from tests.support.engine_process import NodeProcess, ProcessPair

WARM_BYTES: Final = 256 << 20
COLD_BYTES: Final = 20 << 30
_ZONE_BYTES: Final = 1 << 20
_CHUNK: Final = 8 << 20
_WARM, _COLD = "warm", "cold"


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure: operations per second, and what one cost each process of the column."""

    rate: float
    costs: Mapping[str, Uses]


@dataclass(frozen=True, slots=True)
class Column:
    """What rows are measured on, with the processes that serve it: not those that load it."""

    measure: Callable[[Row, float, int], tuple[float, float]]
    """Of a row, for so many seconds, in that round: operations per second, and how many."""
    prepare: Callable[[Row], None]
    processes: Processes

    def sample(self, row: Row, seconds: float, number: int) -> Sample:
        """Prepare and measure once."""
        self.prepare(row)
        before = {name: look(process) for name, process in self.processes}
        rate, count = self.measure(row, seconds, number)
        costs = {
            name: between(before[name], look(process), count) for name, process in self.processes
        }
        return Sample(rate, costs)


def run_command(command: list[str], limit_s: float) -> str:
    """Standard output of a tool. Raises FailedError with what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise FailedError(f"{command[0]} did not end within {limit_s:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise FailedError(
            f"{command[0]} failed with status {done.returncode}: {said[-1] if said else ''}"
        )
    return done.stdout


def settle(folder: Path) -> None:
    """Let nothing of the former sample be written during the next one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync_file_system(descriptor)
    finally:
        os.close(descriptor)


def fill(path: Path, size: int) -> None:
    """A file of random bytes, so that no block of it is a hole or like another."""
    with open(path, "wb") as file:
        for _ in range(size // _CHUNK):
            file.write(os.urandom(_CHUNK))


def sparse(path: Path, size: int) -> None:
    """A file without data."""
    with open(path, "wb") as file:
        file.truncate(size)


def prepare(files: Sequence[str], row: Row) -> None:
    """Have the files in memory for a row of reads, and out of it for a row of writes."""
    for name in files:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            if not row.reads:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                continue
            while os.read(descriptor, _CHUNK):
                pass
        finally:
            os.close(descriptor)


# --- hyperha ----------------------------------------------------------------------------------


def beneath(node: NodeProcess) -> str:
    """The file of the warm rows below the node's mount, by the folder's kept descriptor (M4)."""
    assert node.kept is not None
    descriptors, numbers = node.kept
    return f"/proc/self/fd/{numbers[descriptors.names.index('folder')]}/{_WARM}"


def fio(folder: Path, row: Row, seconds: float, seed: int) -> tuple[float, float]:
    """Operations per second of one run on a mounted folder, and their number."""
    name, size = (_COLD, COLD_BYTES) if row.cold else (_WARM, WARM_BYTES)
    raw = run_command(
        [
            "fio", f"--name={row.key}", f"--filename={folder / name}", f"--size={size}",
            f"--runtime={round(seconds * 1000)}ms", "--time_based", "--fallocate=none",
            f"--randseed={seed}", "--output-format=json", *row.fio,
        ],
        seconds + 60,
    )  # fmt: skip
    job = json.loads(raw[raw.index("{") :])["jobs"][0]
    done = job["read"] if job["read"]["iops"] else job["write"]
    return float(done["iops"]), float(done["total_ios"])


def warm(file: Path) -> None:
    """Write once into every zone: each has a record in the intent log then (Z2)."""
    descriptor = os.open(file, os.O_WRONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as block:
            for offset in range(0, WARM_BYTES, _ZONE_BYTES):
                os.pwrite(descriptor, block, offset)
    finally:
        os.close(descriptor)


def on_mount(*nodes: NodeProcess) -> Column:
    """Measure on the mounted folder of the first of the nodes; makes its files."""
    folder = nodes[0].folder
    fill(folder / _WARM, WARM_BYTES)
    sparse(folder / _COLD, COLD_BYTES)

    def ready(row: Row) -> None:
        if not row.cold:
            prepare([beneath(node) for node in nodes], row)
            warm(folder / _WARM)

    def measure(row: Row, seconds: float, number: int) -> tuple[float, float]:
        return fio(folder, row, seconds, number)

    names = ("primary", "secondary") if len(nodes) > 1 else ("node",)
    processes = [(name, node.process.pid) for name, node in zip(names, nodes, strict=True)]
    return Column(measure, ready, processes)


@contextmanager
def local(base: Path) -> Iterator[Column]:
    """One node without a peer."""
    ports = free_ports(2)
    node = NodeProcess(base, "node1", "node2", ports[0], ports[1])
    try:
        node.attach()
        node.do(actions.Promote, Epoch(1, "node1"), Acknowledge.LOCAL)
        yield on_mount(node)
    finally:
        node.close()


def certificates(base: Path) -> dict[str, TlsFiles]:
    """Per node what `hyperha cluster init` makes."""
    homes = {node: Home.at(base / f"{node}-home") for node in ("node1", "node2")}
    lan = LanPlan("repl", dict.fromkeys(homes, "127.0.0.1") | {"node2": "127.0.0.2"})
    init_cluster(homes, ClusterPlan("benchmark", ("node1", "node2"), (lan,)))
    return {
        node: TlsFiles(
            str(home.authority_certificate), str(home.node_certificate), str(home.node_key)
        )
        for node, home in homes.items()
    }


@contextmanager
def synced_pair(pair: ProcessPair) -> Iterator[ProcessPair]:
    """The pair in sync, with writes answered when both nodes have them; closed at the end."""
    try:
        pair.a.attach()
        pair.b.attach()
        pair.in_sync()
        yield pair
    finally:
        pair.close()


@contextmanager
def plain(base: Path) -> Iterator[Column]:
    """Two nodes over TCP."""
    with synced_pair(ProcessPair(base, free_ports(2))) as pair:
        yield on_mount(pair.a, pair.b)


@contextmanager
def encrypted(base: Path) -> Iterator[Column]:
    """Two nodes over TLS 1.3."""
    with synced_pair(ProcessPair(base, free_ports(2), tls=certificates(base))) as pair:
        yield on_mount(pair.a, pair.b)


# --- QEMU -------------------------------------------------------------------------------------


def _children(base: Path, name: str, port: int, aio: str) -> str:
    """The options of a quorum node over a file and what the daemon exports."""
    parts = [
        "driver=quorum", "vote-threshold=2",
        "children.0.driver=file", f"children.0.filename={base}/near-{name}",
        f"children.0.aio={aio}",
        "children.1.driver=nbd", "children.1.server.type=inet",
        "children.1.server.host=127.0.0.1", f"children.1.server.port={port}",
        f"children.1.export={name}",
    ]  # fmt: skip
    return ",".join(parts)


@contextmanager
def _far_side(base: Path, aio: str) -> Iterator[tuple[int, int]]:
    """A qemu-storage-daemon that exports the far images: port of its NBD server, process id."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Accepted connections inherit it; the daemon itself does not set it before QEMU 8.1.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = listener.fileno()
        command = ["qemu-storage-daemon"]
        for name in (_WARM, _COLD):
            command += [
                "--blockdev",
                f"driver=file,node-name={name},filename={base}/far-{name},aio={aio}",
            ]
        command += ["--nbd-server", f"addr.type=fd,addr.str={number}"]
        for name in (_WARM, _COLD):
            command += [
                "--export",
                f"type=nbd,id=e-{name},node-name={name},name={name},writable=on",
            ]
        daemon = subprocess.Popen(command, pass_fds=(number,))
        try:
            yield listener.getsockname()[1], daemon.pid
        finally:
            daemon.kill()
            daemon.wait()


@contextmanager
def quorum(base: Path, aio: str) -> Iterator[Column]:
    """QEMU's own replication to two images; `aio` as QEMU names it."""
    for side in ("near", "far"):
        fill(base / f"{side}-{_WARM}", WARM_BYTES)
        sparse(base / f"{side}-{_COLD}", COLD_BYTES)
    rates: dict[str, float] = {}
    with _far_side(base, aio) as (port, daemon):

        def ready(row: Row) -> None:
            if not row.cold:
                prepare([f"{base}/{side}-{_WARM}" for side in ("near", "far")], row)

        def measure(row: Row, seconds: float, number: int) -> tuple[float, float]:
            image = _children(base, _COLD if row.cold else _WARM, port, aio)
            size = COLD_BYTES if row.cold else WARM_BYTES
            count = max(64, round(rates.get(row.key, row.start) * seconds))
            offset = number * 7919 * row.block_bytes % (size // 2)
            said = run_command(
                ["qemu-img", "bench", "-t", "writeback", "-c", str(count), "-o", str(offset),
                 *row.qemu, "--image-opts", image],
                seconds * 20 + 60,
            )  # fmt: skip
            found = re.search(r"completed in ([0-9.]+) seconds", said)
            if found is None or float(found[1]) <= 0:
                raise FailedError(f"qemu-img bench said no time: {said.strip()!r}")
            rates[row.key] = count / float(found[1])
            return rates[row.key], count

        yield Column(measure, ready, [("far side", daemon)])


BUILDERS: Final = {LOCAL: local, PLAIN: plain, TLS: encrypted}
NEEDS_FIO: Final = frozenset(BUILDERS)
