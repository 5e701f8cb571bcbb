"""The dialog before anything is changed, in the levels of the registry.

The target was captured at the key press and stays; the state of both nodes is live. Cancel has the
focus and Enter on it cancels; the key `y` or the other button confirms. Keys that were typed ahead
of the dialog are ignored. When the state is no longer the one that was seen, or the link is gone,
nothing can be confirmed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input

from hyperha.api.wire import ModuleNodeView
from hyperha.text import duration_s
from tui.actions import (
    Action,
    Level,
    Seen,
    availability,
    changed_since,
    level_of,
    loss_of,
)
from tui.model.console import ConsoleModel
from tui.model.formatting import short_generation
from tui.model.glyphs import READINESS_WORD
from tui.model.rows import Row, Span, Tone, fit_row, row, wrapped
from tui.model.tiles import role_row
from tui.themes import Look
from tui.widgets.rows_view import RowsView

TYPE_AHEAD_MS = 300
REFRESH_S = 0.5


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What the operator confirmed; `until` is RFC 3339, for a suspension with an end."""

    reason: str
    until: str | None = None
    to: str = ""
    """The directory that a safety copy is restored to."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: an action on a captured target, for a checker or a safety copy by its name."""

    action: Action
    seen: Seen
    checker: str = ""
    notice: str = ""
    """Why it is asked again."""
    copy: str = ""
    """The id of a safety copy."""

    @property
    def level(self) -> Level:
        """How much must be confirmed."""
        return level_of(self.action, self.seen)

    @property
    def title(self) -> str:
        """The target by its full name."""
        thing = self.checker or self.copy
        what = f" {thing}" if thing else ""
        return f"{self.action.title}{what}: {self.seen.module} on {self.seen.node}"


class ConfirmScreen(ModalScreen[Confirmed | None]):
    """Asks one question; None means that nothing is to be done."""

    AUTO_FOCUS = "#cancel"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "confirm", "Yes", show=False),
        Binding("n,escape", "cancel", "No", show=False),
        Binding("left", "app.focus_previous", show=False),
        Binding("right", "app.focus_next", show=False),
    ]

    def __init__(
        self,
        question: Question,
        model: ConsoleModel,
        look: Look,
        clock_ms: Callable[[], int],
        type_ahead_ms: int = TYPE_AHEAD_MS,
    ) -> None:
        super().__init__(classes="-ascii" if look.glyphs.ascii_only else None)
        self._question = question
        self._model = model
        self._look = look
        self._clock_ms = clock_ms
        self._deaf_until_ms = clock_ms() + type_ahead_ms
        self._notice = question.notice
        self._reason_needed = question.action.id == "suspend"
        self._place_needed = question.action.id == "safety-restore"

    def compose(self) -> ComposeResult:
        """Facts, entries by level, buttons."""
        question = self._question
        with Vertical(id="dialog"):
            yield RowsView(self._look, id="facts")
            if question.level >= Level.CONFIRM:
                word = "Reason (needed):" if self._reason_needed else "Reason (for the audit):"
                must = "shown to everybody" if self._reason_needed else "optional"
                yield from self._entry("reason", word, must)
            if question.action.id == "suspend":
                yield from self._entry("end", "For how long:", "90s, 15m, 1h, 2d; empty: no end")
            if self._place_needed:
                must = f"an absolute path on {question.seen.node}, missing or empty"
                yield from self._entry("to", "Into the directory:", must)
            if question.level is Level.LOSS:
                yield from self._entry("name", "To accept this, type:", question.seen.module)
            with Horizontal(id="buttons"):
                yield Button("< Cancel >", id="cancel")
                yield Button(f"< Yes, {question.action.title.lower()} >", id="yes")

    def _entry(self, name: str, label: str, hint: str) -> ComposeResult:
        with Horizontal(classes="line"):
            view = RowsView(self._look, id=f"label-{name}", classes="label")
            view.rows = [row(label)]
            yield view
            yield Input(id=name, classes="entry", compact=True, placeholder=hint)

    def on_mount(self) -> None:
        """Show the facts and keep them fresh."""
        self._refresh()
        self.set_interval(REFRESH_S, self._refresh)

    def on_resize(self) -> None:
        """Break the sentences anew."""
        self.call_after_refresh(self._refresh)

    def ignores_keys(self) -> bool:
        """Whether a key now was meant for what was there before the dialog."""
        return self._clock_ms() < self._deaf_until_ms

    # --- state -------------------------------------------------------------------------------

    def obstacle(self) -> str:
        """Why it cannot be confirmed now; empty when it can."""
        seen = self._question.seen
        changed = changed_since(seen, self._model.side(seen.module, seen.node))
        if changed and not (self._question.checker or self._question.copy):
            return f"Changed meanwhile: {changed}. Cancel, look again."
        now = availability(self._model, self._question.action, seen, self._clock_ms())
        if not now.allowed:
            return f"Not now: {now.reason}."
        return ""

    def _refresh(self) -> None:
        if not self._model.link.live:
            self.app.notify("the link was lost: nothing was sent", markup=False)
            self.dismiss(None)
            return
        facts = self.query_one("#facts", RowsView)
        width = max(20, self.query_one("#dialog").size.width - 2)
        rows = self._rows(width)
        facts.styles.height = len(rows)
        facts.show(rows)
        self.query_one("#yes", Button).disabled = bool(self.obstacle())

    def _rows(self, width: int) -> list[Row]:
        question = self._question
        seen = question.seen
        rows = [row(Span(question.title, Tone.STRONG)), row("")]
        rows.append(self._state_row(seen.node, "target", width))
        if seen.peer:
            rows.append(self._state_row(seen.peer, "other", width))
        rows.append(row(""))
        rows += _sentences(seen.sentence(question.action.effect), Tone.PLAIN, width)
        rows += _sentences(seen.sentence(question.action.spares), Tone.DIM, width)
        loss = loss_of(question.action, seen)
        if loss:
            rows += _sentences(f"LOSS: {loss}.", Tone.BAD, width)
        rows += _sentences(f"Sends: {self._request_text()}", Tone.DIM, width)
        notice = self.obstacle() or self._notice
        if notice:
            rows += _sentences(notice, Tone.WARN, width)
        rows.append(row(Span(self._keys(), Tone.ACCENT)))
        return rows

    def _keys(self) -> str:
        if self._question.level is Level.LOSS:
            return f"Tab to the entries: {self._question.seen.module} must be typed. Esc cancels."
        return "y confirms, n or Esc or Enter cancels."

    def _state_row(self, node: str, label: str, width: int) -> Row:
        model = self._model
        side = model.side(self._question.seen.module, node)
        if side is None:
            return row(f"{label:>7} {node}: not known")
        age_ms = model.node_age_ms(node, self._clock_ms())
        glyphs = self._look.glyphs
        head = row(f"{label:>7} {node}: ", *role_row(side, age_ms, glyphs))
        return fit_row((*head, Span(f"  {_facts(side)}")), width, glyphs.cut)

    def _request_text(self) -> str:
        question, seen = self._question, self._question.seen
        if question.checker:
            return f"PUT /v1/modules/{seen.module}/checkers/{question.checker}"
        if question.copy:
            return f"{question.action.verb} {question.copy} of {seen.module} to {seen.node}"
        where = "both nodes" if question.action.both_nodes else seen.node
        expected = f"expecting {seen.side.role}, generation {_generation(seen.side)}"
        return f"{question.action.verb} {seen.module} to {where}, {expected}"

    # --- answers -----------------------------------------------------------------------------

    def action_confirm(self) -> None:
        """Yes: only with everything that the level asks for."""
        trouble = self.obstacle() or self._missing()
        if trouble:
            self._notice = trouble
            self._refresh()
            return
        self.dismiss(Confirmed(self._text("reason"), self._until(), self._text("to")))

    def action_cancel(self) -> None:
        """No: nothing is done."""
        self.dismiss(None)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """A button."""
        event.stop()
        if event.button.id == "yes":
            self.action_confirm()
        else:
            self.action_cancel()

    def _missing(self) -> str:
        if self._question.level is Level.LOSS and self._text("name") != self._question.seen.module:
            return f"Type the module's name, {self._question.seen.module}, to confirm the loss."
        if self._reason_needed and not self._text("reason"):
            return "Say why: the reason is shown to everybody."
        if self._place_needed and not self._text("to").startswith("/"):
            return "Name the directory by its absolute path, /srv/former for instance."
        end = self._text("end")
        if end and duration_s(end) is None:
            return f"{end!r} is no duration: write 90s, 15m, 1h or 2d."
        return ""

    def _text(self, name: str) -> str:
        found = self.query(f"#{name}").results(Input)
        return next((entry.value.strip()[:500] for entry in found), "")

    def _until(self) -> str | None:
        seconds = duration_s(self._text("end"))
        if seconds is None:
            return None
        end = datetime.now(UTC) + timedelta(seconds=seconds)
        return end.strftime("%Y-%m-%dT%H:%M:%SZ")


def _facts(side: ModuleNodeView) -> str:
    ready = READINESS_WORD[side.readiness]
    return f"{ready}, vm {side.vm.state}, data {side.data}, g {_generation(side)}"


def _generation(side: ModuleNodeView) -> str:
    return short_generation(side.generation)


def _sentences(text: str, tone: Tone, width: int) -> list[Row]:
    return [row(Span(piece, tone)) for piece in wrapped(text, width)]
