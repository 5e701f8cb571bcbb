"""A guest that has filled the system with processes leaves no room for a thread: it is fenced and
killed nevertheless."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from hyperha import threads
from hyperha.demo.cluster import until
from hyperha.spawn import looking, tree
from hyperha.spawn.looking import MARKER
from hyperha.spawn.run import start
from hyperha.spawn.tree import ProcessTree
from hyperha.threads import RESERVE, OwnThread, in_own_thread

pytestmark = pytest.mark.anyio


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Whether the system has no room for one more thread."""
    real, now = threading.Thread.start, [False]

    def start(thread: threading.Thread) -> None:
        if now[0]:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    yield lambda value: now.__setitem__(0, value)
    now[0] = False


async def test_the_reserve_does_it(full: Callable[[bool], None]) -> None:
    threads.prepare()
    full(True)
    did: list[int] = []
    await asyncio.gather(*(in_own_thread("test", did.append, one) for one in range(3 * RESERVE)))
    assert sorted(did) == list(range(3 * RESERVE))


async def test_what_finds_no_thread_waits_for_one(
    full: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_reserve", threads._Reserve())
    full(True)
    did: list[int] = []
    waiting = asyncio.ensure_future(in_own_thread("test", did.append, 1))
    given_up = asyncio.ensure_future(in_own_thread("test", did.append, 2))
    await asyncio.sleep(0.3)
    given_up.cancel()
    assert not waiting.done()
    full(False)
    await asyncio.wait_for(waiting, 10)
    assert await in_own_thread("test", lambda: 3) == 3
    assert did == [1]


async def test_a_thread_that_could_not_be_started_is_started_later(
    full: Callable[[bool], None],
) -> None:
    full(True)
    thread = OwnThread("test")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(thread.do(lambda: 1), 0.3)
    full(False)
    assert await asyncio.wait_for(thread.do(lambda: 2), 10) == 2


async def test_threads_that_nobody_needs_end() -> None:
    before = threading.active_count()
    gone = threading.Event()
    many = [asyncio.ensure_future(in_own_thread("test", gone.wait)) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert threading.active_count() >= before + 20 - RESERVE
    gone.set()
    await asyncio.gather(*many)

    async def fewer() -> bool:
        return threading.active_count() <= before + RESERVE

    await until(fewer, 10, "the end of threads that nobody needs")


def test_a_run_is_found_and_killed(full: Callable[[bool], None]) -> None:
    looking.prepare()
    environment = {**os.environ, MARKER: "run-full"}
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    with subprocess.Popen(command, env=environment, start_new_session=True) as own:
        full(True)
        run = ProcessTree("run-full")
        assert run.members() == [own.pid]
        run.kill()
        own.wait(10)
        assert run.members() == []


def test_nobody_says_that_all_are_gone_when_nobody_could_look(
    full: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(looking, "_lookers", looking._Lookers())
    full(True)
    assert ProcessTree("run-none").members()
    place = tmp_path / "group"
    place.mkdir()
    (place / "cgroup.procs").write_text("")
    with_group = ProcessTree("run-none", str(place))
    assert with_group.members(), "one that left the group may be among them"
    full(False)
    assert with_group.members() == []
    assert ProcessTree("run-none").members() == []


@pytest.mark.parametrize("lacks", ["stat", "environ", "cgroup.procs"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_lack_of_files_or_memory_is_no_death(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacks: str, number: int, grouped: bool
) -> None:
    """Whoever looks is short of something: nobody says that all are gone, and killing goes on."""
    place = tmp_path / "group"
    place.mkdir()
    (place / "cgroup.procs").write_text("")
    variables = {**os.environ, MARKER: "run-lacking"}
    real = open
    with subprocess.Popen(["/bin/sleep", "100"], env=variables) as own:
        run = ProcessTree("run-lacking", str(place) if grouped else "")
        other = ProcessTree("run-none", run.cgroup)

        def lacking(path: Any, *arguments: Any, **options: Any) -> Any:
            if path in (f"/proc/{own.pid}/{lacks}", str(place / lacks)):
                raise OSError(number, os.strerror(number))
            return real(path, *arguments, **options)

        with monkeypatch.context() as short:
            short.setattr("builtins.open", lacking)
            run.kill()
            if lacks != "cgroup.procs":
                assert own.pid in run.members()
                assert (own.pid in other.members()) == (lacks == "environ")
            elif grouped:
                for thorough in (False, True):
                    with pytest.raises(OSError, match=os.strerror(number)):
                        run.members(thorough=thorough)
        run.kill()
        assert own.wait(10) == -9
        assert other.members() == run.members() == []


def test_whose_session_it_is_cannot_be_told_for_lack_of_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen(["/bin/sleep", "100"], start_new_session=True) as own:
        run = ProcessTree("run-none", session=own.pid)
        with monkeypatch.context() as short:
            lack = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            short.setattr("hyperha.spawn.looking._stat", Mock(side_effect=lack))
            run.kill()
            assert own.pid in run.members()
        run.kill()
        assert own.wait(10) == -9


async def test_a_run_has_not_ended_as_long_as_nobody_can_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = await start(["/bin/sleep", "100"], name="sleeps")
    with monkeypatch.context() as short:
        lack = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        short.setattr("os.listdir", Mock(side_effect=lack))
        assert not await run.kill(0.5)
    assert await run.kill()
    await run.wait()


def test_those_of_the_session_are_killed_before_anybody_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen(["/bin/sleep", "100"], start_new_session=True) as own:
        monkeypatch.setattr(
            "hyperha.spawn.tree.markers_of", lambda *_: own.wait(10) is None or ({}, [])
        )
        ProcessTree("run-none", session=own.pid).kill()


def test_many_may_look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda told: failures.append(told.exc_value))
    for _ in range(20):
        for number in range(40):
            ended = looking._Look([])
            ended.ended.set()
            looking._silent[4_000_000 + number] = (b"1", ended)
        barrier = threading.Barrier(8)

        def look(barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            ProcessTree("run-none").members()

        several = [threading.Thread(target=look) for _ in range(8)]
        for one in several:
            one.start()
        for one in several:
            one.join()
    assert not failures
    assert not [one for one in looking._silent if one >= 4_000_000]


def test_who_got_the_number_of_another_is_not_killed() -> None:
    with subprocess.Popen(["/bin/sleep", "100"], start_new_session=True) as stranger:
        found = looking.living_processes()
        now = found[stranger.pid]
        run = ProcessTree("run-none", session=stranger.pid)
        before = {stranger.pid: now._replace(began=b"1")}
        tree._signal_all(run._of_session(before), before)
        time.sleep(0.1)
        assert stranger.poll() is None
        tree._signal_all(run._of_session(found), found)
        assert stranger.wait(10) == -9


async def test_what_hangs_keeps_no_thread_of_the_reserve(
    full: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reserve is there again as soon as there is room, before it is needed."""
    monkeypatch.setattr(threads, "_reserve", threads._Reserve())
    threads.prepare()
    hung = threading.Event()
    hanging = [asyncio.ensure_future(in_own_thread("test", hung.wait)) for _ in range(RESERVE)]
    await asyncio.sleep(0.1)
    full(True)
    assert await asyncio.wait_for(in_own_thread("test", lambda: 1), 5) == 1
    hung.set()
    await asyncio.gather(*hanging)


def test_what_cannot_be_read_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guardian without a free descriptor does not take its daemon for dead."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("builtins.open", fails)
    assert not looking.is_zombie(os.getpid())


def test_a_process_that_nobody_waits_for_is_dead() -> None:
    with subprocess.Popen(["/bin/true"]) as own:
        while not looking.is_zombie(own.pid):
            time.sleep(0.01)
