"""The kept outputs of scripts and steps: one file per run under log/scripts/MODULE.

Methods touch the disk: call them in a worker thread.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperha.errors import NotFoundError

RUNS_KEPT = 100
_ID = re.compile(r"[0-9]{13,16}-[a-z_]{1,32}")


@dataclass(frozen=True, slots=True)
class ScriptRecord:
    """One kept run: its id, what it was, when it began, how it ended."""

    id: str
    step: str
    started_wall_ms: int
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class OutputText:
    """One kept line: time (wall clock), stream (`out`, `err`), text."""

    at_wall_ms: int
    stream: str
    text: str


class OutputArchive:
    """The outputs of one module's scripts, the newest `keep` of them."""

    def __init__(self, directory: Path, *, keep: int = RUNS_KEPT) -> None:
        self._directory = directory
        self._keep = keep

    def store(
        self,
        step: str,
        started_wall_ms: int,
        *,
        ok: bool,
        text: str,
        lines: Iterable[tuple[int, str, str]],
    ) -> ScriptRecord:
        """Keep one run; `lines` are (time, stream, text). The oldest runs give way."""
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        at_ms = started_wall_ms
        while (path := self._directory / f"{at_ms}-{step}.jsonl").exists():
            at_ms += 1
        head: dict[str, Any] = {
            "step": step,
            "started_wall_ms": started_wall_ms,
            "ok": ok,
            "text": text,
        }
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(head, ensure_ascii=False) + "\n")
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for old in self._files()[: -self._keep]:
            with contextlib.suppress(OSError):
                old.unlink()
        return ScriptRecord(path.stem, step, started_wall_ms, ok, text)

    def runs(self) -> list[ScriptRecord]:
        """The kept runs, newest first; files that are no records are left out."""
        found = []
        for path in reversed(self._files()):
            try:
                with open(path, encoding="utf-8") as file:
                    head = json.loads(file.readline())
                found.append(_record(path.stem, head))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def read(self, run_id: str) -> tuple[ScriptRecord, list[OutputText]]:
        """One kept run with its lines; NotFoundError when it is not kept (any more)."""
        path = self._directory / f"{run_id}.jsonl"
        if not _ID.fullmatch(run_id) or not path.is_file():
            raise NotFoundError(f"there is no output {run_id!r} of a script")
        with open(path, encoding="utf-8") as file:
            record = _record(run_id, json.loads(file.readline()))
            lines = [OutputText(*json.loads(line)) for line in file]
        return record, lines

    def _files(self) -> list[Path]:
        return sorted(path for path in self._directory.glob("*.jsonl") if _ID.fullmatch(path.stem))


def _record(run_id: str, head: dict[str, Any]) -> ScriptRecord:
    return ScriptRecord(
        run_id,
        str(head["step"]),
        int(head["started_wall_ms"]),
        bool(head["ok"]),
        str(head["text"]),
    )
