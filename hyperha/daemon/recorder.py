"""Keeps what each module's core was told and what it decided, so that it can be replayed.

The event loop never waits for the disk: a thread appends to log/decisions/MODULE and rotates. Each
file begins with a state, so that none needs the ones before it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from hyperha.core.actions import Action
from hyperha.core.events import Stimulus
from hyperha.core.state import ModuleState
from hyperha.study.recorded import RecordedError
from hyperha.study.replay import begin_line, event_line

_log = logging.getLogger(__name__)
FILE_LIMIT_BYTES = 2 << 20
FILES_KEPT = 4


class Recorder:
    """All modules of one node. `close` writes out what waits."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Path, str] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_for_ever, name="recorder", daemon=True)
        self._thread.start()

    def of(self, directory: Path) -> ModuleRecorder:
        """For one module; its files are in that directory."""
        return ModuleRecorder(self, directory)

    def put(self, path: Path, line: str) -> None:
        """Append a line; later."""
        self._queue.put((path, line))

    def close(self) -> None:
        """Write out what waits; blocks until the disk has it."""
        self._queue.put(None)
        self._thread.join(10)

    def _write_for_ever(self) -> None:
        complained = False
        while (item := self._queue.get()) is not None:
            path, line = item
            try:
                if not path.exists():
                    _make_room(path)
                with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(line + "\n")
                complained = False
            except OSError as problem:
                if not complained:
                    _log.error("decisions cannot be recorded: %s", problem)
                complained = True


def _make_room(path: Path) -> None:
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    for old in sorted(path.parent.glob("*.jsonl"))[: -(FILES_KEPT - 1)]:
        with contextlib.suppress(OSError):
            old.unlink()


class ModuleRecorder:
    """One module (`ports.Recorder`)."""

    def __init__(self, recorder: Recorder, directory: Path) -> None:
        self._recorder = recorder
        self._directory = directory
        self._path: Path | None = None
        self._bytes = 0

    def record(self, before: ModuleState, stimulus: Stimulus, actions: Sequence[Action]) -> None:
        """What the core decided in a state; a new file begins with that state."""
        try:
            if self._path is None or self._bytes > FILE_LIMIT_BYTES:
                self._path = self._directory / f"decisions-{time.time_ns() // 1000:020d}.jsonl"
                self._bytes = 0
                self._put(self._path, begin_line(before))
            self._put(self._path, event_line(stimulus, actions))
        except RecordedError as problem:
            _log.error("a decision cannot be recorded: %s", problem)
            self._path = None

    def _put(self, path: Path, line: str) -> None:
        self._bytes += len(line)
        self._recorder.put(path, line)
