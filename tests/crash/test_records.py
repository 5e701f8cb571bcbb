"""Records: every prefix and every legal subset of their writes (S2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import records
from tests.crash.enumeration import Tried


def _tell(name: str, tried: Tried) -> None:
    print(f"{name}: {tried.states} states at {tried.places} places, judged {tried.judged} times")


def test_a_record_reads_as_the_former_or_the_new_value(tmp_path: Path) -> None:
    _tell("record", records.values(tmp_path))


def test_a_record_without_write_through(tmp_path: Path) -> None:
    _tell("record without O_DSYNC", records.values(tmp_path, write_through=False))


def test_a_damaged_record_is_kept_where_it_was_said(tmp_path: Path) -> None:
    _tell("damaged record", records.damaged(tmp_path))


def test_lineage_and_settings(tmp_path: Path) -> None:
    _tell("records of a module", records.module(tmp_path))


pytestmark = pytest.mark.root
