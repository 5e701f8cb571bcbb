"""Verify, plan, differences and safety copies in the console."""

from __future__ import annotations

import pytest

from hyperha.api.wire import OperationView, PreflightItem, StreamLine
from hyperha.api.wire_copies import SafetyCopies
from hyperha.domain import Role
from tests.console.fake_node import AT, RESYNC, FakeNode, cluster, module, side
from tests.console.test_flows import Console, console
from tests.console.test_screens import compare
from tests.support.fake_service import KEPT
from tui.actions import BY_ID, key_sheet
from tui.model.alerts import alerts
from tui.screens.copies import AnswerScreen, SafetyScreen

pytestmark = pytest.mark.anyio


def holding(**changes: object) -> FakeNode:
    """A node pair that keeps one safety copy on node2."""
    kept = KEPT.model_copy(update=changes)
    sides = {"node1": side(), "node2": side(Role.SECOND, safety_copies=[kept])}
    node = FakeNode(cluster({"web": module(nodes=sides)}))
    node.copies["safety-copies"] = SafetyCopies(copies=[kept])
    return node


async def opened(it: Console, key: str, kind: type) -> None:
    await it.pilot.press(key)
    await it.until(lambda: isinstance(it.app.screen, kind))
    await it.until(lambda: "asked" not in it.text())
    await it.pilot.pause()


@pytest.mark.parametrize(("key", "name"), [("P", "plan"), ("D", "diff")])
async def test_what_a_resync_would_move_is_one_key_away(key: str, name: str) -> None:
    async with console() as it:
        await opened(it, key, AnswerScreen)
        compare(f"{name}-80x24", it)
        await it.pilot.press("escape")
        await it.until(lambda: it.app.screen is it.app.dashboard)
        assert it.node.sent == []


async def test_what_cannot_be_told_says_why_and_is_asked_again() -> None:
    node = FakeNode()
    plan = node.copies.pop("plan")
    async with console(node) as it:
        await it.pilot.press("P")
        await it.until(lambda: "/v1/modules/web/plan" in it.text())
        node.copies["plan"] = plan
        await it.pilot.press("r")
        await it.until(lambda: "would be made equal" in it.text())


async def test_safety_copies_are_listed_and_restored_into_a_directory() -> None:
    async with console(holding()) as it:
        await opened(it, "S", SafetyScreen)
        await it.until(lambda: KEPT.id in it.text())
        compare("safety-80x24", it)
        await it.pilot.press("enter")
        await it.until(lambda: it.dialog)
        it.now_ms += 301
        await it.pilot.pause()
        compare("dialog-safety-restore", it)
        await it.pilot.press("y")
        await it.until(lambda: "absolute path" in it.text())
        assert it.node.sent == []
        it.app.screen.query_one("#to").focus()
        await it.pilot.press(*"/srv/x", "tab", "y")
        await it.until(lambda: bool(it.node.sent))
        ((_, path, body),) = it.node.sent
        assert path == "/v1/modules/web/actions"
        assert (body["verb"], body["node"]) == ("safety-restore", "node2")
        assert (body["options"]["id"], body["options"]["to"]) == (KEPT.id, "/srv/x")


async def test_deleting_a_safety_copy_wants_the_modules_name() -> None:
    async with console(holding()) as it:
        await opened(it, "S", SafetyScreen)
        await it.until(lambda: KEPT.id in it.text())
        await it.pilot.press("d")
        await it.until(lambda: it.dialog)
        it.now_ms += 301
        await it.pilot.press("y")
        await it.pilot.pause(0.1)
        assert it.dialog
        assert "LOSS: the state that this safety copy holds" in it.text()
        it.app.screen.query_one("#name").focus()
        await it.pilot.press(*"web", "tab", "y")
        await it.until(lambda: bool(it.node.sent))
        body = it.node.sent[0][2]
        assert (body["verb"], body["options"]["id"]) == ("safety-delete", KEPT.id)


async def test_no_safety_copy_is_no_target() -> None:
    node = FakeNode()
    node.copies["safety-copies"] = SafetyCopies(missing={"node2": "node2 does not answer"})
    async with console(node) as it:
        await opened(it, "S", SafetyScreen)
        await it.until(lambda: "node2 does not answer" in it.text())
        await it.pilot.press("enter", "d")
        await it.pilot.pause(0.1)
        assert isinstance(it.app.screen, SafetyScreen)


@pytest.mark.parametrize(("action", "repair"), [("verify", False), ("verify-repair", True)])
async def test_verify_goes_to_the_node_that_runs_the_vm(action: str, repair: bool) -> None:
    async with console() as it:
        it.app.ask(BY_ID[action], "web", "node2")
        await it.until(lambda: it.dialog)
        it.now_ms += 301
        await it.pilot.press("y")
        await it.until(lambda: bool(it.node.sent))
        body = it.node.sent[0][2]
        assert (body["verb"], body["node"]) == ("verify", "node1")
        assert body["options"]["repair"] is repair


async def test_a_verification_shows_how_far_it_is_and_what_it_found() -> None:
    async with console() as it:
        await it.open(BY_ID["verify"])
        await it.pilot.press("y")
        await it.until(lambda: bool(it.app.model.running_commands()))
        view = OperationView(
            id="node1-0001",
            module="web",
            node="node1",
            verb="verify",
            by="root",
            state="running",
            text="",
            started=AT,
            done_bytes=430 << 20,
            total_bytes=1000 << 20,
        )
        it.node._tell(StreamLine(type="operation", seq=11, at=AT, operation=view))
        await it.until(lambda: "43 % of 1.0 GiB" in it.text() or "43 % of 1000 MiB" in it.text())
        text = "compared 4 files and directories with 1.0 GiB: 1 block of 64 KiB differs in disk"
        it.node.end("node1-0001", "failed", text)
        await it.until(lambda: "failed: verify web on node1" in it.text())
        assert any("differs in disk" in note.message for note in it.app._notifications)


async def test_copies_that_are_lost_or_expire_are_alerts() -> None:
    for changes, expected in (
        ({}, ""),
        ({"expires": "2026-11-23T12:00:00Z"}, "is deleted at 2026-11-23 12:00 UTC"),
        ({"state": "lost", "text": "no room", "expires": ""}, "is lost: no room"),
    ):
        async with console(holding(**changes)) as it:
            texts = [one.text for one in alerts(it.app.model, it.now_ms)]
            found = [text for text in texts if "safety copy" in text]
            assert bool(found) == bool(expected), found
            assert expected in "".join(found)


async def test_a_resync_without_a_way_back_says_so() -> None:
    for back in (False, True):
        resync = RESYNC.model_copy(update={"safety_copy": back})
        sides = {"node1": side(Role.ALONE), "node2": side(Role.SECOND, resync=resync)}
        async with console(FakeNode(cluster({"web": module(nodes=sides)}))) as it:
            texts = [one.text for one in alerts(it.app.model, it.now_ms)]
            assert ("web on node2: no way back during this resync" in texts) is not back


async def test_the_facts_name_the_lan_that_carries_the_stream() -> None:
    """D12: an operator sees that replication has moved, and why in the preflight reason."""
    sides = {"node1": side(replication_lan="prod"), "node2": side(Role.SECOND)}
    left = PreflightItem(
        code="replication-lan", node="node1", text="replication goes over prod", fix="Look at repl."
    )
    view = module(nodes=sides, preflight=[left])
    async with console(FakeNode(cluster({"web": view}))) as it:
        await it.pilot.press("4")
        await it.until(lambda: "replication over prod" in it.text())
        assert "node1: replication goes over prod Look at repl." in it.text()


def test_the_sheet_names_the_keys_of_copies() -> None:
    for line in (
        "| `V` | Verify the copies |",
        "| `P` | Plan of a resync |",
        "| `S, then d` | Delete safety copy |",
    ):
        assert line in key_sheet()
