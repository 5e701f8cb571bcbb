"""The budgets as ratios in one run: `python -m tests.benchmarks.replication [--quick]`.

Rows are workloads, columns are what they run on (see `columns`): the same mount without a peer,
replicated over TCP, replicated over TLS, and QEMU's quorum driver. A machine shared with others is
noisy, so each row is measured in several short rounds over all columns in turn; shown are the
median and the spread, and ratios are taken within a round. Below a row stands what one operation
cost the processes that serve it in CPU time; `--profile` adds their threads. Further rows: a resync
against a raw TCP copy, a resync after a crash, what a resync costs the guest, idle daemons.

Exit status: 0 the table was measured (the last line says which budgets were missed), 2 it could
not be, with what is missing. Leaves no process, mount or file behind, also when interrupted.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

from hyperha.errors import HyperhaError, RefusedError, UsageError
from tests.benchmarks import columns, idle, latency, resyncs, usage
from tests.benchmarks.columns import Column, Sample
from tests.benchmarks.table import COLUMNS, QUORUM, ROWS, Row, Verdict, judge, spread

EXTRA_ROWS: Final = ("resync", "crash", "latency", "idle")
_NOT_HERE: Final = (
    "not measured here: node lost to start_prim begun (`hyperha demo --drill --repeat 5` prints "
    "median and worst; budget 4 s); 32 modules with one node lost (this release has no such set-up)"
)
_ROOM_BYTES: Final = 8 << 30


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for, and how much of it."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    rounds: int
    seconds: float
    resync_bytes: int
    idle_s: float
    aio: str
    directory: str | None
    profile: bool


def parse(arguments: Sequence[str]) -> Plan:
    """The plan of a command line. Raises UsageError for rows and columns that do not exist."""
    known = [row.key for row in ROWS] + list(EXTRA_ROWS)
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.replication",
        description="Print the budget table as ratios measured in one run.",
        epilog=f"rows: {', '.join(known)}; columns: {', '.join(COLUMNS)}",
    )
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument("--rows", help="comma-separated; default: all")
    parser.add_argument("--columns", help="comma-separated; default: all")
    parser.add_argument("--rounds", type=int, help="of each row; default 3")
    parser.add_argument("--seconds", type=float, help="of one sample; default 1.2")
    parser.add_argument(
        "--qemu-aio", choices=("threads", "io_uring"), default="threads",
        help="how QEMU writes its images; default: its own default",
    )  # fmt: skip
    parser.add_argument("--directory", help="on which file system; default: that of TMPDIR")
    parser.add_argument(
        "--profile", action="store_true", help="also which threads use how much per operation"
    )
    given = parser.parse_args(arguments)
    rounds = given.rounds if given.rounds is not None else 1 if given.quick else 3
    seconds = given.seconds if given.seconds is not None else 0.7 if given.quick else 1.2
    if rounds < 1 or not 0.2 <= seconds <= 600:
        raise UsageError(
            f"{rounds} rounds of {seconds:g} s are nothing to measure",
            "At least one round, of 0.2 s to 600 s.",
        )
    return Plan(
        _chosen(given.rows, known, "row"),
        _chosen(given.columns, COLUMNS, "column"),
        rounds,
        seconds,
        (64 if given.quick else 512) << 20,
        6.0 if given.quick else 20.0,
        given.qemu_aio,
        given.directory,
        given.profile,
    )


def _chosen(text: str | None, known: Sequence[str], what: str) -> tuple[str, ...]:
    """The names in a comma-separated list, in the table's order."""
    if text is None:
        return tuple(known)
    names = [name.strip() for name in text.split(",")]
    strangers = [name for name in names if name not in known]
    if strangers:
        raise UsageError(f"there is no {what} {strangers[0]!r}", f"Known: {', '.join(known)}.")
    return tuple(name for name in known if name in names)


def check(plan: Plan) -> tuple[Plan, list[str]]:
    """The plan as far as this machine can do it, and what is skipped with the reason.

    Raises RefusedError when nothing would be left, or the rights are missing.
    """
    if not sys.platform.startswith("linux") or not os.path.exists("/dev/fuse"):
        raise RefusedError("there is no /dev/fuse here", "On Linux: modprobe fuse.")
    if os.geteuid() != 0:
        raise RefusedError("mounting needs root", "Run it by sudo, or as root.")
    place = plan.directory or tempfile.gettempdir()
    if not os.path.isdir(place):
        raise UsageError(f"{place} is no directory", "Name an existing one with --directory.")
    free = shutil.disk_usage(place).free
    if free < _ROOM_BYTES:
        raise RefusedError(
            f"{place} has {free >> 20} MiB free, and {_ROOM_BYTES >> 20} are needed",
            "Name another file system with --directory.",
        )
    skipped: list[str] = []
    names, rows = plan.columns, plan.rows
    by_fio = [one for one in names if one in columns.NEEDS_FIO]
    if by_fio and shutil.which("fio") is None:
        names = tuple(one for one in names if one not in by_fio)
        skipped.append(f"{', '.join(by_fio)}: there is no fio (package fio)")
    missing = [one for one in ("qemu-img", "qemu-storage-daemon") if shutil.which(one) is None]
    if missing and QUORUM in names:
        names = tuple(one for one in names if one != QUORUM)
        skipped.append(f"quorum: there is no {missing[0]} (package qemu-utils or qemu-system)")
    if not names:
        rows = tuple(row for row in rows if row in EXTRA_ROWS)
    if not rows:
        raise RefusedError(f"nothing is left to measure: {'; '.join(skipped)}", "Install it.")
    return replace(plan, rows=rows, columns=names, directory=place), skipped


# --- measuring --------------------------------------------------------------------------------


def _open(plan: Plan, base: Path, stack: ExitStack) -> dict[str, Column]:
    """Every column, ready to be measured."""
    opened: dict[str, Column] = {}
    for name in plan.columns:
        place = base / name
        place.mkdir()
        if name == QUORUM:
            opened[name] = stack.enter_context(columns.quorum(place, plan.aio))
        else:
            opened[name] = stack.enter_context(columns.BUILDERS[name](place))
    return opened


def workload(row: Row, plan: Plan, base: Path, opened: dict[str, Column]) -> list[Verdict]:
    """Measure one row in rounds over the columns, and print it."""
    taken: dict[str, list[Sample]] = {name: [] for name in opened}
    for number in range(1, plan.rounds + 1):
        for name, column in opened.items():
            columns.settle(base)
            taken[name].append(column.sample(row, plan.seconds, number))
    samples = {name: [one.rate for one in found] for name, found in taken.items()}
    factor = row.block_bytes / (1 << 20) if row.in_mib else 1.0
    cells = [spread([value * factor for value in samples[name]]) for name in opened]
    unit = "MiB/s" if row.in_mib else "per s"
    print(f"{row.title:33}{unit:6}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    _costs(taken, profile=plan.profile)
    verdicts = [judge(ratio, samples) for ratio in row.ratios]
    return [one for one in verdicts if one is not None]


def _costs(taken: Mapping[str, Sequence[Sample]], *, profile: bool) -> None:
    """Print what one operation of a row cost the processes of each column."""
    threads: list[str] = []
    cells = []
    for name, found in taken.items():
        uses = {
            process: usage.median_of([one.costs[process] for one in found])
            for process in found[0].costs
        }
        spent = [f"{usage.total(one).cpu_us:.0f}" for one in uses.values()]
        cells.append(f"{' + '.join(spent):>24}")
        for process, one in uses.items():
            threads += usage.lines(f"{name} {process}", one)
    print(f"{'    CPU of the processes, each':33}{'us':6}" + "".join(cells), flush=True)
    if profile:
        print("\n".join(threads), flush=True)


def _memory(opened: Mapping[str, Column]) -> None:
    cells = []
    for column in opened.values():
        held = [f"{usage.memory_mib(process):.0f}" for _, process in column.processes]
        cells.append(f"{' + '.join(held):>24}")
    print(f"{'Memory of the processes, each':33}{'MiB':6}" + "".join(cells), flush=True)


def measure_all(plan: Plan, base: Path) -> list[tuple[str, Verdict]]:
    """The whole table, printed as it grows; every verdict with its row."""
    said: list[tuple[str, Verdict]] = []

    def tell(key: str, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            print(f"    {verdict.text}", flush=True)
            said.append((key, verdict))

    rows = [row for row in ROWS if row.key in plan.rows]
    if rows:
        print(f"{'':39}" + "".join(f"{name:>24}" for name in plan.columns))
        with ExitStack() as stack:
            opened = _open(plan, base, stack)
            for row in rows:
                tell(row.key, workload(row, plan, base, opened))
            _memory(opened)
    extra: dict[str, Callable[[Path], list[Verdict]]] = {
        "resync": lambda place: resyncs.throughput(place, plan.rounds, plan.resync_bytes),
        "crash": lambda place: resyncs.after_crash(place, plan.resync_bytes),
        "latency": lambda place: latency.latency(
            place, plan.rounds, plan.resync_bytes, plan.seconds * 3
        ),
        "idle": lambda place: idle.idle(place, plan.idle_s),
    }
    for key, run in extra.items():
        if key in plan.rows:
            place = base / key
            place.mkdir()
            tell(key, run(place))
            shutil.rmtree(place, ignore_errors=True)
    return said


# --- the command ------------------------------------------------------------------------------


def _head(plan: Plan) -> None:
    load = os.getloadavg()[0]
    print(
        f"{plan.rounds} rounds of {plan.seconds:g} s, files in {plan.directory}; "
        f"{os.cpu_count()} CPUs, Linux {platform.release()}, load before: {load:.1f}"
    )
    if QUORUM in plan.columns:
        version = subprocess.run(
            ["qemu-storage-daemon", "--version"], capture_output=True, text=True, check=True
        )
        print(f"quorum: {version.stdout.splitlines()[0]}, aio={plan.aio}")


def _ended(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str]) -> int:
    """Run the command; the exit status."""
    begun = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    try:
        plan, skipped = check(parse(arguments))
        _head(plan)
        for reason in skipped:
            print(f"skipped: {reason}")
        with tempfile.TemporaryDirectory(
            prefix="hyperha-bench-", dir=plan.directory, ignore_cleanup_errors=True
        ) as base:
            said = measure_all(plan, Path(base))
    except (HyperhaError, AssertionError, OSError) as problem:
        # What drives the pair tells a time-out as a failed assertion.
        print(f"could not run: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(_NOT_HERE)
    missed = [f"{key}: {verdict.text}" for key, verdict in said if verdict.missed]
    print(f"took {time.monotonic() - begun:.0f} s")
    if missed:
        print(f"{len(missed)} budgets MISSED:\n  " + "\n  ".join(missed))
    else:
        print("every budget that was measured is met")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
