"""Messages that arrive late or again and belong to nothing that goes on now (D9, K2)."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import TypeVar

import pytest

from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core.actions import SendPeer, Timer
from hyperha.core.state import Link, Phase
from hyperha.domain import Role
from tests.support.world import Node, World, pair

R = Role
Message = TypeVar("Message", bound=m.PeerMessage)


def returning() -> World:
    """node1 runs alone, node2 has just come back and wants to follow."""
    world = pair()
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.boot_node(world.b)
    world.command(world.b, "start")
    return world


def heard_from(node: Node, kind: type[Message]) -> list[Message]:
    """Every message of that kind that the node's core sends from here on, as it is sent."""
    said: list[Message] = []
    perform = node.do_send_peer

    def send(action: SendPeer) -> None:
        if isinstance(action.message, kind):
            said.append(action.message)
        perform(action)

    node.do_send_peer = send
    return said


@pytest.mark.parametrize("link", [Link.OFFERED, Link.OPENING, Link.COPYING, Link.ENDING])
def test_a_late_request_to_join_does_not_disturb_the_session_that_begins(link: Link) -> None:
    world = returning()
    asked = heard_from(world.b, m.JoinRequest)
    while world.a.state.link is not link:
        world.run(1)
    late = m.JoinRequest(asked[0].summary, world.a.state.attempt - 1, 0)
    world.a.event(e.MessageReceived(late))
    world.until(R.PRIM, R.SECOND, timeout_ms=8000)


def test_a_late_request_to_join_does_not_freeze_a_pair_in_sync() -> None:
    world = returning()
    world.until(R.PRIM, R.SECOND)
    summary = m.Summary.of(world.b.lineage, 0, False)
    late = m.JoinRequest(summary, world.a.state.attempt - 1, 0)
    world.a.event(e.MessageReceived(late))
    assert world.a.state.link is Link.IN_SYNC
    assert not world.a.state.frozen


def test_a_refusal_that_comes_with_each_request_is_told_once() -> None:
    """D9: asked again many times a second, a node says the same."""
    world = pair()
    world.cut_network()
    while not world.a.state.frozen:
        world.run(1)
    state = world.a.state
    for _ in range(5):
        refusal = m.OutdateAnswer(state.nonce, False, state.lineage.epoch, "it is taking over")
        world.a.event(e.MessageReceived(refusal))
    assert sum("does not step back" in line for line in world.a.log) == 1


def test_a_node_that_is_being_stopped_opens_no_session() -> None:
    """The accepting node would follow one that runs nothing."""
    world = pair()
    world.command(world.a, "swap")
    while world.b.state.link is not Link.OFFERED:
        world.run(1)
    assert world.b.state.phase is Phase.OPENING
    session = world.b.state.session
    assert session is not None
    opened: list[object] = []
    world.b.do_open_session = opened.append
    world.command(world.b, "stop")
    assert world.b.state.phase is Phase.DETACHING
    world.b.event(e.MessageReceived(m.JoinAccept(session)))
    assert not opened


def test_a_target_that_was_refused_asks_again_by_itself() -> None:
    world = returning()
    while world.b.state.phase is not Phase.JOINING:
        world.run(1)
    attempt = world.b.state.attempt
    world.b.event(e.MessageReceived(m.JoinRefusal(attempt, "not now")))
    assert world.b.state.phase is Phase.WAITING
    asked = heard_from(world.b, m.JoinRequest)
    world.run(8000)
    assert any(one.attempt > attempt for one in asked)


def test_a_target_that_answers_an_offer_too_late_asks_anew() -> None:
    """Its record says half made by then, and the next offer is of what it was before (F8, R0)."""
    world = returning()
    asked = heard_from(world.b, m.JoinRequest)
    while world.b.state.link is not Link.OFFERED:
        world.run(1)
    assert world.a.state.link is Link.OFFERED
    world.a.event(e.TimerFired(Timer.OFFER))
    world.a.event(e.MessageReceived(asked[-1]))
    world.until(R.PRIM, R.SECOND, timeout_ms=8000)
    assert not any(" R0 " in line for line in world.b.log)


def test_an_offer_that_comes_late_is_not_taken_for_a_newer_one() -> None:
    world = returning()
    offers = heard_from(world.a, m.JoinOffer)
    while world.b.state.link is not Link.OFFERED:
        world.run(1)
    session = offers[-1].session
    older = replace(offers[-1], session=replace(session, number=session.number - 1))
    attempt = world.b.state.attempt
    world.b.event(e.MessageReceived(older))
    assert (world.b.state.session, world.b.state.attempt) == (session, attempt)
    assert world.b.state.phase is Phase.JOINING


def test_a_target_whose_clock_was_set_back_is_served_all_the_same() -> None:
    world = returning()
    while world.a.state.link is not Link.OFFERED:
        world.run(1)
    world.crash(world.b)
    world.a.state = replace(world.a.state, attempt=world.a.state.attempt + 3_600_000)
    world.boot_node(world.b)
    world.command(world.b, "start")
    world.until(R.PRIM, R.SECOND, timeout_ms=30_000)


@pytest.mark.parametrize("delay_ms", [2900, 2972, 2976, 2981, 2985, 2988, 3000, 4000])
def test_a_session_that_comes_late_is_of_no_node_that_went_on_alone(delay_ms: int) -> None:
    """The node that took over asks the other one to step back, and the session comes just then."""
    world = pair()
    world.command(world.a, "swap")
    while world.b.state.link is not Link.OPENING:
        world.run(1)
    assert world.b.state.phase is Phase.OPENING
    world.queue = [one for one in world.queue if one[3] != "connect"]
    heapq.heapify(world.queue)
    world.at(delay_ms, world.b, "connect")
    world.until(R.SECOND, R.PRIM, timeout_ms=12_000)
    world.run(2000)
    world.crash(world.b)
    world.until(R.ALONE, None, timeout_ms=12_000)
