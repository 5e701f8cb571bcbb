"""What a key press leads to: dialogs and requests, generated from the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from textual.pilot import Pilot

from hyperha.api.wire import RefusedVerb
from hyperha.client.link import LinkState
from hyperha.client.node_client import Target
from hyperha.domain import Readiness, Role
from tests.console.fake_node import REFUSED, SUSPENDED, FakeNode, cluster, log, module, side
from tui.actions import BY_ID, COMMANDS, REGISTRY, SETTINGS, Action, Group, Level, level_of, look
from tui.app import ConsoleApp
from tui.controller import FOLLOW_EVERY_MS, RETRY_AFTER_MS
from tui.model.rows import plain
from tui.screens.confirm import ConfirmScreen
from tui.screens.lists import HelpScreen, MenuScreen, OutputScreen
from tui.widgets.rows_view import RowsView

pytestmark = pytest.mark.anyio

SENT_BY_VERB = [action for action in (*COMMANDS, *SETTINGS) if not action.both_nodes]


@dataclass
class Console:
    """A running console and the node behind it."""

    app: ConsoleApp
    pilot: Pilot[None]
    node: FakeNode
    now_ms: int = 1_000_000

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let it work until something holds."""
        for _ in range(1500):  # half a minute, on a machine that does other things too
            if condition():
                return
            await self.pilot.pause(0.02)
        raise AssertionError(f"never held; the screen shows:\n{self.text()}")

    def text(self) -> str:
        """Everything that the present screen's rows say."""
        views = [view for view in self.app.screen.query(RowsView) if view.display]
        return "\n".join(plain(row) for view in views for row in view.rows)

    @property
    def dialog(self) -> bool:
        return isinstance(self.app.screen, ConfirmScreen)

    async def open(self, action: Action) -> None:
        """The dialog of an action on node1, past its deaf time."""
        self.app.ask(action, "web", "node1")
        await self.until(lambda: self.dialog)
        self.now_ms += 301
        await self.pilot.pause()


@asynccontextmanager
async def console(
    node: FakeNode | None = None, size: tuple[int, int] = (80, 24), **options: bool
) -> AsyncIterator[Console]:
    node = node or FakeNode()
    box: list[Console] = []
    app = ConsoleApp(
        [Target("node1", socket="/none")],
        transport_of=node.transport,
        clock_ms=lambda: box[0].now_ms if box else 1_000_000,
        **options,
    )
    async with app.run_test(size=size, notifications=True) as pilot:
        box.append(Console(app, pilot, node))
        await box[0].until(lambda: app.model.link.state is LinkState.LIVE)
        await box[0].until(lambda: app.model.place in app.model.logs_read)
        await pilot.pause(0.25)
        yield box[0]


def fit_for(action: Action) -> FakeNode:
    """A node on which the action is possible."""
    view = cluster({"web": module(failover=action.id != "failover-on")})
    if action.id == "boot-on":
        sides = {"node1": side(boot="off"), "node2": side(Role.SECOND)}
        view = cluster({"web": module(nodes=sides)})
    return FakeNode(view)


@pytest.mark.parametrize("action", SENT_BY_VERB, ids=lambda action: action.id)
@pytest.mark.parametrize("key", ["enter", "escape", "n"])
async def test_a_fresh_dialog_sends_nothing(action: Action, key: str) -> None:
    async with console(fit_for(action)) as it:
        await it.open(action)
        await it.pilot.press(key)
        await it.until(lambda: not it.dialog)
        await it.pilot.pause(0.1)
        assert it.node.sent == []


@pytest.mark.parametrize("action", SENT_BY_VERB, ids=lambda action: action.id)
async def test_yes_sends_exactly_one_request_with_what_was_seen(action: Action) -> None:
    async with console(fit_for(action)) as it:
        await it.open(action)
        seen = look(it.app.model, action, "web", "node1")
        assert seen is not None
        if level_of(action, seen) is Level.LOSS:
            await it.pilot.press("y")
            await it.pilot.pause(0.1)
            assert it.dialog, "a loss must not be confirmed without the module's name"
            assert it.node.sent == []
            it.app.screen.query_one("#name").focus()
            await it.pilot.press(*"web", "enter")
            assert it.dialog, "Enter in an entry must not confirm"
            await it.pilot.press("tab", "y")
        else:
            await it.pilot.press("y")
        await it.until(lambda: bool(it.node.sent))
        await it.pilot.pause(0.1)
        ((method, path, body),) = it.node.sent
        assert (method, path) == ("POST", "/v1/modules/web/actions")
        assert body["verb"] == action.verb
        assert body["node"] == "node1"
        assert body["expect"] == {"role": "PRIM", "generation": seen.side.generation}
        assert body["options"]["confirm"] is None
        await it.until(lambda: bool(it.app.model.running_commands()))
        await it.until(lambda: "requested" in it.text())


@pytest.mark.parametrize("verb", ["failover-off"])
async def test_failover_is_told_to_both_nodes(verb: str) -> None:
    async with console() as it:
        await it.open(BY_ID[verb])
        await it.pilot.press("y")
        await it.until(lambda: len(it.node.sent) == 2)
        assert [body["node"] for _, _, body in it.node.sent] == ["node1", "node2"]


async def test_done_is_said_only_after_the_end_was_reported() -> None:
    async with console() as it:
        await it.open(BY_ID["stop"])
        await it.pilot.press("y")
        await it.until(lambda: bool(it.app.model.running_commands()))
        await it.pilot.pause(0.3)
        assert "requested:" in it.text()
        assert "done:" not in it.text()
        it.node.end("node1-0001")
        await it.until(lambda: "done:" in it.text())
        assert it.app.model.running_commands() == []


async def test_keys_typed_ahead_of_a_dialog_are_ignored() -> None:
    async with console() as it:
        await it.pilot.press("x")
        await it.until(lambda: it.dialog)
        await it.pilot.press("y", "tab", "enter", "y")
        assert it.dialog
        assert it.node.sent == []
        it.now_ms += 301
        await it.pilot.press("enter")
        await it.until(lambda: not it.dialog)
        assert it.node.sent == []


async def test_409_asks_again_with_the_new_facts() -> None:
    async with console() as it:
        await it.open(BY_ID["stop"])
        it.node.refusal = (409, {"code": "stale-view", "text": "node1 is ALONE now, not PRIM"})
        it.node.view = cluster({"web": module(nodes={"node1": side(Role.ALONE)})})
        await it.pilot.press("y")
        await it.until(lambda: it.dialog and "Refused, nothing was done" in it.text())
        assert "expecting ALONE" in it.text()
        assert "node1 is ALONE now, not PRIM" in it.text()
        assert len(it.node.sent) == 1


async def test_423_is_told_and_asks_nothing() -> None:
    async with console() as it:
        await it.open(BY_ID["stop"])
        it.node.refusal = (423, {"code": "busy", "text": "node1 is busy: handing over"})
        await it.pilot.press("y")
        await it.until(lambda: bool(it.node.sent) and not it.dialog)
        await it.pilot.pause(0.1)
        assert [note.message for note in it.app._notifications] == ["node1 is busy: handing over"]


async def test_an_answer_that_means_nothing_is_told() -> None:
    async with console() as it:
        await it.open(BY_ID["stop"])
        it.node.refusal = (202, {"code": "?", "text": "?"})
        await it.pilot.press("y")
        await it.until(lambda: bool(len(it.app._notifications)))
        assert any("Whether it was begun" in note.message for note in it.app._notifications)
        assert it.app.model.issued == []


async def test_a_change_under_the_dialog_disables_it() -> None:
    async with console() as it:
        await it.open(BY_ID["stop"])
        it.node.change(cluster({"web": module(nodes={"node1": side(Role.ALONE)})}))
        await it.until(lambda: "Changed meanwhile: node1 is ALONE now, it was PRIM" in it.text())
        assert it.app.screen.query_one("#yes").disabled
        await it.pilot.press("y")
        await it.pilot.pause(0.1)
        assert it.node.sent == []


async def test_a_lost_link_closes_the_dialog_and_disables_every_command() -> None:
    async with console() as it:
        await it.open(BY_ID["stop"])
        it.node.cut()
        await it.until(lambda: it.app.model.link.state is LinkState.LOST)
        await it.until(lambda: not it.dialog)
        it.now_ms += 12_000
        await it.until(lambda: "LOST 12 s" in it.text())
        assert "PRIM seen 12 s ago" in it.text()
        for action in (*COMMANDS, *SETTINGS):
            it.app.ask(action, "web", "node1")
        await it.pilot.pause(0.1)
        assert not it.dialog
        assert it.node.sent == []
        it.node.down = False
        await it.until(lambda: it.app.model.link.state is LinkState.LIVE)
        assert it.node.connections == 2


@pytest.mark.parametrize("action", [a for a in REGISTRY if a.changes], ids=lambda a: a.id)
async def test_the_read_only_lock_lets_nothing_through(action: Action) -> None:
    async with console(read_only=True) as it:
        assert "RO" in it.text()
        checker = "http" if action.group is Group.CHECKER else ""
        it.app.ask(action, "web", "node1", checker)
        await it.pilot.pause(0.1)
        assert not it.dialog
        assert any("read-only" in note.message for note in it.app._notifications)


async def test_a_refused_command_says_the_nodes_own_reason() -> None:
    sides = {"node1": side(allowed=["stop"], refused=REFUSED), "node2": side(Role.SECOND)}
    async with console(FakeNode(cluster({"web": module(nodes=sides)}))) as it:
        await it.pilot.press("p")
        await it.until(lambda: bool(len(it.app._notifications)))
        assert any("node1 is PRIM already" in note.message for note in it.app._notifications)
        await it.pilot.press("a")
        await it.until(lambda: isinstance(it.app.screen, MenuScreen))
        assert "node1 is PRIM already" in it.text()


async def test_a_stated_loss_needs_the_name_and_sends_the_confirmation() -> None:
    loss = {"prim": "node2 holds newer data: what it has since this copy was left is given up"}
    sides = {
        "node1": side(Role.WAIT, readiness=Readiness.NOT_READY, data="outdated", losses=loss),
        "node2": side(Role.STOP),
    }
    async with console(FakeNode(cluster({"web": module(nodes=sides)}))) as it:
        await it.open(BY_ID["prim"])
        assert "LOSS: node2 holds newer data" in it.text()
        it.app.screen.query_one("#reason").focus()
        await it.pilot.press(*"flood", "tab", *"web", "tab", "tab", "enter")
        await it.until(lambda: bool(it.node.sent))
        body = it.node.sent[0][2]
        assert body["options"]["confirm"] == "web"
        assert body["reason"] == "flood"


async def test_swap_goes_to_the_node_that_runs_the_vm() -> None:
    async with console() as it:
        await it.pilot.press("right", "w")
        await it.until(lambda: it.dialog)
        it.now_ms += 301
        await it.pilot.press("y")
        await it.until(lambda: bool(it.node.sent))
        assert it.node.sent[0][2]["node"] == "node1"


async def test_a_checker_is_suspended_with_reason_and_end() -> None:
    async with console() as it:
        await it.pilot.press("c")
        await it.until(lambda: "tcp.http" in it.text())
        await it.pilot.press("down", "down", "space")
        await it.until(lambda: it.dialog)
        it.now_ms += 301
        await it.pilot.press("y")
        await it.until(lambda: "Say why" in it.text())
        it.app.screen.query_one("#reason").focus()
        await it.pilot.press(*"patch night", "tab", *"1h", "tab", "y")
        await it.until(lambda: bool(it.node.sent))
        method, path, body = it.node.sent[0]
        assert (method, path) == ("PUT", "/v1/modules/web/checkers/http")
        assert body["suspended"] is True
        assert body["reason"] == "patch night"
        assert body["until"].endswith("Z")


async def test_a_suspended_checker_is_resumed() -> None:
    view = cluster()
    held = (
        view.modules["web"].nodes["node1"].checkers[0].model_copy(update={"suspended": SUSPENDED})
    )
    sides = {"node1": side(checkers=[held]), "node2": side(Role.SECOND)}
    async with console(FakeNode(cluster({"web": module(nodes=sides)}))) as it:
        await it.pilot.press("c")
        await it.until(
            lambda: "SUSPENDED by anna until 2026-11-22 14:00 UTC (78 min left): patch" in it.text()
        )
        await it.pilot.press("down", "space")
        await it.until(lambda: it.dialog)
        it.now_ms += 301
        await it.pilot.press("y")
        await it.until(lambda: bool(it.node.sent))
        assert it.node.sent[0][2] == {"suspended": False, "until": None, "reason": ""}


async def test_the_output_is_one_key_from_its_log_line() -> None:
    async with console() as it:
        await it.pilot.press("1", "up", "enter")
        await it.until(lambda: isinstance(it.app.screen, OutputScreen))
        await it.until(lambda: "mounting /data" in it.text())
        assert "start_prim on node1: exit status 0 after 1.4 s" in it.text()
        await it.pilot.press("escape", "2")
        await it.until(lambda: "2 lines" in it.text())
        await it.pilot.press("enter")
        await it.until(lambda: isinstance(it.app.screen, OutputScreen))


async def test_the_log_follows_pauses_and_follows_again() -> None:
    async with console() as it:
        await it.pilot.press("1", "up")
        await it.until(lambda: "paused, 0 new" in it.text())
        for seq in range(20, 24):
            it.node.say(log(seq, f"line {seq}"))
        await it.until(lambda: "paused, 4 new" in it.text())
        assert "line 23" not in it.text()
        await it.pilot.press("end")
        await it.until(lambda: "line 23" in it.text() and "follows" in it.text())


def two_logs() -> FakeNode:
    """node1 answers, and node2 has said something, too, and has run a script."""
    node = FakeNode()
    node.say(log(501, "follows node1", node="node2"))
    node.output = node.output.model_copy(
        update={"run": node.output.run.model_copy(update={"node": "node2", "id": "9-stop_prim"})}
    )
    return node


async def test_log_and_scripts_are_the_selected_nodes() -> None:
    """The title names the node whose lines are shown, whichever node answers."""
    async with console(two_logs()) as it:
        assert "web on node1" in it.text()
        assert "heartbeat prod up" in it.text()
        assert "follows node1" not in it.text()
        await it.pilot.press("right")
        await it.until(lambda: "follows node1" in it.text())
        assert "web on node2" in it.text()
        assert "heartbeat prod up" not in it.text()
        await it.pilot.press("2")
        await it.until(lambda: "start_prim on node2" in it.text())
        await it.pilot.press("enter")
        await it.until(lambda: "mounting /data" in it.text())
        assert "web on node2: output of 9-stop_prim" in it.text()
        await it.pilot.press("escape", "escape", "left")
        await it.until(lambda: "no script has run here" in it.text())
        assert "web on node1" in it.text()


async def test_a_node_that_does_not_answer_shows_no_other_nodes_lines() -> None:
    node = two_logs()
    node.other_silent = True
    async with console(node) as it:
        await it.pilot.press("right")
        await it.until(lambda: "node2 does not answer: its log is not shown" in it.text())
        assert "heartbeat prod up" not in it.text()
        await it.pilot.press("2")
        await it.until(lambda: "node2 does not answer: its scripts are not shown" in it.text())
        node.other_silent = False
        it.now_ms += RETRY_AFTER_MS
        node.change(node.view)
        await it.until(lambda: "start_prim on node2" in it.text())


async def test_scripts_not_read_once_are_not_held_against_the_node_that_streams() -> None:
    node = two_logs()
    node.scripts_silent = True
    async with console(node) as it:
        await it.pilot.press("2")
        await it.until(lambda: "node1 does not answer" in it.text())
        await it.pilot.press("1")
        await it.until(lambda: "node1 does not answer, follows" in it.text())
        node.scripts_silent = False
        it.now_ms += RETRY_AFTER_MS
        node.change(node.view)
        await it.until(lambda: "does not answer" not in it.text())


async def test_the_other_nodes_log_goes_on_and_stays_when_it_falls_silent() -> None:
    node = two_logs()
    async with console(node) as it:
        await it.pilot.press("right")
        await it.until(lambda: "follows node1" in it.text())
        node.say(log(502, "takes over", node="node2"))
        it.now_ms += FOLLOW_EVERY_MS
        await it.until(lambda: "takes over" in it.text())
        node.other_silent = True
        it.now_ms += FOLLOW_EVERY_MS
        await it.until(lambda: "node2 does not answer, follows" in it.text())
        assert "takes over" in it.text()


async def test_another_daemon_on_the_other_node_is_read_from_the_beginning() -> None:
    node = two_logs()
    async with console(node) as it:
        await it.pilot.press("right")
        await it.until(lambda: "follows node1" in it.text())
        node.lines = [log(7, "a new journal", node="node2")]
        other = node.view.nodes["node2"].model_copy(update={"boot_id": "b9"})
        nodes = node.view.nodes | {"node2": other}
        node.change(node.view.model_copy(update={"nodes": nodes}))
        await it.until(lambda: "a new journal" in it.text())
        assert "follows node1" not in it.text()


async def test_search_finds_and_goes_round() -> None:
    async with console() as it:
        await it.pilot.press("slash", *"heartbeat", "enter")
        await it.until(lambda: "/heartbeat" in it.text())
        assert it.app.dashboard._pane.index == 0
        await it.pilot.press("escape", "v", "v")
        await it.until(lambda: "errors only" in it.text())


async def test_hostile_text_reaches_no_screen_as_an_escape() -> None:
    evil = "\x1b]0;owned\x07\x1b[31mred\x9b1m [/foo] [b]bold[/b] \u202eback\x00"
    sides = {
        "node1": side(
            why={"rule": "P1", "text": evil}, refused=[RefusedVerb(verb="x", reason=evil)]
        ),
        "node2": side(Role.SECOND, damage=evil),
    }
    node = FakeNode(cluster({"web": module(nodes=sides)}))
    node.output = node.output.model_copy(
        update={"output": [node.output.output[0].model_copy(update={"text": evil})]}
    )
    node.lines.append(log(4, evil, run="17-start_prim"))
    async with console(node) as it:
        node.say(log(20, evil, level="E"))
        await it.pilot.press("1", "2", "4", "1")
        await it.until(lambda: "[/foo]" in it.text())
        svg = it.app.export_screenshot()
        await it.open(BY_ID["stop"])
        it.node.refusal = (423, {"code": "busy", "text": evil})
        await it.pilot.press("y")
        await it.until(lambda: bool(len(it.app._notifications)))
        shown = it.text() + svg + "".join(note.message for note in it.app._notifications)
        await it.until(lambda: not it.dialog)
        it.app.dashboard.post_message(it.app.dashboard.OutputWanted("17-start_prim"))
        await it.until(lambda: isinstance(it.app.screen, OutputScreen))
        await it.until(lambda: "[/foo]" in it.text())
        shown += it.text() + it.app.export_screenshot()
        assert not any(bad in shown for bad in ("\x1b", "\x9b", "\x00", "\x07", "\u202e"))


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 16), (160, 50)])
@pytest.mark.parametrize("ascii_only", [False, True])
async def test_every_size_draws(size: tuple[int, int], ascii_only: bool) -> None:
    names = {f"m{number}": module(number) for number in range(1, 4)} | {"web": module(9)}
    async with console(FakeNode(cluster(names)), size, ascii_only=ascii_only) as it:
        assert "m1" in it.text()
        for row in (view.rows for view in it.app.screen.query(RowsView) if view.display):
            assert row is not None
        await it.pilot.press("question_mark")
        await it.until(lambda: isinstance(it.app.screen, HelpScreen))


async def test_too_small_says_so_and_names_the_worst() -> None:
    async with console(size=(80, 24)) as it:
        await it.pilot.resize_terminal(50, 12)
        await it.until(lambda: "This terminal has 50x12" in it.text())
        assert "needs 60x16" in it.text()


async def test_every_view_action_has_a_handler() -> None:
    async with console() as it:
        known = set(it.app.dashboard.handlers) | set(it.app._handlers)
        assert known == {action.id for action in REGISTRY if not action.changes}


async def test_quit_asks_once_while_a_command_runs() -> None:
    async with console() as it:
        await it.open(BY_ID["stop"])
        await it.pilot.press("y")
        await it.until(lambda: bool(it.app.model.running_commands()))
        await it.pilot.press("q")
        await it.pilot.pause(0.1)
        assert it.app.is_running
        assert it.app.return_code is None
        await it.pilot.press("q")
        await it.until(lambda: it.app.return_code == 0)


async def test_a_side_of_an_unheard_node_carries_its_age() -> None:
    view = cluster()
    gone = view.nodes["node2"].model_copy(update={"reachable": False, "seen_ms_ago": 7000})
    view = view.model_copy(update={"nodes": view.nodes | {"node2": gone}})
    async with console(FakeNode(view)) as it:
        assert "SECOND seen 7 s ago" in it.text()
        assert "node1 does not hear node2" in it.text()
        it.app.ask(BY_ID["stop"], "web", "node2")
        await it.pilot.pause(0.1)
        assert not it.dialog
        assert any("not heard" in note.message for note in it.app._notifications)
