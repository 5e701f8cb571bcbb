"""What the core needs to know of a module's and its cluster's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hyperha.core.conditions import Rule
from hyperha.core.events import CheckerAction


class SafetyMode(StrEnum):
    """What is kept before a resync overwrites a copy (R15). A line of data of its own is never
    overwritten without one, whatever is configured (N3)."""

    REQUIRED = "required"
    BEST_EFFORT = "best_effort"
    OFF = "off"


class Isolation(StrEnum):
    """What happens when the peer is silent on every path and there is no witness (W6')."""

    PRIMARY = "primary"
    RUN = "run"
    HOLD = "hold"


class WitnessKind(StrEnum):
    """Who is asked before a node continues alone."""

    NONE = ""
    PING = "ping"
    """Addresses that answer whoever is not the isolated one (W8)."""
    LEASE = "lease"
    """A record that names the one node that may run (W1)."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations in milliseconds; checked at load by L3'."""

    suspect_ms: int = 1500
    stall_limit_ms: int = 3000
    takeover_wait_ms: int = 3500
    pause_after_ms: int = 5000
    retry_ms: int = 250

    @property
    def patience_ms(self) -> int:
        """How long a planned step waits for an answer of a peer that is heard."""
        return 4 * self.stall_limit_ms


@dataclass(frozen=True, slots=True)
class Config:
    """What the core needs to know of a module's configuration."""

    module: str
    number: int
    node: str
    peer: str
    isolation: Isolation = Isolation.RUN
    timing: Timing = Timing()
    restarts: int = 3
    restart_window_ms: int = 24 * 3600 * 1000
    exit_action: CheckerAction = CheckerAction.RESTART
    """What the end of the VM's process asks for: the action of the module's vm checker."""
    vm_checker: str = ""
    pre_checkers: tuple[str, ...] = ()
    """Checkers whose resource must be up before the module may run or follow here."""
    rules: tuple[Rule, ...] = ()
    """What combinations of resources lead to, by the operator's configuration."""
    grace_ms: int = 120_000
    """How long a VM found down at the end of a suspension has to come back by itself."""
    default_primary: str = "none"
    """A node that is preferred; `last`: the one that ran the VM before; `none`: neither (P5)."""
    safety: SafetyMode = SafetyMode.BEST_EFFORT
    first_node: str = ""
    """Settles claims when nothing else does (P7)."""
    witness: WitnessKind = WitnessKind.NONE
    ttl_ms: int = 0
    """How long the word of a witness, or a promise of the peer, lets the VM run (L6)."""
    fences: bool = False
    """Whether there is a command that switches the peer off (D2c)."""
    version: int = 0
    """Of the cluster's configuration (F13); 0: none is counted."""

    @property
    def leased(self) -> bool:
        """Whether a lease witness says who may run (W1)."""
        return self.witness is WitnessKind.LEASE

    @property
    def pinged(self) -> bool:
        """Whether addresses are asked that answer whoever is not the isolated one (W8)."""
        return self.witness is WitnessKind.PING

    @property
    def policy(self) -> Isolation | None:
        """What the isolation policy says; None where a witness or a command decides instead."""
        asks = self.witness is not WitnessKind.NONE or self.fences
        return None if asks else self.isolation
