"""How long ended copies are kept, and how large together: what is too old, and what is too much.

It says which copies go; the area, which knows what hinders that, lets them go.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from hyperha.replication.clock import now_ms
from hyperha.replication.safety.copy import SafetyCopy

_DAY_MS: Final = 86_400_000
_GIB: Final = 1 << 30
_RECORDED_MS: Final = 600_000
"""How exactly the age of a copy outlives the process."""


@dataclass(frozen=True, slots=True)
class Keep:
    """How long, and how large together (0: as the disk has room), ended copies are kept."""

    days: int
    gib: int

    def too_large(self, kept: Iterable[SafetyCopy]) -> list[SafetyCopy]:
        """The oldest of them, as many as are too much together."""
        if not self.gib:
            return []
        sizes = [(one, one.size()) for one in sorted(kept, key=by_age)]
        total = sum(size for _, size in sizes)
        found = []
        for one, size in sizes:
            if total <= self.gib * _GIB:
                break
            found.append(one)
            total -= size
        return found


class Ages:
    """How long each ended copy was looked after. Not by the clock on the wall: one that was set
    wrong when a copy was opened, or is now, would end it at once (S4)."""

    def __init__(self) -> None:
        self._recorded_ms: dict[str, int] = {}
        """Until when its record counts the time; for each copy by itself, since each one ended, or
        was found on disk, at another time than this process began or last looked (R15, N3)."""

    def begin(self, copy: SafetyCopy) -> None:
        """Count from now on, unless that is done already: it has ended, or was found ended."""
        self._recorded_ms.setdefault(copy.id, now_ms())

    def forget(self, copy: SafetyCopy) -> None:
        """It is deleted."""
        self._recorded_ms.pop(copy.id, None)

    def lived_ms(self, copy: SafetyCopy) -> int:
        """How long a copy has been kept since it ended; while it is open not at all."""
        began = self._recorded_ms.get(copy.id)
        return copy.facts.lived_ms + (0 if began is None else now_ms() - began)

    def too_old(self, copy: SafetyCopy, keep: Keep) -> bool:
        """Whether an ended copy was kept for as long as it should be."""
        return self.lived_ms(copy) >= keep.days * _DAY_MS

    def record(self, copy: SafetyCopy, lock: AbstractContextManager[Any]) -> None:
        """Let the age outlive the process, now and then. `lock`: of who writes the record else."""
        now = now_ms()
        passed_ms = now - self._recorded_ms[copy.id]
        if passed_ms >= _RECORDED_MS:
            with lock:
                copy.change(lived_ms=copy.facts.lived_ms + passed_ms)
            self._recorded_ms[copy.id] = now


def by_age(copy: SafetyCopy) -> tuple[int, str]:
    """Sorts copies: the oldest first."""
    return copy.facts.opened_wall_ms, copy.id
