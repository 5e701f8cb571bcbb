"""Widgets that draw the model's rows: a plain one, and a list with a cursor.

Text is drawn as segments, never parsed as markup. A widget redraws itself only when its rows are
other ones than before, so that an idle console sends nothing over a slow line.
"""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui.model.rows import Row, Span, cells
from tui.model.scroller import Scroller
from tui.themes import Look

_REVERSE = Style(reverse=True)
_CURSOR = Style(bold=True)


def ascii_text(text: str) -> str:
    """The text with nothing but ASCII, of the same width."""
    if text.isascii():
        return text
    return "".join(c if c.isascii() else "?" * cells(c) for c in text)


class RowsView(Widget):
    """Rows from the top, cut at the edges."""

    def __init__(self, look: Look, *, id: str, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._look = look
        self._drawn_theme = look.theme
        self.rows: list[Row] = []

    def show(self, rows: list[Row]) -> None:
        """Draw these rows, if they are others or the colours are."""
        if rows != self.rows or self._drawn_theme != self._look.theme:
            self.rows = rows
            self._drawn_theme = self._look.theme
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        return self.strip(self.rows[y] if y < len(self.rows) else ())

    def strip(self, row: Row, extra: Style | None = None) -> Strip:
        """A row as the terminal gets it."""
        width = self.size.width
        base = self.rich_style
        segments = [Segment(self._text(span), self._style(span, extra)) for span in row]
        return Strip(segments).adjust_cell_length(width, base).apply_style(base)

    def _text(self, span: Span) -> str:
        return ascii_text(span.text) if self._look.glyphs.ascii_only else span.text

    def _style(self, span: Span, extra: Style | None) -> Style:
        style = self._look.style(span.tone)
        if span.reverse:
            style = style + _REVERSE
        return style + extra if extra is not None else style


class ListPane(RowsView, can_focus=True):
    """Items of one or more rows each, with a cursor. Enter posts `Chosen`, Space `Toggled`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "first", "First", show=False),
        Binding("end,G", "end", "End", show=False),
        Binding("enter", "choose", "Open", show=False),
        Binding("space", "switch", "Switch", show=False),
    ]

    class Chosen(Message):
        """Enter on an item."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    class Toggled(Message):
        """Space on an item."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    class Moved(Message):
        """The cursor or the part in view is another one."""

    def __init__(self, look: Look, *, id: str, follows: bool = False) -> None:
        super().__init__(look, id=id)
        self.scroller = Scroller(follow=follows)
        self.follows = follows
        self._items: list[list[Row]] = []
        self._item_of_row: list[int] = []

    def show_items(self, items: list[list[Row]]) -> None:
        """Other items; the cursor stays where it is, or at the end while following."""
        if items != self._items or self._drawn_theme != self._look.theme:
            self._items = items
            self._drawn_theme = self._look.theme
            self.rows = [row for item in items for row in item]
            self._item_of_row = [at for at, item in enumerate(items) for _ in item]
            self.refresh()
        self.settle()

    def settle(self) -> None:
        """After a change of size or items."""
        before = (self.scroller.top, self.scroller.cursor)
        self.scroller.resize(len(self.rows), self.size.height)
        if before != (self.scroller.top, self.scroller.cursor):
            self.refresh()

    @property
    def index(self) -> int:
        """The item under the cursor; -1 when there is none."""
        at = self.scroller.cursor
        return self._item_of_row[at] if at < len(self._item_of_row) else -1

    def go_to(self, item: int) -> None:
        """Put the cursor on an item."""
        if item in self._item_of_row:
            self.scroller.to(self._item_of_row.index(item))
            self._moved()

    def render_line(self, y: int) -> Strip:
        """One line of the part in view; the cursor is a mark as well as a style."""
        at = self.scroller.top + y
        if at >= len(self.rows):
            return self.strip(())
        row = self.rows[at]
        current = self._item_of_row[at] == self.index and self.has_focus
        if current and at == self.scroller.cursor and row:
            first = row[0]
            row = (Span(">" + first.text[1:], first.tone, first.reverse), *row[1:])
        return self.strip(row, _CURSOR if current else None)

    def on_resize(self, event: Resize) -> None:
        """Keep the cursor in view."""
        self.settle()

    def on_focus(self) -> None:
        """The cursor becomes visible."""
        self.refresh()

    def on_blur(self) -> None:
        """The cursor vanishes."""
        self.refresh()

    def _moved(self) -> None:
        self.refresh()
        self.post_message(self.Moved())

    def action_move(self, by: int) -> None:
        """By rows."""
        self.scroller.move(by)
        self._moved()

    def action_page(self, by: int) -> None:
        """By windows."""
        self.scroller.page(by)
        self._moved()

    def action_first(self) -> None:
        """To the beginning."""
        self.scroller.first()
        self._moved()

    def action_end(self) -> None:
        """To the end; a log follows it from now on."""
        self.scroller.end(follow=self.follows)
        self._moved()

    def action_choose(self) -> None:
        """Open what is under the cursor."""
        if self.index >= 0:
            self.post_message(self.Chosen(self.index))

    def action_switch(self) -> None:
        """Switch what is under the cursor."""
        if self.index >= 0:
            self.post_message(self.Toggled(self.index))
