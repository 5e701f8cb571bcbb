"""The turn to work in a folder that nothing covers: one at a time, in a thread that may hang.

The threads are their own and end with the daemon: a disk that does not answer must not use up those
that records are stored with, nor hold up the daemon's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from hyperha.daemon.fencing import layers
from hyperha.errors import BusyError, FailedError
from hyperha.threads import in_own_thread

R = TypeVar("R")


class PlainFolder(asyncio.Lock):
    """Held while this daemon itself has the folder open, which nobody else may have (M6)."""

    def __init__(self) -> None:
        super().__init__()
        self._working = False
        """Whether a look has not come back; its thread may end a moment later than that."""

    async def do(self, folder: str, work: Callable[[str], R]) -> R:
        """Run `work` with the folder's path; the caller holds the lock."""
        if self._working:
            raise FailedError(f"a former look into {folder} has not ended", "Check its disk.")
        if layers(folder):
            # What is left of a daemon that died may hang whoever touches it (T1).
            raise BusyError(f"{folder} is covered by a mount that nobody serves")

        def look() -> R:
            try:
                return work(folder)
            finally:
                self._working = False

        self._working = True
        return await in_own_thread(f"look into {folder}", look)
