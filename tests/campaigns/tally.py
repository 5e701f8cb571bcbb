"""The tally of a campaign: counts, times, seeds and failures of one state of the code.

Plain data and its JSON form; knows neither how rounds are run nor when a tally is stale.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hyperha.errors import RefusedError

SCHEMA = 1
FAILURES_KEPT = 20


def now() -> str:
    """This moment, as the tallies have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Round:
    """What one process did that passed: `count` units of a row."""

    row: str
    count: int
    seed: int | None
    at: str
    seconds: float
    figures: dict[str, list[float]]
    """By name; names that end in `_s` are times, all others are amounts."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What did not pass; the log lies outside the repository and may be gone."""

    row: str
    seed: int | None
    at: str
    commit: str
    what: str
    log: str
    tail: list[str]


@dataclass(slots=True)
class Tally:
    """Of one campaign since `begun`."""

    campaign: str
    unit: str
    commit: str
    """The first one; the covered packages were the same in every round."""
    begun: str
    counts: dict[str, int] = field(default_factory=dict)
    """Units that passed, by row."""
    seconds: float = 0.0
    next_seed: int = 0
    rounds: list[Round] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, passed: Round) -> None:
        """Another round that counts."""
        self.counts[passed.row] = self.counts.get(passed.row, 0) + passed.count
        self.seconds = round(self.seconds + passed.seconds, 1)
        self.rounds.append(passed)

    def fail(self, failure: Failure) -> None:
        """Back to zero; what failed stays on record."""
        self.counts, self.rounds = {}, []
        self.seconds, self.next_seed = 0.0, 0
        self.commit, self.begun = failure.commit, failure.at
        self.failures = [*self.failures, failure][-FAILURES_KEPT:]

    def least(self, rows: tuple[str, ...]) -> tuple[str, int]:
        """The row that has the fewest, and how many."""
        row = min(rows, key=lambda one: self.counts.get(one, 0))
        return row, self.counts.get(row, 0)

    def summary(self) -> dict[str, float | dict[str, float]]:
        """Amounts added up, times as number, median and worst."""
        found: dict[str, list[float]] = {}
        for one in self.rounds:
            for name, values in one.figures.items():
                found.setdefault(name, []).extend(values)
        said: dict[str, float | dict[str, float]] = {}
        for name, values in sorted(found.items()):
            if name.endswith("_s"):
                median, worst = round(statistics.median(values), 3), round(max(values), 3)
                said[name] = {"number": len(values), "median": median, "worst": worst}
            else:
                said[name] = sum(values)
        return said

    def store(self, path: Path) -> None:
        """Replace the file; a reader finds the former or the new one, also after a crash."""
        body = {"schema": SCHEMA, "summary": self.summary(), **dataclasses.asdict(self)}
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        with open(beside, "w", encoding="utf-8") as file:
            file.write(json.dumps(body, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def load(path: Path) -> Tally | None:
    """The tally in a file, None when there is none. Raises RefusedError naming the file."""
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = body.pop("schema")
        if schema != SCHEMA:
            raise RefusedError(
                f"{path} has schema {schema}, known is {SCHEMA}",
                "Use the version of this tool that wrote it, or remove the file.",
                code="tally",
            )
        body.pop("summary")
        body["rounds"] = [Round(**one) for one in body["rounds"]]
        body["failures"] = [Failure(**one) for one in body["failures"]]
        return Tally(**body)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise RefusedError(
            f"{path} is no tally: {problem}", "Restore it from git or remove it.", code="tally"
        ) from problem
