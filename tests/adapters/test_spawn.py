"""Children get a session and cgroup of their own and leave nothing behind (S1, E16)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperha.errors import FailedError
from hyperha.spawn.output import LineSplitter, OutputLine, OutputStore
from hyperha.spawn.run import run_to_end, start
from hyperha.spawn.tree import ProcessTree, RunPlace
from tests.support import ROOT
from tests.support.machine import lacking

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs Linux"),
    pytest.mark.anyio,
]
# A child that forks a grandchild into a session of its own, as a daemonising program does.
# The one in the middle says who was left: it is waited for, unlike that one.
DAEMONISE = (
    "import os,sys,time\n"
    "if os.fork()==0:\n"
    "    os.setsid()\n"
    "    found=os.fork()\n"
    "    if found==0:\n"
    "        time.sleep(600)\n"
    "    print('grandchild',found,flush=True)\n"
    "    os._exit(0)\n"
    "os.wait()\n"
)


@pytest.fixture(params=["cgroup", "marker"])
def place(request: pytest.FixtureRequest) -> Iterator[RunPlace | None]:
    if request.param == "marker":
        yield None
        return
    found = RunPlace(f"test-{os.getpid()}")
    if found.limit:
        lacking(found.limit)
    yield found
    assert [tree.marker for tree in found.leftovers()] == [], "every cgroup is removed"
    found.close()


def _alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


async def test_output_status_and_duration(place: RunPlace | None) -> None:
    done, lines = await run_to_end(
        ["/bin/sh", "-c", "echo one; echo two >&2; printf '\\033[31mthree'; exit 3"],
        name="VM1 start_prim",
        time_limit_s=20,
        place=place,
    )
    assert (done.status, done.signal, done.ok) == (3, None, False)
    assert str(done).startswith("exit status 3 after")
    assert {(line.stream, line.text) for line in lines} == {
        ("out", "one"),
        ("err", "two"),
        ("out", "three"),
    }
    assert all(abs(line.at_wall_ms - time.time() * 1000) < 60_000 for line in lines)


async def test_directory_environment_session(tmp_path: Path, place: RunPlace | None) -> None:
    program = "import os;print(os.getcwd(),os.environ['X'],os.getsid(0)==os.getpid())"
    done, lines = await run_to_end(
        [sys.executable, "-c", program],
        name="probe",
        time_limit_s=20,
        place=place,
        cwd=str(tmp_path),
        env={"X": "y"},
    )
    assert done.ok
    assert [line.text for line in lines] == [f"{tmp_path} y True"]


@pytest.mark.parametrize(
    ("command", "cwd", "user", "says"),
    [
        (["/no/such/program"], "", "", "command /no/such/program: No such file"),
        (["/bin/true"], "/no/such/dir", "", "directory /no/such/dir: No such file"),
        (["/bin/true"], "", "no-such-user", "user no-such-user: no such user"),
        ([], "", "", "empty"),
    ],
)
async def test_what_cannot_be_started_is_named(
    command: list[str], cwd: str, user: str, says: str, place: RunPlace | None
) -> None:
    with pytest.raises(FailedError, match=says):
        await start(command, name="VM1", place=place, cwd=cwd, user=user)


@pytest.mark.root
async def test_another_user(place: RunPlace | None) -> None:
    done, lines = await run_to_end(
        ["/usr/bin/id", "-un"], name="probe", time_limit_s=20, place=place, user="nobody"
    )
    assert done.ok
    assert lines[0].text == "nobody"


async def test_kill_takes_the_grandchildren_too(place: RunPlace | None) -> None:
    seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def watch(line: OutputLine) -> None:
        if line.text.startswith("grandchild"):
            seen.set_result(int(line.text.split()[1]))

    run = await start(
        [sys.executable, "-c", DAEMONISE + "time.sleep(600)"],
        name="VM1",
        place=place,
        output=watch,
    )
    grandchild = await asyncio.wait_for(seen, 20)
    assert {run.pid, grandchild} <= set(run.tree.members())
    assert await run.kill()
    assert not _alive(run.pid)
    assert not _alive(grandchild)
    done = await run.wait()
    assert done.signal == signal.SIGKILL


async def test_what_a_run_leaves_behind_is_ended(place: RunPlace | None) -> None:
    run = await start([sys.executable, "-c", DAEMONISE], name="script", place=place)
    done = await run.wait()
    assert done.ok
    grandchild = int(run.lines[0].text.split()[1])
    assert not _alive(grandchild)
    assert run.tree.members() == []


async def test_a_kept_tree_stays_until_it_is_killed(place: RunPlace | None) -> None:
    run = await start(
        [sys.executable, "-c", DAEMONISE], name="service", place=place, keep_tree=True
    )
    try:
        assert (await run.wait()).ok
        grandchild = int(run.lines[0].text.split()[1])
        assert run.tree.members() == [grandchild]
    finally:
        assert await run.kill()
    assert not _alive(grandchild)


async def test_a_run_started_by_a_run_is_not_part_of_it() -> None:
    """A daemon's VMs and its guardian are ended by their own rules, not with the daemon."""
    other = f"other-{os.getpid()}"
    outer = await start(
        ["/bin/sh", "-c", f"HYPERHA_RUN={other} setsid sleep 600 & sleep 600 & echo $!; wait"],
        name="daemon",
    )
    up = asyncio.Event()
    try:
        async with asyncio.timeout(20):
            while not any(_marker_is(p, other) for p in _children_of(outer.pid)):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(up.wait(), 0.02)
        (inner,) = [p for p in _children_of(outer.pid) if _marker_is(p, other)]
        assert inner not in outer.tree.members()
        assert await outer.kill()
        assert _alive(inner)
    finally:
        await outer.kill()
        ProcessTree(other).kill()
    await outer.wait()


def _children_of(process: int) -> list[int]:
    try:
        with open(f"/proc/{process}/task/{process}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _marker_is(process: int, marker: str) -> bool:
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            return f"HYPERHA_RUN={marker}".encode() in file.read().split(b"\0")
    except OSError:
        return False


async def test_a_time_limit_ends_everything(place: RunPlace | None) -> None:
    done, _ = await run_to_end(
        ["/bin/sh", "-c", "trap '' TERM; sleep 600 & sleep 600"],
        name="slow",
        time_limit_s=0.3,
        place=place,
    )
    assert done.timed_out
    assert not done.ok
    assert "time limit" in str(done)


async def test_terminate_asks_the_main_process(place: RunPlace | None) -> None:
    up = asyncio.Event()
    run = await start(
        ["/bin/sh", "-c", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done"],
        name="VM1",
        place=place,
        output=lambda line: up.set(),
    )
    await asyncio.wait_for(up.wait(), 20)
    run.terminate()
    done = await run.wait()
    assert done.status == 7
    assert [line.text for line in run.lines] == ["up", "bye"]


async def test_a_child_that_was_let_go_leaves_no_zombie() -> None:
    """A daemon runs for months; every guardian that died before it would stay in its table."""
    left = await start(["sleep", "60"], name="left", outlive=True)
    await left.let_go()
    os.kill(left.pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitid, os.P_PID, left.pid, os.WEXITED | os.WNOWAIT)
    await run_to_end(["true"], name="next", time_limit_s=10)
    assert not psutil.pid_exists(left.pid)


async def test_children_are_forked_by_the_main_thread_only() -> None:
    problems: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(run_to_end(["/bin/true"], name="x", time_limit_s=5))
        except RuntimeError as problem:
            problems.append(problem)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "main thread" in str(problems[0])


def _report_and_die(program: str) -> tuple[int, str, str]:
    """Run a parent until its first line of output, then kill it; what that line said."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            child, cgroup, marker = parent.stdout.readline().split()
            return os.pidfd_open(int(child)), cgroup.strip("-"), marker
        finally:
            parent.kill()


async def test_children_die_with_their_parent(place: RunPlace | None) -> None:
    """A whole parent process is killed; its child must follow without anybody's help."""
    program = (
        "import asyncio,sys\n"
        "from hyperha.spawn.run import start\n"
        "from hyperha.spawn.tree import RunPlace\n"
        "async def main():\n"
        f"    place={f'RunPlace({place.name!r})' if place else 'None'}\n"
        "    run=await start(['/bin/sleep','600'],name='VM1',place=place)\n"
        "    print(run.pid,run.tree.cgroup or '-',run.tree.marker,flush=True)\n"
        "    await run.wait()\n"
        "asyncio.run(main())\n"
    )
    watched, cgroup, marker = _report_and_die(program)
    tree = ProcessTree(marker, cgroup)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(watched, gone.set)
    try:
        await asyncio.wait_for(gone.wait(), 10)
        assert tree.members() == []
    finally:
        asyncio.get_running_loop().remove_reader(watched)
        os.close(watched)
        tree.kill()
    if place is not None:
        assert [left.marker for left in place.leftovers()] == [marker], "the next daemon finds it"
        assert tree.remove()


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(1, 12))
def test_lines_do_not_depend_on_the_chunks(chunks: list[bytes], limit: int) -> None:
    whole = b"".join(chunks)
    piecewise, at_once = LineSplitter("out", limit), LineSplitter("out", limit)
    found = [line for chunk in chunks for line in piecewise.feed(chunk, 0)] + piecewise.end(0)
    assert found == at_once.feed(whole, 0) + at_once.end(0)
    assert len(found) <= whole.count(b"\n") + 1


def test_output_is_bounded() -> None:
    store = OutputStore(limit=1000)
    for number in range(1000):
        store.add(OutputLine(0, "out", f"line {number}"))
    assert store.lines[-1].text == "line 999"
    assert len(store.lines) + store.dropped == 1000
    assert sum(len(line.text) for line in store.lines) < 1000


def test_long_lines_are_cut_and_say_so() -> None:
    splitter = LineSplitter("err", 10)
    (line,) = splitter.feed(b"x" * 25 + b"\n", 5)
    assert line.text == "x" * 10 + "… (15 bytes cut)"
