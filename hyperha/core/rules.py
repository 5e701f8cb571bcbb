"""Failover rules of the operator: what a combination of resources, here and there, leads to.

A rule is data (`conditions`): a condition over the checkers' resources on both nodes, an action,
and how long the condition must have held. It fires once each time it has come to hold. Nothing is
judged while the VM is held up by what is no fault of its own (K3), or while all checkers are
suspended.
"""

from __future__ import annotations

from hyperha.core import failover, farewell, leaving
from hyperha.core.actions import Level, Timer
from hyperha.core.conditions import Rule, RuleAction, holds
from hyperha.core.events import CheckerAction, PeerResources
from hyperha.core.messages import HandoverKind
from hyperha.core.state import Goal, Link, ModuleState, Phase, RuleHolds, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role


def peer_resources(turn: Turn, event: PeerResources) -> None:
    """What the other node's checkers say."""
    turn.set(peer_resources=event.resources)


def due(turn: Turn) -> None:
    """A rule may have held for long enough: `settle` looks at the end of this step."""
    turn.set(rules_next_ms=0)


def settle(turn: Turn) -> None:
    """Note which rules hold, and carry out those that have held for long enough."""
    state = turn.state
    judged = state.role is not Role.STOP and not state.unjudged
    if not state.config.rules or not judged or failover.suspended(state, ""):
        if state.rules_hold:
            turn.set(rules_hold=())
        return
    known = {one.name: one for one in state.rules_hold}
    local = {one.resource: one.state for one in state.resources}
    remote = {one.resource: one.state for one in state.peer_resources}
    found = tuple(
        known.get(rule.name) or RuleHolds(rule.name, turn.now_ms)
        for rule in state.config.rules
        if holds(rule.when, local, remote)
    )
    if found != state.rules_hold:
        turn.set(rules_hold=found)
    rules = {rule.name: rule for rule in state.config.rules}
    due_ms = {one.name: one.since_ms + rules[one.name].stable_ms for one in found if not one.fired}
    later = [at_ms for at_ms in due_ms.values() if at_ms > turn.now_ms]
    if later and min(later) != state.rules_next_ms:
        turn.set(rules_next_ms=min(later))
        turn.arm_at(Timer.RULES, min(later))
    for name, at_ms in due_ms.items():
        if at_ms <= turn.now_ms and _may_act(turn.state, rules[name].action):
            _fire(turn, rules[name])


def _fire(turn: Turn, rule: Rule) -> None:
    fired = tuple(
        RuleHolds(each.name, each.since_ms, fired=True) if each.name == rule.name else each
        for each in turn.state.rules_hold
    )
    turn.set(rules_hold=fired)
    _act(turn, rule)


def _may_act(state: ModuleState, action: RuleAction) -> bool:
    """Whether the action means anything now; else it is waited for while the rule holds."""
    running = state.role.runs_vm and state.phase is Phase.RUNNING
    match action:
        case RuleAction.SWAP:
            return running and state.role is Role.PRIM and state.link is Link.IN_SYNC
        case RuleAction.RESTART | RuleAction.STOPSTART:
            return running
        case RuleAction.STOP | RuleAction.WAIT:
            return running or state.phase in (Phase.FOLLOWING, Phase.RESYNCING)
        case RuleAction.NONE:
            return True


def _act(turn: Turn, rule: Rule) -> None:
    text = f"rule {rule.name} holds"
    turn.tell(Level.WARNING, "rule", f"{text}: {rule.action}")
    why = Why("rule", text)
    match rule.action:
        case RuleAction.SWAP:
            leaving.ask_handover(turn, HandoverKind.SWAP)
        case RuleAction.RESTART:
            failover.react(turn, CheckerAction.RESTART, text)
        case RuleAction.STOPSTART:
            failover.react(turn, CheckerAction.STOPSTART, text)
        case RuleAction.WAIT if turn.state.role.runs_vm:
            failover.react(turn, CheckerAction.WAIT, text)
        case RuleAction.STOP if turn.state.role.runs_vm:
            failover.react(turn, CheckerAction.STOP, text)
        case RuleAction.STOP:
            farewell.begin(turn, Goal.STOP, why)
        case RuleAction.WAIT:
            farewell.begin(turn, Goal.RESTART, why)
        case RuleAction.NONE:
            turn.explain(why)


def waiting(state: ModuleState) -> Why | None:
    """Why the module may not be here while a rule of that kind holds; None when it may."""
    names = {rule.name for rule in state.config.rules if rule.action is RuleAction.WAIT}
    for one in state.rules_hold:
        if one.fired and one.name in names:
            return Why("rule", f"rule {one.name} holds")
    return None
