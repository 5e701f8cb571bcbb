"""Conditions over the states of resources on both nodes, as values; read from text by `config`.

A resource that nobody looks at, or of a node that is not heard, is unknown: neither up nor down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from hyperha.domain import ResourceState


class Side(StrEnum):
    """Which node's resource is meant."""

    LOCAL = "local"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class Is:
    """The resource is in that state."""

    side: Side
    resource: str
    """KIND.NAME of a checker."""
    state: ResourceState


@dataclass(frozen=True, slots=True)
class Not:
    """It does not hold."""

    of: Condition


@dataclass(frozen=True, slots=True)
class All:
    """Every one of them holds."""

    of: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """At least one of them holds."""

    of: tuple[Condition, ...]


Condition = Is | Not | All | Some
States = Mapping[str, ResourceState]


class RuleAction(StrEnum):
    """What a rule does when it has held for long enough."""

    SWAP = "swap"
    RESTART = "restart"
    STOPSTART = "stopstart"
    STOP = "stop"
    WAIT = "wait"
    """Leave, and stay in WAIT while it holds."""
    NONE = "none"
    """Only say so."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a module."""

    name: str
    when: Condition
    action: RuleAction
    stable_ms: int
    """How long the condition must hold before anything is done."""


def holds(condition: Condition, local: States, remote: States) -> bool:
    """Whether a condition holds in these states."""
    match condition:
        case Is(side, resource, state):
            states = local if side is Side.LOCAL else remote
            return states.get(resource, ResourceState.UNKNOWN) is state
        case Not(of):
            return not holds(of, local, remote)
        case All(several):
            return all(holds(one, local, remote) for one in several)
        case Some(several):
            return any(holds(one, local, remote) for one in several)


def resources_of(condition: Condition) -> tuple[str, ...]:
    """The resources that a condition speaks of."""
    match condition:
        case Is(_, resource, _):
            return (resource,)
        case Not(of):
            return resources_of(of)
        case All(several) | Some(several):
            return tuple(one for part in several for one in resources_of(part))
