"""How long a look at the peer may take, for the timing that is configured (W8)."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperha.config import load_all
from hyperha.core.looking import FRESH_MS
from hyperha.daemon.probe import ProbeTargets
from tests.adapters.test_config import empty_home


@pytest.mark.parametrize("takeover_wait_ms", [3500, 10_000])
def test_a_look_is_over_before_its_answer_is_too_old(tmp_path: Path, takeover_wait_ms: int) -> None:
    home = empty_home(tmp_path)
    text = home.cluster_file.read_text()
    wanted = f"takeover_wait_ms = {takeover_wait_ms}"
    home.cluster_file.write_text(text.replace("takeover_wait_ms = 3500", wanted))
    assert ProbeTargets.of(load_all(home)).timeout_s * 1000 < FRESH_MS
