"""Questions about what would happen, asked in the console."""

from __future__ import annotations

import pytest

from hyperha.api.wire import SnapshotView
from hyperha.study.snapshot import snapshot_body
from tests.console.fake_node import FakeNode
from tests.console.test_flows import Console, console
from tests.console.test_screens import compare
from tests.support.world import pair, snapshots
from tui.screens.copies import AnswerScreen
from tui.screens.whatif import WhatIfScreen

pytestmark = pytest.mark.anyio


@pytest.fixture
def node() -> FakeNode:
    """A node pair with cores behind it."""
    found = FakeNode()
    found.snapshots = {
        name: SnapshotView(node=name, **snapshot_body(one))
        for name, one in snapshots(pair()).items()
    }
    return found


async def asked(it: Console) -> None:
    await it.pilot.press("i")
    await it.until(lambda: isinstance(it.app.screen, WhatIfScreen))


async def told(it: Console) -> None:
    await it.until(lambda: isinstance(it.app.screen, AnswerScreen))
    await it.until(lambda: "nodes are asked" not in it.text())
    await it.pilot.pause()


async def test_a_question_is_chosen_and_answered(node: FakeNode) -> None:
    async with console(node) as it:
        await asked(it)
        compare("whatif-80x24", it)
        await it.pilot.press("enter")
        await told(it)
        compare("whatif-answer-80x24", it)
        await it.pilot.press("escape")
        await it.until(lambda: it.app.screen is it.app.dashboard)
        assert it.node.sent == []


async def test_events_are_written(node: FakeNode) -> None:
    async with console(node) as it:
        await asked(it)
        await it.pilot.press("/", *"network-cut wait:1 network-back", "enter")
        await told(it)
        assert "asked       network-cut, then wait:1, then network-back" in it.text()


async def test_a_wrong_event_is_named(node: FakeNode) -> None:
    async with console(node) as it:
        await asked(it)
        await it.pilot.press("tab", *"off:node7", "enter")
        await told(it)
        assert "there is no node 'node7'" in it.text()


async def test_it_can_be_left(node: FakeNode) -> None:
    async with console(node) as it:
        await asked(it)
        await it.pilot.press("escape")
        await it.until(lambda: it.app.screen is it.app.dashboard)
