"""One module's replication process: started, given orders, kept alive across its death (M4).

The host holds the duplicates that a successor needs and that arm the guardian. It decides nothing:
what a death means is the core's business (`EngineLost`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hyperha
from hyperha.core import actions as a
from hyperha.core.events import EngineDone, EngineLost, Event
from hyperha.errors import HyperhaError
from hyperha.replication.control import (
    Descriptors,
    EngineConfig,
    LogLine,
    ProcessMessage,
    Start,
    Statistics,
    TakeSocket,
)
from hyperha.replication.engine_client import EngineClient
from hyperha.spawn.run import Run, start
from hyperha.spawn.tree import RunPlace

_log = logging.getLogger(__name__)
ALIVE_MS = 400
"""A frame of the peer that is younger proves that the peer lives (P8)."""
_SUCCESSOR_LIMIT_S = 5.0
_END_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Kept:
    """Duplicates of a process's descriptors, by name."""

    names: tuple[str, ...]
    descriptors: tuple[int, ...]
    fence: str = ""

    def close(self) -> None:
        """Give them back."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def fences(self) -> list[tuple[str, int]]:
        """What arms the guardian: (kind, descriptor)."""
        pairs = zip(self.names, self.descriptors, strict=True)
        return [(name, one) for name, one in pairs if name.startswith("fence")]


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Whom the host tells."""

    post: Callable[[Event], None]
    line: Callable[[LogLine], None]
    alive: Callable[[], None]
    """A frame of the session came in: the session counts as a LAN."""
    descriptors: Callable[[Kept], None]
    statistics: Callable[[Statistics], None]


class EngineHost:
    """Implements `ports.Replicator` for one module; belongs to the event loop."""

    def __init__(self, config: EngineConfig, place: RunPlace | None, callbacks: Callbacks) -> None:
        self._config = config
        self._place = place
        self._callbacks = callbacks
        self._run: Run | None = None
        self._client: EngineClient | None = None
        self._kept: Kept | None = None
        self._orders: asyncio.Queue[a.EngineAction] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self._pending: set[int] = set()
        self._ending = False
        self._detaching = -1
        self._death: asyncio.Task[None] | None = None

    @property
    def kept(self) -> Kept | None:
        """The descriptors held for a successor and for the guardian."""
        return self._kept

    def perform(self, action: a.EngineAction) -> None:
        """Begin the action, after those before it."""
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        self._orders.put_nowait(action)

    def take_socket(self, lan: str, raw_preamble: bytes, connection: socket.socket) -> bool:
        """A connection of the peer's process, whose preamble was read here."""
        client = self._client
        if client is None or self._ending:
            return False
        try:
            client.give_socket(connection.fileno(), TakeSocket(lan, raw_preamble.hex()))
        except (OSError, HyperhaError) as problem:
            _log.warning("%s: socket not handed over: %s", self._config.module, problem)
            return False
        connection.close()  # The process has a duplicate.
        return True

    async def close(self) -> None:
        """End the process and forget everything."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None
        await self._end()

    async def _work(self) -> None:
        while True:
            action = await self._orders.get()
            try:
                await self._order(action)
            except (HyperhaError, OSError) as problem:
                self._answer(action, False, str(problem))

    async def _order(self, action: a.EngineAction) -> None:
        if isinstance(action, a.Attach):
            await self._end()
            await self._begin(None)
        elif isinstance(action, a.Detach) and self._client is None:
            self._answer(action, True, "")
            return
        client = self._client
        if client is None:
            self._answer(action, False, "the replication process is not running")
            return
        operation = _number(action)
        self._pending.add(operation)
        if isinstance(action, a.Detach):
            self._detaching = operation
        client.perform(action)

    def _answer(self, action: a.EngineAction, ok: bool, text: str) -> None:
        self._callbacks.post(EngineDone(_number(action), ok, text))

    async def _begin(self, kept: Kept | None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            self._run = await start(
                [sys.executable, "-m", "hyperha.replication.process", str(theirs.fileno())],
                name=f"replication {self._config.module}",
                place=self._place,
                cwd=str(Path(hyperha.__file__).parent.parent),
                output=self._on_output,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._ending = False
        client = EngineClient(ours, self._on_message, self._on_event, self._on_lost)
        self._client = client
        names = kept.names if kept else ()
        descriptors = kept.descriptors if kept else ()
        client.start(Start(self._config, kept is not None, names), descriptors)

    def _on_output(self, line: object) -> None:
        text = getattr(line, "text", "")
        _log.warning("replication %s: %s", self._config.module, text)
        self._callbacks.line(LogLine("W", "", text))

    def _on_event(self, event: Event) -> None:
        if isinstance(event, EngineDone):
            self._pending.discard(event.operation)
            if event.operation == self._detaching:
                self._ending = True  # The process ends by itself now.
        self._callbacks.post(event)

    def _on_message(self, message: ProcessMessage, descriptors: tuple[int, ...]) -> None:
        match message:
            case Descriptors(names, fence):
                kept = Kept(names, descriptors, fence)
                former, self._kept = self._kept, kept
                self._callbacks.descriptors(kept)
                if former is not None:
                    former.close()
            case LogLine():
                self._callbacks.line(message)
            case Statistics():
                if 0 <= message.heard_ms_ago < ALIVE_MS:
                    self._callbacks.alive()
                self._callbacks.statistics(message)
            case _:
                _log.error("%s: unexpected %s", self._config.module, type(message).__name__)

    def _on_lost(self, text: str) -> None:
        """The control channel ended: expected after Detach, otherwise a death (M4)."""
        self._client = None
        pending, self._pending = self._pending, set()
        if not self._ending:
            loop = asyncio.get_running_loop()
            self._death = loop.create_task(self._after_death(text, pending))

    async def _after_death(self, text: str, pending: set[int]) -> None:
        how = text
        if self._run is not None:
            await self._run.kill()
            how = f"{text}: {await self._run.wait()}"
            self._run = None
        recovered = False
        kept = self._kept
        if kept is not None and "device" in kept.names:
            try:
                async with asyncio.timeout(_SUCCESSOR_LIMIT_S):
                    await self._begin(kept)
                    recovered = await self._succeeded()
            except (HyperhaError, OSError, TimeoutError) as problem:
                how = f"{how}; no successor: {problem}"
        if not recovered:
            self._drop_kept()
        # The death first: what it means for these orders is the core's business (M4).
        self._callbacks.post(EngineLost(how, recovered))
        for operation in sorted(pending):
            self._callbacks.post(EngineDone(operation, False, "the replication process died"))

    async def _succeeded(self) -> bool:
        client = self._client
        return client is not None and await client.taken_over()

    def _drop_kept(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    async def _end(self) -> None:
        self._ending = True
        client, self._client = self._client, None
        if client is not None:
            client.close()
        run, self._run = self._run, None
        self._drop_kept()
        if run is not None:
            try:
                async with asyncio.timeout(_END_LIMIT_S):
                    await run.wait()
            except TimeoutError:
                await run.kill()


def _number(action: a.EngineAction) -> int:
    number: int = action.operation  # type: ignore[attr-defined]
    return number
