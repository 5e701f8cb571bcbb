"""Open files without a name that the daemon holds for a successor of a replication process (M4).

By their descriptors; nothing else keeps them alive. The daemon needs descriptors itself, for
connections and commands: half of what it may have is for these, of all modules together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import ClassVar, Final

from hyperha.replication.control import DropOrphan, HeldOrphans, HoldOrphan

_BATCH: Final = 16
"""Descriptors in one message."""


class HoldsOrphans:
    """What is held for the process of one module. Belongs to one thread."""

    _total: ClassVar[int] = 0
    """Of all modules."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, message: HoldOrphan, descriptors: tuple[int, ...]) -> str:
        """Keep the descriptor; what is wrong when that cannot be."""
        import resource

        room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        former = self._held.pop(message.serial, None)
        if former is not None:
            self._close(former[1])
        if len(descriptors) == 1 and HoldsOrphans._total < room:
            self._held[message.serial] = (message.node, descriptors[0])
            HoldsOrphans._total += 1
            return ""
        for descriptor in descriptors:
            os.close(descriptor)
        return f"the daemon holds {HoldsOrphans._total} files without a name, no room for more"

    def drop(self, message: DropOrphan) -> None:
        """Close what is held under that number, if anything is."""
        held = self._held.pop(message.serial, None)
        if held is not None:
            self._close(held[1])

    def messages(self) -> Iterator[tuple[HeldOrphans, tuple[int, ...]]]:
        """What a successor is told before its start; everything stays held."""
        serials = list(self._held)
        for at in range(0, len(serials), _BATCH):
            part = serials[at : at + _BATCH]
            nodes, descriptors = zip(*(self._held[one] for one in part), strict=True)
            yield HeldOrphans(tuple(part), nodes), descriptors

    def close(self) -> None:
        """There will be no successor."""
        for _, descriptor in self._held.values():
            self._close(descriptor)
        self._held.clear()

    def _close(self, descriptor: int) -> None:
        HoldsOrphans._total -= 1
        os.close(descriptor)
