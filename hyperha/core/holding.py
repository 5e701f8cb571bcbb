"""What must be up before the module may run or follow here: checkers with `when = "pre"`.

While one of them is down, or was not looked at yet, a node stays in WAIT; a node that is further
leaves, and comes back by itself when everything is up.
"""

from __future__ import annotations

from hyperha.core import failover, farewell, rules
from hyperha.core.events import CheckerAction, ResourceSeen
from hyperha.core.state import Goal, ModuleState, Phase, Why
from hyperha.core.turn import Turn
from hyperha.domain import ResourceState


def seen(turn: Turn, event: ResourceSeen) -> None:
    """Remember what was found; `settle`, `waiting.settle` and the rules look at it."""
    rest = tuple(one for one in turn.state.resources if one.checker != event.checker)
    turn.set(resources=(*rest, event))


def reason(state: ModuleState) -> Why | None:
    """Why the module may not be here now; None when it may."""
    found = {one.checker: one for one in state.resources}
    for checker in state.config.pre_checkers:
        if failover.suspended(state, checker):
            continue
        one = found.get(checker)
        if one is not None and one.state is ResourceState.DOWN:
            return Why("checker", f"{checker} is down: {one.text}")
        if one is None or one.state is not ResourceState.UP:
            return Why("checker", f"{checker} has not been found up yet")
    return rules.waiting(state)


def settle(turn: Turn) -> None:
    """Leave when what must be up has gone down; what is only not known yet ends nothing."""
    state = turn.state
    down = {one.checker for one in state.resources if one.state is ResourceState.DOWN}
    why = reason(state) if down.intersection(state.config.pre_checkers) else None
    if why is None:
        return
    if state.role.runs_vm and state.phase is Phase.RUNNING and not state.unjudged:
        failover.react(turn, CheckerAction.WAIT, why.text)
    elif state.phase in (Phase.FOLLOWING, Phase.RESYNCING):
        farewell.begin(turn, Goal.RESTART, why)
