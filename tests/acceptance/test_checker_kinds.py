"""Checkers of every kind on a real pair: what they see, and what their actions lead to."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from hyperha.demo.cluster import NODES
from tests.acceptance.pair import APPLICATION, Pair, PairOptions, running_pair
from tests.acceptance.test_checking import QUICK, another_application

pytestmark = pytest.mark.anyio


def checked(extra: str) -> PairOptions:
    """A pair whose module has one checker more."""
    return PairOptions(module={"[stop]\n": f"{extra}\n[stop]\n", **QUICK.module})


def checker(name: str, kind: str, **fields: object) -> str:
    """As it stands in the module's file."""
    lines = [f'[[checker]]\nname = "{name}"\nkind = "{kind}"']
    times = {"interval_s": 0.3, "timeout_s": 1, "failures": 2}
    for key, value in {**times, **fields}.items():
        text = str(value) if isinstance(value, int | float) else f'"{value}"'
        if isinstance(value, list):
            text = "[" + ", ".join(f'"{one}"' for one in value) + "]"
        lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"


class Listener:
    """A service that somebody else runs."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self.port = 0
        self.open()

    def open(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        self._socket.listen(50)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


async def state_of(pair: Pair, node: str, name: str) -> str:
    return next(c.state for c in (await pair.side(node)).checkers if c.name == name)


async def test_a19_the_process_ends_and_is_started_again(tmp_path: Path) -> None:
    """restart: on the same node, three times in the window; the fourth moves it (P5)."""
    async with running_pair(tmp_path, QUICK) as pair:
        await pair.protected()
        for used in range(1, 4):
            former = pair.one("node1", APPLICATION)
            pair.signal("node1", APPLICATION, signal.SIGKILL)
            await another_application(pair, "node1", former, 15)
            await pair.roles(10, node1="PRIM", node2="SECOND")
            assert await pair.restarts_used("node1") == used
        pair.signal("node1", APPLICATION, signal.SIGKILL)
        await pair.roles(20, node1="STOP", node2="ALONE")
        await pair.nothing_lost()


async def test_a19_a_processs_end_moves_it(tmp_path: Path) -> None:
    """stopstart: over to the other node at once; back as its follower."""
    options = PairOptions(module={'action = "restart"': 'action = "stopstart"'})
    async with running_pair(tmp_path, options) as pair:
        await pair.protected()
        pair.signal("node1", APPLICATION, signal.SIGKILL)
        await pair.roles(40, node1="SECOND", node2="PRIM")
        await pair.more_orders()
        await pair.equal_and_nothing_lost()


@pytest.mark.parametrize("action", ["restart", "stopstart"])
async def test_a20_a_port_that_does_not_answer(tmp_path: Path, action: str) -> None:
    """The listener stops: the same ends as for the process."""
    listener = Listener()
    extra = checker("port", "tcp", host="127.0.0.1", port=listener.port, action=action)
    try:
        async with running_pair(tmp_path, checked(extra)) as pair:
            await pair.protected()
            await pair.eventually(lambda: is_state(pair, "port", "up"), 10, "the port to be up")
            former = pair.one("node1", APPLICATION)
            listener.close()
            if action == "stopstart":
                await pair.roles(40, node2="PRIM")
            else:
                await another_application(pair, "node1", former, 15)
            listener.open()
            await pair.redundant_again(40)
            await pair.equal_and_nothing_lost()
    finally:
        listener.close()


async def is_state(pair: Pair, name: str, wanted: str) -> bool:
    return await state_of(pair, "node1", name) == wanted


async def test_a21_an_external_service_is_waited_for(tmp_path: Path) -> None:
    """pre and wait: down, the module waits on both nodes; up, it wakes by itself; the fourth time
    within the window it stops where it ran (P5)."""
    listener = Listener()
    extra = checker(
        "outside", "tcp", host="127.0.0.1", port=listener.port, action="wait", when="pre"
    )
    try:
        async with running_pair(tmp_path, checked(extra)) as pair:
            await pair.protected()
            for _ in range(3):
                listener.close()
                await pair.roles(20, node1="WAIT", node2="WAIT")
                assert not pair.processes("node1", APPLICATION)
                for node in ("node1", "node2"):
                    assert "outside" in (await pair.side(node)).why.text
                listener.open()
                await pair.roles(40, node1="PRIM", node2="SECOND")
                await pair.more_orders()
            listener.close()
            await pair.roles(20, node1="STOP", node2="WAIT")
            listener.open()
            await pair.roles(20, node2="ALONE")
            await pair.nothing_lost()
    finally:
        listener.close()


class TwoModules(Pair):
    """The order service, and a module that it needs."""

    async def create(self, *, temporary: bool) -> None:
        """One file more on each node."""
        await super().create(temporary=temporary)
        for node in NODES:
            folder = self.directory / node / "data" / "base"
            folder.mkdir(parents=True)
            self.homes[node].module_file("base").write_text(
                f'schema = 1\nname = "base"\nnumber = 2\nfolder = "{folder}"\n'
                'driver = "process"\nboot = "on"\n\n[driver_options]\n'
                'command = ["/bin/sleep", "1000000"]\n\n[stop]\ntimeout_s = 20\n',
                encoding="utf-8",
            )

    async def base(self, node: str, verb: str) -> None:
        """A command on the module that the other one needs."""
        status, said = await self.cli(node, verb, "base")
        assert status == 0, said


NEEDS_BASE = checked(checker("base", "module", module="base", action="wait", when="pre"))


async def test_a24_another_module_is_waited_for(tmp_path: Path) -> None:
    """Stopped, it is waited for on both nodes; started again, the module wakes by itself. Moved, it
    runs ready on the other node in between, or is waited for: nothing is stuck afterwards."""
    async with running_pair(tmp_path, NEEDS_BASE, TwoModules) as pair:
        await asyncio.gather(*(pair.start(node) for node in NODES))
        await pair.base("node1", "prim")
        await pair.act("node1", "prim")
        await pair.roles(30, node1="PRIM", node2="SECOND")
        await pair.more_orders()
        await pair.base("node2", "stop")
        await pair.base("node1", "stop")
        await pair.roles(20, node1="WAIT", node2="WAIT")
        assert not pair.processes("node1", APPLICATION)
        for node in NODES:
            assert "base" in (await pair.side(node)).why.text
        for node in NODES:
            await pair.base(node, "start")
        await pair.redundant_again(40)
        await pair.base("node1", "swap")
        await pair.base("node2", "restart")
        await asyncio.sleep(3)
        await pair.redundant_again(40)
        await pair.more_orders()
        await pair.equal_and_nothing_lost()


async def test_a24_a_module_that_is_not_there(tmp_path: Path) -> None:
    """Refused at load, with its name."""
    options = checked(checker("base", "module", module="database", action="wait", when="pre"))
    async with running_pair(tmp_path, options) as pair:
        status, said = await pair.cli("node1", "config", "check")
        assert status != 0, said
        assert "database" in said


async def test_a25_a_custom_check_is_waited_for(tmp_path: Path) -> None:
    """Exit status 0 is up; its failure keeps the module waiting, its success wakes it."""
    flag = tmp_path / "good"
    flag.touch()
    extra = checker("ready", "custom", command=["/bin/test", "-e", str(flag)], action="wait",
                    when="pre")  # fmt: skip
    place = tmp_path / "pair"
    place.mkdir()
    async with running_pair(place, checked(extra)) as pair:
        await pair.protected()
        flag.unlink()
        await pair.roles(20, node1="WAIT", node2="WAIT")
        flag.touch()
        await pair.redundant_again(40)
        await pair.equal_and_nothing_lost()


@pytest.mark.parametrize("action", ["restart", "stopstart"])
async def test_a26_a_custom_check_by_a_rule(tmp_path: Path, action: str) -> None:
    """A rule of the operator's names the resource; its action is carried out and counted."""
    flag = tmp_path / "good"
    flag.touch()
    extra = checker("app", "custom", command=["/bin/test", "-e", str(flag)], action="none")
    extra += f'\n[[rule]]\nname = "app-down"\nwhen = "custom.app is down"\naction = "{action}"\n'
    place = tmp_path / "pair"
    place.mkdir()
    async with running_pair(place, checked(extra)) as pair:
        await pair.protected()
        former = pair.one("node1", APPLICATION)
        flag.unlink()
        if action == "restart":
            await another_application(pair, "node1", former, 15)
        else:
            await pair.roles(40, node2="PRIM")
        flag.touch()
        await pair.redundant_again(40)
        await pair.log_has("node1", "app-down")
        await pair.equal_and_nothing_lost()


async def test_a27_actions_of_a_checker_count_and_those_of_a_user_reset(tmp_path: Path) -> None:
    """The budget is for what happens by itself."""
    async with running_pair(tmp_path, QUICK) as pair:
        await pair.protected()
        former = pair.one("node1", APPLICATION)
        pair.signal("node1", APPLICATION, signal.SIGKILL)
        await another_application(pair, "node1", former, 15)
        await pair.roles(10, node1="PRIM")
        assert await pair.restarts_used("node1") == 1
        await pair.act("node1", "restart")
        await pair.roles(15, node1="PRIM", node2="SECOND")
        assert await pair.restarts_used("node1") == 0
        await pair.equal_and_nothing_lost()


async def test_a48_the_fourth_hang_moves_it(tmp_path: Path) -> None:
    """It hangs, is restarted here three times; then it is started on the other node."""
    async with running_pair(tmp_path, QUICK) as pair:
        await pair.protected()
        for _ in range(3):
            await pair.eventually(lambda: is_state(pair, "orders", "up"), 15, "it to be seen")
            former = pair.one("node1", APPLICATION)
            pair.signal("node1", APPLICATION, signal.SIGSTOP)
            await another_application(pair, "node1", former, 20)
        await pair.eventually(lambda: is_state(pair, "orders", "up"), 15, "it to be seen")
        pair.signal("node1", APPLICATION, signal.SIGSTOP)
        await pair.roles(30, node1="STOP", node2="ALONE")
        await asyncio.sleep(0)
        await pair.nothing_lost()
