"""What must be true of every state; checked after every step, in production too."""

from __future__ import annotations

from hyperha.core.actions import Acknowledge
from hyperha.core.records import DataLabel
from hyperha.core.state import Link, ModuleState, Phase, Vm
from hyperha.domain import Role


class InvariantBroken(Exception):
    """The core contradicts itself; the message names the rule."""


def check(state: ModuleState) -> None:
    """Raise InvariantBroken when the state contradicts itself."""
    lineage = state.lineage
    runs = state.role.runs_vm
    _require(not runs or lineage.intent_primary or _leaving(state), "P4: runs without intent")
    _require(
        not runs or lineage.label is DataLabel.UPTODATE or _leaving(state),
        "P1: runs on a copy that is not up to date",
    )
    follows = state.role is Role.SECOND
    _require(not (follows and lineage.intent_primary), "P4: follows with intent")
    _require(not (follows and lineage.peer_out), "P6: follows a node that is proved to be out")
    acknowledges_alone = state.acknowledge is Acknowledge.LOCAL and runs
    _require(
        not acknowledges_alone or lineage.peer_out is not None or _leaving(state),
        "D2: acknowledges alone without proof",
    )
    _require(
        state.link is not Link.IN_SYNC or state.session is not None,
        "T3: in sync without a session",
    )
    _require((state.role is Role.STOP) == (state.phase is Phase.IDLE), "STOP means idle")
    running = state.vm in (Vm.STARTING, Vm.RUNNING)
    _require(not running or runs, "I2: a VM runs in a role that runs none")
    _require(not (state.writable and state.role is Role.SECOND), "M2: a secondary is writable")


def _leaving(state: ModuleState) -> bool:
    return state.phase in (Phase.FLUSHING, Phase.KILLING, Phase.DETACHING, Phase.HANDING_OVER)


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise InvariantBroken(rule)
