"""Figures of a resync between two real replication processes over plain TCP.

Throughput is compared with a raw TCP copy of the same bytes in the same round: one process reads a
file and sends it, another one receives and overwrites a file of that size. Neither side of the
comparison waits for the disk: the copy ends with the receiver's word that it has written all, the
resync with the source's word that everything is equal.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from hyperha.core import actions
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import ResyncCopied, SessionLost, SessionUp
from hyperha.domain import Epoch
from hyperha.errors import FailedError
from hyperha.replication.control import LogLine
from hyperha.replication.throttle import QUIET_MS
from hyperha.replication.touched import INTERVAL_S
from hyperha.replication.wire import ZONE_BYTES
from tests.benchmarks import raw_copy
from tests.benchmarks.columns import fill, settle, synced_pair
from tests.benchmarks.table import Verdict, limit, spread, within
from tests.support.engine_pair import free_ports
from tests.support.engine_process import ProcessPair

_DISK: Final = "disk"
_LIMIT_S: Final = 120.0
_LEAST: Final = 0.8
_IDLE_S: Final = INTERVAL_S + 3
"""Idle means: a stamp of life was written well after the last change (R14)."""


@dataclass(frozen=True, slots=True)
class Resync:
    """One resync: how long until all was equal, bytes that were compared, and that travelled."""

    seconds: float
    compared: int
    sent: int


def resync(pair: ProcessPair, start: SessionStart, limit_s: float = _LIMIT_S) -> Resync:
    """A whole resync with R11 at its end."""
    source = pair.a
    source.messages[:] = [one for one in source.messages if not isinstance(one, LogLine)]
    begun = time.monotonic()
    key = pair.connect(start)
    source.wait(SessionUp)
    source.wait(ResyncCopied, limit_s=limit_s)
    seconds = time.monotonic() - begun
    source.do(actions.EndResync, key)
    source.do(actions.Barrier)
    for node in (pair.b, source):
        node.do(actions.ClearMap)
    for one in source.told():
        if isinstance(one, LogLine):
            found = re.search(r"(\d+) bytes compared, (\d+) sent", one.text)
            if found is not None:
                return Resync(seconds, int(found[1]), int(found[2]))
    raise FailedError("the resync's log line with the bytes it moved is missing")


def part(pair: ProcessPair) -> None:
    """End the session; the primary goes on without the peer."""
    pair.b.do(actions.CloseSession)
    pair.a.wait(SessionLost)
    pair.a.do(actions.EnterAlone, "before")
    pair.a.do(actions.Release)


def _digest(file: Path) -> str:
    state = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while piece := stream.read(8 << 20):
            state.update(piece)
    return state.hexdigest()


def require_equal(pair: ProcessPair) -> None:
    """A figure of a resync that did not make the copies equal would be worth nothing."""
    if _digest(pair.a.folder / _DISK) != _digest(pair.b.folder / _DISK):
        raise FailedError("the two copies differ after the resync")


def _copy(base: Path, size: int) -> float:
    """Seconds of a raw TCP copy."""
    near, far = base / "raw-near", base / "raw-far"
    for path in (near, far):
        if not path.exists():
            fill(path, size)
    settle(base)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = subprocess.Popen(
            [sys.executable, "-m", raw_copy.__name__, str(listener.fileno()), str(far)],
            pass_fds=(listener.fileno(),),
        )
        try:
            seconds = raw_copy.send(near, listener.getsockname()[1])
            if receiver.wait(10):
                raise FailedError(f"the raw copy's receiver failed ({receiver.returncode})")
        finally:
            receiver.kill()
            receiver.wait()
    return seconds


def throughput(base: Path, rounds: int, size: int) -> list[Verdict]:
    """Digest-equal and wholly different copies, each against a raw copy in the same round."""
    raw: list[float] = []
    equal: list[float] = []
    different: list[float] = []
    with synced_pair(ProcessPair(base, free_ports(2))) as pair:
        fill(pair.a.folder / _DISK, size)
        for _ in range(rounds):
            part(pair)
            fill(pair.a.folder / _DISK, size)
            settle(base)
            # What was filled counts as a busy guest, for which a resync begins carefully (T7).
            time.sleep(2 * QUIET_MS / 1000)
            moved = resync(pair, SessionStart.CANDIDATES)
            if moved.sent < size:
                raise FailedError(f"{moved.sent} of {size} different bytes travelled")
            part(pair)
            settle(base)
            same = resync(pair, SessionStart.FULL)
            if same.sent or same.compared < size:
                raise FailedError(f"of equal copies {same.compared} bytes were compared: {same}")
            raw.append(size / _copy(base, size))
            equal.append(size / same.seconds)
            different.append(size / moved.seconds)
        require_equal(pair)
    verdicts = [Verdict(f"raw TCP copy: {_mib(raw)} MiB/s")]
    for name, found in (("digest-equal", equal), ("different", different)):
        ratios = [one / copy for one, copy in zip(found, raw, strict=True)]
        said = f"resync, {name}: {_mib(found)} MiB/s, / raw copy = {spread(ratios, '.2f')}"
        verdicts.append(limit(f"{said}  > {_LEAST}", ratios, _LEAST))
    return verdicts


def _mib(values: list[float]) -> str:
    return spread([value / (1 << 20) for value in values])


def after_crash(base: Path, size: int) -> list[Verdict]:
    """The primary's process dies with an idle VM; the other node goes on, and brings it back."""
    changes = 16
    with synced_pair(ProcessPair(base, free_ports(2))) as pair:
        fill(pair.a.folder / _DISK, size)
        pair.a.do(actions.Barrier)
        _scatter(pair.a.folder / _DISK, size, 40, b"primary")
        pair.a.do(actions.Barrier)
        time.sleep(_IDLE_S)
        pair.a.kill()
        pair.a.drop_kept()
        pair.b.do(actions.CloseSession)
        pair.b.do(actions.EnterAlone, "before")
        pair.b.do(actions.Promote, Epoch(2, "node2"), Acknowledge.LOCAL)
        _scatter(pair.b.folder / _DISK, size, changes, b"survivor")
        pair.a.start()
        facts = pair.a.attach(fresh=False)
        pair.a, pair.b = pair.b, pair.a
        moved = resync(pair, SessionStart.CANDIDATES)
        require_equal(pair)
    allowed = (max(0, facts.candidates) + changes) * ZONE_BYTES
    if facts.candidates < 0:
        allowed = size
    what = f"resync after a crash of the primary, {size >> 20} MiB, idle VM"
    verdicts = [
        Verdict(
            f"{what}: {facts.candidates} records in its log, {changes} blocks of 4 KiB changed "
            f"since; {moved.compared >> 20} MiB compared, {moved.sent >> 10} KiB sent "
            f"in {moved.seconds:.2f} s"
        )
    ]
    mib = 1 << 20
    compared, sent = moved.compared / mib, moved.sent / mib
    verdicts.append(within("bytes compared <= log + changes", compared, allowed / mib, "MiB"))
    # 64 KiB is the unit of what travels.
    most = changes * 64 / 1024
    verdicts.append(within("bytes sent <= changes", sent, most, "MiB", ".2f"))
    return verdicts


def _scatter(file: Path, size: int, count: int, word: bytes) -> None:
    with open(file, "r+b", buffering=0) as stream:
        for number in range(count):
            stream.seek(size // count * number // 4096 * 4096)
            stream.write(word * (4096 // len(word)))
