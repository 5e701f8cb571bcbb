"""A guardian that stands still: replaced by one that speaks, since writes wait for its word."""

from __future__ import annotations

import signal

import pytest

from tests.acceptance.pair import APPLICATION, DAEMON, ENGINE, GUARDIAN, Pair

pytestmark = pytest.mark.anyio


async def test_guardian_frozen_when_the_session_ends(protected: Pair) -> None:
    """L8, P1: writes that wait for the word of a guardian that hangs go on within seconds."""
    application = protected.one("node1", APPLICATION)
    hung = protected.one("node1", GUARDIAN)
    protected.signal("node1", GUARDIAN, signal.SIGSTOP)
    killed = protected.signal("node1", ENGINE, signal.SIGKILL)
    await protected.more_orders(limit_s=15)
    pause = protected.observer.longest_pause_s(killed)
    print(f"longest pause {pause:.2f} s")
    assert pause < 8.0, pause
    await protected.log_has("node1", "another guardian runs and is armed")
    assert protected.one("node1", GUARDIAN) != hung
    assert protected.one("node1", APPLICATION) == application
    await protected.roles(40, node1="PRIM", node2="SECOND")
    # The new one is armed like the old one was: a dead daemon's run is ended and certified (L8).
    protected.signal("node1", DAEMON, signal.SIGKILL)
    await protected.dead_daemon_replaced()


async def test_guardian_frozen_while_nothing_happens(protected: Pair) -> None:
    """P1: noticed and replaced without a pause for anybody; every module's log says so."""
    hung = protected.one("node1", GUARDIAN)
    frozen = protected.signal("node1", GUARDIAN, signal.SIGSTOP)
    line = await protected.log_has("node1", f"was killed (process {hung})")
    assert "P1" in line, line
    await protected.log_has("node1", "another guardian runs and is armed")
    assert any("no answer" in one.text for one in (await protected.log("node1")).lines)
    assert protected.observer.longest_pause_s(frozen) < 2.0
    await protected.equal_and_nothing_lost()
