"""The `transition` script hears of every change of role, in order, and holds nothing up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyperha.daemon.steps import StepArchive
from hyperha.daemon.transitions import Transitions
from hyperha.demo.cluster import until
from hyperha.domain import Role
from hyperha.logbook.outputs import OutputArchive
from hyperha.spawn.tree import RunPlace
from hyperha.vm.port import VmSpec

pytestmark = pytest.mark.anyio
R = Role


class Bench:
    """A module's transitions, and where its script is."""

    def __init__(self, directory: Path) -> None:
        self.scripts = directory / "scripts"
        self.scripts.mkdir()
        self.told = directory / "told"
        self.lines: list[str] = []
        self.steps = StepArchive("VM1", "node1", OutputArchive(directory / "log"), self._note)
        self.place = RunPlace.for_home("node1", directory)
        spec = VmSpec("VM1", 1, "node1", "node2", str(directory))
        self.transitions = Transitions(spec, self.steps, self.scripts, self.place, 5.0)

    def _note(self, level: str, source: str, rule: str, text: str, run: str) -> None:
        self.lines.append(f"{level} {source} {text}")

    def script(self, body: str, mode: int = 0o755) -> None:
        path = self.scripts / "transition"
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(mode)

    async def ended(self, count: int) -> None:
        async def so() -> bool:
            return sum(one.state == "ended" for one in self.steps.runs()) >= count

        await until(so, 20, f"{count} scripts to end")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    work = asyncio.ensure_future(made.transitions.run())
    yield made
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    made.place.close()


async def test_each_change_is_told_in_order(bench: Bench) -> None:
    bench.script(f'echo "$1 $2 $HYPERHA_ROLE_BEFORE $HYPERHA_ROLE" >>{bench.told}; echo moved')
    for role in (R.WAIT, R.WAIT, R.ALONE, R.PRIM):
        bench.transitions.role_is(role, 1)
    await bench.ended(3)
    assert bench.told.read_text().splitlines() == [
        "STOP WAIT STOP WAIT",
        "WAIT ALONE WAIT ALONE",
        "ALONE PRIM ALONE PRIM",
    ]
    newest = bench.steps.runs()[0]
    assert newest.script == "transition"
    assert "moved" in [line.text for line in bench.steps.output(newest.id).output]


async def test_a_script_that_fails_is_told_and_the_next_change_too(bench: Bench) -> None:
    bench.script("echo broken; exit 3")
    bench.transitions.role_is(R.WAIT, 1)
    bench.transitions.role_is(R.ALONE, 1)
    await bench.ended(2)
    assert sum("FAILED" in line and "exit status 3" in line for line in bench.lines) == 2


async def test_a_script_that_cannot_be_run_is_named(bench: Bench) -> None:
    bench.script("exit 0", mode=0o644)
    bench.transitions.role_is(R.WAIT, 1)
    await bench.ended(1)
    assert any("is not executable" in line for line in bench.lines)


async def test_without_a_script_nothing_is_said(bench: Bench) -> None:
    bench.transitions.role_is(R.WAIT, 1)
    await asyncio.sleep(0.2)
    assert not bench.lines
