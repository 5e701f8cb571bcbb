"""A question about what would happen: one that is offered, or any events as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Input

from tui.model.rows import Row, Span, Tone, fit, row
from tui.themes import Look
from tui.widgets.rows_view import ListPane, RowsView


class WhatIfScreen(Screen[str | None]):
    """Answers with events as they are written, or None."""

    AUTO_FOCUS = "#output"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", show=False),
        Binding("tab", "app.focus_next", show=False),
        Binding("slash", "write", "Write", show=False),
    ]

    def __init__(self, shape: Look, module: str, offered: Sequence[tuple[str, str]]) -> None:
        super().__init__(classes="-ascii" if shape.glyphs.ascii_only else None)
        self._look = shape
        self._module = module
        self._offered = offered

    def compose(self) -> ComposeResult:
        """Title, questions, entry."""
        yield RowsView(self._look, id="header")
        yield ListPane(self._look, id="output")
        hint = "or write events: off:node1 wait:2 network-cut boot:node1"
        yield Input(id="events", compact=True, placeholder=hint)

    def on_mount(self) -> None:
        """Show what is offered."""
        title = f" What if, for {self._module}: nothing happens   Enter asks, / writes, Esc leaves"
        self.query_one("#header", RowsView).show([row(Span(title, Tone.STRONG))])
        self.query_one(ListPane).show_items([[self._row(*one)] for one in self._offered])

    def _row(self, sentence: str, events: str) -> Row:
        return row(f"  {fit(sentence, 42)}", Span(f" {events}", Tone.DIM))

    def on_list_pane_chosen(self, event: ListPane.Chosen) -> None:
        """Enter on a question."""
        event.stop()
        self.dismiss(self._offered[event.index][1])

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter on what was written."""
        event.stop()
        if event.value.strip():
            self.dismiss(event.value.strip()[:500])

    def action_write(self) -> None:
        """`/`"""
        self.query_one(Input).focus()

    def action_leave(self) -> None:
        """None of them."""
        self.dismiss(None)
