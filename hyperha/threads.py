"""Threads for what may wait for ever: a disk that hangs, a process that cannot be looked at.

asyncio's own pool has few threads, and what waits in one of them is never given up: a few such
calls, and nothing gets a thread any more. So whatever may hang has a thread of its own, which ends
with the program; what must not fail because of others never shares one. A system that has no room
for another thread, as when a guest has filled its limit of processes, must not keep a fence or a
kill from happening: a few threads wait in reserve, and what finds none waits for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

R = TypeVar("R")
RESERVE = 4
"""Threads that wait for work when there is none."""
_AGAIN_S = 0.2


class _Job:
    """Work whose end is told to the event loop that asked for it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self.end: asyncio.Future[Any] = self._loop.create_future()

    def run(self) -> None:
        if self.end.cancelled():
            return
        try:
            give = partial(self.end.set_result, self._work())
        except BaseException as failure:
            give = partial(self.end.set_exception, failure)
        # The program may have ended meanwhile: then nobody waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settle, give)

    def _settle(self, give: Callable[[], None]) -> None:
        if not self.end.done():
            give()

    async def outcome(self, served: Callable[[], bool]) -> Any:
        """Its end; `served` says whether a thread is there for it, and is asked again if not."""
        try:
            while not self.end.done() and not served():
                await asyncio.wait((self.end,), timeout=_AGAIN_S)
            return await self.end
        finally:
            self.end.cancel()


class _Reserve:
    """As many threads as there are jobs, and some that wait for the next."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[tuple[str, _Job]] = deque()
        self._free = 0

    def prepare(self) -> None:
        """Have the reserve wait. Raises RuntimeError where no thread can be started."""
        with self._changed:
            while self._free < RESERVE:
                self._start()

    def give(self, name: str, job: _Job) -> None:
        """Have it done by the next thread that is free."""
        with self._changed:
            self._jobs.append((name, job))
            self._changed.notify()

    def served(self) -> bool:
        """Whether there is a thread for each job; tries to start one where not."""
        with self._changed:
            with contextlib.suppress(RuntimeError):  # No room for one more thread.
                # The reserve as well: what hangs keeps its thread, and there may be room only now.
                while self._free < len(self._jobs) + RESERVE:
                    self._start()
            return self._free >= len(self._jobs)

    def _start(self) -> None:
        threading.Thread(target=self._serve, name="in reserve", daemon=True).start()
        self._free += 1

    def _serve(self) -> None:
        while self._serve_one():
            threading.current_thread().name = "in reserve"

    def _serve_one(self) -> bool:
        """Do the next job; False where there are threads enough without this one."""
        with self._changed:
            while not self._jobs:
                if self._free > RESERVE:
                    self._free -= 1
                    return False
                self._changed.wait()
            threading.current_thread().name, job = self._jobs.popleft()
            self._free -= 1
        job.run()
        with self._changed:
            self._free += 1
        return True


_reserve = _Reserve()


def prepare() -> None:
    """Start the threads in reserve while there is room for them; at the start of a program."""
    _reserve.prepare()


async def in_own_thread(name: str, work: Callable[..., R], *arguments: Any) -> R:
    """Do it in a thread that does nothing else meanwhile, whatever hangs elsewhere; given up, the
    thread goes on alone. Where no thread can be had, it waits for one."""
    job = _Job(partial(work, *arguments))
    _reserve.give(name, job)
    done: R = await job.outcome(_reserve.served)
    return done


class OwnThread:
    """One thread that does what it is given, one after the other. What nobody waits for any more
    when its turn comes is not begun; so a job that hangs holds up only those behind it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # At once: when the first job comes there may be no room for a thread any more.
        self._served()

    async def do(self, work: Callable[..., R], *arguments: Any) -> R:
        """Do it behind what was given before, and wait for its end."""
        job = _Job(partial(work, *arguments))
        self._jobs.put(job)
        done: R = await job.outcome(self._served)
        return done

    def _served(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # No room for one more thread.
                return False
            self._thread = thread
        return True

    def _serve(self) -> None:
        while True:
            self._jobs.get().run()
