"""What a resync costs the guest: its latency with and without one, under two ways of throttling.

The guest writes 4 KiB at random offsets and waits for fdatasync after each, at a pace that leaves
the disk room. Its 99th percentile during a resync of wholly different copies is divided by the one
without a resync in the same round. Two pairs of replication processes: one with hyperha's
controller, the other one with windows that only know whether the guest writes (`fixed_windows`).
"""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperha.core.actions import SessionStart
from hyperha.errors import FailedError
from tests.benchmarks import fixed_windows
from tests.benchmarks.columns import fill, settle, synced_pair
from tests.benchmarks.resyncs import part, resync
from tests.benchmarks.table import Verdict, spread
from tests.support.engine_pair import free_ports
from tests.support.engine_process import PROGRAM, ProcessPair

_DISK: Final = "disk"
_GUEST: Final = "guest"
_GUEST_BYTES: Final = 64 << 20
_PAUSE_S: Final = 0.002
_LIMIT_S: Final = 300.0
PROGRAMS: Final = {
    "fixed windows": fixed_windows.__name__,
    "controller": PROGRAM,
}


@dataclass(frozen=True, slots=True)
class Round:
    """One resync: the guest's 99th percentile before and during it, and the resync's rate."""

    before_ms: float
    during_ms: float
    rate: float


class Guest:
    """Writes until told to stop; what each write with its fdatasync took, in seconds."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / _GUEST, os.O_RDWR)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.took_s: list[float] = []
        self._thread.start()

    def _run(self) -> None:
        dice, data = random.Random(1), os.urandom(4096)
        while not self._stop.wait(_PAUSE_S):
            begun = time.perf_counter()
            os.pwrite(self._descriptor, data, dice.randrange(_GUEST_BYTES // 4096) * 4096)
            os.fdatasync(self._descriptor)
            self.took_s.append(time.perf_counter() - begun)

    def stop(self) -> float:
        """End it; the 99th percentile in milliseconds."""
        self._stop.set()
        self._thread.join()
        os.close(self._descriptor)
        if len(self.took_s) < 100:
            raise FailedError(f"only {len(self.took_s)} writes of the guest were measured")
        return sorted(self.took_s)[len(self.took_s) * 99 // 100] * 1000


def _beside(pair: ProcessPair, base: Path, size: int, seconds: float) -> Round:
    """One round on a pair: the guest without a resync, then with one, from the disk."""
    part(pair)
    fill(pair.a.folder / _DISK, size)
    settle(base)
    # As after an outage: what is to be copied is on the disk, not in memory.
    Path("/proc/sys/vm/drop_caches").write_text("1")
    guest = Guest(pair.a.folder)
    time.sleep(seconds)
    before_ms = guest.stop()
    guest = Guest(pair.a.folder)
    moved = resync(pair, SessionStart.CANDIDATES, _LIMIT_S)
    during_ms = guest.stop()
    return Round(before_ms, during_ms, moved.compared / moved.seconds)


def latency(base: Path, rounds: int, size: int, seconds: float) -> list[Verdict]:
    """Both ways of throttling in each round; the ratio of both is what counts."""
    found: dict[str, list[Round]] = {name: [] for name in PROGRAMS}
    with ExitStack() as stack:
        pairs = {}
        for name, program in PROGRAMS.items():
            place = base / program
            place.mkdir()
            pairs[name] = stack.enter_context(
                synced_pair(ProcessPair(place, free_ports(2), program=program))
            )
            fill(pairs[name].a.folder / _GUEST, _GUEST_BYTES)
        for _ in range(rounds):
            for name, pair in pairs.items():
                found[name].append(_beside(pair, base, size, seconds))
    verdicts = [_told(name, taken) for name, taken in found.items()]
    fixed, ours = (found[name] for name in PROGRAMS)
    ratios = [
        (one.during_ms / one.before_ms) / (other.during_ms / other.before_ms)
        for one, other in zip(ours, fixed, strict=True)
    ]
    said = f"growth of the guest's p99, controller / fixed windows = {spread(ratios, '.2f')}"
    return [*verdicts, Verdict(said)]


def _told(name: str, taken: list[Round]) -> Verdict:
    before = spread([one.before_ms for one in taken], ".2f")
    during = spread([one.during_ms for one in taken], ".2f")
    ratio = spread([one.during_ms / one.before_ms for one in taken], ".1f")
    rate = spread([one.rate / (1 << 20) for one in taken])
    return Verdict(
        f"{name}: 4 KiB write + fdatasync, p99 {before} ms, during a resync {during} ms "
        f"(x {ratio}), which went at {rate} MiB/s"
    )
