"""The durable records of one module: lineage and settings, each in its own double slot (S2).

A damaged record has been set aside by then; the module is held in STOP with the reason until an
operator decides: it is never guessed (C12).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from hyperha.core.records import Lineage, Settings
from hyperha.durable import DurableRecord, make_directory
from hyperha.encoding import EncodingError, from_plain, to_plain
from hyperha.errors import HyperhaError, RecordDamagedError


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found at the start; `damage` says what cannot be used."""

    lineage: Lineage | None
    settings: Settings | None
    damage: str


class ModuleRecords:
    """Loads and stores both records. Methods block on the disk: call them in a worker thread."""

    def __init__(self, directory: Path, node: str, module: str) -> None:
        make_directory(directory)
        owner = f"{node} {module}"
        self._lineage = DurableRecord(directory / "lineage", size=8192, owner=f"{owner} lineage")
        self._settings = DurableRecord(directory / "settings", size=8192, owner=f"{owner} settings")
        self._damaged = sorted(directory.glob("lineage.damaged-*"))
        self._stored: tuple[Lineage | None, Settings | None] = (None, None)
        self._one_at_a_time = threading.Lock()

    def load(self) -> Loaded:
        """Both records as they were last stored; None for one that was never written."""
        problems: list[str] = []
        lineage = settings = None
        try:
            body = self._lineage.load_json()
            lineage = None if body is None else from_plain(Lineage, body, "lineage")
        except (RecordDamagedError, EncodingError) as problem:
            problems.append(str(problem))
        try:
            body = self._settings.load_json()
            settings = None if body is None else from_plain(Settings, body, "settings")
        except (RecordDamagedError, EncodingError) as problem:
            problems.append(str(problem))
        if lineage is None and self._damaged and not problems:
            problems.append(
                f"the lineage record was damaged and is kept as {self._damaged[-1]}: decide with "
                "second --adopt, or move the file away"
            )
        self._stored = (lineage, settings)
        return Loaded(lineage, settings, "; ".join(problems))

    def store(self, lineage: Lineage, settings: Settings) -> None:
        """Make both durable; what did not change is not written again. Raises HyperhaError."""
        # A store that was given up on may still run: the next one comes after it, never beside it.
        with self._one_at_a_time:
            before = self._stored
            if settings != before[1]:
                self._settings.store_json(to_plain(settings))
            if lineage != before[0]:
                self._lineage.store_json(to_plain(lineage))
            self._stored = (lineage, settings)


__all__ = ["HyperhaError", "Loaded", "ModuleRecords"]
