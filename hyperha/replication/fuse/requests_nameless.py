"""Requests about files that never had a name: O_TMPFILE, and the linkat(2) that gives them one.

Such a file stays on this node until it gets a name; then it is sent whole (Z7). It arrives under a
name that nobody asked for and gets the wanted one last, so that the peer never shows half of it.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import Final

from hyperha.replication import allocation, syscalls
from hyperha.replication.changes import RENAME_NOREPLACE
from hyperha.replication.fuse import local, protocol
from hyperha.replication.fuse.connection import Connection
from hyperha.replication.fuse.local import Wish
from hyperha.replication.fuse.nodes import Doubt, Node
from hyperha.replication.fuse.protocol import Op
from hyperha.replication.fuse.requests_files import FileRequests
from hyperha.replication.fuse.requests_names import Handler, NameRequests
from hyperha.replication.operations import (
    OFFSET_LIMIT,
    Allocate,
    Change,
    Create,
    FileId,
    Record,
    RecordKind,
    Rename,
    SetAttributes,
    SetXattr,
    Target,
    discard,
    done_already,
)
from hyperha.replication.privileges import CAPABILITY, capability
from hyperha.replication.store import attributes_of
from hyperha.replication.syscalls import FALLOC_KEEP_SIZE

DATA_LIMIT: Final = 64 << 20
"""Bytes; a larger file is not sent whole while the other requests wait."""
_CHUNK: Final = 1 << 20
_XATTRS_LIMIT: Final = 256 << 10
"""Bytes of extended attributes that a file brings with its first name; others follow."""


class NamelessRequests:
    """Handlers of TMPFILE, and of LINK where the source has no name."""

    def __init__(self, connection: Connection, names: NameRequests, files: FileRequests) -> None:
        self._c = connection
        self._names = names
        self._files = files
        self._buffer = connection.buffer
        self._view = connection.view

    def handlers(self) -> dict[int, Handler]:
        """Request codes and who handles them."""
        return {Op.TMPFILE: self._create, Op.LINK: self._link}

    def _create(self, unique: int, number: int, length: int) -> None:
        c = self._c
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        c.check_writable()
        parent = c.directory(number)
        uid, gid = c.owner()
        wish = Wish(parent.file, b"", stat.S_IFREG | stat.S_IMODE(mode), umask, uid, gid)
        file = c.store.new_id()
        held = local.make_nameless(c.store, wish, file)
        node = c.nodes.looked_up(syscalls.file_handle(held.fd)[0], file, False)
        node.held, node.orphan = held, True
        handle = c.handles.add(node, flags, self._files.answer_flags(node, flags), held)
        c.orphans.keep(node)
        entry = protocol.encode_entry(node.number, os.fstat(held.fd), c.valid_s)
        c.answer(unique, entry + protocol.OPEN_OUT.pack(handle.number, handle.answer_flags, 0))

    def _link(self, unique: int, number: int, length: int) -> None:
        c = self._c
        (source_number,) = protocol.U64.unpack_from(self._buffer, protocol.IN_SIZE)
        source = c.node(source_number)
        if not source.orphan:
            self._names.link(unique, number, length)
            return
        name = bytes(self._view[protocol.IN_SIZE + protocol.U64.size : length - 1])
        parent = self._names.parent(number, name)
        if parent.orphan:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if _exists(c, parent, name):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._send(source, parent)
        self._name(unique, source, parent, name)

    def _send(self, source: Node, parent: Node) -> None:
        """Give the file its first name here and on the peer, and the peer its data."""
        c, file = self._c, source.file
        held = c.descriptor(source)
        status = os.fstat(held.fd)
        if status.st_blocks * 512 > DATA_LIMIT:
            raise OSError(errno.EOPNOTSUPP, "too large to be given its first name")
        directory = c.store.directory(parent.file)
        c.store.assign_id(held.fd, file)

        def appear(xattrs: dict[bytes, bytes]) -> Change:
            os.link(f"/proc/self/fd/{held.fd}", _first_name(file), dst_dir_fd=directory.fd)
            mtime_ns = os.fstat(directory.fd).st_mtime_ns
            attributes = attributes_of(status)
            brings = tuple(xattrs.items())
            return Create(parent.file, _first_name(file), file, attributes, mtime_ns, b"", brings)

        try:
            rights = capability(held.fd)
            first, others = _divided(c.store.xattrs(Target(file)))
            c.note((Record(RecordKind.DIRECTORY, parent.file),), partial(appear, first))
        except OSError:
            c.store.forget(file)
            raise
        c.named(source)
        for start, length in c.store.data_ranges(file, 0, status.st_size):
            for at in range(start, start + length, _CHUNK):
                data = os.pread(held.fd, min(_CHUNK, start + length - at), at)
                c.pipeline.write(file, at, data, barrier=False, answer=discard)

        inode = (Record(RecordKind.INODE, file),)
        for name, value in others.items():
            c.note(inode, partial(done_already, SetXattr(Target(file), name, value)))
        for start, length in _reserved(held.fd):
            room = Allocate(
                file, FALLOC_KEEP_SIZE, start, length, status.st_size, status.st_mtime_ns
            )
            c.note(inode, partial(done_already, room))

        def settle() -> Change:
            # Writing the same data again has changed its time, and its set-id bits without rights.
            path = f"/proc/self/fd/{held.fd}"
            if os.fstat(held.fd).st_mode != status.st_mode:
                os.chmod(path, stat.S_IMODE(status.st_mode))
            syscalls.set_times(held.fd, mtime_ns=status.st_mtime_ns)
            return SetAttributes(Target(file), attributes_of(os.fstat(held.fd)))

        def allow(value: bytes) -> Change:
            syscalls.set_xattr(held.fd, CAPABILITY, value)
            return SetXattr(Target(file), CAPABILITY, value)

        c.note(inode, settle)
        if rights is not None:
            # It has taken these, too, on both nodes.
            c.note(inode, partial(allow, rights))

    def _name(self, unique: int, source: Node, parent: Node, name: bytes) -> None:
        c = self._c

        def operation(_: FileId, again: bool) -> tuple[Change, bytes]:
            directory = c.store.directory(parent.file)
            first = _first_name(source.file)
            try:
                syscalls.rename(directory.fd, first, directory.fd, name, RENAME_NOREPLACE)
            except (FileNotFoundError, FileExistsError):
                if not again or c.look(parent, name)[0] != source.handle:
                    raise
            node = c.nodes.looked_up(source.handle, source.file, False)
            entry = protocol.encode_entry(node.number, c.status(node), c.valid_s)
            mtime_ns = os.fstat(directory.fd).st_mtime_ns
            file = parent.file
            return Rename(file, first, file, name, RENAME_NOREPLACE, mtime_ns, mtime_ns), entry

        records = (Record(RecordKind.DIRECTORY, parent.file),)
        c.operation(unique, records, operation, Doubt([parent, source]))


def _divided(xattrs: dict[bytes, bytes]) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """As many as one frame surely holds, and the rest."""
    size = 0
    first: dict[bytes, bytes] = {}
    others: dict[bytes, bytes] = {}
    for name, value in xattrs.items():
        size += len(name) + len(value)
        (first if size <= _XATTRS_LIMIT else others)[name] = value
    return first, others


def _first_name(file: FileId) -> bytes:
    return b".hyperha-" + file.hex().encode()


def _reserved(descriptor: int) -> list[tuple[int, int]]:
    """(offset, length) of all room that is reserved in a file and not written."""
    found: list[tuple[int, int]] = []
    position = 0
    while position < OFFSET_LIMIT:
        ranges, position = allocation.reserved(descriptor, position, OFFSET_LIMIT)
        found += ranges
    return found


def _exists(connection: Connection, parent: Node, name: bytes) -> bool:
    try:
        connection.look(parent, name)
    except FileNotFoundError:
        return False
    return True
