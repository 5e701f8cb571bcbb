"""What the core's actions need from the world, as Protocols; the daemon wires adapters to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hyperha.core.actions import EngineAction, Level, VmAction
from hyperha.core.events import Event
from hyperha.core.messages import PeerMessage
from hyperha.core.records import Lineage, Settings

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


class Teller(Protocol):
    """Where log lines and ends of operations go."""

    def tell(self, level: Level, rule: str, text: str, cause: str) -> None:
        """One line in the module's log; `cause` is the id of the event."""

    def finish(self, operation_id: str, done: bool, text: str) -> None:
        """An operation has ended."""

    def journal(self, cause: str, kind: str, body: dict[str, object]) -> None:
        """One entry of the journal: an event and the actions it caused."""
