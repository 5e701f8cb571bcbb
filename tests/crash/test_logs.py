"""The intent log: every prefix and legal subset of its writes (Z1, Z2, Z5, Z6)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash import logs
from tests.crash.enumeration import Tried

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    "scenario",
    [logs.in_sync, logs.growing, logs.overflowing, logs.alone, logs.everything, logs.damaged],
    ids=lambda one: str(one.__name__),
)
def test_no_cut_forgets_a_candidate(tmp_path: Path, scenario: Callable[[Path], Tried]) -> None:
    tried = scenario(tmp_path)
    print(
        f"log {scenario.__name__}: {tried.states} states at {tried.places} places, "
        f"judged {tried.judged} times"
    )
