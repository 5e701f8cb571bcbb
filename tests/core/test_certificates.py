"""When the guardian may vouch for the end of a run (L8)."""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import events as e
from hyperha.core.state import Phase, Step
from hyperha.domain import Role
from tests.support.world import pair


def test_a_restart_that_meets_the_loss_of_the_peer_lets_nothing_be_certified():
    """The guardian was told for the run before; the new run must not take that back."""
    world = pair()
    world.crash(world.b)
    while not world.a.state.awaits(Step.FORBID_CERTIFICATE):
        world.run(1)
    # The restart of an operator whose stop of the VM ends at this very moment.
    state, stopping = world.a.state, (10_000, Step.STOP_VM)
    world.a.state = replace(state, phase=Phase.RESTARTING, awaiting=(*state.awaiting, stopping))
    world.a.event(e.VmDone(10_000, True))
    assert world.a.state.phase is Phase.STARTING
    assert not world.a.certify
    world.until(Role.ALONE, None)
    assert not world.a.certify
