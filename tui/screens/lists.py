"""Screens that are one list: the menu of actions, the help, the output of a script."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen, Screen

from hyperha.api.wire import ScriptOutput
from tui.actions import (
    COMMANDS,
    REGISTRY,
    SETTINGS,
    Action,
    Group,
    availability,
    effect_text,
    key_word,
    keys_text,
    level_of,
    look,
)
from tui.model.console import ConsoleModel
from tui.model.panes import output_rows
from tui.model.rows import Row, Span, Tone, fit, fit_row, row, wrapped
from tui.themes import Look
from tui.widgets.rows_view import ListPane, RowsView

REFRESH_S = 1.0


class MenuScreen(ModalScreen[str | None]):
    """Every command and setting for one target; what is not allowed shows its reason."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,a", "leave", "Back", show=False),
        *(
            Binding(key, f"pick('{action.id}')", action.title, show=False)
            for action in COMMANDS
            for key in action.keys
        ),
    ]

    def __init__(
        self, model: ConsoleModel, shape: Look, module: str, node: str, clock_ms: Callable[[], int]
    ) -> None:
        super().__init__(classes="-ascii" if shape.glyphs.ascii_only else None)
        self._model = model
        self._look = shape
        self._module = module
        self._node = node
        self._clock_ms = clock_ms
        self._actions = [*COMMANDS, *SETTINGS]

    def compose(self) -> ComposeResult:
        """Title and list."""
        with Vertical(id="dialog"):
            yield RowsView(self._look, id="facts")
            yield ListPane(self._look, id="menu-list")

    def on_mount(self) -> None:
        """Show it and keep the reasons fresh."""
        self.query_one(ListPane).styles.height = len(self._actions)
        self.query_one("#facts").styles.height = 1
        self._refresh()
        self.set_interval(REFRESH_S, self._refresh)

    def on_resize(self) -> None:
        """Cut anew."""
        self.call_after_refresh(self._refresh)

    def _refresh(self) -> None:
        title = f"Actions for {self._module} on {self._node}: Enter opens, Esc leaves"
        self.query_one("#facts", RowsView).show([row(Span(title, Tone.STRONG))])
        pane = self.query_one(ListPane)
        width = max(20, self.query_one("#dialog").size.width - 2)
        pane.show_items([[self._row(action, width)] for action in self._actions])

    def _row(self, action: Action, width: int) -> Row:
        seen = look(self._model, action, self._module, self._node)
        key = key_word(action.key) if action.key else " "
        head = f"  {key:2} {fit(action.title, 22)}"
        if seen is None:
            return row(Span(f"{head} not known", Tone.DIM))
        now = availability(self._model, action, seen, self._clock_ms())
        cut = self._look.glyphs.cut
        if not now.allowed:
            return fit_row(row(Span(f"{head} {now.reason}", Tone.DIM)), width, cut)
        marks = "!" * max(0, int(level_of(action, seen)) - 1)
        tone = Tone.BAD if len(marks) > 1 else Tone.WARN
        tail = row(Span(f" {marks:2} ", tone), seen.sentence(action.effect))
        return fit_row((Span(head, Tone.STRONG), *tail), width, cut)

    def on_list_pane_chosen(self, event: ListPane.Chosen) -> None:
        """Enter."""
        self.action_pick(self._actions[event.index].id)

    def action_pick(self, action_id: str) -> None:
        """This one."""
        self.dismiss(action_id)

    def action_leave(self) -> None:
        """None of them."""
        self.dismiss(None)


class HelpScreen(Screen[None]):
    """Keys and actions, from the registry."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1", "leave", "Back", show=False)
    ]

    def __init__(self, shape: Look) -> None:
        super().__init__(classes="-ascii" if shape.glyphs.ascii_only else None)
        self._look = shape

    def compose(self) -> ComposeResult:
        """Title and list."""
        yield RowsView(self._look, id="header")
        yield ListPane(self._look, id="help-list")

    def on_mount(self) -> None:
        """Show it."""
        title = " hyperha console: keys and actions. Esc goes back."
        self.query_one("#header", RowsView).show([row(Span(title, Tone.STRONG))])
        self._fill()

    def on_resize(self) -> None:
        """Cut anew."""
        self.call_after_refresh(self._fill)

    def _fill(self) -> None:
        self.query_one(ListPane).show_items(help_items(max(40, self.size.width)))

    def action_leave(self) -> None:
        """Back."""
        self.dismiss()


def help_items(width: int) -> list[list[Row]]:
    """What the help shows: movement, then every action by its group."""
    items: list[list[Row]] = [
        [row(Span("  Moving", Tone.ACCENT))],
        [row("    arrows or h j k l: module and node; lines of a list. PgUp PgDn g G Home End")],
        [row("    Enter opens, Tab changes the pane, Esc goes back")],
    ]
    for group in Group:
        items.append([row(Span(f"  {group}", Tone.ACCENT))])
        items += [_help_item(action, width) for action in REGISTRY if action.group is group]
    return items


def _help_item(action: Action, width: int) -> list[Row]:
    head = row(f"    {fit(keys_text(action), 12)}", Span(fit(action.title, 23), Tone.STRONG))
    first, *rest = wrapped(effect_text(action), max(16, width - 41))
    return [(*head, Span(f" {first}")), *(row(" " * 40, piece.lstrip()) for piece in rest)]


class OutputScreen(Screen[None]):
    """What a script's run said; read again each second while it runs."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "leave", "Back", show=False)]

    def __init__(
        self, shape: Look, title: str, read: Callable[[], Awaitable[ScriptOutput | str]]
    ) -> None:
        super().__init__(classes="-ascii" if shape.glyphs.ascii_only else None)
        self._look = shape
        self._title = title
        self._read = read
        self._output: ScriptOutput | None = None

    def compose(self) -> ComposeResult:
        """Title and output."""
        yield RowsView(self._look, id="header")
        yield ListPane(self._look, id="output", follows=True)

    def on_mount(self) -> None:
        """Read it, and again while it runs."""
        title = f" {self._title}   Esc goes back"
        self.query_one("#header", RowsView).show([row(Span(title, Tone.STRONG))])
        self._begin()
        self.set_interval(REFRESH_S, self._again)

    def _again(self) -> None:
        if self._output is not None and self._output.run.state == "running":
            self._begin()

    def _begin(self) -> None:
        self.run_worker(self._load(), exclusive=True, exit_on_error=False)

    async def _load(self) -> None:
        found = await self._read()
        pane = self.query_one(ListPane)
        if isinstance(found, str):
            pane.show_items([[row(Span(f"  {found}", Tone.BAD))]])
            return
        self._output = found
        pane.show_items([[one] for one in output_rows(found, max(20, self.size.width))])

    def on_resize(self) -> None:
        """Break the lines anew."""
        if self._output is not None:
            width = max(20, self.size.width)
            items = [[one] for one in output_rows(self._output, width)]
            self.query_one(ListPane).show_items(items)

    def action_leave(self) -> None:
        """Back to where it was opened."""
        self.dismiss()
