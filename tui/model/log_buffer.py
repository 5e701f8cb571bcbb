"""The lines of a module's log in the console: bounded, without gaps or doubles, searchable."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from enum import StrEnum

from hyperha.api.wire import LogLine

LINES_LIMIT = 2000


class LevelFilter(StrEnum):
    """Which levels are shown."""

    ALL = "all"
    WARNINGS = "warnings"
    ERRORS = "errors"

    def next(self) -> LevelFilter:
        """The next one, around."""
        order = list(LevelFilter)
        return order[(order.index(self) + 1) % len(order)]

    def shows(self, level: str) -> bool:
        """Whether a line of this level passes."""
        if self is LevelFilter.ALL:
            return True
        return level == "E" or (self is LevelFilter.WARNINGS and level == "W")


@dataclass(slots=True)
class LogBuffer:
    """The newest lines by sequence number; `dropped` counts the older ones that gave way."""

    limit: int = LINES_LIMIT
    lines: list[LogLine] = field(default_factory=list)
    dropped: int = 0
    version: int = 0
    """Grows with every change, so that a view knows when to look again."""
    epoch: int = 0
    """Grows when numbers begin anew: a number names a line only within one epoch."""

    def add(self, line: LogLine) -> None:
        """A line; one that is there already changes nothing."""
        if not self.lines or line.seq > self.lines[-1].seq:
            self.lines.append(line)
        else:
            full = len(self.lines) >= self.limit
            if full and line.seq < self.lines[0].seq:
                return
            if any(known.seq == line.seq for known in self.lines):
                return
            insort(self.lines, line, key=lambda known: known.seq)
        surplus = len(self.lines) - self.limit
        if surplus > 0:
            del self.lines[:surplus]
            self.dropped += surplus
        self.version += 1

    def merge(self, lines: list[LogLine]) -> None:
        """A page of lines, older or newer than what is there."""
        known = {line.seq: line for line in self.lines}
        merged = known | {line.seq: line for line in lines}
        if len(merged) == len(known):
            return
        ordered = [merged[seq] for seq in sorted(merged)]
        self.dropped += max(0, len(ordered) - self.limit)
        self.lines = ordered[-self.limit :]
        self.version += 1

    def clear(self) -> None:
        """The numbers began anew, or are another node's."""
        self.epoch += 1
        self.lines = []
        self.dropped = 0
        self.version += 1

    def shown(self, level: LevelFilter) -> list[LogLine]:
        """The lines that pass the filter, oldest first."""
        return [line for line in self.lines if level.shows(line.level)]


@dataclass(slots=True)
class LogView:
    """What of a buffer is in view: its end while following, else what was there when it stopped.

    While paused no line slides away under the reader's eyes; `waiting` counts the new ones.
    """

    lines: list[LogLine] = field(default_factory=list)
    waiting: int = 0
    _upto: int = 0
    _shown: tuple[int, LevelFilter] | None = None

    def update(self, buffer: LogBuffer, level: LevelFilter, follow: bool) -> bool:
        """Look again; whether the lines in view are others now."""
        if follow:
            self.waiting = 0
            shown = (buffer.version, level)
            if self._shown == shown:
                return False
            self._shown = shown
            self.lines = buffer.shown(level)
            self._upto = buffer.lines[-1].seq if buffer.lines else 0
            return True
        self.waiting = sum(line.seq > self._upto for line in buffer.shown(level))
        if self._shown is not None and self._shown[1] is level:
            self._shown = (-1, level)
            return False
        self._shown = (-1, level)
        self.lines = [line for line in buffer.shown(level) if line.seq <= self._upto]
        return True


def matches(line: LogLine, wanted: str) -> bool:
    """Whether a search finds the line: text, source or rule, upper and lower case alike."""
    return wanted.casefold() in f"{line.source} {line.rule} {line.text}".casefold()


def find(lines: list[LogLine], wanted: str, start: int, step: int) -> int | None:
    """The index of the next match from `start` in direction `step` (+1, -1), around the ends."""
    if not wanted or not lines:
        return None
    for offset in range(1, len(lines) + 1):
        index = (start + step * offset) % len(lines)
        if matches(lines[index], wanted):
            return index
    return None
