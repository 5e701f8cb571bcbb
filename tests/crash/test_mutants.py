"""A build with any one fsync removed is caught: each by the scenario that misses it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.crash import logs, markers, pipeline, records, undo
from tests.crash.enumeration import Tried, Violation
from tests.crash.mutants import Site, build_without, sites

pytestmark = pytest.mark.root

SEED = 7
"""Of the guest, so that a build is caught today as it was yesterday."""


def _guest(scenario: Callable[[Path, int], Tried]) -> Callable[[Path], Tried]:
    return partial(scenario, seed=SEED)


_IN_SYNC = _guest(pipeline.in_sync)
_KILLERS: dict[str, Callable[[Path], Tried]] = {
    "durable.DurableRecord._set_aside#1": records.damaged,
    "durable.DurableRecord._create#1": records.values,
    "durable.DurableRecord._create#2": records.values,
    "durable.DurableRecord._overwrite#1": records.values,
    "durable.DurableRecord._overwrite#2": partial(records.values, write_through=False),
    "durable.make_directory#1": records.module,
    "durable._sync_directory#1": records.module,
    "replication.intent_log.IntentLog.clear#1": logs.alone,
    "replication.intent_log.IntentLog._open#1": logs.in_sync,
    "replication.intent_log.IntentLog._create#1": logs.in_sync,
    "replication.intent_log.IntentLog._create#2": logs.in_sync,
    "replication.marker.write_marker#1": markers.life,
    "replication.marker.write_marker#2": markers.life,
    "replication.marker.write_marker#3": markers.life,
    "replication.touched.StampFile.__init__#1": markers.life,
    "replication.store.private_directory#1": markers.life,
    "replication.store.Store.sync#1": _IN_SYNC,
    "replication.store.Store.sync#2": _IN_SYNC,
    "replication.store.Store.sync_all#1": _IN_SYNC,
    "replication.syncer.Syncer._call#1": _IN_SYNC,
    "replication.syncer.Syncer._call#2": _IN_SYNC,
    "replication.barriers.Barriers.start#1": _IN_SYNC,
    "replication.parking.Ledger._complete_barrier#1": _IN_SYNC,
    "replication.parking.Ledger.switch_to_both#1": _guest(pipeline.frozen_and_back),
    "replication.primary.Primary.flush#1": _IN_SYNC,
    "replication.applier.Applier._write#1": _IN_SYNC,
    "replication.applier.Applier._flush#1": _IN_SYNC,
    "replication.applier.Applier._sync#1": _IN_SYNC,
    "replication.secondary.SecondarySession.close#1": _guest(pipeline.takeover),
    "replication.acceptor.Acceptor.drain#1": _guest(pipeline.takeover),
    "replication.safety.undo_log.UndoLog.append#1": undo.undone,
}


def test_every_call_that_makes_something_durable_is_known() -> None:
    """A new one needs a scenario that misses it."""
    assert {str(site) for site in sites()} == _KILLERS.keys()


@pytest.mark.parametrize("site", sites(), ids=str)
def test_a_build_without_one_is_caught(tmp_path: Path, site: Site) -> None:
    with build_without(site), pytest.raises(Violation) as caught:
        _KILLERS[str(site)](tmp_path)
    print(f"without {site.text}: {str(caught.value).splitlines()[0]}")


def test_the_same_scenarios_find_nothing_in_the_whole_build(tmp_path: Path) -> None:
    for number, scenario in enumerate((_IN_SYNC, *map(_guest, (pipeline.frozen_and_back,)))):
        place = tmp_path / str(number)
        place.mkdir()
        scenario(place)
    place = tmp_path / "takeover"
    place.mkdir()
    _guest(pipeline.takeover)(place)
