"""Until when each VM may run here, told to the guardian, which ends it then (L6).

A deadline follows the last word of the witness or the last promise of the peer, whichever this node
asked for later; both are counted from before they were asked for (L2). Decides nothing: whether a
module runs on a witness the core says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hyperha.core.state import ModuleState
from hyperha.errors import HyperhaError

_log = logging.getLogger(__name__)


class Guardian(Protocol):
    """Who ends a VM at its deadline."""

    async def set_deadlines(self, at_ms: dict[str, int | None]) -> None:
        """By module; None: no deadline."""


class Promises(Protocol):
    """What the peer's heartbeats promise."""

    echoed_ms: int


@dataclass(slots=True)
class _Module:
    state: Callable[[], ModuleState]
    """The newest one that is stored (P7)."""
    asked_ms: int = 0
    """When this node last asked the witness and was told that it may run."""
    promised_ms: int = 0
    """Since when the peer has promised not to take over."""
    told_ms: int | None = None
    """The deadline that the guardian knows."""


class Deadlines:
    """The deadlines of all modules of this node, in a cluster with a witness."""

    def __init__(self, ttl_ms: int, beat_ms: int, guardian: Guardian, links: Promises) -> None:
        self._ttl_ms = ttl_ms
        self._beat_ms = beat_ms
        self._guardian = guardian
        self._links = links
        self._modules: dict[str, _Module] = {}

    def add(self, name: str, state: Callable[[], ModuleState]) -> None:
        """A module to be watched."""
        self._modules[name] = _Module(state)

    def renewed(self, name: str, asked_ms: int) -> None:
        """The witness said that this node may run, asked at that time."""
        one = self._modules[name]
        one.asked_ms = max(one.asked_ms, asked_ms)

    async def run(self) -> None:
        """Keep the guardian's deadlines, until cancelled."""
        while True:
            await self.keep(*self._modules)
            await asyncio.sleep(self._beat_ms / 1000)

    async def keep(self, *names: str) -> None:
        """Tell the guardian the deadlines of these modules where they have changed."""
        changed = {}
        for name in names:
            one = self._modules[name]
            deadline_ms = self._deadline_ms(one)
            if deadline_ms != one.told_ms:
                changed[name] = one.told_ms = deadline_ms
        if not changed:
            return
        try:
            await self._guardian.set_deadlines(changed)
        except HyperhaError as problem:
            # It is told again: what it knows now ends the VM earlier, never later.
            _log.warning("the guardian does not know the new deadlines: %s", problem)
            for name in changed:
                self._modules[name].told_ms = -1

    def _deadline_ms(self, one: _Module) -> int | None:
        state = one.state()
        if state.promised:
            one.promised_ms = max(one.promised_ms, self._links.echoed_ms)
        if not state.on_lease:
            return None
        return max(one.asked_ms, one.promised_ms) + self._ttl_ms

    def guardian_is_new(self) -> None:
        """Another guardian runs, which knows no deadline yet."""
        for one in self._modules.values():
            one.told_ms = -1
