"""One module's mailbox: events in, `step`, actions performed in order. No decision is made here.

Two tasks: one steps the core as events arrive, one performs what came out, so that a slow disk
never delays a fence. `Persist` is a barrier for everything behind it, also for the actions of
later events; only `Fence` and `KillVm` overtake it (K1).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from hyperha.core import actions as a
from hyperha.core.events import Event, PersistFailed, Stimulus, TimerFired
from hyperha.core.invariants import InvariantBroken
from hyperha.core.machine import step
from hyperha.core.options import Config
from hyperha.core.records import Lineage, Settings
from hyperha.core.state import ModuleState, Why
from hyperha.errors import HyperhaError
from hyperha.ports import (
    Arbiter,
    PeerChannel,
    Power,
    Prober,
    Recorder,
    RecordStore,
    Replicator,
    Teller,
    VmHost,
)
from hyperha.threads import OwnThread

_log = logging.getLogger(__name__)
MAILBOX_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything the actions need."""

    records: RecordStore
    replicator: Replicator
    vm: VmHost
    peer: PeerChannel
    prober: Prober
    arbiter: Arbiter
    power: Power
    teller: Teller
    recorder: Recorder


def boottime_ms() -> int:
    """Milliseconds of CLOCK_BOOTTIME (K4); where it does not exist, of the monotonic clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    read: Callable[[int], int] | None = getattr(time, "clock_gettime_ns", None)
    if clock is None or read is None:
        return time.monotonic_ns() // 1_000_000
    return read(clock) // 1_000_000


def _where(state: ModuleState) -> tuple[str, str]:
    return state.role.value, state.phase.value


class ModuleTask:
    """Owns one module's state on this node; nobody else writes it."""

    def __init__(
        self,
        config: Config,
        lineage: Lineage,
        settings: Settings,
        changed: Callable[[ModuleState], None],
    ) -> None:
        self.state = ModuleState(config, lineage, settings)
        self.durable_state = self.state
        """The newest state that is stored as far as it must be: what others may be told (P7)."""
        self._records_thread = OwnThread(f"records {config.module}")
        self._durable = (lineage, settings)
        self.storing_fails = False
        """Whether the last record could not be stored: this node can promise nothing (K1)."""
        self._changed = changed
        self._mailbox: asyncio.Queue[Event] = asyncio.Queue(MAILBOX_LIMIT)
        self._work: asyncio.Queue[tuple[str, tuple[a.Action, ...], ModuleState]] = asyncio.Queue()
        self._timers: dict[a.Timer, asyncio.TimerHandle] = {}
        self._count = 0
        self._ports: Ports | None = None
        self.broken = ""

    def connect(self, ports: Ports) -> None:
        """Give the task its hands; once, before `run`."""
        self._ports = ports

    def post(self, event: Event) -> None:
        """An event for the core; only in the event loop's thread."""
        self._mailbox.put_nowait(event)

    async def run(self) -> None:
        """Step and perform until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._step_all(), name=f"step {self.state.config.module}")
            group.create_task(self._perform_all(), name=f"perform {self.state.config.module}")

    async def _step_all(self) -> None:
        while True:
            self._step(await self._mailbox.get())

    def _step(self, event: Event) -> None:
        assert self._ports is not None
        if self.broken:
            return
        self._count += 1
        name = f"{self.state.config.module}-{self.state.config.node}-{self._count}"
        stimulus = Stimulus(
            name, boottime_ms(), time.time_ns() // 1_000_000, secrets.token_hex(16), event
        )
        try:
            state, actions = step(self.state, stimulus)
        except InvariantBroken as problem:
            self._break(event, problem)
            return
        changed = state != self.state
        _log.debug("%s %s -> %s %s: %s", stimulus.id, event, *_where(state), actions)
        self._ports.recorder.record(self.state, stimulus, actions)
        self.state = state
        for action in actions:
            if isinstance(action, a.Fence | a.KillVm):
                self._ports.vm.perform(action)
        if actions or changed:
            self._work.put_nowait((name, actions, state))
        if changed:
            self._changed(state)

    def _break(self, event: Event, problem: InvariantBroken) -> None:
        """The core contradicts itself: make the module safe and keep the daemon alive."""
        assert self._ports is not None
        self.broken = f"internal contradiction ({problem}): the module was made safe"
        _log.critical("%s: %s at %r", self.state.config.module, problem, event)
        self._ports.teller.tell(a.Level.ERROR, "K", self.broken, "")
        self._ports.vm.perform(a.Fence(-1))
        self._ports.vm.perform(a.KillVm(-2, self.state.run))
        self._changed(self.state)

    def ended_for_good(self) -> None:
        """The guardian has ended what a broken core left: nothing of the module runs here."""
        if not self.broken:
            return
        self.state = self.durable_state = ModuleState(
            self.state.config, *self._durable, why=Why("K", self.broken)
        )
        self._changed(self.state)

    async def _perform_all(self) -> None:
        while True:
            cause, actions, state = await self._work.get()
            if await self._perform(cause, actions):
                self.durable_state = state
                self._changed(self.state)

    async def _perform(self, cause: str, actions: tuple[a.Action, ...]) -> bool:
        """False when a record could not be stored: what is behind it is dropped (K1)."""
        for action in actions:
            if isinstance(action, a.Persist):
                if not await self._persist(action):
                    return False
            else:
                try:
                    self._begin(cause, action)
                except HyperhaError as problem:
                    _log.error("%s: %s: %s", self.state.config.module, action, problem)
        return True

    async def _persist(self, action: a.Persist) -> bool:
        assert self._ports is not None
        store = self._ports.records.store
        limit_s = self.state.config.timing.stall_limit_ms / 1000
        try:
            async with asyncio.timeout(limit_s):
                await self._records_thread.do(store, action.lineage, action.settings)
        except TimeoutError:  # before OSError, which it is a kind of
            self._persist_failed(f"the disk did not answer within {limit_s:.1f} s")
            return False
        except (HyperhaError, OSError) as problem:
            self._persist_failed(str(problem))
            return False
        self._durable = (action.lineage, action.settings)
        self.storing_fails = False
        return True

    def _persist_failed(self, text: str) -> None:
        self.storing_fails = True
        # K1: nothing behind a failed Persist is done, whichever event it came from.
        while not self._work.empty():
            self._work.get_nowait()
        # At once, before any other event: in between the core would answer from what is not stored.
        self._step(PersistFailed(text, *self._durable))

    def _begin(self, cause: str, action: a.Action) -> None:
        ports = self._ports
        assert ports is not None
        match action:
            case a.Fence() | a.KillVm():
                pass  # performed when it was decided: nothing may delay it
            case a.EngineAction():
                ports.replicator.perform(action)
            case a.VmAction():
                ports.vm.perform(action)
            case a.SendPeer(message):
                ports.peer.send(message)
            case a.Probe(operation):
                ports.prober.probe(operation)
            case a.AskWitness(operation, request):
                ports.arbiter.ask(operation, request)
            case a.PowerOff(operation):
                ports.power.off(operation)
            case a.ArmTimer(timer, at_ms):
                self._arm(timer, at_ms)
            case a.CancelTimer(timer):
                self._cancel(timer)
            case a.Tell(level, rule, text):
                ports.teller.tell(level, rule, text, cause)
            case a.Finish(operation_id, done, text):
                ports.teller.finish(operation_id, done, text)
            case _:
                raise AssertionError(f"nobody performs {action!r}")

    def _arm(self, timer: a.Timer, at_ms: int) -> None:
        self._cancel(timer)
        delay_s = max(0, at_ms - boottime_ms()) / 1000
        loop = asyncio.get_running_loop()
        self._timers[timer] = loop.call_later(delay_s, self._fired, timer)

    def _fired(self, timer: a.Timer) -> None:
        self._timers.pop(timer, None)
        self.post(TimerFired(timer))

    def _cancel(self, timer: a.Timer) -> None:
        handle = self._timers.pop(timer, None)
        if handle is not None:
            handle.cancel()

    def timers(self) -> tuple[tuple[a.Timer, int], ...]:
        """The armed ones, and when they fire."""
        now_s, now_ms = asyncio.get_running_loop().time(), boottime_ms()
        return tuple(
            (timer, now_ms + round(1000 * (handle.when() - now_s)))
            for timer, handle in self._timers.items()
        )

    def cancel_timers(self) -> None:
        """At the daemon's end."""
        for timer in list(self._timers):
            self._cancel(timer)
