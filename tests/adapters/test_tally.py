"""What a log holds, told for people: of a folder that nobody serves, and by questions (R17)."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from hyperha.daemon.asking import Asking
from hyperha.daemon.plain_folder import PlainFolder
from hyperha.errors import BusyError, FailedError, ReplicationError, TimedOutError
from hyperha.replication.control import (
    AskCandidates,
    CandidatesTold,
    ProcessMessage,
    Question,
    StartVerify,
    VerifyTold,
)
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import ROOT_ID, FileId, Record, RecordKind
from hyperha.replication.questions import Questions
from hyperha.replication.store import Store
from hyperha.replication.tally import read_plain_folder, told, tree_bytes
from hyperha.replication.wire import ZONE_BYTES
from tests.support.engine_pair import Guest, pair_at, wait_for

RESOURCE = "r" * 32


def _everything_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Times and content of all that is in a folder, `.hyperha` too."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mtime_ns, status.st_ctime_ns, content)
    return found


def _recorded(folder: Path, *records: tuple[str, RecordKind, int]) -> None:
    """A folder whose log holds records for files by their names."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        store = Store(root)
        ids: dict[str, FileId] = {".": ROOT_ID}
        for name in ("disk", "small"):
            ids[name] = store.identify(ROOT_ID, name.encode())
        private = store.private_directory()
        log = IntentLog(private, RESOURCE, store.handle, fresh=True, slots=64)
        log.activate([Record(kind, ids[name], zone) for name, kind, zone in records], 1)
        log.enter_alone("base")
        log.close()
        os.close(private)
        store.close()
    finally:
        os.close(root)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "folder"
    place.mkdir()
    (place / "disk").write_bytes(b"d" * (2 * ZONE_BYTES + 100))
    (place / "small").write_bytes(b"s" * 7)
    return place


def test_a_folder_that_nobody_serves_is_read_and_stays_as_it_is(folder: Path) -> None:
    _recorded(
        folder,
        ("disk", RecordKind.ZONE, 0),
        ("disk", RecordKind.ZONE, 2),
        ("small", RecordKind.WHOLE_FILE, 0),
        ("small", RecordKind.INODE, 0),
        (".", RecordKind.DIRECTORY, 0),
    )
    before = _everything_of(folder)
    found = read_plain_folder(str(folder), RESOURCE)
    assert _everything_of(folder) == before
    answer = told(3, found.reading.base, found.tally)
    assert (answer.everything, answer.base, answer.files) == (False, "base", 3)
    assert answer.bytes == ZONE_BYTES + 100 + 7
    disk, small, root = answer.candidates
    assert (disk.path, disk.bytes, disk.whole, disk.names) == (
        "disk",
        ZONE_BYTES + 100,
        False,
        False,
    )
    assert (small.path, small.bytes, small.whole, small.names) == ("small", 7, True, True)
    assert (root.path, root.bytes, root.names) == (".", 0, True)


def test_a_file_that_is_gone_is_named_by_its_id(folder: Path) -> None:
    _recorded(folder, ("small", RecordKind.WHOLE_FILE, 0))
    (folder / "small").unlink()
    (one,) = read_plain_folder(str(folder), RESOURCE).tally.candidates or ()
    assert one.path.startswith("(removed)")
    assert one.bytes == 0


@pytest.mark.parametrize("what", ["missing", "damaged", "foreign", "no folder"])
def test_a_log_that_cannot_be_used_means_everything(folder: Path, what: str) -> None:
    _recorded(folder, ("disk", RecordKind.ZONE, 0))
    log = folder / ".hyperha" / "intent"
    resource = RESOURCE
    if what == "missing":
        log.unlink()
    elif what == "damaged":
        raw = bytearray(log.read_bytes())
        raw[4096 + 20] ^= 1
        log.write_bytes(raw)
    elif what == "foreign":
        resource = "q" * 32
    else:
        log.unlink()
        (folder / ".hyperha").rmdir()
    before = _everything_of(folder)
    found = read_plain_folder(str(folder), resource)
    assert found.tally.candidates is None
    assert found.reading.problem
    assert told(1, found.reading.base, found.tally).everything
    assert _everything_of(folder) == before


def test_the_size_of_a_tree_counts_each_file_once(folder: Path) -> None:
    os.link(folder / "small", folder / "again")
    (folder / ".hyperha").mkdir()
    (folder / ".hyperha" / "intent").write_bytes(b"x" * 1000)
    root = os.open(folder, os.O_RDONLY)
    try:
        assert tree_bytes(root) == 2 * ZONE_BYTES + 107
    finally:
        os.close(root)


@pytest.mark.root
def test_the_engine_and_the_plain_folder_tell_the_same(tmp_path: Path) -> None:
    with pair_at(tmp_path) as pair:
        pair.in_sync()
        guest = Guest(pair.a)
        file = guest.create(ROOT_ID, b"f")
        guest.write(file, 0, b"x" * 100)
        answers: list[ProcessMessage] = []
        a = pair.a
        Questions(lambda: (a.store, a.intent, a.primary), lambda: None, answers.append).ask(
            AskCandidates(1)
        )
        wait_for(lambda: answers)
        marker_resource = a.intent._resource
        found = read_plain_folder(str(a.folder), marker_resource)
        assert told(1, found.reading.base, found.tally) == answers[0]


# --- answers by number --------------------------------------------------------------------


class Process:
    """Notes what it is asked; answers when told to."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def send(self, question: Question) -> None:
        self.asked.append(question)


async def _asked(process: Process, count: int) -> None:
    for _ in range(100):
        if len(process.asked) >= count:
            return
        await asyncio.sleep(0)
    raise AssertionError(process.asked)


def _verify(number: int) -> Question:
    return StartVerify(number, False)


@pytest.mark.anyio
async def test_answers_find_their_questions_and_progress_is_passed_on() -> None:
    asking, process = Asking(), Process()
    heard: list[int] = []
    first = asyncio.ensure_future(
        asking.ask(
            process.send, _verify, VerifyTold, silence_s=5, told=lambda m: heard.append(m.objects)
        )
    )
    second = asyncio.ensure_future(
        asking.ask(process.send, AskCandidates, CandidatesTold, silence_s=5)
    )
    await _asked(process, 2)
    one, two = (question.request for question in process.asked)
    assert asking.answer(CandidatesTold(two, False, "b", 0, 0, ()))
    assert (await second).base == "b"
    assert asking.answer(VerifyTold(one, objects=3))
    assert asking.answer(VerifyTold(one, objects=9, finished=True))
    assert (await first).objects == 9
    assert heard == [3]
    assert asking.answer(VerifyTold(one, finished=True)), "an answer too late is no stranger"
    assert not asking.answer(ProcessMessage())


@pytest.mark.anyio
async def test_questions_end_with_the_process_or_with_its_silence() -> None:
    asking, process = Asking(), Process()
    lost = asyncio.ensure_future(asking.ask(process.send, _verify, VerifyTold, silence_s=5))
    await _asked(process, 1)
    asking.lost()
    with pytest.raises(ReplicationError, match="has ended"):
        await lost
    with pytest.raises(TimedOutError, match="said nothing"):
        await asking.ask(process.send, _verify, VerifyTold, silence_s=0.01)

    def refuse(_: Question) -> None:
        raise ReplicationError("the replication process is not running")

    with pytest.raises(ReplicationError, match="not running"):
        await asking.ask(refuse, _verify, VerifyTold, silence_s=5)


# --- the turn in a folder that nothing covers ---------------------------------------------


@pytest.mark.anyio
async def test_a_folder_that_hangs_holds_up_nobody_and_is_not_touched_again(tmp_path: Path) -> None:
    plain, release = PlainFolder(), threading.Event()
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), plain:
                await plain.do(str(tmp_path), lambda _: release.wait(30))
        assert not plain.locked()
        async with plain:
            with pytest.raises(FailedError, match="has not ended"):
                await plain.do(str(tmp_path), os.listdir)
    finally:
        release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("look into"):
            thread.join(5)
    async with plain:
        assert await plain.do(str(tmp_path), os.listdir) == []
        with pytest.raises(FileNotFoundError):
            await plain.do(str(tmp_path / "none"), os.listdir)


@pytest.mark.anyio
async def test_a_folder_under_a_stale_mount_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperha.daemon.plain_folder.layers", lambda path: 1)
    plain = PlainFolder()
    async with plain:
        with pytest.raises(BusyError, match="covered by a mount"):
            await plain.do(str(tmp_path), os.listdir)
