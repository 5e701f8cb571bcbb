"""A disk that forgets: what a power cut may leave of recorded writes, between two barriers.

A tape is what was asked of a disk, in order. A crash at any place of it leaves of every cell (a
sector of 512 bytes, a size, an attribute, the names of a directory) one of the values that it had
since it was last made durable. So writes between two barriers may be lost, kept, torn between
sectors and reordered; operations on the names of one directory keep their order, as journals have
it. A barrier covers what was written before it began.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

SECTOR = 512
ZEROS = bytes(SECTOR)
Cell = tuple[str, str, int, Any]
"""Disk; `d` data, `s` size, `x` attribute, `n` names; inode; sector or name of the attribute."""
Names = dict[bytes, int]
"""Of one directory: the inode behind each name."""
EMPTY: dict[str, Any] = {"d": ZEROS, "s": 0, "x": None, "n": {}}


@dataclass(frozen=True, slots=True)
class Change:
    """Cells that got a new value in memory; nothing of it is durable yet."""

    cells: tuple[tuple[Cell, Any], ...]
    what: str


@dataclass(frozen=True, slots=True)
class Sync:
    """What matches and was written before event `upto` is durable from here on."""

    matches: Callable[[Cell], bool]
    upto: int
    what: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that the program said or was promised, for whoever judges the states."""

    value: Any


Event = Change | Sync | Mark


@dataclass(slots=True)
class Tape:
    """What happened, from a durable beginning on."""

    baseline: dict[Cell, Any] = field(default_factory=dict)
    roots: dict[str, int] = field(default_factory=dict)
    """The inode of each disk's highest directory."""
    events: list[Event] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def mark(self, *value: Any) -> None:
        """Note what the program has promised, or what it is about to be asked."""
        with self.lock:
            self.events.append(Mark(value))


def _hash(cell: Cell, value: Any) -> int:
    if value == EMPTY[cell[1]]:
        return 0
    if cell[1] == "n":
        value = sorted(value.items())
    return int.from_bytes(hashlib.blake2b(repr((cell, value)).encode(), digest_size=12).digest())


class State:
    """What one power cut has left."""

    __slots__ = ("chosen", "digest", "stable")

    def __init__(self, stable: dict[Cell, Any], chosen: dict[Cell, Any], digest: int) -> None:
        self.stable = stable
        self.chosen = chosen
        self.digest = digest
        """Equal for equal content."""

    def get(self, cell: Cell) -> Any:
        """The value of a cell."""
        if cell in self.chosen:
            return self.chosen[cell]
        return self.stable.get(cell, EMPTY[cell[1]])

    def content(self, disk: str, inode: int) -> bytes:
        """The bytes of a file."""
        size = self.get((disk, "s", inode, None))
        count = -(-size // SECTOR)
        data = b"".join(self.get((disk, "d", inode, sector)) for sector in range(count))
        return data[:size]

    def names(self, disk: str, inode: int) -> Names:
        """The names in a directory."""
        found: Names = self.get((disk, "n", inode, None))
        return found

    def attributes(self, disk: str, inode: int) -> dict[Any, Any]:
        """The attributes of an inode."""
        cells = {cell for cell in self.chosen if cell[:3] == (disk, "x", inode)}
        cells |= {cell for cell in self.stable if cell[:3] == (disk, "x", inode)}
        return {cell[3]: value for cell in cells if (value := self.get(cell)) is not None}


@dataclass(frozen=True, slots=True)
class _Version:
    index: int
    value: Any
    hashed: int


class Replay:
    """Plays a tape and offers the states that a cut at the present place may leave."""

    def __init__(self, tape: Tape) -> None:
        self._stable = dict(tape.baseline)
        self._pending: dict[Cell, list[_Version]] = {}
        """The durable version first, then every later one."""
        self._digest = 0
        for cell, value in self._stable.items():
            self._digest ^= _hash(cell, value)

    def play(self, index: int, event: Event) -> None:
        """The next event."""
        if isinstance(event, Change):
            for cell, value in event.cells:
                versions = self._pending.get(cell)
                if versions is None:
                    old = self._stable.get(cell, EMPTY[cell[1]])
                    versions = self._pending[cell] = [_Version(-1, old, _hash(cell, old))]
                versions.append(_Version(index, value, _hash(cell, value)))
        elif isinstance(event, Sync):
            for cell in [one for one in self._pending if event.matches(one)]:
                self._settle(cell, event.upto)

    def _settle(self, cell: Cell, upto: int) -> None:
        versions = self._pending[cell]
        first = max(i for i, one in enumerate(versions) if one.index < upto or i == 0)
        durable = versions[first]
        self._digest ^= versions[0].hashed ^ durable.hashed
        # A new dictionary would be right, too; states are judged before the tape goes on.
        self._stable[cell] = durable.value
        if first == len(versions) - 1:
            del self._pending[cell]
        else:
            self._pending[cell] = versions[first:]

    def states(self, dice: random.Random, bound: int, samples: int) -> Iterator[State]:
        """All of them if they are at most `bound`; else the extreme ones and `samples` others."""
        cells = sorted(self._pending, key=repr)
        counts = [len(self._pending[cell]) for cell in cells]
        total = 1
        for count in counts:
            total *= count
            if total > bound:
                break
        if total <= bound:
            for picks in itertools.product(*map(range, counts)):
                yield self._state(cells, picks)
            return
        for picks in _extremes(cells, counts):
            yield self._state(cells, picks)
        for _ in range(samples):
            yield self._state(cells, _sample(dice, cells, counts))

    def extremes(self) -> Iterator[State]:
        """Nothing kept, all kept, and one disk of several of either kind."""
        cells = sorted(self._pending, key=repr)
        counts = [len(self._pending[cell]) for cell in cells]
        for picks in _whole(cells, counts):
            yield self._state(cells, picks)

    def _state(self, cells: list[Cell], picks: tuple[int, ...]) -> State:
        chosen = {}
        digest = self._digest
        for cell, pick in zip(cells, picks, strict=True):
            versions = self._pending[cell]
            chosen[cell] = versions[pick].value
            digest ^= versions[0].hashed ^ versions[pick].hashed
        return State(self._stable, chosen, digest)


def _whole(cells: list[Cell], counts: list[int]) -> set[tuple[int, ...]]:
    disks = sorted({cell[0] for cell in cells})
    found = set()
    for kept in itertools.product((False, True), repeat=len(disks)):
        by_disk = dict(zip(disks, kept, strict=True))
        found.add(
            tuple(n - 1 if by_disk[cell[0]] else 0 for cell, n in zip(cells, counts, strict=True))
        )
    return found


def _extremes(cells: list[Cell], counts: list[int]) -> set[tuple[int, ...]]:
    """Whole disks; and each cell alone lost, and each alone kept."""
    found = _whole(cells, counts)
    for i, count in enumerate(counts):
        found.add(tuple(count - 1 if i == j else 0 for j in range(len(counts))))
        found.add(tuple(0 if i == j else counts[j] - 1 for j in range(len(counts))))
    return found


def _sample(dice: random.Random, cells: list[Cell], counts: list[int]) -> tuple[int, ...]:
    """A random subset, with a chance of its own for each disk."""
    chances = {disk: dice.choice((0.0, 0.1, 0.5, 0.9, 1.0)) for disk in {one[0] for one in cells}}
    return tuple(
        dice.randrange(1, count) if dice.random() < chances[cell[0]] else 0
        for cell, count in zip(cells, counts, strict=True)
    )
