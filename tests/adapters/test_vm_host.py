"""The daemon's keeper of a VM: what it tells the core of actions that fail."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hyperha.core import actions
from hyperha.core.events import Event, VmDone
from hyperha.daemon.steps import StepArchive
from hyperha.daemon.vm_host import Stops, VmHost
from hyperha.errors import FailedError
from hyperha.logbook.outputs import OutputArchive
from hyperha.vm.port import StopMode, VmSpec

pytestmark = pytest.mark.anyio


SPEC = VmSpec("VM1", 1, "node1", "node2", "/nowhere")


class BrokenDriver:
    """Fails at everything."""

    def __init__(self, problem: Exception) -> None:
        self.problem = problem

    async def preflight(self) -> None:
        raise self.problem

    kill = preflight

    async def stop(self, mode: StopMode, limit_s: float) -> str:
        raise self.problem


async def told(
    action: actions.VmAction, problem: Exception, steps: StepArchive | None = None
) -> Event:
    told: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
    stops = Stops(StopMode.STOP, StopMode.OFF, 1)
    host = VmHost(SPEC, stops, None, steps, None, told.set_result, None, None)
    host.use(BrokenDriver(problem))
    host.perform(action)
    return await asyncio.wait_for(told, 5)


@pytest.mark.parametrize("problem", [FailedError("foreseen"), RuntimeError("unforeseen")])
@pytest.mark.parametrize("action", [actions.Preflight(7), actions.KillVm(7, 1)])
async def test_whatever_fails_the_core_hears_of_it(
    action: actions.VmAction, problem: Exception
) -> None:
    """It waits for the end of every operation: a start, a swap or a stop would wait for ever."""
    done = await told(action, problem)
    assert isinstance(done, VmDone)
    assert (done.operation, done.ok) == (7, False)
    assert str(problem) in done.text


@pytest.mark.parametrize("problem", [FailedError("foreseen"), RuntimeError("unforeseen")])
async def test_a_step_that_fails_has_ended_and_says_why(tmp_path: Path, problem: Exception) -> None:
    """B09: whatever it was."""
    steps = StepArchive("VM1", "node1", OutputArchive(tmp_path), lambda *_: None)
    done = await told(actions.StopVm(7, 1, True), problem, steps)
    assert isinstance(done, VmDone)
    assert not done.ok
    (run,) = steps.runs()
    assert (run.state, run.exit_status) == ("ended", 1)
