"""A test that may take long is not looked into while it works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

_TEST = """
import time
import pytest
@pytest.mark.timeout({limit_s})
def test_something():
    time.sleep(1.5)
"""


@pytest.mark.parametrize(("limit_s", "looked_into"), [(1.9, True), (60, False)])
def test_a_dump_of_all_stacks_comes_only_near_the_limit(
    tmp_path: Path, limit_s: float, looked_into: bool
) -> None:
    """Python's own dump may crash a process whose threads go on meanwhile."""
    (tmp_path / "test_it.py").write_text(_TEST.format(limit_s=limit_s))
    options = ("-o", "faulthandler_timeout=1", "-o", "timeout=2", "-p", "tests.conftest")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert ("Timeout (0:00:01)!" in run.stdout + run.stderr) is looked_into
