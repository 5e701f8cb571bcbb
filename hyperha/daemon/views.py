"""A module's state as people are shown it; every judgement comes from `core.explain`."""

from __future__ import annotations

import datetime
import itertools

from hyperha.api.wire import (
    CheckerView,
    ModuleNodeView,
    ModuleReport,
    ModuleView,
    NodeReport,
    OperationView,
    PreflightItem,
    RefusedVerb,
    RestartsView,
    ResyncView,
    SuspensionView,
    VmView,
    VmWord,
    Why,
)
from hyperha.api.wire_copies import SafetyCopyView, VerifyReport
from hyperha.core.explain import explain
from hyperha.core.failover import recoveries_used
from hyperha.core.records import Settings
from hyperha.core.state import ModuleState, Vm
from hyperha.daemon.observed import joined
from hyperha.domain import DataState, Readiness, ResourceState, Role
from hyperha.text import count_text


def rfc3339(wall_ms: int) -> str:
    """Wall clock milliseconds as RFC 3339 in UTC with milliseconds; empty for 0."""
    if wall_ms <= 0:
        return ""
    moment = datetime.datetime.fromtimestamp(wall_ms / 1000, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{wall_ms % 1000:03d}Z"


def suspension_of(settings: Settings, checker: str) -> SuspensionView | None:
    """Whether this checker is told to give no verdict, by itself or with all others."""
    for one in settings.suspensions:
        if one.checker in ("", checker):
            until = rfc3339(one.until_wall_ms) if one.until_wall_ms else None
            return SuspensionView(by=one.by, reason=one.reason, until=until)
    return None


_VM: dict[Vm, VmWord] = {
    Vm.ABSENT: "absent",
    Vm.STARTING: "starting",
    Vm.RUNNING: "running",
    Vm.STOPPING: "stopping",
}


def _resync(state: ModuleState) -> ResyncView | None:
    r = state.resync
    if r is None:
        return None
    return ResyncView(
        rule=r.rule,
        done_bytes=r.done_bytes,
        total_bytes=r.total_bytes,
        bytes_per_s=r.bytes_per_s,
        seconds_left=r.seconds_left,
        recent_bytes_per_s=r.recent_bytes_per_s,
        held_back=r.held_back,
        safety_copy=state.lineage.way_back,
    )


def side(
    state: ModuleState,
    *,
    wall_ms: int,
    checkers: list[CheckerView],
    operation: OperationView | None,
    window_h: int,
    vm_observed: bool,
    damage: str,
    more: dict[str, str],
    safety_copies: list[SafetyCopyView],
    replication_lan: str,
) -> ModuleNodeView:
    """This node's side of a module. `more`: other commands than the core's, each with the reason
    why it is refused, or nothing."""
    told = explain(state)
    return ModuleNodeView(
        role=told.role,
        readiness=Readiness.NOT_READY if damage else told.readiness,
        data=told.data,
        since=rfc3339(state.since_wall_ms),
        why=Why(rule="C12", text=damage) if damage else Why(rule=told.rule, text=told.text),
        vm=VmView(
            state=_VM[state.vm],
            seen_by="hypervisor" if vm_observed else "daemon",
            run=state.run,
        ),
        boot=state.settings.boot,
        checkers=checkers,
        restarts=RestartsView(
            used=recoveries_used(state, wall_ms), of=state.config.restarts, window_h=window_h
        ),
        resync=_resync(state),
        allowed=[*told.allowed, *(verb for verb, reason in more.items() if not reason)],
        refused=[
            RefusedVerb(verb=verb, reason=reason)
            for verb, reason in (*told.refused, *more.items())
            if reason
        ],
        losses=dict(told.losses),
        frozen=state.frozen,
        generation=state.lineage.current.id,
        epoch=state.lineage.held.counter,
        operation=operation,
        damage=damage,
        safety_copies=safety_copies,
        replication_lan=replication_lan,
    )


def core_reasons(state: ModuleState) -> list[PreflightItem]:
    """The preflight reasons that the core knows."""
    node = state.config.node
    return [
        PreflightItem(code=one.code, node=node, text=one.text, fix=one.fix)
        for one in explain(state).reasons
    ]


def unseen(why: str) -> ModuleNodeView:
    """The other node's side before anything was ever known of it, and why nothing is."""
    return ModuleNodeView(
        role=Role.STOP,
        readiness=Readiness.NOT_READY,
        data=DataState.UNKNOWN,
        why=Why(rule="", text=why),
    )


def _with_progress(sides: dict[str, ModuleNodeView]) -> dict[str, ModuleNodeView]:
    """A resync is shown on the node that is being made equal; only its source knows how far."""
    for source, target in itertools.permutations(sides, 2):
        giving, taking = sides[source], sides[target]
        if giving.role.runs_vm and giving.resync is not None and taking.resync is not None:
            shown = giving.resync.model_copy(update={"safety_copy": taking.resync.safety_copy})
            return {
                **sides,
                source: giving.model_copy(update={"resync": None}),
                target: taking.model_copy(update={"resync": shown}),
            }
    return sides


def _differing(module: str, own: ModuleReport, other: ModuleReport | None) -> list[PreflightItem]:
    """That the copies differ, until a verification on either node has found them equal (R17)."""
    found = joined(own.verify, other.verify if other else VerifyReport()).standing
    if found is None:
        return []
    left = count_text(found.left, "difference")
    return [
        PreflightItem(
            code="copies-differ",
            node=found.node,
            text=f"the copies differ, {left} found at {found.ended}: {found.text}",
            fix=f"hyperha verify {module} --repair",
        )
    ]


def merged(
    module: str,
    node: str,
    own: ModuleReport,
    peer: str,
    other: NodeReport | None,
    *,
    why_unseen: str,
) -> ModuleView:
    """A module on both nodes; the other side as it was last reported."""
    name_side = own.side
    theirs = None
    for_module = None
    if other is not None:
        for_module = next(
            (report for report in other.modules.values() if report.number == own.number), None
        )
        theirs = for_module.side if for_module is not None else None
    sides = _with_progress({node: name_side, peer: theirs or unseen(why_unseen)})
    roles = {s.role for s in sides.values() if s.readiness is Readiness.READY}
    preflight: list[PreflightItem] = list(own.preflight)
    if for_module is not None:
        preflight += for_module.preflight
    preflight += _differing(module, own, for_module)
    runs = theirs is not None and theirs.role in (Role.ALONE, Role.PRIM)
    generation = theirs.generation if runs and theirs is not None else own.generation
    return ModuleView(
        number=own.number,
        driver=own.driver,
        folder=own.folder,
        generation=generation,
        redundant=Role.PRIM in roles and Role.SECOND in roles,
        failover=own.failover,
        preflight=preflight,
        nodes=dict(sorted(sides.items())),
    )


def resource_state(up: bool) -> ResourceState:
    """Up or down."""
    return ResourceState.UP if up else ResourceState.DOWN
