"""This node and its lease witness: the questions of the cores and what came of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hyperha.core.events import WitnessDone
from hyperha.core.lease import Answer, Request
from hyperha.daemon.module_task import boottime_ms
from hyperha.errors import HyperhaError
from hyperha.witness.client import LeaseClient

_log = logging.getLogger(__name__)


class Arbiters:
    """All modules of this node and the one witness of its cluster."""

    def __init__(self, client: LeaseClient, node: str, renewed: Callable[[str, int], None]) -> None:
        self._client = client
        self._node = node
        self._renewed = renewed
        """Told that a module may run, and when that was asked for (L2)."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.answers: bool | None = None
        """Whether it answered the last question; None: none was asked yet."""

    def ask(
        self, module: str, operation: int, request: Request, post: Callable[[WitnessDone], None]
    ) -> None:
        """Begin; the result is posted."""
        task = asyncio.get_running_loop().create_task(self._ask(module, operation, request, post))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(
        self, module: str, operation: int, request: Request, post: Callable[[WitnessDone], None]
    ) -> None:
        began_ms = boottime_ms()
        answer: Answer | None = None
        text = ""
        try:
            answer = await self._client.ask(module, request)
        except HyperhaError as problem:
            text = str(problem)
        except Exception as problem:
            # Who waits for the answer waits for ever.
            _log.exception("a question to the witness failed in an unforeseen way")
            text = f"the question failed: {problem!r}"
        self.answers = answer is not None
        if answer is not None and answer.holder == self._node and request.renewed_by(answer):
            self._renewed(module, began_ms)
        post(WitnessDone(operation, answer, text))

    async def close(self) -> None:
        """End all questions."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()


class ModuleArbiter:
    """One module's way to the witness (`ports.Arbiter`)."""

    def __init__(
        self, all_: Arbiters | None, name: str, post: Callable[[WitnessDone], None]
    ) -> None:
        self._all = all_
        self._name = name
        self._post = post

    def ask(self, operation: int, request: Request) -> None:
        """Begin; the result is posted as `WitnessDone`."""
        if self._all is None:
            self._post(WitnessDone(operation, None, "there is no lease witness"))
        else:
            self._all.ask(self._name, operation, request, self._post)
