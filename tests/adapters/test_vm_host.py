"""The daemon's keeper of a VM: what it tells the core of actions that fail."""

from __future__ import annotations

import asyncio

import pytest

from hyperha.core import actions
from hyperha.core.events import Event, VmDone
from hyperha.daemon.vm_host import Stops, VmHost
from hyperha.errors import FailedError
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


async def told(action: actions.VmAction, problem: Exception) -> Event:
    told: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
    stops = Stops(StopMode.STOP, StopMode.OFF, 1)
    host = VmHost(SPEC, stops, None, None, None, told.set_result, None, None)
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
