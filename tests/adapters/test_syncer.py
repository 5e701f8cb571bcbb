"""What the pool of syncs remembers (M9)."""

from __future__ import annotations

import pytest

from hyperha.replication import syncer
from hyperha.replication.operations import ROOT_ID
from tests.support.engine_pair import Guest, Pair, wait_for

pytestmark = pytest.mark.root


def test_files_that_come_and_go_are_not_remembered(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session lasts for months, and a mail server makes a million files a day."""
    monkeypatch.setattr(syncer, "_FILES", 50)
    pair.in_sync()
    guest = Guest(pair.a)
    for _ in range(120):
        file = guest.create(ROOT_ID, b"t")
        guest.write(file, 0, b"x" * 100)
        guest.remove(ROOT_ID, b"t")
    served = pair.b.acceptor.session
    assert served is not None
    pools = (pair.a.primary.syncer, served._syncer)
    wait_for(lambda: guest.answers == 360)
    assert all(len(one._unsynced) <= 50 for one in pools)
    pair.barrier(pair.a)
    wait_for(lambda: not any(one._unsynced for one in pools))
