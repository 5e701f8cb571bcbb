"""The console's application: wires session, controller and screens, opens dialogs, sends.

No rule about the cluster and no drawing stands here.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import ClassVar

from textual import events
from textual.app import App, SystemCommand
from textual.screen import Screen

from hyperha.api.wire_copies import SafetyCopies
from hyperha.client.node_client import Target
from hyperha.client.problems import UsageError
from hyperha.client.session import Session, TransportOf, monotonic_ms
from hyperha.text import nearest
from tui.actions import BY_ID, REGISTRY, Action, Group, availability, look
from tui.controller import Controller, Outcome, Result
from tui.model.console import ConsoleModel
from tui.model.copies import diff_rows, plan_rows
from tui.model.outcomes import offered, outcome_rows
from tui.screens.confirm import TYPE_AHEAD_MS, Confirmed, ConfirmScreen, Question
from tui.screens.copies import AnswerScreen, Drawn, SafetyScreen
from tui.screens.dashboard import Dashboard
from tui.screens.lists import HelpScreen, MenuScreen, OutputScreen
from tui.screens.whatif import WhatIfScreen
from tui.themes import PALETTES, Look, textual_themes

REDRAW_S = 0.2
"""Five drawings a second at most, for slow lines."""
TICK_S = 1.0


class ConsoleApp(App[None]):
    """One console."""

    CSS_PATH = "styles/base.tcss"
    TITLE = "hyperha"
    ENABLE_COMMAND_PALETTE: ClassVar[bool] = True

    def __init__(
        self,
        targets: list[Target],
        *,
        read_only: bool = False,
        theme: str = "default",
        ascii_only: bool = False,
        clock_ms: Callable[[], int] = monotonic_ms,
        transport_of: TransportOf | None = None,
        type_ahead_ms: int = TYPE_AHEAD_MS,
    ) -> None:
        super().__init__()
        self.animation_level = "none"
        self.shape = Look.of(theme, ascii_only)
        for one in textual_themes():
            self.register_theme(one)
        self.theme = theme
        self.model = ConsoleModel(read_only=read_only)
        self.controller = Controller(self.model, clock_ms, self._say)
        self.session = Session(
            targets, self.controller.told, transport_of=transport_of, clock_ms=clock_ms
        )
        self.controller.session = self.session
        self.model.link = self.session.link
        self._type_ahead_ms = type_ahead_ms
        self.dashboard = Dashboard(self.controller, self.shape)
        self._handlers: dict[str, Callable[[], None]] = {
            "menu": self._menu,
            "plan": self._plan,
            "diff": self._diff,
            "whatif": self._whatif,
            "safety": self._safety,
            "theme": self._next_theme,
            "help": lambda: self._show(HelpScreen(self.shape)),
            "palette": self.action_command_palette,
            "quit": self._ask_quit,
        }

    def on_mount(self) -> None:
        """Show the dashboard, begin to connect."""
        self.push_screen(self.dashboard)
        self.run_worker(self.session.run(), group="session", exit_on_error=False)
        self.set_interval(REDRAW_S, self._draw_changes)
        self.set_interval(TICK_S, self._tick)

    def _draw_changes(self) -> None:
        if not self.controller.changed:
            return
        self.controller.changed = False
        self._draw()
        self._read_selected()

    def _read_selected(self) -> None:
        if self.model.link.live:
            work = self.controller.read_selected(self.dashboard.shows_scripts)
            self.run_worker(work, group="read", exit_on_error=False)

    def _draw(self) -> None:
        if self.dashboard.is_mounted and self.dashboard.is_current:
            self.dashboard.redraw()

    def _tick(self) -> None:
        self.session.tick()
        self._draw()
        self._read_selected()
        if self.model.running_commands():
            work = self.controller.poll_operations()
            self.run_worker(work, group="poll", exclusive=True, exit_on_error=False)

    def _say(self, text: str, trouble: bool) -> None:
        self.notify(text, severity="warning" if trouble else "information", markup=False)

    def _show(self, screen: Screen[None]) -> None:
        self.push_screen(screen)

    async def on_event(self, event: events.Event) -> None:
        """Keys that were typed ahead of a dialog are dropped before anything sees them."""
        if (
            isinstance(event, events.Key)
            and isinstance(self.screen, ConfirmScreen)
            and self.screen.ignores_keys()
        ):
            return
        await super().on_event(event)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette's entries, from the registry."""
        for action in REGISTRY:
            if action.group in (Group.CHECKER, Group.SAFETY) or action.id == "palette":
                continue
            reason = self._refusal(action)
            help_text = f"not now: {reason}" if reason else action.effect or action.title
            about = f" {self.model.module} on {self.model.node}" if action.verb else ""
            yield SystemCommand(
                f"{action.title}{about}",
                help_text.format(
                    module=self.model.module,
                    node=self.model.node,
                    peer=self.model.other_node(self.model.node),
                ),
                lambda chosen=action.id: self.dashboard.action_run(chosen),
            )

    def _refusal(self, action: Action) -> str:
        if not action.verb:
            return ""
        seen = look(self.model, action, self.model.module, self.model.node)
        if seen is None:
            return "nothing is selected"
        now = availability(self.model, action, seen, self.controller.clock_ms())
        return "" if now.allowed else now.reason

    # --- actions -----------------------------------------------------------------------------

    def on_dashboard_asked(self, message: Dashboard.Asked) -> None:
        """An action that is not the dashboard's own."""
        handler = self._handlers.get(message.action_id)
        if handler is not None:
            handler()
            return
        self.ask(BY_ID[message.action_id], self.model.module, self.model.node, message.checker)

    def on_dashboard_output_wanted(self, message: Dashboard.OutputWanted) -> None:
        """Open a script's output."""
        place, run = self.model.place, message.run
        title = f"{place[0]} on {place[1]}: output of {run}"
        self.push_screen(
            OutputScreen(self.shape, title, lambda: self.controller.read_output(place, run))
        )

    # --- the copies --------------------------------------------------------------------------

    def _plan(self) -> None:
        module = self.model.module

        async def read() -> Drawn | str:
            found = await self.controller.read_copies(lambda client: client.plan(module))
            return found if isinstance(found, str) else partial(plan_rows, found)

        self._answer(f"Plan of a resync of {module}", read)

    def _diff(self) -> None:
        module = self.model.module

        async def read() -> Drawn | str:
            found = await self.controller.read_copies(lambda client: client.diff(module))
            return found if isinstance(found, str) else partial(diff_rows, found)

        self._answer(f"Differences of {module}", read)

    def _whatif(self) -> None:
        module = self.model.module
        if not self._selected():
            return

        def chosen(events: str | None) -> None:
            if events is not None:
                self._answer(f"What if {events}: {module}", partial(self._study, module, events))

        view = self.model.module_view(module)
        nodes = sorted(view.nodes) if view is not None else []
        running = next((n for n in nodes if view and view.nodes[n].role.runs_vm), "")
        self.push_screen(
            WhatIfScreen(self.shape, module, offered(nodes, running, witnessed=self._witnessed())),
            chosen,
        )

    def _witnessed(self) -> bool:
        cluster = self.model.cluster
        return cluster is not None and any(node.witness for node in cluster.nodes.values())

    async def _study(self, module: str, events: str) -> Drawn | str:
        found = await self.controller.study(module, events.split())
        return found if isinstance(found, str) else partial(outcome_rows, found)

    def _answer(self, title: str, read: Callable[[], Awaitable[Drawn | str]]) -> None:
        if self._selected():
            self.push_screen(AnswerScreen(self.shape, title, read))

    def _safety(self) -> None:
        module = self.model.module

        async def read() -> SafetyCopies | str:
            return await self.controller.read_copies(lambda client: client.safety_copies(module))

        if self._selected():
            self.push_screen(SafetyScreen(self.shape, module, read))

    def _selected(self) -> bool:
        if not self.model.module:
            self.notify("there is no module to look at", markup=False)
        return bool(self.model.module)

    def on_safety_screen_wanted(self, message: SafetyScreen.Wanted) -> None:
        """Restore or delete the safety copy under the cursor."""
        copy = message.copy
        self.ask(BY_ID[message.action_id], message.module, copy.node, copy=copy.id)

    def _menu(self) -> None:
        module, node = self.model.module, self.model.node
        if not module:
            self.notify("there is no module to act on", markup=False)
            return

        def picked(action_id: str | None) -> None:
            if action_id is not None:
                self.ask(BY_ID[action_id], module, node)

        screen = MenuScreen(self.model, self.shape, module, node, self.controller.clock_ms)
        self.push_screen(screen, picked)

    def ask(
        self,
        action: Action,
        module: str,
        node: str,
        checker: str = "",
        notice: str = "",
        copy: str = "",
    ) -> None:
        """Open the dialog of a command for a target by name; or say why it cannot be."""
        seen = look(self.model, action, module, node)
        if seen is None:
            self.notify(f"{action.title}: there is no module selected", markup=False)
            return
        now = availability(self.model, action, seen, self.controller.clock_ms())
        if not now.allowed and not notice:
            text = f"{action.title} {module} on {seen.node}: {now.reason}"
            self.notify(text, severity="warning", markup=False)
            return
        question = Question(action, seen, checker, notice, copy)

        def answered(confirmed: Confirmed | None) -> None:
            if confirmed is not None:
                work = self._send(question, confirmed)
                self.run_worker(work, group="send", exit_on_error=False)

        screen = ConfirmScreen(
            question, self.model, self.shape, self.controller.clock_ms, self._type_ahead_ms
        )
        self.push_screen(screen, answered)

    async def _send(self, question: Question, confirmed: Confirmed) -> None:
        outcome = await self._sent(question, confirmed)
        if outcome.result is Result.CHANGED:
            seen = question.seen
            notice = f"Refused, nothing was done: {outcome.text}"
            thing = question.checker, notice, question.copy
            self.ask(question.action, seen.module, seen.node, *thing)
            return
        if outcome.result is Result.FAILED:
            self._say(outcome.text, True)

    async def _sent(self, question: Question, confirmed: Confirmed) -> Outcome:
        action, seen = question.action, question.seen
        if question.checker:
            return await self.controller.send_checker(
                action, seen, question.checker, confirmed.reason, confirmed.until
            )
        return await self.controller.send(
            action, seen, confirmed.reason, question.copy, confirmed.to
        )

    def _next_theme(self) -> None:
        self.theme = self.shape.next_theme()
        self._draw()
        self.notify(f"theme: {self.theme}", markup=False)

    async def action_quit(self) -> None:
        """ctrl+q."""
        self._ask_quit()

    def _ask_quit(self) -> None:
        running = self.model.running_commands()
        if running and not self.model.quit_warned:
            self.model.quit_warned = True
            one = running[0]
            text = f"{one.verb} {one.module} has not ended yet; it goes on. Quit again to leave."
            self.notify(text, severity="warning", markup=False)
            return
        self.exit()


def run_console(
    targets: list[Target],
    *,
    read_only: bool = False,
    theme: str | None = None,
    ascii: bool = False,
    mono: bool = False,
) -> None:
    """Open the console on this terminal until it is left.

    Raises UsageError for an unknown theme or without a terminal; SystemExit when it ended badly.
    """
    name = "mono" if mono else theme or "default"
    if name not in PALETTES:
        close = nearest(name, list(PALETTES))
        hint = f"Did you mean {close}? " if close else ""
        raise UsageError(f"there is no theme {name!r}", f"{hint}Themes: {', '.join(PALETTES)}.")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the console needs a terminal", "For scripts: hyperha --json state.")
    app = ConsoleApp(targets, read_only=read_only, theme=name, ascii_only=ascii)
    app.run(mouse=False)
    if app.return_code:
        raise SystemExit(app.return_code)
