"""The process driver: options, start that must last, stop, kill, heartbeats (S1, T1)."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperha.errors import ConfigError, FailedError
from hyperha.spawn.run import OutputLine
from hyperha.spawn.tree import RunPlace
from hyperha.vm.port import Driver, StopMode, VmSpec, VmState
from hyperha.vm.process import ProcessDriver, process_options

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs Linux"),
    pytest.mark.anyio,
]


class Bench:
    def __init__(self, folder: Path, place: RunPlace) -> None:
        self.folder = folder
        self.place = place
        self.lines: list[str] = []
        self.exits: list[tuple[int, str]] = []
        self.news = asyncio.Event()
        self.drivers: list[ProcessDriver] = []

    def driver(self, **options: Any) -> ProcessDriver:
        made = ProcessDriver(
            VmSpec("VM1", 1, "node1", "node2", str(self.folder), options),
            place=self.place,
            on_exit=self._exited,
            on_line=self._said,
        )
        as_port: Driver = made
        assert as_port is made
        self.drivers.append(made)
        return made

    def _exited(self, run: int, text: str) -> None:
        self.exits.append((run, text))
        self.news.set()

    def _said(self, line: OutputLine) -> None:
        self.lines.append(line.text)
        self.news.set()

    async def until_said(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in self.lines:
                self.news.clear()
                await self.news.wait()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, RunPlace(f"vm-{os.getpid()}"))
    try:
        yield made
    finally:
        for driver in made.drivers:
            await driver.kill()
        assert made.place.leftovers() == []
        made.place.close()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A path that leaves room for a socket's name in the 107 bytes there are."""
    path = tempfile.mkdtemp(prefix="vm")
    yield Path(path)
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "neither a text nor a list"),
        ({"command": ""}, "is empty"),
        ({"command": "a 'b"}, "No closing quotation"),
        ({"command": ["a", 1]}, "neither a text nor a list"),
        ({"comand": "a"}, "Did you mean 'command'?"),
        ({"command": "a", "environment": {"A": 1}}, "table of texts"),
        ({"command": "a", "user": 5}, "is not a text"),
        ({"command": "a", "settle_s": "x"}, "number of seconds"),
        ({"command": "a", "heartbeat": "x"}, "is not a table"),
        ({"command": "a", "heartbeat": {"tcp": "x"}}, "is not host:port"),
        ({"command": "a", "heartbeat": {"tcp": "x:1", "unix": "y"}}, "exactly one"),
        ({"command": "a", "heartbeat": {"unix": "/x"}}, "inside the folder"),
        ({"command": "a", "heartbeat": {"unix": "../x"}}, "inside the folder"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        process_options(options)


def test_a_text_is_split_like_a_shell_does() -> None:
    assert process_options({"command": "run 'a b' c"}).command == ("run", "a b", "c")
    assert process_options(
        {"command": ["x"], "heartbeat": {"tcp": "[::1]:80", "timeout_s": 1}}
    ).heartbeat == ("tcp", ("::1", 80))


async def test_start_and_graceful_stop(bench: Bench) -> None:
    driver = bench.driver(
        command=[
            "/bin/sh",
            "-c",
            "trap 'echo bye; exit' TERM; pwd; echo $HYPERHA_MODULE $A; "
            "while :; do sleep 0.02; done",
        ],
        environment={"A": "b"},
    )
    (planned,) = driver.plan(1)
    await driver.start(1)
    assert driver.pid in planned.members(), "the guardian was armed with the right processes"
    await bench.until_said("VM1 b")
    assert bench.lines[0] == str(bench.folder)
    assert (await driver.observe()).state is VmState.RUNNING
    assert (await driver.heartbeat()).ok
    assert (await driver.stop(StopMode.STOP, 10)).startswith("exit status 0")
    assert "bye" in bench.lines
    assert planned.members() == []
    assert (await driver.observe()).state is VmState.ABSENT
    assert not (await driver.heartbeat()).ok
    assert bench.exits == [], "a stop that was asked for is no exit"


async def test_a_command_that_does_not_listen_is_forced(bench: Bench) -> None:
    driver = bench.driver(
        command=["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"]
    )
    await driver.start(1)
    await bench.until_said("up")
    text = await driver.stop(StopMode.STOP, 0.2)
    assert "SIGKILL" in text
    assert text.endswith("by force")


async def test_off_does_not_ask(bench: Bench) -> None:
    driver = bench.driver(command="sleep 600")
    await driver.start(1)
    assert "SIGKILL" in await driver.stop(StopMode.OFF, 60)


async def test_a_command_that_ends_at_once_is_no_start(bench: Bench) -> None:
    driver = bench.driver(command=["/bin/sh", "-c", "echo no disk >&2; exit 4"], settle_s=10)
    with pytest.raises(FailedError, match=r"exit status 4 after .*; no disk"):
        await driver.start(1)
    assert (await driver.observe()).state is VmState.ABSENT
    assert bench.exits == []


async def test_an_exit_is_known_at_once(bench: Bench) -> None:
    driver = bench.driver(command=["/bin/sh", "-c", "read x < fifo; exit 9"])
    os.mkfifo(bench.folder / "fifo")
    await driver.start(3)
    keep = os.open(bench.folder / "fifo", os.O_RDWR)
    os.write(keep, b"go\n")
    async with asyncio.timeout(10):
        while not bench.exits:
            bench.news.clear()
            await bench.news.wait()
    os.close(keep)
    ((run, text),) = bench.exits
    assert run == 3
    assert "exit status 9" in text
    await driver.start(4)
    assert driver.plan(4) != driver.plan(3)


async def test_preflight_names_what_is_missing(bench: Bench) -> None:
    reasons = await bench.driver(command="/no/such/vm", user="nobody-here").preflight()
    assert [reason.code for reason in reasons] == ["command-missing", "user-missing"]
    assert "/no/such/vm" in reasons[0].text
    assert await bench.driver(command="sleep 1").preflight() == ()
    inside = bench.driver(command=f"{bench.folder}/not-looked-at")
    assert await inside.preflight() == (), "paths inside the mount are never touched (T1)"


def _close_first(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    connection.close()


async def test_heartbeats(bench: Bench, short_folder: Path) -> None:
    bench.folder = short_folder
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as local:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        local.bind(str(bench.folder / "x.sock"))
        local.listen()
        threading.Thread(target=_close_first, args=(local,), daemon=True).start()
        hung = socket.socket(socket.AF_UNIX)
        hung.bind(str(bench.folder / "z.sock"))
        hung.listen()
        for table, ok in (
            ({"tcp": f"127.0.0.1:{port}"}, True),
            ({"unix": "x.sock"}, True),
            ({"unix": "y.sock"}, False),
            ({"unix": "z.sock", "timeout_s": 0.5}, False),
            ({"command": ["/bin/sh", "-c", "test -S x.sock"]}, True),
            ({"command": ["/bin/sh", "-c", "echo bad; exit 2"]}, False),
            ({"command": ["/bin/sleep", "60"], "timeout_s": 0.2}, False),
        ):
            driver = bench.driver(command="sleep 600", heartbeat=table)
            await driver.start(1)
            beat = await driver.heartbeat()
            assert beat.ok is ok, (table, beat)
            assert beat.ok or beat.text
            await driver.kill()
    hung.close()
    driver = bench.driver(command="sleep 600", heartbeat={"tcp": f"127.0.0.1:{port}"})
    await driver.start(1)
    beat = await driver.heartbeat()
    assert "refused" in beat.text
