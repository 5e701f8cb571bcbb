"""Checkers: failures in a row, grace, suspension, freeze, and the kinds (K2, K3)."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from hyperha.checkers.kinds import Answer, make_check
from hyperha.checkers.schedule import CheckerSchedule, Resource, VerdictGiven
from hyperha.config import Checker
from hyperha.domain import ResourceState, Role
from hyperha.errors import ConfigError

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs Linux"),
    pytest.mark.anyio,
]


class Bench:
    """A schedule whose check answers what the test says, step by step."""

    def __init__(self, **more: object) -> None:
        values = {"name": "VM1", "kind": "vm", "interval_s": 0.01, "grace_s": 0, **more}
        self.checker = Checker(**values)  # type: ignore[arg-type]
        self.ok = True
        self.now_s = 1000.0
        self.asked = 0
        self.states: list[Resource] = []
        self.verdicts: list[VerdictGiven] = []
        self._turn = asyncio.Event()
        self.schedule = CheckerSchedule(
            [(self.checker, self._check)],
            on_state=self.states.append,
            on_verdict=self.verdicts.append,
            clock_s=lambda: self.now_s,
        )

    async def _check(self) -> Answer:
        self.asked += 1
        self._turn.set()
        return Answer(self.ok, "" if self.ok else "dead")

    async def checks(self, count: int) -> None:
        """Let that many checks begin and one more, so that those are judged."""
        until = self.asked + count + 1
        async with asyncio.timeout(20):
            while self.asked < until:
                self._turn.clear()
                await self._turn.wait()

    @property
    def state(self) -> ResourceState:
        return self.schedule.resources()[0].state


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench(failures=3)
    yield made
    await made.schedule.stop()


async def test_a_verdict_needs_failures_in_a_row(bench: Bench) -> None:
    bench.schedule.set_role(Role.PRIM, 7)
    await bench.checks(2)
    assert bench.state is ResourceState.UP
    bench.ok = False
    await bench.checks(1)
    assert bench.verdicts == []
    bench.ok = True
    await bench.checks(2)
    bench.ok = False
    await bench.checks(8)
    assert [(v.run, v.text, v.checker.action) for v in bench.verdicts] == [(7, "dead", "restart")]
    assert bench.state is ResourceState.DOWN
    assert [s.state for s in bench.states][:2] == [ResourceState.UP, ResourceState.DOWN]


async def test_grace_lasts_until_first_seen_up() -> None:
    bench = Bench(failures=1, grace_s=120)
    try:
        bench.ok = False
        bench.schedule.set_role(Role.ALONE, 1)
        await bench.checks(5)
        assert bench.verdicts == []
        assert bench.state is ResourceState.INIT
        bench.now_s += 121
        await bench.checks(2)
        assert len(bench.verdicts) == 1
        # A new run has its grace again; once seen up, grace is over.
        bench.schedule.set_role(Role.ALONE, 2)
        await bench.checks(3)
        assert len(bench.verdicts) == 1
        bench.ok = True
        await bench.checks(2)
        bench.ok = False
        await bench.checks(2)
        assert [v.run for v in bench.verdicts] == [1, 2]
    finally:
        await bench.schedule.stop()


async def test_a_frozen_module_is_not_judged(bench: Bench) -> None:
    bench.checker = bench.checker.model_copy(update={"grace_s": 60})
    bench.schedule.set_role(Role.PRIM, 1)
    await bench.checks(1)
    bench.schedule.freeze()
    bench.ok = False
    await bench.checks(8)
    assert bench.verdicts == [], "writes are held by us (K3)"
    bench.schedule.release()
    bench.ok = True
    await bench.checks(2)
    bench.ok = False
    await bench.checks(5)
    assert len(bench.verdicts) == 1


async def test_release_gives_a_full_grace() -> None:
    bench = Bench(failures=1, grace_s=60)
    try:
        bench.schedule.set_role(Role.PRIM, 1)
        await bench.checks(1)
        bench.schedule.freeze()
        bench.ok = False
        await bench.checks(2)
        bench.schedule.release()
        await bench.checks(3)
        assert bench.verdicts == []
        bench.now_s += 61
        await bench.checks(2)
        assert len(bench.verdicts) == 1
    finally:
        await bench.schedule.stop()


async def test_a_suspended_checker_looks_and_says_nothing() -> None:
    bench = Bench(failures=1, grace_s=60)
    try:
        bench.schedule.set_role(Role.PRIM, 1)
        await bench.checks(1)
        bench.schedule.suspend("vm.VM1")
        bench.ok = False
        await bench.checks(3)
        assert bench.state is ResourceState.DOWN
        assert bench.verdicts == []
        bench.schedule.resume(None)
        await bench.checks(3)
        assert bench.verdicts == [], "found down at the end: its grace first"
        bench.now_s += 61
        await bench.checks(2)
        assert len(bench.verdicts) == 1
    finally:
        await bench.schedule.stop()


@pytest.mark.parametrize(
    ("when", "roles"),
    [
        ("pre", set(Role) - {Role.STOP}),
        ("prim", {Role.PRIM, Role.ALONE}),
        ("second", {Role.SECOND}),
        ("both", {Role.PRIM, Role.ALONE, Role.SECOND}),
    ],
)
async def test_checkers_run_only_where_they_should(when: str, roles: set[Role]) -> None:
    for role in Role:
        bench = Bench(when=when)
        bench.schedule.set_role(role, 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (bench.asked > 0) is (role in roles), role
        assert (bench.state is ResourceState.UNKNOWN) is (role not in roles)
        await bench.schedule.stop()


async def test_a_check_that_hangs_or_breaks_is_down() -> None:
    verdicts: list[VerdictGiven] = []
    given = asyncio.Event()

    def note(verdict: VerdictGiven) -> None:
        verdicts.append(verdict)
        given.set()

    async def hang() -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    async def broken() -> Answer:
        raise RuntimeError("no such thing")

    for check, says in ((hang, "no answer within 0.05 s"), (broken, "no such thing")):
        checker = Checker(name="x", kind="vm", timeout_s=0.05, grace_s=0, failures=1)
        schedule = CheckerSchedule([(checker, check)], on_state=lambda _: None, on_verdict=note)
        given.clear()
        schedule.set_role(Role.PRIM, 1)
        await asyncio.wait_for(given.wait(), 10)
        assert says in verdicts[-1].text
        await schedule.stop()


async def _answer(**values: object) -> Answer:
    async def vm() -> Answer:
        return Answer(True, "the driver")

    check = make_check(
        Checker(name="x", **values),  # type: ignore[arg-type]
        vm=vm,
        module=lambda name: Answer(name == "DB", f"{name} was asked for"),
        place=None,
        environment=lambda: {"HYPERHA_MODULE": "VM1"},
        directory="/",
    )
    return await check()


async def test_the_kinds() -> None:
    assert (await _answer(kind="vm")).text == "the driver"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert (await _answer(kind="tcp", port=port)).ok
    refused = await _answer(kind="tcp", port=port)
    assert not refused.ok
    assert "refused" in refused.text
    assert (await _answer(kind="custom", command="test $HYPERHA_MODULE = VM1")).ok
    failed = await _answer(kind="custom", command=("/bin/sh", "-c", "echo broken; exit 2"))
    assert not failed.ok
    assert "broken" in failed.text
    assert not (await _answer(kind="custom", command=("/no/such",))).ok
    own = await _answer(kind="process", process="test_checkers.py")
    missing = await _answer(kind="process", process=f"no-such-{os.getpid()}-{id(own)}")
    assert not missing.ok
    with pytest.raises(ConfigError, match="a key of kind 'service' is missing"):
        await _answer(kind="service")


async def test_the_kinds_that_look_around_the_vm() -> None:
    assert (await _answer(kind="ip", address="127.0.0.1")).text == "127.0.0.1 is on lo"
    assert not (await _answer(kind="ip", address="192.0.2.1")).ok
    assert (await _answer(kind="interface", interface="lo")).ok
    assert (await _answer(kind="interface", interface="lan9")).text == "there is no interface lan9"
    assert (await _answer(kind="module", module="DB")).ok
    assert (await _answer(kind="module", module="WEB")).text == "WEB was asked for"
    assert (await _answer(kind="ping", host="localhost")).ok
    silent = await _answer(kind="ping", host="2001:db8::1", timeout_s=0.5)
    assert not silent.ok
    assert "does not answer" in silent.text
    assert not (await _answer(kind="service", service="no-such-service")).ok
