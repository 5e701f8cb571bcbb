"""Cables that are cut, between two nodes in network namespaces: who continues, what is held."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hyperha.demo.cluster import MODULE, NODES
from hyperha.demo.observer import Observer
from hyperha.security.initialise import LanPlan
from tests.acceptance.pair import (
    APPLICATION,
    FAST_TIMING,
    Pair,
    PairOptions,
    read_orders,
    until,
)
from tests.support.network import Network

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


class NetworkPair(Pair):
    """Two nodes in namespaces."""

    def __init__(
        self,
        directory: Path,
        observer: Observer,
        network: Network,
        isolation: str,
        options: PairOptions | None = None,
    ):
        super().__init__(directory, 9010, observer, options or PairOptions())
        self.network = network
        self.isolation = isolation

    def _check_ports(self) -> None:
        """The namespaces are new: nobody listens in them."""

    def lans(self) -> tuple[LanPlan, ...]:
        """As many as the network has, the observer's not among them."""
        return tuple(
            LanPlan(f"lan{lan}", {node: self.network.address(lan, node) for node in NODES})
            for lan in range(self.network.lans)
        )

    def launcher(self, node: str) -> list[str]:
        """Into the node's network, but not into another mount namespace (M6)."""
        return ["nsenter", f"--net=/run/netns/{self.network.namespace(node)}"]

    async def carried_by(self, lan: str) -> None:
        """Wait until the primary's stream goes over a LAN, as the node's state tells."""

        async def is_so() -> bool:
            return (await self.side("node1")).replication_lan == lan

        await until(is_so, 10, f"replication over {lan}")

    def cut_all(self) -> None:
        """Every cable between the nodes."""
        for lan in range(self.network.lans):
            self.network.cut(lan, "node1")

    def mend_all(self) -> None:
        """All back."""
        for lan in range(self.network.lans):
            self.network.mend(lan, "node1")


@asynccontextmanager
async def network_pair(
    directory: Path, lans: int, isolation: str, options: PairOptions | None = None
) -> AsyncIterator[NetworkPair]:
    network = Network(lans)
    try:
        observer = Observer(network.listening())
        try:
            pair = NetworkPair(directory, observer, network, isolation, options)
            try:
                await pair.create(temporary=False)
                await pair.protected()
                yield pair
            except BaseException:
                for node in NODES:
                    for line in pair.lines(node)[-60:]:
                        print(node, line)
                raise
            finally:
                for node in NODES:
                    await asyncio.shield(pair.kill(node))
                left = await asyncio.shield(pair.close())
                left = [one for one in left if one.startswith("process")]
                assert not left, left
        finally:
            observer.close()
    finally:
        network.close()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., object]:
    def make_one(
        lans: int = 1, isolation: str = "run", options: PairOptions | None = None
    ) -> object:
        return network_pair(tmp_path, lans, isolation, options)

    return make_one


async def test_a17_node_lost_without_a_word(make):
    """A17: links down and everything killed: nobody resets a connection; elsewhere within 4 s."""
    async with make() as pair:
        begins = asyncio.ensure_future(pair.start_prim_begins("node2"))
        await asyncio.sleep(0.2)
        lost = time.monotonic()
        pair.cut_all()
        await pair.kill("node1")
        began = await asyncio.wait_for(begins, 15)
        print(f"node lost to start_prim: {began - lost:.2f} s")
        assert began - lost < 4.0
        await pair.roles(10, node2="ALONE")
        pair.mend_all()
        await pair.start("node1")
        await pair.roles(40, node1="SECOND", node2="PRIM")
        await pair.equal_and_nothing_lost()


async def test_secondary_lost_without_a_word(make):
    """D1, L3': writes are held for at most stall_limit + 1 s, then the primary goes on alone."""
    async with make() as pair:
        lost = time.monotonic()
        pair.cut_all()
        await pair.kill("node2")
        await pair.roles(10, node1="ALONE")
        await pair.more_orders()
        pause = pair.observer.longest_pause_s(lost)
        print(f"longest pause {pause:.2f} s")
        assert pause < 1.6, "stall_limit 0.6 s + 1 s"
        pair.mend_all()
        await pair.start("node2")
        await pair.roles(40, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()


PATIENT = PairOptions(timing={**FAST_TIMING, "suspect_ms": 800, "stall_limit_ms": 1600,
                              "takeover_wait_ms": 2200})  # fmt: skip
"""A machine that is busy for a moment must not look like a node that is gone."""


async def test_b17_a42_one_of_two_networks_is_cut(make):
    """B17, D12, T4: the pair stays PRIM and SECOND, whichever cable it is, and orders go on; the
    stream moves to the other LAN: nobody asks for a proof, and nothing is resynced."""
    async with make(lans=2, options=PATIENT) as pair:
        for lan in (1, 0):
            pair.network.cut(lan, "node1")
            await asyncio.sleep(2.0)
            await pair.roles(40, node1="PRIM", node2="SECOND")
            await pair.carried_by(f"lan{1 - lan}")
            await pair.more_orders()
            pair.network.mend(lan, "node1")
            await asyncio.sleep(0.5)
        await pair.log_has("node1", "goes on over lan1")
        said = "".join(pair.lines("node1") + pair.lines("node2"))
        assert "P8" not in said, "never a takeover"
        assert said.count('"D3"') == 1, "alone only before there was a second copy"
        assert said.count('"R13"') == 2, "one resync, the first"
        await pair.equal_and_nothing_lost()


async def test_the_last_cable_is_cut_under_primary(make):
    """W6': the primary continues, the secondary waits; healed, it follows again."""
    async with make(isolation="primary") as pair:
        pair.cut_all()
        await pair.roles(10, node1="ALONE", node2="WAIT")
        await pair.more_orders()
        pair.mend_all()
        await pair.roles(40, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()


async def test_the_last_cable_is_cut_under_hold(make):
    """W6': nobody continues; healed, everything goes on as before."""
    async with make(isolation="hold") as pair:
        pair.cut_all()
        await asyncio.sleep(2)
        count = pair.observer.count
        await asyncio.sleep(1)
        assert pair.observer.count == count, "an order was acknowledged while writes were held"
        assert not (await pair.side("node2")).role.runs_vm
        pair.mend_all()
        await pair.roles(40, node1="PRIM", node2="SECOND")
        await pair.more_orders()
        await pair.equal_and_nothing_lost()


async def test_b16_a18_both_run_and_one_gives_way(make, tmp_path):
    """R16: nobody commands anything. What only the one that gives way has acknowledged is in its
    safety copy, and can be had again."""
    async with make() as pair:
        pair.cut_all()
        await pair.roles(10, node1="ALONE", node2="ALONE")
        running = pair.one("node1", APPLICATION)
        await asyncio.sleep(2)
        pair.mend_all()
        reason = "node1 ran it before they parted"
        await pair.log_has("node2", f"this node gives way to node1: {reason}", 20)
        await pair.log_has("node1", f"and gives way: {reason}", 20)
        await pair.roles(60, node1="PRIM", node2="SECOND")
        assert pair.one("node1", APPLICATION) == running
        status, said = await pair.cli("node2", "safety", MODULE, "list")
        assert status == 0, said
        line = next(one for one in said.splitlines() if "kept" in one)
        name = next(word for word in line.split() if word.startswith("20"))
        place = tmp_path / "restored"
        status, said = await pair.cli(
            "node2", "safety", MODULE, "restore", name, "--to", str(place)
        )
        assert status == 0, said
        for node in ("node2", "node1"):
            await pair.act(node, "stop")
        kept, state = await asyncio.to_thread(read_orders, place / "orders.db")
        assert state == "ok"
        found, state = await asyncio.to_thread(read_orders, pair.folder("node1") / "orders.db")
        assert state == "ok"
        assert pair.observer.numbers() <= kept | found


async def test_a_firewall_between_the_nodes_is_no_reason_to_take_over(make):
    """W8: the other host pings, its ports say nothing: it may well run. The primary continues."""
    async with make() as pair:
        table = pair.network.filter(0, "node1")
        await pair.roles(15, node1="ALONE", node2="WAIT")
        await pair.log_has("node2", "a filter lies between the nodes")
        await pair.more_orders()
        pair.network.unfilter("node1", table)
        await pair.roles(40, node1="PRIM", node2="SECOND")
        await pair.equal_and_nothing_lost()
