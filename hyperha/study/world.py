"""A modelled cluster with everything that can befall it: faults and commands."""

from __future__ import annotations

import heapq

from hyperha.core import events as e
from hyperha.core.actions import Acknowledge
from hyperha.core.facts import Shortage
from hyperha.domain import Role
from hyperha.study.base_node import ROOMY_BYTES, Violation
from hyperha.study.model_node import Node
from hyperha.study.timeline import Timeline


class World(Timeline):
    """Two nodes, and what happens to them."""

    def command(self, node: Node, verb: str, **fields: object) -> str:
        self.counter += 1
        name = f"op{self.counter}"
        node.event(e.CommandGiven(e.Verb(verb), name, "test", **fields))  # type: ignore[arg-type]
        return name

    def engine_dies(self, node: Node, recovered: bool) -> None:
        """The replication process dies: what it was asked is not answered, its queue is gone.

        With a successor the guest's writes stay held; without one nothing is served any more.
        """
        self.story.append(f"{self.now:>7} {node.name} ENGINE {recovered=}")
        told = (e.EngineDone, e.SessionUp, e.SessionLost, e.ResyncCopied)
        mine = [q for q in self.queue if q[2] is node and q[4] == node.boot]
        dead = [q for q in mine if isinstance(q[3], told) or q[3] == "connect"]
        dead += [q for q in mine if isinstance(q[3], tuple) and q[3][0] == "copied"]
        self.queue = [q for q in self.queue if q not in dead]
        heapq.heapify(self.queue)
        session = node.session
        node.drop_session("the stream ended")
        if session is not None and node.session_role == "target":
            node.folder.data -= set(sorted(node.unapplied)[-3:])
        recovered = recovered and node.attached
        node.acknowledge = Acknowledge.NONE
        if not recovered:
            node.writable = node.attached = False
            node.parked.clear()
        node.event(e.EngineLost("killed by SIGKILL", recovered))
        for _, _, _, event, _ in dead:
            if isinstance(event, e.EngineDone):
                failed = e.EngineDone(event.operation, False, "the replication process died")
                node.later(failed)

    def mount_lost(self, node: Node) -> None:
        """Somebody unmounted the folder: the guest's calls fail from here on (M6)."""
        self.story.append(f"{self.now:>7} {node.name} MOUNT LOST")
        node.writable = False
        node.parked.clear()
        node.event(e.MountLost("gone from mountinfo"))

    def disk_fails(self, node: Node) -> None:
        """The folder's disk fails: what a follower had in memory only does not reach it."""
        self.story.append(f"{self.now:>7} {node.name} DISK FAILS")
        self.disk_failed = True
        if node.session_role == "target":
            node.folder.data -= node.unapplied
        node.event(e.LocalDiskFailed("EIO"))

    def disk_fills(self, node: Node, free_bytes: int = 0) -> None:
        """The file system of the folder is full: a guest is refused, a follower leaves (D11)."""
        self.story.append(f"{self.now:>7} {node.name} DISK FULL")
        node.free_bytes = free_bytes
        if node.session_role == "target" and node.session_up:
            node.event(e.DiskFilling("No space left on device"))
        elif node.vm_run and node.writable:
            node.refused()

    def safety_short(self, node: Node) -> None:
        """In the middle of a resync the safety copy has no room any more (N3)."""
        node.safety_fails = True
        node.later(e.SafetyShort(Shortage(2 << 30, 1 << 20)), 0)
        node.drop_session("cannot be saved")

    def disk_has_room(self, node: Node) -> None:
        """Somebody made room."""
        node.free_bytes = ROOMY_BYTES
        if node.alive and node.writable:
            node.event(e.DiskHasRoom(ROOMY_BYTES))

    def boot_node(self, node: Node) -> None:
        self.story.append(f"{self.now:>7} {node.name} BOOT")
        node.start()
        if node.settings.wanted:
            self.command(node, "start", automatic=True)

    def stand_still(self, node: Node, duration_ms: int) -> None:
        """Nothing of the node runs for a while; what comes for it waits."""
        self.story.append(f"{self.now:>7} {node.name} STANDS")
        node.stands_since, node.stands_until = self.now, self.now + duration_ms

    def cut_network(self) -> None:
        self.story.append(f"{self.now:>7} CUT")
        self.cut = True
        for node in self.nodes.values():
            session, up = node.session, node.session_up
            node.session, node.session_up = None, False
            if session is not None and up and node.alive:
                node.later(e.SessionLost(session, "reset"), 200)

    def heal_network(self) -> None:
        self.story.append(f"{self.now:>7} HEAL")
        self.cut = False

    def roles(self) -> tuple[Role | None, Role | None]:
        one, two = (n.state.role if n.alive else None for n in (self.a, self.b))
        return one, two

    def until(self, *roles: Role | None, timeout_ms: int = 60_000) -> None:
        end = self.now + timeout_ms
        while self.roles() != roles or any(
            n.alive and n.state.role not in (Role.STOP, Role.WAIT) and not n.steady
            for n in self.nodes.values()
        ):
            if self.now >= end:
                raise Violation(
                    f"not {roles} but {self.roles()} after {timeout_ms} ms\n{self.tell()}"
                )
            self.run(50)

    def tell(self) -> str:
        states = [
            f"{n.name}: {n.state.role} {n.state.phase} {n.state.link} {n.state.why} "
            f"{n.lineage.label} cur={n.lineage.current.ordinal} timers={n.timers}"
            for n in self.nodes.values()
        ]
        return "\n".join(self.story[-40:] + states)
