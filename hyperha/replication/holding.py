"""The daemon as the holder of open files without a name, by messages of the control channel."""

from __future__ import annotations

from collections.abc import Callable

from hyperha.replication.control import DropOrphan, HoldOrphan, LogLine, ProcessMessage
from hyperha.replication.fuse.orphans import LIMIT

SendNow = Callable[[ProcessMessage, int], None]
"""Hand over a message with a descriptor before it returns."""


class DaemonHolder:
    """Implements `Holder` for all sessions of one process."""

    def __init__(self, send: Callable[[ProcessMessage], None], send_now: SendNow) -> None:
        self.serial = 0
        self._send = send
        self._send_now = send_now

    def hold(self, serial: int, node: int, descriptor: int) -> None:
        """Before the operation that may take the last name: a death then finds it held."""
        self._send_now(HoldOrphan(serial, node), descriptor)

    def drop(self, serial: int) -> None:
        """Sometime later."""
        self._send(DropOrphan(serial))

    def full(self) -> None:
        """Said, not refused: the guest may open as many as it likes."""
        text = (
            f"more than {LIMIT} files without a name are open: what the VM does with those beyond "
            "would end with an error if the replication process died"
        )
        self._send(LogLine("W", "M4", text))
