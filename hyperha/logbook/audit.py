"""The audit: who commanded what, from where and why, one JSON line each in log/audit.

A command never waits for this file: a thread writes it. What cannot be written is told in the
node's log instead, with all that the line would have said, so that it is not lost in silence.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)
CLOSE_LIMIT_S = 2.0


class Audit:
    """One node's. `failed` is called in the writing thread with the line and why it is not kept."""

    def __init__(self, directory: Path, failed: Callable[[str, str], None]) -> None:
        self._path = directory / "audit.jsonl"
        self._failed = failed
        self._entries: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_for_ever, name="audit", daemon=True)
        self._thread.start()

    def note(self, entry: dict[str, str]) -> None:
        """Keep an entry; later."""
        self._entries.put(json.dumps(entry))

    def close(self) -> None:
        """Write what waits, as long as the disk answers."""
        self._entries.put(None)
        self._thread.join(CLOSE_LIMIT_S)

    def _write_for_ever(self) -> None:
        while (line := self._entries.get()) is not None:
            try:
                self._append(line)
            except OSError as problem:
                _log.error("audit: %s: %s", problem.strerror or problem, line)
                self._failed(line, problem.strerror or str(problem))

    def _append(self, line: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self._path, "ab") as file:
            before = file.tell()
            try:
                file.write(line.encode() + b"\n")
                file.flush()
            except OSError:
                os.ftruncate(file.fileno(), before)  # No half a line before the next one.
                raise
