"""What a node's core knows of a module now, as a value that travels: where a study begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperha.core.actions import Timer
from hyperha.core.state import ModuleState
from hyperha.study.recorded import RecordedError, plain, value


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One node's side of a module. Times in milliseconds of the node's own CLOCK_BOOTTIME."""

    now_ms: int
    wall_ms: int
    instance: str
    """As its heartbeats name this run of the daemon (L9)."""
    state: ModuleState
    timers: tuple[tuple[Timer, int], ...] = ()
    """Those that are armed, and when they fire."""
    start_ms: int | None = None
    """How long the VM took to start here the last time; None: not known."""
    stop_ms: int | None = None


def snapshot_body(snapshot: Snapshot) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "now_ms": snapshot.now_ms,
        "wall_ms": snapshot.wall_ms,
        "instance": snapshot.instance,
        "state": plain(snapshot.state),
        "timers": [[timer.value, at_ms] for timer, at_ms in snapshot.timers],
        "start_ms": snapshot.start_ms,
        "stop_ms": snapshot.stop_ms,
    }


def snapshot_of(body: Mapping[str, Any]) -> Snapshot:
    """What `snapshot_body` was given. Raises RecordedError naming what this release does not
    understand."""
    try:
        state = value(body["state"])
        timers = tuple((Timer(name), int(at_ms)) for name, at_ms in body["timers"])
        start_ms, stop_ms = (body[f"{step}_ms"] for step in ("start", "stop"))
        if not isinstance(state, ModuleState):
            raise RecordedError(f"a {type(state).__name__} is no state of a module")
        return Snapshot(
            int(body["now_ms"]),
            int(body["wall_ms"]),
            str(body["instance"]),
            state,
            timers,
            None if start_ms is None else int(start_ms),
            None if stop_ms is None else int(stop_ms),
        )
    except (KeyError, TypeError, ValueError) as problem:
        if isinstance(problem, RecordedError):
            raise
        raise RecordedError(f"no view of a module: {problem!r}") from None
