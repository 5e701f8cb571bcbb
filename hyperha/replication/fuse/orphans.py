"""Open files without a name outlive the process that serves them (C10, M4, Z7).

An inode whose last name is gone, or that never had one (O_TMPFILE), exists only as long as somebody
has it open. Here that is this process: with it the inode would die, and a successor, which finds
all others by their handles, would have to answer ESTALE. So the daemon gets a duplicate of the
descriptor of each such inode that the guest has open, before the operation that may take the last
name is done; a successor gets them back. It lets go of one when the kernel forgets the inode.

The other way would be a hidden name for as long as the file is open. Descriptors are better: a
crash of the node leaves nothing on the disk, link counts stay true, and removing a file needs no
room. They are bounded, since the daemon's are; what is beyond is said once, and ends with an error
if this process dies. So do directories without a name: nobody writes into those.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Final, Protocol

from hyperha.replication.fuse.nodes import Node, NodeTable
from hyperha.replication.store import Descriptor, Store

LIMIT: Final = 256
"""Inodes of one session for which the daemon holds a descriptor."""


class Holder(Protocol):
    """Who holds descriptors beyond the life of this process: the daemon."""

    serial: int
    """The number under which something was held last."""

    def hold(self, serial: int, node: int, descriptor: int) -> None:
        """Hold a duplicate for the node of that number; done when it returns."""

    def drop(self, serial: int) -> None:
        """Let go of what is held under a number."""

    def full(self) -> None:
        """There is one more than `LIMIT`; called once for each session."""


Given = tuple[int, int, int]
"""What a successor gets back: serial number, number of the node, descriptor."""


class Orphans:
    """The inodes of one session that are held elsewhere, too. Without a holder nothing is."""

    def __init__(self, holder: Holder | None, given: Iterable[Given] = ()) -> None:
        self._holder = holder
        self._given = tuple(given)
        self._lock = threading.Lock()
        self._count = len(self._given)
        self._told = False
        if holder is not None:
            holder.serial = max([holder.serial, *(serial for serial, _, _ in self._given)])

    def adopt(self, store: Store, nodes: NodeTable) -> None:
        """Give the nodes of a predecessor the inodes that were kept for them."""
        for serial, number, descriptor in self._given:
            held = Descriptor(descriptor)
            node = nodes.by_number.get(number)
            if node is None:
                self._drop(serial)
                continue
            node.kept = serial
            if store.names_of(os.fstat(descriptor), node.handle):
                # It died before the name was gone.
                self.let_go(node)
                continue
            node.held, node.orphan = held, True
            store.forget(node.file)

    def keep(self, node: Node) -> None:
        """Have the inode of a node, which is open, held by the daemon, too."""
        holder, held = self._holder, node.held
        if holder is None or held is None or node.kept:
            return
        with self._lock:
            if self._count >= LIMIT:
                told, self._told = self._told, True
                if not told:
                    holder.full()
                return
            self._count += 1
            holder.serial += 1
            node.kept = holder.serial
        holder.hold(node.kept, node.number, held.fd)

    def let_go(self, node: Node) -> None:
        """It has a name, or the kernel has forgotten it."""
        serial, node.kept = node.kept, 0
        if serial:
            self._drop(serial)

    def _drop(self, serial: int) -> None:
        with self._lock:
            self._count -= 1
        if self._holder is not None:
            self._holder.drop(serial)
