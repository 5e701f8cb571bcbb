"""The intent log: durable before use, nothing forgotten too early, never too few candidates."""

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperha.replication import intent_log
from hyperha.replication.intent_file import HEADER_BYTES, RECORD_BYTES
from hyperha.replication.intent_log import HOLD, IntentLog
from hyperha.replication.operations import FileId, Record, RecordKind

SECTOR = 512


def file_id(number: int) -> FileId:
    return FileId(number.to_bytes(16, "big"))


def zone(file: int, number: int) -> Record:
    return Record(RecordKind.ZONE, file_id(file), number)


def open_log(
    folder: Path, *, fresh: bool = False, slots: int = 64, limit: int = 128, resource: str = "r1"
) -> IntentLog:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return IntentLog(
            descriptor,
            resource,
            lambda file: b"handle" + file[-2:],
            fresh=fresh,
            slots=slots,
            slots_limit=limit,
        )
    finally:
        os.close(descriptor)


def found(folder: Path) -> set[Record] | None:
    log = open_log(folder)
    try:
        candidates = log.candidates()
        return None if candidates is None else set(candidates)
    finally:
        log.close()


def test_a_record_is_on_disk_when_activate_returns(tmp_path: Path) -> None:
    log = open_log(tmp_path, fresh=True)
    records = [zone(2, 7), Record(RecordKind.INODE, file_id(2)), zone(2, 8)]
    log.activate(records, 1)
    assert found(tmp_path) == set(records)
    log.activate(records, 2)
    assert log.used == 3
    assert log.handles() == {file_id(2): b"handle\0\2"}
    log.close()


def test_a_missing_log_is_empty_only_for_a_fresh_folder(tmp_path: Path) -> None:
    log = open_log(tmp_path, fresh=False)
    assert log.candidates() is None
    assert log.candidate_count() == -1
    assert "missing" in log.damage
    log.close()
    # It stays so until a resync was confirmed (Z6).
    assert found(tmp_path) is None
    log = open_log(tmp_path)
    assert log.clear(0)
    log.close()
    assert found(tmp_path) == set()


def test_a_log_of_another_module_makes_everything_a_candidate(tmp_path: Path) -> None:
    open_log(tmp_path, fresh=True, resource="other").close()
    assert found(tmp_path) is None


def test_retire_forgets_only_what_the_barrier_covered(tmp_path: Path) -> None:
    log = open_log(tmp_path, fresh=True)
    log.activate([zone(2, 0)], 5)
    log.activate([zone(2, 1)], 6)
    log.activate([zone(2, 0)], 7)
    assert log.retire(6) == 1
    assert log.candidates() == [zone(2, 0)]
    log.close()
    assert found(tmp_path) == {zone(2, 0)}


def test_alone_nothing_is_retired_and_a_crash_keeps_the_map(tmp_path: Path) -> None:
    log = open_log(tmp_path, fresh=True)
    log.activate([zone(2, 0)], 5)
    log.enter_alone("g17")
    log.activate([zone(2, 1)], 6)
    assert log.retire(100) == 0
    log.enter_alone("g18")
    assert log.base == "g17", "G3': the base stays until the resync"
    log.close()
    log = open_log(tmp_path)
    assert log.retaining
    assert log.base == "g17"
    assert log.retire(100) == 0
    log.retain()
    log.activate([zone(2, 9)], 42)
    assert log.clear(41)
    assert log.candidates() == [zone(2, 9)], "what came after the last barrier stays active"
    assert log.base == ""
    log.close()
    assert found(tmp_path) == {zone(2, 9)}


def test_records_found_after_a_crash_are_kept_until_a_resync_ends(tmp_path: Path) -> None:
    log = open_log(tmp_path, fresh=True)
    log.activate([zone(2, 0)], 5)
    log.close()
    log = open_log(tmp_path)
    # Touched again and covered by a barrier: still owed to the peer (Z1).
    log.activate([zone(2, 0)], 1)
    assert log.retire(10) == 0
    assert log.candidates() == [zone(2, 0)]
    log.close()


def test_a_full_log_grows_then_coarsens_then_takes_everything(tmp_path: Path) -> None:
    log = open_log(tmp_path, fresh=True, slots=32, limit=64)
    for number in range(64):
        log.activate([zone(2, number)], number + 1)
    assert log.capacity == 64
    log.activate([zone(2, 64)], 65)
    assert log.candidates() == [Record(RecordKind.WHOLE_FILE, file_id(2))]
    log.activate([zone(2, 5)], 66)
    assert log.used == 1
    assert log.retire(65) == 0, "the whole file was needed by operation 66"
    for number in range(63):
        log.activate([Record(RecordKind.INODE, file_id(100 + number))], 100 + number)
    log.activate([Record(RecordKind.INODE, file_id(99))], 200)
    assert log.candidates() is None
    log.close()
    assert found(tmp_path) is None
    log = open_log(tmp_path, slots=32, limit=64)
    log.activate([Record(RecordKind.INODE, file_id(999))], 300)
    assert not log.clear(299), "an operation without a record is not behind the barrier"
    assert log.clear(300)
    assert log.candidates() == []
    log.close()


def fill(log: IntentLog, number: int) -> None:
    """Operations on inodes, which cannot be gathered, until one finds no slot."""
    for at in range(log.capacity + 1):
        log.activate([Record(RecordKind.INODE, file_id(1000 + number * 100 + at))], number)


def test_a_full_log_has_room_again_behind_a_barrier(tmp_path: Path) -> None:
    """Z5, N4: while both copies are equal an operation without a slot needs no resync."""
    log = open_log(tmp_path, fresh=True, slots=4, limit=4)
    fill(log, 5)
    assert log.overflowed
    assert not log.retaining
    assert found(tmp_path) is None, "a crash now costs a compare of everything"
    log.activate([zone(2, 0)], 6)
    log.retire(5)
    assert log.candidates() is None, "operation 6 found no slot either"
    assert log.used == 0, "what the barrier covered makes room for the next ones"
    log.activate([zone(2, 1)], 7)
    assert found(tmp_path) is None
    assert log.retire(3, 6) == 0
    assert log.candidates() == [zone(2, 1)], "idle or not: the barrier covers what had no slot"
    assert found(tmp_path) == {zone(2, 1)}
    log.close()


def test_what_is_owed_for_another_reason_stays_when_the_log_was_full_too(tmp_path: Path) -> None:
    """F4, G4: no barrier clears a dirty map, what a crash left, or a log that cannot be trusted."""
    orders: list[Callable[[IntentLog], None]] = [
        lambda log: log.enter_alone("g1"),
        lambda log: log.mark_everything(),
        lambda log: log.retain(),
    ]
    for number, order in enumerate(orders):
        for before in (True, False):
            folder = tmp_path / f"{number}{before}"
            folder.mkdir()
            log = open_log(folder, fresh=True, slots=4, limit=4)
            if before:
                order(log)
            fill(log, 5)
            if not before:
                order(log)
            log.retire(100)
            assert log.retaining
            assert not log.overflowed
            assert log.candidates() is None
            log.close()
            log = open_log(folder, slots=4, limit=4)
            fill(log, 1)
            log.retire(100)
            assert log.candidates() is None
            log.retain()
            assert log.clear(100)
            fill(log, 101)
            assert log.overflowed, "both are equal again: from here on a barrier is enough"
            log.retire(101)
            assert log.candidates() == []
            log.close()


def test_an_operation_in_doubt_that_found_no_slot_is_left_to_a_resync(tmp_path: Path) -> None:
    """Z4: nobody knows what it did; the numbers of later ones do not take its place."""
    log = open_log(tmp_path, fresh=True, slots=4, limit=4)
    fill(log, 5)
    doubtful, later = [zone(2, 0)], [zone(2, 1)]
    log.activate(doubtful, HOLD)
    log.retire(10)
    assert log.candidates() is None, "it has no number yet"
    fill(log, 11)
    with log.lock:
        log.touch(doubtful, HOLD)
    log.activate(later, HOLD)
    with log.lock:
        log.touch(later, 12)
    log.retire(100)
    assert log.candidates() is None
    assert not log.clear(100)
    log.retain()
    assert log.clear(100)
    assert log.candidates() == []
    log.close()


def test_a_number_that_never_came_is_not_taken_for_a_later_one(tmp_path: Path) -> None:
    """Z2: who gave up between its record and its operation leaves the log full, not wrong."""
    log = open_log(tmp_path, fresh=True, slots=4, limit=4)
    fill(log, 5)
    for number, record in enumerate((zone(2, 0), zone(2, 1)), 6):
        log.activate([record], HOLD)
        if number == 7:
            with log.lock:
                log.touch([record], number)
    log.retire(100)
    assert log.candidates() is None
    log.close()


def test_numbers_of_another_node_do_not_hold_a_map_back(tmp_path: Path) -> None:
    """R11: what found no slot before the resync began is behind the barrier at its end."""
    log = open_log(tmp_path, fresh=True, slots=4, limit=4)
    fill(log, 500)
    log.retain()
    assert log.clear(20)
    log.close()
    assert found(tmp_path) == set()


def test_every_damaged_sector_makes_everything_a_candidate(tmp_path: Path) -> None:
    log = open_log(tmp_path, fresh=True, slots=16, limit=16)
    log.activate([zone(2, n) for n in range(16)], 1)
    log.close()
    good = (tmp_path / intent_log.NAME).read_bytes()
    meaningful = {0, 4, *range(HEADER_BYTES // SECTOR, len(good) // SECTOR)}
    for sector in range(len(good) // SECTOR):
        at = sector * SECTOR
        raw = good[:at] + os.urandom(SECTOR) + good[at + SECTOR :]
        (tmp_path / intent_log.NAME).write_bytes(raw)
        expected = None if sector in meaningful else {zone(2, n) for n in range(16)}
        assert found(tmp_path) == expected, f"sector {sector}"
    for length in (0, 100, HEADER_BYTES, len(good) - 1):
        (tmp_path / intent_log.NAME).write_bytes(good[:length])
        assert found(tmp_path) is None, f"cut to {length}"


class Disk:
    """The log's file as a disk sees it: what is durable, and what only the page cache holds.

    A durable write brings its whole pages to the disk; a crash in the middle of it leaves any
    mixture of sectors. Plain writes may have reached the disk or not, sector by sector.
    """

    def __init__(self, log: IntentLog, path: Path, chance: random.Random) -> None:
        self.log, self.path, self.chance = log, path, chance
        self.durable = bytearray(path.read_bytes())
        self.states: list[bytes] = []

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        written = os.pwrite(descriptor, data, offset)
        if descriptor == self.log._durable_fd:
            self.crash()
            cached = self.path.read_bytes()
            self._grow(len(cached))
            first, last = offset // 4096 * 4096, -(-(offset + len(data)) // 4096) * 4096
            self.durable[first:last] = cached[first:last]
        return written

    def fdatasync(self, descriptor: int) -> None:
        self.crash()
        os.fdatasync(descriptor)
        self.durable[:] = self.path.read_bytes()

    def _grow(self, size: int) -> None:
        self.durable.extend(bytes(max(0, size - len(self.durable))))

    def crash(self) -> None:
        """A few of the states that the disk may be in now."""
        cached = self.path.read_bytes()
        self._grow(len(cached))
        for _ in range(3):
            mix = bytearray(self.durable)
            for at in range(0, len(cached), SECTOR):
                if self.chance.random() < 0.5:
                    mix[at : at + SECTOR] = cached[at : at + SECTOR]
            self.states.append(bytes(mix))


def test_a_crash_at_any_moment_leaves_what_was_promised(tmp_path: Path, monkeypatch) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    folder, crash = tmp_path / "log", tmp_path / "crash"
    folder.mkdir()
    crash.mkdir()
    log = open_log(folder, fresh=True, slots=32, limit=64)
    disk = Disk(log, folder / intent_log.NAME, chance)
    promised: set[Record] = set()
    for number in range(1, 120):
        disk.states.clear()
        monkeypatch.setattr(intent_log, "os", disk)
        step = chance.random()
        if step < 0.8:
            wanted = {zone(chance.randrange(2, 5), chance.randrange(40)) for _ in range(3)}
            log.activate(wanted, number)
        elif step < 0.95:
            log.retire(number - chance.randrange(10))
        elif chance.random() < 0.5:
            log.enter_alone("g1")
        else:
            log.clear(number)
        disk.crash()
        monkeypatch.undo()
        now = log.candidates()
        assert now is not None
        # What must be found: what was promised before the step and is still held after it.
        whole = {one.file for one in now if one.kind == RecordKind.WHOLE_FILE}
        must = {one for one in promised if one in set(now) or one.file in whole}
        for state in disk.states:
            (crash / intent_log.NAME).write_bytes(state)
            got = found(crash)
            if got is None:
                continue
            covered = {one.file for one in got if one.kind == RecordKind.WHOLE_FILE}
            lost = {one for one in must if one not in got and one.file not in covered}
            assert not lost, f"seed {seed}: lost {lost}"
        promised = set(now)
    log.close()


def test_records_without_an_id_are_left_to_their_directory(tmp_path: Path) -> None:
    log = open_log(tmp_path, fresh=True)
    log.activate([Record(RecordKind.INODE, FileId(b"\0" * 16))], 1)
    assert log.used == 0
    log.close()


def test_file_has_fixed_size_and_slots_are_reused(tmp_path: Path) -> None:
    log = open_log(tmp_path, fresh=True)
    size = (tmp_path / intent_log.NAME).stat().st_size
    assert size == HEADER_BYTES + 64 * RECORD_BYTES
    for number in range(500):
        log.activate([zone(2, number)], number)
        log.retire(number - 3)
    assert (tmp_path / intent_log.NAME).stat().st_size == size
    assert log.used == 3
    log.close()


@pytest.mark.parametrize("resource", ["", "x" * 64])
def test_resource_ids_of_any_length_are_recognised(tmp_path: Path, resource: str) -> None:
    open_log(tmp_path, fresh=True, resource=resource).close()
    log = open_log(tmp_path, resource=resource)
    assert log.candidates() == []
    log.close()


def test_two_changes_of_the_header_are_both_kept(tmp_path: Path, monkeypatch) -> None:
    """Z5, Z6: the data path lets the log grow while an order of the core is made durable."""
    log = open_log(tmp_path, fresh=True, slots=2, limit=64)
    real, beside = os.pwrite, []

    def interrupted(descriptor, data, offset):
        if not beside and offset < HEADER_BYTES:
            beside.append(threading.Thread(target=log.mark_everything))
            beside[0].start()
            beside[0].join(0.3)
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", interrupted)
    log.activate([zone(1, number) for number in range(5)], 1)
    beside[0].join()
    assert log.everything
    assert log.capacity == 8
    log.close()
    again = open_log(tmp_path)
    assert again.everything
    assert again.capacity == 8
    again.close()
