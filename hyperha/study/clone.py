"""A modelled cluster that begins where the real one is now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hyperha.core.actions import Acknowledge, Tell
from hyperha.core.lease import Known, Lease, Record
from hyperha.core.options import Config
from hyperha.core.records import DataLabel
from hyperha.core.state import Link, Phase, Vm
from hyperha.errors import BusyError
from hyperha.study.base_node import BaseNode
from hyperha.study.model_node import Node
from hyperha.study.snapshot import Snapshot
from hyperha.study.world import World

_RESTING = (Phase.IDLE, Phase.WAITING, Phase.RUNNING, Phase.FOLLOWING, Phase.RESYNCING)
_ON_BOTH, _LEFT, _RIGHT = 1, 2, 3
"""Writes that stand for all that were made: before the copies parted, and since on either."""
COPY_MS = 10_000
"""Of a resync whose end is not foreseen: shorter than what is taken for rest."""


@dataclass(frozen=True, slots=True)
class Instant:
    """Who served the guest from a moment on."""

    at_ms: int
    runs: tuple[str, ...]
    """Where a VM runs."""
    held: bool
    """Whether its writes wait for an answer."""


class Clone(World):
    """The cluster as its nodes described it; what is decided in here happens nowhere else.

    A node without a snapshot does not answer: it is taken for switched off. Raises BusyError when
    a node is in the middle of something whose end the real one alone will see.
    """

    def __init__(self, found: Mapping[str, Snapshot]) -> None:
        first = next(iter(found.values())).state.config
        configs = [
            found[name].state.config if name in found else _mirrored(first)
            for name in sorted((first.node, first.peer))
        ]
        super().__init__(configs)
        self.instants: list[Instant] = []
        self.told: list[tuple[int, str, Tell]] = []
        """When, which node, what."""
        self.started: set[str] = set()
        """Nodes on which the VM was started."""
        self.measured: set[str] = set()
        """Nodes of which it is known how long a start takes."""
        self.commands: dict[str, tuple[object, Node]] = {}
        """Operations that were begun: for what, and where."""
        self.copy_ms = COPY_MS
        self.began_wall_ms = next(iter(found.values())).wall_ms
        for name, node in self.nodes.items():
            if name in found:
                self._continue(node, found[name])
            else:
                node.alive = False
        self._join()
        self._witness()
        self.acknowledged = {
            one for node in self.nodes.values() if node.vm_run for one in node.folder.data
        }
        if sum(bool(node.vm_run) for node in self.nodes.values()) > 1:
            self.both_may_run = True  # They do already; what it leads to is asked.
        self._observe()

    def _continue(self, node: Node, found: Snapshot) -> None:
        state = found.state
        if state.phase not in _RESTING or state.awaiting:
            raise BusyError(
                f"{state.config.module} is in the middle of something on {node.name}: "
                f"{state.phase}",
                "Ask again when it is done.",
            )
        node.state, node.lineage, node.settings = state, state.lineage, state.settings
        node.clock_ms = found.now_ms - self.now
        node.timers = {timer: at_ms - node.clock_ms for timer, at_ms in found.timers}
        node.instance = found.instance
        if found.start_ms is not None:
            node.start_ms = found.start_ms
            self.measured.add(node.name)
        if found.stop_ms is not None:
            node.stop_ms = found.stop_ms
        node.attached, node.writable = state.attached, state.writable
        node.acknowledge = state.acknowledge
        node.vm_run = state.run if state.vm is Vm.RUNNING else 0
        node.certify = state.acknowledge is Acknowledge.BOTH
        node.silent = not state.peer_heard
        node.told = state.peer
        node.promised_ms = node.renewed_ms = self.now
        node.folder.marker = state.lineage.marker
        node.folder.dirty = bool(state.lineage.base)
        label = state.lineage.label
        node.folder.half = label is DataLabel.INCONSISTENT
        if state.lineage.way_back:
            node.folder.safety = {_ON_BOTH}
            node.folder.safety_required = state.lineage.way_back_required
        own = _LEFT if node is self.a else _RIGHT
        if label is not DataLabel.FRESH:
            node.folder.data = {_ON_BOTH}
        if state.lineage.base:
            node.folder.data.add(own)
        if state.full is not None:
            node.free_bytes = 0

    def _join(self) -> None:
        """The replication session, where both sides have one and the same."""
        one, two = self.a, self.b
        both = one.alive and two.alive
        if not both or one.state.session is None or one.state.session != two.state.session:
            return
        source, target = (one, two) if one.state.role.runs_vm else (two, one)
        live = (Link.COPYING, Link.ENDING, Link.IN_SYNC)
        if source.state.link not in live or target.state.link not in live:
            return
        for node, role in ((source, "source"), (target, "target")):
            node.session, node.session_role, node.session_up = node.state.session, role, True
            node.session_start = node.state.session_start
        if source.state.link is Link.IN_SYNC:
            target.folder.data = set(source.folder.data)
        else:
            for node in (source, target):
                if node.state.resync is not None and node.state.resync.seconds_left is not None:
                    self.copy_ms = 1000 * node.state.resync.seconds_left
            self.at(self.copy_ms, source, ("copied", source.session))

    def _witness(self) -> None:
        """What a lease witness knows, as far as the nodes have been told."""
        answers = [
            node.state.witnessed
            for node in self.nodes.values()
            if node.alive and node.state.witnessed is not None
        ]
        if not answers:
            return
        last = max(answers, key=lambda one: (one.version, one.renewals))
        record = Record(
            tuple(self.nodes),
            last.version,
            last.epoch,
            last.holder,
            last.in_sync,
            last.generation,
            self.a.config.ttl_ms,
        )
        self.known = Known(record, Lease(self.now + self.a.config.ttl_ms, last.renewals))

    def copy_delay_ms(self) -> int:
        """How long a resync takes."""
        return self.copy_ms

    def vm_starts(self, node: Node) -> None:
        """A VM is started; note where."""
        self.started.add(node.name)
        super().vm_starts(node)

    def tells(self, node: BaseNode, action: Tell) -> None:
        """Keep what the nodes say."""
        self.told.append((self.now, node.name, action))

    def advanced(self) -> None:
        """Note who serves the guest from now on."""
        self._observe()

    def _observe(self) -> None:
        serving = [
            node
            for node in self.nodes.values()
            if node.alive and node.vm_run and node.state.vm is Vm.RUNNING
        ]
        held = bool(serving) and all(node.parked or not node.writable for node in serving)
        runs = tuple(node.name for node in serving)
        last = self.instants[-1] if self.instants else None
        if last is None or (last.runs, last.held) != (runs, held):
            self.instants.append(Instant(self.now, runs, held))


def _mirrored(config: Config) -> Config:
    """Of the node that does not answer: as far as is known, what the other one has."""
    return replace(config, node=config.peer, peer=config.node)
