"""The journal: every message and event of a node with its sequence number, in memory and on disk.

The event loop never waits for the disk: a thread writes JSON lines to log/journal and rotates
the files. Readers get one stream and can go on after any number; what the ring no longer has is
said as a gap, never skipped silently.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hyperha.text import clean

_log = logging.getLogger(__name__)
Level = Literal["I", "W", "E"]
LEVELS: dict[str, Level] = {"I": "I", "W": "W", "E": "E"}
"""A letter that came from another process; an unknown one is looked up as an error."""
RING_LIMIT = 5000
FILE_LIMIT_BYTES = 8 << 20
FILES_KEPT = 8
_TAIL_BYTES = 1 << 20
_RESTART_STEP = 1_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened. `kind` is `log` for messages, else what an event is about;
    `module` is empty for the node itself; `data` is ready for JSON.

    A log entry's data: level (I, W, E), source, rule, text, event.
    """

    seq: int
    at_wall_ms: int
    kind: str
    module: str
    data: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """As it stands in the journal and in the API's stream."""
        return {
            "seq": self.seq,
            "at_wall_ms": self.at_wall_ms,
            "kind": self.kind,
            "module": self.module,
            **self.data,
        }


@dataclass(frozen=True, slots=True)
class Gap:
    """The reader asked for numbers that are no longer in memory, or not yet known: start over
    from the state, then go on after `seq`."""

    seq: int


class Logbook:
    """The journal of one node. Methods belong to the event loop unless they say otherwise."""

    def __init__(
        self,
        directory: Path,
        *,
        ring: int = RING_LIMIT,
        file_limit_bytes: int = FILE_LIMIT_BYTES,
        files_kept: int = FILES_KEPT,
    ) -> None:
        self._directory = directory
        self._file_limit = file_limit_bytes
        self._files_kept = files_kept
        self._ring: deque[Entry] = deque(maxlen=ring)
        self._news = asyncio.Event()
        self._closed = False
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._ring.extend(self._read_tail(ring))
        # Events that are not messages used numbers too, and are not on disk: begin well behind
        # them, so that no number ever means two things.
        newest = self._ring[-1].seq if self._ring else 0
        self._last = (newest // _RESTART_STEP + 1) * _RESTART_STEP if newest else 0
        self._thread = threading.Thread(target=self._write_for_ever, name="journal", daemon=True)
        self._thread.start()

    @property
    def last_seq(self) -> int:
        """The number of the newest entry."""
        return self._last

    def log(
        self,
        module: str,
        level: Level,
        text: str,
        *,
        source: str = "node",
        rule: str = "",
        event: str = "",
    ) -> Entry:
        """Write down one message; `rule` and `event` say by which rule and from which event."""
        data = {
            "level": level,
            "source": source,
            "rule": rule,
            "text": clean(text),
            "event": event,
        }
        return self._add("log", module, data)

    def publish(self, kind: str, module: str, data: dict[str, Any]) -> Entry:
        """Tell readers about something that is not a message: a state, progress, an operation."""
        return self._add(kind, module, data)

    def _add(self, kind: str, module: str, data: dict[str, Any]) -> Entry:
        self._last += 1
        entry = Entry(self._last, time.time_ns() // 1_000_000, kind, module, data)
        self._ring.append(entry)
        self._news.set()
        if kind == "log" and not self._closed:
            self._queue.put(json.dumps(entry.as_json(), ensure_ascii=False))
        return entry

    def messages(
        self, module: str | None = None, *, after: int = 0, limit: int = 500
    ) -> list[Entry]:
        """The newest log messages behind a number, oldest first; of all modules with None."""
        found = [
            entry
            for entry in self._ring
            if entry.kind == "log" and entry.seq > after and module in (None, entry.module)
        ]
        return found[-limit:]

    async def stream(self, after: int) -> AsyncIterator[Entry | Gap]:
        """Everything behind `after`, then whatever comes, until the reader stops or `close`."""
        position = after
        while True:
            if position > self._last or (self._ring and position + 1 < self._ring[0].seq):
                position = self._last
                yield Gap(position)
            for entry in [entry for entry in self._ring if entry.seq > position]:
                position = entry.seq
                yield entry
            if self._closed:
                return
            if position == self._last:
                self._news.clear()
                await self._news.wait()

    def close(self) -> None:
        """Write out what waits and end the streams; blocks until the disk has it."""
        if self._closed:
            return
        self._closed = True
        self._news.set()
        self._queue.put(None)
        self._thread.join(10)

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob("journal-*.jsonl"))

    def _read_tail(self, limit: int) -> list[Entry]:
        """The newest entries of earlier processes; a torn last line is left out."""
        found: list[Entry] = []
        for path in reversed(self._files()):
            try:
                raw = path.read_bytes()[-_TAIL_BYTES:]
            except OSError:
                continue
            found = [*_entries(raw), *found]
            if len(found) >= limit:
                break
        return found[-limit:]

    def _write_for_ever(self) -> None:
        """The journal's thread: appends, and rotates by size. A full disk loses lines, not time."""
        complained = False
        while (line := self._queue.get()) is not None:
            try:
                path = self._current()
                with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                    if file.tell() and not _ends_with_newline(path):
                        file.write("\n")
                    file.write(line + "\n")
                complained = False
            except OSError as problem:
                if not complained:
                    _log.error("the journal cannot be written: %s", problem)
                complained = True

    def _current(self) -> Path:
        files = self._files()
        if files and files[-1].stat().st_size < self._file_limit:
            return files[-1]
        for old in files[: max(0, len(files) - self._files_kept + 1)]:
            with contextlib.suppress(OSError):
                old.unlink()
        return self._directory / f"journal-{time.time_ns() // 1000:020d}.jsonl"


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _entries(raw: bytes) -> list[Entry]:
    found = []
    for line in raw.split(b"\n"):
        try:
            value = json.loads(line)
            entry = Entry(
                int(value.pop("seq")),
                int(value.pop("at_wall_ms")),
                str(value.pop("kind")),
                str(value.pop("module")),
                value,
            )
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        found.append(entry)
    return found
