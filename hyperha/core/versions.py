"""Two nodes with configurations of different age: the older one does not start by itself (F13).

What it would do is not what both were told to do. Remembered over a restart, since the node with
the newer one may be the one that is lost; an operator's command goes past it.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core.actions import Level
from hyperha.core.state import ModuleState
from hyperha.core.turn import Turn


def heard(turn: Turn, version: int) -> None:
    """What the peer's heartbeats say of its configuration."""
    state = turn.state
    if version == state.settings.peer_config:
        return
    differed = state.settings.peer_config not in (0, state.config.version)
    turn.persist(settings=replace(state.settings, peer_config=version))
    if version != state.config.version:
        turn.tell(Level.WARNING, "F13", difference(turn.state))
    elif differed:
        turn.tell(Level.INFO, "F13", f"both nodes have configuration {version}")


def difference(state: ModuleState) -> str:
    """The sentence for two nodes that differ; empty where they do not, as far as is known."""
    mine, theirs = state.config.version, state.settings.peer_config
    node, peer = state.config.node, state.config.peer
    if theirs in (0, mine):
        return ""
    older, newer = (node, peer) if mine < theirs else (peer, node)
    return (
        f"{node} has configuration {mine}, {peer} has {theirs}: until {older} has that of {newer} "
        f"it does not take over by itself"
    )


def older(state: ModuleState) -> bool:
    """Whether this node's configuration is the older one, as far as it knows."""
    return state.config.version < state.settings.peer_config
