"""Planned moves at any moment: one interruption, as long as a stop and a start."""

from __future__ import annotations

import pytest

from hyperha.core.options import Isolation, WitnessKind
from hyperha.domain import Role
from tests.support.world import pair

R = Role


@pytest.mark.parametrize("loss", [0, 0.05])
@pytest.mark.parametrize("isolation", list(Isolation), ids=str)
def test_a_swap_is_one_interruption(isolation: Isolation, loss: float) -> None:
    _swaps(isolation, WitnessKind.NONE, loss)


@pytest.mark.parametrize("loss", [0, 0.05])
@pytest.mark.parametrize("witness", [WitnessKind.PING, WitnessKind.LEASE], ids=str)
def test_a_swap_with_a_witness_is_one_interruption(witness: WitnessKind, loss: float) -> None:
    """H3: also where the follower's own claim crosses the release; a lease mints its own epochs."""
    _swaps(Isolation.HOLD, witness, loss)


def _swaps(isolation: Isolation, witness: WitnessKind, loss: float) -> None:
    """H2: also while the time is running out that an offer of the old primary was good for; that
    offer was taken long ago, and says nothing about the one that it takes itself now."""
    for seed in range(40):
        world = pair(seed, isolation, loss, witness=witness)
        world.run(10_000 + 50 * seed)
        before = world.b.state.run
        world.command(world.a, "swap")
        world.until(R.SECOND, R.PRIM, timeout_ms=8_000)
        world.run(20_000)
        assert world.roles() == (R.SECOND, R.PRIM), (seed, world.tell())
        assert world.b.state.run == before + 1, (seed, world.tell())
        assert world.b.state.lineage.current == world.a.state.lineage.current, seed
