"""Equal generation ids never mean equal data: what is dirty is cleared by a finished resync only.

The case is known from another replication system: both sides carried the same id, and the map of
what differed was cleared because of that (G4, R4, Z1).
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import ResyncCopied, SessionLost, SessionUp
from hyperha.core.lineage import Direction, decide
from hyperha.core.messages import Summary
from hyperha.core.records import DataLabel, Generation, Lineage
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import ROOT_ID, Record, RecordKind
from tests.crash.logs import file_id, open_log, zone
from tests.support.engine_pair import Guest, Pair, call, pair_at, wait_for

pytestmark = pytest.mark.root


def _hot_on_one_node(pair: Pair) -> Record:
    """Both carry the same generation; a write reached one copy only, and its log names it."""
    pair.in_sync()
    guest = Guest(pair.a)
    file = guest.create(ROOT_ID, b"f")
    guest.truncate(file, 1 << 20)
    pair.barrier(pair.a)
    pair.a.primary.set_mode(Acknowledge.NONE)
    pair.a.primary.close_session(clean=False)
    pair.b.wait(SessionLost)
    guest.write(file, 4096, b"x" * 512)
    return Record(RecordKind.ZONE, file, 0)


def test_never_cleared_because_ids_are_equal(tmp_path: Path) -> None:
    """Neither a session that claims to begin in sync nor a crash takes the candidate away."""
    with pair_at(tmp_path) as pair:
        hot = _hot_on_one_node(pair)
        key = pair.connect(SessionStart.IN_SYNC)
        lost = pair.a.wait(SessionLost)
        assert isinstance(lost, SessionLost)
        assert lost.refused
        assert "G4" in lost.text
        assert key.generation == pair.key.generation
        assert pair.a.intent.candidates() == [hot]
        pair.a.crash()
        pair.b.crash()
        assert pair.a.intent.candidates() == [hot]
        pair.a.primary.promote(Acknowledge.NONE)
        again = pair.connect(SessionStart.CANDIDATES)
        pair.a.wait(SessionUp)
        pair.a.wait(ResyncCopied, 60)
        assert again.generation == key.generation
        assert hot in (pair.a.intent.candidates() or []), "copied is not cleared"
        pair.finish_resync(again, pair.a, pair.b)
        assert pair.a.intent.candidates() == []
        pair.check_equal()


@pytest.mark.parametrize("full", ["a", "b"])
def test_never_cleared_because_the_log_was_full_as_well(
    tmp_path: Path, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that ran full in sync finds room behind a barrier; not when the copies differ, too."""
    defaults = IntentLog.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "slots", 8)
    monkeypatch.setitem(defaults, "slots_limit", 8)
    with pair_at(tmp_path) as pair:
        side = getattr(pair, full)
        pair.a.primary.barriers._periodic = True
        hot = _hot_on_one_node(pair)
        for number in range(9):
            inode = Record(RecordKind.INODE, file_id(100 + number))
            side.intent.activate([inode], side.primary.number)
        assert side.intent.overflowed
        pair.connect(SessionStart.IN_SYNC)
        assert "G4" in pair.a.wait(SessionLost).text
        key = pair.connect(SessionStart.CANDIDATES)
        pair.a.wait(ResyncCopied, 60)
        call(lambda done: pair.a.primary.switch_to_both(key, done))
        for _ in range(2):
            pair.barrier(pair.a)
            time.sleep(0.1)
            assert side.intent.candidate_count() == -1, "copied is not cleared"
            assert pair.a.intent.retaining
            assert hot in (pair.a.intent.candidates() or [hot])
        pair.a.primary.barriers._periodic = False
        pair.finish_resync(key, pair.a, pair.b)
        assert pair.a.intent.candidates() == []
        wait_for(lambda: pair.b.intent.candidates() == [])
        pair.check_equal()


def test_a_base_that_equals_the_current_generation_clears_nothing(tmp_path: Path) -> None:
    """R11 sets the base to the current generation before the map may go: it stays until `clear`."""
    log = open_log(tmp_path, fresh=True)
    log.activate([zone(2, 0)], 1)
    log.enter_alone("g1")
    log.enter_alone("g1")
    assert log.retire(100) == 0
    log.close()
    log = open_log(tmp_path)
    log.enter_alone("g1")
    assert log.retire(100) == 0
    assert log.candidates() == [zone(2, 0)]
    log.close()


@pytest.mark.parametrize("candidates", [(1, 0), (0, 1), (1, 1)])
def test_equal_generations_with_candidates_are_resynced(candidates: tuple[int, int]) -> None:
    """R4: the verdict of both nodes is a resync, never "in sync" (R5)."""
    lineage = Lineage(
        "r",
        "node1",
        "node2",
        current=Generation("g" * 32, 1, "test", 0),
        label=DataLabel.UPTODATE,
        was_primary=True,
    )
    mine = Summary.of(lineage, candidates[0], False)
    theirs = replace(mine, node="node2", candidates=candidates[1], was_primary=False)
    for left, right in ((mine, theirs), (theirs, mine)):
        verdict = decide(left, right)
        assert verdict.rule == "R4"
        assert verdict.direction in (Direction.SOURCE, Direction.TARGET)
        assert verdict.start is SessionStart.CANDIDATES
    equal = decide(replace(mine, candidates=0), replace(theirs, candidates=0))
    assert equal.rule == "R5"
