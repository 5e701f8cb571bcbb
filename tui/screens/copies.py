"""Screens about the copies: a text that is read from the node, and the list of safety copies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen

from hyperha.api.wire_copies import SafetyCopies, SafetyCopyView
from tui.model.copies import safety_items
from tui.model.rows import Row, Span, Tone, row
from tui.themes import Look
from tui.widgets.rows_view import ListPane, RowsView

Drawn = Callable[[int], list[Row]]
"""The rows for a width."""


class AnswerScreen(Screen[None]):
    """What the node answers, or why it does not; `r` asks again."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "Back", show=False),
        Binding("r", "again", "Again", show=False),
    ]

    def __init__(self, shape: Look, title: str, read: Callable[[], Awaitable[Drawn | str]]) -> None:
        super().__init__(classes="-ascii" if shape.glyphs.ascii_only else None)
        self._look = shape
        self._title = title
        self._read = read
        self._drawn: Drawn | None = None

    def compose(self) -> ComposeResult:
        """Title and answer."""
        yield RowsView(self._look, id="header")
        yield ListPane(self._look, id="output")

    def on_mount(self) -> None:
        """Ask."""
        title = f" {self._title}   r asks again, Esc goes back"
        self.query_one("#header", RowsView).show([row(Span(title, Tone.STRONG))])
        self.action_again()

    def action_again(self) -> None:
        """Ask once more."""
        self.query_one(ListPane).show_items([[row(Span("  the nodes are asked", Tone.DIM))]])
        self.run_worker(self._load(), exclusive=True, exit_on_error=False)

    async def _load(self) -> None:
        found = await self._read()
        self._drawn = None if isinstance(found, str) else found
        if isinstance(found, str):
            self.query_one(ListPane).show_items([[row(Span(f"  {found}", Tone.BAD))]])
        self._fill()

    def _fill(self) -> None:
        if self._drawn is not None:
            rows = self._drawn(max(20, self.size.width))
            self.query_one(ListPane).show_items([[one] for one in rows])

    def on_resize(self) -> None:
        """Break the lines anew."""
        self._fill()

    def action_leave(self) -> None:
        """Back to where it was opened."""
        self.dismiss()


class SafetyScreen(Screen[None]):
    """The safety copies of a module on both nodes: Enter restores, `d` deletes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "Back", show=False),
        Binding("r", "again", "Again", show=False),
        Binding("d,delete", "remove", "Delete", show=False),
    ]

    class Wanted(Message):
        """Something is to be done with a safety copy: an action of the registry."""

        def __init__(self, action_id: str, module: str, copy: SafetyCopyView) -> None:
            super().__init__()
            self.action_id = action_id
            self.module = module
            self.copy = copy

    def __init__(
        self, shape: Look, module: str, read: Callable[[], Awaitable[SafetyCopies | str]]
    ) -> None:
        super().__init__(classes="-ascii" if shape.glyphs.ascii_only else None)
        self._look = shape
        self._module = module
        self._read = read
        self._found = SafetyCopies()

    def compose(self) -> ComposeResult:
        """Title and list."""
        yield RowsView(self._look, id="header")
        yield ListPane(self._look, id="output")

    def on_mount(self) -> None:
        """Ask."""
        title = f" Safety copies of {self._module}   Enter restores, d deletes, Esc goes back"
        self.query_one("#header", RowsView).show([row(Span(title, Tone.STRONG))])
        self.query_one(ListPane).focus()
        self.action_again()

    def on_screen_resume(self) -> None:
        """Something may have been done with one of them."""
        self.action_again()

    def action_again(self) -> None:
        """Ask once more."""
        self.run_worker(self._load(), exclusive=True, exit_on_error=False)

    async def _load(self) -> None:
        found = await self._read()
        if isinstance(found, str):
            self._found = SafetyCopies()
            self.query_one(ListPane).show_items([[row(Span(f"  {found}", Tone.BAD))]])
            return
        self._found = found
        self._fill()

    def _fill(self) -> None:
        self.query_one(ListPane).show_items(safety_items(self._found, max(20, self.size.width)))

    def on_list_pane_chosen(self, event: ListPane.Chosen) -> None:
        """Enter."""
        event.stop()
        self._want("safety-restore")

    def action_remove(self) -> None:
        """`d`."""
        self._want("safety-delete")

    def _want(self, action_id: str) -> None:
        at = self.query_one(ListPane).index
        if 0 <= at < len(self._found.copies):
            self.post_message(self.Wanted(action_id, self._module, self._found.copies[at]))

    def action_leave(self) -> None:
        """Back to where it was opened."""
        self.dismiss()
