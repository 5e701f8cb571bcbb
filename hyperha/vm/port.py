"""The driver port: what hyperha asks of whatever runs a VM.

Drivers never touch a path inside the replicated folder from the daemon's process (T1): children
with time limits do. They decide nothing; the core does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from hyperha.spawn.tree import ProcessTree


class StopMode(StrEnum):
    """How a VM is ended: guest shutdown, suspend into the folder, or at once."""

    STOP = "stop"
    SAVE = "save"
    OFF = "off"


class VmState(StrEnum):
    """What the hypervisor itself says about the VM."""

    ABSENT = "absent"
    RUNNING = "running"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class VmSpec:
    """What a driver needs to know of its module on this node."""

    module: str
    number: int
    node: str
    peer: str
    folder: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def environment(self, role: str, run: int) -> dict[str, str]:
        """The variables that the VM's process, its scripts and its checkers get."""
        return {
            "HYPERHA_MODULE": self.module,
            "HYPERHA_NODE": self.node,
            "HYPERHA_PEER": self.peer,
            "HYPERHA_FOLDER": self.folder,
            "HYPERHA_ROLE": role,
            "HYPERHA_RUN_NUMBER": str(run),
        }


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a start or failover would not work right now, and its cure."""

    code: str
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer of one heartbeat of the VM."""

    ok: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen, and by whom (`hypervisor`, `process`)."""

    state: VmState
    seen_by: str
    text: str = ""


class Driver(Protocol):
    """One VM of one module on this node. Methods raise HyperhaError with a sentence for people."""

    def plan(self, run: int) -> tuple[ProcessTree, ...]:
        """The processes that `start(run)` will make: the guardian is armed with them first."""

    async def preflight(self) -> tuple[Reason, ...]:
        """Why the VM would not start here; empty when nothing is known."""

    async def prepare(self) -> None:
        """What has to exist on this node before a start, made before the folder is writable."""

    async def start(self, run: int) -> None:
        """Start the VM; returns when it runs. What was started and then failed is gone again."""

    async def stop(self, mode: StopMode, timeout_s: float) -> str:
        """End the VM as `mode` says, with force after `timeout_s`; how it ended, in words.

        Nothing of the run remains when this returns; FailedError when something does.
        """

    async def kill(self) -> bool:
        """End everything of the run at once; False when some process does not go (L5')."""

    async def heartbeat(self) -> Beat:
        """Does the VM's inside answer?"""

    async def observe(self) -> Observation:
        """What the hypervisor says about the VM on this node (P1)."""

    async def forget(self) -> None:
        """Remove what the driver registered on this node; the module leaves."""
