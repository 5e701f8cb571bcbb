"""The end of a run by force: nothing counts before the fence has held and every process is gone.

`source.kill` begins it; a decision may rest on it only after `killed` (L5').
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import waiting
from hyperha.core.actions import Fence, KillVm, Level, Timer
from hyperha.core.events import VmDone
from hyperha.core.messages import Abdicated
from hyperha.core.records import DataLabel
from hyperha.core.state import Goal, Link, Phase, Step, Vm, Why
from hyperha.core.turn import Turn

KILL_AGAIN_MS = 1000


def killed(turn: Turn, event: VmDone) -> None:
    """Fenced and gone: say so, then give the folder a fresh standby layer (L5', M5)."""
    state = turn.state
    if not event.ok:
        # Nothing may count on this end before every process is gone (L5'): again, and loudly.
        text = f"processes of the VM remain: {event.text}"
        if state.told != text:
            turn.set(told=text)
            turn.tell(Level.ERROR, "L5", text)
        turn.explain(Why("L5", text))
        turn.arm(Timer.RETRY, KILL_AGAIN_MS)
        return
    turn.set(vm=Vm.ABSENT, writable=False, frozen_since_ms=None, session=None, resync=None)
    failed = state.end is not None and state.end.rule == "D10"
    lineage = state.lineage
    if failed:
        turn.send(Abdicated(lineage.held, state.end.text if state.end else ""))
        lineage = replace(lineage, label=DataLabel.OUTDATED, full_compare_owed=True)
    turn.persist(lineage=lineage)
    again = not failed and state.goal not in (Goal.STOP, Goal.BLOCKED)
    turn.set(goal=Goal.RESTART if again else Goal.STOP)
    waiting.detach(turn)


def kill_again(turn: Turn) -> None:
    """The last attempt left processes behind."""
    if not turn.state.awaits(Step.KILL):
        turn.order(Fence, Step.FENCE)
        turn.order(KillVm, Step.KILL, run=turn.state.run)


def force_stop(turn: Turn) -> None:
    """`forcestop`: nothing graceful, nobody is asked."""
    turn.forget()
    turn.cancel(*Timer)
    turn.set(goal=Goal.STOP, end=Why("", "stopped by force"), handover=None, link=Link.NONE)
    if turn.state.role.runs_vm:
        turn.enter(turn.state.role, Phase.KILLING)
        turn.order(Fence, Step.FENCE)
        turn.order(KillVm, Step.KILL, run=turn.state.run)
    else:
        waiting.detach(turn)
