"""The intent log, cut at any moment: never too few candidates, and no more than there must be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import FileId, Record, RecordKind
from tests.crash.disk import State, Tape
from tests.crash.enumeration import Tried, explore
from tests.crash.recorder import recording
from tests.crash.tree import Tree

SLOTS, LIMIT = 8, 32


def file_id(number: int) -> FileId:
    return FileId(number.to_bytes(16, "big"))


def zone(file: int, number: int) -> Record:
    return Record(RecordKind.ZONE, file_id(file), number)


def inode(file: int) -> Record:
    return Record(RecordKind.INODE, file_id(file), 0)


def open_log(folder: Path, *, fresh: bool = False) -> IntentLog:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return IntentLog(
            descriptor,
            "resource",
            lambda file: b"handle" + file[-2:],
            fresh=fresh,
            slots=SLOTS,
            slots_limit=LIMIT,
        )
    finally:
        os.close(descriptor)


def covers(candidates: set[Record] | None, wanted: Record) -> bool:
    """Whether a resync looks at what a record names."""
    if candidates is None or wanted in candidates:
        return True
    whole = Record(RecordKind.WHOLE_FILE, wanted.file, 0)
    return wanted.kind is RecordKind.ZONE and whole in candidates


class Promises:
    """What the log has promised, kept as simply as can be."""

    def __init__(self, recover: Callable[[State], Any]) -> None:
        self._recover = recover
        self.owed: dict[Record, int] = {}
        """What must be a candidate, with the last operation that needed it."""
        self.known: set[Record] = set()
        """What may be one."""
        self.created = False
        self.everything = False
        self.may_be_everything = False
        self.base: set[str] = {""}

    def mark(self, value: Any) -> None:
        what, *rest = value
        if what == "created":
            self.created = True
        elif what == "may":
            self.known |= set(rest[0])
        elif what == "owe":
            for record in rest[0]:
                self.owed[record] = max(rest[1], self.owed.get(record, 0))
        elif what == "forgive":
            self.owed = {one: last for one, last in self.owed.items() if last > rest[0]}
        elif what == "retain":
            self.owed = dict.fromkeys(self.owed, 0)
        elif what == "forgotten":
            # Made durable: it does not come back.
            self.known = {one for one in self.known if one in self.owed}
            self.may_be_everything = self.everything = False
        elif what == "full":
            self.may_be_everything = True
        elif what == "everything":
            self.everything = True
        elif what == "not everything":
            self.everything = False
        elif what == "room":
            self.may_be_everything = self.everything = False
        elif what == "base":
            self.base = set(rest)

    def recover(self, state: State) -> Any:
        return self._recover(state)

    def judge(self, found: Any, state: State) -> str:
        candidates, base, damage = found
        if not self.created:
            return ""
        if damage:
            return f"a cut alone has damaged the log: {damage}"
        if base not in self.base:
            return f"the map is relative to {base!r}, not to one of {self.base}"
        if candidates is None:
            allowed = self.everything or self.may_be_everything
            return "" if allowed else "everything is a candidate, for no reason"
        if self.everything:
            return "not everything is a candidate any more"
        missing = [one for one in self.owed if not covers(candidates, one)]
        if missing:
            return f"no candidates: {missing[:3]}"
        strange = [one for one in candidates if one not in self.known]
        return f"came back, or never was: {strange[:3]}" if strange else ""


def explored(tape: Tape, tree: Tree, **more: int) -> Tried:
    """Put every state on the disk and open the log in it."""

    def recover(state: State) -> Any:
        tree.put(state)
        log = open_log(tree.root)
        try:
            found = log.candidates()
            return None if found is None else set(found), log.base, log.damage
        finally:
            log.close()

    return explore(tape, Promises(recover), **more)


class Writer:
    """Uses a log as the data path does, and says on the tape what it may rely on."""

    def __init__(self, tape: Tape, log: IntentLog) -> None:
        self.tape = tape
        self.log = log
        self.number = 0

    def operation(self, *records: Record) -> None:
        """Durable before it is applied (Z2)."""
        self.number += 1
        self.tape.mark("may", records)
        self.log.activate(records, self.number)
        self.tape.mark("owe", records, self.number)

    def coarse(self, file: int) -> None:
        """From here on the file as a whole may be recorded (Z5)."""
        self.tape.mark("may", (Record(RecordKind.WHOLE_FILE, file_id(file), 0),))

    def barrier(self, behind: int = 0, *, room: bool = True) -> None:
        """Both nodes have it all on stable storage, but for the last `behind` operations. `room`:
        of these each has a record."""
        covered = self.number - behind
        if not self.log.retaining:
            self.tape.mark("forgive", covered)
            if room:
                self.tape.mark("not everything")
        self.log.retire(covered)
        if not self.log.everything:
            self.tape.mark("room")

    def alone(self, base: str) -> None:
        """D3."""
        self.tape.mark("base", self.log.base, self.log.base or base)
        self.log.enter_alone(base)
        self.tape.mark("base", self.log.base)

    def clear(self) -> None:
        """R11: both copies are equal up to the last operation."""
        self.tape.mark("base", self.log.base, "")
        self.tape.mark("forgive", self.number)
        self.tape.mark("full")
        self.tape.mark("not everything")
        assert self.log.clear(self.number)
        self.tape.mark("forgotten")
        self.tape.mark("base", "")


@contextlib.contextmanager
def _log(base: Path) -> Iterator[tuple[Writer, Callable[[], Tried]]]:
    root = base / "private"
    root.mkdir()
    with recording({"disk": root}) as recorder:
        writer = Writer(recorder.tape, open_log(root, fresh=True))
        recorder.tape.mark("created")
        tried: list[Callable[[], Tried]] = []

        def run() -> Tried:
            return tried[0]()

        yield writer, run
        writer.log.close()
    tried.append(lambda: explored(recorder.tape, Tree(recorder, "disk", root)))


def in_sync(base: Path) -> Tried:
    """Records made, used again, retired lazily; slots taken anew."""
    with _log(base) as (writer, run):
        writer.operation(zone(2, 0), inode(2))
        writer.operation(zone(2, 1))
        writer.operation(zone(2, 0))
        writer.tape.mark("forgive", 2)
        writer.log.retire(2)
        writer.operation(zone(3, 7), zone(3, 8), inode(3))
        writer.barrier()
        writer.operation(zone(4, 1))
        writer.operation(zone(2, 1), zone(2, 2))
        writer.barrier()
        writer.operation(zone(5, 5))
    return run()


def growing(base: Path) -> Tried:
    """Full: it grows, then coarsens, then everything is a candidate (Z5)."""
    with _log(base) as (writer, run):
        writer.coarse(2)
        for number in range(LIMIT + 2):
            writer.operation(zone(2, number))
        writer.operation(zone(2, 3))
        writer.barrier()
        for number in range(LIMIT):
            writer.operation(inode(100 + number))
        writer.tape.mark("full")
        writer.operation(inode(200))
        writer.tape.mark("everything")
        writer.barrier()
        writer.clear()
        writer.operation(zone(6, 0))
    return run()


def overflowing(base: Path) -> Tried:
    """Full while both are equal: a barrier that covers what found no slot ends that (N4), but takes
    nothing from a map that is owed for another reason as well (F4)."""
    with _log(base) as (writer, run):
        writer.coarse(2)
        for number in range(LIMIT):
            writer.operation(inode(100 + number))
        writer.tape.mark("full")
        writer.operation(inode(200))
        writer.tape.mark("everything")
        writer.operation(inode(201))
        writer.barrier(behind=1, room=False)
        assert writer.log.everything
        writer.operation(zone(2, 0))
        writer.operation(inode(202))
        writer.barrier(behind=1)
        assert not writer.log.everything
        writer.operation(zone(2, 1))
        for number in range(LIMIT - 3):
            writer.operation(inode(300 + number))
        writer.operation(zone(2, 2))
        writer.tape.mark("full")
        writer.operation(inode(400), inode(401))
        writer.tape.mark("everything")
        writer.alone("g1")
        writer.barrier()
        assert writer.log.everything
        writer.clear()
        writer.operation(zone(3, 1))
    return run()


def alone(base: Path) -> Tried:
    """D3 turns all that is in the log into the dirty map; only a finished resync clears it."""
    with _log(base) as (writer, run):
        writer.operation(zone(2, 0), inode(2))
        writer.operation(zone(2, 1))
        writer.barrier()
        writer.operation(zone(2, 5), inode(2))
        writer.alone("g1")
        writer.operation(zone(2, 6))
        writer.barrier()
        writer.alone("g2")
        writer.operation(zone(3, 0))
        writer.log.close()
        writer.log = open_log(base / "private")
        writer.number = 0
        writer.operation(zone(2, 6), zone(9, 9))
        writer.barrier()
        writer.log.retain()
        writer.tape.mark("retain")
        writer.clear()
        writer.operation(zone(2, 0))
        writer.barrier()
        writer.operation(zone(2, 1))
    return run()


def everything(base: Path) -> Tried:
    """Nothing can be excluded until a resync has ended (Z6)."""
    with _log(base) as (writer, run):
        writer.operation(zone(2, 0))
        writer.tape.mark("full")
        writer.log.mark_everything()
        writer.tape.mark("everything")
        writer.operation(zone(2, 1))
        writer.barrier()
        writer.alone("g1")
        writer.clear()
        writer.operation(zone(3, 1))
        writer.barrier()
    return run()


def damaged(base: Path) -> Tried:
    """A log that cannot be read is made anew, with everything as a candidate, and stays so."""
    root = base / "private"
    root.mkdir()
    open_log(root, fresh=True).close()
    raw = bytearray((root / "intent").read_bytes())
    raw[5000] ^= 1
    (root / "intent").write_bytes(raw)
    with recording({"disk": root}) as recorder:
        tape = recorder.tape
        log = open_log(root)
        tape.mark("everything")
        log.activate([zone(2, 1)], 1)
        log.close()
    tree = Tree(recorder, "disk", root)

    class _Everything(Promises):
        """Also before the new one is there: missing or damaged means everything, too."""

        def judge(self, found: Any, state: State) -> str:
            return "" if found[0] is None else f"only {found[0]} are candidates"

    def recover(state: State) -> Any:
        tree.put(state)
        one = open_log(tree.root)
        try:
            return one.candidates(), one.base, one.damage
        finally:
            one.close()

    return explore(tape, _Everything(recover))
