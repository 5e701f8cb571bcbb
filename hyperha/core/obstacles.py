"""Why a secondary does not take over by itself, by rule and in words."""

from __future__ import annotations

from hyperha.core import versions
from hyperha.core.options import Isolation
from hyperha.core.state import ModuleState


def to_any(state: ModuleState) -> tuple[str, str] | None:
    """Whatever proves that the peer is out."""
    if not state.settings.failover:
        return "P1", "failover is off: this node does not take over by itself"
    if state.settings.start_failed:
        return "B09", f"start_prim failed here: {state.settings.start_failed}"
    if versions.older(state):
        return "F13", versions.difference(state)
    return None


def to_unproved(state: ModuleState) -> tuple[str, str] | None:
    """Where the peer is only silent: why this node does not even ask."""
    peer, policy = state.config.peer, state.config.policy
    if policy in (Isolation.PRIMARY, Isolation.HOLD):
        return "W6", (
            f"{peer} is silent; without a certificate it may still run "
            f"(isolation = {policy}): start it, or command prim here"
        )
    if state.isolated:
        return "W8", f"does not take over: {state.isolated}"
    return None
