"""A replication process dies at any step of an order: its successor has the mount (M4, C10)."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from hyperha.core import actions
from hyperha.core.actions import Acknowledge
from hyperha.core.facts import MarkerState
from hyperha.domain import Epoch
from tests.support import dying_process
from tests.support.engine_pair import free_ports
from tests.support.engine_process import PROGRAM, NodeProcess

pytestmark = [pytest.mark.root, pytest.mark.fuse]

LIMIT = 60
"""More steps than any of these orders has."""


@pytest.fixture
def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a node that runs alone, whose process dies at a step of an order."""
    nodes = []
    serial = itertools.count()

    def make(order: str, step: int) -> NodeProcess:
        base = tmp_path / str(next(serial))
        base.mkdir()
        monkeypatch.setenv(dying_process.VARIABLE, f"{order}:{step}")
        ports = free_ports(2)
        node = NodeProcess(base, "node1", "node2", *ports, program=dying_process.PROGRAM)
        nodes.append(node)
        node.attach()
        return node

    yield make
    for node in nodes:
        node.close()


def succeed(node: NodeProcess) -> None:
    node.process.wait(10)
    node.kill()
    node.succeed(program=PROGRAM)


def run_alone(node: NodeProcess) -> None:
    node.do(actions.Promote, Epoch(1, "node1"), Acknowledge.LOCAL)
    (node.folder / "disk").write_bytes(b"x" * 3_000_000)


def arguments(node: NodeProcess, order: type[actions.EngineAction]) -> tuple[object, ...]:
    if order is actions.EnterAlone:
        return ("g0",)
    return (node.marker(node.counter + 1),) if order is actions.SetMarker else ()


@pytest.mark.parametrize("order", [actions.SetMarker, actions.EnterAlone, actions.ClearMap])
def test_a_successor_follows_whatever_the_moment_of_death(dying, order) -> None:
    """Also between the two places of the marker, of which the record still knows the former value
    (R12): the order is given again, and a later start finds what it expects."""
    deaths = 0
    for step in range(1, LIMIT):
        node = dying(order.__name__, step)
        run_alone(node)
        ends = node.outcome(node.order(order, *arguments(node, order))) is not None
        if not ends:
            deaths += 1
            succeed(node)
            node.do(order, *arguments(node, order))
        if order is actions.SetMarker:
            node.counter += 1
        node.do(actions.Release)
        assert (node.folder / "disk").read_bytes() == b"x" * 3_000_000
        node.counter += 1
        node.do(actions.Detach, node.marker(node.counter))
        node.process.wait(10)
        node.drop_kept()
        node.start(program=PROGRAM)
        assert node.attach(fresh=False).marker is MarkerState.MATCHES
        node.close()
        if ends:
            break
    assert ends
    assert deaths


@pytest.mark.parametrize("step", range(1, 40, 3))
def test_a_guest_goes_on_whatever_the_moment_of_death(dying, step) -> None:
    """N1: what was begun is done once, and all of it."""
    node = dying("Release+", step)
    run_alone(node)

    written: list[Path] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            number = len(written)
            name = node.folder / f"new{number}"
            with open(name, "wb", buffering=0) as file:
                file.write(b"y" * 5000)
                written.append(name.rename(node.folder / f"renamed{number}"))
                file.write(b"z" * 5000)

    guest = threading.Thread(target=work, daemon=True)
    node.order(actions.Release)
    guest.start()
    succeed(node)
    stop.set()
    node.do(actions.Release)
    guest.join(10)
    assert not guest.is_alive()
    assert written
    for path in written:
        assert path.read_bytes() == b"y" * 5000 + b"z" * 5000
    assert {one.name for one in node.folder.iterdir()} == {"disk", *(one.name for one in written)}


def private(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in (folder / ".hyperha").iterdir() if one.is_file()}


def test_a_successor_leaves_the_log_of_a_foreign_folder_alone(tmp_path: Path) -> None:
    """R12: also when the process that covers it dies."""
    node = NodeProcess(tmp_path, "node1", "node2", *free_ports(2))
    try:
        node.attach()
        node.counter += 1
        node.do(actions.Detach, node.marker(node.counter))
        node.process.wait(10)
        node.drop_kept()
        kept = private(node.folder)
        node.start()
        facts = node.do(actions.Attach, (node.marker(99),), node.marker(100), False).attach
        assert facts is not None
        assert facts.marker is MarkerState.DIFFERS
        node.kill()
        node.succeed()
        with pytest.raises(OSError, match="Read-only"):
            (node.folder / "x").touch()
        refused = node.done(node.order(actions.Promote, Epoch(1, "node1"), Acknowledge.LOCAL))
        assert "R12" in refused.text
        node.do(actions.Detach, None)
        node.process.wait(10)
        assert private(node.folder) == kept
    finally:
        node.close()
