"""The end of a run by force: nothing counts before the fence has held and every process is gone.

A decision may rest on it only after both have succeeded (L5').
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import covering
from hyperha.core.actions import Acknowledge, Fence, KillVm, Level, Timer
from hyperha.core.events import VmDone
from hyperha.core.messages import Abdicated, Released
from hyperha.core.records import DataLabel
from hyperha.core.state import Goal, Handover, Link, Phase, Step, Vm, Why
from hyperha.core.turn import Turn

KILL_AGAIN_MS = 1000


def begin(turn: Turn, why: Why, *, handover: Handover | None = None) -> None:
    """Fence first, then the VM; what follows when every process is gone depends on `why` (L5'). The
    hand-over is still done then: nothing is acknowledged any more that the other node lacks."""
    turn.forget()
    turn.cancel(*Timer)
    none = Acknowledge.NONE
    turn.set(end=why, vm=Vm.STOPPING, acknowledge=none, link=Link.NONE, handover=handover)
    turn.enter(turn.state.role, Phase.KILLING, why)
    attempt(turn)


def attempt(turn: Turn) -> None:
    """Cut the VM off from its data, then end its processes (L5')."""
    turn.set(fenced=False)
    turn.order(Fence, Step.FENCE)
    turn.order(KillVm, Step.KILL, run=turn.state.run)


def fenced(turn: Turn, event: VmDone) -> None:
    """What an ended process left in the kernel's queue reaches the folder no more (E2, B14)."""
    if turn.state.phase is not Phase.KILLING:
        return
    if not event.ok:
        _again(turn, f"the VM cannot be cut off from its data: {event.text}")
        return
    turn.set(fenced=True)
    _count(turn)


def killed(turn: Turn, event: VmDone) -> None:
    """Every process of the run is gone, or some are not."""
    if turn.state.phase is not Phase.KILLING:
        return
    if not event.ok:
        _again(turn, f"processes of the VM remain: {event.text}")
        return
    turn.set(vm=Vm.ABSENT)
    _count(turn)


def _again(turn: Turn, text: str) -> None:
    """Nothing may count on this end before both have succeeded (L5'): again, and loudly."""
    turn.tell_once(Level.ERROR, "L5", text)
    turn.explain(Why("L5", text))
    turn.arm(Timer.RETRY, KILL_AGAIN_MS)


def _count(turn: Turn) -> None:
    """Fenced and gone: say so, then give the folder a fresh standby layer (L5', M5)."""
    state = turn.state
    if not state.fenced or state.vm is not Vm.ABSENT:
        return
    turn.set(writable=False, frozen_since_ms=None, session=None, resync=None)
    failed = state.end is not None and state.end.rule == "D10"
    lineage = state.lineage
    if failed:
        turn.send(Abdicated(lineage.held, state.end.text if state.end else ""))
        lineage = replace(lineage, label=DataLabel.OUTDATED, full_compare_owed=True)
    handover = state.handover
    if handover is not None:
        lineage = lineage.released(handover.epoch, leaves=True)
        turn.tell(Level.INFO, "H2", f"released to {state.config.peer} ({handover.kind})")
    turn.persist(lineage=lineage)
    if handover is not None:
        # A node that asks instead finds the same in this record.
        turn.send(Released(handover.epoch, handover.kind, True))
        turn.set(handover=None)
    again = not failed and state.goal not in (Goal.STOP, Goal.BLOCKED)
    turn.set(goal=Goal.RESTART if again else Goal.STOP)
    covering.detach(turn)


def kill_again(turn: Turn) -> None:
    """The last attempt was not enough: what has not succeeded is tried once more."""
    state = turn.state
    if not state.fenced and not state.awaits(Step.FENCE):
        turn.order(Fence, Step.FENCE)
    if state.vm is not Vm.ABSENT and not state.awaits(Step.KILL):
        turn.order(KillVm, Step.KILL, run=state.run)


def force_stop(turn: Turn) -> None:
    """`forcestop`: nothing graceful, nobody is asked."""
    turn.forget()
    turn.cancel(*Timer)
    turn.set(goal=Goal.STOP, end=Why("", "stopped by force"), handover=None, link=Link.NONE)
    if turn.state.role.runs_vm:
        turn.set(vm=Vm.STOPPING)
        turn.enter(turn.state.role, Phase.KILLING)
        attempt(turn)
    else:
        covering.detach(turn)
