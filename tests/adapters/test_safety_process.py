"""Safety copies of real replication processes: a primary's kept copy behind its mount, an undo."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core import actions
from hyperha.core.actions import Acknowledge, SafetyEnd, SessionStart
from hyperha.core.records import Generation
from hyperha.domain import Epoch
from hyperha.replication import control
from hyperha.replication.control import (
    DeleteSafety,
    ListSafety,
    Question,
    RestoreSafety,
    SafetyAnswered,
    SafetyCopies,
)
from hyperha.replication.store import Store
from tests.support.engine_pair import free_ports
from tests.support.engine_process import NodeProcess, ProcessPair
from tests.support.safety import state_of

pytestmark = [pytest.mark.root, pytest.mark.fuse]
_GENERATION = Generation("ef" * 16, 3, "test", 0)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[ProcessPair]:
    both = ProcessPair(tmp_path, free_ports(2))
    try:
        yield both
    finally:
        both.close()


def _ask(node: NodeProcess, question: Question) -> None:
    assert node.channel is not None
    node.channel.send(control.encode(question))


def _listed(node: NodeProcess) -> SafetyCopies:
    _ask(node, ListSafety(1))
    answer = node.wait(SafetyCopies)
    assert isinstance(answer, SafetyCopies)
    return answer


def _answered(node: NodeProcess, question: RestoreSafety | DeleteSafety) -> SafetyAnswered:
    _ask(node, question)
    answer = node.wait(SafetyAnswered, lambda one: one.finished)
    assert isinstance(answer, SafetyAnswered)
    return answer


def _grow(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    for number in range(12):
        place = folder / f"d{number % 4}"
        place.mkdir(exist_ok=True)
        (place / f"f{number}").write_bytes(dice.randbytes(dice.randrange(200_000)))
    os.symlink("f0", folder / "d0" / "soft")
    os.link(folder / "d1" / "f1", folder / "hard")
    os.setxattr(folder / "d2" / "f2", "user.x", b"y")
    os.truncate(folder / "d3" / "f3", 1 << 20)
    os.chmod(folder / "d0" / "f0", 0o4755)


def _change(folder: Path, number: int) -> None:
    """What a guest may do, with files that lose their names while they are open."""
    dice = random.Random(number)
    descriptor = os.open(folder / "d0" / "f0", os.O_RDWR | os.O_DIRECT)
    os.unlink(folder / "d0" / "f0")
    assert os.fstat(descriptor).st_size < 200_000
    # It takes the set-user-id bit away, also from a file without names.
    subprocess.run(["echo", "somebody else's"], stdout=descriptor, user=1000, check=True)
    assert not os.fstat(descriptor).st_mode & stat.S_ISUID
    os.pwrite(descriptor, b"written without a name", 3)
    os.ftruncate(descriptor, 9)
    os.fchmod(descriptor, 0o604)
    os.close(descriptor)
    with open(folder / "d1" / "f1", "r+b") as file:
        file.seek(70_000)
        file.write(dice.randbytes(1000))
        file.truncate(80_000)
    os.unlink(folder / "hard")
    os.replace(folder / "d2" / "f2", folder / "d2" / "f6")
    subprocess.run(["fallocate", "-p", "-o", "0", "-l", "8192", folder / "d3" / "f3"], check=True)
    os.chmod(folder / "d1", 0o711)
    os.rename(folder / "d1", folder / "d3" / "moved")
    shutil.rmtree(folder / "d0")
    (folder / "new").write_bytes(b"new")
    os.unlink(folder / "d3" / "f7")


def _identify_all(folder: Path) -> None:
    """As of a folder that was replicated before: nothing is saved by being looked at."""
    descriptor = os.open(folder, os.O_RDONLY)
    store = Store(descriptor)
    os.close(descriptor)
    for found in store.walk():
        store.identify(found.parent, found.entry.name)
    store.close()


def _without_ids(folder: Path) -> dict[str, object]:
    found = state_of(folder, ids=False)
    root = found.pop(".")
    assert root
    return found


def test_a_kept_copy_outlives_what_a_guest_does(pair: ProcessPair, tmp_path: Path) -> None:
    node = pair.a
    _grow(node.folder, 1)
    _identify_all(node.folder)
    before = _without_ids(node.folder)
    node.attach()
    node.do(actions.OpenSafety, False, True, "R8", _GENERATION, False)
    node.do(actions.CloseSafety, SafetyEnd.COPIED)
    node.do(actions.EnterAlone, "")
    node.do(actions.Promote, Epoch(1, node.node), Acknowledge.LOCAL)
    _change(node.folder, 1)
    (facts,) = _listed(node).copies
    assert (facts.state, facts.rule, facts.ordinal, facts.required) == ("kept", "R8", 3, True)
    assert facts.files >= 8
    to = tmp_path / "restored"
    answer = _answered(node, RestoreSafety(2, facts.id, str(to)))
    assert answer.ok, answer.text
    assert answer.done_bytes == answer.total_bytes > 0
    found = _without_ids(to)
    different = [one for one in before.keys() | found.keys() if before.get(one) != found.get(one)]
    assert not different, [(found.get(one), before.get(one)) for one in different]
    inside = _answered(node, RestoreSafety(3, facts.id, str(node.folder / "x")))
    assert not inside.ok
    assert "inside the folder" in inside.text
    # A successor of the process guards it, too.
    node.kill()
    node.succeed()
    node.do(actions.Release)
    (node.folder / "d2" / "f10").write_bytes(b"after")
    again = tmp_path / "again"
    answer = _answered(node, RestoreSafety(4, facts.id, str(again)))
    assert answer.ok, answer.text
    assert _without_ids(again) == before
    assert _answered(node, DeleteSafety(5, facts.id)).ok
    assert _listed(node).copies == ()
    assert not _answered(node, DeleteSafety(6, facts.id)).ok


def test_a_resync_whose_both_ends_die_is_undone(pair: ProcessPair) -> None:
    for node in (pair.a, pair.b):
        node.attach()
    pair.in_sync()
    _grow(pair.a.folder, 2)
    pair.a.do(actions.Barrier)
    pair.b.do(actions.Barrier)
    pair.b.do(actions.CloseSession)
    pair.a.do(actions.CloseSession)
    pair.a.do(actions.EnterAlone, "")
    pair.a.do(actions.Release)
    _change(pair.a.folder, 2)
    before = state_of(pair.b.folder)
    pair.b.do(actions.OpenSafety, False, False, "R7", _GENERATION, False)
    pair.connect(SessionStart.FULL)
    pair.b.wait(control.Statistics, lambda one: one.session in ("resync", "serving"))
    pair.a.kill()
    pair.b.kill()
    pair.b.drop_kept()
    pair.b.start()
    pair.b.attach(fresh=False)
    (facts,) = _listed(pair.b).copies
    assert facts.state == "open"
    pair.b.do(actions.UndoResync)
    assert state_of(pair.b.folder) == before
    pair.b.do(actions.CloseSafety, SafetyEnd.UNDONE)
    assert _listed(pair.b).copies == ()
    assert state_of(pair.b.folder) == before
