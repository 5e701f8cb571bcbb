"""The data path of both nodes: every prefix, and legal subsets of what both disks were asked.

HYPERHA_CRASH_SEED says what the guest does and which subsets are tried, HYPERHA_CRASH_DEPTH how
many times as many as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash import pipeline
from tests.crash.enumeration import SEED, Tried

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
Record = Callable[[str, object], None]


def _tell(name: str, tried: Tried, record: Record) -> None:
    record("states", tried.states)
    record("judged", tried.judged)
    print(
        f"{name}: {tried.states} states at {tried.places} places, judged {tried.judged} times, "
        f"HYPERHA_CRASH_SEED={SEED}"
    )


def test_in_sync(tmp_path: Path, record_property: Record) -> None:
    """F2, Z2, Z4: no difference that no log names, no acknowledged barrier taken back."""
    _tell("in sync", pipeline.in_sync(tmp_path, SEED), record_property)


def test_full_logs(tmp_path: Path, record_property: Record) -> None:
    """Z5, N4: what found no slot is owed until both disks have it, and not longer."""
    _tell("full logs", pipeline.full_logs(tmp_path, SEED), record_property)


def test_alone_and_back(tmp_path: Path, record_property: Record) -> None:
    """Z1, C4, R11: what was hot at D3 is known until a resync has ended on both disks."""
    _tell("alone and back", pipeline.alone_and_back(tmp_path, SEED), record_property)


def test_frozen_and_back(tmp_path: Path, record_property: Record) -> None:
    """R11, M1: a barrier that a dead session left open is answered when both have it."""
    _tell("frozen and back", pipeline.frozen_and_back(tmp_path, SEED), record_property)


def test_takeover(tmp_path: Path, record_property: Record) -> None:
    """P8: what was acknowledged is on the disk before the copy is promoted."""
    _tell("takeover", pipeline.takeover(tmp_path, SEED), record_property)
