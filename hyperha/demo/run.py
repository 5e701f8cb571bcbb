"""The whole of `hyperha demo`: set up, show or drill, take everything away."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hyperha.demo.cluster import MODULE, NODES, DemoCluster
from hyperha.demo.drill import Drill, DrillReport, StepResult
from hyperha.demo.observer import Observer
from hyperha.errors import HyperhaError, RefusedError, UsageError

RESTART_PAUSE_S = 8.0
"""How long a killed daemon stays away when people watch: long enough to see the takeover."""
SHOWN_RATE_MIB_S = 8
"""A resync that people watch is slowed down, or it would be over before they look."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The command line's wishes."""

    headless: bool = False
    drill: bool = False
    repeat: int = 1
    driver: str = "process"
    home: Path | None = None
    ports: int = 9010


def run_demo(options: DemoOptions) -> int:
    """The exit status of the demonstration: 0 when everything asked for was done and passed."""
    if options.driver != "process":
        raise UsageError(
            f"--driver {options.driver!r} is not there yet", "This release knows: process."
        )
    _require_means()
    if not (options.headless or options.drill or sys.stdout.isatty()):
        raise UsageError("the console needs a terminal", "Without one: hyperha demo --headless.")
    with _directory(options.home) as (directory, temporary):
        return asyncio.run(_main(options, directory, temporary))


def _require_means() -> None:
    """Neither root nor fusermount3 nor /dev/fuse: said at once, naming which."""
    if not sys.platform.startswith("linux"):
        raise RefusedError("the demonstration needs Linux", code="no-linux")
    if not os.path.exists("/dev/fuse"):
        raise _cannot("there is no /dev/fuse", "Load the kernel module: modprobe fuse.")
    if os.geteuid() != 0:
        if shutil.which("fusermount3") is None:
            raise _cannot(
                "not root, and there is no fusermount3", "Install the package fuse3, or be root."
            )
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            raise _cannot("no rights on /dev/fuse", "Ask for read and write rights on it.")
        print("not root: fusermount3 mounts the folders; other users cannot see into them,")
        print("files keep your own user, and runs are ended by process group and marker.")


def _cannot(text: str, fix: str) -> HyperhaError:
    error = HyperhaError(f"the demonstration cannot run: {text}", fix)
    return error


@contextmanager
def _directory(wanted: Path | None) -> Iterator[tuple[Path, bool]]:
    if wanted is None:
        made = Path(tempfile.mkdtemp(prefix="hyperha-demo-"))
        try:
            yield made, True
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return
    path = wanted.absolute()
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise UsageError(f"{path} is not empty", "Name a new or an empty directory with --home.")
    yield path, False


@asynccontextmanager
async def _running(
    options: DemoOptions, directory: Path, temporary: bool, *, reports_mib: int = 0
) -> AsyncIterator[tuple[DemoCluster, Observer]]:
    observer = Observer()
    cluster = DemoCluster(directory, options.ports, observer.address)
    cluster.reports_mib = reports_mib
    cluster.resync_rate_mib_s = SHOWN_RATE_MIB_S if reports_mib else 0
    try:
        await cluster.create(temporary=temporary)
        yield cluster, observer
    finally:
        left = await asyncio.shield(cluster.close())
        observer.close()
        if left:
            print(f"left behind and now removed: {', '.join(left)}", file=sys.stderr)


async def _main(options: DemoOptions, directory: Path, temporary: bool) -> int:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    ended_by: list[int] = []

    def end(number: int) -> None:
        if not ended_by:
            ended_by.append(number)
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, int(number))
    try:
        if options.drill:
            return await _drills(options, directory, temporary)
        return await _show(options, directory, temporary)
    except asyncio.CancelledError:
        print("ended", flush=True)
        return 130 if ended_by and ended_by[0] == signal.SIGINT else 0


async def _show(options: DemoOptions, directory: Path, temporary: bool) -> int:
    async with _running(options, directory, temporary, reports_mib=48) as (cluster, _):
        print("starting two nodes ...", flush=True)
        await asyncio.gather(*(cluster.start(node) for node in NODES))
        await cluster.act("node1", "prim")
        await cluster.roles(30, node1="PRIM", node2="SECOND")
        _print_hints(cluster)
        keeper = asyncio.ensure_future(cluster.keep_running(RESTART_PAUSE_S))
        try:
            await _until_left(options, cluster)
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
    return 0


async def _until_left(options: DemoOptions, cluster: DemoCluster) -> None:
    if options.headless:
        await asyncio.Event().wait()
    from tui.app import ConsoleApp

    console = ConsoleApp([cluster.target(node) for node in NODES])
    await console.run_async(mouse=False)


def _print_hints(cluster: DemoCluster) -> None:
    print(f"{MODULE} is PRIM on node1 and SECOND on node2. In a second terminal:")
    for node in NODES:
        home = cluster.directory / node
        print(f"  hyperha --home {home} state")
    print(f"  hyperha --home {cluster.directory / NODES[0]} log {MODULE} -f")
    print(f"  hyperha --home {cluster.directory / NODES[0]} swap {MODULE}")
    pid = cluster.daemon_pid(NODES[0])
    pause = f"{RESTART_PAUSE_S:.0f} s"
    print(f"  kill -9 {pid}        # the daemon of node1; it is started again after {pause}")
    print(f"  hyperha console {cluster.directory}/node1/run/api.sock", flush=True)


def _say(result: StepResult) -> None:
    word = "pass" if result.passed else "FAIL"
    print(f"{word}  {result.seconds:6.2f} s  {result.name:46}{result.note}", flush=True)


async def _drills(options: DemoOptions, directory: Path, temporary: bool) -> int:
    reports: list[DrillReport] = []
    begun = time.monotonic()
    for number in range(1, options.repeat + 1):
        if options.repeat > 1:
            print(f"--- drill {number} of {options.repeat}", flush=True)
        place = directory / f"drill{number}"
        place.mkdir()
        async with _running(options, place, temporary) as (cluster, observer):
            reports.append(await Drill(cluster, observer, _say).run())
        if not reports[-1].passed:
            break
    _summary(reports, time.monotonic() - begun)
    body = {"passed": all(r.passed for r in reports), "drills": [r.as_json() for r in reports]}
    (directory / "drill.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return 0 if body["passed"] else 1


def _summary(reports: list[DrillReport], seconds: float) -> None:
    passed = sum(report.passed for report in reports)
    orders = sum(report.acknowledged for report in reports)
    lost = sum(report.lost for report in reports)
    print(f"{passed} of {len(reports)} drills passed in {seconds:.0f} s")
    print(f"acknowledged orders: {orders}, lost: {lost}")
    for name, times in (
        ("kill to start_prim begun", [r.start_prim_s for r in reports if r.start_prim_s]),
        ("kill to first new order", [r.first_order_s for r in reports if r.first_order_s]),
    ):
        if times:
            median, worst = statistics.median(times), max(times)
            print(f"{name}: median {median:.2f} s, worst {worst:.2f} s")
