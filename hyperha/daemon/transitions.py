"""The operators' `transition` script: told of each change of a module's role, one after the other.

It decides nothing and nothing waits for it: what it does on the way is its own affair. Its output
is kept like that of every step.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from hyperha.daemon.steps import StepArchive, StepRun, line_of
from hyperha.domain import Role
from hyperha.errors import HyperhaError
from hyperha.scripts.runner import ScriptRunner, Step
from hyperha.spawn.run import OutputLine
from hyperha.spawn.tree import RunPlace
from hyperha.vm.port import VmSpec

_WAITING = 100
"""More changes than that, while a script hangs, are not told any more."""


class Transitions:
    """One module's changes of role; `run` until cancelled."""

    def __init__(
        self, spec: VmSpec, steps: StepArchive, directory: Path, place: RunPlace, timeout_s: float
    ) -> None:
        self._spec = spec
        self._steps = steps
        self._scripts = ScriptRunner(
            spec.module,
            directory,
            place=place,
            timeout_s=timeout_s,
            on_line=lambda step, line: self._on_line(line),
        )
        self._step: StepRun | None = None
        self._role = Role.STOP
        self._changes: asyncio.Queue[tuple[Role, Role, int]] = asyncio.Queue(_WAITING)

    def role_is(self, role: Role, run: int) -> None:
        """The module's role now; what was told before does not count."""
        if role is self._role:
            return
        before, self._role = self._role, role
        if not self._changes.full():
            self._changes.put_nowait((before, role, run))

    async def run(self) -> None:
        """Tell the script, where there is one."""
        while True:
            before, role, run = await self._changes.get()
            try:
                if self._scripts.find(Step.TRANSITION) is None:
                    continue
            except HyperhaError as problem:
                self._steps.end(self._steps.begin(Step.TRANSITION), False, problem.text)
            else:
                await self._tell(before, role, run)

    def _on_line(self, line: OutputLine) -> None:
        if self._step is not None:
            self._step.add(*line_of(line))

    async def _tell(self, before: Role, role: Role, run: int) -> None:
        step = self._step = self._steps.begin(Step.TRANSITION)
        environment = {
            **self._spec.environment(role.value, run),
            "HYPERHA_ROLE_BEFORE": before.value,
        }
        ok, text = True, f"{before} to {role}"
        try:
            arguments = before.value, role.value
            result = await self._scripts.run(Step.TRANSITION, environment, arguments=arguments)
            if result is not None:
                ok, text = result.ok, f"{text}: {result.text}"
        except HyperhaError as problem:
            ok, text = False, f"{text}: {problem.text}"
        self._steps.end(step, ok, text)
