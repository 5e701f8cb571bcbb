"""Checkers and the restart budget on a real application that hangs or dies."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.acceptance.pair import APPLICATION, Pair, PairOptions

pytestmark = pytest.mark.anyio

QUICK = PairOptions(
    module={
        "interval_s = 2\ntimeout_s = 2": (
            "interval_s = 0.3\ntimeout_s = 1\nfailures = 2\ngrace_s = 3"
        ),
        '{ unix = "heartbeat.sock" }': '{ unix = "heartbeat.sock", timeout_s = 0.4 }',
    }
)


async def another_application(pair: Pair, node: str, former: int, limit_s: float) -> int:
    """Wait for another process of the application; its id."""

    heard = pair.observer.count
    found: list[int] = []

    async def there() -> bool:
        nonlocal found
        found = pair.processes(node, APPLICATION)
        return len(found) == 1 and found != [former] and pair.observer.count > heard + 1

    await pair.eventually(there, limit_s, "another application")
    return found[0]


@pytest.mark.parametrize("options", [QUICK], ids=["quick"])
async def test_b05_application_that_hangs(protected: Pair) -> None:
    """B05, B07: restarted by its checker; suspended: left alone; resumed: watched again."""

    async def up() -> bool:
        return [c.state for c in (await protected.side("node1")).checkers] == ["up"]

    await protected.eventually(up, 10, "the checker to see the application")
    first = protected.one("node1", APPLICATION)
    protected.signal("node1", APPLICATION, signal.SIGSTOP)
    second = await another_application(protected, "node1", first, 8)
    assert await protected.restarts_used("node1") == 1
    await protected.more_orders()

    status, said = await protected.cli(
        "node1", "checker", "orders", "suspend", "--reason", "test", "--for", "1h"
    )
    assert status == 0, said
    protected.signal("node1", APPLICATION, signal.SIGSTOP)
    await asyncio.sleep(2.5)
    assert protected.one("node1", APPLICATION) == second
    for node in ("node1", "node2"):
        checkers = (await protected.side(node)).checkers
        assert [c.suspended.reason for c in checkers if c.suspended] == ["test"], node
    status, said = await protected.cli("node1", "checker", "orders", "resume")
    assert status == 0, said
    await another_application(protected, "node1", second, 12)
    await protected.more_orders()
    await protected.roles(10, node1="PRIM", node2="SECOND")
    assert await protected.restarts_used("node1") == 2
    await protected.equal_and_nothing_lost()


async def test_b05_restart_budget(protected: Pair) -> None:
    """Three recoveries; the fourth death moves the module to the other node."""
    for number in range(3):
        former = protected.one("node1", APPLICATION)
        protected.signal("node1", APPLICATION, signal.SIGKILL)
        await another_application(protected, "node1", former, 10)
        await protected.roles(10, node1="PRIM")
        assert await protected.restarts_used("node1") == number + 1
        await protected.more_orders()
    protected.signal("node1", APPLICATION, signal.SIGKILL)
    await protected.roles(15, node1="STOP", node2="ALONE")
    await protected.more_orders()
    assert "used up" in (await protected.side("node1")).why.text
    await protected.act("node1", "start")
    await protected.roles(40, node1="SECOND", node2="PRIM")
    assert await protected.restarts_used("node1") == 0
    await protected.equal_and_nothing_lost()


@pytest.mark.parametrize("options", [QUICK], ids=["quick"])
async def test_b07_application_that_ended_while_its_checker_was_suspended(protected: Pair) -> None:
    """B07: left alone until the end of the suspension, then started after its grace."""
    first = protected.one("node1", APPLICATION)
    status, said = await protected.cli(
        "node1", "checker", "orders", "suspend", "--reason", "test", "--for", "1h"
    )
    assert status == 0, said
    protected.signal("node1", APPLICATION, signal.SIGKILL)
    await asyncio.sleep(2)
    assert not protected.processes("node1", APPLICATION)
    side = await protected.side("node1")
    assert side.vm.state == "absent"
    assert "suspended" in side.why.text
    status, said = await protected.cli("node1", "checker", "orders", "resume")
    assert status == 0, said
    await another_application(protected, "node1", first, 12)
    await protected.roles(10, node1="PRIM", node2="SECOND")
    await protected.equal_and_nothing_lost()
