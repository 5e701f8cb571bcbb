"""start_prim and stop_prim as real steps: what runs in them, and the captured output.

A step is one entry of the archive: the module's script, the driver's action, every line with its
time, how it ended and how long it took. While it runs it can be read already.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from hyperha.api.wire import ScriptLine, ScriptOutput, ScriptRun
from hyperha.daemon.views import rfc3339
from hyperha.errors import NotFoundError
from hyperha.logbook.outputs import OutputArchive, ScriptRecord
from hyperha.spawn.run import OutputLine
from hyperha.text import clean
from hyperha.threads import OwnThread, in_own_thread

LINES_LIMIT = 5000
UNWRITTEN_LIMIT = 10
CLOSE_LIMIT_S = 2.0


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class StepRun:
    """One step while it runs; `lines` are (wall time, stream, text)."""

    id: str
    step: str
    started_ms: int
    lines: deque[tuple[int, str, str]] = field(default_factory=lambda: deque(maxlen=LINES_LIMIT))
    written: int = 0

    def add(self, at_ms: int, stream: str, text: str) -> None:
        """One line of output, cleaned."""
        self.written += 1
        self.lines.append((at_ms, stream, clean(text)))

    def say(self, text: str) -> None:
        """A line of hyperha's own about the step."""
        self.add(_wall_ms(), "out", text)


class StepArchive:
    """The running step and the kept ones of one module on this node."""

    def __init__(
        self,
        module: str,
        node: str,
        archive: OutputArchive,
        line: Callable[[str, str, str, str, str], None],
    ) -> None:
        self._module = module
        self._node = node
        self._archive = archive
        self._line = line
        """(level, source, rule, text, run id) to the module's log."""
        self._running: dict[str, StepRun] = {}
        self._kept: dict[str, ScriptRecord] = {}
        self._unwritten: dict[str, list[tuple[int, str, str]]] = {}
        """The lines of runs that the disk does not have yet, or would not take."""
        self._thread = OwnThread(f"outputs of {module}")
        self._writing: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """What earlier processes kept."""
        for record in await asyncio.to_thread(self._archive.runs):
            self._kept[record.id] = record

    def begin(self, step: str) -> StepRun:
        """A step begins: said in the log, its output one key away."""
        started = _wall_ms()
        while f"{started}-{step}" in self._kept or f"{started}-{step}" in self._running:
            started += 1
        run = StepRun(f"{started}-{step}", step, started)
        self._running[run.id] = run
        self._line("I", step, "", "begins", run.id)
        return run

    def waits(self, text: str) -> None:
        """A start that is not begun yet, and why."""
        self._line("I", "start_prim", "", text, "")

    def end(self, run: StepRun, ok: bool, text: str) -> None:
        """It has ended: keep its output, say how it ended and how long it took. What the VM does
        depends on no log: the output goes to the disk later, and stays in memory if it cannot."""
        duration_ms = _wall_ms() - run.started_ms
        how = "done" if ok else "FAILED"
        run.say(f"{how} after {duration_ms / 1000:.1f} s" + (f": {text}" if text else ""))
        told = f"{duration_ms}/{run.written} {clean(text)}"
        record = ScriptRecord(run.id, run.step, run.started_ms, ok, told)
        lines = list(run.lines)
        self._running.pop(run.id, None)
        self._kept[record.id] = record
        self._unwritten[record.id] = lines
        while len(self._kept) > 100:
            self._kept.pop(min(self._kept))
        while len(self._unwritten) > UNWRITTEN_LIMIT:
            self._unwritten.pop(min(self._unwritten))
        task = asyncio.get_running_loop().create_task(self._write(record, lines))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        self._line(
            "I" if ok else "E",
            run.step,
            "",
            f"{how} after {duration_ms / 1000:.1f} s: {clean(text) or 'exit status 0'}",
            run.id,
        )

    async def _write(self, record: ScriptRecord, lines: list[tuple[int, str, str]]) -> None:
        store = partial(self._archive.store, ok=record.ok, text=record.text, lines=lines)
        try:
            await self._thread.do(store, record.step, record.started_wall_ms)
        except OSError as problem:
            why = problem.strerror or str(problem)
            text = f"the output of {record.step} cannot be kept on the disk: {why}"
            self._line("E", record.step, "", text, record.id)
        else:
            self._unwritten.pop(record.id, None)

    async def close(self) -> None:
        """Write what waits, as long as the disk answers."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=CLOSE_LIMIT_S)

    def runs(self) -> list[ScriptRun]:
        """Newest first."""
        found = [self._view_running(run) for run in self._running.values()]
        found += [self._view_kept(record) for record in self._kept.values()]
        return sorted(found, key=lambda run: run.id, reverse=True)

    def took_ms(self, step: str) -> int | None:
        """How long a step's last good run took; None when none is kept."""
        good = [run for run in self.runs() if run.script == step and run.exit_status == 0]
        return good[0].duration_ms if good else None

    async def output(self, run_id: str) -> ScriptOutput:
        """What one run said. Raises NotFoundError when it is not kept."""
        running = self._running.get(run_id)
        if running is not None:
            return _output(self._view_running(running), list(running.lines), running.written)
        if run_id not in self._kept:
            raise NotFoundError(f"there is no script run {clean(run_id)!r} on {self._node}")
        unwritten = self._unwritten.get(run_id)
        if unwritten is not None:
            view = self._view_kept(self._kept[run_id])
            return _output(view, unwritten, view.lines or len(unwritten))
        record, lines = await in_own_thread("output", self._archive.read, run_id)
        rows = [(line.at_wall_ms, line.stream, line.text) for line in lines]
        view = self._view_kept(record)
        return _output(view, rows, view.lines or len(rows))

    def _view_running(self, run: StepRun) -> ScriptRun:
        return ScriptRun(
            id=run.id,
            module=self._module,
            node=self._node,
            script=run.step,
            started=rfc3339(run.started_ms),
            state="running",
            lines=run.written,
        )

    def _view_kept(self, record: ScriptRecord) -> ScriptRun:
        duration, _, written = record.text.partition(" ")[0].partition("/")
        return ScriptRun(
            id=record.id,
            module=self._module,
            node=self._node,
            script=record.step,
            started=rfc3339(record.started_wall_ms),
            state="ended",
            exit_status=0 if record.ok else 1,
            duration_ms=int(duration) if duration.isdigit() else None,
            lines=int(written) if written.isdigit() else 0,
        )


def _output(run: ScriptRun, rows: list[tuple[int, str, str]], written: int) -> ScriptOutput:
    lines = [
        ScriptLine(at=rfc3339(at_ms), stream="err" if stream == "err" else "out", text=clean(text))
        for at_ms, stream, text in rows
    ]
    return ScriptOutput(run=run, output=lines, dropped=max(0, written - len(lines)))


def line_of(line: OutputLine) -> tuple[int, str, str]:
    """A captured line as the archive keeps it."""
    return line.at_wall_ms, line.stream, line.text
