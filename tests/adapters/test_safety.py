"""Safety copies: whatever a resync does to a folder, undo and restore give back what was (R15)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hyperha.core.actions import SafetyEnd
from tests.support.machine import lacking
from tests.support.safety import Breaker, Folder, file_system, folder_at, state_of

pytestmark = pytest.mark.root
_KINDS = ("ext4", "xfs", "btrfs")


@pytest.fixture(scope="module", params=["here", *_KINDS])
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on each file system."""
    with tempfile.TemporaryDirectory(prefix="safety-") as base:
        if request.param == "here":
            yield Path(base)
            return
        if not os.path.exists("/dev/loop-control"):
            lacking("needs loop devices")
        with file_system(request.param, Path(base)) as mounted:
            yield mounted


@pytest.fixture
def path(place: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=place) as one:
        yield Path(one) / "folder"


def _grown(folder: Folder, seed: int) -> tuple[Breaker, dict[str, object]]:
    breaker = Breaker(folder, seed)
    breaker.grow()
    return breaker, state_of(folder.path)


_SLOW = settings(
    max_examples=int(os.environ.get("HYPERHA_EXAMPLES", "12")),
    deadline=None,
    report_multiple_bugs=False,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@_SLOW
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60), crash=st.integers(0, 60))
def test_undo_gives_back_what_was(place: Path, seed: int, steps: int, crash: int) -> None:
    with tempfile.TemporaryDirectory(dir=place) as base, folder_at(Path(base) / "f") as folder:
        breaker, before = _grown(folder, seed)
        name = folder.begin()
        for number in range(steps):
            if number == crash:
                folder.crash()
            breaker.step()
        to = Path(base) / "restored"
        folder.restore(name, to)
        restored = state_of(to, ids=False)
        _equal(restored, state_without_ids(before))
        folder.undo()
        _equal(state_of(folder.path), before)
        folder.undo()
        _equal(state_of(folder.path), before)
        for _ in range(10):
            breaker.step()
        folder.undo()
        folder.end(SafetyEnd.UNDONE)
        _equal(state_of(folder.path), before)
        assert folder.area.facts() == ()
        assert folder.store.guard is None
        assert not folder.told


def _equal(now: dict[str, object], then: dict[str, object]) -> None:
    names = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    assert not names, "\n".join(f"{one}: {now.get(one)}\n  was {then.get(one)}" for one in names)


def state_without_ids(state: dict[str, object]) -> dict[str, object]:
    without = {}
    for name, one in state.items():
        assert isinstance(one, tuple)
        values = list(one)
        values[7] = tuple(pair for pair in values[7] if pair[0] != "trusted.hyperha.id")
        without[name] = tuple(values)
    return without
