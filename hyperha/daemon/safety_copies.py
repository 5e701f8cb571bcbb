"""The safety copies of a module on this node: listed, restored, deleted (R15, N3).

While the folder is covered its replication process does it; of a folder that nobody serves this
daemon does, in a thread, and nobody can cover the folder meanwhile (M6).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from hyperha.api.wire import PreflightItem
from hyperha.api.wire_copies import SafetyCopyView
from hyperha.core.facts import Shortage
from hyperha.core.state import Phase
from hyperha.daemon.views import rfc3339
from hyperha.errors import BusyError, FailedError, NotFoundError
from hyperha.replication.control import (
    DeleteSafety,
    ListSafety,
    RestoreSafety,
    SafetyAnswered,
    SafetyCopies,
)
from hyperha.replication.safety.area import SafetyArea
from hyperha.replication.safety.copy import Facts, State
from hyperha.text import size_text

if TYPE_CHECKING:
    from hyperha.daemon.module_host import ModuleHost

_ANSWER_S = 10.0
_SILENCE_S = 120.0
_DAY_MS = 86_400_000
_EXACTNESS_MS = 600_000
Progress = Callable[[int, int], None]
T = TypeVar("T")


class SafetyKeeper:
    """One module's; belongs to the event loop."""

    def __init__(self, host: ModuleHost) -> None:
        self._host = host
        self._restoring = ""
        self.views: list[SafetyCopyView] = []
        """As they were when last looked at."""
        self._lacks: Shortage | None = None
        self._standing: tuple[str, ...] = ()

    @property
    def busy(self) -> str:
        """Why the folder must not be covered now; empty when it may."""
        return self._restoring and f"the safety copy {self._restoring} is being restored from it"

    async def look(self) -> list[SafetyCopyView]:
        """Every copy, oldest first. Raises HyperhaError when they cannot be read."""
        host = self._host
        if host.state.attached and not host.state.unknown_data:
            told = await host.engine.ask(ListSafety, SafetyCopies, silence_s=_ANSWER_S)
            if told.text:
                raise FailedError(f"the safety copies of {host.name} are not known: {told.text}")
            found, self._lacks = told.copies, told.lacks
        elif host.state.phase is Phase.IDLE:
            found, self._lacks = await self._of_the_folder()
        else:
            raise BusyError(f"{host.node} is busy: {host.state.phase}", "Ask again in a moment.")
        self._standing = tuple(one.id for one in found if one.stands)
        views = [self._view(one) for one in found]
        if views != self.views:
            self.views = views
            host.around.changed()
        return views

    def _view(self, facts: Facts) -> SafetyCopyView:
        keep_ms = self._host.config.safety_copy.keep_days * _DAY_MS
        is_open = facts.state is State.OPEN
        now_ms = time.time_ns() // 1_000_000
        return SafetyCopyView(
            id=facts.id,
            node=self._host.node,
            opened=rfc3339(facts.opened_wall_ms),
            state=facts.state.value,
            required=facts.required,
            rule=facts.rule,
            generation=facts.generation,
            bytes=facts.saved_bytes,
            files=facts.files,
            text=facts.text,
            expires="" if is_open else rfc3339(_ends_ms(now_ms, facts.lived_ms, keep_ms)),
        )

    def reasons(self) -> list[PreflightItem]:
        """N3: room is short, and copies are kept that are not given up for it."""
        if self._lacks is None:
            return []
        free, least = size_text(self._lacks.free_bytes), size_text(self._lacks.needed_bytes)
        names = ", ".join(self._standing)
        return [
            PreflightItem(
                code="safety-room",
                node=self._host.node,
                text=(
                    f"only {free} are free on {self._host.node}, less than {least}, and nobody "
                    f"else holds what the safety copies {names} do: they are not given up for it"
                ),
                fix=(
                    f"Make room, or end a copy: `hyperha safety {self._host.name} restore ID --to "
                    f"DIR` elsewhere if it is wanted, then `hyperha safety {self._host.name} "
                    "delete ID`."
                ),
            )
        ]

    async def restore(self, name: str, to: str, progress: Progress) -> str:
        """Make the state that a copy holds anew in `to`; what was done. Raises HyperhaError."""
        if self._host.state.phase is Phase.IDLE:
            loop = asyncio.get_running_loop()

            def told(done: int, total: int) -> None:
                loop.call_soon_threadsafe(progress, done, total)

            self._restoring = name
            try:
                await self._in_the_folder(lambda area: area.restore(name, to, told), None)
            finally:
                self._restoring = ""
            return f"the safety copy {name} is restored in {to}"
        return await self._ask(lambda number: RestoreSafety(number, name, to), progress)

    async def delete(self, name: str) -> str:
        """Delete a copy whose resync has ended; what was done. Raises HyperhaError."""
        if self._host.state.phase is Phase.IDLE:
            await self._in_the_folder(lambda area: area.delete(name), _SILENCE_S)
            return f"the safety copy {name} is deleted"
        return await self._ask(
            lambda number: DeleteSafety(number, name), lambda _done, _total: None
        )

    async def _ask(
        self, make: Callable[[int], RestoreSafety | DeleteSafety], progress: Progress
    ) -> str:
        answer = await self._host.engine.ask(
            make,
            SafetyAnswered,
            silence_s=_SILENCE_S,
            told=lambda message: progress(message.done_bytes, message.total_bytes),
        )
        if not answer.ok:
            raise FailedError(answer.text)
        return answer.text

    # --- a folder that nobody serves ----------------------------------------------------------

    async def _of_the_folder(self) -> tuple[tuple[Facts, ...], Shortage | None]:
        try:
            return await self._in_the_folder(
                lambda area: (area.facts(), area.shortage()), _ANSWER_S
            )
        except NotFoundError:
            return (), None

    async def _in_the_folder(self, work: Callable[[SafetyArea], T], limit_s: float | None) -> T:
        """Open what the folder keeps, in a thread. NotFoundError when it keeps nothing: a folder
        without safety copies is not given a place for them."""

        def do(folder: str) -> T:
            area = _open(folder)
            try:
                return work(area)
            finally:
                area.close()

        try:
            return await self._host.engine.in_plain_folder(do, limit_s)
        except OSError as problem:
            raise FailedError(
                f"the safety copies of {self._host.name} cannot be read: "
                f"{problem.strerror or problem}"
            ) from problem


def _open(folder: str) -> SafetyArea:
    place = os.path.join(folder, ".hyperha", "safety")
    if not os.path.isdir(place) or not os.listdir(place):
        raise NotFoundError("there is no safety copy in this folder")
    return SafetyArea.of_folder(folder)


def _ends_ms(wall_ms: int, lived_ms: int, keep_ms: int) -> int:
    """When a copy is deleted, if it is looked after until then: its age is counted, whatever a
    clock said when it was opened. Of so much exactness that it is the same at the next look."""
    return -(-(wall_ms + keep_ms - lived_ms) // _EXACTNESS_MS) * _EXACTNESS_MS
