"""The lasting conversation: what is told, how it comes back, which node it turns to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from hyperha.client.link import LinkState
from hyperha.client.node_client import Target
from hyperha.client.problems import UnreachableError
from hyperha.client.session import LogSeen, OperationSeen, Reset, Session, SessionEvent
from tests.console.fake_node import FakeNode, cluster, log

pytestmark = pytest.mark.anyio


@dataclass
class Listener:
    """Keeps what was told and wakes whoever waits for it."""

    told: list[SessionEvent] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, event: SessionEvent) -> None:
        self.told.append(event)
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.news.clear()
                await self.news.wait()

    def of(self, kind: type[SessionEvent]) -> list[SessionEvent]:
        return [event for event in self.told if isinstance(event, kind)]


@asynccontextmanager
async def session(*nodes: FakeNode) -> AsyncIterator[tuple[Session, Listener]]:
    listener = Listener()
    by_name = {f"n{index}": node for index, node in enumerate(nodes)}
    targets = [Target(name, socket="/none") for name in by_name]
    one = Session(targets, listener, transport_of=lambda t: by_name[t.name].transport(t))
    task = asyncio.create_task(one.run())
    try:
        yield one, listener
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_the_stream_says_is_told_once() -> None:
    node = FakeNode()
    async with session(node) as (one, listener):
        await listener.until(lambda: one.link.live and node.connections == 1)
        node.say(log(20, "hello"))
        await listener.until(lambda: bool(listener.of(LogSeen)))
        assert len(listener.of(LogSeen)) == 1
        assert listener.of(Reset) == [], "the first contact is no loss"
        assert listener.of(OperationSeen) == []


async def test_it_turns_to_the_other_node_and_reads_everything_anew() -> None:
    first = FakeNode()
    second = FakeNode(cluster(answered_by="node2", boot_id="b2"))
    async with session(first, second) as (one, listener):
        await listener.until(lambda: first.connections == 1)
        first.cut()
        await listener.until(lambda: second.connections == 1 and one.link.live)
        assert one.link.target == "n1"
        assert len(listener.of(Reset)) == 1


async def test_it_comes_back_to_the_same_daemon_where_it_was() -> None:
    node = FakeNode()
    async with session(node) as (one, listener):
        await listener.until(lambda: node.connections == 1)
        node.cut()
        await listener.until(lambda: one.link.state is LinkState.LOST)
        with pytest.raises(UnreachableError, match="no node answers: n0 does not answer"):
            one.client()
        node.down = False
        await listener.until(lambda: node.connections == 2 and one.link.live)
        assert listener.of(Reset) == []
        assert node.after == ["10", "10"]


async def test_a_daemon_that_was_started_anew_is_read_from_the_beginning() -> None:
    node = FakeNode()
    async with session(node) as (one, listener):
        await listener.until(lambda: node.connections == 1)
        node.cut()
        await listener.until(lambda: one.link.state is LinkState.LOST)
        node.down, node.view = False, cluster(boot_id="b2", seq=3)
        await listener.until(lambda: node.connections == 2)
        assert len(listener.of(Reset)) == 1
        assert node.after == ["10", "3"]


async def test_an_answer_that_means_nothing_is_a_lost_link_with_its_reason() -> None:
    node = FakeNode()
    node.nonsense = True
    async with session(node) as (one, listener):
        await listener.until(lambda: one.link.state is LinkState.LOST)
        assert "cannot be understood" in one.link.reason
