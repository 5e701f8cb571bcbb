"""Captured output of a run: lines with their time, cleaned, cut and bounded. Pure.

Must not read from anywhere: bytes are fed in, lines come out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from hyperha.text import clean_bytes

LINE_LIMIT_BYTES = 4096
TOTAL_LIMIT_BYTES = 1 << 20

Stream = Literal["out", "err"]


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line that a child wrote: when (wall clock, for people), where, and the cleaned text."""

    at_wall_ms: int
    stream: Stream
    text: str


class LineSplitter:
    """Cuts a stream of bytes into lines of at most `limit` bytes; what is longer is cut."""

    def __init__(self, stream: Stream, limit: int = LINE_LIMIT_BYTES) -> None:
        self._stream: Stream = stream
        self._limit = limit
        self._rest = b""
        self._overflow = 0

    def feed(self, data: bytes, at_wall_ms: int) -> list[OutputLine]:
        """The lines that `data` completes."""
        lines = []
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._add(piece)
            lines.append(self._take(at_wall_ms))
        self._add(rest)
        return lines

    def end(self, at_wall_ms: int) -> list[OutputLine]:
        """The last line when it had no line end."""
        return [self._take(at_wall_ms)] if self._rest or self._overflow else []

    def _add(self, piece: bytes) -> None:
        room = self._limit - len(self._rest)
        self._rest += piece[:room]
        self._overflow += max(0, len(piece) - room)

    def _take(self, at_wall_ms: int) -> OutputLine:
        text = clean_bytes(self._rest.rstrip(b"\r"))
        if self._overflow:
            text += f"… ({self._overflow} bytes cut)"
        self._rest, self._overflow = b"", 0
        return OutputLine(at_wall_ms, self._stream, text)


class OutputStore:
    """Keeps the newest lines up to a total size; says how many older ones were dropped."""

    def __init__(self, limit: int = TOTAL_LIMIT_BYTES) -> None:
        self._limit = limit
        self._lines: deque[OutputLine] = deque()
        self._size = 0
        self.dropped = 0

    def add(self, line: OutputLine) -> None:
        """Keep one more line."""
        self._lines.append(line)
        self._size += len(line.text) + 16
        while self._size > self._limit and len(self._lines) > 1:
            self._size -= len(self._lines.popleft().text) + 16
            self.dropped += 1

    @property
    def lines(self) -> tuple[OutputLine, ...]:
        """What was kept, oldest first."""
        return tuple(self._lines)
