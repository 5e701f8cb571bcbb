"""What the kernel knows of the mount: nodes with their lookup counts, and open handles (M8).

One node per backing inode, keyed by file handle, so that two hard links share one page cache; no
descriptor per node. Every change is noted in the shared table before the kernel learns it (M4).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from hyperha.replication.fuse.listing import Listing
from hyperha.replication.fuse.protocol import FOPEN_DIRECT_IO, ROOT_NODE
from hyperha.replication.fuse.succession import SharedTable, Slot
from hyperha.replication.operations import ROOT_ID, FileId
from hyperha.replication.store import Descriptor, Store

_GAP: Final = 65536
"""Numbers that a successor leaves out: a request of before may still name one of the last."""

WRITE_ACCESS: Final = os.O_WRONLY | os.O_RDWR
_DOUBTED: Final = 64
"""Processes that are made to look a name up again before it is believed."""


@dataclass(slots=True, eq=False)
class Doubt:
    """What the kernel goes on believing when an operation that was done ends with an error (M7)."""

    nodes: list[Node]
    """Their attributes are other ones now."""
    names: tuple[tuple[Node, bytes], ...] = ()
    """Directories and names that lead elsewhere now, or nowhere."""
    led: list[Node] = field(default_factory=list)
    """Where these names led before, as far as it is known."""
    settled: bool = False
    """The kernel has dropped the names; requests that went by one may still be on their way."""
    _refused: set[int] = field(default_factory=set)

    def refuses(self, process: int) -> bool:
        """Whether who opens one of `led` must first look its name up: each process once.

        To ESTALE the kernel looks up every name of the path and tries again: who comes a second
        time has come by a name that leads there, or by none at all.
        """
        if process in self._refused:
            return False
        self._refused.add(process)
        return True

    @property
    def over(self) -> bool:
        """Nobody can be on the way any more: so many have come since."""
        return self.settled and len(self._refused) >= _DOUBTED


class Node:
    """An inode that the kernel may name by number."""

    __slots__ = (
        "cached_opens",
        "clean",
        "direct",
        "direct_opens",
        "directory",
        "doubt",
        "file",
        "handle",
        "held",
        "kept",
        "lookups",
        "number",
        "orphan",
        "place",
        "slot",
        "touched",
        "writers",
    )

    def __init__(self, number: int, file: FileId, handle: bytes, directory: bool) -> None:
        self.number = number
        self.file = file
        self.handle = handle
        self.directory = directory
        self.lookups = 0
        self.place: tuple[Node, bytes] | None = None
        """Directory and name where it was last looked up, for an inode that carries no id."""
        self.held: Descriptor | None = None
        """Keeps an inode alive that has lost its last name."""
        self.kept = 0
        """Under which number the daemon holds it, too; 0: it does not."""
        self.orphan = False
        """The last name is gone: its data is not replicated any more (Z7)."""
        self.clean = False
        """Known to have no set-id bits and no capabilities, so a write need not clear them."""
        self.direct = False
        """Pages of it may be older than its data: the next cached open drops them."""
        self.doubt: Doubt | None = None
        """The kernel may have come to it by a name that it has lost."""
        self.touched = False
        """Opened while the node was standby (M2)."""
        self.writers = 0
        self.cached_opens = 0
        self.direct_opens = 0
        self.slot: Slot | None = None

    @property
    def is_open(self) -> bool:
        """Whether the kernel has an open handle of the file."""
        return self.cached_opens + self.direct_opens > 0


class Handle:
    """An open file or directory."""

    __slots__ = ("answer_flags", "descriptor", "flags", "listing", "node", "number", "slot")

    def __init__(self, number: int, node: Node, flags: int, answer_flags: int) -> None:
        self.number = number
        self.node = node
        self.flags = flags
        self.answer_flags = answer_flags
        self.descriptor: Descriptor | None = None
        self.listing: Listing | None = None
        """Of a directory: what it held at the last rewind."""
        self.slot: Slot | None = None


class NodeTable:
    """Nodes by number and by file handle.

    Made and named only by the thread that reads requests; forgotten also by one that answers an
    operation with an error (M7).
    """

    def __init__(self, store: Store, table: SharedTable) -> None:
        self._store = store
        self._table = table
        self.by_number: dict[int, Node] = {}
        self._by_handle: dict[bytes, Node] = {}
        self._lock = threading.Lock()
        self.gone: Callable[[Node], None] = _nothing
        """Called with each node that the kernel has forgotten."""
        self._next = ROOT_NODE + 1
        for record in table.nodes():
            node = Node(record.node, record.file, record.handle, record.directory)
            node.lookups = record.lookups
            node.slot = record.slot
            # Nobody knows any more what was opened, and how, through the one that died.
            node.touched, node.direct = not table.primary, True
            store.remember(record.file, record.handle)
            self._insert(node)
            self._next = max(self._next, record.node + _GAP)
        self._add_root()

    def _insert(self, node: Node) -> None:
        self.by_number[node.number] = node
        self._by_handle[node.handle] = node

    def _add_root(self) -> None:
        handle = self._store.handle(ROOT_ID)
        root = self.by_number.get(ROOT_NODE) or Node(ROOT_NODE, ROOT_ID, handle, True)
        if root.slot is None:
            root.slot = self._table.add_node(ROOT_NODE, ROOT_ID, handle, True)
        self._insert(root)

    def __len__(self) -> int:
        return len(self.by_number)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self.by_number.values()))

    def known(self, handle: bytes) -> Node | None:
        """The node of an inode, when the kernel knows it."""
        return self._by_handle.get(handle)

    def looked_up(self, handle: bytes, file: FileId, directory: bool) -> Node:
        """Count one more lookup of an inode, whose node is made at the first one."""
        with self._lock:
            node = self._by_handle.get(handle)
            if node is None:
                node = Node(self._next, file, handle, directory)
                self._next += 1
                node.slot = self._table.add_node(node.number, file, handle, directory)
                self._insert(node)
            elif node.file != file:
                self._identify(node, file)
            node.lookups += 1
            if node.slot is not None:
                self._table.set_lookups(node.slot, node.lookups)
            return node

    def identified(self, node: Node, file: FileId) -> None:
        """The inode of a node has been given an id."""
        with self._lock:
            self._identify(node, file)

    def _identify(self, node: Node, file: FileId) -> None:
        node.file = file
        if node.slot is not None:
            self._table.set_file(node.slot, file)

    def clear(self) -> None:
        """Let go of every inode that is kept alive; the connection has ended."""
        with self._lock:
            nodes = list(self.by_number.values())
            self.by_number.clear()
            self._by_handle.clear()
        for node in nodes:
            self.gone(node)

    def forget(self, number: int, lookups: int) -> None:
        """The kernel dropped that many lookups, or never got them; at zero the node is gone."""
        with self._lock:
            node = self.by_number.get(number)
            if node is None or number == ROOT_NODE:
                return
            node.lookups -= lookups
            if node.lookups > 0:
                if node.slot is not None:
                    self._table.set_lookups(node.slot, node.lookups)
                return
            del self.by_number[number]
            self._by_handle.pop(node.handle, None)
            if node.slot is not None:
                self._table.release(node.slot)
                # A late change of the node must not be noted in another's place.
                node.slot = None
        self.gone(node)


def _nothing(node: Node) -> None:
    """Nobody wants to know."""


class HandleTable:
    """Open handles by number, with a way to wait until none is left (M12)."""

    def __init__(self, table: SharedTable, nodes: NodeTable) -> None:
        self._table = table
        self.by_number: dict[int, Handle] = {}
        self._next = 1
        self._idle = threading.Condition()
        self._files = 0
        for record in table.handles():
            node = nodes.by_number.get(record.node)
            if node is None:
                table.release(record.slot)
                continue
            handle = Handle(record.number, node, record.flags, record.answer_flags)
            handle.slot = record.slot
            self.by_number[record.number] = handle
            self._next = max(self._next, record.number + _GAP)
            self._count(handle, 1)

    def _count(self, handle: Handle, step: int) -> None:
        # Also by a thread that answers an open with an error (M7).
        with self._idle:
            if handle.flags & WRITE_ACCESS:
                handle.node.writers += step
            if handle.node.directory:
                return
            if handle.answer_flags & FOPEN_DIRECT_IO:
                handle.node.direct_opens += step
            else:
                handle.node.cached_opens += step
            self._files += step
            if self._files == 0:
                self._idle.notify_all()

    def add(
        self, node: Node, flags: int, answer_flags: int, descriptor: Descriptor | None
    ) -> Handle:
        """A new handle on a node."""
        handle = Handle(self._next, node, flags, answer_flags)
        self._next += 1
        handle.descriptor = descriptor
        handle.slot = self._table.add_handle(
            handle.number, node.number, flags, answer_flags, node.directory
        )
        self.by_number[handle.number] = handle
        self._count(handle, 1)
        return handle

    def remove(self, number: int) -> Handle | None:
        """The kernel released a handle."""
        handle = self.by_number.pop(number, None)
        if handle is None:
            return None
        if handle.slot is not None:
            self._table.release(handle.slot)
        self._count(handle, -1)
        return handle

    def opened(self) -> list[Handle]:
        """Every open handle at this moment."""
        return list(self.by_number.values())

    def clear(self) -> None:
        """Close every handle; the connection has ended and nobody can use them any more."""
        self.by_number.clear()
        with self._idle:
            self._files = 0
            self._idle.notify_all()

    def open_files(self) -> int:
        """How many file handles (not directories) are not yet released."""
        return self._files

    def wait_until_idle(self, timeout_ms: int) -> bool:
        """Wait until no file handle is left; False when the time was over first."""
        with self._idle:
            return self._idle.wait_for(lambda: self._files == 0, timeout_ms / 1000)
