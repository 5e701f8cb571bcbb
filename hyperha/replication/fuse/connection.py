"""The ground that all request handlers stand on: buffer, answers, mode, nodes, mutations.

One `Connection` belongs to one /dev/fuse descriptor. Requests are handled by the one thread that
reads it; answers may be given from any thread, once. It knows when a mutation may be done and how
its result is kept for a successor, not what the single requests mean.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from hyperha.errors import ReplicationError
from hyperha.replication.buffers import Buffers
from hyperha.replication.fuse import change_record, local, protocol
from hyperha.replication.fuse.nodes import Doubt, HandleTable, Node, NodeTable
from hyperha.replication.fuse.notify import Notifier
from hyperha.replication.fuse.orphans import Orphans
from hyperha.replication.fuse.succession import Progress, SharedTable, Slot
from hyperha.replication.operations import (
    NO_ID,
    Answer,
    Change,
    FileId,
    Pipeline,
    Record,
    RecordKind,
    SetXattr,
    Target,
    discard,
)
from hyperha.replication.stopwatch import Stopwatch
from hyperha.replication.store import Descriptor, Store, check_name

log = logging.getLogger(__name__)

LONG_S: Final = 3600
"""How long the kernel may keep entries and attributes on the primary, in seconds."""

ZONE: Final = 1 << 20
ZONE_RECORD_LIMIT: Final = 64
"""An operation over more zones gets one record of the whole file (Z5)."""

_SLOW_THREADS: Final = 4
_GONE: Final = (errno.ENODEV, errno.ENOENT, errno.ECONNABORTED, errno.ENOTCONN, errno.EBADF)


@dataclass(slots=True)
class Kept:
    """A namespace operation that a predecessor did and the kernel has no answer for (M4, N1)."""

    slot: Slot
    file: FileId
    progress: Progress
    error: int = 0
    payload: bytes = b""
    mark: bytes = b""
    """What the predecessor noted before it began."""
    change: Change | None = None
    acknowledged: bool = False
    """The peer has it in the running session; before that it answers nothing."""
    waiting: int = 0
    """`unique` of the re-sent request that waits for the acknowledgement, or 0."""
    doubt: Doubt | None = None
    """Of that request."""


class Connection:
    """State of one session; see the module's text."""

    def __init__(
        self,
        store: Store,
        pipeline: Pipeline,
        device: int,
        table: SharedTable,
        zone: int = ZONE,
        orphans: Orphans | None = None,
    ) -> None:
        self.store = store
        self.pipeline = pipeline
        self.device = device
        self.table = table
        self.zone = zone
        self.buffer = bytearray(protocol.BUFFER_SIZE)
        """A request, but for the data of a write, which is in `payload`."""
        self.view = memoryview(self.buffer)
        self.buffers = Buffers()
        self._head = self.view[: protocol.DATA_OFFSET]
        self.next_payload()
        self.nodes = NodeTable(store, table)
        self.handles = HandleTable(table, self.nodes)
        self.notifier = Notifier(device)
        self.orphans = orphans or Orphans(None)
        self.orphans.adopt(store, self.nodes)
        self.nodes.gone = self.orphans.let_go
        self.primary = table.primary
        self.valid_s = LONG_S if self.primary else 0
        self.features = table.features
        self.stopwatch = Stopwatch()
        """Times what the pipeline does not see."""
        self.kept: dict[int, Kept] = {}
        self.kept_lock = threading.Lock()
        self.pool = ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="fuse-slow")

    def close(self) -> None:
        """After the connection has ended: answers that still come go nowhere, files are closed."""
        self.pool.shutdown(wait=True)
        device, self.device = self.device, -1
        os.close(device)
        self.handles.clear()
        self.nodes.clear()
        self.table.close()

    def next_payload(self) -> None:
        """Receive the data of writes elsewhere: the pipeline keeps where the last one is."""
        self.payload = memoryview(self.buffers.take(protocol.PAYLOAD_SIZE))
        self.targets = (self._head, self.payload)
        """Where a request is read into."""

    # --- answers --------------------------------------------------------------------------

    def answer(self, unique: int, payload: bytes) -> None:
        """Answer a request with success."""
        header = protocol.OUT_HEADER.pack(protocol.OUT_SIZE + len(payload), 0, unique)
        self.give(header + payload)

    def fail(self, unique: int, number: int) -> None:
        """Answer a request with an errno."""
        self.give(protocol.OUT_HEADER.pack(protocol.OUT_SIZE, -number, unique))

    def settle(self, unique: int, number: int, payload: bytes) -> None:
        """`Answer` of the pipeline's port, with the request as its first argument."""
        if number:
            self.fail(unique, number)
        else:
            self.answer(unique, payload)

    def settle_write(self, unique: int, size: int, number: int, payload: bytes) -> None:
        """`Answer` for a write of `size` bytes."""
        if number:
            self.fail(unique, number)
        else:
            self.give(protocol.WRITE_ANSWER.pack(24, 0, unique, size, 0))

    def later(self, unique: int, work: Callable[[], bytes]) -> None:
        """Do slow work in a thread of the pool and answer with its result."""

        def run() -> None:
            try:
                payload = work()
            except OSError as error:
                self.fail(unique, error.errno or errno.EIO)
            else:
                self.answer(unique, payload)

        self.pool.submit(run)

    def give(self, message: bytes | memoryview) -> None:
        """Hand a whole answer to the kernel."""
        try:
            os.write(self.device, message)
        except OSError as error:
            # The caller was killed, or the connection has ended: nobody waits any more.
            if error.errno not in _GONE:
                log.error("the kernel refused an answer: %s", error)

    # --- who asks ---------------------------------------------------------------------------

    def owner(self) -> tuple[int, int]:
        """User and group of who asks."""
        uid, gid = protocol.OWNER.unpack_from(self.buffer, protocol.OWNER_OFFSET)
        return uid, gid

    def process(self) -> int:
        """The process or thread that asks; 0 where it has no number here."""
        (process,) = protocol.PROCESS.unpack_from(self.buffer, protocol.PROCESS_OFFSET)
        return int(process)

    def without_set_id(self, status: os.stat_result) -> int:
        """The mode without the bits that a change by who asks must clear (VFS semantics).

        Set-group-id without the group's right to execute stays for members of the group only.
        """
        mode = status.st_mode & ~stat.S_ISUID
        if mode & stat.S_ISGID:
            member = self.owner()[1] == status.st_gid or in_group(self.process(), status.st_gid)
            if mode & stat.S_IXGRP or not member:
                mode &= ~stat.S_ISGID
        return mode

    # --- inodes ---------------------------------------------------------------------------

    def node(self, number: int) -> Node:
        """The node of a request; ESTALE for a number that was never given out."""
        node = self.nodes.by_number.get(number)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def descriptor(self, node: Node) -> Descriptor:
        """A descriptor (possibly O_PATH) of a node's inode, also without a name."""
        if node.held is not None:
            return node.held
        return self.store.cached(node.file) or self.store.open_inode(node.handle)

    def status(self, node: Node) -> os.stat_result:
        """What stat(2) says about a node's inode."""
        held = self.descriptor(node)
        return os.fstat(held.fd)

    def target(self, node: Node) -> Target:
        """How a change names the inode."""
        if node.file != NO_ID:
            return Target(node.file)
        if node.place is None:
            raise OSError(errno.EROFS, "the inode carries no id and its name is not known")
        parent, name = node.place
        return Target(NO_ID, self.ensure_id(parent), name)

    def identify(self, parent: Node, name: bytes, handle: bytes) -> FileId:
        """Give an inode of before hyperha an id, here and on the peer (Z3)."""
        file = self.store.new_id()
        parent_file = self.ensure_id(parent)

        def execute() -> Change:
            attribute = local.identify(self.store, handle, file)
            return SetXattr(Target(NO_ID, parent_file, name), attribute, file)

        self.note((Record(RecordKind.DIRECTORY, parent_file),), execute)
        return file

    def ensure_id(self, node: Node) -> FileId:
        """The id of a node that is about to be changed; EROFS where it cannot get one.

        Without one are only inodes that were looked up while the node was standby.
        """
        nameless: list[tuple[Node, Node, bytes]] = []
        at = node
        while at.file == NO_ID:
            if not self.primary or at.place is None:
                raise OSError(errno.EROFS, "the inode carries no id")
            parent, name = at.place
            if self.look(parent, name)[0] != at.handle:
                raise OSError(errno.EROFS, "the inode carries no id and was renamed")
            nameless.append((at, parent, name))
            at = parent
        # From above, since each is named by the id of its directory.
        for one, parent, name in reversed(nameless):
            self.nodes.identified(one, self.identify(parent, name, one.handle))
        return node.file

    def look(self, parent: Node, name: bytes) -> tuple[bytes, FileId, os.stat_result]:
        """Handle, id and stat(2) of a name in a directory; ENOENT for what is hidden."""
        check_name(name)
        if parent.number == protocol.ROOT_NODE:
            self.store.check_visible(parent.file, name)
        return self.store.look(self.directory_descriptor(parent), name)

    def directory_descriptor(self, node: Node) -> Descriptor:
        """A descriptor to resolve names in a directory, also without an id or a name of its own."""
        if node.orphan or node.file == NO_ID:
            return self.descriptor(node)
        return self.store.directory(node.file)

    def directory(self, number: int) -> Node:
        """The node of a directory that is about to be changed: the peer must be able to name it."""
        node = self.node(number)
        if not node.directory:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self.ensure_id(node)
        return node

    def lose_name(self, node: Node | None) -> None:
        """Before an operation that may take a node's last name: keep its inode reachable (Z7)."""
        if node is not None and node.held is None:
            node.held = self.store.open_inode(node.handle)
            if node.is_open and self.store.names_of(os.fstat(node.held.fd), node.handle) <= 1:
                self.orphans.keep(node)

    def name_lost(self, node: Node | None) -> None:
        """After such an operation: an inode without names is not replicated any more (Z7)."""
        if node is None or node.held is None:
            return
        if self.store.names_of(os.fstat(node.held.fd), node.handle) == 0:
            node.orphan = True
            self.store.forget(node.file)
        else:
            self.named(node)

    def named(self, node: Node) -> None:
        """An inode has a name that keeps it."""
        node.orphan, node.held = False, None
        self.orphans.let_go(node)

    # --- mutations ------------------------------------------------------------------------

    def save_orphan(self, node: Node) -> None:
        """Before an inode without names is changed: a safety copy may keep it (R15)."""
        guard = self.store.guard
        if guard is not None:
            held = self.descriptor(node)
            if stat.S_ISREG(os.fstat(held.fd).st_mode):
                held = Descriptor(self.store.reopen(held, os.O_RDONLY))
            guard.everything(held.fd, node.handle)

    def check_writable(self) -> None:
        """EROFS outside PRIM and ALONE (M2, M3)."""
        if not self.primary or not self.pipeline.writable():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def data_records(self, file: FileId, start: int, end: int) -> tuple[Record, ...]:
        """The zone records of a range, or one of the whole file above the limit (Z5)."""
        if end <= start:
            return ()
        first, last = start // self.zone, (end - 1) // self.zone
        if last - first >= ZONE_RECORD_LIMIT:
            return (Record(RecordKind.WHOLE_FILE, file),)
        return tuple(Record(RecordKind.ZONE, file, zone) for zone in range(first, last + 1))

    def change(
        self,
        unique: int,
        records: tuple[Record, ...],
        execute: Callable[[], Change | None],
        payload: Callable[[], bytes] | None = None,
        failed: Callable[[], object] | None = None,
    ) -> None:
        """A mutation that may simply be done again when a successor gets it re-sent.

        `failed` is called when it was done and is answered with an error all the same (M7).
        """

        def settled(number: int, _: bytes) -> None:
            if number and failed is not None:
                failed()
            self.settle(unique, number, payload() if payload is not None and not number else b"")

        self.pipeline.change(records, execute, settled)

    def note(self, records: tuple[Record, ...], execute: Callable[[], Change | None]) -> None:
        """A mutation that no request waits for; later ones follow it on both nodes."""
        self.pipeline.change(records, execute, discard)

    def operation(
        self,
        unique: int,
        records: tuple[Record, ...],
        execute: Callable[[FileId, bool], tuple[Change | None, bytes]],
        doubt: Doubt,
        *,
        creates: bool = False,
        mark: bytes = b"",
    ) -> None:
        """A namespace operation: its result is kept until the kernel has the answer (M4, N1).

        `mark` is noted before it begins, for a successor that must tell whether it was done.
        `execute` gets the id of what it creates, and whether a predecessor may have done it
        already; it returns the change and the kernel's payload: nothing, an entry, or an entry
        and an open handle, which are taken back when it ends with an error all the same (M7).
        `doubt` is what the kernel then must look at again.
        """
        kept = self._take_kept(unique)
        if kept is not None and kept.progress is Progress.DONE:
            self._answer_kept(unique, kept, doubt)
            return
        file = self.store.new_id() if creates else NO_ID
        if kept is None:
            slot = self.table.start_operation(unique & ~protocol.UNIQUE_RESEND, file, mark)
        else:
            slot, file = kept.slot, kept.file
            del self.kept[unique & ~protocol.UNIQUE_RESEND]
        pending = _Pending(self, unique, slot, doubt)

        def run() -> Change | None:
            change, pending.payload = execute(file, kept is not None)
            body = (0, pending.payload, change_record.encode(change))
            try:
                pending.slot = self.table.finish_operation(slot, body)
            except (OSError, ReplicationError) as problem:
                # It is done, and must reach the peer; a successor would do it again.
                log.warning("the result of request %d is not kept: %s", unique, problem)
            return change

        try:
            self.pipeline.change(records, run, pending.settled)
        except Exception:
            # Whatever it was, it is answered by the session; nobody settles the slot any more.
            self.table.release(pending.slot)
            raise

    def noted(self, unique: int, mark: bytes) -> bytes:
        """The mark of an operation: what a predecessor noted that began it, else `mark`."""
        kept = self._take_kept(unique)
        return mark if kept is None else kept.mark

    def _take_kept(self, unique: int) -> Kept | None:
        if not unique & protocol.UNIQUE_RESEND:
            return None
        return self.kept.get(unique & ~protocol.UNIQUE_RESEND)

    def _answer_kept(self, unique: int, kept: Kept, doubt: Doubt) -> None:
        with self.kept_lock:
            kept.doubt = doubt
            if not kept.acknowledged:
                kept.waiting = unique
                return
        self.finish_kept(unique, kept)

    def finish_kept(self, unique: int, kept: Kept) -> None:
        """Answer a re-sent operation from its kept result, which the peer has now."""
        if kept.error:
            self.take_back(kept.payload)
            if kept.doubt is not None:
                self.notifier.settle(kept.doubt)
        self.settle(unique, kept.error, kept.payload)
        self.kept.pop(unique & ~protocol.UNIQUE_RESEND, None)
        self.table.release(kept.slot)

    def take_back(self, payload: bytes) -> None:
        """The kernel gets an error in the place of a namespace operation's payload: it will never
        forget the node nor release the handle that stand there (M7, M8)."""
        if len(payload) > protocol.ENTRY_SIZE:
            number, _, _ = protocol.OPEN_OUT.unpack_from(payload, protocol.ENTRY_SIZE)
            self.handles.remove(number)
        if payload:
            (number,) = protocol.U64.unpack_from(payload)
            self.nodes.forget(number, 1)

    def answerer(self, unique: int) -> Answer:
        """The pipeline's `Answer` for one request."""

        def settle(number: int, payload: bytes) -> None:
            self.settle(unique, number, payload)

        return settle


class _Pending:
    """The answer of one namespace operation, and the place of its result."""

    __slots__ = ("connection", "doubt", "payload", "slot", "unique")

    def __init__(self, connection: Connection, unique: int, slot: Slot, doubt: Doubt) -> None:
        self.connection = connection
        self.unique = unique
        self.slot = slot
        self.doubt = doubt
        self.payload = b""

    def settled(self, number: int, _: bytes) -> None:
        """The rules allow the answer; afterwards the kernel never asks for it again."""
        if number:
            self.connection.take_back(self.payload)
            self.connection.notifier.settle(self.doubt)
        self.connection.settle(self.unique, number, self.payload)
        self.connection.table.release(self.slot)


def in_group(process: int, gid: int) -> bool:
    """Whether a process (or thread) has that group beside its first one; no when it is gone."""
    try:
        with open(f"/proc/{process}/status", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return False
    return any(one.startswith(b"Groups:") and b"%d" % gid in one.split()[1:] for one in lines)
