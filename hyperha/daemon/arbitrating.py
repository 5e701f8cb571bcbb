"""This node and its lease witness: questions of the cores, and the deadlines of the guardian (L6).

A deadline follows what this node asked the witness as the holder, or what the peer promised by a
heartbeat, whichever was sent later; both are counted from before they were sent (L2). Decides
nothing: whether a module runs on its lease the core says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hyperha.core.events import WitnessDone
from hyperha.core.lease import Answer, Request
from hyperha.core.state import ModuleState
from hyperha.daemon.module_task import boottime_ms
from hyperha.domain import Role
from hyperha.errors import HyperhaError
from hyperha.witness.client import LeaseClient

_log = logging.getLogger(__name__)


class Deadlines(Protocol):
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
    """When this node last asked what it was granted as the holder."""
    promised_ms: int = 0
    """Since when the peer has promised not to take over."""
    deadline_ms: int | None = None


class Arbiters:
    """All modules of this node and the one witness of its cluster."""

    def __init__(
        self,
        client: LeaseClient,
        node: str,
        ttl_ms: int,
        beat_ms: int,
        guardian: Deadlines,
        links: Promises,
    ) -> None:
        self._client = client
        self._node = node
        self._ttl_ms = ttl_ms
        self._beat_ms = beat_ms
        self._guardian = guardian
        self._links = links
        self._modules: dict[str, _Module] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.answers: bool | None = None
        """Whether it answered the last question; None: none was asked yet."""

    def add(
        self, name: str, state: Callable[[], ModuleState], post: Callable[[WitnessDone], None]
    ) -> ModuleArbiter:
        """One module's way to the witness."""
        self._modules[name] = _Module(state)
        return ModuleArbiter(self, name, post)

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
            one = self._modules[module]
            one.asked_ms = max(one.asked_ms, began_ms)
        post(WitnessDone(operation, answer, text))

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
            if deadline_ms != one.deadline_ms:
                changed[name] = one.deadline_ms = deadline_ms
        if not changed:
            return
        try:
            await self._guardian.set_deadlines(changed)
        except HyperhaError as problem:
            # It is told again: what it knows now ends the VM earlier, never later.
            _log.warning("the guardian does not know the new deadlines: %s", problem)
            for name in changed:
                self._modules[name].deadline_ms = -1

    def _deadline_ms(self, one: _Module) -> int | None:
        state = one.state()
        peer = state.peer
        if state.peer_heard and peer is not None and peer.role is Role.SECOND:
            one.promised_ms = max(one.promised_ms, self._links.echoed_ms)
        if not state.on_lease:
            return None
        return max(one.asked_ms, one.promised_ms) + self._ttl_ms

    def guardian_is_new(self) -> None:
        """Another guardian runs, which knows no deadline yet."""
        for one in self._modules.values():
            one.deadline_ms = -1

    async def close(self) -> None:
        """End all questions."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()


class ModuleArbiter:
    """One module's way to the witness (`ports.Arbiter`)."""

    def __init__(self, all_: Arbiters, name: str, post: Callable[[WitnessDone], None]) -> None:
        self._all = all_
        self._name = name
        self._post = post

    def ask(self, operation: int, request: Request) -> None:
        """Begin; the result is posted as `WitnessDone`."""
        self._all.ask(self._name, operation, request, self._post)

    async def before_start(self) -> None:
        """The guardian knows the deadline before a VM runs (L6)."""
        await self._all.keep(self._name)


class NoArbiter:
    """Where there is no witness; nobody asks (`ports.Arbiter`)."""

    def __init__(self, post: Callable[[WitnessDone], None]) -> None:
        self._post = post

    def ask(self, operation: int, request: Request) -> None:
        """There is nobody to answer."""
        del request
        self._post(WitnessDone(operation, None, "there is no witness"))

    async def before_start(self) -> None:
        """Nothing has a deadline."""
