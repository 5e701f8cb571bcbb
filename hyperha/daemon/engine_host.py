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
from hyperha.daemon.asking import Asking, Make, T
from hyperha.daemon.fencing import peel
from hyperha.daemon.held_orphans import HoldsOrphans
from hyperha.daemon.module_task import boottime_ms
from hyperha.daemon.plain_folder import PlainFolder, R
from hyperha.errors import BusyError, HyperhaError, ReplicationError, TimedOutError
from hyperha.replication.control import (
    Descriptors,
    DropOrphan,
    EngineConfig,
    HoldOrphan,
    LogLine,
    ProcessMessage,
    Question,
    Start,
    Statistics,
    TakeSocket,
)
from hyperha.replication.engine_client import EngineClient
from hyperha.spawn.run import Run, start
from hyperha.spawn.tree import RunPlace
from hyperha.threads import in_own_thread

_log = logging.getLogger(__name__)
_SUCCESSOR_LIMIT_S = 5.0
_SUCCESSORS = 5
"""A successor may die as well; a kernel that cannot do it is not asked twice."""
_LOOK_S = 0.5
_HUNG_ORDERED_MS, _HUNG_MS = 2500, 5000
"""A served process says something every second; longer silence means that it hangs."""
_END_LIMIT_S = 5.0
_PLAIN_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Kept:
    """Duplicates of a process's descriptors, by name; the rest as in `control.Descriptors`."""

    names: tuple[str, ...]
    descriptors: tuple[int, ...]
    fence: str = ""
    ours: bool = True

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
    alive: Callable[[int], None]
    """The session lives and counts as a LAN; when its newest frame came in."""
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
        self._orphans = HoldsOrphans()
        self._orphans_told = False
        self._orders: asyncio.Queue[a.EngineAction] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None
        self._pending: set[int] = set()
        self._ending = False
        self._detaching = -1
        self._death: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._heard_ms: int | None = None
        """When the process that serves the folder last said something; None before it serves."""
        self._asking = Asking()
        self._plain = PlainFolder()
        """Held while this daemon itself has the folder open, which nobody else may have (M6)."""

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

    async def ask(
        self,
        make: Make,
        kind: type[T],
        *,
        silence_s: float,
        told: Callable[[T], None] | None = None,
    ) -> T:
        """Ask the process something beside the core's orders; see `Asking.ask`."""
        return await self._asking.ask(self.tell, make, kind, silence_s=silence_s, told=told)

    def tell(self, question: Question) -> None:
        """Send a question whose answer nobody waits for. Raises ReplicationError."""
        client = self._client
        if client is None or self._ending or self._death is not None:
            raise ReplicationError("the replication process is not running")
        client.ask(question)

    async def in_plain_folder(self, work: Callable[[str], R], limit_s: float | None) -> R:
        """Do something in a thread with the folder that nothing covers; to cover it waits for a
        while (M6). Raises BusyError when it is covered, TimedOutError when it does not answer."""
        folder = self._config.folder
        try:
            async with asyncio.timeout(limit_s), self._plain:
                if self._client is not None or (self._run is not None and self._run.running):
                    raise BusyError(f"{folder} is in use by its replication process")
                return await self._plain.do(folder, work)
        except TimeoutError:
            raise TimedOutError(f"{folder} does not answer", "Check its disk.") from None

    async def _begin_covering(self) -> None:
        """Not beside somebody who reads the folder; a disk that hangs holds nothing up, though."""
        try:
            async with asyncio.timeout(_PLAIN_LIMIT_S):
                await self._plain.acquire()
        except TimeoutError:
            text = "the folder is still being read: it is covered unless a file in it is open"
            self._callbacks.line(LogLine("W", "M6", text))
            await self._begin(None)
            return
        try:
            await self._begin(None)
        finally:
            self._plain.release()

    async def cut(self) -> None:
        """End the process and its connection at once: the last means of a fence (L5')."""
        await self._begin_end()
        await self._bury()
        self._drop_kept()
        self._pending.clear()
        # The core must not count on what this process was to write at its end (R12).
        self._callbacks.post(EngineLost("ended to cut the VM off from its data", False))

    async def close(self) -> None:
        """End the process and forget everything."""
        for task in (self._worker, self._watch):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._worker = self._watch = None
        await self._end()

    async def _work(self) -> None:
        while True:
            action = await self._orders.get()
            try:
                await self._order(action)
            except (HyperhaError, OSError) as problem:
                self._answer(action.operation, str(problem))
            except Exception as problem:
                # The core waits for every operation's end, and the next order for this task.
                name = type(action).__name__
                _log.exception("%s: %s failed in an unforeseen way", self._config.module, name)
                self._pending.discard(action.operation)
                self._answer(action.operation, f"{name} failed: {problem!r}")

    async def _order(self, action: a.EngineAction) -> None:
        operation = action.operation
        if self._death is not None:
            if not isinstance(action, a.Attach | a.Detach):
                # The core does not know of the death yet; told of it, it asks again (M4).
                self._pending.add(operation)
                return
            await asyncio.wait([self._death])
        if isinstance(action, a.Attach):
            await self._end()
            await self._begin_covering()
        elif isinstance(action, a.Detach) and self._client is None:
            self._answer(operation, await self._uncover())
            return
        client = self._client
        if client is None:
            self._answer(operation, "the replication process is not running")
            return
        self._pending.add(operation)
        if isinstance(action, a.Detach):
            self._detaching = operation
            self._heard_ms = None
        client.perform(action)

    def _answer(self, operation: int, problem: str) -> None:
        self._callbacks.post(EngineDone(operation, not problem, problem))

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
        self._heard_ms = None
        client = EngineClient(
            ours, self._on_message, self._on_event, lambda text: self._on_lost(client, text)
        )
        self._client = client
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._watching())
        if kept is not None:
            for orphans, held in self._orphans.messages():
                client.give_orphans(orphans, held)
        names = kept.names if kept else ()
        descriptors = kept.descriptors if kept else ()
        accepted = kept is None or kept.ours
        client.start(Start(self._config, kept is not None, names, accepted), descriptors)

    def _on_output(self, line: object) -> None:
        text = getattr(line, "text", "")
        _log.warning("replication %s: %s", self._config.module, text)
        self._callbacks.line(LogLine("W", "", text))

    async def _watching(self) -> None:
        """End a process that hangs: its death is then dealt with like any other (D9, M4)."""
        looked_ms = boottime_ms()
        while True:
            await asyncio.sleep(_LOOK_S)
            now_ms = boottime_ms()
            stalled, looked_ms = now_ms - looked_ms > 2000 * _LOOK_S, now_ms
            if self._heard_ms is None or self._ending or self._death is not None:
                continue
            if stalled:
                self._heard_ms = now_ms  # It was this daemon that stood still (L7).
            silent_ms = now_ms - self._heard_ms
            if silent_ms > (_HUNG_ORDERED_MS if self._pending else _HUNG_MS):
                self._heard_ms = None
                text = f"the replication process hangs: silent for {silent_ms} ms, it is ended"
                self._callbacks.line(LogLine("E", "M4", text))
                if self._run is not None:
                    await self._run.kill()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, EngineDone):
            self._pending.discard(event.operation)
            if event.operation == self._detaching:
                self._ending = True  # The process ends by itself now.
        self._callbacks.post(event)

    def _on_message(self, message: ProcessMessage, descriptors: tuple[int, ...]) -> None:
        match message:
            case Descriptors(names, fence, ours):
                kept = Kept(names, descriptors, fence, ours)
                former, self._kept = self._kept, kept
                self._callbacks.descriptors(kept)
                if former is not None:
                    former.close()
            case HoldOrphan():
                problem = self._orphans.hold(message, descriptors)
                if problem and not self._orphans_told:
                    self._callbacks.line(LogLine("W", "M4", problem))
                self._orphans_told = bool(problem)
            case DropOrphan():
                self._orphans.drop(message)
            case LogLine():
                self._callbacks.line(message)
            case Statistics():
                if not self._ending and self._detaching not in self._pending:
                    self._heard_ms = boottime_ms()
                if message.session_lives(boottime_ms(), self._config.suspect_ms):
                    self._callbacks.alive(message.heard_ms)
                self._callbacks.statistics(message)
            case _ if self._asking.answer(message):
                pass
            case _:
                _log.error("%s: unexpected %s", self._config.module, type(message).__name__)

    def _on_lost(self, client: EngineClient, text: str) -> None:
        """The control channel ended: expected after Detach, otherwise a death (M4)."""
        if client is not self._client:
            return
        self._client = None
        self._asking.lost()
        self._heard_ms = None
        if not self._ending and self._death is None:
            loop = asyncio.get_running_loop()
            self._death = loop.create_task(self._after_death(text))

    async def _after_death(self, text: str) -> None:
        how = f"{text}: {await self._bury()}"
        recovered, left = False, ""
        if self._detaching in self._pending:
            # A successor would cover again what is to be uncovered: that alone is left to do (M3).
            left = await self._uncover()
        else:
            try:
                async with asyncio.timeout(_SUCCESSOR_LIMIT_S):
                    recovered = await self._succeed()
            except (HyperhaError, OSError, TimeoutError) as problem:
                how = f"{how}; no successor: {problem or 'it took too long'}"
            except Exception as problem:
                _log.exception("%s: no successor", self._config.module)
                how = f"{how}; no successor: {problem!r}"
            if not recovered:
                # What is kept stays: the fence needs it, and so does the mount's removal.
                await self._bury()
        self._death = None
        pending, self._pending = self._pending, set()
        # The death first: what it means for these orders is the core's business (M4, R12).
        self._callbacks.post(EngineLost(how, recovered))
        for operation in sorted(pending):
            text = left if operation == self._detaching else "the replication process died"
            self._answer(operation, text)

    async def _succeed(self) -> bool:
        """A successor that has the mount; another one when it dies on the way."""
        for _ in range(_SUCCESSORS):
            kept = self._kept
            if kept is None or "device" not in kept.names:
                return False
            await self._begin(kept)
            client = self._client
            taken = None if client is None else await client.taken_over()
            if taken is not None and client is self._client:
                if not taken.ok:
                    raise ReplicationError(taken.text)
                return True
            await self._bury()
        return False

    async def _bury(self) -> str:
        """End what is left of the process; how it ended."""
        client, self._client = self._client, None
        self._asking.lost()
        if client is not None:
            client.close()
        run, self._run = self._run, None
        if run is None:
            return "it is gone"
        await run.kill()
        return str(await run.wait())

    async def _uncover(self) -> str:
        """Take the mount of a process that is gone from the folder; what hinders it, or nothing."""
        self._drop_kept()
        try:
            return await in_own_thread("peel", peel, self._config.folder)
        except OSError as problem:
            return str(problem)

    def _drop_kept(self) -> None:
        self._orphans.close()
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    async def _begin_end(self) -> None:
        """From here on the end of the process is no death that wants a successor."""
        self._ending = True
        death, self._death = self._death, None
        if death is not None:
            death.cancel()
            await asyncio.gather(death, return_exceptions=True)

    async def _end(self) -> None:
        await self._begin_end()
        client, self._client = self._client, None
        self._asking.lost()
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
