"""Messages that arrive late or again and belong to nothing that goes on now (D9, K2)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core.state import Link
from hyperha.domain import Role
from tests.support.world import pair

R = Role


@pytest.mark.parametrize("link", [Link.OFFERED, Link.OPENING, Link.COPYING, Link.ENDING])
def test_a_late_request_to_join_does_not_disturb_the_session_that_begins(link: Link) -> None:
    world = pair()
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.boot_node(world.b)
    world.command(world.b, "start")
    summaries: list[m.Summary] = []
    perform = world.b.do_SendPeer

    def watch(action: object) -> None:
        message = getattr(action, "message", None)
        if isinstance(message, m.JoinRequest):
            summaries.append(message.summary)
        perform(action)

    world.b.do_SendPeer = watch
    while world.a.state.link is not link:
        world.run(1)
    late = m.JoinRequest(summaries[0], world.a.state.attempt - 1, 0)
    world.a.event(e.MessageReceived(late))
    world.until(R.PRIM, R.SECOND, timeout_ms=8000)


def test_a_late_request_to_join_does_not_freeze_a_pair_in_sync() -> None:
    world = pair()
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.boot_node(world.b)
    world.command(world.b, "start")
    world.until(R.PRIM, R.SECOND)
    summary = m.Summary.of(world.b.lineage, 0, False)
    late = m.JoinRequest(summary, world.a.state.attempt - 1, 0)
    world.a.event(e.MessageReceived(late))
    assert world.a.state.link is Link.IN_SYNC
    assert not world.a.state.frozen


def test_a_target_whose_clock_was_set_back_is_served_all_the_same() -> None:
    world = pair()
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.boot_node(world.b)
    world.command(world.b, "start")
    while world.a.state.link is not Link.OFFERED:
        world.run(1)
    world.crash(world.b)
    world.a.state = replace(world.a.state, attempt=world.a.state.attempt + 3_600_000)
    world.boot_node(world.b)
    world.command(world.b, "start")
    world.until(R.PRIM, R.SECOND, timeout_ms=30_000)
