"""Runs the scripts of one module: config/scripts/NAME/STEP, any executable, with a time limit.

Knows which scripts exist and how they ended; which step is due and what a failure means is
decided elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hyperha.errors import ConfigError
from hyperha.spawn.run import Exit, OutputLine, Run, start
from hyperha.spawn.tree import RunPlace


class Step(StrEnum):
    """The steps that scripts may surround or replace."""

    PRESTART = "prestart"
    START_PRIM = "start_prim"
    STOP_PRIM = "stop_prim"
    POSTSTOP = "poststop"
    TRANSITION = "transition"


@dataclass(frozen=True, slots=True)
class ScriptResult:
    """One finished script: when it began (wall clock), how it ended, what it wrote."""

    module: str
    step: str
    started_wall_ms: int
    exit: Exit
    lines: tuple[OutputLine, ...]
    dropped_lines: int = 0

    @property
    def ok(self) -> bool:
        """Exit status 0 within the time limit."""
        return self.exit.ok

    @property
    def text(self) -> str:
        """One sentence for the log."""
        last = self.lines[-1].text if self.lines and not self.ok else ""
        return f"script {self.step}: {self.exit}" + (f": {last}" if last else "")


class ScriptRunner:
    """The scripts of one module on this node."""

    def __init__(
        self,
        module: str,
        directory: Path,
        *,
        place: RunPlace | None,
        timeout_s: float,
        replace: Sequence[str] = (),
        on_line: Callable[[str, OutputLine], None] | None = None,
    ) -> None:
        self._module = module
        self._directory = directory
        self._place = place
        self._timeout_s = timeout_s
        self._replace = frozenset(replace)
        self._on_line = on_line
        self._kept: list[Run] = []

    def find(self, step: Step) -> Path | None:
        """The script of a step: a file called like it, with any extension or none.

        Raises ConfigError when it is not executable, when there are two, or when it should
        replace the driver's step and is missing.
        """
        found = []
        if self._directory.is_dir():
            found = sorted(
                path
                for path in self._directory.iterdir()
                if path.is_file() and (path.name == step or path.stem == step)
            )
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ConfigError(f"{self._module}: several scripts for {step}: {names}")
        if not found:
            if step in self._replace:
                raise ConfigError(
                    f"{self._module}: scripts.replace names {step}, but there is no script "
                    f"{self._directory / step}"
                )
            return None
        if not os.access(found[0], os.X_OK):
            raise ConfigError(
                f"{self._module}: the script {found[0]} is not executable",
                f"Run `chmod +x {found[0]}`.",
            )
        return found[0]

    def replaces(self, step: Step) -> bool:
        """Whether the script runs instead of the driver's step."""
        return step in self._replace

    async def run(
        self,
        step: Step,
        environment: Mapping[str, str],
        *,
        arguments: Sequence[str] = (),
        keep_tree: bool = False,
        run_id: str = "",
    ) -> ScriptResult | None:
        """Run the script of a step to its end; None when there is none.

        With `keep_tree` what it leaves running stays (a start_prim that starts a service) until
        `end_kept`; otherwise it is ended with the script.
        """
        path = self.find(step)
        if path is None:
            return None
        begun_ms = time.time_ns() // 1_000_000
        on_line = self._on_line
        run = await start(
            [str(path), *arguments],
            name=f"{self._module}-{step}",
            place=self._place,
            cwd=str(self._directory),
            env={**environment, "HYPERHA_STEP": str(step)},
            output=(lambda line: on_line(str(step), line)) if on_line is not None else None,
            time_limit_s=self._timeout_s,
            keep_tree=keep_tree,
            run_id=run_id,
        )
        try:
            done = await run.wait()
        except BaseException:
            await run.kill()
            raise
        if keep_tree:
            self._kept.append(run)
        return ScriptResult(self._module, str(step), begun_ms, done, run.lines, run.dropped_lines)

    async def end_kept(self) -> bool:
        """End what kept scripts left running; False when something does not end."""
        still = [run for run in self._kept if not await run.kill()]
        self._kept = still
        return not still
