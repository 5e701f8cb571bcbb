"""Both nodes' data path over a real session, each node a disk that forgets (F2, Z1, Z2, Z4, R11).

What is judged in every state: wherever the copies differ, the logs of both together name it, so
that a resync of equal generations finds it (R4); and what a barrier has acknowledged is on the
stable storage of both, or of the one whose word was enough.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import ResyncCopied, SessionLost
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import ROOT_ID, FileId, Record, RecordKind
from hyperha.replication.wire import ZONE_BYTES
from tests.crash.disk import SECTOR, State
from tests.crash.enumeration import Tried, explore
from tests.crash.logs import covers
from tests.crash.recorder import Recorder, recording
from tests.support.engine_pair import Guest, Pair, pair_at, wait_for

SLOTS = 64
FEW = 5
"""Fewer than the files, zones and directories that a guest changes between two barriers."""
FILES = 3
ZONES = 3
ID = "trusted.hyperha.id"
DISKS = ("a", "b")
_STAMP = struct.Struct("<QQ")
Floors = dict[tuple[int, int], int]
"""File and sector: the write that must be there, or a later one."""
Difference = tuple[str, tuple[Record, ...]]
"""What differs, and the records of which one must be a candidate."""


@contextlib.contextmanager
def _small_logs(slots: int) -> Iterator[None]:
    """So that a state of a log is small, and slots are soon taken again."""
    defaults = IntentLog.__init__.__kwdefaults__
    assert defaults is not None
    kept = dict(defaults)
    defaults.update(slots=slots, slots_limit=slots)
    try:
        yield
    finally:
        defaults.update(kept)


class Copies:
    """Judges the state of both disks."""

    def __init__(self, recorder: Recorder, files: list[FileId], scratch: Path) -> None:
        self._roots = recorder.tape.roots
        self._files = files
        self._scratch = scratch
        self._logs: dict[bytes, set[Record] | None] = {}
        self._floors: dict[str, Floors] = {disk: {} for disk in DISKS}
        self._equal = False

    def mark(self, value: Any) -> None:
        if value[0] == "durable":
            for disk in value[2]:
                for place, number in value[1].items():
                    self._floors[disk][place] = max(number, self._floors[disk].get(place, 0))

    def recover(self, state: State) -> Any:
        found: set[Record] | None = set()
        for disk in DISKS:
            log = self._candidates(state, disk)
            found = None if found is None or log is None else found | log
        return found, self._differences(state), self._written(state)

    def _candidates(self, state: State, disk: str) -> set[Record] | None:
        """What the real log says when it is opened after the cut."""
        private = state.names(disk, self._roots[disk]).get(b".hyperha", -1)
        key = state.names(disk, private).get(b"intent", -1)
        content = state.content(disk, key)
        if content not in self._logs:
            (self._scratch / "intent").write_bytes(content)
            descriptor = os.open(self._scratch, os.O_RDONLY)
            log = IntentLog(descriptor, "rid", lambda file: b"", fresh=False)
            candidates = log.candidates()
            self._logs[content] = None if candidates is None else set(candidates)
            log.close()
            os.close(descriptor)
        return self._logs[content]

    # --- what differs -----------------------------------------------------------------------

    def _differences(self, state: State) -> list[Difference]:
        found: list[Difference] = []
        data: dict[tuple[str, int], set[int]] = {}
        for cell in (*state.stable, *state.chosen):
            if cell[1] == "d":
                data.setdefault((cell[0], cell[2]), set()).add(cell[3])
        pending = [(b"", self._roots["a"], self._roots["b"], ROOT_ID)]
        while pending:
            path, left, right, directory = pending.pop()
            names = [state.names(disk, key) for disk, key in zip(DISKS, (left, right), strict=True)]
            listed = Record(RecordKind.DIRECTORY, directory, 0)
            for name in sorted((names[0].keys() | names[1].keys()) - {b".hyperha"}):
                keys = [one.get(name, -1) for one in names]
                place = path + b"/" + name
                if -1 in keys:
                    found.append((f"{place!r} is on one disk only", (listed,)))
                    continue
                self._inode(state, place, keys, listed, found, data)
                mode = state.get(("a", "x", keys[0], "mode"))
                if stat.S_ISDIR(mode):
                    pending.append((place, keys[0], keys[1], _id(state, "a", keys[0])))
        return found

    def _inode(
        self,
        state: State,
        place: bytes,
        keys: list[int],
        listed: Record,
        found: list[Difference],
        data: dict[tuple[str, int], set[int]],
    ) -> None:
        """Compare what stands under one name on both disks."""
        file = _id(state, "a", keys[0])
        inode = Record(RecordKind.INODE, file, 0)
        if file != _id(state, "b", keys[1]):
            found.append((f"{place!r} has two ids", (listed,)))
            return
        attributes = [
            {name: one for name, one in state.attributes(disk, key).items() if name != ID}
            for disk, key in zip(DISKS, keys, strict=True)
        ]
        if attributes[0] != attributes[1]:
            found.append((f"attributes of {place!r}", (inode, listed)))
        sizes = [state.get((disk, "s", key, None)) for disk, key in zip(DISKS, keys, strict=True)]
        whole = Record(RecordKind.WHOLE_FILE, file, 0)
        if sizes[0] != sizes[1]:
            found.append((f"size of {place!r}: {sizes}", (inode, whole)))
        sectors = data.get(("a", keys[0]), set()) | data.get(("b", keys[1]), set())
        for sector in sorted(sectors):
            both = [
                state.get((disk, "d", key, sector)) for disk, key in zip(DISKS, keys, strict=True)
            ]
            if both[0] != both[1] and sector * SECTOR < min(sizes):
                zone = Record(RecordKind.ZONE, file, sector * SECTOR // ZONE_BYTES)
                found.append((f"sector {sector} of {place!r}", (zone, whole)))

    def _written(self, state: State) -> dict[tuple[str, int, int], int]:
        """Disk, file and sector: which write it holds."""
        found: dict[tuple[str, int, int], int] = {}
        for disk in DISKS:
            names = state.names(disk, self._roots[disk])
            for file in range(FILES):
                key = names.get(b"file%d" % file, -1)
                for cell in (*state.stable, *state.chosen):
                    if cell[:3] == (disk, "d", key):
                        found[disk, file, cell[3]] = _STAMP.unpack_from(state.get(cell))[0]
        return found

    def judge(self, found: Any, state: State) -> str:
        candidates, differences, written = found
        for text, wanted in differences:
            if candidates is not None and not any(covers(candidates, one) for one in wanted):
                return f"no log names it: {text}; candidates {sorted(candidates, key=repr)[:6]}"
        for disk, floors in self._floors.items():
            for (file, sector), number in floors.items():
                there = written.get((disk, file, sector), 0)
                if there < number:
                    return (
                        f"a barrier acknowledged write {number} to sector {sector} of file {file}, "
                        f"disk {disk} has write {there}"
                    )
        return ""


def _id(state: State, disk: str, key: int) -> FileId:
    value = state.get((disk, "x", key, ID))
    return FileId(b"" if value is None else value[:16])


class Load:
    """A guest that numbers its writes, and knows which of them a barrier covers."""

    def __init__(self, pair: Pair, files: list[FileId], recorder: Recorder, seed: int) -> None:
        self.pair = pair
        self.guest = Guest(pair.a)
        self.files = files
        self.tape = recorder.tape
        self.dice = random.Random(seed)
        self.disks: tuple[str, ...] = DISKS
        """Whose word a barrier is, at the moment."""
        self._number = 0
        self._written: Floors = {}
        self._open = 0
        self._lock = threading.Lock()

    def write(self, *, barrier: bool = False) -> None:
        """One to three sectors somewhere; a barrier is for its range (M1)."""
        file = self.dice.randrange(FILES)
        count = self.dice.randrange(1, 4)
        zone = self.dice.randrange(ZONES)
        first = zone * (ZONE_BYTES // SECTOR) + self.dice.choice((0, 5, 100, 2047 - count))
        self._number += 1
        data = _STAMP.pack(self._number, file).ljust(SECTOR, b"\x5a") * count
        floors = {(file, first + i): self._number for i in range(count)}
        self._written.update(floors)
        answer = self._acknowledged(floors) if barrier else self._plain
        self.pair.a.primary.write(
            self.files[file], first * SECTOR, data, barrier=barrier, answer=answer
        )
        self.pair.a.primary.send_kept()

    def flush(self) -> None:
        """fsync of one file."""
        file = self.dice.randrange(FILES)
        floors = {place: one for place, one in self._written.items() if place[0] == file}
        self.pair.a.primary.flush(
            self.files[file],
            data_only=self.dice.random() < 0.5,
            answer=self._acknowledged(floors),
        )
        self.pair.a.primary.send_kept()

    def barrier(self) -> None:
        """As the core orders it; everything is covered."""
        floors = dict(self._written)
        disks = self.disks
        self.pair.barrier(self.pair.a)
        self.tape.mark("durable", floors, disks)

    def change(self) -> None:
        """Anything but a write."""
        choice = self.dice.randrange(3)
        file = self.dice.choice(self.files)
        if choice == 0:
            name = b"n%d" % self.dice.randrange(1 << 30)
            self.guest.create(ROOT_ID, name)
        elif choice == 1:
            self.guest.set_mode(file, self.dice.choice((0o600, 0o640, 0o755)))
        else:
            self.guest.set_xattr(file, b"user.x", self.dice.randbytes(4))

    def some(self, count: int) -> None:
        """A mixture."""
        for _ in range(count):
            step = self.dice.random()
            if step < 0.6:
                self.write(barrier=step < 0.12)
            elif step < 0.8:
                self.flush()
            else:
                self.change()

    def settled(self) -> None:
        """Every barrier is answered."""
        wait_for(lambda: not self._open)

    def _plain(self, error: int, _payload: bytes) -> None:
        assert not error

    def _acknowledged(self, floors: Floors) -> Callable[[int, bytes], None]:
        with self._lock:
            self._open += 1
        return partial(self._answered, floors)

    def _answered(self, floors: Floors, error: int, _payload: bytes) -> None:
        if not error:
            self.tape.mark("durable", floors, self.disks)
        with self._lock:
            self._open -= 1


@contextlib.contextmanager
def _running(
    base: Path, seed: int, slots: int = SLOTS
) -> Iterator[tuple[Load, Callable[[], Tried]]]:
    """Both nodes in sync with equal copies, from then on recorded."""
    tried: list[Callable[[], Tried]] = []

    def run() -> Tried:
        return tried[0]()

    scratch = base / "scratch"
    scratch.mkdir()
    dice = random.Random(seed)
    with _small_logs(slots), pair_at(base) as pair:
        pair.in_sync()
        guest = Guest(pair.a)
        files = [guest.create(ROOT_ID, b"file%d" % number) for number in range(FILES)]
        for file in files:
            guest.truncate(file, ZONES * ZONE_BYTES)
        pair.barrier(pair.a)
        wait_for(lambda: not pair.a.intent.used and not pair.b.intent.used)
        roots = {"a": pair.a.folder, "b": pair.b.folder}
        with recording(roots, dice) as recorder:
            load = Load(pair, files, recorder, seed)
            yield load, run
            load.settled()
    case = Copies(recorder, files, scratch)
    tried.append(lambda: explore(recorder.tape, case, seed=seed, bound=32, samples=10))


def in_sync(base: Path, seed: int) -> Tried:
    """PRIM and SECOND: writes, barriers of all kinds, records retired and slots taken again."""
    with _running(base, seed) as (load, run):
        for _ in range(3):
            load.some(12)
            load.settled()
            load.some(4)
            load.barrier()
        load.some(6)
    return run()


def full_logs(base: Path, seed: int) -> Tried:
    """The same with logs that run full again and again, and find room behind the barriers (N4)."""
    with _running(base, seed, FEW) as (load, run):
        for _ in range(4):
            load.some(10)
            load.settled()
            load.some(3)
            load.barrier()
            wait_for(lambda: not any(one.intent.everything for one in (load.pair.a, load.pair.b)))
        load.some(6)
    return run()


def alone_and_back(base: Path, seed: int) -> Tried:
    """D3 with hot zones; alone; a resync and R11; in sync again (C4)."""
    with _running(base, seed) as (load, run):
        pair = load.pair
        load.some(10)
        load.settled()
        load.some(6)
        pair.a.primary.set_mode(Acknowledge.NONE)
        pair.a.primary.close_session(clean=False)
        pair.b.wait(SessionLost)
        pair.a.intent.enter_alone("ab" * 16)
        load.disks = ("a",)
        pair.a.primary.set_mode(Acknowledge.LOCAL)
        load.settled()
        load.some(8)
        load.barrier()
        load.some(4)
        load.settled()
        pair.resync(SessionStart.CANDIDATES)
        load.disks = DISKS
        load.some(6)
        load.settled()
        load.barrier()
        load.some(3)
    return run()


def frozen_and_back(base: Path, seed: int) -> Tried:
    """A barrier left open by a dead session is answered after a resync: both have it (R11)."""
    with _running(base, seed) as (load, run):
        pair = load.pair
        load.some(6)
        load.settled()
        pair.a.primary.set_mode(Acknowledge.NONE)
        pair.a.primary.close_session(clean=False)
        pair.b.wait(SessionLost)
        load.write()
        load.write(barrier=True)
        load.flush()
        key = pair.connect(SessionStart.CANDIDATES)
        pair.a.wait(ResyncCopied, 60)
        pair.finish_resync(key, pair.a, pair.b)
        load.settled()
        load.some(4)
    return run()


def takeover(base: Path, seed: int) -> Tried:
    """P8: what a secondary acknowledged is applied and synced before it is promoted."""
    with _running(base, seed) as (load, run):
        pair = load.pair
        load.some(6)
        load.settled()
        load.write()
        load.write()
        covered = dict(load._written)
        wait_for(lambda: pair.a.primary.acknowledged_number >= pair.a.primary.number)
        pair.b.acceptor.drain(10)
        load.tape.mark("durable", covered, ("b",))
        load.write()
        covered = dict(load._written)
        wait_for(lambda: pair.a.primary.acknowledged_number >= pair.a.primary.number)
        assert pair.b.acceptor.close() == ""
        load.tape.mark("durable", covered, ("b",))
        pair.b.intent.enter_alone("ab" * 16)
        pair.b.primary.promote(Acknowledge.LOCAL)
    return run()
