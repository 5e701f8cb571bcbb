"""Verification of two copies under load: no false alarm, what differs is found and mended (R17)."""

from __future__ import annotations

import os
import random
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperha.core.actions import SessionStart
from hyperha.core.events import LocalDiskFailed, SessionLost
from hyperha.replication import verify
from hyperha.replication.control import AskCandidates, CandidatesTold, StartVerify, VerifyTold
from hyperha.replication.operations import (
    ROOT_ID,
    Attributes,
    Change,
    Create,
    FileId,
    Record,
    RecordKind,
    Remove,
    SetXattr,
    Target,
)
from hyperha.replication.questions import Questions
from hyperha.replication.store import Store
from hyperha.replication.verify import Verify
from hyperha.replication.wire import BLOCK_BYTES, ZONE_BYTES
from tests.adapters.test_resync import Suffering
from tests.support.engine_pair import Guest, Monkey, Pair, pair_at, wait_for
from tests.support.verifying import Ending

pytestmark = pytest.mark.root


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with pair_at(tmp_path) as made:
        made.in_sync()
        yield made


def verified(pair: Pair, *, repair: bool = False) -> VerifyTold:
    """One verification from begin to end."""
    ending = Ending()
    session = pair.a.primary.session
    assert session is not None
    Verify(pair.a.primary, session, ending, StartVerify(1, repair)).start()
    return ending.within(60)


def filled(pair: Pair, sizes: tuple[int, ...] = (3 << 20, 100_000, 5)) -> list[FileId]:
    guest, chance = Guest(pair.a), random.Random(5)
    made = []
    for number, size in enumerate(sizes):
        file = guest.create(ROOT_ID, b"f%d" % number)
        for offset in range(0, size, ZONE_BYTES):
            guest.write(file, offset, chance.randbytes(min(ZONE_BYTES, size - offset)))
        made.append(file)
    pair.barrier(pair.a)
    return made


def spoil(path: Path, offset: int) -> None:
    """One bit turns on a node's disk, beside the engine."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes((byte[0] ^ 1,)))
        file.flush()
        os.fsync(file.fileno())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFIFO, stat.S_IFLNK, 0])
def test_a_file_that_is_no_file_on_the_secondary_is_a_difference(
    pair: Pair, kind: int, repair: bool
) -> None:
    """It is no failed disk, and its blocks cannot be mended there: a resync makes it anew."""
    file = filled(pair)[0]
    there = pair.b.store
    there.apply(Remove(ROOT_ID, b"f0", False, 5))
    there.forget(file)
    if kind:
        made = Attributes(kind | 0o700, 0, 0, 0, 5)
        there.apply(Create(ROOT_ID, b"f0", file, made, 5, b"x" if kind == stat.S_IFLNK else b""))
    found = verified(pair, repair=repair)
    assert found.text == ""
    assert found.blocks == (3 << 20) // BLOCK_BYTES
    assert found.repaired == 0
    assert found.others >= 1
    assert not pair.b.has(LocalDiskFailed)
    if repair:
        pair.a.wait(SessionLost)
        assert not pair.b.has(LocalDiskFailed)


def test_equal_copies_are_found_equal(pair: Pair) -> None:
    filled(pair)
    found = verified(pair)
    assert (found.text, found.blocks, found.others) == ("", 0, 0)
    assert found.done_bytes == found.total_bytes == (3 << 20) + 100_005
    assert found.objects == 4


def test_one_turned_bit_is_located_and_mended(pair: Pair) -> None:
    filled(pair)
    place = 2 * ZONE_BYTES + 3 * BLOCK_BYTES + 17
    spoil(pair.b.folder / "f0", place)
    found = verified(pair)
    assert (found.blocks, found.others, found.repaired) == (1, 0, 0)
    (example,) = found.examples
    assert example.path == "f0"
    assert example.offset <= place < example.offset + example.length
    assert example.length == BLOCK_BYTES
    assert (pair.a.folder / "f0").read_bytes() != (pair.b.folder / "f0").read_bytes()
    before = (pair.a.folder / "f0").stat()
    found = verified(pair, repair=True)
    assert (found.blocks, found.repaired) == (1, 1)
    pair.check_equal()
    after = (pair.a.folder / "f0").stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert verified(pair).blocks == 0


def test_a_file_that_goes_before_it_is_mended_ends_no_verification(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(pair)
    spoil(pair.b.folder / "f1", 70_000)
    mend = Verify._mend

    def remove_and_mend(self: Verify, *arguments: Any) -> None:
        Guest(pair.a).remove(ROOT_ID, b"f1")
        mend(self, *arguments)

    monkeypatch.setattr(Verify, "_mend", remove_and_mend)
    found = verified(pair, repair=True)
    assert (found.text, found.repaired) == ("", 0)
    pair.check_equal()
    wait_for(lambda: pair.a.intent.candidate_count() == 0)


def test_mending_takes_no_capability_from_a_file(pair: Pair) -> None:
    """A kernel takes them at each write; here the guest has written nothing."""
    (file,) = filled(pair, (100_000,))
    name, value = b"security.capability", bytes.fromhex("0100000200040000000000000000000000000000")

    def execute() -> Change:
        change = SetXattr(Target(file), name, value)
        pair.a.store.apply(change)
        return change

    Guest(pair.a).change([Record(RecordKind.INODE, file)], execute)
    pair.barrier(pair.a)
    spoil(pair.b.folder / "f0", 70_000)
    os.setxattr(pair.b.folder / "f0", name, value)
    found = verified(pair, repair=True)
    assert (found.blocks, found.others, found.repaired) == (1, 0, 1)
    pair.check_equal()
    assert os.getxattr(pair.b.folder / "f0", name) == value
    found = verified(pair)
    assert (found.blocks, found.others) == (0, 0)


def test_a_block_that_is_being_mended_is_a_candidate(pair: Pair) -> None:
    """A cut in the middle of a repair must not forget where it was (Z2)."""
    filled(pair)
    assert not pair.a.intent.candidates()
    spoil(pair.b.folder / "f0", 5)
    verified(pair, repair=True)
    zones = {(one.file, one.zone) for one in pair.a.intent.candidates() or ()}
    assert (pair.a.store.find(ROOT_ID, b"f0").file, 0) in zones
    pair.barrier(pair.a)
    assert not pair.a.intent.candidates()


@pytest.mark.parametrize("seed", [3, 4])
def test_no_false_alarm_while_a_guest_does_anything(pair: Pair, seed: int) -> None:
    monkey = Monkey(Guest(pair.a), seed)
    for _ in range(300):
        monkey.step()
    stop = threading.Event()

    def load() -> None:
        # Fast enough to meet every question, slow enough that the folder does not outgrow the test.
        while not stop.wait(0.001):
            monkey.step()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(3):
            found = verified(pair)
            assert (found.text, found.blocks, found.others) == ("", 0, 0), found
            assert found.objects > 5
    finally:
        stop.set()
        thread.join()
    pair.check_equal()


def test_a_file_that_grows_behind_the_zone_that_is_read_is_no_difference(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R17: what is written is another zone, and this one has become longer by it all the same."""
    (file,) = filled(pair, (100_000,))
    guest, digests, written = Guest(pair.a), verify.zone_digests, []

    def read_and_grow(store: Store, which: FileId, offset: int, seed: int) -> tuple[bytes, ...]:
        found = digests(store, which, offset, seed)
        if not written and store is pair.a.store:
            written.append(True)
            guest.write(file, 2 << 20, b"x")
        return found

    monkeypatch.setattr(verify, "zone_digests", read_and_grow)
    found = verified(pair)
    assert written
    assert (found.text, found.blocks, found.others) == ("", 0, 0), found
    pair.check_equal()


def test_a_turned_bit_is_found_and_mended_under_load(pair: Pair) -> None:
    filled(pair, (8 << 20,))
    monkey, stop = Monkey(Guest(pair.a), 9), threading.Event()

    def load() -> None:
        # Fast enough to meet every question, slow enough that the folder does not outgrow the test.
        while not stop.wait(0.001):
            monkey.step()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        spoil(pair.b.folder / "f0", 5 * ZONE_BYTES + 1)
        found = verified(pair, repair=True)
    finally:
        stop.set()
        thread.join()
    assert (found.blocks, found.repaired, found.others) == (1, 1, 0), found
    assert found.examples[0].path == "f0"
    pair.check_equal()


def test_other_attributes_and_names_are_found_and_left_to_a_resync(pair: Pair) -> None:
    filled(pair)
    (pair.b.folder / "f1").chmod(0o600)
    (pair.b.folder / "more").touch()
    found = verified(pair)
    assert (found.blocks, found.others) == (0, 2)
    assert {one.path for one in found.examples} == {".", "f1"}
    verified(pair, repair=True)
    lost = pair.a.wait(SessionLost)
    assert isinstance(lost, SessionLost)
    assert "resynced" in lost.text
    pair.b.acceptor.close()
    pair.resync(SessionStart.CANDIDATES)
    assert pair.differences() == ""
    assert not (pair.b.folder / "more").exists()


def test_a_verification_ends_with_its_session(pair: Pair) -> None:
    filled(pair, (64 << 20,))
    told: list[VerifyTold] = []
    session = pair.a.primary.session
    assert session is not None
    run = Verify(pair.a.primary, session, told.append, StartVerify(7, False))
    run.start()
    wait_for(lambda: run.findings.done_bytes)
    pair.a.primary.close_session(clean=True)
    wait_for(lambda: told and told[-1].finished)
    assert told[-1].text == "the session ended"
    assert told[-1].done_bytes < 64 << 20


def test_a_stopped_verification_leaves_nothing_to_the_next_one(pair: Pair) -> None:
    filled(pair, (64 << 20,))
    told: list[VerifyTold] = []
    session = pair.a.primary.session
    assert session is not None
    run = Verify(pair.a.primary, session, told.append, StartVerify(7, False))
    run.start()
    wait_for(lambda: run.findings.done_bytes)
    run.stop()
    wait_for(lambda: told and told[-1].finished)
    assert told[-1].text == "it was stopped"
    assert told[-1].done_bytes < 64 << 20
    found = verified(pair)
    assert (found.text, found.blocks, found.others) == ("", 0, 0)
    assert found.done_bytes == 64 << 20


def test_questions_are_answered_or_refused_with_the_reason(pair: Pair) -> None:
    filled(pair)
    told: list[object] = []
    a = pair.a
    questions = Questions(lambda: (a.store, a.intent, a.primary), lambda: None, told.append)
    Guest(a).write(a.store.find(ROOT_ID, b"f0").file, 0, b"x")
    questions.ask(AskCandidates(3))
    wait_for(lambda: told)
    (answer,) = told
    assert isinstance(answer, CandidatesTold)
    assert (answer.everything, answer.files, answer.bytes) == (False, 1, ZONE_BYTES)
    assert answer.candidates[0].path == "f0"
    a.primary.close_session(clean=True)
    questions.ask(StartVerify(4, False))
    refused = told[-1]
    assert isinstance(refused, VerifyTold)
    assert refused.finished
    assert "not in sync" in refused.text


def test_a_guest_that_suffers_holds_a_verification_back_which_ends_all_the_same(
    pair: Pair,
) -> None:
    """T7: it reads both disks, beside a guest that is answered when both have its writes."""
    filled(pair, (8 << 20,))
    pair.a.primary.stopwatch = Suffering()
    begun = time.monotonic()
    told = verified(pair)
    took = time.monotonic() - begun
    assert (told.text, told.blocks, told.others) == ("", 0, 0)
    assert told.done_bytes == 8 << 20
    assert 0.8 < took < 8
