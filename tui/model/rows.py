"""Rows of styled text, the only thing that the model gives to widgets.

A tone says what a text means; which colour that is, is the theme's business. Widths are terminal
cells: a wide character counts two, a combining one none.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import StrEnum


class Tone(StrEnum):
    """What a piece of text means."""

    PLAIN = "plain"
    STRONG = "strong"
    DIM = "dim"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"
    ACCENT = "accent"
    FOCUS = "focus"


@dataclass(frozen=True, slots=True)
class Span:
    """A text and its tone."""

    text: str
    tone: Tone = Tone.PLAIN
    reverse: bool = False


Row = tuple[Span, ...]


def row(*parts: str | Span) -> Row:
    """A row from texts and spans."""
    return tuple(Span(part) if isinstance(part, str) else part for part in parts)


def plain(one: Row) -> str:
    """The text alone."""
    return "".join(span.text for span in one)


def cells(text: str) -> int:
    """The width of a text on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_cell(character) for character in text)


def _cell(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) == "Mn":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int, mark: str = "…") -> str:
    """At most `width` cells; a cut is shown by `mark`."""
    if cells(text) <= width:
        return text
    if width < len(mark):
        return ""
    return _head(text, width - len(mark)) + mark


def _head(text: str, width: int) -> str:
    taken = 0
    for index, character in enumerate(text):
        taken += _cell(character)
        if taken > width:
            return text[:index]
    return text


def fit(text: str, width: int, mark: str = "…") -> str:
    """Exactly `width` cells: cut or filled up."""
    text = cut(text, width, mark)
    return text + " " * (width - cells(text))


def width_of(one: Row) -> int:
    """The width of a row in cells."""
    return sum(cells(span.text) for span in one)


def fit_row(one: Row, width: int, mark: str = "…") -> Row:
    """Exactly `width` cells, the tones kept."""
    out: list[Span] = []
    left = width
    for index, span in enumerate(one):
        size = cells(span.text)
        rest = width_of(one[index + 1 :])
        if size <= left - (1 if rest and size == left else 0):
            out.append(span)
            left -= size
            continue
        out.append(Span(fit(span.text + " " * rest, left, mark), span.tone, span.reverse))
        left = 0
        break
    if left > 0:
        out.append(Span(" " * left))
    return tuple(out)


def between(left: Row, right: Row, width: int, mark: str = "…") -> Row:
    """`left` at the left edge, `right` at the right one; the left part gives way."""
    room = width - width_of(right)
    if room < 1:
        return fit_row(right, width, mark)
    return (*fit_row(left, room, mark), *right)


def wrapped(text: str, width: int) -> list[str]:
    """The text in pieces of at most `width` cells, broken at spaces where possible."""
    if width < 1:
        return [text]
    pieces: list[str] = []
    rest = text
    while cells(rest) > width:
        head = _head(rest, width)
        space = head.rfind(" ")
        taken = head[: space + 1] if space > width // 2 else head
        taken = taken or rest[:1]
        pieces.append(taken.rstrip())
        rest = rest[len(taken) :]
    pieces.append(rest)
    return pieces
