"""Whole screens as text, compared with files. HYPERHA_REWRITE=1 writes them anew: read the diff."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hyperha.api.wire import Why
from hyperha.client.link import LinkState
from hyperha.domain import DataState, Readiness, Role
from tests.console.fake_node import RESYNC, FakeNode, cluster, module, side
from tests.console.test_flows import Console, console
from tui.actions import BY_ID

pytestmark = pytest.mark.anyio
GOLDEN = Path(__file__).parent / "golden"


def compare(name: str, it: Console) -> None:
    text = "\n".join(line.rstrip() for line in it.text().splitlines()) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("HYPERHA_REWRITE") == "1":
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


def mixed() -> FakeNode:
    """Every role once."""
    resync = Why(rule="R6", text="runs the VM; node2 is being made equal and cannot take over yet")
    behind = Why(rule="R6", text="is being made equal to node1")
    db = {
        "node1": side(Role.ALONE, resync=RESYNC, why=resync),
        "node2": side(
            Role.SECOND,
            readiness=Readiness.TRANSIENT,
            data=DataState.INCONSISTENT,
            why=behind,
        ),
    }
    mail = {
        "node1": side(Role.STOP, why=Why(rule="", text="stopped by anna")),
        "node2": side(
            Role.WAIT,
            readiness=Readiness.NOT_READY,
            why=Why(rule="R1", text="node1 has the better copy"),
        ),
    }
    modules = {
        "web": module(1),
        "db": module(2, nodes=db, redundant=False),
        "mail": module(3, nodes=mail, redundant=False),
    }
    return FakeNode(cluster(modules))


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
@pytest.mark.parametrize("ascii_only", [False, True], ids=["unicode", "ascii"])
async def test_every_role_as_tiles(size: tuple[int, int], ascii_only: bool) -> None:
    async with console(mixed(), size, ascii_only=ascii_only) as it:
        kind = "ascii" if ascii_only else "unicode"
        await it.pilot.press("down")
        await it.until(lambda: "no line yet" in it.text())
        compare(f"tiles-{size[0]}x{size[1]}-{kind}", it)


async def test_every_role_as_a_table() -> None:
    async with console(mixed()) as it:
        await it.pilot.press("t")
        compare("table-80x24", it)


async def test_a_lost_link() -> None:
    async with console(mixed()) as it:
        it.node.cut()
        await it.until(lambda: it.app.model.link.state is LinkState.LOST)
        it.app.workers.cancel_group(it.app, "session")
        it.now_ms += 12_000
        await it.until(lambda: "LOST 12 s" in it.text())
        compare("lost-80x24", it)


@pytest.mark.parametrize("verb", ["start", "stop", "forcestop"])
async def test_a_dialog_of_each_level(verb: str) -> None:
    async with console() as it:
        await it.open(BY_ID[verb])
        compare(f"dialog-{verb}", it)
