"""Requests about data: open, create, read, write, sync, allocate, seek, release.

READ and WRITE are the hot path: no object per request beyond the answer's closure. A write whose
open flags carry O_DSYNC or O_SYNC is a barrier (M1). Data of a file without names stays local (Z7).
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import Final

from hyperha.replication import syscalls
from hyperha.replication.changes import ALLOCATE_MODES
from hyperha.replication.fuse import local, notify, protocol
from hyperha.replication.fuse.connection import Connection
from hyperha.replication.fuse.local import Wish
from hyperha.replication.fuse.nodes import WRITE_ACCESS, Doubt, Handle, Node
from hyperha.replication.fuse.protocol import Op
from hyperha.replication.fuse.requests_attributes import AttributeRequests
from hyperha.replication.fuse.requests_names import Handler, NameRequests
from hyperha.replication.operations import (
    NO_ID,
    OFFSET_LIMIT,
    Allocate,
    Change,
    FileId,
    Record,
    RecordKind,
)
from hyperha.replication.stopwatch import Timed
from hyperha.replication.store import Descriptor

O_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)
_BARRIER: Final[int] = getattr(os, "O_DSYNC", 0) | getattr(os, "O_SYNC", 0)
_NO_WAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)
_COPIED: Final = 64 << 10
"""Data up to this size is copied where it must be kept; the buffer of larger data is lent."""
_ALWAYS_FITS: Final = 1 << 40
"""Every file system takes writes up to here; above it is asked for its limit."""
_OUT: Final = protocol.OUT_SIZE


class FileRequests:
    """Handlers of the requests that work on open files."""

    def __init__(
        self, connection: Connection, names: NameRequests, attributes: AttributeRequests
    ) -> None:
        self._c = connection
        self._names = names
        self._attributes = attributes
        self._buffer = connection.buffer
        self._view = connection.view
        self._no_wait = _NO_WAIT
        self._reading = bytearray(_OUT + protocol.BUFFER_SIZE)
        self._reading_view = memoryview(self._reading)

    def handlers(self) -> dict[int, Handler]:
        """Request codes and who handles them."""
        return {
            Op.OPEN: self._open,
            Op.CREATE: self._create,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.RELEASE: self._release,
            Op.FSYNC: self._fsync,
            Op.FSYNCDIR: self._fsync,
            Op.FALLOCATE: self._fallocate,
            Op.LSEEK: self._lseek,
        }

    # --- opening and closing --------------------------------------------------------------

    def answer_flags(self, node: Node, flags: int) -> int:
        """How the kernel may cache this open (M2, M8)."""
        direct = protocol.FOPEN_DIRECT_IO | protocol.FOPEN_PARALLEL_DIRECT_WRITES
        if not self._c.primary:
            node.touched = True
            node.direct = node.direct or bool(flags & WRITE_ACCESS)
            return direct
        if self._bypasses_cache(node, flags):
            node.direct = node.direct or bool(flags & WRITE_ACCESS)
            return direct
        # Pages survive the open only if nothing can have changed the file beside them.
        keep = not (node.direct or node.touched)
        node.touched = False
        return protocol.FOPEN_KEEP_CACHE if keep else 0

    def _bypasses_cache(self, node: Node, flags: int) -> bool:
        """Whether a primary's open gets FOPEN_DIRECT_IO.

        Kernels without DIRECT_IO_ALLOW_MMAP (before 6.6) do not drop cached pages at such writes:
        there all handles of a file that are open at a time are of one kind.
        """
        if self._c.features & protocol.Feature.DIRECT_IO_ALLOW_MMAP:
            return bool(flags & O_DIRECT)
        if node.direct_opens:
            return True
        return bool(flags & O_DIRECT) and not node.cached_opens

    def _open(self, unique: int, number: int, length: int) -> None:
        flags, extra = protocol.OPEN_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        node = self._c.node(number)
        doubt = node.doubt
        if doubt is not None:
            if doubt.refuses(self._c.process()):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            if doubt.over:
                node.doubt = None
        self._open_node(unique, node, flags, extra, b"")

    def _open_node(self, unique: int, node: Node, flags: int, extra: int, prefix: bytes) -> None:
        c = self._c
        if flags & os.O_TRUNC:
            c.check_writable()
        if c.primary and flags & WRITE_ACCESS and node.file == NO_ID:
            c.ensure_id(node)
        handle = c.handles.add(
            node, flags, self.answer_flags(node, flags), self._attributes.data(node, None)
        )
        if node.orphan:
            c.orphans.keep(node)
        answer = prefix + protocol.OPEN_OUT.pack(handle.number, handle.answer_flags, 0)
        if not flags & os.O_TRUNC:
            c.answer(unique, answer)
            return
        try:
            self._truncate_opened(unique, handle, bool(extra & protocol.OPEN_KILL_SUIDGID), answer)
        except OSError:
            c.handles.remove(handle.number)
            raise

    def _truncate_opened(self, unique: int, handle: Handle, kill: bool, answer: bytes) -> None:
        c, node = self._c, handle.node
        records, execute = self._attributes.truncation(node, 0, handle.number)
        if node.orphan:
            c.save_orphan(node)
            execute()
            c.answer(unique, answer)
            return
        self._clear_privileges(node, kill)

        def failed() -> None:
            # The kernel never releases what it could not open, nor forgets what it was not told.
            c.handles.remove(handle.number)
            if len(answer) > protocol.OPEN_OUT.size:
                c.nodes.forget(node.number, 1)
            c.notifier.settle(Doubt([node]))

        c.change(unique, records, execute, lambda: answer, failed)

    def _create(self, unique: int, number: int, length: int) -> None:
        c = self._c
        flags, mode, umask, extra = protocol.CREATE_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        name = bytes(self._view[protocol.IN_SIZE + protocol.CREATE_IN.size : length - 1])
        parent = self._names.parent(number, name)
        uid, gid = c.owner()
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        wish = Wish(parent.file, name, mode, umask, uid, gid)

        def execute(file: FileId, again: bool) -> tuple[Change, bytes]:
            made = local.make(c.store, wish, file, again=again)
            node = c.nodes.looked_up(made.handle, made.file, False)
            handle = c.handles.add(node, flags, self.answer_flags(node, flags), made.held)
            entry = protocol.encode_entry(node.number, made.status, c.valid_s)
            return made.change, entry + protocol.OPEN_OUT.pack(
                handle.number, handle.answer_flags, 0
            )

        try:
            records = (Record(RecordKind.DIRECTORY, parent.file),)
            c.operation(unique, records, execute, Doubt([parent]), creates=True)
        except FileExistsError:
            # The kernel believed that the name was free; with O_EXCL that is the answer.
            if flags & os.O_EXCL:
                raise
            node, status = self._names.resolve(parent, name)
            if not stat.S_ISREG(status.st_mode):
                c.nodes.forget(node.number, 1)
                raise
            # Opening may take set-id bits from it: this answer is not to be the last word.
            entry = protocol.encode_entry(node.number, status, 0)
            try:
                self._open_node(unique, node, flags, extra, entry)
            except OSError:
                c.nodes.forget(node.number, 1)
                raise

    def _release(self, unique: int, number: int, length: int) -> None:
        c = self._c
        fh, _, _, _ = protocol.RELEASE_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        handle = c.handles.by_number.get(fh)
        if handle is not None:
            node = handle.node
            last_writer = handle.flags & WRITE_ACCESS and node.writers == 1
            if last_writer and c.primary and not node.orphan and node.file != NO_ID:
                c.pipeline.closed(node.file)
            c.handles.remove(fh)
        c.answer(unique, b"")

    # --- reading and writing --------------------------------------------------------------

    def _descriptor(self, fh: int, number: int) -> Descriptor:
        handle = self._c.handles.by_number.get(fh)
        if handle is None:
            return self._attributes.data(self._c.node(number), None)
        held = handle.descriptor
        if held is None:
            held = handle.descriptor = self._attributes.data(handle.node, None)
        return held

    def _read(self, unique: int, number: int, length: int) -> None:
        fh, offset, size, _, _, _, _ = protocol.READ_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        held = self._descriptor(fh, number)
        # The kernel asks for whole pages, also where no file goes on.
        size = min(size, OFFSET_LIMIT - offset)
        try:
            got = os.preadv(
                held.fd, (self._reading_view[_OUT : _OUT + size],), offset, self._no_wait
            )
        except BlockingIOError:
            got = -1
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or not self._no_wait:
                raise
            # This file system cannot say whether it would wait.
            self._no_wait = 0
            self._read(unique, number, length)
            return
        if got == size or (got >= 0 and offset + got >= os.fstat(held.fd).st_size):
            protocol.OUT_HEADER.pack_into(self._reading, 0, _OUT + got, 0, unique)
            self._c.give(self._reading_view[: _OUT + got])
        else:
            # Not in memory: the disk must not hold up the other requests.
            work = partial(_read_all, held, size, offset)
            self._c.later(unique, self._c.stopwatch.timing(Timed.READ, work))

    def _write(self, unique: int, number: int, length: int) -> None:
        c = self._c
        fh, offset, size, write_flags, _, flags, _ = protocol.WRITE_IN.unpack_from(
            self._buffer, protocol.IN_SIZE
        )
        if not c.primary or not c.pipeline.writable():
            raise OSError(errno.EROFS, "")
        node = c.nodes.by_number.get(number) or c.node(number)
        if offset + size > _ALWAYS_FITS:
            size = _fitting(self._descriptor(fh, number), offset, size)
        data = c.payload[:size]
        if not node.clean:
            if not node.orphan:
                c.ensure_id(node)
            self._clear_privileges(node, bool(write_flags & protocol.WRITE_KILL_SUIDGID))
        if node.orphan:
            self._write_locally(unique, fh, number, data, offset)
            return
        if c.pipeline.write(
            node.file,
            offset,
            data,
            barrier=flags & _BARRIER != 0,
            answer=partial(c.settle_write, unique, size),
            give_back=c.buffers.give_back_view if size > _COPIED else None,
        ):
            c.next_payload()

    def _write_locally(
        self, unique: int, fh: int, number: int, data: memoryview, offset: int
    ) -> None:
        held = self._descriptor(fh, number)
        guard = self._c.store.guard
        if guard is not None:
            guard.data(held.fd, self._c.node(number).handle, offset, len(data))
        written = os.pwrite(held.fd, data, offset)
        self._c.settle_write(unique, written, 0, b"")

    def _clear_privileges(self, node: Node, kill_set_id: bool) -> None:
        steps = self._attributes.privilege_steps(node, kill_set_id)
        for records, execute in steps:
            if node.orphan:
                self._c.save_orphan(node)
                execute()
            else:
                self._c.note(records, execute)
        if steps:
            # No answer to a write tells the kernel the mode: it would go on by the old one.
            notify.mode_changed(self._c.device, node.number)

    # --- stable storage, allocation, holes ------------------------------------------------

    def _fsync(self, unique: int, number: int, length: int) -> None:
        c = self._c
        fh, flags, _ = protocol.FSYNC_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        node = c.node(number)
        data_only = bool(flags & protocol.FSYNC_DATA_ONLY)
        if not c.primary or not c.pipeline.writable():
            # Nothing was ever written through this session in this role.
            c.answer(unique, b"")
        elif node.orphan or node.file == NO_ID:
            held = None if node.directory else self._descriptor(fh, number)
            c.later(unique, partial(_sync, held))
        else:
            c.pipeline.flush(node.file, data_only=data_only, answer=partial(c.settle, unique))

    def _fallocate(self, unique: int, number: int, length: int) -> None:
        c = self._c
        fh, offset, size, mode, _ = protocol.FALLOCATE_IN.unpack_from(
            self._buffer, protocol.IN_SIZE
        )
        c.check_writable()
        if mode not in ALLOCATE_MODES:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        node = c.node(number)
        if not node.orphan:
            c.ensure_id(node)
        held = self._descriptor(fh, number)

        def execute() -> Change:
            status = local.allocate(held.fd, mode, offset, size)
            return Allocate(node.file, mode, offset, size, status.st_size, status.st_mtime_ns)

        if not node.clean:
            # The kernel does not say here whether who asks may keep set-id bits.
            self._clear_privileges(node, c.owner()[0] != 0)
        if node.orphan:
            c.save_orphan(node)
            execute()
            c.answer(unique, b"")
            return
        records: tuple[Record, ...] = (Record(RecordKind.INODE, node.file),)
        if mode & (syscalls.FALLOC_PUNCH_HOLE | syscalls.FALLOC_ZERO_RANGE):
            records += c.data_records(node.file, offset, offset + size)
        # Pages of a range that was taken out or moved would go on showing what was there.
        c.change(unique, records, execute, failed=lambda: c.notifier.invalidate(number))

    def _lseek(self, unique: int, number: int, length: int) -> None:
        fh, offset, whence, _ = protocol.LSEEK_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        held = self._descriptor(fh, number)
        position = os.lseek(held.fd, offset, whence)
        self._c.answer(unique, protocol.U64.pack(position))


def _fitting(held: Descriptor, offset: int, size: int) -> int:
    """How much of a write a file of this file system can take; EFBIG when nothing.

    A write is sent before it is done here (Z4): one that no copy can do must not be sent. A seek
    asks for the limit without touching the file.
    """
    fits, too_much = 0, size + 1
    while too_much - fits > 1:
        middle = size if too_much > size else (fits + too_much) // 2
        try:
            os.lseek(held.fd, offset + middle, os.SEEK_SET)
        except OSError:
            too_much = middle
        else:
            fits = middle
    if fits == 0 and size:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return fits


def _read_all(held: Descriptor, size: int, offset: int) -> bytes:
    data = os.pread(held.fd, size, offset)
    while 0 < len(data) < size:
        more = os.pread(held.fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _sync(held: Descriptor | None) -> bytes:
    if held is not None:
        os.fsync(held.fd)
    return b""
