"""Questions to a replication process, and their answers matched by number (R17).

Beside the core's orders: nothing here changes a role. A question whose process is gone, or that
hears nothing for too long, ends with an error; what answers it then comes too late and is ignored.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TypeVar

from hyperha.errors import ReplicationError, TimedOutError
from hyperha.replication.control import ProcessMessage, Question

Make = Callable[[int], Question]
"""The question with this number."""
T = TypeVar("T", bound=ProcessMessage)


class _Open:
    """A question that was not answered to its end yet."""

    def __init__(self, told: Callable[[ProcessMessage], None] | None) -> None:
        self.told = told
        self.news = asyncio.Event()
        self.end: asyncio.Future[ProcessMessage] = asyncio.get_running_loop().create_future()


class Asking:
    """The open questions of one module; belongs to the event loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, _Open] = {}

    async def ask(
        self,
        send: Callable[[Question], None],
        make: Make,
        kind: type[T],
        *,
        silence_s: float,
        told: Callable[[T], None] | None = None,
    ) -> T:
        """The answer, or the last of several; `told` hears those before it.

        Raises TimedOutError when nothing comes for `silence_s`, ReplicationError when the process
        is gone or answers something else.
        """
        number = next(self._numbers)

        def pass_on(message: ProcessMessage) -> None:
            if told is not None and isinstance(message, kind):
                told(message)

        waiting = self._open[number] = _Open(pass_on)
        try:
            send(make(number))
            while not waiting.end.done():
                waiting.news.clear()
                try:
                    async with asyncio.timeout(silence_s):
                        await waiting.news.wait()
                except TimeoutError:
                    raise TimedOutError(
                        f"the replication process has said nothing for {silence_s:.0f} s"
                    ) from None
            answer = waiting.end.result()
        finally:
            self._open.pop(number, None)
            waiting.end.cancel()
        if not isinstance(answer, kind):
            raise ReplicationError(f"the replication process answers {type(answer).__name__}")
        return answer

    def answer(self, message: ProcessMessage) -> bool:
        """A message of the process: whether it answers a question at all, also one given up."""
        number = getattr(message, "request", None)
        if not isinstance(number, int):
            return False
        waiting = self._open.get(number)
        if waiting is not None and not waiting.end.done():
            if getattr(message, "finished", True):
                waiting.end.set_result(message)
            elif waiting.told is not None:
                waiting.told(message)
            waiting.news.set()
        return True

    def lost(self) -> None:
        """The process is gone, and with it every answer."""
        for waiting in self._open.values():
            if not waiting.end.done():
                waiting.end.set_exception(ReplicationError("the replication process has ended"))
                waiting.news.set()
