"""What campaigns count, for which code, and what they refuse; on a small git repository."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hyperha.errors import BusyError, FailedError, RefusedError, UsageError
from tests.campaigns.__main__ import amount, main, period_s
from tests.campaigns.catalogue import Campaign, campaigns, named
from tests.campaigns.repository import Repository
from tests.campaigns.rounds import Figures, Order, TestRound, run_round
from tests.campaigns.session import Session, Wishes
from tests.campaigns.tally import Failure, Round, Tally, load, now
from tests.simulation.test_swarm import WAYS
from tests.support import ROOT

COVERS = ("product", ":(exclude)product/docs")


def git(place: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    command = ["git", "-C", str(place), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass
class Shell:
    """A round is a shell command; its figures lie in a file."""

    text: str = "true"
    orders: list[Order] = field(default_factory=list)

    def command(self, order: Order, place: Path) -> tuple[list[str], dict[str, str]]:
        self.orders.append(order)
        return ["/bin/sh", "-c", self.text], {"PLACE": str(place), "SEED": str(order.seed)}

    def figures(self, order: Order, place: Path) -> Figures:
        if (place / "wrong").exists():
            raise ValueError("not what was asked for")
        return {"orders": [10.0 * order.count], "first_order_s": [1.0, 3.0]}


class Place:
    """A repository with a product, its results, and a campaign on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        git(root, "init", "-q")
        (root / "product" / "docs").mkdir(parents=True)
        self.write("product/code", "1")
        self.write("product/docs/text", "1")
        self.commit()
        self.repository = Repository(root)
        self.results = root / "results"
        self.shell = Shell()
        self.said: list[str] = []
        self.rows: tuple[str, ...] = ("row",)
        self.seeds = "next"
        self.step = 5

    def write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)

    def commit(self) -> str:
        git(self.root, "add", "-A")
        git(self.root, "commit", "-q", "-m", "another state")
        return git(self.root, "rev-parse", "HEAD")

    def session(self, wishes: Wishes) -> Session:
        campaign = Campaign(
            f"trial-{os.getpid()}", "a trial", "seeds", 10, self.rows, COVERS, self.shell,
            self.seeds, self.step, 20.0, needs_root=False,
        )  # fmt: skip
        return Session(campaign, self.repository, self.results, wishes, self.said.append)

    def run(self, rounds: int | None = 5, *, dirty: bool = False) -> int:
        return self.session(Wishes(rounds=rounds, dirty=dirty)).run()

    def tally(self) -> Tally:
        found = load(self.results / f"trial-{os.getpid()}.json")
        assert found is not None
        return found


@pytest.fixture(autouse=True)
def _logs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs of rounds that fail here go with the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("logs")))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_rounds_are_added_up_over_calls_and_seeds_go_on(place: Place) -> None:
    assert place.run(5) == 0
    assert place.run(7) == 0
    tally = place.tally()
    assert tally.counts == {"row": 12}
    assert [one.seed for one in tally.rounds] == [0, 5, 10]
    assert [one.count for one in tally.rounds] == [5, 5, 2]
    assert tally.next_seed == 12
    assert tally.commit == place.repository.head()
    summary = json.loads((place.results / f"trial-{os.getpid()}.json").read_text())["summary"]
    assert summary["orders"] == 120
    assert summary["first_order_s"] == {"number": 6, "median": 2.0, "worst": 3.0}


def test_without_a_limit_a_campaign_ends_at_its_goal_for_every_row(place: Place) -> None:
    place.rows, place.seeds, place.step = ("one", "two"), "", 1
    assert place.run(None) == 0
    assert place.tally().counts == {"one": 10, "two": 10}
    assert place.tally().rounds[0].seed is None
    assert place.run(None) == 0
    assert len(place.shell.orders) == 20


def test_a_time_is_kept(place: Place) -> None:
    begun = time.monotonic()
    assert place.session(Wishes(for_s=0.5)).run() == 0
    assert 0.5 <= time.monotonic() - begun < 10
    assert place.tally().counts["row"] >= 5


def test_a_failure_sets_the_tally_to_zero_and_stays_on_record(place: Place) -> None:
    assert place.run(5) == 0
    place.shell.text = "echo what went wrong; exit 3"
    assert place.run(5) == 1
    tally = place.tally()
    assert (tally.counts, tally.rounds, tally.next_seed) == ({}, [], 0)
    (failure,) = tally.failures
    assert (failure.seed, failure.what, failure.tail) == (5, "exit status 3", ["what went wrong"])
    assert failure.commit == place.repository.head()
    log = Path(failure.log)
    assert log.read_text() == "what went wrong\n"
    assert not log.is_relative_to(place.root)
    assert any(failure.log in line for line in place.said)
    place.shell.text = "true"
    assert place.run(5) == 0
    assert place.tally().counts == {"row": 5}
    assert place.tally().failures == [failure]


def test_status_zero_is_not_enough(place: Place) -> None:
    place.shell.text = 'touch "$PLACE/wrong"'
    assert place.run(5) == 1
    assert "not what was asked for" in place.tally().failures[0].what


def test_a_change_of_a_covered_package_begins_a_new_tally(place: Place) -> None:
    place.run(5)
    first = place.tally().commit
    place.write("product/docs/text", "2")
    place.commit()
    place.run(5)
    assert (place.tally().counts, place.tally().commit) == ({"row": 10}, first)
    place.write("product/code", "2")
    second = place.commit()
    place.run(5)
    assert (place.tally().counts, place.tally().commit) == ({"row": 5}, second)
    assert place.tally().rounds[0].seed == 0
    assert any("stale (product/code)" in line and "zero" in line for line in place.said)


@pytest.mark.parametrize("path", ["product/code", "product/new"])
def test_a_dirty_work_tree_is_refused_and_only_tried(place: Place, path: str) -> None:
    place.write(path, "3")
    with pytest.raises(RefusedError, match=path):
        place.run(5)
    assert not place.shell.orders
    assert place.run(5, dirty=True) == 0
    assert len(place.shell.orders) == 1
    assert not place.results.exists()
    place.shell.text = "exit 1"
    assert place.run(5, dirty=True) == 1
    assert not place.results.exists()


@pytest.mark.parametrize("ending", ["true", "exit 1"])
def test_a_round_during_which_the_code_changed_does_not_count(place: Place, ending: str) -> None:
    place.run(5)
    place.shell.text = f"echo 4 >{place.root}/product/code; {ending}"
    with pytest.raises(RefusedError, match="product/code changed during a round"):
        place.run(5)
    assert place.tally().counts == {"row": 5}
    assert not place.tally().failures


def test_a_commit_that_is_gone_makes_a_tally_stale(place: Place) -> None:
    assert "is not in this repository" in place.repository.changed("f" * 40, COVERS)[0]
    with pytest.raises(FailedError, match="has no commit"):
        Repository(place.root.parent / "nothing").head()


def test_a_signal_ends_it_and_the_round_in_progress_does_not_count(place: Place) -> None:
    place.shell.text = 'test "$SEED" -lt 5 || exec sleep 60'

    def end() -> None:
        deadline = time.monotonic() + 20
        while len(place.shell.orders) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end)
    former = signal.getsignal(signal.SIGTERM)
    thread.start()
    begun = time.monotonic()
    assert place.run(None) == 0
    thread.join()
    assert time.monotonic() - begun < 20
    assert place.tally().counts == {"row": 5}
    assert signal.getsignal(signal.SIGTERM) == former


def test_two_at_a_time_are_refused(place: Place) -> None:
    waiting = f"while ! test -e {place.root}/go; do sleep 0.02; done"
    place.shell.text = waiting
    thread = threading.Thread(target=lambda: statuses.append(_second(place)))
    statuses: list[str] = []
    thread.start()
    assert place.run(5) == 0
    thread.join()
    assert statuses == ["refused"]


def _second(place: Place) -> str:
    """While a round of the first one runs."""
    deadline = time.monotonic() + 20
    while not place.shell.orders and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        place.run(5)
    except BusyError:
        return "refused"
    finally:
        place.write("go", "")
    return "ran"


def test_a_round_that_hangs_is_ended_and_has_failed() -> None:
    """Where it hung stands in the log: the process that is told to end writes its stacks."""
    program = "def hangs():\n    import time; print(1, flush=True); time.sleep(60)\nhangs()"
    shell = Shell(f"echo begun; exec {sys.executable} -c '{program}'")
    outcome = run_round(shell, Order("row", 1, 0), 2, lambda: False)
    assert outcome.failure == "did not end in 2 s"
    assert outcome.tail[:2] == ("begun", "1")
    assert any("in hangs" in line for line in outcome.tail), outcome.tail
    assert outcome.seconds < 10


def test_a_test_of_the_suite_that_is_skipped_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        "import os, pytest\n"
        "def test_it(record_property):\n"
        "    record_property('orders', os.environ['ORDERS'])\n"
        "    if os.environ['ORDERS'] == '0': pytest.skip('nothing to do')\n"
    )
    for orders, failure in (("7", ""), ("0", "skipped")):
        kind = TestRound(str(file), lambda order, orders=orders: {"ORDERS": orders})
        outcome = run_round(kind, Order("test_it", 1, 0), 30, lambda: False)
        assert failure in outcome.failure, outcome
        assert bool(outcome.failure) == bool(failure), outcome
        if not failure:
            assert outcome.figures == {"orders": [7.0]}


def test_a_file_that_is_no_tally_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    for text in ("{", "[]", '{"schema": 9}', '{"schema": 1, "summary": {}, "rounds": []}'):
        path.write_text(text)
        with pytest.raises(RefusedError, match=r"one\.json"):
            load(path)


def test_a_tally_is_read_as_it_was_stored(tmp_path: Path) -> None:
    tally = Tally("one", "cuts", "c" * 40, now())
    tally.add(Round("row", 4, 17, now(), 12.5, {"lost": [0.0]}))
    tally.failures.append(Failure("row", 3, now(), "d" * 40, "exit status 1", "/tmp/log", ["a"]))
    tally.store(tmp_path / "one.json")
    assert load(tmp_path / "one.json") == tally
    assert [one.name for one in tmp_path.iterdir()] == ["one.json"]
    assert load(tmp_path / "none.json") is None


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert period_s("20m") == 1200
    assert amount("12") == 12
    for wrong in ("", "0m", "1.5h"):
        with pytest.raises(UsageError, match="is no duration"):
            period_s(wrong)
    for wrong in ("0", "-1", "x", ""):
        with pytest.raises(UsageError, match="is no number"):
            amount(wrong)
    assert main(["nothing-of-this-name"]) == 2
    assert "power-primary" in capsys.readouterr().err
    assert main(["--for", "5m"]) == 2


def test_what_the_campaigns_name_is_there() -> None:
    for campaign in campaigns().values():
        for path in campaign.covers:
            assert path.startswith(":(exclude)") or (ROOT / path).exists(), path
        if isinstance(campaign.kind, TestRound):
            source = (ROOT / campaign.kind.file).read_text()
            for row in (campaign.kind.test,) if campaign.kind.test else campaign.rows:
                assert f"def {row}(" in source
    assert len(named("deaths").rows) >= 10


def test_the_simulation_runs_the_suite_s_worlds() -> None:
    outcome = run_round(named("simulation").kind, Order("seeds", 2, 3), 60, lambda: False)
    if outcome.failure:
        pytest.fail("\n".join(outcome.tail))
    assert outcome.figures == {"worlds": [2.0 * len(WAYS)]}
