"""Rounds as processes of their own: a test of the suite, a drill, a stretch of seeds.

A round's directory lies outside the repository; it is removed when the round has passed and
kept, with its log, when it has not. Nothing here knows about tallies.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

from hyperha.replication.mounts import beneath, mounted
from tests.support import ROOT

TAIL_LINES = 60
END_LIMIT_S = 90.0
"""A round that is told to end takes its nodes, mounts and disks away first."""
Figures = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Order:
    """One round: `count` units of a row."""

    row: str
    count: int
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a round ended: `failure` is empty when it passed, `stopped` when it was told to end."""

    seconds: float
    failure: str = ""
    figures: Figures | None = None
    log: str = ""
    tail: tuple[str, ...] = ()
    stopped: bool = False


class Kind(Protocol):
    """How a sort of round is started and read."""

    def command(self, order: Order, place: Path) -> tuple[list[str], dict[str, str]]:
        """The command, and what it finds in its environment."""

    def figures(self, order: Order, place: Path) -> Figures:
        """What a round has told that ended with status 0. Raises ValueError when it says that
        not everything asked for was done."""


@dataclass(frozen=True, slots=True)
class TestRound:
    """A row is a test of a file of the suite, or what `test` is told in its environment."""

    __test__ = False  # Not a class of tests.

    file: str
    environment: Callable[[Order], dict[str, str]] = lambda order: {}
    test: str = ""

    def command(self, order: Order, place: Path) -> tuple[list[str], dict[str, str]]:
        """pytest on one test; what is missing on this machine fails it."""
        test = f"{self.file}::{self.test or order.row}"
        command = [sys.executable, "-m", "pytest", test, "-q", "-s"]
        # The name is short: sockets lie below, and their paths may have 107 bytes.
        command += [f"--basetemp={place / 't'}", f"--junitxml={place / 'junit.xml'}"]
        command += ["-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
        return command, {"HYPERHA_REQUIRE": "all", **self.environment(order)}

    def figures(self, order: Order, place: Path) -> Figures:
        """The properties that the test recorded."""
        del order
        found: Figures = {}
        report = ElementTree.parse(place / "junit.xml")
        cases = report.findall(".//testcase")
        if len(cases) != 1 or cases[0].find("skipped") is not None:
            raise ValueError(f"{len(cases)} tests ran and not one, or it was skipped")
        for one in report.iterfind(".//property"):
            found.setdefault(one.attrib["name"], []).append(float(one.attrib["value"]))
        return found


@dataclass(frozen=True, slots=True)
class DrillRound:
    """The drill of `hyperha demo`."""

    ports: int

    def command(self, order: Order, place: Path) -> tuple[list[str], dict[str, str]]:
        """One headless drill, its cluster below the round's directory."""
        del order
        command = [sys.executable, "-m", "hyperha.cli.main", "demo", "--headless", "--drill"]
        return [*command, "--home", str(place / "d"), "--ports", str(self.ports)], {}

    def figures(self, order: Order, place: Path) -> Figures:
        """From the drill's report."""
        body = json.loads((place / "d" / "drill.json").read_text(encoding="utf-8"))
        if not body["passed"] or len(body["drills"]) != order.count:
            raise ValueError(f"drill.json: {body}")
        found: Figures = {}
        for drill in body["drills"]:
            for name, key in (
                ("orders", "acknowledged_orders"),
                ("lost", "acknowledged_orders_lost"),
                ("start_prim_s", "kill_to_start_prim_s"),
                ("first_order_s", "kill_to_first_order_s"),
            ):
                if drill[key] is not None:
                    found.setdefault(name, []).append(drill[key])
        return found


@dataclass(frozen=True, slots=True)
class SwarmRound:
    """A stretch of seeds of the simulation, under every policy."""

    def command(self, order: Order, place: Path) -> tuple[list[str], dict[str, str]]:
        """The seeds from the order's on."""
        report = str(place / "swarm.json")
        arguments = [str(order.seed), str(order.count), report]
        return [sys.executable, "-m", "tests.campaigns.swarm", *arguments], {}

    def figures(self, order: Order, place: Path) -> Figures:
        """How many worlds were run."""
        body = json.loads((place / "swarm.json").read_text(encoding="utf-8"))
        if body["seeds"] != order.count:
            raise ValueError(f"{body['seeds']} seeds were run and not {order.count}")
        return {"worlds": [body["worlds"]]}


def run_round(kind: Kind, order: Order, limit_s: float, stopping: Callable[[], bool]) -> Outcome:
    """Start a round and wait for its end, for `limit_s` seconds, or until it shall stop."""
    place = Path(tempfile.mkdtemp(prefix="campaign-"))
    command, environment = kind.command(order, place)
    log = place / "log"
    begun = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            # As where it is installed: else each process compiles all of its sources first.
            env={
                **os.environ,
                "PYTHONFAULTHANDLER": "1",
                "PYTHONDONTWRITEBYTECODE": "",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    hung = False
    while process.poll() is None:
        if stopping():
            _end(process, signal.SIGINT)
            _remove(place)
            return Outcome(time.monotonic() - begun, stopped=True)
        if time.monotonic() - begun > limit_s:
            hung = True
            # The stacks of all threads go to the log.
            _end(process, signal.SIGABRT)
        time.sleep(0.1)
    seconds = time.monotonic() - begun
    failure, figures = _judge(kind, order, place, process.returncode)
    if hung:
        failure = f"did not end in {limit_s:g} s"
    if not failure:
        _remove(place)
        return Outcome(seconds, figures=figures)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Outcome(seconds, failure, None, str(log), tuple(lines[-TAIL_LINES:]))


def _judge(kind: Kind, order: Order, place: Path, status: int) -> tuple[str, Figures]:
    if status != 0:
        return f"exit status {status}", {}
    try:
        figures = kind.figures(order, place)
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as problem:
        return f"ended with status 0, but: {problem}", {}
    left = [entry.path for entry in beneath(str(place), mounted())]
    return (f"left mounts behind: {', '.join(left)}" if left else ""), figures


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Ask once, then end it; its supply of power and its janitor clean up without it."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove(place: Path) -> None:
    """Not while something is mounted below: that is somebody's data."""
    if not beneath(str(place), mounted()):
        shutil.rmtree(place, ignore_errors=True)
