"""The first screen: modules, the selected one's log, scripts, checkers and facts, one line of keys.

Draws the model and turns keys into actions of the registry; commands are asked for by messages, the
app opens their dialogs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input

from tui.actions import REGISTRY, footer_actions, key_word
from tui.controller import Controller
from tui.model.alerts import Alert, alerts
from tui.model.console import Place
from tui.model.layout import LEAST_HEIGHT, LEAST_WIDTH, Layout, Shape, layout
from tui.model.log_buffer import LogView, find
from tui.model.panes import (
    absent_row,
    activity_row,
    alert_row,
    checker_items,
    checker_names,
    facts_rows,
    header_row,
    log_rows,
    run_row,
    tabs_row,
)
from tui.model.rows import Row, Span, Tone, cells, fit_row, row
from tui.model.tiles import module_panel, resync_bar
from tui.themes import Look
from tui.widgets.rows_view import ListPane, RowsView

LOG, SCRIPTS, CHECKERS, FACTS = range(4)
_BY_TEXTUAL = {"tab", "ctrl+p", "ctrl+q"}
"""Keys that Textual itself binds to the same."""


class ModulePanel(RowsView, can_focus=True):
    """The modules; arrows choose a side of one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "choose(-1, 0)", "Up", show=False),
        Binding("down,j", "choose(1, 0)", "Down", show=False),
        Binding("left,h", "choose(0, -1)", "Left", show=False),
        Binding("right,l", "choose(0, 1)", "Right", show=False),
        Binding("enter", "open", "Actions", show=False),
    ]

    class Chose(Message):
        """Another module or node."""

        def __init__(self, modules: int, nodes: int) -> None:
            super().__init__()
            self.modules = modules
            self.nodes = nodes

    class Opened(Message):
        """Enter on a side."""

    def action_choose(self, modules: int, nodes: int) -> None:
        """By so many places."""
        self.post_message(self.Chose(modules, nodes))

    def action_open(self) -> None:
        """The menu of this side."""
        self.post_message(self.Opened())


class Dashboard(Screen[None]):
    """See the module's docstring."""

    AUTO_FOCUS = "#modules"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, f"run('{action.id}')", action.title, show=False, id=f"{action.id}.{key}")
        for action in REGISTRY
        for key in action.keys
        if key not in _BY_TEXTUAL
    ]

    class Asked(Message):
        """An action of the registry that the app carries out."""

        def __init__(self, action_id: str, checker: str = "") -> None:
            super().__init__()
            self.action_id = action_id
            self.checker = checker

    class OutputWanted(Message):
        """A script's output, by the id of its run."""

        def __init__(self, run: str) -> None:
            super().__init__()
            self.run = run

    def __init__(self, controller: Controller, shape: Look) -> None:
        super().__init__(classes="-ascii" if shape.glyphs.ascii_only else None)
        self._controller = controller
        self._model = controller.model
        self._look = shape
        self._tab = LOG
        self._view = LogView()
        self._view_of: Place = ("", "")
        self._wrap = True
        self._alert_at = 0
        self._cache: dict[int, list[Row]] = {}
        self._cache_key: tuple[int, bool, str, Place, int] = (0, False, "", ("", ""), 0)
        self._plan = Layout(Shape.TOO_SMALL, 0)
        # Kept by name, since the screen may be drawn while its widgets come or go.
        names = ("small", "header", "alert", "tabs", "activity", "keys")
        self._lines = {name: RowsView(shape, id=name) for name in names}
        self._modules = ModulePanel(shape, id="modules")
        self._pane = ListPane(shape, id="pane", follows=True)
        self._body = Container(id="body")
        self._entry = Input(id="search", compact=True, placeholder="search: Enter finds, Esc ends")
        self.handlers: dict[str, Callable[[], None]] = {
            "table": self._table,
            "next-pane": self.focus_next_pane,
            "tab-log": lambda: self._open_tab(LOG),
            "tab-scripts": lambda: self._open_tab(SCRIPTS),
            "tab-checkers": lambda: self._open_tab(CHECKERS),
            "tab-facts": lambda: self._open_tab(FACTS),
            "next": lambda: self._next(1),
            "previous": lambda: self._next(-1),
            "search": self._search,
            "follow": self._follow,
            "level": self._level,
            "wrap": self._toggle_wrap,
            "copy": self._copy,
            "back": self._back,
            "lock": self._lock,
        }

    @property
    def shows_scripts(self) -> bool:
        """Whether the list of script runs is in view."""
        return self._tab == SCRIPTS

    def compose(self) -> ComposeResult:
        """Fixed lines, the modules, the pane."""
        yield self._lines["small"]
        yield self._lines["header"]
        yield self._lines["alert"]
        with self._body:
            yield self._modules
            with Vertical(id="detail"):
                yield self._lines["tabs"]
                yield self._pane
        yield self._lines["activity"]
        yield self._lines["keys"]
        yield self._entry

    # --- drawing -----------------------------------------------------------------------------

    def on_mount(self) -> None:
        """The log follows from the beginning."""
        self._pane.scroller.follow = True
        self.redraw()

    def on_resize(self) -> None:
        """Another size: another layout."""
        self.call_after_refresh(self.redraw)

    def redraw(self) -> None:
        """Show the model as it is now; only what differs is sent to the terminal."""
        now_ms = self._controller.clock_ms()
        self._arrange()
        if self._plan.shape is Shape.TOO_SMALL:
            self._draw_small(now_ms)
            return
        width, glyphs, model = self.size.width, self._look.glyphs, self._model
        found = alerts(model, now_ms)
        self._line("header", header_row(model, width, now_ms, glyphs))
        self._line("alert", alert_row(found, self._alert_at, width, glyphs))
        panel = self._modules
        rows = module_panel(
            model, self._plan, panel.size.width, now_ms, glyphs, focused=panel.has_focus
        )
        panel.show(rows)
        self._draw_pane(now_ms, found)
        doing = activity_row(model, width, now_ms, glyphs)
        self._line("activity", doing or resync_bar(model, width, now_ms, glyphs) or row(""))
        self._line("keys", self._keys_row(width))

    def _line(self, name: str, content: Row) -> None:
        self._lines[name].show([content])

    def _arrange(self) -> None:
        count = len(self._model.module_names())
        plan = layout(self.size.width, self.size.height, count, self._model.table)
        if plan == self._plan:
            return
        self._plan = plan
        small = plan.shape is Shape.TOO_SMALL
        self._body.display = not small
        for name, line in self._lines.items():
            line.display = small if name == "small" else not small
        self._body.set_class(plan.side_by_side, "-wide")
        self._modules.styles.height = max(1, plan.module_rows)
        self.call_after_refresh(self.redraw)

    def _draw_small(self, now_ms: int) -> None:
        found = alerts(self._model, now_ms)
        worst = found[0].text if found else "no alert"
        size = f"{self.size.width}x{self.size.height}"
        rows = [
            row(Span(f"This terminal has {size}.", Tone.WARN)),
            row(f"hyperha needs {LEAST_WIDTH}x{LEAST_HEIGHT} or more."),
            row(f"Worst: {worst}"),
        ]
        self._lines["small"].show(rows)

    def _draw_pane(self, now_ms: int, found: list[Alert]) -> None:
        model, pane = self._model, self._pane
        width, glyphs = pane.size.width, self._look.glyphs
        note = ""
        if self._tab == LOG:
            note = self._draw_log(width)
        elif self._tab == SCRIPTS:
            runs = model.scripts.get(model.place)
            rows = [[run_row(run, glyphs)] for run in runs or ()]
            read = runs is not None
            pane.show_items(rows or [[absent_row(model, "scripts", "script has run here", read)]])
            note = model.unread.get(model.place, "Enter opens")
        elif self._tab == CHECKERS:
            pane.show_items(checker_items(model, width, now_ms, glyphs))
        else:
            pane.show_items([[one] for one in facts_rows(model, found, width, now_ms)])
        self._line("tabs", tabs_row(model, self._tab, note, width, glyphs))

    def _draw_log(self, width: int) -> str:
        model, pane = self._model, self._pane
        place = model.place
        if self._view_of != place:
            self._view, self._view_of = LogView(), place
            pane.scroller.follow = True
        buffer = model.log_of(place)
        key = (width, self._wrap, model.search)
        cache_key = (*key, place, buffer.epoch)
        if cache_key != self._cache_key or len(self._cache) > 6000:
            self._cache, self._cache_key = {}, cache_key
        self._view.update(buffer, model.level, pane.scroller.follow)
        items = []
        for line in self._view.lines:
            if line.seq not in self._cache:
                self._cache[line.seq] = log_rows(line, *key, self._look.glyphs)
            items.append(self._cache[line.seq])
        pane.show_items(items or [[absent_row(model, "log", "line yet", place in model.logs_read)]])
        return self._log_note()

    def _log_note(self) -> str:
        unread = self._model.unread.get(self._model.place)
        parts = [unread] if unread and self._view.lines else []
        if self._model.search:
            parts.append(f"/{self._model.search}")
        if self._model.level != "all":
            parts.append(f"{self._model.level} only")
        if self._pane.scroller.follow:
            parts.append("follows")
        else:
            parts.append(f"paused, {self._view.waiting} new, End follows")
        return ", ".join(parts)

    def _keys_row(self, width: int) -> Row:
        spans: list[Span] = [Span(" ")]
        for action in footer_actions():
            spans.append(Span(key_word(action.key), Tone.FOCUS))
            spans.append(Span(f" {action.title}  ", Tone.DIM))
        while sum(cells(span.text) for span in spans) > width and len(spans) > 3:
            del spans[-2:]
        return fit_row(tuple(spans), width)

    # --- actions -----------------------------------------------------------------------------

    def action_run(self, action_id: str) -> None:
        """An action of the registry: of this screen, or of the app."""
        handler = self.handlers.get(action_id)
        if handler is None:
            self.post_message(self.Asked(action_id))
            return
        handler()
        self.redraw()

    def focus_next_pane(self) -> None:
        """Between modules and pane."""
        self.focus_next()

    def _table(self) -> None:
        self._model.table = not self._model.table

    def _open_tab(self, tab: int) -> None:
        pane = self._pane
        if tab != self._tab:
            self._tab = tab
            pane.scroller.top = pane.scroller.cursor = 0
        pane.follows = tab == LOG
        pane.scroller.follow = tab == LOG
        if tab == SCRIPTS:
            self._controller.changed = True  # The app reads what is wanted and missing.
        pane.focus()

    def _next(self, step: int) -> None:
        model = self._model
        if model.search and self._tab == LOG:
            at = find(self._view.lines, model.search, self._pane.index, step)
            if at is None:
                self.notify(f"not found: {model.search}", markup=False)
            else:
                self._pane.go_to(at)
            return
        found = alerts(model, self._controller.clock_ms())
        if found and step > 0:
            self._alert_at = (self._alert_at + 1) % len(found)
            self._select(found[self._alert_at])

    def _select(self, alert: Alert) -> None:
        if alert.module:
            self._model.module = alert.module
        if alert.node:
            self._model.node = alert.node

    def _search(self) -> None:
        self._open_tab(LOG)
        self._entry.display = True
        self._lines["keys"].display = False
        self._entry.value = ""
        self._entry.focus()

    def _end_search(self) -> None:
        self._entry.display = False
        self._lines["keys"].display = self._plan.shape is not Shape.TOO_SMALL
        self._pane.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Look for it, from the newest line backwards."""
        event.stop()
        self._model.search = event.value.strip()
        self._end_search()
        if self._model.search:
            self._pane.scroller.end()
            self.redraw()
            at = find(self._view.lines, self._model.search, 0, -1)
            if at is None:
                self.notify(f"not found: {self._model.search}", markup=False)
                self._pane.action_end()
            else:
                self._pane.go_to(at)
        self.redraw()

    def _follow(self) -> None:
        self._open_tab(LOG)
        self._pane.scroller.end(follow=True)

    def _level(self) -> None:
        self._model.level = self._model.level.next()

    def _toggle_wrap(self) -> None:
        self._wrap = not self._wrap

    def _copy(self) -> None:
        at = self._pane.index
        if self._tab == LOG and 0 <= at < len(self._view.lines):
            line = self._view.lines[at]
            self.app.copy_to_clipboard(f"{line.at} {line.level} {line.source}: {line.text}")
            self.notify("copied", markup=False)

    def _back(self) -> None:
        if self._entry.display:
            self._end_search()
        elif self._model.search:
            self._model.search = ""
        else:
            self._modules.focus()

    def _lock(self) -> None:
        self._model.read_only = not self._model.read_only

    # --- messages ----------------------------------------------------------------------------

    def on_module_panel_chose(self, event: ModulePanel.Chose) -> None:
        """The selection is kept by name."""
        self._model.choose_module(event.modules)
        self._model.choose_node(event.nodes)
        self._controller.changed = True
        self.redraw()

    def on_module_panel_opened(self) -> None:
        """Enter on a tile."""
        self.post_message(self.Asked("menu"))

    def on_list_pane_moved(self) -> None:
        """Moving up in the log pauses it."""
        self.redraw()

    def on_list_pane_chosen(self, event: ListPane.Chosen) -> None:
        """Enter in the pane: the output behind a line or a run."""
        if self._tab == LOG and event.index < len(self._view.lines):
            run = self._view.lines[event.index].run
            if run:
                self.post_message(self.OutputWanted(run))
            else:
                self.notify("no script output behind this line", markup=False)
        if self._tab == SCRIPTS:
            runs = self._model.scripts.get(self._model.place) or []
            if event.index < len(runs):
                self.post_message(self.OutputWanted(runs[event.index].id))

    def on_list_pane_toggled(self, event: ListPane.Toggled) -> None:
        """Space on a checker."""
        names = checker_names(self._model)
        if self._tab != CHECKERS or event.index >= len(names):
            return
        name = names[event.index]
        side = self._model.side()
        held = side is not None and any(
            checker.suspended is not None and name in ("all", checker.name)
            for checker in side.checkers
        )
        self.post_message(self.Asked("resume" if held else "suspend", name))
