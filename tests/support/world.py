"""Worlds for tests: two nodes of the usual names, from nothing or redundant."""

from __future__ import annotations

from hyperha.core.options import Config, Isolation, Timing, WitnessKind
from hyperha.domain import Role
from hyperha.study.base_node import Folder, Violation
from hyperha.study.model_node import Node
from hyperha.study.snapshot import Snapshot
from hyperha.study.world import World

TTL_MS = 2750


def blank(
    seed: int = 0,
    isolation: Isolation = Isolation.RUN,
    loss: float = 0,
    *,
    witness: WitnessKind = WitnessKind.NONE,
    fences: bool = False,
) -> World:
    """A world in which nothing was started yet."""
    ttl_ms = TTL_MS if witness else 0
    configs = [
        Config(
            "VM1", 1, name, peer, isolation, Timing(), first_node="node1",
            witness=witness, ttl_ms=ttl_ms, fences=fences,
        )
        for name, peer in (("node1", "node2"), ("node2", "node1"))
    ]  # fmt: skip
    return World(configs, seed, loss)


def pair(
    seed: int = 0,
    isolation: Isolation = Isolation.RUN,
    loss: float = 0,
    *,
    witness: WitnessKind = WitnessKind.NONE,
    fences: bool = False,
) -> World:
    """A world with node1 PRIM and node2 SECOND."""
    world = blank(seed, isolation, loss, witness=witness, fences=fences)
    world.run(500)
    world.command(world.a, "prim")
    world.until(Role.ALONE, Role.STOP)
    world.command(world.b, "start")
    world.until(Role.PRIM, Role.SECOND)
    return world


def snapshots(world: World) -> dict[str, Snapshot]:
    """What the daemons of the nodes that are up would tell."""
    return {
        node.name: Snapshot(
            world.now + node.clock_ms,
            world.wall_ms,
            node.instance,
            node.state,
            tuple((timer, at_ms + node.clock_ms) for timer, at_ms in node.timers.items()),
            start_ms=3500,
            stop_ms=800,
        )
        for node in world.nodes.values()
        if node.alive
    }


__all__ = ["Folder", "Node", "Violation", "World", "blank", "pair", "snapshots"]
