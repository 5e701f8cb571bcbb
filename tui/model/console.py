"""Everything the console knows: the last state of the cluster with its age, logs, own commands.

Fed by the session's events; widgets only read it. Nothing is forgotten when the link is lost:
what is shown then carries its age.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hyperha.api.wire import (
    ClusterView,
    LogLine,
    ModuleNodeView,
    ModuleView,
    OperationView,
    ScriptRun,
)
from hyperha.client.link import Link, LinkState
from tui.model.cleaning import cleaned
from tui.model.formatting import seconds_between
from tui.model.log_buffer import LevelFilter, LogBuffer

Place = tuple[str, str]
"""A module and the node whose log and scripts are meant."""
DONE_KEPT_MS = 8_000
FAILED_KEPT_MS = 30_000
"""How long the end of a command stays on the activity line."""


@dataclass(slots=True)
class Issued:
    """A command that was sent from this console."""

    module: str
    node: str
    verb: str
    operation: str
    requested_ms: int
    state: str = "requested"
    """`requested` until its end is reported: then `done` or `failed`."""
    text: str = ""
    ended_ms: int | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    """How far it is, where that can be told."""


@dataclass(slots=True)
class ConsoleModel:
    """The state of the console without its terminal. Times: the session's monotonic clock."""

    read_only: bool = False
    link: Link = field(default_factory=Link)
    cluster: ClusterView | None = None
    received_ms: int = 0
    module: str = ""
    """The selected module and node; kept by name, so that no change of order moves them."""
    node: str = ""
    table: bool = False
    level: LevelFilter = LevelFilter.ALL
    search: str = ""
    logs: dict[Place, LogBuffer] = field(default_factory=dict)
    logs_read: set[Place] = field(default_factory=set)
    """Where the older lines were read."""
    scripts: dict[Place, list[ScriptRun]] = field(default_factory=dict)
    scripts_read: set[Place] = field(default_factory=set)
    """Where no run has begun or ended since the list was read."""
    unread: dict[Place, str] = field(default_factory=dict)
    """Why log and scripts of a place cannot be read now."""
    issued: list[Issued] = field(default_factory=list)
    quit_warned: bool = False
    """Whether the operator was told that a command still runs."""
    ended_early: dict[str, OperationView] = field(default_factory=dict)
    """Ends that were reported before the answer to the request came."""

    # --- being told --------------------------------------------------------------------------

    def take_cluster(self, view: ClusterView, now_ms: int) -> None:
        """A new state; the selection stays on what it named as long as that exists."""
        before = self.cluster
        self.cluster = cleaned(view)
        for node, seen in self.cluster.nodes.items():
            known = before.nodes.get(node) if before is not None else None
            if known is not None and known.boot_id != seen.boot_id and seen.boot_id:
                self.forget(node)
        self.received_ms = now_ms
        names = self.module_names()
        if self.module not in names:
            self.module = names[0] if names else ""
        nodes = self.node_names()
        if self.node not in nodes:
            self.node = view.answered_by if view.answered_by in nodes else (nodes or [""])[0]

    def take_log(self, line: LogLine) -> None:
        """A line of a module's log on the node that it names."""
        place = (line.module, line.node)
        self.log_of(place).add(cleaned(line))
        if line.run:
            self.scripts_read.discard(place)

    def take_operation(self, view: OperationView, now_ms: int) -> None:
        """A command began or ended."""
        if view.state == "running":
            for one in self.issued:
                if one.operation == view.id:
                    one.done_bytes, one.total_bytes = view.done_bytes, view.total_bytes
            return
        for one in self.issued:
            if one.operation == view.id:
                self._end(one, cleaned(view), now_ms)
                return
        self.ended_early[view.id] = view
        while len(self.ended_early) > 50:
            self.ended_early.pop(next(iter(self.ended_early)))

    def _end(self, one: Issued, view: OperationView, now_ms: int) -> None:
        if one.ended_ms is None:
            one.state, one.text = view.state, view.text
            one.ended_ms = now_ms

    def requested(self, one: Issued) -> None:
        """A command was accepted; it is not done before its end is reported."""
        self.issued.append(one)
        del self.issued[:-20]
        early = self.ended_early.pop(one.operation, None)
        if early is not None:
            self._end(one, cleaned(early), one.requested_ms)

    def reset(self) -> None:
        """Sequence numbers began anew, or lines are missing: read everything again."""
        for buffer in self.logs.values():
            buffer.clear()
        self.logs_read.clear()
        self.scripts.clear()
        self.scripts_read.clear()
        self.unread.clear()

    def forget(self, node: str) -> None:
        """A node's daemon is another one: its lines are to be read again."""
        for place, buffer in self.logs.items():
            if place[1] == node:
                buffer.clear()
                self.logs_read.discard(place)
                self.scripts_read.discard(place)

    # --- asking ------------------------------------------------------------------------------

    @property
    def place(self) -> Place:
        """The selected module and node."""
        return self.module, self.node

    def log_of(self, place: Place) -> LogBuffer:
        """The log of a module on a node."""
        return self.logs.setdefault(place, LogBuffer())

    def streams(self, node: str) -> bool:
        """Whether new lines of this node come by themselves: it is the one that answers."""
        return self.cluster is not None and self.cluster.answered_by == node

    def module_names(self) -> list[str]:
        """In a fixed order: by number, then by name."""
        if self.cluster is None:
            return []
        known = self.cluster.modules
        return sorted(known, key=lambda name: (known[name].number, name))

    def node_names(self) -> list[str]:
        """The nodes by name."""
        return sorted(self.cluster.nodes) if self.cluster else []

    def module_view(self, module: str | None = None) -> ModuleView | None:
        """A module, the selected one by default."""
        if self.cluster is None:
            return None
        return self.cluster.modules.get(self.module if module is None else module)

    def side(self, module: str | None = None, node: str | None = None) -> ModuleNodeView | None:
        """One node's side of a module, the selected one by default."""
        view = self.module_view(module)
        return view.nodes.get(self.node if node is None else node) if view else None

    def other_node(self, node: str) -> str:
        """The other one of the two."""
        return next((name for name in self.node_names() if name != node), "")

    def node_age_ms(self, node: str, now_ms: int) -> int | None:
        """How old what is known of a node is: 0 while it is fresh, None when never heard."""
        if self.cluster is None or node not in self.cluster.nodes:
            return None
        one = self.cluster.nodes[node]
        link_age_ms = 0 if self.link.state is LinkState.LIVE else self.link.age_ms(now_ms)
        if one.reachable:
            return link_age_ms
        if one.seen_ms_ago is None:
            return None
        return one.seen_ms_ago + max(0, now_ms - self.received_ms)

    def cluster_time(self, now_ms: int) -> datetime | None:
        """The node's wall clock now: its last word and what has passed since."""
        try:
            at = datetime.fromisoformat(self.cluster.at) if self.cluster else None
        except ValueError:
            return None
        return at + timedelta(milliseconds=max(0, now_ms - self.received_ms)) if at else None

    def seconds_until(self, end: str, now_ms: int) -> int | None:
        """Until an RFC 3339 time by the node's clock; None when either is not known."""
        at = self.cluster_time(now_ms)
        return seconds_between(at.isoformat(), end) if at else None

    def stale(self, node: str, now_ms: int) -> bool:
        """Whether what is shown of a node is not its present state."""
        return self.node_age_ms(node, now_ms) != 0

    def newest_command(self, now_ms: int) -> Issued | None:
        """The one for the activity line: running, or ended a moment ago."""
        if not self.issued:
            return None
        one = next(iter(self.running_commands()), self.issued[-1])
        if one.ended_ms is None:
            return one
        kept_ms = DONE_KEPT_MS if one.state == "done" else FAILED_KEPT_MS
        return one if now_ms - one.ended_ms <= kept_ms else None

    def running_commands(self) -> list[Issued]:
        """Commands of this console whose end was not reported yet."""
        return [one for one in self.issued if one.ended_ms is None]

    # --- choosing ----------------------------------------------------------------------------

    def choose_module(self, by: int) -> None:
        """Another module, by so many places."""
        names = self.module_names()
        if names:
            at = names.index(self.module) if self.module in names else 0
            self.module = names[max(0, min(len(names) - 1, at + by))]

    def choose_node(self, by: int) -> None:
        """The other node."""
        names = self.node_names()
        if names:
            at = names.index(self.node) if self.node in names else 0
            self.node = names[max(0, min(len(names) - 1, at + by))]
