"""Resync: candidates only, under live load, holes, moves, adoption, interruption; equal copies."""

import errno
import os
import random
import shutil
import stat
import subprocess
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import (
    LocalDiskFailed,
    ResyncCopied,
    ResyncProgressed,
    SessionLost,
    SessionUp,
)
from hyperha.replication import clock, inquiry, resync_source, throttle, wire_changes
from hyperha.replication.control import LogLine
from hyperha.replication.operations import (
    ROOT_ID,
    Allocate,
    Change,
    FileId,
    Record,
    RecordKind,
    Truncate,
)
from hyperha.replication.resync_source import ResyncSource
from hyperha.replication.resync_target import TargetSide
from hyperha.replication.stopwatch import Stopwatch, Timed
from hyperha.replication.syscalls import allocate
from hyperha.replication.wire import Kind
from hyperha.replication.wire_changes import Listing
from tests.support.engine_pair import Guest, Monkey, Pair, call, wait_for

pytestmark = pytest.mark.root


def go_alone(pair: Pair) -> None:
    pair.a.primary.close_session(clean=False)
    pair.b.acceptor.close()
    pair.a.intent.enter_alone("g1")
    pair.a.primary.set_mode(Acknowledge.LOCAL)


def bytes_sent(pair: Pair) -> int:
    """From the closing line of the last resync."""
    lines = [one.text for one in pair.a.events if hasattr(one, "text") and "sent in" in one.text]
    return int(lines[-1].split(" sent in")[0].split()[-1])


def test_a_fresh_secondary_gets_everything(pair: Pair) -> None:
    tree = pair.a.folder
    (tree / "d" / "e").mkdir(parents=True)
    (tree / "disk").write_bytes(os.urandom(3_500_000))
    (tree / "d" / "empty").touch()
    os.link(tree / "disk", tree / "d" / "e" / "hard")
    os.symlink("nowhere", tree / "d" / "soft")
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(tree / "disk", "user.note", b"x\0y")
    os.chmod(tree / "d", 0o2770)
    os.chown(tree / "d" / "empty", 12, 34)
    os.utime(tree / "d", ns=(1, 2_000_000_001))
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    assert pair.a.has(ResyncProgressed)
    # From here on it is an ordinary session.
    guest = Guest(pair.a)
    guest.create(ROOT_ID, b"later")
    wait_for(lambda: guest.answers == 1)
    pair.check_equal()


@pytest.mark.parametrize("size", [100, 300_100, (1 << 20) + 5000, (3 << 20) + 100])
def test_a_hole_at_the_end_of_a_file_is_one_on_the_target(pair: Pair, size: int) -> None:
    with open(pair.a.folder / "sparse", "wb") as file:
        file.truncate(size)
    (pair.b.folder / "sparse").write_bytes(b"\1" * size)
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    with open(pair.b.folder / "sparse", "rb") as file, pytest.raises(OSError, match="No such dev"):
        os.lseek(file.fileno(), 0, os.SEEK_DATA)


def test_a_hole_that_appears_between_question_and_data_is_one_on_the_target(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, os.urandom(1 << 20))
    (pair.b.folder / "f").write_bytes(b"\1" * (1 << 20))
    data = ResyncSource._blocks

    def punch(self: ResyncSource, *arguments: Any) -> None:
        for change in (
            Truncate(file, 70_000, 1),
            Truncate(file, 1 << 20, 1),
            Allocate(file, 3, 0, 8192, 1 << 20, 1),
        ):

            def execute(change: Change = change) -> Change:
                pair.a.store.apply(change)
                return change

            guest.change([Record(RecordKind.WHOLE_FILE, file)], execute)
        data(self, *arguments)

    monkeypatch.setattr(ResyncSource, "_blocks", punch)
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    with open(pair.b.folder / "f", "rb") as there:
        assert os.lseek(there.fileno(), 0, os.SEEK_HOLE) <= 131072
        with pytest.raises(OSError, match="No such dev"):
            os.lseek(there.fileno(), 131072, os.SEEK_DATA)


def test_holes_within_a_block_stay_holes(pair: Pair) -> None:
    for number, place in enumerate((pair.a.folder, pair.b.folder)):
        with open(place / "sparse", "wb") as file:
            for page in (5, 9, 10, 40) if number == 0 else range(50):
                file.seek(page * 4096)
                file.write(bytes([number + 1]) * 4096)
            file.truncate(1 << 20)
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    found = []
    with open(pair.b.folder / "sparse", "rb") as file:
        position = 0
        for _ in range(3):
            start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start // 4096, position // 4096))
        with pytest.raises(OSError, match="No such dev"):
            os.lseek(file.fileno(), position, os.SEEK_DATA)
    assert found == [(5, 6), (9, 11), (40, 41)]


def test_holes_stay_holes_and_appear(pair: Pair) -> None:
    with open(pair.a.folder / "sparse", "wb") as file:
        file.truncate(300 << 20)
        file.seek(100 << 20)
        file.write(b"data" * 1000)
    with open(pair.b.folder / "sparse", "wb") as file:
        file.write(b"\1" * (8 << 20))
        file.seek(200 << 20)
        file.write(b"old" * 1000)
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    assert (pair.b.folder / "sparse").stat().st_blocks * 512 < 1 << 20


def test_adopting_a_copied_folder_moves_only_what_differs(pair: Pair) -> None:
    for number in range(20):
        (pair.a.folder / f"f{number}").write_bytes(os.urandom(200_000))
    subprocess.run(
        ["cp", "-a", f"{pair.a.folder}/.", f"{pair.b.folder}/"], check=True, capture_output=True
    )
    shutil.rmtree(pair.b.folder / ".hyperha")
    pair.b.intent.close()
    pair.b.close()
    pair.b.open(fresh=True)
    with open(pair.b.folder / "f3", "r+b") as file:
        file.seek(70_000)
        file.write(b"changed")
    (pair.b.folder / "stranger").write_bytes(b"goes away")
    (pair.b.folder / "strangers").mkdir()
    (pair.b.folder / "strangers" / "x").touch()
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    assert bytes_sent(pair) == 65536
    lost = pair.b.folder / ".hyperha" / "lost"
    wait_for(lambda: not lost.exists() or not list(lost.iterdir()))


def test_zones_sent_without_asking_stop_where_copies_are_alike(pair: Pair) -> None:
    """Long stretches differ wholly, others not at all, and holes stay holes in both."""
    zone, zones, alike = 1 << 20, 160, 80
    with open(pair.a.folder / "disk", "wb") as file:
        for number in range(zones):
            if number % 30 == 29:
                # A hole, and less than a zone of data behind it.
                file.seek(zone - 65536, os.SEEK_CUR)
                file.write(os.urandom(65536))
            else:
                file.write(os.urandom(zone))
        file.write(b"end")
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    go_alone(pair)
    guest = Guest(pair.a)
    disk = pair.a.store.find(ROOT_ID, b"disk").file
    for number in range(zones - alike):
        if number % 30 != 29:
            guest.write(disk, number * zone, os.urandom(zone))
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    for side in (pair.a, pair.b):
        assert os.stat(side.folder / "disk").st_blocks * 512 < (zones - 2) * zone
    written = len([one for one in range(zones - alike) if one % 30 != 29]) * zone
    assert written <= bytes_sent(pair) <= written + resync_source._UNASKED * zone


@pytest.mark.parametrize("write_ms", [0, 2])
def test_so_many_zones_at_most_are_sent_on_the_word_of_the_last_answer(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, write_ms: int
) -> None:
    """Also where the target has a queue, so that answers are about what was sent long before."""
    zone, different, alike = 1 << 20, 100, 160
    with open(pair.a.folder / "disk", "wb") as file:
        for _ in range(different + alike):
            file.write(os.urandom(zone))
        file.write(b"end")
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    go_alone(pair)
    guest = Guest(pair.a)
    disk = pair.a.store.find(ROOT_ID, b"disk").file
    for number in range(different):
        guest.write(disk, number * zone, os.urandom(zone))
    usual = pair.b.store.write

    def slowly(file: FileId, offset: int, data: bytes | memoryview) -> int:
        time.sleep(write_ms / 1000)
        return usual(file, offset, data)

    monkeypatch.setattr(pair.b.store, "write", slowly)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    assert different * zone <= bytes_sent(pair) <= (different + resync_source._UNASKED) * zone


def test_only_candidates_are_looked_at(pair: Pair) -> None:
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"disk")
    other = guest.create(ROOT_ID, b"other")
    for number in range(16):
        guest.write(file, number << 20, os.urandom(1 << 20))
        guest.write(other, number << 20, os.urandom(1 << 20))
    wait_for(lambda: guest.answers == 34)
    pair.barrier(pair.a)
    wait_for(lambda: pair.b.intent.candidate_count() == 0)
    go_alone(pair)
    guest.write(file, 5_000_000, b"x")
    guest.write(file, 12_000_000, b"y" * 100_000)
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    assert bytes_sent(pair) <= 4 * 65536
    progress = [one for one in pair.a.events if isinstance(one, ResyncProgressed)]
    assert progress[-1].total_bytes <= 3 << 20


class Suffering(Stopwatch):
    """Says that the guest's barriers take a second as soon as a resync has begun."""

    calls = 0

    def take(self, kind: Timed) -> list[tuple[int, int]]:
        self.calls += kind is Timed.BARRIER
        now, usual, bad = time.monotonic_ns(), 500_000, 10**9
        if kind is not Timed.BARRIER:
            return []
        return [(now, usual)] * 300 if self.calls == 1 else [(now, bad)] * 20


def test_a_guest_that_suffers_holds_a_resync_back_which_says_so_and_ends_all_the_same(
    pair: Pair,
) -> None:
    """T7: nothing but the floor is left, and that is enough to come to the end."""
    pair.a.primary.stopwatch = Suffering()
    (pair.a.folder / "disk").write_bytes(os.urandom(9 << 20))
    pair.a.primary.promote(Acknowledge.LOCAL)
    began = time.monotonic()
    pair.resync(SessionStart.FULL)
    took = time.monotonic() - began
    pair.check_equal()
    progress = [one for one in pair.a.events if isinstance(one, ResyncProgressed)]
    assert "guest" in {one.held_back for one in progress}
    assert any(one.recent_bytes_per_s for one in progress)
    assert took > 1.0
    # Read for the digests and sent: 18 MiB at 4 MiB/s, and a set-up.
    assert took < 12
    told = [one.text for one in pair.a.events if isinstance(one, LogLine)]
    assert any(
        "slowed for the guest: 1 % of its operations take more than 1000" in one for one in told
    )


def test_a_set_rate_is_kept_and_said(pair: Pair) -> None:
    pair.a.primary.config = replace(pair.a.primary.config, resync_rate_mib_s=4)
    (pair.a.folder / "disk").write_bytes(os.urandom(8 << 20))
    pair.a.primary.promote(Acknowledge.LOCAL)
    began = time.monotonic()
    pair.resync(SessionStart.FULL)
    assert time.monotonic() - began > 1.4
    progress = [one for one in pair.a.events if isinstance(one, ResyncProgressed)]
    assert "rate" in {one.held_back for one in progress}


def test_a_set_rate_holds_behind_a_stretch_with_nothing_to_send(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not used in ten minutes of equal zones is not sent at the speed of the line."""
    pair.a.primary.config = replace(pair.a.primary.config, resync_rate_mib_s=4)
    (pair.a.folder / "disk").write_bytes(os.urandom(8 << 20))
    pair.a.primary.promote(Acknowledge.LOCAL)
    later_ms = 0
    monkeypatch.setattr(inquiry, "now_ms", lambda: clock.now_ms() + later_ms)
    bind_known = ResyncSource._bind_known

    def quiet(self: ResyncSource) -> None:
        nonlocal later_ms
        bind_known(self)
        later_ms = 600_000

    monkeypatch.setattr(ResyncSource, "_bind_known", quiet)
    began = time.monotonic()
    pair.resync(SessionStart.FULL)
    assert time.monotonic() - began > 1.4
    progress = [one for one in pair.a.events if isinstance(one, ResyncProgressed)]
    assert "rate" in {one.held_back for one in progress}


def test_what_moved_is_found_by_its_id(pair: Pair) -> None:
    pair.in_sync()
    guest = Guest(pair.a)
    one = guest.create(ROOT_ID, b"one", stat.S_IFDIR | 0o755)
    two = guest.create(ROOT_ID, b"two", stat.S_IFDIR | 0o755)
    inner = guest.create(one, b"inner", stat.S_IFDIR | 0o755)
    big = guest.create(inner, b"big")
    guest.write(big, 0, os.urandom(1 << 20))
    swap = guest.create(inner, b"swap", stat.S_IFDIR | 0o755)
    wait_for(lambda: guest.answers == 6)
    pair.barrier(pair.a)
    go_alone(pair)
    guest.rename(one, b"inner", two, b"moved")
    guest.rename(two, b"moved", ROOT_ID, b"top")
    guest.rename(inner, b"swap", ROOT_ID, b"swap")
    guest.rename(ROOT_ID, b"one", swap, b"one")
    guest.rename(ROOT_ID, b"two", inner, b"two")
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    assert bytes_sent(pair) == 0


def test_the_peers_own_changes_are_undone(pair: Pair) -> None:
    """Union of both maps: what only the target changed is a candidate too (Z6)."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"disk")
    guest.write(file, 0, os.urandom(2 << 20)[: 1 << 20])
    wait_for(lambda: guest.answers == 2)
    pair.barrier(pair.a)
    go_alone(pair)
    other = Guest(pair.b)
    pair.b.primary.promote(Acknowledge.LOCAL)
    other.write(file, 700_000, b"only here")
    other.create(ROOT_ID, b"only-here")
    other.rename(ROOT_ID, b"disk", ROOT_ID, b"renamed")
    pair.b.primary.demote()
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()


@pytest.mark.parametrize("mode", [Acknowledge.NONE, Acknowledge.BOTH])
def test_a_guest_that_waits_for_the_end_of_a_resync_does_not_hold_it_back(
    pair: Pair, mode: Acknowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T7: what it has written since the peer went is answered when the copies are equal (D1, R11);
    to go slowly would only have it wait longer."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"disk")
    pair.barrier(pair.a)
    pair.a.primary.close_session(clean=False)
    pair.b.acceptor.close()
    pair.a.primary.set_mode(mode)
    for zone in range(16):
        guest.write(file, zone << 20, os.urandom(1 << 20))
    guest.flush(file)
    sources: list[ResyncSource] = []

    def started(*what: Any) -> None:
        sources.append(ResyncSource(pair.a.primary, *what))
        sources[0].start()

    monkeypatch.setattr(pair.a.primary, "resync_started", started)
    assert guest.answers == 1
    pair.resync(SessionStart.CANDIDATES)
    wait_for(lambda: guest.answers == 18)
    assert sources[0].held_ms[inquiry.GUEST] == 0
    pair.check_equal()


@pytest.mark.parametrize("start", [SessionStart.FULL, SessionStart.CANDIDATES])
@pytest.mark.parametrize("attempt", range(3))
def test_under_live_load_both_copies_end_equal(
    pair: Pair, start: SessionStart, attempt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Guest and both copies share one interpreter here: held back, the resync would meet the load
    # at the least pace only.
    monkeypatch.setattr(throttle, "FLOOR", throttle.CEILING)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, attempt {attempt}")
    pair.in_sync()
    guest = Guest(pair.a)
    monkey = Monkey(guest, seed)
    for _ in range(200):
        monkey.step()
    wait_for(lambda: pair.a.primary.parked_count() == 0)
    go_alone(pair)
    for _ in range(300):
        monkey.step()
    stop = threading.Event()

    def live() -> None:
        while not stop.is_set():
            monkey.step()
            stop.wait(0.0005)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        pair.resync(start)
        for _ in range(50):
            stop.wait(0.001)
    finally:
        stop.set()
        thread.join()
    wait_for(lambda: pair.a.primary.parked_count() == 0)
    assert not guest.errors
    pair.check_equal()


@pytest.mark.parametrize("attempt", range(2))
def test_cuts_anywhere_are_healed_by_the_next_resync(pair: Pair, attempt: int) -> None:
    """Random cuts, crashes of either side, cuts in the middle of resyncs."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, attempt {attempt}")
    chance = random.Random(seed)
    pair.in_sync()
    monkey = Monkey(Guest(pair.a), seed)
    for _ in range(6):
        for _ in range(chance.randrange(120)):
            monkey.step()
        what = chance.random()
        if what < 0.3:
            pair.b.crash()
        elif what < 0.5:
            # The guest's memory of the tree survives; the process and its tables do not.
            pair.a.crash()
            monkey.guest = Guest(pair.a)
        go_alone(pair)
        pair.a.primary.promote(Acknowledge.LOCAL)
        for _ in range(chance.randrange(80)):
            monkey.step()
        if chance.random() < 0.4:
            pair.connect(SessionStart.CANDIDATES)
            pair.a.wait(SessionUp)
            for _ in range(chance.randrange(40)):
                monkey.step()
            go_alone(pair)
        pair.a.events.clear()
        pair.resync(SessionStart.CANDIDATES)
        pair.check_equal()


def test_a_damaged_log_compares_everything(pair: Pair) -> None:
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"disk")
    guest.write(file, 0, b"x" * 100)
    wait_for(lambda: guest.answers == 2)
    pair.barrier(pair.a)
    go_alone(pair)
    pair.b.close()
    (pair.b.folder / ".hyperha" / "intent").write_bytes(b"garbage")
    (pair.b.folder / "disk").write_bytes(b"y" * 100)
    pair.b.open(fresh=False)
    assert pair.b.intent.candidate_count() == -1
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()


def test_end_of_resync_is_refused_while_not_everything_is_copied(pair: Pair) -> None:
    (pair.a.folder / "big").write_bytes(os.urandom(30 << 20))
    pair.a.primary.promote(Acknowledge.LOCAL)
    key = pair.connect(SessionStart.FULL)
    pair.a.wait(SessionUp)
    with pytest.raises(AssertionError, match="not copied everything"):
        call(lambda done: pair.a.primary.switch_to_both(key, done))
    pair.a.wait(ResyncCopied, 60)
    call(lambda done: pair.a.primary.switch_to_both(key, done))
    pair.check_equal()


def test_losing_the_target_during_a_resync_holds_nobody(pair: Pair) -> None:
    """R11: acknowledgements during a resync need this node only."""
    (pair.a.folder / "big").write_bytes(os.urandom(30 << 20))
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.connect(SessionStart.FULL)
    pair.a.wait(SessionUp)
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    pair.b.acceptor.close()
    pair.a.wait(SessionLost)
    guest.write(file, 0, b"x")
    guest.flush(file)
    wait_for(lambda: guest.answers == 3)
    assert pair.a.primary.parked_count() == 0
    pair.resync(SessionStart.FULL)
    pair.check_equal()


def test_what_is_unlinked_but_open_is_left_out(pair: Pair) -> None:
    """Z7: a record of an inode without a name is nothing that the target lacks."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"open")
    directory = guest.create(ROOT_ID, b"left", stat.S_IFDIR | 0o755)
    guest.write(file, 0, b"x" * 5000)
    wait_for(lambda: guest.answers == 3)
    go_alone(pair)
    held = [os.open(pair.a.folder / name, os.O_RDONLY) for name in ("open", "left")]
    try:
        guest.set_mode(file, 0o600)
        guest.set_mode(directory, 0o700)
        guest.write(file, 100, b"y")
        guest.remove(ROOT_ID, b"open")
        guest.remove(ROOT_ID, b"left", directory=True)
        pair.resync(SessionStart.CANDIDATES)
        pair.check_equal()
    finally:
        for one in held:
            os.close(one)


@pytest.mark.parametrize("behind", [False, True])
def test_names_that_move_around_the_closing_mark_end_no_resync(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    """The target is strict from a clean mark on: nothing may be left for it then."""
    guest = Guest(pair.a)
    pair.a.primary.promote(Acknowledge.LOCAL)
    guest.create(ROOT_ID, b"f")
    acts: list[threading.Thread] = []

    def act() -> None:
        directory = guest.create(ROOT_ID, b"d", stat.S_IFDIR | 0o755)
        guest.rename(ROOT_ID, b"f", directory, b"g")

    mark, put, settle = ResyncSource._mark, ResyncSource._put, ResyncSource._settle_replies

    def act_and_mark(self: ResyncSource) -> bool:
        if not behind and not acts:
            acts.append(threading.Thread(target=act))
            acts[0].start()
            acts[0].join()
        return mark(self)

    def put_and_act(self: ResyncSource, kind: Kind, *arguments: Any) -> int:
        number = put(self, kind, *arguments)
        if behind and not acts and kind is Kind.MARK:
            acts.append(threading.Thread(target=act))
            acts[0].start()
        return number

    def act_and_settle(self: ResyncSource) -> None:
        if acts:
            acts[0].join()
        settle(self)

    monkeypatch.setattr(ResyncSource, "_mark", act_and_mark)
    monkeypatch.setattr(ResyncSource, "_put", put_and_act)
    monkeypatch.setattr(ResyncSource, "_settle_replies", act_and_settle)
    pair.resync(SessionStart.FULL)
    assert acts
    pair.check_equal()
    assert not pair.b.has(LocalDiskFailed)


def test_a_link_that_a_file_replaces_while_it_is_listed_ends_no_resync(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.symlink("x", pair.a.folder / "s")
    guest = Guest(pair.a)
    pair.a.primary.promote(Acknowledge.LOCAL)
    listed = ResyncSource._listed
    done: list[bool] = []

    def replace_and_list(self: ResyncSource, *arguments: Any) -> Any:
        if not done:
            done.append(True)
            guest.create(ROOT_ID, b"t")
            guest.rename(ROOT_ID, b"t", ROOT_ID, b"s")
        return listed(self, *arguments)

    monkeypatch.setattr(ResyncSource, "_listed", replace_and_list)
    pair.resync(SessionStart.FULL)
    pair.check_equal()


def test_a_file_that_takes_no_id_is_named_where_it_ends_a_resync(pair: Pair) -> None:
    """Nothing else would lead whoever reads it to the one file among many."""
    folder = pair.a.folder
    (folder / "d").mkdir()
    fixed = folder / "d" / "fixed"
    fixed.write_text("x")
    pair.a.primary.promote(Acknowledge.LOCAL)
    subprocess.run(["chattr", "+i", fixed], check=True)
    try:
        pair.connect(SessionStart.FULL)
        text = pair.a.wait(SessionLost).text
    finally:
        subprocess.run(["chattr", "-i", fixed], check=True)
    assert text == (
        "the resync failed: d/fixed cannot be copied, since it takes no attribute of hyperha "
        "(Operation not permitted): stop the module and take its immutable flag away (chattr -i)"
    )
    pair.b.wait(SessionLost)
    pair.resync(SessionStart.FULL)
    pair.check_equal()


def test_room_behind_the_end_is_kept_where_the_target_was_longer(pair: Pair) -> None:
    """Cutting a file takes all room behind its new end, far from any candidate."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    guest.write(file, 0, b"x" * 4096)

    def reserve() -> Change:
        change = Allocate(file, 1, 0, 8 << 20, 4096, time.time_ns())
        pair.a.store.apply(change)
        return change

    guest.change([Record(RecordKind.INODE, file)], reserve)
    pair.barrier(pair.a)
    wait_for(lambda: pair.b.intent.candidate_count() == 0)
    blocks = (pair.a.folder / "f").stat().st_blocks
    go_alone(pair)
    other = Guest(pair.b)
    pair.b.primary.promote(Acknowledge.LOCAL)
    other.write(file, 8192, b"y" * 4096)
    pair.b.primary.demote()
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    assert (pair.b.folder / "f").stat().st_blocks == blocks


def test_names_of_one_inode_that_were_copied_as_two_become_one(pair: Pair) -> None:
    """As copying tools without an option for hard links leave them."""
    for side in (pair.a, pair.b):
        for name in ("x", "y", "z"):
            (side.folder / name).write_bytes(b"data" * 1000)
            os.utime(side.folder / name, ns=(1, 10**18))
    for name in ("x", "y"):
        (pair.a.folder / name).unlink()
        os.link(pair.a.folder / "z", pair.a.folder / name)
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    assert (pair.b.folder / "x").stat().st_nlink == 3
    guest = Guest(pair.a)
    guest.write(pair.a.store.find(ROOT_ID, b"x").file, 0, b"new")
    pair.check_equal()


def test_a_directory_may_be_named_like_one_that_is_gone(pair: Pair) -> None:
    """The kernel writes " (deleted)" behind the path of what is gone, too."""
    pair.in_sync()
    guest = Guest(pair.a)
    below = guest.create(ROOT_ID, b"sub", stat.S_IFDIR | 0o755)
    odd = guest.create(below, b"x (deleted)", stat.S_IFDIR | 0o755)
    guest.write(guest.create(odd, b"file"), 0, b"precious" * 100)
    pair.barrier(pair.a)
    go_alone(pair)
    guest.rename(below, b"x (deleted)", ROOT_ID, b"x (deleted)")
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    assert (pair.b.folder / "x (deleted)" / "file").exists()


def test_a_long_listing_that_meets_a_full_disk_is_done_again_as_a_whole(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_changes, "FRAME_LIMIT", 3000)
    pair.in_sync()
    guest = Guest(pair.a)
    for number in range(60):
        guest.write(guest.create(ROOT_ID, b"file%d" % number), 0, b"data")
    pair.barrier(pair.a)
    go_alone(pair)
    guest.create(ROOT_ID, b"new")
    place, reconcile = TargetSide._place, TargetSide._reconcile
    tries: list[int] = []

    def place_later(self: TargetSide, *arguments: Any) -> None:
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        place(self, *arguments)

    def reconcile_noted(self: TargetSide, listing: Listing) -> Any:
        tries.append(len(listing.entries))
        return reconcile(self, listing)

    monkeypatch.setattr(TargetSide, "_place", place_later)
    monkeypatch.setattr(TargetSide, "_reconcile", reconcile_noted)
    pair.connect(SessionStart.CANDIDATES)
    wait_for(lambda: len(tries) > 1)
    assert set(tries) == {61}
    wait_for(lambda: len([one for one in pair.b.folder.iterdir() if one.name[0] != "."]) == 61)


def test_what_a_broken_resync_has_moved_aside_is_found_by_the_next_process(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied anew, a large image would need its room twice, and perhaps never get it."""
    pair.in_sync()
    guest = Guest(pair.a)
    first = guest.create(ROOT_ID, b"d", stat.S_IFDIR | 0o755)
    second = guest.create(first, b"e", stat.S_IFDIR | 0o755)
    image = guest.create(first, b"image")
    for number in range(4):
        guest.write(image, number << 20, os.urandom(1 << 20))
    pair.barrier(pair.a)
    inode = (pair.b.folder / "d" / "image").stat().st_ino
    go_alone(pair)
    guest.rename(first, b"image", second, b"image")
    bring, met = TargetSide._bring, threading.Event()

    def die(self: TargetSide, *_: Any) -> bool:
        met.set()
        raise RuntimeError("the process ends here")

    monkeypatch.setattr(TargetSide, "_bring", die)
    pair.connect(SessionStart.CANDIDATES)
    assert met.wait(10)
    pair.a.wait(SessionLost)
    monkeypatch.setattr(TargetSide, "_bring", bring)
    pair.a.primary.close_session(clean=False)
    pair.b.crash()
    pair.a.events.clear()
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    assert (pair.b.folder / "d" / "e" / "image").stat().st_ino == inode


def test_a_file_that_goes_while_its_inode_is_sent_ends_no_resync(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    pair.barrier(pair.a)
    go_alone(pair)
    guest.set_mode(file, 0o600)
    send = ResyncSource._send_inode

    def send_and_remove(self: ResyncSource, sent: FileId) -> int | None:
        size = send(self, sent)
        if sent == file and pair.a.store.known(file):
            guest.remove(ROOT_ID, b"f")
        return size

    monkeypatch.setattr(ResyncSource, "_send_inode", send_and_remove)
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    assert not pair.a.has(SessionLost)


def test_a_cut_between_listing_and_content_is_remembered(pair: Pair, monkeypatch) -> None:
    """The target made the inode and got no data: the next resync must not take it for equal."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"disk")
    guest.write(file, 0, os.urandom(300_000))
    wait_for(lambda: guest.answers == 2)
    pair.barrier(pair.a)
    wait_for(lambda: pair.b.intent.candidate_count() == 0)
    go_alone(pair)
    pair.b.primary.promote(Acknowledge.LOCAL)
    Guest(pair.b).remove(ROOT_ID, b"disk")
    pair.b.primary.demote()

    def cut(self: ResyncSource) -> None:
        raise OSError(5, "cut")

    monkeypatch.setattr(ResyncSource, "_data", cut)
    pair.connect(SessionStart.CANDIDATES)
    pair.a.wait(SessionLost)
    monkeypatch.undo()
    pair.b.crash()
    assert (pair.b.folder / "disk").stat().st_size == 0
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()


def test_an_inode_below_what_moves_is_not_made_twice(pair: Pair) -> None:
    """Z3: hard links into a directory that a restarted target moves aside and back."""
    pair.in_sync()
    guest = Guest(pair.a)
    outer = guest.create(ROOT_ID, b"outer", stat.S_IFDIR | 0o755)
    inner = guest.create(ROOT_ID, b"inner", stat.S_IFDIR | 0o755)
    file = guest.create(inner, b"name")
    guest.write(file, 0, os.urandom(10_000))
    wait_for(lambda: guest.answers == 4)
    pair.barrier(pair.a)
    wait_for(lambda: pair.b.intent.candidate_count() == 0)
    pair.b.crash()
    go_alone(pair)
    guest.rename(ROOT_ID, b"inner", outer, b"inner")
    guest.link(file, outer, b"another")
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    assert (pair.b.folder / "outer" / "another").stat().st_nlink == 2


def test_a_guest_that_renames_without_end_does_not_end_the_resync(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever directory was listed last, the next rename makes it unequal again: then all of
    them are listed at one position, for which the guest waits once (R13)."""
    guest = Guest(pair.a)
    places = [guest.create(ROOT_ID, b"p%d" % number, stat.S_IFDIR | 0o755) for number in range(3)]
    for number, place in enumerate(places):
        guest.create(place, b"f%d" % number)
    wanted, done, ended = threading.Event(), threading.Event(), threading.Event()

    def storm() -> None:
        turn = 0
        while wanted.wait() and not ended.is_set():
            wanted.clear()
            for number in range(3):
                old, new = places[(number + turn) % 3], places[(number + turn + 1) % 3]
                guest.rename(old, b"f%d" % number, new, b"f%d" % number)
            turn += 1
            done.set()

    real = ResyncSource._read_listing

    def read(self: ResyncSource, directory: FileId, *, quiet: bool) -> Listing | None:
        # Before each listing something is renamed, unless the guest has to wait.
        if not self._primary.operation.locked():
            done.clear()
            wanted.set()
            assert done.wait(10)
        return real(self, directory, quiet=quiet)

    monkeypatch.setattr(ResyncSource, "_read_listing", read)
    pair.a.primary.promote(Acknowledge.LOCAL)
    thread = threading.Thread(target=storm)
    thread.start()
    try:
        pair.resync(SessionStart.FULL)
    finally:
        ended.set()
        wanted.set()
        thread.join()
    assert not pair.a.has(SessionLost)
    pair.check_equal()
    told = [one.text for one in pair.a.events if isinstance(one, LogLine)]
    assert any("while the guest waits" in one for one in told)


def test_what_writing_takes_from_a_file_is_there_after_a_resync(pair: Pair) -> None:
    """A kernel takes capabilities from a file at each write, reservation and new owner, also on the
    target, where the guest has done none of it."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    name, content = "security.capability", os.urandom(200_000)
    for side in (pair.a, pair.b):
        for path in (side.folder / one for one in ("written", "punched", "owned", "reserved")):
            path.write_bytes(content)
        if side is pair.a:
            os.chown(side.folder / "owned", 7, 8)
            with open(side.folder / "punched", "r+b") as file:
                allocate(file.fileno(), 3, 65536, 65536)
            with open(side.folder / "reserved", "r+b") as file:
                allocate(file.fileno(), 1, 1 << 20, 1 << 20)
        else:
            (side.folder / "written").write_bytes(content[::-1])
        for path in side.folder.iterdir():
            if path.is_file():
                path.chmod(0o6755)
                os.setxattr(path, name, capability)
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    for path in pair.b.folder.iterdir():
        if path.is_file():
            assert os.getxattr(path, name) == capability, path.name
            assert stat.S_IMODE(path.stat().st_mode) == 0o6755, path.name
