"""A daemon that ends while something does not end: its guardian is left to do it (L5', L8)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest

from hyperha.daemon.module_host import ModuleHost
from hyperha.daemon.node import NodeDaemon
from hyperha.daemon.vm_host import Stops, VmHost
from hyperha.errors import FailedError
from hyperha.vm.port import StopMode, VmSpec, VmState
from hyperha.vm.process import ProcessDriver

pytestmark = pytest.mark.anyio


def closing_node(*modules: Mock) -> NodeDaemon:
    """A node whose every part is a stand-in."""
    node = NodeDaemon.__new__(NodeDaemon)
    node._stop, node._servers, node._tasks, node._started = asyncio.Event(), [], [], False
    node.modules = {f"VM{number}": module for number, module in enumerate(modules)}
    node.audit, node.logbook, node.place, node.home = Mock(), Mock(), Mock(), Mock()
    node.listener, node.peer_api, node.guardian = AsyncMock(), AsyncMock(), AsyncMock()
    return node


async def test_the_guardian_is_released_when_all_has_ended() -> None:
    node = closing_node(AsyncMock(), AsyncMock())
    await node._close()
    node.guardian.release.assert_awaited_once()
    node.guardian.abandon.assert_not_awaited()


@pytest.mark.parametrize("failure", [OSError(24, "Too many open files"), asyncio.CancelledError()])
async def test_the_guardian_ends_what_did_not_end(failure: BaseException) -> None:
    """Every other part is closed nevertheless, and the daemon does not call this a clean end."""
    bad, good = AsyncMock(), AsyncMock()
    bad.close.side_effect = failure
    node = closing_node(bad, good)
    with pytest.raises(type(failure)):
        await node._close()
    good.close.assert_awaited_once()
    node.listener.close.assert_awaited_once()
    node.guardian.abandon.assert_awaited_once()
    node.guardian.release.assert_not_awaited()


async def test_every_part_of_a_module_is_closed_whatever_the_others_do() -> None:
    module = ModuleHost.__new__(ModuleHost)
    module._tasks, module.task = [], Mock()
    module.checks, module.vm, module.steps, module.engine = (AsyncMock() for _ in range(4))
    module.checks.close.side_effect = RuntimeError("a check has failed before")
    with pytest.raises(RuntimeError, match="a check has failed before"):
        await module.close()
    for part in (module.vm, module.steps, module.engine):
        part.close.assert_awaited_once()


@pytest.mark.parametrize("driver", [False, OSError(24, "Too many open files"), True])
@pytest.mark.parametrize("kept", [False, True])
async def test_a_vm_that_does_not_end_is_said_to_be_left(
    tmp_path: Path, driver: bool | OSError, kept: bool
) -> None:
    scripts = AsyncMock()
    scripts.end_kept.return_value = kept
    stops = Stops(StopMode.STOP, StopMode.OFF, 1)
    spec = VmSpec("VM1", 1, "node1", "node2", str(tmp_path))
    host = VmHost(spec, stops, scripts, Mock(), Mock(), Mock(), Mock(), Mock())
    host.use(AsyncMock(kill=AsyncMock(side_effect=[driver])))
    if driver is True and kept:
        await host.close()
    else:
        with pytest.raises((FailedError, OSError)):
            await host.close()
    scripts.end_kept.assert_awaited_once()


async def test_whether_a_vm_is_gone_is_not_known_where_nobody_can_look(tmp_path: Path) -> None:
    spec = VmSpec("VM1", 1, "node1", "node2", str(tmp_path))
    driver = ProcessDriver.__new__(ProcessDriver)
    driver._spec, driver._run = spec, Mock(running=False)
    driver._run.tree.members.side_effect = OSError(24, "Too many open files")
    found = await driver.observe()
    assert found.state is VmState.UNKNOWN
    assert "Too many open files" in found.text
