"""The turn to work in a folder that nothing covers: one at a time, in a thread that may hang.

The threads are their own and end with the daemon: a disk that does not answer must not use up those
that records are stored with, nor hold up the daemon's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from hyperha.daemon.fencing import layers
from hyperha.errors import BusyError, FailedError

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
        loop = asyncio.get_running_loop()
        end: asyncio.Future[R] = loop.create_future()

        def settle(give: Callable[[], None]) -> None:
            if not end.done():
                give()

        def run() -> None:
            give: Callable[[], None]
            try:
                give = partial(end.set_result, work(folder))
            except BaseException as failure:
                give = partial(end.set_exception, failure)
            self._working = False
            # The daemon may have ended meanwhile: then nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, give)

        self._working = True
        threading.Thread(target=run, name=f"look into {folder}", daemon=True).start()
        return await end
