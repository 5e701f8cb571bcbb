"""One step in the making: the state as it becomes, and the actions in order.

A turn is created by `machine.step`, handed from handler to handler, and read out at the end. It is
the only mutable thing in the core and never outlives the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hyperha.core.actions import (
    Action,
    ArmTimer,
    CancelTimer,
    Finish,
    Level,
    Persist,
    SendPeer,
    SetMarker,
    Tell,
    Timer,
)
from hyperha.core.events import Stimulus
from hyperha.core.messages import PeerMessage, Summary
from hyperha.core.records import Lineage, Settings
from hyperha.core.state import Command, Goal, ModuleState, Phase, Step, Why
from hyperha.domain import Role


class Turn:
    """Collects what one event changes and causes."""

    def __init__(self, state: ModuleState, stimulus: Stimulus) -> None:
        self.state = state
        self.stimulus = stimulus
        self.actions: list[Action] = []

    @property
    def now_ms(self) -> int:
        """CLOCK_BOOTTIME of the event."""
        return self.stimulus.now_ms

    def set(self, **changes: Any) -> None:
        """Change the state."""
        self.state = replace(self.state, **changes)

    def enter(self, role: Role, phase: Phase, why: Why | None = None) -> None:
        """Another role or phase; the time of a role's beginning is remembered."""
        if role is not self.state.role:
            self.set(since_wall_ms=self.stimulus.wall_ms)
        self.set(role=role, phase=phase)
        if why is not None:
            self.explain(why)

    def explain(self, why: Why) -> None:
        """The sentence for the operator."""
        self.set(why=why)

    def do(self, action: Action) -> None:
        """Append an action."""
        self.actions.append(action)

    def order(self, kind: Callable[..., Action], step: Step, **fields: Any) -> int:
        """An action with a result: numbered, and awaited under `step` (K2)."""
        number = self.state.operation + 1
        self.set(operation=number, awaiting=(*self.state.awaiting, (number, step)))
        self.do(kind(operation=number, **fields))
        return number

    def take(self, operation: int) -> Step | None:
        """What the operation was for, once; None when nobody waits for it any more (K2)."""
        for number, step in self.state.awaiting:
            if number == operation:
                rest = tuple(entry for entry in self.state.awaiting if entry[0] != operation)
                self.set(awaiting=rest)
                return step
        return None

    def forget(self, *steps: Step) -> None:
        """Do not wait for these any more (all of them when none is named)."""
        kept = tuple(e for e in self.state.awaiting if steps and e[1] not in steps)
        self.set(awaiting=kept)

    def persist(self, lineage: Lineage | None = None, settings: Settings | None = None) -> None:
        """Change the durable records, with the barrier that everything later waits for."""
        self.set(lineage=lineage or self.state.lineage, settings=settings or self.state.settings)
        self.do(Persist(self.state.lineage, self.state.settings))

    def persist_with_marker(self, lineage: Lineage) -> None:
        """Like `persist` where the generation changed: the folder's marker follows (R12)."""
        self.persist(lineage=lineage.with_marker())
        marker = self.state.lineage.marker
        if marker is not None and self.state.attached:
            self.order(SetMarker, Step.MARK, write=marker)

    def send(self, message: PeerMessage) -> None:
        """To the other node's core."""
        self.do(SendPeer(message))

    def arm(self, timer: Timer, after_ms: int) -> None:
        """A deadline from now."""
        self.do(ArmTimer(timer, self.now_ms + max(0, after_ms)))

    def arm_at(self, timer: Timer, at_ms: int) -> None:
        """A deadline at a time."""
        self.do(ArmTimer(timer, max(at_ms, self.now_ms)))

    def cancel(self, *timers: Timer) -> None:
        """Forget deadlines."""
        for timer in timers:
            self.do(CancelTimer(timer))

    def retry(self) -> None:
        """Say the last message again after a while."""
        self.arm(Timer.RETRY, self.state.config.timing.retry_ms)

    def tell(self, level: Level, rule: str, text: str) -> None:
        """A line in the module's log."""
        self.do(Tell(level, rule, text))

    def tell_once(self, level: Level, rule: str, text: str) -> None:
        """A line that is not said again with each retry of the same, whatever its figures are."""
        key = "".join(one for one in text if not one.isdigit())
        if self.state.told != key:
            self.set(told=key)
            self.tell(level, rule, text)

    def finish(self, done: bool, text: str) -> None:
        """The operator's command has ended; harmless when there is none."""
        command = self.state.command
        if command is not None:
            self.set(command=None)
            self.do(Finish(command.operation_id, done, text))

    def refuse(self, operation_id: str, text: str) -> None:
        """A command that is not even begun."""
        self.do(Finish(operation_id, False, text))

    def begin(self, command: Command) -> None:
        """A command is carried out from now on; one before it is superseded."""
        self.finish(False, f"superseded by {command.verb} of {command.by}")
        self.set(command=command)

    def block(self, rule: str, text: str) -> None:
        """WAIT with the reason until an operator commands."""
        self.enter(Role.WAIT, Phase.WAITING, Why(rule, text))
        self.set(goal=Goal.BLOCKED)
        self.tell(Level.WARNING, rule, text)
        self.finish(False, text)

    def summary(self) -> Summary:
        """What the other node may know of this copy."""
        state = self.state
        command = state.command
        return Summary.of(
            state.lineage,
            state.facts.candidates if state.facts else 0,
            state.facts.folder_empty if state.facts else False,
            adopt=bool(command and (command.adopt or command.confirmed)),
            full=bool(command and command.full),
            unknown=bool(state.unknown_data),
        )

    @property
    def peer_runs(self) -> bool:
        """Whether the peer is heard and says that it runs the VM."""
        peer = self.state.peer
        return self.state.peer_heard and peer is not None and peer.role.runs_vm
