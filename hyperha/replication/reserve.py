"""Room that a secondary keeps for what it has acknowledged and not yet written (D11).

A plain file in the folder's private directory, allocated whole. It is given up once, when the file
system is full: then everything acknowledged still finds its place, and the node leaves.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from hyperha.replication import syscalls
from hyperha.replication.store import Store

NAME: Final = "reserve"
_PART: Final = 8
"""Not more than this part of what is free: a small disk is for its data."""


class Reserve:
    """The reserve of one folder; `size` bytes are set aside."""

    def __init__(self, store: Store, wanted: int) -> None:
        """Set aside `wanted` bytes, or what a small disk can spare. Raises OSError."""
        self._lock = threading.Lock()
        private = store.private_directory()
        try:
            flags = os.O_RDWR | os.O_CREAT | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
            self._descriptor = os.open(NAME, flags, 0o600, dir_fd=private)
        finally:
            os.close(private)
        try:
            self.size = self._allocate(wanted)
        except BaseException:
            self.close()
            raise

    def _allocate(self, wanted: int) -> int:
        room = os.fstatvfs(self._descriptor)
        held = os.fstat(self._descriptor).st_blocks * 512
        size = min(wanted, held + room.f_bavail * room.f_frsize // _PART)
        if size < wanted:
            size = size >> 20 << 20
        os.ftruncate(self._descriptor, size)
        if size:
            try:
                syscalls.allocate(self._descriptor, 0, 0, size)
            except OSError as error:
                if error.errno not in syscalls.FULL_ERRORS:
                    raise
                os.ftruncate(self._descriptor, 0)
                return 0
        return size

    def release(self) -> bool:
        """Give the room up; False when there was none any more. From any thread."""
        with self._lock:
            size, self.size = self.size, 0
            if size:
                os.ftruncate(self._descriptor, 0)
        return bool(size)

    def close(self) -> None:
        """Close the file; the room stays set aside."""
        os.close(self._descriptor)
