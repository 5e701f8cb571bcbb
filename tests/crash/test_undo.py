"""The undo log of a safety copy: every prefix and legal subset of its writes (R15)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import undo

pytestmark = pytest.mark.root


def test_what_a_resync_destroys_is_saved_before(tmp_path: Path) -> None:
    tried = undo.undone(tmp_path)
    print(f"undo log: {tried.states} states at {tried.places} places, judged {tried.judged} times")
