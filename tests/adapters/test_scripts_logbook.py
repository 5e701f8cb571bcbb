"""Scripts run bounded and captured; the journal keeps its order over restarts."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyperha.errors import ConfigError, NotFoundError
from hyperha.logbook.journal import Entry, Gap, Logbook
from hyperha.logbook.outputs import OutputArchive
from hyperha.scripts.runner import ScriptRunner, Step
from hyperha.spawn.tree import RunPlace

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs Linux"),
    pytest.mark.anyio,
]


@pytest.fixture
async def place() -> AsyncIterator[RunPlace]:
    made = RunPlace(f"scripts-{os.getpid()}")
    yield made
    assert made.leftovers() == []
    made.close()


def _script(directory: Path, name: str, text: str, mode: int = 0o755) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(mode)


def _runner(directory: Path, place: RunPlace, **more: object) -> ScriptRunner:
    return ScriptRunner("VM1", directory, place=place, timeout_s=20, **more)  # type: ignore[arg-type]


async def test_a_script_is_captured_with_status_and_environment(
    tmp_path: Path, place: RunPlace
) -> None:
    _script(tmp_path / "s", "start_prim.sh", "echo $HYPERHA_STEP $HYPERHA_MODULE; exit 3")
    seen: list[tuple[str, str]] = []
    runner = _runner(
        tmp_path / "s", place, on_line=lambda step, line: seen.append((step, line.text))
    )
    result = await runner.run(Step.START_PRIM, {"HYPERHA_MODULE": "VM1"})
    assert result is not None
    assert not result.ok
    assert result.text.startswith("script start_prim: exit status 3 after")
    assert result.text.endswith("start_prim VM1")
    assert seen == [("start_prim", "start_prim VM1")]
    assert await runner.run(Step.PRESTART, {}) is None


async def test_a_script_over_its_time_is_ended(tmp_path: Path, place: RunPlace) -> None:
    _script(tmp_path / "s", "poststop", "sleep 600 & sleep 600")
    runner = ScriptRunner("VM1", tmp_path / "s", place=place, timeout_s=0.3)
    result = await runner.run(Step.POSTSTOP, {})
    assert result is not None
    assert "time limit" in result.text


async def test_what_a_start_script_leaves_running_stays_until_the_end(
    tmp_path: Path, place: RunPlace
) -> None:
    _script(tmp_path / "s", "start_prim", "sleep 600 >/dev/null 2>&1 & echo started")
    runner = _runner(tmp_path / "s", place, replace=["start_prim"])
    assert runner.replaces(Step.START_PRIM)
    result = await runner.run(Step.START_PRIM, {}, keep_tree=True)
    assert result is not None
    assert result.ok
    (kept,) = runner._kept
    assert len(kept.tree.members()) == 1
    assert await runner.end_kept()
    assert kept.tree.members() == []


async def test_scripts_that_cannot_be_used_are_named(tmp_path: Path, place: RunPlace) -> None:
    directory = tmp_path / "s"
    with pytest.raises(ConfigError, match="there is no script"):
        _runner(directory, place, replace=["start_prim"]).find(Step.START_PRIM)
    _script(directory, "prestart", "true", mode=0o644)
    with pytest.raises(ConfigError, match="chmod"):
        _runner(directory, place).find(Step.PRESTART)
    _script(directory, "prestart.py", "true")
    with pytest.raises(ConfigError, match="several scripts"):
        _runner(directory, place).find(Step.PRESTART)


def test_outputs_are_kept_listed_read_and_bounded(tmp_path: Path) -> None:
    archive = OutputArchive(tmp_path / "VM1", keep=3)
    assert archive.runs() == []
    for number in range(5):
        archive.store(
            "start_prim",
            1_700_000_000_000 + number // 2,
            ok=number != 4,
            text=f"run {number}",
            lines=[(1, "out", "one"), (2, "err", "zwei ü")],
        )
    kept = archive.runs()
    assert [record.text for record in kept] == ["run 4", "run 3", "run 2"]
    record, lines = archive.read(kept[0].id)
    assert not record.ok
    assert [(line.stream, line.text) for line in lines] == [("out", "one"), ("err", "zwei ü")]
    for bad in ("../../etc/passwd", "1", "1700000000000-x/../y"):
        with pytest.raises(NotFoundError):
            archive.read(bad)


def _journals(directory: Path) -> list[Path]:
    return sorted(directory.glob("journal-*.jsonl"))


def _append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


async def test_the_journal_survives_a_restart(tmp_path: Path) -> None:
    book = Logbook(tmp_path)
    book.log("VM1", "I", "first \x1b[31mred\nline", rule="P1", source="core")
    book.publish("state", "VM1", {"role": "PRIM"})
    book.log("", "W", "second")
    book.close()
    again = Logbook(tmp_path)
    try:
        assert [entry.data["text"] for entry in again.messages()] == ["first red line", "second"]
        assert [entry.data["rule"] for entry in again.messages("VM1")] == ["P1"]
        assert again.last_seq > book.last_seq, "no number ever means two things"
    finally:
        again.close()


async def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    book = Logbook(tmp_path)
    book.log("VM1", "I", "whole")
    book.close()
    _append(_journals(tmp_path)[0], '{"seq": 2, "at_wa')
    again = Logbook(tmp_path)
    again.log("VM1", "I", "after")
    again.close()
    last = Logbook(tmp_path)
    last.close()
    assert [entry.data["text"] for entry in last.messages()] == ["whole", "after"]


async def test_a_stream_goes_on_where_the_reader_was(tmp_path: Path) -> None:
    book = Logbook(tmp_path, ring=10)
    for number in range(5):
        book.log("VM1", "I", f"line {number}")
    seen: list[Entry | Gap] = []

    arrived = asyncio.Event()

    async def read() -> None:
        async for item in book.stream(after=2):
            seen.append(item)
            if item.seq == 5:
                arrived.set()

    reader = asyncio.create_task(read())
    await asyncio.wait_for(arrived.wait(), 10)
    book.publish("progress", "VM1", {"done": 1})
    book.close()
    await asyncio.wait_for(reader, 10)
    assert [item.seq for item in seen] == [3, 4, 5, 6]
    assert seen[-1].kind == "progress"  # type: ignore[union-attr]


async def test_what_is_no_longer_there_is_said_as_a_gap(tmp_path: Path) -> None:
    book = Logbook(tmp_path, ring=3)
    for number in range(9):
        book.log("", "I", f"line {number}")
    book.close()
    assert [item async for item in book.stream(after=1)] == [Gap(9)]
    assert [item async for item in book.stream(after=70)] == [Gap(9)]
    assert [item.seq async for item in book.stream(after=6)] == [7, 8, 9]


async def test_the_journal_rotates(tmp_path: Path) -> None:
    book = Logbook(tmp_path, file_limit_bytes=500, files_kept=3)
    for number in range(60):
        book.log("VM1", "I", f"line {number} " + "x" * 50)
    book.close()
    files = _journals(tmp_path)
    assert len(files) == 3
    assert all(path.stat().st_size < 1000 for path in files)
    assert "line 59" in files[-1].read_text("utf-8")
