"""The words of the product as types: names, roles, readiness, generations, epochs.

Everybody may import this module; it imports only the standard library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

NodeName = NewType("NodeName", str)
ModuleName = NewType("ModuleName", str)
Millis = NewType("Millis", int)
"""Milliseconds of CLOCK_BOOTTIME (K4); wall clock times are named `*_wall_ms`."""

GenerationId = NewType("GenerationId", str)
"""128 random bits as 32 hexadecimal digits; the id of one line of data (G1, G2)."""

NODE_NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
MODULE_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}")


class Role(StrEnum):
    """What a node does for a module."""

    STOP = "STOP"
    WAIT = "WAIT"
    ALONE = "ALONE"
    PRIM = "PRIM"
    SECOND = "SECOND"

    @property
    def runs_vm(self) -> bool:
        """Whether a node in this role is where the VM runs."""
        return self in (Role.ALONE, Role.PRIM)


class Readiness(StrEnum):
    """How far the node is in its role: red, orange, green."""

    NOT_READY = "NotReady"
    TRANSIENT = "Transient"
    READY = "Ready"


class DataState(StrEnum):
    """What a copy is worth, as shown to people; derived from the lineage, never stored (G5)."""

    UPTODATE = "uptodate"
    OUTDATED = "outdated"
    INCONSISTENT = "inconsistent"
    UNKNOWN = "unknown"


class ResourceState(StrEnum):
    """What a checker says about its resource."""

    UP = "up"
    DOWN = "down"
    INIT = "init"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """Who may run, counted: without a witness an epoch is a counter and the node that claimed it.

    Two epochs with the same counter and another node are different epochs (H3).
    """

    counter: int
    node: str

    def __str__(self) -> str:
        return f"{self.counter}@{self.node}" if self.node else str(self.counter)

    def next_for(self, node: str) -> Epoch:
        """The epoch that `node` claims after this one."""
        return Epoch(self.counter + 1, node)


NO_EPOCH = Epoch(0, "")


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Names one replication session; a frame with any other triple is rejected (H3, T3)."""

    generation: str
    epoch: Epoch
    number: int


@dataclass(frozen=True, slots=True)
class Marker:
    """What a folder's root carries so that a foreign, empty or restored folder is known (R12, N6).

    `counter` grows with every mount, unmount and change of `generation`.
    """

    resource: str
    node: str
    generation: str
    counter: int
