"""Which part of a long list is in view, where its cursor is and whether it follows the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Scroller:
    """A window of `height` rows over `count` rows. Moving up ends the following; End resumes it."""

    count: int = 0
    height: int = 1
    top: int = 0
    cursor: int = 0
    follow: bool = False

    def resize(self, count: int, height: int) -> None:
        """There are so many rows now, in a window of that height."""
        self.count = max(0, count)
        self.height = max(1, height)
        if self.follow:
            self.cursor = max(0, self.count - 1)
        self._settle()

    def move(self, by: int) -> None:
        """The cursor, by so many rows."""
        before = self.cursor
        self.cursor = max(0, min(self.count - 1, self.cursor + by))
        if by < 0 and before != self.cursor:
            self.follow = False
        self._settle()

    def page(self, by: int) -> None:
        """By so many windows."""
        self.move(by * max(1, self.height - 1))

    def first(self) -> None:
        """To the beginning."""
        self.move(-self.count)

    def to(self, index: int) -> None:
        """To a row, for example one that was searched for."""
        self.follow = False
        self.cursor = max(0, min(self.count - 1, index))
        self._settle()

    def end(self, follow: bool = False) -> None:
        """To the end; a log follows it from then on."""
        self.cursor = max(0, self.count - 1)
        self.follow = follow
        self._settle()

    def _settle(self) -> None:
        self.cursor = max(0, min(self.cursor, self.count - 1))
        if self.cursor < self.top:
            self.top = self.cursor
        elif self.cursor >= self.top + self.height:
            self.top = self.cursor - self.height + 1
        self.top = max(0, min(self.top, self.count - self.height))
