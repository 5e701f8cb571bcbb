"""Notifications to the kernel, from a thread that serves no request (M10).

The kernel may wait for a locked page while it handles one; the thread that would unlock that page
by answering a write must never be the one that waits. The one exception is `mode_changed`, which
touches no page.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
from typing import Final

from hyperha.replication.fuse import protocol
from hyperha.replication.fuse.nodes import Doubt

log = logging.getLogger(__name__)

_END_SECONDS: Final = 2
_ATTRIBUTES_ONLY: Final = -1
_IGNORED: Final = (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED)


def resend(device: int) -> None:
    """Ask the kernel to send every request again that was read and not answered (M4).

    Raises OSError EINVAL where the kernel cannot (before 6.9).
    """
    os.write(device, protocol.OUT_HEADER.pack(protocol.OUT_SIZE, protocol.NOTIFY_RESEND, 0))


def mode_changed(device: int, node: int) -> None:
    """Have the kernel ask for a node's mode before it runs it again: a write took set-id bits.

    For the thread that serves requests, before it answers that write: only attributes are dropped,
    without a lock that a request may hold, and the node is held open by who writes. A hard link by
    a stranger is still judged by the old mode, and refused, until somebody looks at the file: to
    expire names would lock their directory, and a new epoch (NOTIFY_INC_EPOCH) takes away what is
    mounted below them.
    """
    _invalidate(device, node, _ATTRIBUTES_ONLY)


def _invalidate(device: int, node: int, offset: int) -> None:
    """Drop the attributes of a node, and its pages from `offset` on. Raises OSError, but for what
    is gone already."""
    _tell(device, protocol.NOTIFY_INVAL_INODE, protocol.INVAL_INODE.pack(node, offset, 0))


def _forget_name(device: int, parent: int, name: bytes) -> None:
    """Have the kernel look a name up again. Waits for what is under way in that directory. Raises
    OSError, but for what is gone already."""
    head = protocol.INVAL_ENTRY.pack(parent, len(name), 0)
    _tell(device, protocol.NOTIFY_INVAL_ENTRY, head + name + b"\0")


def _tell(device: int, code: int, body: bytes) -> None:
    size = protocol.OUT_SIZE + len(body)
    try:
        os.write(device, protocol.OUT_HEADER.pack(size, code, 0) + body)
    except OSError as error:
        if error.errno not in _IGNORED:
            raise


class Notifier:
    """Sends invalidations in the background."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._queue: queue.SimpleQueue[int | Doubt | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fuse-notify", daemon=True)
        self._failed = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; for an ended connection, where nothing can hold it any more."""
        self._queue.put(None)
        self._thread.join(_END_SECONDS)

    def invalidate(self, node: int) -> None:
        """Have the kernel drop the attributes and pages of a node."""
        self._queue.put(node)

    def settle(self, doubt: Doubt) -> None:
        """Have the kernel look again at what an operation has changed that ends with an error (M7).

        Call it before the answer is given: the kernel locks the directory until then, so that the
        names wait for the answer and go with it. An opening that is quicker is refused once.
        """
        for node in doubt.led:
            node.doubt = doubt
        self._queue.put(doubt)

    def drain(self, timeout_ms: int) -> bool:
        """Wait until everything queued before is done; False on time-out or a failed one (N7)."""
        reached = threading.Event()
        self._queue.put(reached)
        return reached.wait(timeout_ms / 1000) and not self._failed

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                if isinstance(item, Doubt):
                    self._settle(item)
                else:
                    _invalidate(self._device, item, 0)
            except OSError as error:
                self._failed = True
                what = "names" if isinstance(item, Doubt) else f"the cache of node {item}"
                log.error("the kernel could not drop %s: %s", what, error)

    def _settle(self, doubt: Doubt) -> None:
        for node in (*doubt.nodes, *doubt.led):
            _invalidate(self._device, node.number, _ATTRIBUTES_ONLY)
        for parent, name in doubt.names:
            _forget_name(self._device, parent.number, name)
        # One node that is still doubted must not keep the others, and what they hold open.
        doubt.nodes, doubt.names, doubt.led = [], (), []
        doubt.settled = True
