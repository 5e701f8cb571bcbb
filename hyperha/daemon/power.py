"""Switches the other node off by the operator's command, once for all modules that ask (D2c).

The command's exit status 0 is taken for the confirmation that the node is off. It counts for the
modules that ask soon after, unless the node is heard again: later somebody may have switched it on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from hyperha.core.events import PoweredOff
from hyperha.daemon.module_task import boottime_ms
from hyperha.errors import HyperhaError
from hyperha.spawn.run import run_to_end
from hyperha.spawn.tree import RunPlace
from hyperha.text import clean, shorten

_log = logging.getLogger(__name__)
TIME_LIMIT_S = 60.0
CONFIRMED_MS = 30_000


class PowerSwitch:
    """The command that switches the peer off; none where it is empty."""

    def __init__(
        self, command: Sequence[str], peer: str, directory: str, place: RunPlace | None
    ) -> None:
        self._command = tuple(command)
        self._peer = peer
        self._directory = directory
        self._place = place
        self._running: asyncio.Task[tuple[bool, str]] | None = None
        self._ended_ms = 0

    async def off(self) -> tuple[bool, str]:
        """Whether the peer is confirmed to be off, and what was said. Who asks while the command
        runs gets its result; a confirmation is not asked for twice."""
        if not self._counts():
            self._running = asyncio.get_running_loop().create_task(self._off())
        assert self._running is not None
        return await asyncio.shield(self._running)

    def _counts(self) -> bool:
        if self._running is None or not self._running.done():
            return self._running is not None
        confirmed, _ = self._running.result()
        return confirmed and boottime_ms() - self._ended_ms < CONFIRMED_MS

    def peer_heard(self) -> None:
        """It is not off, or on again."""
        if self._running is not None and self._running.done():
            self._running = None

    async def _off(self) -> tuple[bool, str]:
        if not self._command:
            return False, "no command is configured"
        try:
            done, lines = await run_to_end(
                self._command,
                name=f"fence-{self._peer}",
                time_limit_s=TIME_LIMIT_S,
                place=self._place,
                cwd=self._directory,
                env={"HYPERHA_NODE": self._peer},
            )
        except HyperhaError as problem:
            return False, problem.text
        except Exception as problem:
            # Who waits for the answer waits for ever.
            _log.exception("the fencing command failed in an unforeseen way")
            return False, repr(problem)
        self._ended_ms = boottime_ms()
        said = shorten(clean(lines[-1].text), 200) if lines else ""
        return done.ok, f"{done}" + (f": {said}" if said else "")

    async def close(self) -> None:
        """End a command that runs."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)


class ModulePower:
    """One module's way to the switch (`ports.Power`)."""

    def __init__(self, switch: PowerSwitch, post: Callable[[PoweredOff], None]) -> None:
        self._switch = switch
        self._post = post
        self._tasks: set[asyncio.Task[None]] = set()

    def off(self, operation: int) -> None:
        """Begin; the result is posted as `PoweredOff`."""
        task = asyncio.get_running_loop().create_task(self._ask(operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, operation: int) -> None:
        ok, text = await self._switch.off()
        self._post(PoweredOff(operation, ok, text))
