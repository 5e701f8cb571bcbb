"""Seeded faults against two real cores: crashes, cuts, lost messages, commands, in any order.

The world checks the invariants after every event; at the end everything is healed and the pair
must become redundant again by itself. A failing seed is printed with its story; HYPERHA_SEEDS
makes a run longer.
"""

import os
import random

import pytest

from hyperha.core import events as e
from hyperha.core.state import Isolation
from hyperha.domain import Role
from tests.support.world import Node, Violation, World, pair

FAULTS = (
    *("crash", "crash", "certified", "cut", "heal", "command", "command"),
    *("boot", "exit", "stall", "session", "persist", "engine", "engine"),
)
SEEDS = int(os.environ.get("HYPERHA_SEEDS", "150"))


def _fault(world: World, dice: random.Random) -> None:
    node = dice.choice((world.a, world.b))
    kind = dice.choice(FAULTS)
    if kind in ("crash", "certified") and node.alive:
        world.crash(node, certificate=kind == "certified")
    elif kind == "boot" and not node.alive:
        world.boot_node(node)
    elif kind == "cut":
        world.cut_network()
    elif kind == "heal":
        world.heal_network()
    elif kind == "command" and node.alive:
        world.command(node, dice.choice(("start", "stop", "swap", "restart", "stopstart")))
    elif kind == "exit" and node.vm_run:
        node.vm_run = 0
        node.event(e.VmExited(node.state.run, "exit status 1"))
    elif kind == "stall" and node.alive:
        node.event(e.SelfStalled(dice.randrange(600, 5000)))
    elif kind == "session":
        lost = node.session
        node.drop_session("reset")
        if node.alive and lost is not None:
            node.later(e.SessionLost(lost, "reset"))
    elif kind == "engine" and node.alive:
        world.engine_dies(node, recovered=dice.random() < 0.7)
    elif kind == "persist" and node.alive and dice.random() < 0.2:
        node.event(e.PersistFailed("EIO", node.lineage, node.settings))


def _heal(world: World) -> None:
    world.heal_network()
    world.loss = 0
    for node in (world.a, world.b):
        if not node.alive:
            world.boot_node(node)
    world.run(20_000)
    for _ in range(4):
        for node in (world.a, world.b):
            if node.state.role is Role.STOP:
                world.command(node, "start")
        world.run(20_000)


@pytest.mark.parametrize("isolation", list(Isolation))
@pytest.mark.parametrize("start", range(0, SEEDS, 50))
def test_swarm(isolation, start):
    for seed in range(start, min(start + 50, SEEDS)):
        run_seed(seed, isolation)


def run_seed(seed: int, isolation: Isolation) -> None:
    dice = random.Random(seed)
    world = pair(seed, isolation, loss=dice.choice((0, 0, 0.1, 0.3)))
    try:
        for _ in range(dice.randrange(1, 9)):
            _fault(world, dice)
            world.run(dice.choice((5, 20, 60, 200, 1000, 4000, 9000)))
        _heal(world)
        _judge(world)
    except AssertionError as error:
        raise Violation(f"seed {seed} {isolation}: {error}\n{world.tell()}") from error
    except Exception as error:
        raise Violation(f"seed {seed} {isolation}: {error!r}\n{world.tell()}") from error


def _judge(world: World) -> None:
    if any(_split(n) for n in world.nodes.values()):
        assert world.isolation is Isolation.RUN, "split brain under a policy that forbids it"
        return
    assert set(world.roles()) == {Role.PRIM, Role.SECOND}, f"roles {world.roles()}"
    assert world.a.folder.data == world.b.folder.data, "copies differ"
    assert world.acknowledged <= world.a.folder.data, "acknowledged writes lost"


def _split(node: Node) -> bool:
    return node.state.why.rule == "R16" or "split brain" in node.state.why.text
