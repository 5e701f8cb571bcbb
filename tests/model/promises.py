"""What must hold in every state of two nodes, and where they may come to rest."""

from __future__ import annotations

from hyperha.core.actions import Acknowledge
from hyperha.core.options import Isolation
from hyperha.core.records import DataLabel
from hyperha.domain import Role
from tests.model.node import Broken, Node, expired

_STOPS = ("", "D10", "D11", "K1", "M4", "P9")
"""Ended by a command, or because its disk failed: not begun again without a command. M4: a command
to stop was under way; P9: a command to run was refused."""


def may_start(node: Node, other: Node, acknowledged: frozenset[int], isolation: Isolation) -> None:
    """A VM is started on `node`. Raises Broken."""
    name = node.core.config.node
    if node.folder.half:
        raise Broken(f"I9: {name} starts a half made copy")
    if isolation is Isolation.RUN:
        return
    stands_still = other.frozen and expired(other)  # Its guardian comes first when it goes on.
    if other.vm_run and other.up and not stands_still:
        raise Broken(f"I2: {name} starts a VM while the other node runs one")
    if lost := acknowledged - node.folder.data:
        raise Broken(f"I3: {name} starts without {len(lost)} acknowledged writes")


def check(pair: tuple[Node, Node], acknowledged: frozenset[int], isolation: Isolation) -> None:
    """Raises Broken. Under `run`, I1 to I3 do not hold where nobody can tell who is cut off."""
    one, two = pair
    if _alone(one) and _alone(two):
        if one.lineage.current.id == two.lineage.current.id:
            raise Broken("G3': two lines share an id")
        if isolation is not Isolation.RUN:
            raise Broken("I1: both nodes acknowledge")
    kept = frozenset[int]()
    for node in pair:
        folder = node.folder
        kept |= folder.data | folder.kept | (folder.safety or frozenset())
    if lost := acknowledged - kept:
        raise Broken(f"I10: {len(lost)} acknowledged writes are nowhere any more")


def _alone(node: Node) -> bool:
    runs = node.up and node.writable and bool(node.vm_run)
    return runs and node.acknowledge is Acknowledge.LOCAL


def unrest(pair: tuple[Node, Node], isolation: Isolation) -> str:
    """What is wrong with two connected nodes to which nothing happens any more; empty if nothing.

    They are redundant, unless a command or a failed disk ended one of them. Two that both run are
    so only where nothing tells who gives way, and an operator is asked (R16).
    """
    roles = {node.core.role for node in pair}
    asked = all("decide which copy stays" in node.core.why.text for node in pair)
    if roles == {Role.PRIM, Role.SECOND}:
        return ""
    if isolation is Isolation.RUN and roles == {Role.ALONE} and asked:
        return ""
    stopped = [node for node in pair if node.core.role is Role.STOP]
    if stopped and all(node.core.why.rule in _STOPS for node in stopped):
        rest = [node for node in pair if node not in stopped]
        if all(node.core.role is Role.ALONE or not _whole(node) for node in rest):
            return ""
    return " and ".join(f"{node.core.role} ({node.core.why.rule})" for node in pair)


def _whole(node: Node) -> bool:
    return node.core.lineage.label is DataLabel.UPTODATE
