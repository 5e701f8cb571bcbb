"""The failover drill: what a careful operator would try, on two real nodes, with a stop-watch.

Every step is checked against what the observer outside the cluster has heard. One failed step
fails the drill; the table says which, with times.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from hyperha.client.node_client import NodeClient
from hyperha.demo.cluster import MODULE, NODES, DemoCluster, until
from hyperha.demo.observer import Observer
from hyperha.errors import FailedError, HyperhaError


@dataclass(slots=True)
class StepResult:
    """One line of the table."""

    name: str
    passed: bool
    seconds: float
    note: str

    def as_json(self) -> dict[str, Any]:
        """For drill.json."""
        return {
            "step": self.name,
            "passed": self.passed,
            "seconds": round(self.seconds, 3),
            "note": self.note,
        }


@dataclass(slots=True)
class DrillReport:
    """One drill."""

    steps: list[StepResult] = field(default_factory=list)
    acknowledged: int = 0
    lost: int = 0
    start_prim_s: float | None = None
    first_order_s: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every step passed and nothing acknowledged is missing."""
        return bool(self.steps) and all(step.passed for step in self.steps) and self.lost == 0

    def as_json(self) -> dict[str, Any]:
        """For drill.json."""
        return {
            "passed": self.passed,
            "acknowledged_orders": self.acknowledged,
            "acknowledged_orders_lost": self.lost,
            "kill_to_start_prim_s": self.start_prim_s,
            "kill_to_first_order_s": self.first_order_s,
            "steps": [step.as_json() for step in self.steps],
        }


class Drill:
    """Runs once on a fresh cluster."""

    def __init__(
        self, cluster: DemoCluster, observer: Observer, say: Callable[[StepResult], None]
    ) -> None:
        self._cluster = cluster
        self._observer = observer
        self._say = say
        self.report = DrillReport()

    async def run(self) -> DrillReport:
        """All steps in order; ends at the first that fails."""
        steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("start both nodes, PRIM and SECOND", self._bring_up),
            ("orders are taken", self._orders),
            ("kill every process of node1 (primary)", self._kill_primary),
            ("every acknowledged order is there", self._check_numbers),
            ("node1 returns and is made equal under load", self._return),
            ("swap: the VM moves to node1", self._swap),
            ("clean stop of node1: node2 goes on", self._stop_primary),
            ("node1 starts again and follows", self._start_again),
            ("stop everything", self._stop_all),
            ("database intact, no order missing", self._check_database),
            ("start everything again", self._start_all),
        ]
        for name, step in steps:
            begun = time.monotonic()
            try:
                note = await step()
                result = StepResult(name, True, time.monotonic() - begun, note)
            except (HyperhaError, OSError, sqlite3.Error) as problem:
                result = StepResult(name, False, time.monotonic() - begun, str(problem))
            if result.passed and self._observer.faults:
                result = StepResult(name, False, result.seconds, self._observer.faults[0])
            self.report.steps.append(result)
            self._say(result)
            if not result.passed:
                break
        self.report.acknowledged = self._observer.count
        return self.report

    async def _bring_up(self) -> str:
        await asyncio.gather(*(self._cluster.start(node) for node in NODES))
        await self._cluster.act("node1", "prim")
        await self._cluster.roles(30, node1="PRIM", node2="SECOND")
        return ""

    async def _more_orders(self, count: int, limit_s: float) -> None:
        wanted = self._observer.count + count

        async def enough() -> bool:
            return self._observer.count >= wanted

        await until(enough, limit_s, f"{count} more orders")

    async def _orders(self) -> str:
        begun, before = time.monotonic(), self._observer.count
        await self._more_orders(200, 20)
        rate = (self._observer.count - before) / (time.monotonic() - begun)
        return f"{rate:.0f} orders/s, each on both nodes"

    async def _kill_primary(self) -> str:
        begins = asyncio.ensure_future(self._start_prim_begins("node2"))
        await asyncio.sleep(0.2)
        before = self._observer.highest
        killed = time.monotonic()
        await self._cluster.kill("node1")

        async def again() -> bool:
            return self._observer.first_after(killed, "node2") is not None

        try:
            await until(again, 20, "an order from node2")
        finally:
            began = begins.result() if begins.done() else None
            begins.cancel()
        first = self._observer.first_after(killed, "node2")
        assert first is not None
        self.report.first_order_s = first.at_s - killed
        self.report.start_prim_s = began - killed if began is not None else None
        if first.number <= before:
            raise FailedError(f"order {first.number} was given out again after {before}")
        await self._cluster.roles(10, node2="ALONE")
        started = f"{self.report.start_prim_s:.2f}" if self.report.start_prim_s else "?"
        return f"start_prim begun after {started} s, first order {self.report.first_order_s:.2f} s"

    async def _start_prim_begins(self, node: str) -> float:
        async with NodeClient(self._cluster.target(node)) as client:
            async for line in client.stream():
                log = line.log
                if log is not None and log.source == "start_prim" and log.text == "begins":
                    return time.monotonic()
        raise FailedError("the stream ended")

    async def _check_numbers(self) -> str:
        """By number: the application counts on from the highest order that it found."""
        if self._observer.faults:
            raise FailedError(self._observer.faults[0])
        numbers = self._observer.numbers()
        return f"{len(numbers)} acknowledged, highest {max(numbers)}"

    async def _return(self) -> str:
        before = self._observer.count
        await self._cluster.start("node1")
        await self._cluster.roles(40, node1="SECOND", node2="PRIM")
        took = self._observer.count - before
        if took < 10:
            raise FailedError(f"only {took} orders were taken during the resync")
        return f"{took} orders meanwhile"

    async def _swap(self) -> str:
        begun = time.monotonic()
        await self._cluster.act("node2", "swap")
        await self._cluster.roles(30, node1="PRIM", node2="SECOND")
        await self._more_orders(20, 20)
        return f"longest pause {self._observer.longest_pause_s(begun):.2f} s"

    async def _stop_primary(self) -> str:
        begun = time.monotonic()
        await self._cluster.act("node1", "stop")
        await self._cluster.roles(30, node1="STOP", node2="ALONE")
        await self._more_orders(20, 20)
        return f"longest pause {self._observer.longest_pause_s(begun):.2f} s"

    async def _start_again(self) -> str:
        await self._cluster.act("node1", "start")
        await self._cluster.roles(40, node1="SECOND", node2="PRIM")
        return ""

    async def _stop_all(self) -> str:
        await self._cluster.act("node1", "stop")
        await self._cluster.act("node2", "stop")
        await self._cluster.roles(10, node1="STOP", node2="STOP")
        return ""

    async def _check_database(self) -> str:
        path = self._cluster.folder("node2") / "orders.db"
        found, state = await asyncio.to_thread(_read_database, str(path))
        missing = self._observer.numbers() - found
        self.report.lost = len(missing)
        if state != "ok":
            raise FailedError(f"integrity_check: {state}")
        if missing:
            raise FailedError(f"{len(missing)} acknowledged orders are missing: {min(missing)} ...")
        return f"{len(found)} orders in the database, 0 lost"

    async def _start_all(self) -> str:
        await asyncio.gather(*(self._cluster.act(node, "start") for node in reversed(NODES)))
        side = await self._cluster.side("node1")
        primary = "node1" if side.role.runs_vm else "node2"
        other = "node2" if primary == "node1" else "node1"
        await self._cluster.roles(40, **{primary: "PRIM", other: "SECOND"})
        await self._more_orders(20, 20)
        return f"{MODULE} runs on {primary}"


def _read_database(path: str) -> tuple[set[int], str]:
    database = sqlite3.connect(path)
    try:
        state = str(database.execute("PRAGMA integrity_check").fetchone()[0])
        found = {int(row[0]) for row in database.execute("SELECT number FROM orders")}
    finally:
        database.close()
    return found, state
