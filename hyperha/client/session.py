"""One lasting conversation with the cluster: the stream, its loss and its return.

Feeds `link.py` with what happens and tells a listener. Never gives up, never keeps a state of the
cluster itself: whoever listens keeps the last one with its age.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from hyperha.api.wire import ClusterView, LogLine, OperationView, StreamLine
from hyperha.client import link as links
from hyperha.client.link import Link
from hyperha.client.node_client import NodeClient, Target
from hyperha.errors import HyperhaError, UnreachableError


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The link is in another state."""

    link: Link


@dataclass(frozen=True, slots=True)
class ClusterSeen:
    """The whole state, new."""

    view: ClusterView


@dataclass(frozen=True, slots=True)
class LogSeen:
    """One line of a module's log."""

    line: LogLine


@dataclass(frozen=True, slots=True)
class OperationSeen:
    """A command began or ended."""

    view: OperationView


@dataclass(frozen=True, slots=True)
class Reset:
    """Lines are missing or numbered anew: what was read before must be read again."""

    reason: str


SessionEvent = LinkChanged | ClusterSeen | LogSeen | OperationSeen | Reset
TransportOf = Callable[[Target], httpx.AsyncBaseTransport]


def monotonic_ms() -> int:
    """A clock that also counts while the machine sleeps, where there is one (K4)."""
    if sys.platform == "linux":
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    else:
        return time.monotonic_ns() // 1_000_000


class Session:
    """Follows the first target that answers, and the next one when it falls silent."""

    def __init__(
        self,
        targets: list[Target],
        listener: Callable[[SessionEvent], None],
        *,
        transport_of: TransportOf | None = None,
        clock_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        if not targets:
            raise ValueError("a session needs a target")
        self._targets = targets
        self._tell = listener
        self._transport_of = transport_of
        self._clock_ms = clock_ms
        self._jitter = random.Random()
        self._client: NodeClient | None = None
        self._after = 0
        self.link = Link(target=targets[0].name)

    def client(self) -> NodeClient:
        """For requests; UnreachableError while the link is not live."""
        if self._client is None or not self.link.live:
            why = f": {self.link.reason}" if self.link.reason else ""
            raise UnreachableError(f"no node answers{why}", "The console goes on trying.")
        return self._client

    def tick(self) -> None:
        """To be called about once a second: notices a silent connection."""
        self._set(links.ticked(self.link, self._clock_ms()))

    async def run(self) -> None:
        """Until cancelled."""
        index = 0
        while True:
            target = self._targets[index]
            self._set(links.attempting(self.link, target.name))
            reason = await self._attempt(target)
            now_ms = self._clock_ms()
            count = len(self._targets)
            self._set(links.failed(self.link, now_ms, reason, count, self._jitter.random()))
            index = (index + 1) % count
            await asyncio.sleep(self.link.wait_ms(now_ms) / 1000)

    async def _attempt(self, target: Target) -> str:
        """Connect and follow; why it ended."""
        transport = self._transport_of(target) if self._transport_of else None
        try:
            async with NodeClient(target, transport=transport) as client:
                self._client = client
                await self._follow(client)
            return f"{target.name} ended the stream"
        except HyperhaError as problem:
            return problem.text
        except ValueError as problem:
            # An answer that the wire models do not know, or certificates that cannot be used.
            return f"{target.name} cannot be understood: {problem}"
        except OSError as problem:
            return f"{target.name} cannot be reached: {problem}"
        finally:
            self._client = None

    async def _follow(self, client: NodeClient) -> None:
        view = await client.cluster()
        known = self.link.boot_id
        changed = self._identify(view.boot_id)
        self._set(links.heard(self.link, self._clock_ms()))
        self._tell(ClusterSeen(view))
        if changed:
            self._after = view.seq
            if known:
                self._tell(Reset(f"{view.answered_by} was started anew, or another node answers"))
        async for line in client.stream(self._after):
            self._set(links.heard(self.link, self._clock_ms()))
            self._take(line)

    def _identify(self, boot_id: str) -> bool:
        link, changed = links.identified(self.link, boot_id)
        self.link = link
        return changed

    def _take(self, line: StreamLine) -> None:
        if line.type == "hello" and line.boot_id and self._identify(line.boot_id):
            self._after = line.seq
            self._tell(Reset("the daemon was started anew"))
        if line.type == "reset":
            self._tell(Reset("lines of the log are missing"))
        if line.cluster is not None:
            self._tell(ClusterSeen(line.cluster))
        if line.operation is not None:
            self._tell(OperationSeen(line.operation))
        if line.log is not None:
            self._after = max(self._after, line.log.seq)
            self._tell(LogSeen(line.log))
        if line.type == "reset":
            self._after = max(self._after, line.seq)

    def _set(self, link: Link) -> None:
        if link != self.link:
            self.link = link
            self._tell(LinkChanged(link))
