"""When the checkers of one module run, when a verdict counts, and when they are silent.

Interval, time-out, failures in a row, grace, suspension, freeze (K3). Says what it saw and gives
verdicts; what a verdict leads to is the core's. Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hyperha.checkers.kinds import Answer, Check
from hyperha.config import Checker
from hyperha.domain import ResourceState, Role

_log = logging.getLogger(__name__)
_ROLES: Mapping[str, frozenset[Role]] = {
    "pre": frozenset(Role) - {Role.STOP},
    "prim": frozenset({Role.PRIM, Role.ALONE}),
    "second": frozenset({Role.SECOND}),
    "both": frozenset({Role.PRIM, Role.ALONE, Role.SECOND}),
}
_ELSEWHERE: Mapping[str, str] = {
    "pre": "looked at only while the module is started",
    "prim": "looked at only where the VM runs",
    "second": "looked at only on the secondary",
    "both": "looked at only while the module runs",
}


def _boottime_s() -> float:
    """Seconds of CLOCK_BOOTTIME (K4)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Resource:
    """What is known of one checker's resource, for display."""

    name: str
    kind: str
    state: ResourceState
    text: str


@dataclass(frozen=True, slots=True)
class VerdictGiven:
    """A checker failed as often as it may, outside grace, suspension and freeze (K2, K3)."""

    checker: Checker
    run: int
    text: str


@dataclass(slots=True)
class _Watched:
    checker: Checker
    check: Check
    state: ResourceState = ResourceState.INIT
    text: str = ""
    failed: int = 0
    grace_until_s: float = 0.0
    seen_up: bool = False
    told: bool = False
    suspended: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class CheckerSchedule:
    """The checkers of one module on this node.

    `on_state` is called when a resource's state or text changes, `on_verdict` once per confirmed
    failure; both at once, in the event loop.
    """

    def __init__(
        self,
        checks: list[tuple[Checker, Check]],
        *,
        on_state: Callable[[Resource], None],
        on_verdict: Callable[[VerdictGiven], None],
        clock_s: Callable[[], float] = _boottime_s,
    ) -> None:
        self._watched = {checker.resource: _Watched(checker, check) for checker, check in checks}
        self._on_state = on_state
        self._on_verdict = on_verdict
        self._clock_s = clock_s
        self._role: Role | None = None
        self._run = 0
        self._frozen = False

    def resources(self) -> list[Resource]:
        """What is known of every resource."""
        return [
            Resource(one.checker.name, one.checker.kind, one.state, one.text)
            for one in self._watched.values()
        ]

    def set_role(self, role: Role, run: int) -> None:
        """The module's role or run changed: start what belongs to it, end what does not.

        A new run gives every checker its grace, but those that look at what was there before it.
        """
        begins = run != self._run
        self._role, self._run = role, run
        for one in self._watched.values():
            wanted = role in _ROLES[one.checker.when]
            anew = begins and one.checker.when != "pre"
            if one.task is not None and (not wanted or anew):
                one.task.cancel()
                one.task = None
            if wanted and one.task is None:
                self._give_grace(one)
                self._see(one, ResourceState.INIT, "")
                one.task = asyncio.get_running_loop().create_task(self._watch(one))
            elif not wanted:
                self._see(one, ResourceState.UNKNOWN, _ELSEWHERE[one.checker.when])

    def freeze(self) -> None:
        """From now on nothing is judged: the VM may be unable to answer, as its writes are held or
        refused (K3, D11)."""
        self._frozen = True

    def release(self) -> None:
        """Writes are served again: judge after a full grace (K3)."""
        if self._frozen:
            self._frozen = False
            for one in self._watched.values():
                self._give_grace(one)

    def suspend(self, resource: str | None) -> None:
        """Keep looking at a resource (None: all), but give no verdict."""
        for one in self._chosen(resource):
            one.suspended = True

    def resume(self, resource: str | None) -> None:
        """Judge again; a VM found down at the end of a suspension gets its grace first."""
        for one in self._chosen(resource):
            if one.suspended:
                one.suspended = False
                self._give_grace(one)

    def _chosen(self, resource: str | None) -> list[_Watched]:
        return [
            one
            for name, one in self._watched.items()
            if resource is None or resource in (name, one.checker.name)
        ]

    async def stop(self) -> None:
        """End every check."""
        tasks = [one.task for one in self._watched.values() if one.task is not None]
        for one in self._watched.values():
            one.task = None
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _give_grace(self, one: _Watched) -> None:
        one.grace_until_s = self._clock_s() + one.checker.grace_s
        one.seen_up, one.told, one.failed = False, False, 0

    async def _watch(self, one: _Watched) -> None:
        while True:
            begun_s = self._clock_s()
            answer = await self._ask(one)
            self._judge(one, answer)
            pause_s = one.checker.interval_s - (self._clock_s() - begun_s)
            await asyncio.sleep(max(0.01, pause_s))

    async def _ask(self, one: _Watched) -> Answer:
        limit_s = float(one.checker.timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                return await one.check()
        except TimeoutError:
            return Answer(False, f"no answer within {limit_s:g} s")
        except Exception as problem:
            _log.exception("checker %s failed", one.checker.resource)
            return Answer(False, f"the check itself failed: {problem}")

    def _judge(self, one: _Watched, answer: Answer) -> None:
        if answer.ok:
            one.failed, one.told, one.seen_up = 0, False, True
            self._see(one, ResourceState.UP, answer.text)
            return
        if self._frozen:
            one.failed = 0
            return
        one.failed += 1
        in_grace = not one.seen_up and self._clock_s() < one.grace_until_s
        if in_grace:
            one.failed = 0
            self._see(one, ResourceState.INIT, answer.text)
            return
        if one.failed < one.checker.failures:
            return
        self._see(one, ResourceState.DOWN, answer.text)
        if one.suspended or one.told:
            return
        one.told = True
        self._on_verdict(VerdictGiven(one.checker, self._run, answer.text))

    def _see(self, one: _Watched, state: ResourceState, text: str) -> None:
        if (state, text) != (one.state, one.text):
            one.state, one.text = state, text
            self._on_state(Resource(one.checker.name, one.checker.kind, one.state, one.text))
