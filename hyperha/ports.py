"""What the core's actions need from the world, as Protocols; the daemon wires adapters to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hyperha.core.actions import Action, EngineAction, Level, VmAction
from hyperha.core.events import Event, Stimulus
from hyperha.core.lease import Request
from hyperha.core.messages import PeerMessage
from hyperha.core.records import Lineage, Settings
from hyperha.core.state import ModuleState

Post = Callable[[Event], None]
"""Puts an event into the module's mailbox; callable in the event loop's thread."""


class RecordStore(Protocol):
    """The module's durable records; blocking, called in a worker thread (S2)."""

    def store(self, lineage: Lineage, settings: Settings) -> None:
        """Make both durable before returning; raises HyperhaError when the disk refuses."""


class Replicator(Protocol):
    """The module's replication process."""

    def perform(self, action: EngineAction) -> None:
        """Begin the action; its result is posted as `EngineDone`."""


class VmHost(Protocol):
    """Driver, scripts, guardian and checkers of the module."""

    def perform(self, action: VmAction) -> None:
        """Begin the action; its result is posted as `VmDone`."""


class PeerChannel(Protocol):
    """The way to the other node's core."""

    def send(self, message: PeerMessage) -> None:
        """Send on every LAN; may be lost, may arrive twice."""


class Prober(Protocol):
    """Looks whether this node is isolated and whether the peer answers anywhere (W6', W8)."""

    def probe(self, operation: int) -> None:
        """Begin; the result is posted as `ProbeDone`."""


class Arbiter(Protocol):
    """The way to the lease witness."""

    def ask(self, operation: int, request: Request) -> None:
        """Begin; the result is posted as `WitnessDone`, in the time that a question may take."""


class Power(Protocol):
    """Switches the other node off (D2c)."""

    def off(self, operation: int) -> None:
        """Begin; the result is posted as `PoweredOff`."""


class Recorder(Protocol):
    """Keeps the core's decisions for a replay."""

    def record(self, before: ModuleState, stimulus: Stimulus, actions: Sequence[Action]) -> None:
        """What it decided in a state."""


class Teller(Protocol):
    """Where log lines and ends of operations go."""

    def tell(self, level: Level, rule: str, text: str, cause: str) -> None:
        """One line in the module's log; `cause` is the id of the event."""

    def finish(self, operation_id: str, done: bool, text: str) -> None:
        """An operation has ended."""
