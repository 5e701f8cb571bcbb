"""What the table says of figures, and what its command line refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hyperha.errors import UsageError
from tests.benchmarks import raw_copy, replication
from tests.benchmarks.table import ROWS, Ratio, judge, ratio_of, spread, within


def test_ratios_are_taken_within_a_round() -> None:
    """A round in which the machine was slow for everybody says as much as another one."""
    samples = {"plain": [100.0, 10.0, 90.0], "quorum": [50.0, 5.0, 60.0]}
    assert ratio_of(samples, "plain", "quorum") == [2.0, 2.0, 1.5]
    met = judge(Ratio("plain", "quorum", 1.9, "budget"), samples)
    assert met is not None
    assert met.text == "plain / quorum = 2.00 (1.50-2.00)  > 1.9: met"
    assert not met.missed


def test_a_missed_budget_counts_and_a_missed_goal_is_said_only() -> None:
    samples = {"plain": [1.0], "local": [4.0]}
    budget = judge(Ratio("plain", "local", 0.3, "budget"), samples)
    goal = judge(Ratio("plain", "local", 0.3, "goal"), samples)
    printed = judge(Ratio("plain", "local"), samples)
    assert budget is not None
    assert goal is not None
    assert printed is not None
    assert (budget.missed, goal.missed, printed.missed) == (True, False, False)
    assert "MISSED" in goal.text
    assert within("memory", 81.0, 80.0, "MiB").missed
    assert judge(Ratio("tls", "local", 0.3, "budget"), samples) is None


def test_spread_shows_the_range_only_of_several_rounds() -> None:
    assert spread([1234.4]) == "1,234"
    assert spread([3.0, 1.0, 2.0]) == "2 (1-3)"


def test_rows_have_the_budgets_of_both_columns() -> None:
    budgets = {
        (row.key, ratio.above, ratio.below): ratio.least
        for row in ROWS
        for ratio in row.ratios
        if ratio.kind == "budget"
    }
    assert budgets == {
        ("depth1", "plain", "quorum"): 1.0,
        ("depth8", "plain", "quorum"): 1.3,
        ("stream", "plain", "quorum"): 2.0,
        ("stream", "tls", "quorum"): 1.0,
        ("fsync", "plain", "quorum"): 1.5,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "depth9"], "no row 'depth9'"),
        (["--columns", "plain,udp"], "no column 'udp'"),
        (["--rounds", "0"], "nothing to measure"),
        (["--seconds", "0.01"], "nothing to measure"),
    ],
)
def test_the_command_line_names_what_it_refuses(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replication.parse(arguments)


def test_rows_and_columns_keep_the_order_of_the_table() -> None:
    plan = replication.parse(["--rows", "idle,depth8", "--columns", "quorum,local"])
    assert plan.rows == ("depth8", "idle")
    assert plan.columns == ("local", "quorum")


def test_missing_tools_skip_what_needs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os.path, "exists", lambda _path: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "fio" else name)
    plan, skipped = replication.check(replication.parse([]))
    assert plan.columns == ("quorum",)
    assert "no fio" in skipped[0]
    plan, skipped = replication.check(replication.parse(["--columns", "quorum"]))
    assert (plan.columns, skipped) == (("quorum",), [])
    plan, skipped = replication.check(replication.parse(["--columns", "tls,quorum"]))
    assert skipped == ["tls: there is no fio (package fio)"]
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    plan, skipped = replication.check(replication.parse([]))
    assert plan.rows == replication.EXTRA_ROWS
    assert len(skipped) == 2
    assert replication.main(["--rows", "depth1"]) == 2
    assert "nothing is left to measure" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert replication.main([]) == 2
    assert "needs root" in capsys.readouterr().err


def test_a_raw_copy_without_a_receiver_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="refused"):
        raw_copy.send(tmp_path / "file", 1)
