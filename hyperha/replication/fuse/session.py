"""One FUSE session: the thread that reads /dev/fuse and hands each request to its handler (T6).

The thread never waits for the peer (T1): mutations go to the injected `Pipeline`, whose answers
come from other threads; everything else is answered at once. A session starts as standby (nothing
cached, every mutation refused) and may become primary once; going back is a new session mounted on
top (M2, M3). A successor takes over the descriptor and table of a session that died (M4, N1).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from collections.abc import Callable
from typing import Final

from hyperha.errors import ReplicationError
from hyperha.replication.fuse import change_record, notify, protocol
from hyperha.replication.fuse.connection import LONG_S, ZONE, Connection, Kept
from hyperha.replication.fuse.nodes import Node
from hyperha.replication.fuse.orphans import Orphans
from hyperha.replication.fuse.protocol import Feature, Op
from hyperha.replication.fuse.requests_attributes import AttributeRequests
from hyperha.replication.fuse.requests_files import FileRequests
from hyperha.replication.fuse.requests_nameless import NamelessRequests
from hyperha.replication.fuse.requests_names import Handler, NameRequests
from hyperha.replication.fuse.succession import Progress, SharedTable
from hyperha.replication.operations import (
    NO_ID,
    Change,
    Create,
    FileId,
    Link,
    Pipeline,
    Record,
    RecordKind,
    Remove,
    Rename,
    SetXattr,
)
from hyperha.replication.stopwatch import Stopwatch
from hyperha.replication.store import Store
from hyperha.replication.syscalls import show_thread_name

log = logging.getLogger(__name__)

_ENDED: Final = (errno.ENODEV, errno.ECONNABORTED)
_AGAIN: Final = (errno.EINTR, errno.ENOENT, errno.EAGAIN)
_INVALIDATE_MS: Final = 2000
_KEPT_LIMIT: Final = 16
"""So many requests at most are served while what is to be sent is kept."""


def records_of(change: Change) -> tuple[Record, ...]:
    """What the intent log must know before a namespace change is sent again (Z4)."""
    if isinstance(change, Create | Link | Remove):
        return (Record(RecordKind.DIRECTORY, change.parent),)
    if isinstance(change, Rename):
        parents = sorted({change.old_parent, change.new_parent})
        return tuple(Record(RecordKind.DIRECTORY, parent) for parent in parents)
    if isinstance(change, SetXattr):
        if change.inode.file != NO_ID:
            return (Record(RecordKind.INODE, change.inode.file),)
        return (Record(RecordKind.DIRECTORY, change.inode.parent),)
    raise ReplicationError(f"{type(change).__name__} is not kept for a successor")


class Session:
    """Serves one mount. Owns `device` (an open /dev/fuse descriptor) and the table.

    `disabled` switches kernel features off by their INIT bits. Pass `inherited` (a descriptor of
    the table) to continue what another process served on the same connection. Reads are timed by
    `stopwatch`. `orphans` keeps open files without a name beyond the life of this process.
    """

    def __init__(
        self,
        store: Store,
        pipeline: Pipeline,
        device: int,
        *,
        disabled: int = 0,
        inherited: int | None = None,
        zone: int = ZONE,
        stopwatch: Stopwatch | None = None,
        orphans: Orphans | None = None,
    ) -> None:
        self.store = store
        self.device = device
        self.table = SharedTable(inherited)
        self._inherited = inherited is not None
        self._disabled = disabled
        self._connection = Connection(store, pipeline, device, self.table, zone, orphans)
        if stopwatch is not None:
            self._connection.stopwatch = stopwatch
        self._names = NameRequests(self._connection)
        self._attributes = AttributeRequests(self._connection)
        self._files = FileRequests(self._connection, self._names, self._attributes)
        nameless = NamelessRequests(self._connection, self._names, self._files)
        self._notifier = self._connection.notifier
        self._handlers: list[Handler | None] = [None] * protocol.OP_LIMIT
        for part in (self._names, self._attributes, self._files, nameless):
            for code, handler in part.handlers().items():
                self._handlers[code] = handler
        self._handlers[Op.INIT] = self._init
        self._handlers[Op.DESTROY] = self._destroy
        self._no_answer = frozenset((Op.FORGET, Op.BATCH_FORGET))
        self._thread = threading.Thread(target=self._run, name="fuse-reader", daemon=True)
        self.ready = threading.Event()
        """Set when the kernel's INIT has been answered."""
        self.ended = threading.Event()
        """Set when the connection is gone or was aborted."""
        self.on_end: Callable[[], None] | None = None
        """Called once, from the reader's thread, when the connection has ended."""

    # --- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Serve. A successor first has the kept operations sent again, then asks the kernel.

        Raises ReplicationError when the kernel cannot re-send (before 6.9, or disabled).
        """
        if self._inherited:
            self._take_over()
            # Before the first read: what this process has read itself must not come again.
            notify.resend(self.device)
            self.ready.set()
        self._notifier.start()
        self._thread.start()

    def close(self, timeout_ms: int = 2000) -> bool:
        """After the connection has ended: wait for the threads and let go of everything.

        False when the reader has not ended in time; then nothing was closed.
        """
        self._thread.join(timeout_ms / 1000)
        if self._thread.is_alive():
            return False
        self._notifier.stop()
        self._connection.close()
        return True

    def _run(self) -> None:
        show_thread_name()
        try:
            self._serve()
        except Exception:
            # Whoever waits must learn it; the kernel goes on waiting for a successor.
            log.critical("the FUSE reader ended with an error", exc_info=True)
        finally:
            pipeline = self._connection.pipeline
            if pipeline.keeps is not None:
                # The session goes on without this mount: what follows would stay behind it.
                pipeline.send_kept()
            self.ended.set()
            if self.on_end is not None:
                self.on_end()

    def _serve(self) -> None:
        device, connection, handlers = self.device, self._connection, self._handlers
        unpack, buffer = protocol.IN_HEADER.unpack_from, connection.buffer
        readv, limit = os.readv, protocol.OP_LIMIT
        view, split, write = connection.view, protocol.DATA_OFFSET, int(Op.WRITE)
        pipeline = connection.pipeline
        waiting = select.poll()
        waiting.register(device, select.POLLIN)
        served = 0
        while True:
            if pipeline.keeps is not None:
                # One system call more, and as many less as there are requests to be served first.
                served += 1
                if served >= _KEPT_LIMIT or not waiting.poll(0):
                    pipeline.send_kept()
                    served = 0
            try:
                readv(device, connection.targets)
            except OSError as error:
                if error.errno in _ENDED:
                    return
                if error.errno in _AGAIN:
                    continue
                raise
            length, code, unique, number, _, _, _, _, _ = unpack(buffer)
            if length > split and code != write:
                view[split:length] = connection.payload[: length - split]
            handler = handlers[code] if code < limit else None
            if handler is None:
                # INTERRUPT too: the kernel then stops sending interrupts, which nobody obeys.
                connection.fail(unique, errno.ENOSYS)
                continue
            try:
                handler(unique, number, length)
            except OSError as error:
                if code not in self._no_answer:
                    connection.fail(unique, error.errno or errno.EIO)
            except Exception:
                log.exception("request %d on node %d failed in an unforeseen way", code, number)
                if code not in self._no_answer:
                    connection.fail(unique, errno.EIO)

    # --- negotiation ----------------------------------------------------------------------

    def _init(self, unique: int, number: int, length: int) -> None:
        c = self._connection
        buffer, offset = c.buffer, protocol.IN_SIZE
        major, minor, readahead, offered = protocol.INIT_IN.unpack_from(buffer, offset)
        if major != protocol.MAJOR or minor < protocol.OLDEST_MINOR:
            log.error("the kernel speaks FUSE %d.%d, which is too old", major, minor)
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        if minor >= 36 and offered & Feature.INIT_EXT:
            (upper,) = protocol.INIT_FLAGS2.unpack_from(buffer, offset + protocol.INIT_IN.size)
            offered |= upper << 32
        minor = min(minor, protocol.NEWEST_MINOR)
        flags = protocol.init_flags(offered, self._disabled)
        self.table.features, self.table.minor = flags, minor
        self.table.save_header()
        c.features = flags
        c.answer(unique, protocol.encode_init(minor, readahead, flags))
        self.ready.set()

    def _destroy(self, unique: int, number: int, length: int) -> None:
        self._connection.answer(unique, b"")

    @property
    def features(self) -> int:
        """The INIT bits that are in force."""
        return self._connection.features

    @property
    def can_be_succeeded(self) -> bool:
        """Whether a successor can adopt this connection (M4); known after INIT."""
        return bool(self.features & Feature.HAS_RESEND)

    # --- role -----------------------------------------------------------------------------

    @property
    def primary(self) -> bool:
        """Whether mutations are taken and the kernel may cache."""
        return self._connection.primary

    def become_primary(self, timeout_ms: int = _INVALIDATE_MS) -> None:
        """Turn standby into primary, after the last operation of the applier (M2, N7).

        What was mapped or opened as standby is dropped from the kernel's cache before anything may
        be cached. Raises ReplicationError when that failed: the connection must then be replaced.
        """
        c = self._connection
        if c.primary:
            return
        opened = {handle.node.number for handle in c.handles.opened()}
        for node in c.nodes:
            node.clean = False
            if node.number in opened:
                self._settle_names(node)
            if node.touched:
                self._notifier.invalidate(node.number)
        if not self._notifier.drain(timeout_ms):
            raise ReplicationError(
                "the kernel still holds pages of the folder from before the promotion",
                "Mount a new session on top of this one",
            )
        self.table.primary = True
        self.table.save_header()
        c.valid_s = LONG_S
        c.primary = True

    def _settle_names(self, node: Node) -> None:
        """An open inode that lost its last name while the applier worked is not replicated (Z7)."""
        try:
            status = self._connection.status(node)
            node.orphan = self._connection.store.names_of(status, node.handle) == 0
            if node.orphan:
                self._connection.lose_name(node)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            node.orphan = True

    def invalidate(self, file: FileId) -> None:
        """Have the kernel drop what it caches of a file that was repaired beneath it (M2, M10)."""
        for node in self._connection.nodes:
            if node.file == file:
                self._notifier.invalidate(node.number)

    def handles_open(self) -> int:
        """File handles that the kernel has not released (M12)."""
        return self._connection.handles.open_files()

    def wait_released(self, timeout_ms: int) -> bool:
        """Wait until every file handle is released (M12); False when the time was over first."""
        return self._connection.handles.wait_until_idle(timeout_ms)

    def limit_room(self, free_bytes: int | None) -> None:
        """The room on the peer: statfs shows the smaller of both (D11)."""
        self._attributes.room_limit = free_bytes

    # --- succession -----------------------------------------------------------------------

    def pending_namespace_changes(self) -> tuple[Change, ...]:
        """What a predecessor did and nobody was answered for, in its old order (M4, N1)."""
        kept = self._connection.kept.values()
        return tuple(item.change for item in kept if item.change is not None)

    def _take_over(self) -> None:
        c = self._connection
        if not c.features & Feature.HAS_RESEND or self._disabled & Feature.HAS_RESEND:
            raise ReplicationError(
                "this kernel cannot send unanswered requests again",
                "Abort the connection and restart the VM (Linux 6.9 or later avoids that)",
            )
        for record in self.table.operations():
            kept = Kept(record.slot, record.file, record.progress, mark=record.mark)
            if record.progress is Progress.DONE and isinstance(record.body, tuple):
                kept.error, kept.payload, plain = record.body
                kept.change = change_record.decode(plain)
            c.kept[record.unique] = kept
        for unique, kept in list(c.kept.items()):
            if kept.change is not None:
                self._send_again(unique, kept, kept.change)
            else:
                kept.acknowledged = True

    def _send_again(self, unique: int, kept: Kept, change: Change) -> None:
        c = self._connection

        def settled(number: int, _: bytes) -> None:
            with c.kept_lock:
                kept.acknowledged = True
                kept.error = number or kept.error
                waiting = kept.waiting
            if waiting:
                c.finish_kept(waiting, kept)

        c.pipeline.change(records_of(change), lambda: change, settled)
