"""Whether the file system of a primary's folder refuses the guest room, and how much is free (D11).

Watches only after a refusal, until there is room again. It decides nothing about roles: what is
told goes to the core. Refusals come from the thread that reads /dev/fuse, `tick` from another one.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Final

from hyperha.core.events import DiskFull, DiskHasRoom
from hyperha.replication import syscalls
from hyperha.replication.clock import now_ms
from hyperha.replication.store import Store

_ROOM_BYTES: Final = 64 << 20
_ROOM_PART: Final = 20
_QUIET_MS: Final = 5000
_AGAIN_MS: Final = 60_000
_MOVED_BYTES: Final = 1 << 20


def lacks_room(room: os.statvfs_result) -> bool:
    """Whether a file system is as good as full: below a twentieth and below 64 MiB free, or without
    an inode."""
    free = room.f_bavail * room.f_frsize
    least = min(_ROOM_BYTES, room.f_blocks * room.f_frsize // _ROOM_PART)
    return free < least or (room.f_files > 0 and not room.f_favail)


class RoomWatch:
    """Belongs to one primary. `peer_room`: bytes free on the peer, None while it is not known."""

    def __init__(
        self,
        store: Store,
        peer_room: Callable[[], int | None],
        report: Callable[[DiskFull | DiskHasRoom], None],
    ) -> None:
        self._store = store
        self._peer_room = peer_room
        self._report = report
        self._lock = threading.Lock()
        self._text = ""
        """The error that the guest got; empty while there is room."""
        self._refused_ms = 0
        self._told_ms = 0
        self._told: tuple[int, int | None] = (0, None)

    def refused(self, error: OSError, *, plain_write: bool) -> None:
        """The guest gets this error. Before it does, the core is told when it is for want of room.

        A plain write needs so little that it tells more than the figures, which thin disks and
        quotas do not show; anything else may have asked for what cannot be (a length, a size of an
        attribute).
        """
        if error.errno not in syscalls.FULL_ERRORS:
            return
        with self._lock:
            self._refused_ms = now_ms()
            room = None if self._text else self._look()
            if room is None:
                return
            if plain_write or error.errno == errno.EDQUOT or lacks_room(room):
                self._text = os.strerror(error.errno)
                self._tell(room)

    def tick(self) -> None:
        """Tell of changes while it lasts, and of its end; called every second."""
        with self._lock:
            room = self._look() if self._text else None
            if room is None:
                return
            now = now_ms()
            if now - self._refused_ms >= _QUIET_MS and not lacks_room(room):
                self._text = ""
                self._report(DiskHasRoom(room.f_bavail * room.f_frsize))
            elif now - self._told_ms >= _AGAIN_MS or self._moved(room):
                self._tell(room)

    def _look(self) -> os.statvfs_result | None:
        """None when it cannot be told: whatever is wrong, the guest's writes meet it too (D10)."""
        try:
            return self._store.statfs()
        except OSError:
            return None

    def _moved(self, room: os.statvfs_result) -> bool:
        """Whether a figure has become another since it was told."""
        theirs = self._peer_room()
        if (theirs is None) != (self._told[1] is None):
            return True
        here = abs(room.f_bavail * room.f_frsize - self._told[0])
        there = abs((theirs or 0) - (self._told[1] or 0))
        return max(here, there) >= _MOVED_BYTES

    def _tell(self, room: os.statvfs_result) -> None:
        self._told_ms = now_ms()
        self._told = room.f_bavail * room.f_frsize, self._peer_room()
        self._report(DiskFull(self._text, *self._told))

    def forget(self) -> None:
        """Not the primary any more."""
        with self._lock:
            self._text = ""
