"""The audit: who commanded what, from where and why, one JSON line each in log/audit.

A command never waits for this file: a thread writes it. What cannot be written is told in the
node's log instead, with all that the line would have said, so that it is not lost in silence.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)
CLOSE_LIMIT_S = 2.0


class Audit:
    """One node's. `failed` is called in the writing thread with the line and why it is not kept."""

    def __init__(self, directory: Path, failed: Callable[[str, str], None]) -> None:
        self._path = directory / "audit.jsonl"
        self._failed = failed
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        """What is not on the disk; the first one is being written."""
        self._closed = False
        self._thread = threading.Thread(target=self._write_for_ever, name="audit", daemon=True)
        self._thread.start()

    def note(self, entry: dict[str, str]) -> None:
        """Keep an entry; later."""
        line = json.dumps(entry)
        with self._changed:
            if not self._closed:
                self._waiting.append(line)
                self._changed.notify()
                return
        self._tell(line, "the node is ending")

    def close(self) -> None:
        """Write what waits, as long as the disk answers; what it does not take is told."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSE_LIMIT_S)
        with self._changed:
            left = list(self._waiting)
            self._waiting.clear()
        for line in left:
            self._tell(line, "the disk does not answer")

    def _write_for_ever(self) -> None:
        while (line := self._next()) is not None:
            why = ""
            try:
                self._append(line)
            except OSError as problem:
                why = problem.strerror or str(problem)
            except MemoryError:
                why = "no memory"
            with self._changed:
                if not self._waiting:
                    return  # Closed meanwhile, and told.
                self._waiting.popleft()
            if why:
                self._tell(line, why)

    def _next(self) -> str | None:
        """What is to be written; it stays first until that is done. None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            return self._waiting[0]

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
