"""Checkers of a node's own network: what they see; the other node takes over (A22, A23)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.pair import APPLICATION, PairOptions
from tests.acceptance.test_checker_kinds import checked, checker
from tests.acceptance.test_network import network_pair

pytestmark = [pytest.mark.anyio, pytest.mark.netns]
OUTSIDE = 1
"""The LAN of the observer, which is no path between the nodes."""


def waits_for(kind: str, **fields: object) -> PairOptions:
    return checked(checker("outside", kind, action="wait", when="pre", **fields))


async def _moves_and_comes_back(tmp_path: Path, options: PairOptions) -> None:
    """node1's cable is pulled: it waits, the other one runs; plugged in, it follows by itself."""
    async with network_pair(tmp_path, 1, "run", options) as pair:
        pair.network.cut(OUTSIDE, "node1")
        await pair.roles(30, node1="WAIT", node2="ALONE")
        assert not pair.processes("node1", APPLICATION)
        assert "outside" in (await pair.side("node1")).why.text
        await pair.more_orders()
        pair.network.mend(OUTSIDE, "node1")
        await pair.roles(40, node1="SECOND", node2="PRIM")
        await pair.equal_and_nothing_lost()


async def test_a22_a_cable_is_pulled_and_put_back(tmp_path: Path) -> None:
    await _moves_and_comes_back(tmp_path, waits_for("interface", interface=f"lan{OUTSIDE}"))


async def test_a23_what_is_pinged_is_reached_no_more(tmp_path: Path) -> None:
    await _moves_and_comes_back(tmp_path, waits_for("ping", host=f"10.213.{OUTSIDE}.254"))
