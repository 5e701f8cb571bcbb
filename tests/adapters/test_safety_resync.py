"""Safety copies under real resyncs: two engines joined over loopback (R15)."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperha.core.actions import CloseSafety, OpenSafety, SafetyEnd, SessionStart, UndoResync
from hyperha.core.events import (
    LocalDiskFailed,
    SafetyLost,
    SafetyShort,
    SessionStalled,
    SessionUp,
)
from hyperha.core.records import Generation
from hyperha.replication import syscalls, wire
from hyperha.replication.operations import ROOT_ID, FileId, Record, RecordKind, Truncate
from hyperha.replication.safety import saver as saver_module
from hyperha.replication.safety.area import SafetyArea
from hyperha.replication.safety.copy import State
from hyperha.replication.safety.saver import NoRoom, Saver
from hyperha.replication.safety.undo_log import UndoLog
from hyperha.replication.wire import Kind
from tests.support.engine_pair import Guest, Monkey, Pair, Side, pair_at, wait_for
from tests.support.raw_peers import raw_primary
from tests.support.safety import state_of

pytestmark = pytest.mark.root
_GENERATION = Generation("cd" * 16, 2, "test", 0)


class Guarded:
    """A side's safety area, opened again when the side is."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.told: list[object] = []
        self.open()

    def open(self) -> None:
        folder = os.open(self.side.folder, os.O_RDONLY)
        self.area = SafetyArea(
            folder, str(self.side.folder), self.side.store, report=self.told.append
        )
        os.close(folder)

    def begin(self, *, resume: bool = False, required: bool = False) -> None:
        self.area.perform(OpenSafety(1, resume, required, "R7", _GENERATION, False))

    def undo(self) -> None:
        self.side.acceptor.close()
        self.area.perform(UndoResync(2))

    def end(self, end: SafetyEnd) -> None:
        self.area.perform(CloseSafety(3, end))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with pair_at(tmp_path) as both:
        yield both


def _diverged(pair: Pair, seed: int) -> Monkey:
    """Equal copies with a history; then only `a` goes on."""
    pair.in_sync()
    monkey = Monkey(Guest(pair.a), seed)
    for _ in range(150):
        monkey.step()
    pair.check_equal()
    pair.a.primary.close_session(clean=True)
    pair.b.acceptor.close()
    pair.a.events.clear()
    pair.b.events.clear()
    for _ in range(150):
        monkey.step()
    return monkey


def _break_off(pair: Pair, guarded: Guarded, saved: int, start: SessionStart) -> None:
    """The source dies when something has been saved."""
    pair.connect(start)
    pair.a.wait(SessionUp)
    wait_for(lambda: sum(one.files for one in guarded.area.facts()) >= saved)
    pair.a.primary.close_session(clean=False)


@pytest.mark.parametrize("start", [SessionStart.CANDIDATES, SessionStart.FULL])
@pytest.mark.parametrize("saved", [1, 6, 15])
def test_a_broken_off_resync_is_undone(pair: Pair, saved: int, start: SessionStart) -> None:
    monkey = _diverged(pair, saved)
    guarded = Guarded(pair.b)
    before = state_of(pair.b.folder)
    guarded.begin()
    _break_off(pair, guarded, saved, start)
    guarded.undo()
    assert _differences(state_of(pair.b.folder), before) == []
    guarded.end(SafetyEnd.UNDONE)
    assert guarded.area.facts() == ()
    for _ in range(30):
        monkey.step()
    guarded.begin()
    pair.resync(start)
    pair.check_equal()
    guarded.end(SafetyEnd.COPIED)
    assert guarded.area.facts() == ()
    guarded.area.close()


def test_writes_to_a_file_that_the_target_lacks_as_yet_do_not_end_the_resync(pair: Pair) -> None:
    """They are small and the zone is warm by the second one: the receiver asks the safety copy
    about an inode that is not here before the resync has brought it (R13)."""
    guarded = Guarded(pair.b)
    guarded.begin()
    with raw_primary(pair.b, 1, SessionStart.FULL) as peer:
        for number in (1, 2, 3):
            head = wire.write_head(4, peer.tag, number, 1, 0, False)
            bind = wire.frame(Kind.BIND, peer.tag, 0, wire.encode_bind(1, FileId(b"n" * 16)))
            peer.say(bind + head + b"data")
            # What comes next finds nothing waiting.
            peer.say(wire.frame(Kind.SYNC, peer.tag, 100 + number))
            assert peer.hear_until(Kind.FLUSHED, 100 + number), pair.b.events
        assert peer.hear_until(Kind.UNSETTLED)
        assert pair.b.acceptor.close() == ""
    guarded.area.close()


def test_a_target_that_dies_goes_on_and_can_be_undone(pair: Pair) -> None:
    _diverged(pair, 5)
    guarded = Guarded(pair.b)
    before = state_of(pair.b.folder)
    guarded.begin()
    _break_off(pair, guarded, 4, SessionStart.CANDIDATES)
    pair.b.crash()
    guarded.area.close()
    guarded.open()
    guarded.begin(resume=True)
    _break_off(pair, guarded, 8, SessionStart.CANDIDATES)
    guarded.undo()
    assert _differences(state_of(pair.b.folder), before) == []
    guarded.area.close()


def test_a_kept_copy_holds_the_former_state_of_a_follower_that_goes_on(
    pair: Pair, tmp_path: Path
) -> None:
    """N3: long after the resync, and while the other node goes on writing."""
    monkey = _diverged(pair, 9)
    guarded = Guarded(pair.b)
    before = state_of(pair.b.folder, ids=False)
    guarded.begin(required=True)
    pair.resync(SessionStart.CANDIDATES)
    guarded.end(SafetyEnd.COPIED)
    (facts,) = guarded.area.facts()
    assert facts.state is State.KEPT
    for round_ in range(3):
        for _ in range(60):
            monkey.step()
        to = tmp_path / f"restored{round_}"
        guarded.area.restore(facts.id, str(to), lambda done, total: None)
        assert _differences(state_of(to), before) == []
        shutil.rmtree(to)
    pair.check_equal()
    assert guarded.told[1:] == []
    guarded.area.close()


def test_a_follower_that_saves_much_for_one_frame_does_not_stand_still(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D8': a kept copy saves all that a truncation takes away, which lasts longer than the peer
    may make no progress."""
    pair.in_sync()
    guest = Guest(pair.a)
    file, other = guest.create(ROOT_ID, b"large"), guest.create(ROOT_ID, b"small")
    for number in range(24):
        guest.write(file, number << 20, os.urandom(1 << 20))
    pair.barrier(pair.a)
    guarded = Guarded(pair.b)
    guarded.begin(required=True)
    guarded.end(SafetyEnd.FORCED)
    note = Saver._note

    def note_slowly(self: Saver, *arguments: Any) -> None:
        time.sleep(0.3)
        note(self, *arguments)

    def truncate() -> Truncate:
        pair.a.store.apply(Truncate(file, 0, 5))
        return Truncate(file, 0, 5)

    monkeypatch.setattr(Saver, "_note", note_slowly)
    begun = time.monotonic()
    guest.change([Record(RecordKind.WHOLE_FILE, file)], truncate)
    guest.write(other, 0, b"x")
    guest.flush(other)
    wait_for(lambda: guest.answers == 29)
    assert time.monotonic() - begun > 1.5 * pair.a.config.stall_limit_ms / 1000
    stalls = [one for one in pair.a.events if isinstance(one, SessionStalled)]
    assert not any(one.over_limit for one in stalls)
    guarded.area.close()


@pytest.mark.parametrize("required", [False, True])
def test_when_saving_fails_a_best_effort_copy_is_given_up_and_a_required_one_stops_the_resync(
    pair: Pair, required: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _diverged(pair, 3)
    guarded = Guarded(pair.b)
    before = state_of(pair.b.folder)
    guarded.begin(required=required)
    real = Saver.commit

    def commit(saver: Saver) -> None:
        if saver.files >= 3:
            raise OSError(errno.EIO, "no luck in this test")
        real(saver)

    monkeypatch.setattr(Saver, "commit", commit)
    if not required:
        pair.resync(SessionStart.CANDIDATES)
        pair.check_equal()
        assert [one for one in guarded.told if isinstance(one, SafetyLost)]
        assert guarded.area.facts()[0].state is State.LOST
        assert pair.b.store.guard is None
    else:
        pair.connect(SessionStart.CANDIDATES)
        failed = pair.b.wait(LocalDiskFailed)
        assert isinstance(failed, LocalDiskFailed)
        assert "no luck in this test" in failed.text
        monkeypatch.undo()
        pair.a.primary.close_session(clean=False)
        guarded.undo()
        assert _differences(state_of(pair.b.folder), before) == []
    guarded.area.close()


def test_a_required_copy_without_room_is_no_failed_disk(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N3: both figures are told, nothing was changed that is not saved, and it goes on later."""
    _diverged(pair, 4)
    guarded = Guarded(pair.b)
    before = state_of(pair.b.folder)
    guarded.begin(required=True)
    real = Saver.commit

    def commit(saver: Saver) -> None:
        if saver.files >= 3:
            raise NoRoom(4096, 512)
        real(saver)

    monkeypatch.setattr(Saver, "commit", commit)
    pair.connect(SessionStart.CANDIDATES)
    short = pair.b.wait(SafetyShort)
    assert isinstance(short, SafetyShort)
    assert (short.lacks.needed_bytes, short.lacks.free_bytes) == (4096, 512)
    assert not pair.b.has(LocalDiskFailed)
    pair.a.primary.close_session(clean=False)
    pair.b.acceptor.close()
    monkeypatch.setattr(saver_module, "check_room", _no_room)
    with pytest.raises(NoRoom):
        guarded.begin(required=True, resume=True)
    monkeypatch.undo()
    guarded.begin(required=True, resume=True)
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    guarded.undo()
    assert _differences(state_of(pair.b.folder), before) == []
    guarded.area.close()


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC])
def test_a_disk_that_is_full_by_other_figures_is_no_failed_one_either(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """N3: a quota. Free bytes say nothing of it, so whether there is room is tried."""
    _diverged(pair, 4)
    guarded = Guarded(pair.b)
    before = state_of(pair.b.folder)
    guarded.begin(required=True)
    real = UndoLog.append
    text = os.strerror(number)

    def append(log: UndoLog, raw: bytes) -> None:
        if log.end > 2000:
            raise OSError(number, text)
        real(log, raw)

    def allocate(descriptor: int, mode: int, offset: int, length: int) -> None:
        raise OSError(number, text)

    monkeypatch.setattr(UndoLog, "append", append)
    pair.connect(SessionStart.CANDIDATES)
    short = pair.b.wait(SafetyShort)
    assert isinstance(short, SafetyShort)
    assert short.lacks.text == text
    assert not pair.b.has(LocalDiskFailed)
    assert guarded.area.facts()[0].state is State.OPEN
    pair.a.primary.close_session(clean=False)
    pair.b.acceptor.close()
    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "allocate", allocate)
        with pytest.raises(NoRoom) as caught:
            guarded.begin(required=False, resume=True)
        assert caught.value.lacks.text == text
    monkeypatch.undo()
    guarded.begin(required=False, resume=True)
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    guarded.undo()
    assert _differences(state_of(pair.b.folder), before) == []
    guarded.area.close()


def _no_room(directory: int, size: int) -> None:
    raise NoRoom(size, 0)


def _differences(now: dict[str, object], then: dict[str, object]) -> list[str]:
    names = sorted(one for one in now.keys() | then.keys() if now.get(one) != then.get(one))
    return [f"{one}: {now.get(one)} was {then.get(one)}" for one in names]


@pytest.mark.parametrize("seed", range(3))
def test_a_source_takes_no_inode_of_its_kept_copy_for_a_file(pair: Pair, seed: int) -> None:
    """What a copy keeps has no name: it is found by no id, neither by the log's nor by a cache."""
    pair.in_sync()
    monkey = Monkey(Guest(pair.a), seed)
    for _ in range(100):
        monkey.step()
    pair.check_equal()
    guarded = Guarded(pair.a)
    guarded.begin(required=True)
    guarded.end(SafetyEnd.COPIED)
    pair.a.primary.close_session(clean=True)
    pair.b.acceptor.close()
    pair.a.events.clear()
    pair.b.events.clear()
    for file in sorted({one[0] for one in monkey.files})[:5]:
        monkey.guest.write(file, 5, b"x" * 5000)
        handle = pair.a.store.handle(file)
        for one in [one for one in monkey.files if one[0] == file]:
            monkey.guest.remove(one[1], one[2])
            monkey.files.remove(one)
        pair.a.store.forget(file)
        assert not pair.a.store.bind_handle(file, handle)
        assert not pair.a.store.known(file)
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    guarded.area.close()
