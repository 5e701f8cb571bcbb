"""Marker, record and stamp: every prefix and legal subset of their writes (R12, R14)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hyperha.core.facts import MarkerState
from hyperha.domain import Marker
from hyperha.replication.admission import judge
from hyperha.replication.marker import inspect, write_marker
from tests.crash import markers

pytestmark = pytest.mark.root


def test_the_folder_is_recognised_after_every_cut(tmp_path: Path) -> None:
    tried = markers.life(tmp_path)
    print(f"marker: {tried.states} states at {tried.places} places, judged {tried.judged} times")


def test_a_copy_of_the_folder_is_not_recognised(tmp_path: Path) -> None:
    """N6: also while it carries what the record names, in both places."""
    marker = Marker("resource", "node1", "g1", 7)
    folder, copy = tmp_path / "folder", tmp_path / "copy"
    folder.mkdir()
    found = []
    for place in (folder, copy):
        if place is copy:
            assert os.spawnlp(os.P_WAIT, "cp", "cp", "-a", str(folder), str(copy)) == 0
        descriptor = os.open(place, os.O_RDONLY)
        if place is folder:
            write_marker(descriptor, marker)
        found.append(judge(inspect(descriptor), (marker,))[0])
        found.append(judge(inspect(descriptor), (replace(marker, counter=8), marker))[0])
        os.close(descriptor)
    assert found == [MarkerState.MATCHES] * 2 + [MarkerState.DAMAGED] * 2
