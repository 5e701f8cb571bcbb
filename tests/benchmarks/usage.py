"""What processes use: CPU and context switches of their threads, and memory, from /proc.

CPU time comes from the scheduler, in nanoseconds. A thread that ended between two looks is missed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Processes = Sequence[tuple[str, int]]
"""Name and process id."""

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Use:
    """Of a thread, or of all of a name: since its start, or between two looks."""

    cpu_us: float = 0.0
    waited_us: float = 0.0
    """Could run, and had no CPU."""
    slept: float = 0
    """How often it waited for something."""
    driven_off: float = 0
    """How often another one got its CPU."""

    def plus(self, other: Use, factor: float = 1.0) -> Use:
        """The sum, with the other one scaled."""
        return Use(
            self.cpu_us + other.cpu_us * factor,
            self.waited_us + other.waited_us * factor,
            self.slept + other.slept * factor,
            self.driven_off + other.driven_off * factor,
        )


Uses = Mapping[str, Use]
"""By the threads' names; a pool's threads are one."""


def look(process: int) -> Uses:
    """What the threads of a process have used since they began."""
    found: dict[str, Use] = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            ran, waited, _ = (task / "schedstat").read_text().split()
            status = (task / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            # It ended just now.
            continue
        fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        name = fields["Name"].rstrip("0123456789-")
        use = Use(
            int(ran) / 1000,
            int(waited) / 1000,
            int(fields["voluntary_ctxt_switches"]),
            int(fields["nonvoluntary_ctxt_switches"]),
        )
        found[name] = found.get(name, Use()).plus(use)
    return found


def between(before: Uses, after: Uses, operations: float) -> Uses:
    """What one operation cost between two looks."""
    scale = 1 / max(1.0, operations)
    return {
        name: Use().plus(use, scale).plus(before.get(name, Use()), -scale)
        for name, use in after.items()
    }


def total(uses: Uses) -> Use:
    """Of all threads."""
    result = Use()
    for use in uses.values():
        result = result.plus(use)
    return result


def median_of(rounds: Sequence[Uses]) -> Uses:
    """The round whose CPU time is the median."""
    ordered = sorted(rounds, key=lambda one: total(one).cpu_us)
    return ordered[len(ordered) // 2] if ordered else {}


def lines(process: str, uses: Uses) -> list[str]:
    """Where the time goes: the threads that use most, and what is left."""
    ordered = sorted(uses.items(), key=lambda item: -item[1].cpu_us)
    rest = Use()
    for _, use in ordered[_SHOWN:]:
        rest = rest.plus(use)
    shown = [*ordered[:_SHOWN], ("others", rest)]
    return [
        f"      {process:18}{name:16}{use.cpu_us:8.1f} us CPU{use.waited_us:8.1f} us for a CPU"
        f"{use.slept:7.2f} waits{use.driven_off:7.2f} preemptions"
        for name, use in shown
        if use.cpu_us >= 0.05
    ]


def memory_mib(process: int) -> float:
    """What a process has in memory now."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
