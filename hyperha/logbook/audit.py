"""The audit: who commanded what, from where and why, one JSON line each in log/audit.

A command never waits for this file: a thread writes it. What cannot be written is told in the
node's log instead, with all that the line would have said, so that it is not lost in silence.
"""

from __future__ import annotations

import contextlib
import json
import logging
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
        self._writing: str | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._write_for_ever, name="audit", daemon=True)
        self._thread.start()

    def note(self, entry: dict[str, str]) -> None:
        """Keep an entry; later."""
        if self._closed:
            self._tell(json.dumps(entry), "the node is ending")
            return
        self._entries.put(json.dumps(entry))

    def close(self) -> None:
        """Write what waits, as long as the disk answers; what it does not take is told."""
        self._closed = True
        self._entries.put(None)
        self._thread.join(CLOSE_LIMIT_S)
        if not self._thread.is_alive():
            return
        left = [self._writing]
        with contextlib.suppress(queue.Empty):
            while True:
                left.append(self._entries.get_nowait())
        for line in left:
            if line is not None:
                self._tell(line, "the disk does not answer")

    def _write_for_ever(self) -> None:
        while (line := self._entries.get()) is not None:
            self._writing = line
            try:
                self._append(line)
            except OSError as problem:
                self._tell(line, problem.strerror or str(problem))
            self._writing = None

    def _tell(self, line: str, why: str) -> None:
        _log.error("audit: %s: %s", why, line)
        self._failed(line, why)

    def _append(self, line: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Unbuffered: a buffer would be written at the close, also after the failure was told.
        with open(self._path, "ab", buffering=0) as file:
            before, rest = file.tell(), line.encode() + b"\n"
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(before)  # No half a line before the next one.
                raise
