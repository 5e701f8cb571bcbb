"""Threads for what may wait for ever: a disk that hangs, a process that cannot be looked at.

asyncio's own pool has few threads, and what waits in one of them is never given up: a few such
calls, and nothing gets a thread any more. So whatever may hang has a thread of its own, which ends
with the program; what must not fail because of others never shares one.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

R = TypeVar("R")


async def in_own_thread(name: str, work: Callable[..., R], *arguments: Any) -> R:
    """Do it in a new thread, whatever hangs elsewhere; given up, the thread goes on alone."""
    job = _Job(partial(work, *arguments), asyncio.get_running_loop())
    threading.Thread(target=job.run, name=name, daemon=True).start()
    done: R = await job.end
    return done


class OwnThread:
    """One thread that does what it is given, one after the other. What nobody waits for any more
    when its turn comes is not begun; so a job that hangs holds up only those behind it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def do(self, work: Callable[..., R], *arguments: Any) -> R:
        """Do it behind what was given before, and wait for its end."""
        job = _Job(partial(work, *arguments), asyncio.get_running_loop())
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        done: R = await job.end
        return done

    def _serve(self) -> None:
        while True:
            self._jobs.get().run()


class _Job:
    """Work whose end is told to the event loop that asked for it."""

    def __init__(self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._loop = loop
        self.end: asyncio.Future[Any] = loop.create_future()

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
