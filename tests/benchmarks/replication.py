"""Figures of the replicated data path: `python -m tests.benchmarks.replication [plain|tls|local]`.

Two replication processes with real mounts on this machine, driven by fio. Needs root, FUSE, fio.
Prints one line per figure; `local` is the same mount without a peer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from hyperha.core import actions
from hyperha.core.actions import Acknowledge
from hyperha.domain import Epoch
from hyperha.replication.control import TlsFiles
from tests.support.engine_pair import free_ports
from tests.support.engine_process import ProcessPair

SECONDS = 4


def fio(folder: Path, *options: str) -> tuple[int, int, int]:
    """(operations/s, MiB/s, mean latency in microseconds) of one run."""
    command = [
        "fio", "--name=x", f"--directory={folder}", "--size=512m", f"--runtime={SECONDS}",
        "--time_based", "--output-format=json", *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    kind = "read" if job["read"]["iops"] else "write"
    part = job[kind]
    return round(part["iops"]), round(part["bw"] / 1024), round(part["lat_ns"]["mean"] / 1000)


ROWS = {
    "4k randwrite depth 1": ("--rw=randwrite", "--bs=4k", "--ioengine=psync", "--direct=1"),
    "4k randwrite depth 8": (
        "--rw=randwrite", "--bs=4k", "--iodepth=8", "--ioengine=libaio", "--direct=1",
    ),
    "1m write depth 4": (
        "--rw=write", "--bs=1m", "--iodepth=4", "--ioengine=libaio", "--direct=1",
    ),
    "4k write + fdatasync": ("--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fdatasync=1"),
    "4k randread depth 1": ("--rw=randread", "--bs=4k", "--ioengine=psync", "--direct=1"),
}  # fmt: skip


def run(mode: str, tls: TlsFiles | None) -> None:
    with tempfile.TemporaryDirectory(prefix="hyperha-bench-") as base:
        pair = ProcessPair(Path(base), free_ports(2), tls=tls)
        try:
            pair.a.attach()
            pair.b.attach()
            if mode == "local":
                pair.a.do(actions.Promote, Epoch(1, "node1"), Acknowledge.LOCAL)
            else:
                pair.in_sync()
            for name, options in ROWS.items():
                operations, mib, microseconds = fio(pair.a.folder, *options)
                print(f"{mode:6} {name:22} {operations:7}/s {mib:6} MiB/s {microseconds:6} us")
        finally:
            pair.close()


def main() -> None:
    for mode in sys.argv[1:] or ["local", "plain"]:
        run(mode, None)


if __name__ == "__main__":
    main()
