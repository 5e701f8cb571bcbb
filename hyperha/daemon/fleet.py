"""The queue of the modules that are about to start their VM on this node; `core.fleet` decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from hyperha.core.fleet import Others, Waiting, admitted, missing
from hyperha.daemon.module_task import boottime_ms

LOOK_AGAIN_S = 1.0


class Fleet:
    """Belongs to the event loop. `others` tells what is known of all modules."""

    def __init__(self, others: Callable[[], Others]) -> None:
        self._others = others
        self._waiting: dict[str, tuple[Waiting, asyncio.Event]] = {}
        self._starting: set[str] = set()

    @contextlib.asynccontextmanager
    async def turn(
        self,
        name: str,
        number: int,
        priority: int,
        after: tuple[str, ...],
        say: Callable[[str], None],
    ) -> AsyncIterator[None]:
        """Hold a place among those that start; entered when it is this module's turn.

        `say` is told once what it waits for.
        """
        one = Waiting(name, number, priority, after, boottime_ms())
        mine = asyncio.Event()
        self._waiting[name] = one, mine
        try:
            self._admit()
            if not mine.is_set():
                say(self._reason(one))
            while not mine.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        await mine.wait()
                self._admit()
            yield
        finally:
            self._waiting.pop(name, None)
            self._starting.discard(name)
            self._admit()

    def changed(self) -> None:
        """Something has become ready, or will not."""
        self._admit()

    def _admit(self) -> None:
        waiting = [one for one, _ in self._waiting.values()]
        for name in admitted(waiting, len(self._starting), self._others(), boottime_ms()):
            _, event = self._waiting.pop(name)
            self._starting.add(name)
            event.set()

    def _reason(self, one: Waiting) -> str:
        needed = missing(one, self._others(), boottime_ms())
        if needed:
            return f"starts after {', '.join(needed)}"
        return f"waits for its turn: {', '.join(sorted(self._starting))} start first"
