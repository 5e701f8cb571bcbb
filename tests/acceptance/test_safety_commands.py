"""What a resync overwrote is listed, restored and deleted by command, on a started module and a
stopped one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperha.api.wire_copies import SafetyCopyView
from hyperha.client.node_client import NodeClient
from hyperha.demo.cluster import MODULE
from tests.acceptance.pair import Pair, PairOptions, read_orders

KEEPING = PairOptions(module={"[stop]\n": '[safety_copy]\nmode = "required"\n\n[stop]\n'})
pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("options", [KEEPING], ids=["required"])]


async def listed(pair: Pair, node: str) -> list[SafetyCopyView]:
    async with NodeClient(pair.target(node)) as client:
        found = await client.safety_copies(MODULE)
    print(found)
    assert found.missing == {}
    return found.copies


def has_orders_of(place: Path, numbers: set[int]) -> None:
    found, state = read_orders(place / "orders.db")
    assert state == "ok"
    assert numbers <= found


async def test_a_former_state_is_listed_restored_and_deleted(
    protected: Pair, tmp_path: Path
) -> None:
    pair = protected
    assert await listed(pair, "node1") == []
    await pair.act("node2", "stop")
    before = set(pair.observer.numbers())
    await pair.roles(10, node1="ALONE", node2="STOP")
    await pair.more_orders(20)
    await pair.act("node2", "start")
    await pair.roles(40, node1="PRIM", node2="SECOND")
    (kept,) = await listed(pair, "node1")
    assert (kept.node, kept.state, kept.required) == ("node2", "kept", True)
    assert kept.expires > kept.opened
    # Asked of either node: it is done where the copy is.
    place = tmp_path / "restored"
    arguments = ("safety", MODULE, "restore", kept.id, "--to", str(place))
    status, said = await pair.cli("node1", *arguments)
    assert status == 0, said
    has_orders_of(place, {min(before)})
    view = await pair.command("node1", "safety-restore", id=kept.id, to=str(place))
    assert view.state == "failed", "a directory that is not empty is not written into"
    assert "empty" in view.text
    status, said = await pair.cli("node2", "state", "-v")
    assert f"safety copy {kept.id} kept" in said
    # Of a stopped module, too; looking into the folder does not keep it from being covered (M6).
    await pair.act("node2", "stop")
    (again,) = await listed(pair, "node1")
    assert again.id == kept.id
    other = tmp_path / "other"
    view = await pair.command("node2", "safety-restore", id=kept.id, to=str(other))
    assert view.state == "done", view.text
    has_orders_of(other, {min(before)})
    view = await pair.command("node2", "safety-delete", id="20990101-000000-ffff")
    assert view.state == "failed"
    assert kept.id in view.text
    status, said = await pair.cli("node1", "safety", MODULE, "delete", kept.id)
    assert status == 0, said
    assert await listed(pair, "node2") == []
    await pair.act("node2", "start")
    await pair.roles(40, node1="PRIM", node2="SECOND")
    await pair.equal_and_nothing_lost()
