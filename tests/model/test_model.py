"""Every state that one fault or one command can bring two real cores into.

How much was tried is printed. HYPERHA_MODEL=all adds the kinds of faults that take a minute.
"""

from __future__ import annotations

import os

from hyperha.core.state import Isolation
from tests.model.cluster import Bounds, Cluster
from tests.model.explore import explore
from tests.model.faults import FAULT_KINDS
from tests.model.nexts import COMMANDS
from tests.model.starts import redundant

LIMIT = 4_000_000
QUICK = ("crash", "reset", "store", "slow", "lose", "copy", "exits")


def everything(bounds: Bounds) -> None:
    """All that is within the bounds, from a redundant pair on, to its end."""
    cluster = Cluster(Isolation.PRIMARY)
    found = explore(cluster, cluster.allowing(redundant(cluster), bounds), limit=LIMIT)
    print(f"\n{bounds.faults} faults, {bounds.commands} commands: {found}")
    assert found.complete


def test_every_fault() -> None:
    kinds = FAULT_KINDS if os.environ.get("HYPERHA_MODEL") == "all" else QUICK
    everything(Bounds(faults=1, writes=1, kinds=kinds))


def test_every_command() -> None:
    everything(Bounds(commands=1, writes=1, verbs=COMMANDS))
