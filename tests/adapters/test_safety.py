"""Safety copies: whatever a resync does to a folder, undo and restore give back what was (R15)."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from hyperha.core.actions import SafetyEnd
from hyperha.core.events import SafetyLost
from hyperha.core.facts import Shortage
from hyperha.errors import HyperhaError, NotFoundError, RefusedError, ReplicationError
from hyperha.replication import syscalls
from hyperha.replication.control import LogLine
from hyperha.replication.entries import Descriptor
from hyperha.replication.operations import (
    NO_ID,
    ROOT_ID,
    Attributes,
    Create,
    FileId,
    Link,
    Record,
    RecordKind,
    Remove,
    Rename,
    SetTimes,
    Target,
    Truncate,
)
from hyperha.replication.safety import area, retention, undo_log
from hyperha.replication.safety.area import SafetyArea
from hyperha.replication.safety.blocks import Blocks
from hyperha.replication.safety.copy import State
from hyperha.replication.safety.retention import Keep
from hyperha.replication.safety.saver import NoRoom
from tests.support.machine import lacking
from tests.support.safety import Breaker, Folder, file_system, fill, folder_at, state_of

pytestmark = pytest.mark.root
_EXT4 = 0xEF53
_KINDS = ("ext4", "xfs", "btrfs")


@pytest.fixture(scope="module", params=["here", *_KINDS])
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on each file system."""
    with tempfile.TemporaryDirectory(prefix="safety-") as base:
        if request.param == "here":
            yield Path(base)
            return
        if not os.path.exists("/dev/loop-control"):
            lacking("needs loop devices")
        with file_system(request.param, Path(base)) as mounted:
            yield mounted


@pytest.fixture
def path(place: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=place) as one:
        yield Path(one) / "folder"


def _grown(folder: Folder, seed: int) -> tuple[Breaker, dict[str, object]]:
    breaker = Breaker(folder, seed)
    breaker.grow()
    return breaker, state_of(folder.path)


_SLOW = settings(
    max_examples=int(os.environ.get("HYPERHA_EXAMPLES", "12")),
    deadline=None,
    report_multiple_bugs=False,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@_SLOW
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60), crash=st.integers(0, 60))
@example(seed=264329281, steps=59, crash=46)
def test_undo_gives_back_what_was(place: Path, seed: int, steps: int, crash: int) -> None:
    with tempfile.TemporaryDirectory(dir=place) as base, folder_at(Path(base) / "f") as folder:
        breaker, before = _grown(folder, seed)
        name = folder.begin()
        for number in range(steps):
            if number == crash:
                folder.crash()
            breaker.step()
        to = Path(base) / "restored"
        folder.restore(name, to)
        restored = state_of(to, ids=False)
        _equal(restored, state_without_ids(before))
        folder.undo()
        _equal(state_of(folder.path), before)
        folder.undo()
        _equal(state_of(folder.path), before)
        for _ in range(10):
            breaker.step()
        folder.undo()
        folder.end(SafetyEnd.UNDONE)
        _equal(state_of(folder.path), before)
        assert folder.area.facts() == ()
        assert folder.store.guard is None
        assert not folder.told


def _equal(now: dict[str, object], then: dict[str, object]) -> None:
    names = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    assert not names, "\n".join(f"{one}: {now.get(one)}\n  was {then.get(one)}" for one in names)


def state_without_ids(state: dict[str, object]) -> dict[str, object]:
    without = {}
    for name, one in state.items():
        assert isinstance(one, tuple)
        values = list(one)
        values[7] = tuple(pair for pair in values[7] if pair[0] != "trusted.hyperha.id")
        without[name] = tuple(values)
    return without


# --- cut short ----------------------------------------------------------------------------


class Cut(BaseException):
    """The process dies here."""


class Scissors:
    """Ends the program at its n-th call of one of the functions that change a folder."""

    _CALLS = (
        (os, "link"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"), (os, "rename"), (os, "pwrite"),
        (os, "ftruncate"), (os, "chown"), (os, "chmod"), (os, "removexattr"),
        (syscalls, "rename"), (syscalls, "set_times"), (syscalls, "set_xattr"),
        (syscalls, "allocate"), (syscalls, "clone_file"),
    )  # fmt: skip

    def __init__(self, patch: pytest.MonkeyPatch, calls: int) -> None:
        self.left = calls
        for module, name in self._CALLS:
            patch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.left == 0:
                raise Cut
            self.left -= 1
            return function(*arguments, **named)

        return call


@pytest.mark.parametrize("seed", [2, 3])
def test_an_undo_that_is_killed_anywhere_is_done_again(path: Path, seed: int) -> None:
    """Each run goes one call further than the one before, from where that one left the folder."""
    with folder_at(path) as folder:
        breaker, before = _grown(folder, seed)
        folder.begin()
        for _ in range(25):
            breaker.step()
        cuts, calls = 0, 0
        while True:
            folder.crash()
            with pytest.MonkeyPatch.context() as patch:
                try:
                    Scissors(patch, calls)
                    folder.undo()
                    break
                except Cut:
                    cuts += 1
                    calls += 1
        assert cuts > 20
        _equal(state_of(folder.path), before)
        folder.end(SafetyEnd.UNDONE)
        _equal(state_of(folder.path), before)


@pytest.mark.parametrize("seed", range(4))
def test_a_process_that_is_killed_anywhere_while_it_saves_loses_nothing(
    path: Path, seed: int
) -> None:
    with folder_at(path) as folder:
        breaker, before = _grown(folder, seed)
        folder.begin()
        for calls in range(40):
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Cut):
                Scissors(patch, calls % 9)
                for _ in range(3):
                    breaker.step()
            folder.crash()
        folder.undo()
        folder.end(SafetyEnd.UNDONE)
        _equal(state_of(folder.path), before)


class Power:
    """What of the undo log is on stable storage: what was there at its last sync.

    The folder's own changes count as stable at once: the worst that a cut can leave.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *, syncs: bool) -> None:
        self.durable: dict[int, bytes] = {}
        real = os.fdatasync

        def fdatasync(descriptor: int) -> None:
            real(descriptor)
            if syncs:
                status = os.fstat(descriptor)
                self.durable[status.st_ino] = os.pread(descriptor, status.st_size, 0)

        patch.setattr(undo_log.os, "fdatasync", fdatasync)

    def cut(self, log: Path, torn: int) -> None:
        """Leave what was stable, and some bytes of what was not yet."""
        stable = self.durable.get(log.stat().st_ino, b"")
        rest = log.read_bytes()[len(stable) :]
        log.write_bytes(stable + rest[:torn])


def _after_a_cut(place: Path, seed: int, steps: int, torn: int, *, syncs: bool) -> bool:
    """Whether an undo gives back what was when the power fails behind some step."""
    with tempfile.TemporaryDirectory(dir=place) as base, folder_at(Path(base) / "f") as folder:
        breaker, before = _grown(folder, seed)
        with pytest.MonkeyPatch.context() as patch:
            power = Power(patch, syncs=syncs)
            name = folder.begin()
            for _ in range(steps):
                breaker.step()
        log = folder.path / ".hyperha" / "safety" / name / "undo"
        power.cut(log, torn)
        folder.crash()
        try:
            folder.undo()
            folder.end(SafetyEnd.UNDONE)
        except (HyperhaError, OSError):
            return False
        return state_of(folder.path) == before


@_SLOW
@given(seed=st.integers(0, 999), steps=st.integers(0, 25), torn=st.integers(0, 99_999))
@example(seed=110, steps=0, torn=0)
def test_the_power_fails_behind_any_change(place: Path, seed: int, steps: int, torn: int) -> None:
    assert _after_a_cut(place, seed, steps, torn, syncs=True)


def test_a_build_that_does_not_sync_the_undo_log_is_caught(tmp_path: Path) -> None:
    results = [_after_a_cut(tmp_path, seed, 12, 0, syncs=False) for seed in range(4)]
    assert not all(results)


def test_a_new_directory_is_known_as_new_after_a_crash(path: Path) -> None:
    """What was moved into it would be taken for its own, and have two places."""
    with folder_at(path) as folder:
        for name in ("a", "a/moved", "a/other"):
            (path / name).mkdir()
        parent = folder.store.identify(ROOT_ID, b"a")
        moved = folder.store.identify(parent, b"moved")
        before = state_of(path)
        folder.begin()
        _rename(folder, parent, b"other", ROOT_ID, b"elsewhere")
        folder.store.apply(SetTimes(moved, 5))
        new = folder.store.new_id()
        made = Attributes(stat.S_IFDIR | 0o755, 0, 0, 0, 5)
        folder.store.apply(Create(ROOT_ID, b"new", new, made, 5))
        _rename(folder, parent, b"moved", new, b"moved")
        folder.crash()
        _rename(folder, new, b"moved", ROOT_ID, b"again")
        _rename(folder, ROOT_ID, b"again", new, b"moved")
        folder.undo()
        _equal(state_of(path), before)


def _rename(folder: Folder, old: FileId, old_name: bytes, new: FileId, new_name: bytes) -> None:
    folder.store.apply(Rename(old, old_name, new, new_name, 0, 7, 7))


def test_names_of_any_bytes_and_length_and_very_many(path: Path, tmp_path: Path) -> None:
    with folder_at(path) as folder:
        many = os.fsencode(path) + b"/many"
        os.mkdir(many)
        names = [b"%05d\xff\xfe\n" % number + b"n" * 247 for number in range(10_000)]
        assert {len(one) for one in names} == {255}
        for name in names:
            os.close(os.open(os.path.join(many, name), os.O_CREAT))
        directory = folder.store.identify(ROOT_ID, b"many")
        before = state_of(path)
        copy = folder.begin(required=True)
        for number in range(0, 10_000, 100):
            folder.store.apply(Remove(directory, names[number], False, 7))
            _rename(folder, directory, names[number + 1], ROOT_ID, names[number + 1])
        folder.crash()
        folder.restore(copy, tmp_path / "to")
        _equal(state_of(tmp_path / "to", ids=False), state_without_ids(before))
        folder.undo()
        folder.end(SafetyEnd.UNDONE)
        _equal(state_of(path), before)


def test_a_tree_deeper_than_any_path_is_undone_and_deleted(path: Path) -> None:
    """A guest makes one step by step; nobody can name its end."""
    with folder_at(path) as folder:
        deep = 1500
        before = state_of(path)
        folder.begin(required=True)
        parent = ROOT_ID
        for number in range(deep):
            new = folder.store.new_id()
            made = Attributes(stat.S_IFDIR | 0o755, 0, 0, 0, 5)
            folder.store.apply(Create(parent, b"below-%d" % number, new, made, 5))
            parent = new
        folder.undo()
        folder.end(SafetyEnd.UNDONE)
        _equal(state_of(path), before)


def test_a_descriptor_stays_open_while_what_it_names_is_saved(path: Path, monkeypatch: Any) -> None:
    """The cache of open ones may let go of it at any moment, by another thread."""
    with folder_at(path) as folder:
        (path / "d").mkdir()
        (path / "d" / "f").touch()
        directory = folder.store.identify(ROOT_ID, b"d")
        before = state_of(path)
        folder.begin(required=True)
        real = folder.store.directory
        monkeypatch.setattr(
            folder.store,
            "directory",
            lambda file: Descriptor(os.dup(real(file).fd), directory=True),
        )
        guard = folder.store.guard
        assert guard is not None
        guard.records(folder.store, (Record(RecordKind.DIRECTORY, directory),))
        made = Attributes(stat.S_IFREG | 0o600, 0, 0, 0, 5)
        for name in (b"new", b"link"):
            folder.store.apply(Create(ROOT_ID, name, folder.store.new_id(), made, 5))
        folder.store.apply(Link(Target(NO_ID, directory, b"f"), ROOT_ID, b"hard", 5))
        monkeypatch.undo()
        folder.undo()
        _equal(state_of(path), before)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9))), st.integers(0, 70))
def test_the_set_of_saved_blocks(marks: list[tuple[int, int]], last: int) -> None:
    blocks, known = Blocks(), set[int]()
    for first, count in marks:
        blocks.mark(first, count)
        known.update(range(first, first + count))
        assert blocks.count == len(known)
    for first in (0, last // 2, last):
        missing = [
            n for start, count in blocks.missing(first, last) for n in range(start, start + count)
        ]
        assert missing == [n for n in range(first, last + 1) if n not in known]


def test_a_file_may_say_any_size(tmp_path: Path) -> None:
    """A guest makes it with one command; a primary that keeps a copy would fail at every write."""
    with file_system("xfs", tmp_path) as mounted, folder_at(mounted / "folder") as folder:
        with open(folder.path / "disk", "wb") as file:
            file.write(b"former")
            file.truncate(1 << 62)
        disk = folder.store.identify(ROOT_ID, b"disk")
        folder.begin(required=True)
        assert folder.store.write(disk, 0, b"later!") == 6
        assert folder.store.write(disk, 1 << 61, b"far") == 3
        folder.crash()
        assert folder.store.write(disk, 1, b"!") == 1
        began = time.monotonic()
        folder.restore(folder.area.facts()[0].id, mounted / "to")
        assert time.monotonic() - began < 30, "not step by step"
        with open(mounted / "to" / "disk", "rb") as file:
            assert file.read(8) == b"former\0\0"
            assert os.fstat(file.fileno()).st_size == 1 << 62
            assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) <= 1 << 16
            with pytest.raises(OSError, match="No such device"):
                os.lseek(file.fileno(), 1 << 20, os.SEEK_DATA)
        folder.undo()
        assert folder.store.read(disk, 0, 8) == b"former\0\0"
        assert folder.store.data_ranges(disk, 1 << 20, 1 << 62) == []


# --- keeping ------------------------------------------------------------------------------


@_SLOW
@given(seed=st.integers(0, 2**32))
def test_two_copies_at_once(place: Path, seed: int) -> None:
    """An older one that is kept, and one of a resync under way that is undone."""
    with tempfile.TemporaryDirectory(dir=place) as base, folder_at(Path(base) / "f") as folder:
        breaker, first = _grown(folder, seed)
        kept = folder.begin(required=True)
        breaker.grown = False
        for _ in range(15):
            breaker.step()
        folder.end(SafetyEnd.COPIED)
        for _ in range(15):
            breaker.step()
        breaker.grown = True
        second = state_of(folder.path)
        opened = folder.begin()
        for number in range(30):
            breaker.step()
            if number == 15:
                folder.crash()
        for name, then in ((kept, first), (opened, second)):
            to = Path(base) / name
            folder.restore(name, to)
            # Without the map of holes: xfs keeps room in them, and that counts as data once read.
            found = _unlinked(state_of(to, ids=False))
            _equal(_unmapped(found), _unmapped(_unlinked(state_without_ids(then))))
        folder.undo()
        folder.end(SafetyEnd.UNDONE)
        _equal(_unmapped(_unlinked(state_of(folder.path))), _unmapped(_unlinked(second)))
        for _ in range(15):
            breaker.step()
        to = Path(base) / "again"
        folder.restore(kept, to)
        _equal(_unmapped(state_of(to, ids=False)), _unmapped(state_without_ids(first)))
        folder.area.delete(kept)
        assert folder.store.guard is None


def _unlinked(state: dict[str, object]) -> dict[str, object]:
    """Without the numbers of names: a kept copy may have one."""
    return {name: (*one[:6], *one[7:]) for name, one in state.items() if isinstance(one, tuple)}


def _unmapped(state: dict[str, object]) -> dict[str, object]:
    """Size and content of regular files, without where they have holes."""
    found = {}
    for name, one in state.items():
        assert isinstance(one, tuple)
        content = one[-1][:-1] if isinstance(one[-1], tuple) else one[-1]
        found[name] = (*one[:-1], content)
    return found


def test_a_restore_under_changes_gives_the_former_state(path: Path, tmp_path: Path) -> None:
    """First touches race with the reading of every listing, inode and block."""
    with folder_at(path) as folder:
        for seed in range(6):
            breaker, before = _grown(folder, seed)
            name = folder.begin(required=True)
            folder.end(SafetyEnd.COPIED)
            ended = threading.Event()

            def change(breaker: Breaker = breaker, ended: threading.Event = ended) -> None:
                while not ended.is_set():
                    breaker.step()

            thread = threading.Thread(target=change)
            thread.start()
            to = tmp_path / f"to{seed}"
            try:
                folder.restore(name, to)
            finally:
                ended.set()
                thread.join()
            # Without the map of holes: beside changes, a hole has been seen to come back as zeros.
            found = _unlinked(state_of(to, ids=False))
            _equal(_unmapped(found), _unmapped(_unlinked(state_without_ids(before))))
            folder.area.delete(name)


def test_a_restore_of_what_is_given_up_meanwhile_fails(path: Path, tmp_path: Path) -> None:
    """What changes from then on is not saved: it would be taken for the former state."""
    with folder_at(path) as folder:
        (path / "disk").write_bytes(b"former" * 1000)
        file = folder.store.identify(ROOT_ID, b"disk")
        name = folder.begin(required=True)
        folder.end(SafetyEnd.COPIED)

        def full(done: int, total: int) -> None:
            if folder.store.guard is not None:
                assert folder.store.guard.make_room()
                folder.store.write(file, 0, b"later!")

        with pytest.raises(HyperhaError, match="given up"):
            folder.area.restore(name, str(tmp_path / "to"), full)


def test_a_large_file_of_which_much_is_overwritten_is_cloned(path: Path) -> None:
    size = 8 << 20
    with folder_at(path) as folder:
        data = os.urandom(size)
        (path / "disk").write_bytes(data)
        file = folder.store.identify(ROOT_ID, b"disk")
        before = state_of(path)
        name = folder.begin(required=True)
        for offset in range(0, size // 2, 1 << 20):
            folder.store.write(file, offset + 5, b"x" * 70_000)
        (saver,) = folder.store.guard.savers
        for offset in range(0, size, 1 << 19):
            folder.store.write(file, offset, b"y" * (1 << 19))
        can = syscalls.file_system_type(folder.store.directory(ROOT_ID).fd) != _EXT4
        assert (saver.clones > 0) == can
        if can:
            assert folder.area.facts()[0].saved_bytes > size // 2
            assert saver.log_bytes < size // 2
        folder.store.apply(Truncate(file, 10, 5))
        to = path.parent / "to"
        folder.restore(name, to)
        assert (to / "disk").read_bytes() == data
        folder.crash()
        folder.undo()
        folder.end(SafetyEnd.UNDONE)
        _equal(state_of(path), before)


def test_kept_copies_end_after_their_time_and_above_their_size(path: Path) -> None:
    with folder_at(path) as folder:
        folder.keep = Keep(7, 0)
        folder.crash()
        breaker, _ = _grown(folder, 1)
        name = folder.begin(required=True)
        breaker.step()
        folder.area.expire()
        assert [one.state for one in folder.area.facts()] == [State.OPEN]
        folder.end(SafetyEnd.COPIED)
        folder.area.expire()
        assert [one.state for one in folder.area.facts()] == [State.KEPT]
        folder.keep = Keep(0, 0)
        folder.crash()
        folder.area.expire()
        assert folder.area.facts() == ()
        assert not list((path / ".hyperha" / "safety").iterdir())
        assert any(name in line.text for line in folder.told)


def test_what_is_kept_together_is_bounded_by_size(path: Path, monkeypatch: Any) -> None:
    """max_gib: the oldest one goes, and only as many as are too much; one under way never."""
    monkeypatch.setattr(retention, "_GIB", 1 << 20)
    with folder_at(path) as folder:
        names = []
        for number in range(4):
            (path / f"disk{number}").write_bytes(os.urandom(900 << 10))
            file = folder.store.identify(ROOT_ID, b"disk%d" % number)
            names.append(folder.begin(required=True))
            folder.store.write(file, 0, b"x" * (900 << 10))
            if number < 3:
                folder.end(SafetyEnd.COPIED)
        folder.keep = Keep(7, 0)
        folder.crash()
        folder.area.expire()
        assert State.LOST not in [one.state for one in folder.area.facts()], "0: no bound"
        sizes = {one.id: one.saved_bytes for one in folder.area.facts()}
        kept = sorted(names[:3], key=[one.id for one in folder.area.facts()].index)
        limit = -(-(sizes[kept[1]] + sizes[kept[2]]) // (1 << 20))
        folder.keep = Keep(7, limit)
        folder.crash()
        folder.area.expire()
        folder.area.expire()
        states = {one.id: (one.state, one.text) for one in folder.area.facts()}
        assert states[kept[0]][0] is State.LOST
        assert f"larger than max_gib = {limit}" in states[kept[0]][1]
        assert [states[one][0] for one in kept[1:]] == [State.KEPT] * 2
        assert states[names[3]][0] is State.OPEN
        assert not (path / ".hyperha" / "safety" / kept[0] / "undo").exists(), "its room is free"
        folder.area.delete(kept[0])


def test_copies_of_one_second_never_have_one_name(path: Path, monkeypatch: Any) -> None:
    with folder_at(path) as folder:
        breaker, _ = _grown(folder, 1)
        monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2026,) + (1,) * 8))
        chance = iter([b"aa", b"aa", b"bb"])
        monkeypatch.setattr(area.os, "urandom", lambda size: next(chance))
        first = folder.begin(required=True)
        for _ in range(9):
            breaker.step()
        folder.end(SafetyEnd.COPIED)
        assert folder.begin() != first


def test_a_clock_that_jumps_ends_no_copy(path: Path, monkeypatch: Any) -> None:
    """The battery of a node's clock is dead, or somebody sets the year wrong: what only this copy
    holds would be deleted at once (S4)."""
    with folder_at(path) as folder:
        folder.keep = Keep(7, 0)
        folder.crash()
        breaker, _ = _grown(folder, 1)
        folder.begin(required=True)
        breaker.step()
        folder.end(SafetyEnd.COPIED)
        real = time.time_ns
        with monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda: real() + 400 * 86_400 * 10**9)
            folder.area.expire()
            folder.crash()
            folder.area.expire()
        assert [one.state for one in folder.area.facts()] == [State.KEPT]
        # It grows old by a clock that nobody sets, over restarts.
        for day in range(7):
            assert len(folder.area.facts()) == 1, day
            _days_pass(monkeypatch, 1)
            folder.area.expire()
            folder.crash()
        assert folder.area.facts() == ()


def _days_pass(patch: pytest.MonkeyPatch, days: float) -> None:
    """On the clock that nobody sets."""
    now_ns = time.clock_gettime_ns
    later_ns = int(days * 86_400 * 10**9)
    patch.setattr(time, "clock_gettime_ns", lambda clock: now_ns(clock) + later_ns)


@pytest.mark.parametrize("gives_up", [False, True])
@pytest.mark.parametrize("others", [False, True])
def test_a_copy_is_as_old_as_it_was_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch, gives_up: bool, others: bool
) -> None:
    """R15, N3: not as old as the process, or as the resync that it was made for. What nobody else
    holds was deleted a minute after it was kept."""
    with folder_at(path) as folder:
        folder.keep = Keep(7, 0)
        folder.crash()
        breaker, _ = _grown(folder, 1)
        if others:
            # Ended and looked after all the while, and to be told from the one in question.
            folder.begin(required=True)
            breaker.step()
            folder.end(SafetyEnd.COPIED)
        for _ in range(6):
            _days_pass(monkeypatch, 1)
            (folder.area.expire if others else folder.area.tick)()
        name = folder.begin(required=True, gives_up=gives_up)
        breaker.step()
        _days_pass(monkeypatch, 0.9)
        folder.end(SafetyEnd.COPIED)
        kept = [one.id for one in folder.area.facts()]
        _days_pass(monkeypatch, 0.05)
        folder.area.expire()
        assert [one.id for one in folder.area.facts()] == kept
        _days_pass(monkeypatch, 6.9)
        # Told at any time, not only once it is in the record: operators see when it goes.
        assert 6.95 <= folder.area.facts()[-1].lived_ms / 86_400_000 < 7
        folder.area.expire()
        assert [one.id for one in folder.area.facts()] == [name]
        _days_pass(monkeypatch, 0.1)
        folder.area.expire()
        assert folder.area.facts() == ()


def test_what_else_lies_beside_the_copies_stops_nobody(path: Path) -> None:
    """A file of an operator's, or what a power cut has left of a record: the folder is covered."""
    with folder_at(path) as folder:
        kept = folder.begin(required=True)
        safety = path / ".hyperha" / "safety"
        (safety / "note.txt").write_text("do not delete")
        (safety / "20200101-000000-0000" / "files").mkdir(parents=True)
        (safety / "20200101-000000-0000" / "record.new").write_bytes(b"\0" * 100)
        folder.crash()
        assert [one.id for one in folder.area.facts()] == [kept]
        assert not (safety / "20200101-000000-0000").exists(), "nobody was told of it"
        assert (safety / "note.txt").exists()
        assert not folder.told


def test_what_cannot_be_read_stays_on_disk(path: Path, monkeypatch: Any) -> None:
    """It is of no use to a resync any more, but it may hold what nobody else has."""
    with folder_at(path) as folder:
        breaker, _ = _grown(folder, 1)
        name = folder.begin(required=True)
        for _ in range(9):
            breaker.step()
        folder.end(SafetyEnd.COPIED)
        log = path / ".hyperha" / "safety" / name / "undo"
        size = log.stat().st_size
        real = os.pread

        def broken(descriptor: int, length: int, offset: int) -> bytes:
            if os.fstat(descriptor).st_ino == log.stat().st_ino:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(descriptor, length, offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", broken)
            folder.crash()
        (facts,) = folder.area.facts()
        assert facts.state is State.LOST
        assert "cannot be read" in facts.text
        assert log.stat().st_size == size
        folder.area.delete(name)
        assert not log.exists()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("opened", [False, True])
def test_a_log_that_is_damaged_in_the_middle_is_no_shorter_log(
    path: Path, part: float, opened: bool
) -> None:
    """Cut there, it would put back some files as they were and leave others as they are."""
    with folder_at(path) as folder:
        breaker, before = _grown(folder, 1)
        name = folder.begin(required=True)
        for _ in range(40):
            breaker.step()
        if not opened:
            folder.end(SafetyEnd.COPIED)
        log = path / ".hyperha" / "safety" / name / "undo"
        places = _places(folder, name)
        place = places[int(len(places) * part)]
        folder.close()
        content = bytearray(log.read_bytes())
        content[place + 9] ^= 1
        log.write_bytes(content)
        folder.open()
        (facts,) = folder.area.facts()
        assert facts.state is State.LOST
        assert f"damaged at byte {place}" in facts.text
        assert log.read_bytes() == content, "what it holds stays"
        if opened:
            assert any(isinstance(one, SafetyLost) for one in folder.told)
            with pytest.raises(RefusedError):
                folder.undo()
        assert state_of(path) != before


def test_a_log_that_is_damaged_while_it_is_open_undoes_nothing(path: Path) -> None:
    with folder_at(path) as folder:
        breaker, _ = _grown(folder, 1)
        name = folder.begin(required=True)
        for _ in range(40):
            breaker.step()
        now = state_of(path)
        place = _places(folder, name)[5]
        with open(path / ".hyperha" / "safety" / name / "undo", "r+b") as log:
            log.seek(place)
            log.write(b"\0")
        with pytest.raises(HyperhaError, match=f"damaged at byte {place}"):
            folder.undo()
        assert state_of(path) == now


def _places(folder: Folder, name: str) -> list[int]:
    """Where the entries of a log begin."""
    path = folder.path / ".hyperha" / "safety" / name / "undo"
    log = undo_log.UndoLog(os.open(path, os.O_RDONLY), name)
    places = [one.place - len(one.handle) - undo_log.HEAD_BYTES for one in log.follow()]
    log.close()
    return places


def test_a_resync_that_came_to_nothing_leaves_a_kept_copy_if_it_saved_anything(path: Path) -> None:
    with folder_at(path) as folder:
        breaker, _ = _grown(folder, 1)
        untouched = folder.begin()
        first = folder.begin()
        assert [one.id for one in folder.area.facts()] == [first] != [untouched]
        for _ in range(9):
            breaker.step()
        folder.begin()
        assert [one.state for one in folder.area.facts()] == [State.KEPT, State.OPEN]
        with pytest.raises(RefusedError, match="has not ended"):
            folder.area.delete(folder.area.facts()[1].id)
        folder.end(SafetyEnd.FORCED)
        folder.area.delete(first)
        assert [one.state for one in folder.area.facts()] == [State.KEPT]
        with pytest.raises(NotFoundError, match="there is no safety copy"):
            folder.area.delete(first)


def test_a_resume_without_a_copy_is_refused(path: Path) -> None:
    """And told as lost: a core that does not know it would insist on the copy for ever (N3)."""
    with folder_at(path) as folder:
        with pytest.raises(RefusedError, match="given up"):
            folder.begin(resume=True, required=True)
        assert [type(one) for one in folder.told] == [SafetyLost]


def test_where_a_copy_may_be_restored(path: Path, tmp_path: Path) -> None:
    with folder_at(path) as folder:
        _grown(folder, 1)
        name = folder.begin()
        (path / "inside").mkdir()
        full = tmp_path / "full"
        full.mkdir()
        (full / "x").touch()
        for to, says in (
            (path / "inside", "lies inside the folder"),
            (full, "is not empty"),
            (full / "x", "cannot be used"),
            (tmp_path / "no" / "way", "cannot be made"),
            (Path("relative"), "not an absolute path"),
        ):
            with pytest.raises(RefusedError, match=says):
                folder.restore(name, to)


def test_a_copy_of_a_folder_that_no_module_covers(path: Path, tmp_path: Path) -> None:
    with folder_at(path) as folder:
        breaker, before = _grown(folder, 4)
        name = folder.begin(required=True)
        for _ in range(20):
            breaker.step()
        folder.end(SafetyEnd.COPIED)
    area = SafetyArea.of_folder(str(path))
    try:
        assert [one.id for one in area.facts()] == [name]
        area.restore(name, str(tmp_path / "to"), lambda done, total: None)
        restored = state_of(tmp_path / "to", ids=False)
        _equal(_unlinked(restored), _unlinked(state_without_ids(before)))
        area.delete(name)
        assert area.facts() == ()
    finally:
        area.close()


# --- no room ------------------------------------------------------------------------------


@pytest.mark.parametrize("required", [False, True])
def test_a_full_disk(tmp_path: Path, required: bool) -> None:
    with (
        file_system("ext4", tmp_path) as mounted,
        folder_at(mounted / "folder") as folder,
    ):
        (folder.path / "disk").write_bytes(os.urandom(8 << 20))
        file = folder.store.identify(ROOT_ID, b"disk")
        before = state_of(folder.path)
        name = folder.begin(required=required)
        fill(mounted, 7 << 20)
        if required:
            with pytest.raises(ReplicationError, match="no room for the safety copy"):
                _overwrite(folder, file)
            assert folder.area.facts()[0].state is State.OPEN
            assert not [one for one in folder.told if isinstance(one, SafetyLost)]
            folder.undo()
            _equal(state_of(folder.path), before)
            (mounted / "filler").unlink()
            _overwrite(folder, file)
            folder.undo()
            _equal(state_of(folder.path), before)
        else:
            _overwrite(folder, file)
            (facts,) = folder.area.facts()
            assert (facts.id, facts.state) == (name, State.LOST)
            assert "no room" in facts.text
            assert [type(one) for one in folder.told] == [SafetyLost]
            assert folder.store.guard is None
            with pytest.raises(RefusedError, match="given up"):
                folder.restore(name, tmp_path / "to")
            folder.crash()
            assert folder.area.facts()[0].state is State.LOST
            assert folder.store.guard is None


def test_a_guest_never_waits_for_room_for_a_kept_copy(tmp_path: Path) -> None:
    with file_system("ext4", tmp_path) as mounted, folder_at(mounted / "folder") as folder:
        (folder.path / "disk").write_bytes(os.urandom(8 << 20))
        file = folder.store.identify(ROOT_ID, b"disk")
        folder.begin(required=True)
        folder.end(SafetyEnd.COPIED)
        fill(mounted, 7 << 20)
        folder.told.clear()
        _overwrite(folder, file)
        assert folder.area.facts()[0].state is State.LOST
        (line,) = folder.told
        assert isinstance(line, LogLine)
        assert line.level == "E"
        fill_more = os.statvfs(mounted)
        assert fill_more.f_bavail * fill_more.f_frsize > 5 << 20


@pytest.mark.parametrize("kept", [False, True])
def test_a_copy_makes_room_for_new_data(tmp_path: Path, kept: bool) -> None:
    """What is new needs no saving, but the room that a copy takes."""
    with file_system("ext4", tmp_path) as mounted, folder_at(mounted / "folder") as folder:
        for name in ("disk", "other"):
            (folder.path / name).write_bytes(os.urandom(8 << 20))
        file = folder.store.identify(ROOT_ID, b"disk")
        other = folder.store.identify(ROOT_ID, b"other")
        folder.begin(required=kept)
        _overwrite(folder, file)
        if kept:
            folder.end(SafetyEnd.COPIED)
        fill(mounted, 4 << 20)
        for offset in range(8 << 20, 16 << 20, 1 << 18):
            assert folder.store.write(other, offset, b"n" * (1 << 18)) == 1 << 18
        assert folder.area.facts()[0].state is State.LOST


def test_a_look_at_the_room_ends_no_resync_s_way_back(tmp_path: Path) -> None:
    """R15: nothing had to be saved, and it may never have to be; other kept copies go."""
    with file_system("ext4", tmp_path) as mounted, folder_at(mounted / "folder") as folder:
        folder.keep = Keep(7, 0)
        folder.crash()
        (folder.path / "disk").write_bytes(os.urandom(8 << 20))
        file = folder.store.identify(ROOT_ID, b"disk")
        before = state_of(folder.path)
        kept = folder.begin(required=True)
        folder.end(SafetyEnd.COPIED)
        name = folder.begin()
        folder.store.write(file, 0, b"touched")
        fill(mounted, 1 << 20)
        folder.area.expire()
        states = {one.id: one.state for one in folder.area.facts()}
        assert states == {kept: State.LOST, name: State.OPEN}
        assert not [one for one in folder.told if isinstance(one, SafetyLost)]
        folder.undo()
        _equal(state_of(folder.path), before)
        _overwrite(folder, file)
        assert {one.state for one in folder.area.facts()} == {State.LOST}


@pytest.mark.parametrize("serving", [False, True])
def test_what_nobody_else_holds_is_never_given_up_for_room(tmp_path: Path, serving: bool) -> None:
    """N3: the loser of a split brain. Until the disk is full it is saved on; then the guest, or the
    stream of the other node, meets a full disk, and it is said what to do."""
    with file_system("ext4", tmp_path) as mounted, folder_at(mounted / "folder") as folder:
        folder.keep = Keep(7, 0)
        folder.crash()
        data = os.urandom(8 << 20)
        (folder.path / "disk").write_bytes(data)
        file = folder.store.identify(ROOT_ID, b"disk")
        name = folder.begin(gives_up=True)
        folder.end(SafetyEnd.COPIED)
        folder.serving = serving
        ordinary = folder.begin()
        folder.store.write(file, 0, b"touched by both")
        folder.serving = serving
        if serving:
            # What was left open by a resync that came to nothing.
            folder.area.expire()
        fill(mounted, 1 << 20)
        folder.told.clear()
        folder.area.expire()
        states = {one.id: one.state for one in folder.area.facts()}
        # The way back of a resync that is under way goes only when saving fails.
        assert states == {name: State.KEPT, ordinary: State.LOST if serving else State.OPEN}
        lacks = folder.area.shortage()
        assert lacks is not None
        assert lacks.free_bytes < lacks.needed_bytes
        # The reserve is for it, too.
        folder.store.write(file, 1 << 20, b"a")
        states = {one.id: one.state for one in folder.area.facts()}
        assert states == {name: State.KEPT, ordinary: State.LOST}
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            _overwrite(folder, file)
        assert not folder.store.guard.make_room()
        folder.area.expire()
        lines = [one for one in folder.told if isinstance(one, LogLine) and one.rule == "N3"]
        assert len(lines) == 1, "said once"
        assert name in lines[0].text
        (mounted / "filler").unlink()
        _overwrite(folder, file)
        folder.crash()
        folder.restore(name, tmp_path / "to")
        assert (tmp_path / "to" / "disk").read_bytes() == data
        folder.area.expire()
        assert folder.area.shortage() is None


@pytest.mark.parametrize("gives_up", [False, True])
@pytest.mark.parametrize("write", [False, True])
def test_what_is_left_of_a_copy_that_was_given_up_is_told_and_goes_for_room(
    tmp_path: Path, gives_up: bool, write: bool
) -> None:
    """R15, N3: it was shown as nothing while it took the room that was looked for. What nobody
    else holds stays: more can be got out of it than nothing."""
    with file_system("ext4", tmp_path) as mounted, folder_at(mounted / "folder") as folder:
        folder.keep = Keep(7, 0)
        for name in ("disk", "other"):
            (folder.path / name).write_bytes(os.urandom(8 << 20))
        file = folder.store.identify(ROOT_ID, b"disk")
        other = folder.store.identify(ROOT_ID, b"other")
        name = folder.begin(required=True, gives_up=gives_up)
        _overwrite(folder, file)
        place = _places(folder, name)[5]
        folder.close()
        with open(folder.path / ".hyperha" / "safety" / name / "undo", "r+b") as log:
            log.seek(place)
            log.write(b"\0")
        folder.open()
        (facts,) = folder.area.facts()
        assert facts.state is State.LOST
        assert facts.saved_bytes > 8 << 20
        assert facts.text.endswith("still on the disk: deleting it frees the room")
        folder.area.expire()
        assert [replace(one, lived_ms=0) for one in folder.area.facts()] == [
            replace(facts, lived_ms=0)
        ], "there is room enough"
        # One that must not go has the guard ask, too.
        folder.begin(gives_up=True)
        folder.end(SafetyEnd.FORCED)
        folder.serving = True
        folder.store.write(other, 0, b"n")
        fill(mounted, 1 << 20)
        if write and not gives_up:
            # The room that root alone may use goes first.
            for offset in range(8 << 20, 15 << 20, 1 << 18):
                assert folder.store.write(other, offset, b"n" * (1 << 18)) == 1 << 18
        else:
            folder.area.expire()
        left = next(one for one in folder.area.facts() if one.id == name)
        if gives_up:
            assert replace(left, lived_ms=0) == replace(facts, lived_ms=0)
        else:
            assert (left.state, left.saved_bytes) == (State.LOST, 0)
            assert "still on the disk" not in left.text
            room = os.statvfs(mounted)
            taken = (7 << 20) if write else 0
            assert room.f_bfree * room.f_frsize + taken > 9 << 20


def test_what_was_left_open_when_the_node_died_ends(path: Path) -> None:
    with folder_at(path) as folder:
        folder.keep = Keep(7, 0)
        folder.crash()
        breaker, _ = _grown(folder, 1)
        folder.begin()
        folder.serving = True
        folder.area.expire()
        assert folder.area.facts() == ()
        folder.serving = False
        folder.begin()
        for _ in range(5):
            breaker.step()
        folder.serving = True
        folder.area.expire()
        assert [one.state for one in folder.area.facts()] == [State.KEPT]


def test_a_copy_whose_making_was_cut_short_is_forgotten(path: Path) -> None:
    for calls in range(12):
        with folder_at(path) as folder, pytest.MonkeyPatch.context() as patch:
            with contextlib.suppress(Cut):
                Scissors(patch, calls)
                folder.begin()
                folder.end(SafetyEnd.UNDONE)
            patch.undo()
            folder.crash()
            assert [one.state for one in folder.area.facts()] in ([], [State.OPEN])
            assert folder.told == []
            folder.begin()
            assert [one.state for one in folder.area.facts()] == [State.OPEN]
            folder.end(SafetyEnd.UNDONE)
            assert folder.area.facts() == ()


def test_without_room_to_begin_with_no_copy_is_opened(tmp_path: Path) -> None:
    with file_system("ext4", tmp_path) as mounted, folder_at(mounted / "folder") as folder:
        fill(mounted, 1 << 20)
        with pytest.raises(OSError, match=r"no room for the safety copy: \d+ bytes needed"):
            folder.begin()
        assert folder.area.facts() == ()


def test_without_inodes_no_copy_is_opened_and_nothing_of_it_stays(tmp_path: Path) -> None:
    """N3: the node waits, as for bytes; what was begun is not taken for an open copy later."""
    with file_system("ext4", tmp_path) as mounted, folder_at(mounted / "folder") as folder:
        fillers = mounted / "fillers"
        fillers.mkdir()
        with contextlib.suppress(OSError):
            for number in range(1 << 20):
                (fillers / str(number)).touch()
        told = []
        while (lacks := _refused(folder)) is not None:
            assert list((folder.path / ".hyperha" / "safety").iterdir()) == []
            # It is refused once more for each inode that the making of a copy takes.
            (fillers / str(len(told))).unlink()
            told.append(lacks.text)
        assert told[0] == "no inode is free"
        assert 2 < len(told) < 9
        assert all(told)
        folder.crash()
        assert [one.state for one in folder.area.facts()] == [State.OPEN]


def _refused(folder: Folder) -> Shortage | None:
    try:
        folder.begin(gives_up=True)
    except NoRoom as problem:
        return problem.lacks
    return None


def test_without_inodes_for_clones_blocks_are_saved(path: Path, monkeypatch: Any) -> None:
    with folder_at(path) as folder:
        data = os.urandom(2 << 20)
        path.mkdir(exist_ok=True)
        (path / "disk").write_bytes(data)
        file = folder.store.identify(ROOT_ID, b"disk")
        folder.begin(gives_up=True)
        real = os.mkdir

        def mkdir(name: Any, *args: Any, **more: Any) -> None:
            if name == "clones":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(name, *args, **more)

        monkeypatch.setattr(os, "mkdir", mkdir)
        folder.store.write(file, 0, b"x" * (2 << 20))
        monkeypatch.undo()
        folder.undo()
        assert (path / "disk").read_bytes() == data


def _overwrite(folder: Folder, file: FileId) -> None:
    for offset in range(0, 8 << 20, 1 << 18):
        folder.store.write(file, offset, b"z" * (1 << 18))
