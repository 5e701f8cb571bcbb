"""What an operator should know first: every alert of the cluster, the worst one in front."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from hyperha.api.wire import ClusterView, ModuleNodeView, ModuleView
from hyperha.client.link import LinkState
from hyperha.domain import DataState, Readiness, ResourceState, Role
from tui.model.console import ConsoleModel
from tui.model.formatting import age_text, minute_text

ENDS_SOON_S = 300
EXPIRES_SOON_S = 86_400


class Severity(IntEnum):
    """How bad it is."""

    NOTE = 1
    WARNING = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Alert:
    """One sentence, and where it is about (empty: the cluster)."""

    severity: Severity
    text: str
    module: str = ""
    node: str = ""


def alerts(model: ConsoleModel, now_ms: int) -> list[Alert]:
    """All of them, worst first, then in the order of modules and nodes."""
    found = list(_link(model, now_ms))
    if model.cluster is not None:
        found += _nodes(model, model.cluster, now_ms)
        for name in model.module_names():
            found += _module(name, model.cluster.modules[name], model, now_ms)
    return sorted(found, key=lambda alert: -alert.severity)


def _link(model: ConsoleModel, now_ms: int) -> Iterator[Alert]:
    link = model.link
    if link.state is LinkState.LIVE or (link.state is LinkState.CONNECTING and not link.failures):
        return
    age = age_text(link.age_ms(now_ms))
    shown = f"shown as it was {age} ago" if model.cluster is not None else "nothing seen yet"
    reason = f": {link.reason}" if link.reason else ""
    yield Alert(Severity.CRITICAL, f"link {link.state}, {shown}{reason}")


def _nodes(model: ConsoleModel, cluster: ClusterView, now_ms: int) -> Iterator[Alert]:
    for name, node in sorted(cluster.nodes.items()):
        if not node.reachable:
            age = age_text(model.node_age_ms(name, now_ms))
            text = f"{cluster.answered_by} does not hear {name} (last: {age})"
            yield Alert(Severity.CRITICAL, text, node=name)
            continue
        for lan, state in node.lans.items():
            if state is ResourceState.DOWN:
                yield Alert(Severity.WARNING, f"{name}: LAN {lan} is down", node=name)
        if node.witness is not None and node.witness.state is ResourceState.DOWN:
            yield Alert(Severity.WARNING, f"{name}: the witness does not answer", node=name)
        for limit in node.limits:
            yield Alert(Severity.NOTE, f"{name}: {limit}", node=name)


def _module(name: str, view: ModuleView, model: ConsoleModel, now_ms: int) -> Iterator[Alert]:
    running = [node for node, side in view.nodes.items() if side.role.runs_vm]
    fresh = [node for node in running if not model.stale(node, now_ms)]
    if len(fresh) > 1:
        both = " and ".join(fresh)
        yield Alert(Severity.CRITICAL, f"{name}: {both} both run it", name, fresh[0])
    started = [side for side in view.nodes.values() if side.role is not Role.STOP]
    if started and not running:
        first = next(node for node, side in view.nodes.items() if side.role is not Role.STOP)
        text = f"{name} runs nowhere: {view.nodes[first].why.text}"
        yield Alert(Severity.CRITICAL, text, name, first)
    if not view.failover:
        yield Alert(Severity.WARNING, f"{name}: failover is switched off", name)
    for item in view.preflight:
        text = f"{name} on {item.node}: {item.text}"
        yield Alert(Severity.WARNING, text, name, item.node)
    for node, side in sorted(view.nodes.items()):
        yield from _side(name, node, side, model, now_ms)


def vm_is_missing(side: ModuleNodeView) -> bool:
    """Whether the VM is not there on a node that is to run it; whatever its checkers say."""
    return side.role.runs_vm and side.vm.state == "absent"


def _side(
    name: str, node: str, side: ModuleNodeView, model: ConsoleModel, now_ms: int
) -> Iterator[Alert]:
    where = f"{name} on {node}"
    if side.damage:
        yield Alert(Severity.CRITICAL, f"{where}: {side.damage}", name, node)
    if vm_is_missing(side) and not model.stale(node, now_ms):
        # While the node is on its way from one state to another it may come or go at any moment.
        moving = side.readiness is Readiness.TRANSIENT
        severity = Severity.WARNING if moving else Severity.CRITICAL
        text = f"{where}: the VM is absent, though the node is {side.role}"
        yield Alert(severity, text, name, node)
    if side.frozen:
        yield Alert(Severity.CRITICAL, f"{where}: the guest's writes are held", name, node)
    if side.role is Role.ALONE:
        text = f"{name}: {node} is ALONE, no redundancy"
        yield Alert(Severity.WARNING, text, name, node)
    if side.role is Role.WAIT and side.readiness is Readiness.NOT_READY:
        yield Alert(Severity.WARNING, f"{where} waits: {side.why.text}", name, node)
    if side.role is Role.STOP and side.data is DataState.INCONSISTENT:
        yield Alert(Severity.WARNING, f"{where}: the copy is half made", name, node)
    if side.resync is not None and not side.role.runs_vm and not side.resync.safety_copy:
        yield Alert(Severity.NOTE, f"{where}: no way back during this resync", name, node)
    yield from _safety(name, node, side, model, now_ms)
    for checker in side.checkers:
        if checker.state is ResourceState.DOWN and side.role is not Role.STOP:
            text = f"{where}: checker {checker.name} is down {checker.text}".rstrip()
            yield Alert(Severity.WARNING, text, name, node)
        if checker.suspended is not None and side.role.runs_vm:
            until = checker.suspended.until
            end = f" until {minute_text(until)} UTC" if until else ""
            text = f"{where}: checker {checker.name} suspended{end}: {checker.suspended.reason}"
            left = model.seconds_until(until, now_ms) if until else None
            soon = left is not None and left <= ENDS_SOON_S
            yield Alert(Severity.WARNING if soon else Severity.NOTE, text, name, node)
    restarts = side.restarts
    if restarts is not None and 0 < restarts.of <= restarts.used:
        text = f"{where}: all {restarts.of} automatic restarts of {restarts.window_h} h are used"
        yield Alert(Severity.WARNING, text, name, node)


def _safety(
    name: str, node: str, side: ModuleNodeView, model: ConsoleModel, now_ms: int
) -> Iterator[Alert]:
    for kept in side.safety_copies:
        where = f"{name} on {node}: safety copy {kept.id}"
        left = model.seconds_until(kept.expires, now_ms) if kept.expires else None
        if kept.state == "lost":
            yield Alert(Severity.WARNING, f"{where} is lost: {kept.text}", name, node)
        elif left is not None and left <= EXPIRES_SOON_S:
            text = f"{where} is deleted at {minute_text(kept.expires)} UTC"
            yield Alert(Severity.NOTE, text, name, node)
