"""The checkers of one module, told what the core knows, and their verdicts told to the core."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from hyperha.api.wire import CheckerView
from hyperha.checkers.kinds import Answer, make_check
from hyperha.checkers.schedule import CheckerSchedule, Resource, VerdictGiven
from hyperha.config.module import Checker
from hyperha.core.events import CheckerAction, CheckerFailed, PeerResources, ResourceSeen
from hyperha.core.records import Suspension
from hyperha.core.state import ModuleState
from hyperha.daemon.views import suspension_of
from hyperha.domain import ResourceState, Role
from hyperha.vm.port import VmSpec

if TYPE_CHECKING:
    from hyperha.daemon.module_host import ModuleHost

_log = logging.getLogger(__name__)


class ModuleChecks:
    """Belongs to the event loop."""

    def __init__(self, host: ModuleHost) -> None:
        self._host = host
        self._checkers = {one.name: one for one in host.config.checker}
        self._run: int | None = None
        self._role = Role.STOP
        self._held = False
        self._seen: dict[str, ResourceSeen] = {}
        self._peer_seen: tuple[ResourceSeen, ...] = ()
        self._suspensions: tuple[Suspension, ...] = ()
        spec = VmSpec(host.name, host.number, host.node, host.peer, host.folder)
        checks = [
            (
                one,
                make_check(
                    one,
                    vm=self._beat,
                    module=self._other,
                    place=host.around.place,
                    directory=str(host.around.home.config),
                    environment=lambda: spec.environment(self._role.value, self._run or 0),
                ),
            )
            for one in host.config.checker
        ]
        self._schedule = CheckerSchedule(
            checks, on_state=self._on_state, on_verdict=self._on_verdict
        )

    async def _beat(self) -> Answer:
        beat = await self._host.vm.driver.heartbeat()
        return Answer(beat.ok, beat.text)

    def _other(self, name: str) -> Answer:
        """Whether another module of the cluster runs, and is ready."""
        node = self._host.around.runs_ready(name)
        if node:
            return Answer(True, f"{name} runs on {node}")
        return Answer(False, f"{name} does not run, or is not ready")

    def running_changed(self, run: int | None) -> None:
        """A run has started, or is being ended: without one nothing of `prim` is judged."""
        self._run = run
        self._apply()

    def state_changed(self, state: ModuleState) -> None:
        """Role, suspensions, and what holds the VM up, as the core has them (K3)."""
        if state.unjudged and not self._held:
            self._schedule.freeze()
        elif self._held and not state.unjudged:
            self._schedule.release()
        self._held = state.unjudged
        self._suspend(state.settings.suspensions)
        if state.role is not self._role:
            self._role = state.role
            self._apply()

    def _suspend(self, suspensions: tuple[Suspension, ...]) -> None:
        if suspensions == self._suspensions:
            return
        self._suspensions = suspensions
        held = {one.checker for one in suspensions}
        for name in self._checkers:
            if "" in held or name in held:
                self._schedule.suspend(name)
            else:
                self._schedule.resume(name)

    def _apply(self) -> None:
        runs = self._role.runs_vm
        role = self._role if not runs or self._run is not None else Role.STOP
        self._schedule.set_role(role, self._run or 0)

    def _on_state(self, resource: Resource) -> None:
        text = f": {resource.text}" if resource.text else ""
        level = "W" if resource.state == "down" else "I"
        if resource.state in ("up", "down"):
            self._host.log(level, resource.name, "checker", f"{resource.state}{text}")
        seen = ResourceSeen(resource.name, resource.kind, resource.state, resource.text)
        # The words of what is up change with each look, and decide nothing.
        told = seen if resource.state is ResourceState.DOWN else replace(seen, text="")
        if self._seen.get(resource.name) != told:
            self._seen[resource.name] = told
            self._host.post(told)
        self._host.around.changed()

    def _on_verdict(self, verdict: VerdictGiven) -> None:
        checker: Checker = verdict.checker
        if checker.when == "pre":
            return  # What it holds up is told with each change of its state.
        self._host.post(
            CheckerFailed(checker.name, verdict.run, CheckerAction(checker.action), verdict.text)
        )

    def peer_has(self, checkers: list[CheckerView]) -> None:
        """What the other node's checkers say; nothing while it is not heard."""
        found = tuple(ResourceSeen(one.name, one.kind, one.state) for one in checkers)
        if self._host.config.rule and found != self._peer_seen:
            self._peer_seen = found
            self._host.post(PeerResources(found))

    def views(self) -> list[CheckerView]:
        """The checkers with their last verdicts and suspensions."""
        settings = self._host.state.settings
        return [
            CheckerView(
                name=one.name,
                kind=one.kind,
                state=one.state,
                suspended=suspension_of(settings, one.name),
                text=one.text,
                action=self._checkers[one.name].action,
            )
            for one in self._schedule.resources()
        ]

    async def close(self) -> None:
        """End every check."""
        await self._schedule.stop()
