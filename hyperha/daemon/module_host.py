"""Everything of one module on this node, wired together: core task, engine, VM, log, records."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from hyperha.api.wire import CheckerView, ModuleReport, OperationView, PreflightItem
from hyperha.config import Configuration, Home
from hyperha.config.expressions import condition_of
from hyperha.config.module import ModuleConfig
from hyperha.core import actions as a
from hyperha.core.conditions import Rule, RuleAction
from hyperha.core.events import CheckerAction, EngineDone, Event
from hyperha.core.explain import data_state, readiness
from hyperha.core.options import Config, Isolation, SafetyMode, Timing, WitnessKind
from hyperha.core.records import DataLabel, Lineage, Settings
from hyperha.core.state import ModuleState, Phase
from hyperha.daemon.arbitrating import ModuleArbiter
from hyperha.daemon.checks import ModuleChecks
from hyperha.daemon.engine_host import Callbacks, EngineHost, Kept
from hyperha.daemon.fleet import Fleet
from hyperha.daemon.guardian_client import GuardianClient
from hyperha.daemon.module_task import ModuleTask, Ports, boottime_ms
from hyperha.daemon.observed import Observed, Pace
from hyperha.daemon.peer_link import PeerChannel
from hyperha.daemon.power import ModulePower
from hyperha.daemon.probe import Prober
from hyperha.daemon.recorder import Recorder
from hyperha.daemon.records import ModuleRecords
from hyperha.daemon.safety_copies import SafetyKeeper
from hyperha.daemon.steps import StepArchive
from hyperha.daemon.transitions import Transitions
from hyperha.daemon.verifying import Verifying
from hyperha.daemon.views import core_reasons, side
from hyperha.daemon.vm_host import Stops, VmHost
from hyperha.daemon.witnesses import Witnesses
from hyperha.domain import Epoch
from hyperha.errors import HyperhaError
from hyperha.heartbeat.links import HeartbeatLinks
from hyperha.heartbeat.message import ModuleStatus
from hyperha.logbook.journal import LEVELS, Logbook
from hyperha.logbook.outputs import OutputArchive
from hyperha.replication.control import EngineConfig, LogLine, PeerLink, Statistics, TlsFiles
from hyperha.replication.preamble import Preamble
from hyperha.scripts.runner import ScriptRunner
from hyperha.spawn.tree import RunPlace
from hyperha.study.snapshot import Snapshot
from hyperha.threads import in_own_thread
from hyperha.vm.port import StopMode, VmSpec
from hyperha.vm.process import ProcessDriver

_log = logging.getLogger(__name__)
KERNEL_FEATURES_OFF = "HYPERHA_KERNEL_FEATURES_OFF"
"""Environment: names of optional FUSE features not to use, as on a kernel without them."""
_STOPPING = (Phase.ASKING, Phase.STOPPING, Phase.FLUSHING, Phase.KILLING, Phase.DETACHING)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all modules of the node share."""

    home: Home
    configuration: Configuration
    place: RunPlace
    guardian: GuardianClient
    links: HeartbeatLinks
    logbook: Logbook
    witnesses: Witnesses
    finished: Callable[[str, bool, str], None]
    progressed: Callable[[str, int, int], None]
    """An operation has done so many of so many bytes."""
    changed: Callable[[], None]
    fleet: Fleet
    recorder: Recorder
    runs_ready: Callable[[str], str]
    """The node on which another module runs and is ready; empty: on none."""


def resource_id(cluster_id: str, module: str) -> str:
    """The id of a module's data: the same on both nodes, another in every cluster (R0)."""
    return hashlib.sha256(f"hyperha resource {cluster_id} {module}".encode()).hexdigest()[:32]


class ModuleHost:
    """One module on this node. `open` before anything else, `close` at the end."""

    def __init__(self, config: ModuleConfig, around: Surroundings) -> None:
        self.config = config
        self.name = config.name
        self.number = config.number
        self.around = around
        self.node = around.configuration.node
        self.peer = around.configuration.peer
        self.folder = config.folder_of(self.node)
        self.damage = ""
        self.certified: Epoch | None = None
        """The epoch that the guardian certified as over for a former daemon (L8)."""
        self._given_up = False
        self.operation: OperationView | None = None
        self.statistics: Statistics | None = None
        self.preflight: list[PreflightItem] = []
        state_directory = around.home.module_state(config.name)
        self._records = ModuleRecords(state_directory, self.node, config.name)
        self.observed = Observed(state_directory, f"{self.node} {config.name}")
        self._pace = Pace()
        self._copy_seen: tuple[DataLabel, bool, bool] | None = None
        self.verifying = Verifying(self)
        self.safety = SafetyKeeper(self)
        self._tasks: list[asyncio.Task[None]] = []
        self._released = asyncio.Event()
        self.task: ModuleTask
        self.steps: StepArchive
        self.checks: ModuleChecks

    async def open(self) -> None:
        """Read the records, build the parts, begin to run the core."""
        around, config = self.around, self.config
        loaded = await asyncio.to_thread(self._records.load)
        self.damage = loaded.damage
        if forgotten := await asyncio.to_thread(self.observed.load):
            self.log("E", "verify", "R17", forgotten)
        cluster = around.configuration.cluster
        lineage = loaded.lineage or Lineage(
            resource_id(cluster.id, self.name), self.node, self.peer
        )
        settings = loaded.settings or Settings(boot=config.boot, failover=config.failover)
        if self.certified is not None:
            settings = replace(settings, certified_epoch=self.certified)
        self.task = ModuleTask(self._core_config(), lineage, settings, self._changed)
        archive = OutputArchive(around.home.script_logs(self.name))
        self.steps = StepArchive(self.name, self.node, archive, self._step_line)
        await self.steps.load()
        self.vm = self._make_vm()
        self.engine = self._make_engine()
        self.transitions = self._make_transitions()
        self.checks = ModuleChecks(self)
        self.vm.running_changed = self.checks.running_changed
        witnesses, deadlines = around.witnesses, around.witnesses.deadlines
        pinged = cluster.witness is not None and cluster.witness.kind == "ping"
        prober = Prober(witnesses.lookout, self.post, self._reached if pinged else None)
        timeout_ms = 2 * cluster.timing.heartbeat_ms
        channel = PeerChannel(around.links, self.number, timeout_ms)
        arbiter = ModuleArbiter(witnesses.arbiters, self.name, self.post)
        power = ModulePower(witnesses.power, self.post)
        recorder = around.recorder.of(around.home.decisions(self.name))
        self.vm.turn = lambda say: around.fleet.turn(
            self.name, self.number, config.priority, config.start_after, say
        )
        if deadlines is not None:
            deadlines.add(self.name, lambda: self.task.durable_state)
            self.vm.before_start = lambda: deadlines.keep(self.name)
        self.task.connect(
            Ports(self._records, self, self.vm, channel, prober, arbiter, power, self, recorder)
        )
        if self.damage:
            self.log("E", "daemon", "C12", self.damage)
        core = asyncio.get_running_loop().create_task(self.task.run(), name=f"core {self.name}")
        core.add_done_callback(self._core_ended)
        self._tasks.append(core)

    def _reached(self, asked_ms: int) -> None:
        """The ping witness answers this node (L6)."""
        deadlines = self.around.witnesses.deadlines
        if deadlines is not None:
            deadlines.renewed(self.name, asked_ms)

    def snapshot(self, boot_id: str) -> Snapshot:
        """What the core knows now, for a study of what it would do."""
        return Snapshot(
            boottime_ms(),
            time.time_ns() // 1_000_000,
            boot_id,
            self.state,
            self.task.timers(),
            self.steps.took_ms("start_prim"),
            self.steps.took_ms("stop_prim"),
        )

    def go(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the core, until it is done or the module is closed."""
        self._tasks = [one for one in self._tasks if not one.done()]
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def close(self) -> None:
        """End everything; what runs is ended, too."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.task.cancel_timers()
        async with contextlib.AsyncExitStack() as parts:  # Last first, each whatever the others do.
            parts.push_async_callback(self.engine.close)
            parts.push_async_callback(self.steps.close)
            parts.push_async_callback(self.vm.close)
            parts.push_async_callback(self.checks.close)

    def _core_ended(self, task: asyncio.Task[None]) -> None:
        """The core's task never ends by itself: if it does, the module is made safe."""
        if task.cancelled() or task.exception() is None:
            return
        _log.critical("%s: the core's task failed", self.name, exc_info=task.exception())
        self.task.broken = f"internal error: {task.exception()!r}: the module was made safe"
        self.vm.perform(a.Fence(-1))
        self.vm.perform(a.KillVm(-2, self.state.run))
        self._give_up()
        self.around.changed()

    # --- building ----------------------------------------------------------------------------

    def _core_config(self) -> Config:
        cluster, config = self.around.configuration.cluster, self.config
        timing = cluster.timing
        vm_checker = next((one for one in config.checker if one.kind == "vm"), None)
        return Config(
            module=self.name,
            number=self.number,
            node=self.node,
            peer=self.peer,
            isolation=Isolation(cluster.arbitration.isolation),
            timing=Timing(
                suspect_ms=timing.suspect_ms,
                stall_limit_ms=timing.stall_limit_ms,
                takeover_wait_ms=timing.takeover_wait_ms,
                pause_after_ms=timing.pause_after_ms,
                retry_ms=timing.heartbeat_ms,
            ),
            restarts=config.restart_budget.count,
            restart_window_ms=config.restart_budget.window_h * 3_600_000,
            exit_action=CheckerAction(vm_checker.action if vm_checker else "restart"),
            vm_checker=vm_checker.name if vm_checker else self.name,
            rules=tuple(
                Rule(
                    one.name,
                    condition_of(one.when),
                    RuleAction(one.action),
                    round(1000 * one.stable_s),
                )
                for one in config.rule
            ),
            default_primary=config.default_primary,
            pre_checkers=tuple(one.name for one in config.checker if one.holds),
            grace_ms=round(1000 * vm_checker.grace_s) if vm_checker else 0,
            safety=SafetyMode(config.safety_copy.mode),
            first_node=cluster.nodes[0],
            witness=WitnessKind(cluster.witness.kind if cluster.witness else ""),
            ttl_ms=cluster.ttl_ms or 0,
            fences=self.peer in cluster.fence,
            version=cluster.version,
        )

    def _make_transitions(self) -> Transitions:
        around, config = self.around, self.config
        spec = VmSpec(self.name, self.number, self.node, self.peer, self.folder)
        directory = around.home.scripts_directory(self.name)
        made = Transitions(spec, self.steps, directory, around.place, config.scripts.timeout_s)
        self.go(made.run())
        return made

    def _make_vm(self) -> VmHost:
        around, config = self.around, self.config
        spec = VmSpec(
            self.name, self.number, self.node, self.peer, self.folder, config.driver_options
        )
        stops = Stops(
            StopMode(config.stop.normal), StopMode(config.stop.force), config.stop.timeout_s
        )
        scripts = ScriptRunner(
            self.name,
            around.home.scripts_directory(self.name),
            place=around.place,
            timeout_s=config.scripts.timeout_s,
            replace=config.scripts.replace,
            on_line=lambda step, line: host.on_script_line(step, line),
        )
        host = VmHost(
            spec,
            stops,
            scripts,
            self.steps,
            around.guardian,
            self.post,
            self._wait_released,
            lambda: self.engine.cut(),
        )
        host.use(
            ProcessDriver(spec, place=around.place, on_exit=host.on_exit, on_line=host.on_line)
        )
        return host

    def _make_engine(self) -> EngineHost:
        around, cluster = self.around, self.around.configuration.cluster
        home = around.home
        files = TlsFiles(
            str(home.authority_certificate), str(home.node_certificate), str(home.node_key)
        )
        links = tuple(
            PeerLink(
                lan.name,
                lan.addresses[self.peer],
                cluster.ports.peer,
                lan.addresses[self.node],
                None if lan.encryption == "none" else files,
            )
            for lan in cluster.replication_lans()
        )
        config = EngineConfig(
            cluster_id=cluster.id,
            module=self.name,
            number=self.number,
            node=self.node,
            peer=self.peer,
            folder=self.folder,
            run_directory=str(home.run),
            links=links,
            suspect_ms=cluster.timing.suspect_ms,
            stall_limit_ms=cluster.timing.stall_limit_ms,
            strict=self.config.replication.durability == "strict",
            resync_rate_mib_s=self.config.replication.resync_rate_mib_s,
            safety_keep_days=self.config.safety_copy.keep_days,
            safety_max_gib=self.config.safety_copy.max_gib,
            kernel_features_off=tuple(os.environ.get(KERNEL_FEATURES_OFF, "").split()),
        )
        callbacks = Callbacks(
            post=self._engine_event,
            line=self._engine_line,
            alive=around.links.session_alive,
            descriptors=self._descriptors,
            statistics=self._statistics,
        )
        return EngineHost(config, around.place, callbacks)

    # --- ports of the core -------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """An event for the core."""
        self.task.post(event)

    def perform(self, action: a.EngineAction) -> None:
        """`ports.Replicator`."""
        self.engine.perform(action)

    def tell(self, level: a.Level, rule: str, text: str, cause: str) -> None:
        """`ports.Teller`: one line in the module's log."""
        self.log(level.value, "daemon", rule, text, cause)

    def finish(self, operation_id: str, done: bool, text: str) -> None:
        """`ports.Teller`: an operation has ended."""
        self.around.finished(operation_id, done, text)

    def log(
        self, level: str, source: str, rule: str, text: str, cause: str = "", run: str = ""
    ) -> None:
        """One line in the module's log; `run` names the script run it belongs to."""
        event = f"{cause}|{run}" if run else cause
        self.around.logbook.log(
            self.name,
            LEVELS.get(level, "E"),
            text,
            source=source,
            rule=rule,
            event=event,
        )

    # --- what the parts tell -----------------------------------------------------------------

    def _engine_event(self, event: Event) -> None:
        if isinstance(event, EngineDone) and self.task.state.phase is Phase.DETACHING:
            # Only a Detach is outstanding then: the guardian has nothing to watch any more.
            task = asyncio.get_running_loop().create_task(self._after_detach(event))
            self._tasks.append(task)
            return
        self.post(event)

    async def _after_detach(self, event: EngineDone) -> None:
        with contextlib.suppress(HyperhaError):
            await self.vm.detached()
        self.post(event)

    def _engine_line(self, line: LogLine) -> None:
        self.log(line.level, "replication", line.rule, line.text)

    def _descriptors(self, kept: Kept) -> None:
        self.vm.descriptors(kept)

    def _statistics(self, statistics: Statistics) -> None:
        self.statistics = statistics
        if statistics.handles_open == 0:
            self._released.set()
        else:
            self._released.clear()

    async def _wait_released(self) -> bool:
        """M12: wait until every handle of the last run is released, as the engine reports it."""
        if self.statistics is None:
            return True
        self._released.clear()
        try:
            async with asyncio.timeout(3.0):
                await self._released.wait()
        except TimeoutError:
            return False
        return True

    def _step_line(self, level: str, source: str, rule: str, text: str, run: str) -> None:
        self.log(level, source, rule, text, "", run)

    def _changed(self, state: ModuleState) -> None:
        if self.certified is not None and state.settings.certified_epoch is None:
            self.certified = None
            self._tasks.append(asyncio.get_running_loop().create_task(self._forget()))
        if self.task.broken:
            self._give_up()
        copy = state.lineage.label, state.lineage.way_back, state.phase is Phase.IDLE
        if copy != self._copy_seen:
            self._copy_seen = copy
            self.go(self._look_at_safety_copies())
        rate = self._pace.note(state.resync)
        if rate is not None:
            self.observed.resync_bytes_per_s = rate
            self.go(self._keep_observed())
        self.checks.state_changed(state)
        self.transitions.role_is(state.role, state.run)
        self.around.changed()

    async def _look_at_safety_copies(self) -> None:
        with contextlib.suppress(HyperhaError):
            await self.safety.look()

    async def _keep_observed(self) -> None:
        with contextlib.suppress(HyperhaError):
            await in_own_thread("observed", self.observed.store)

    def _give_up(self) -> None:
        """The core cannot go on: the guardian fences, kills and certifies, as for a dead daemon.

        The other node then takes over by the certificate, instead of following a dead VM (L8).
        """
        if not self._given_up:
            self._given_up = True
            self._tasks.append(asyncio.get_running_loop().create_task(self._fire()))

    async def _fire(self) -> None:
        with contextlib.suppress(HyperhaError):
            await self.around.guardian.set_deadlines({self.name: boottime_ms()})

    async def _forget(self) -> None:
        """The peer has answered: the guardian need not remember the certificate (L8)."""
        with contextlib.suppress(HyperhaError):
            await self.around.guardian.forget(self.name)

    def take_socket(self, lan: str, found: Preamble, raw: bytes, connection: socket.socket) -> bool:
        """A connection of the peer's replication process for this module."""
        del found
        return self.engine.take_socket(lan, raw, connection)

    # --- views -------------------------------------------------------------------------------

    @property
    def runs_vm(self) -> bool:
        """Whether this node runs its VM."""
        return self.state.role.runs_vm

    @property
    def state(self) -> ModuleState:
        """The core's state."""
        return self.task.state

    def status(self) -> ModuleStatus | None:
        """What the heartbeats say about this side: only what is durable (P7).

        Nothing while it follows or is stopped and cannot store its state: whoever waits for its
        word must not wait for ever, and decides as about a silent node (K1, D9).
        """
        state = self.task.durable_state
        if self.task.storing_fails and not state.role.runs_vm:
            return None
        epoch = state.lineage.held if state.role.runs_vm else state.lineage.epoch
        return ModuleStatus(
            number=self.number,
            role=state.role,
            readiness=readiness(state),
            data=data_state(state),
            epoch=epoch.counter,
            generation=state.lineage.current.id[:16],
            stopping=state.phase in _STOPPING,
            wanted=state.settings.wanted,
        )

    def report(self) -> ModuleReport:
        """The module as this node sees it."""
        state = self.state
        if self.damage and state.lineage.current.id:
            self.damage = ""  # An operator's decision has made a new record since.
        return ModuleReport(
            number=self.number,
            driver=self.config.driver,
            folder=self.folder,
            generation=state.lineage.current.id,
            failover=state.settings.failover,
            preflight=[*self.preflight, *core_reasons(state)],
            side=side(
                state,
                wall_ms=time.time_ns() // 1_000_000,
                checkers=self.checker_views(),
                operation=self.operation,
                window_h=self.config.restart_budget.window_h,
                vm_observed=True,
                damage=self.damage or self.task.broken,
                more=self._more_commands(),
                safety_copies=self.safety.views,
                replication_lan=self._lan(),
            ),
            verify=self.observed.verify,
        )

    def _lan(self) -> str:
        return "" if self.statistics is None else self.statistics.lan

    def _off_the_preferred_lan(self) -> list[PreflightItem]:
        """D12: the stream has moved away from a LAN that it would come back to."""
        preferred = self.around.configuration.cluster.replication_lans()[0].name
        lan = self._lan()
        if lan in ("", preferred):
            return []
        return [
            PreflightItem(
                code="replication-lan",
                node=self.node,
                text=f"replication goes over {lan}, since {preferred} did not carry it",
                fix=f"Look at {preferred}; replication returns when it was stable for a while.",
            )
        ]

    def _more_commands(self) -> dict[str, str]:
        """Commands that are no business of the core's, and why they are refused now."""
        return {
            "verify": self.verifying.refusal(),
            "verify-stop": self.verifying.stop_refusal(),
            "safety-restore": "" if self.safety.views else "there is no safety copy on this node",
            "safety-delete": "" if self.safety.views else "there is no safety copy on this node",
        }

    def checker_views(self) -> list[CheckerView]:
        """The checkers with their last verdicts."""
        return self.checks.views()

    async def look_ahead(self) -> None:
        """Refresh the preflight list."""
        await self._look_at_safety_copies()
        reasons = list(await self.vm.driver.preflight())
        if self.state.phase is Phase.IDLE and (missing := await self.vm.missing_folder()):
            reasons.append(missing)
        found = [
            PreflightItem(code=one.code, node=self.node, text=one.text, fix=one.fix)
            for one in reasons
        ]
        found += self._off_the_preferred_lan()
        found += self.safety.reasons()
        if found != self.preflight:
            self.preflight = found
            self.around.changed()
