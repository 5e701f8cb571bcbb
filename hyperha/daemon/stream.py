"""The stream of one reader: log lines in order, states and operations as they change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from hyperha.api.wire import (
    KEEPALIVE_S,
    ClusterView,
    LineKind,
    LogLine,
    OperationView,
    StreamLine,
)
from hyperha.daemon.views import rfc3339
from hyperha.logbook.journal import Entry, Gap, Logbook

STATE_PAUSE_S = 0.2
"""A reader gets at most five states a second."""
OPERATIONS_LIMIT = 200


def log_line(entry: Entry, node: str) -> LogLine:
    """A journal entry as people get it; the run id travels behind the event's id."""
    cause, _, run = str(entry.data.get("event", "")).partition("|")
    level = entry.data.get("level", "I")
    return LogLine(
        seq=entry.seq,
        at=rfc3339(entry.at_wall_ms),
        module=entry.module,
        node=node,
        level=level if level in ("I", "W", "E") else "I",
        source=str(entry.data.get("source", "")),
        rule=str(entry.data.get("rule", "")),
        text=str(entry.data.get("text", "")),
        cause=cause,
        run=run or None,
    )


class Subscribers:
    """Everybody who reads the stream of this node."""

    def __init__(
        self, node: str, boot_id: str, logbook: Logbook, cluster: Callable[[], ClusterView]
    ) -> None:
        self._node = node
        self._boot_id = boot_id
        self._logbook = logbook
        self._cluster = cluster
        self._readers: set[_Reader] = set()

    def state_changed(self) -> None:
        """Something that people are shown has changed."""
        for reader in self._readers:
            reader.dirty.set()

    def operation_changed(self, view: OperationView) -> None:
        """An operation has begun or ended."""
        for reader in self._readers:
            if len(reader.operations) < OPERATIONS_LIMIT:
                reader.operations.append(view)
            reader.dirty.set()

    async def stream(self, after: int | None) -> AsyncIterator[StreamLine]:
        """See `api.wire.StreamLine`; ends when the logbook closes or the reader goes."""
        reader = _Reader()
        self._readers.add(reader)
        last = self._logbook.last_seq
        entries = self._logbook.stream(last if after is None else after)
        following: asyncio.Task[Entry | Gap] = asyncio.ensure_future(anext(entries))
        reader.dirty.set()
        try:
            yield self._line("hello", boot_id=self._boot_id)
            while True:
                changed = asyncio.ensure_future(reader.dirty.wait())
                done, _ = await asyncio.wait(
                    {following, changed},
                    timeout=KEEPALIVE_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                changed.cancel()
                if not done:
                    yield self._line("alive")
                if following in done:
                    try:
                        yield self._entry(following.result())
                    except StopAsyncIteration:
                        return
                    following = asyncio.ensure_future(anext(entries))
                if reader.dirty.is_set():
                    for line in self._news(reader):
                        yield line
        finally:
            following.cancel()
            self._readers.discard(reader)

    def _news(self, reader: _Reader) -> list[StreamLine]:
        lines = [self._line("operation", operation=view) for view in reader.operations]
        reader.operations.clear()
        now_s = time.monotonic()
        wait_s = reader.sent_s + STATE_PAUSE_S - now_s
        if wait_s > 0 and not lines:
            reader.dirty.clear()
            asyncio.get_running_loop().call_later(wait_s, reader.dirty.set)
            return []
        reader.dirty.clear()
        reader.sent_s = now_s
        return [*lines, self._line("cluster", cluster=self._cluster())]

    def _entry(self, entry: Entry | Gap) -> StreamLine:
        if isinstance(entry, Gap):
            return self._line("reset")
        if entry.kind == "log":
            return StreamLine(
                type="log",
                seq=entry.seq,
                at=rfc3339(entry.at_wall_ms),
                log=log_line(entry, self._node),
            )
        return self._line("alive")

    def _line(
        self,
        kind: LineKind,
        *,
        boot_id: str | None = None,
        cluster: ClusterView | None = None,
        operation: OperationView | None = None,
    ) -> StreamLine:
        return StreamLine(
            type=kind,
            seq=self._logbook.last_seq,
            at=rfc3339(time.time_ns() // 1_000_000),
            boot_id=boot_id,
            cluster=cluster,
            operation=operation,
        )


class _Reader:
    """One reader's pending news."""

    def __init__(self) -> None:
        self.dirty = asyncio.Event()
        self.operations: list[OperationView] = []
        self.sent_s = 0.0
