"""Requests about inodes: attributes, sizes, extended attributes, link texts, room.

Times come from the backing file. Set-id bits and capabilities are cleared here, since the kernel
leaves that to the file system (HANDLE_KILLPRIV_V2, M8), and replicated as ordinary changes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from hyperha.replication import identity, syscalls
from hyperha.replication.fuse import protocol
from hyperha.replication.fuse.connection import Connection
from hyperha.replication.fuse.nodes import Doubt, Node
from hyperha.replication.fuse.protocol import Feature, Op
from hyperha.replication.fuse.requests_names import Handler
from hyperha.replication.operations import (
    NO_ID,
    Change,
    FileId,
    InDoubt,
    Record,
    RecordKind,
    SetAttributes,
    SetXattr,
    Truncate,
)
from hyperha.replication.privileges import CAPABILITY, SET_ID, capability
from hyperha.replication.store import Descriptor, attributes_of
from hyperha.replication.syscalls import Now

Step = tuple[tuple[Record, ...], Callable[[], Change | None]]

_ACCESS_LIST: Final = b"system.posix_acl_access"
_OWNERS: Final = protocol.SETATTR_UID | protocol.SETATTR_GID
_TIMES: Final = protocol.SETATTR_ATIME | protocol.SETATTR_MTIME
_SENT: Final = _OWNERS | protocol.SETATTR_MODE | protocol.SETATTR_MTIME
_UNCHANGED: Final = -1
_XATTR_LIMIT: Final = 65536


class AttributeRequests:
    """Handlers of the requests that concern an inode rather than a name or its data."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self._buffer = connection.buffer
        self._view = connection.view
        self.room_limit: int | None = None
        """Bytes free on the peer: statfs never shows more (D11). None: not known."""

    def handlers(self) -> dict[int, Handler]:
        """Request codes and who handles them."""
        return {
            Op.GETATTR: self._getattr,
            Op.SETATTR: self._setattr,
            Op.READLINK: self._readlink,
            Op.STATFS: self._statfs,
            Op.SETXATTR: self._setxattr,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.REMOVEXATTR: self._removexattr,
        }

    def inode_records(self, node: Node) -> tuple[Record, ...]:
        """The record of an inode's attributes; of its directory where it cannot carry an id."""
        if node.file != NO_ID or self._c.store.privileged or node.directory:
            return (Record(RecordKind.INODE, self._c.ensure_id(node)),)
        return (Record(RecordKind.DIRECTORY, self._c.target(node).parent),)

    # --- attributes -----------------------------------------------------------------------

    def _status(self, node: Node, fh: int | None) -> os.stat_result:
        handle = None if fh is None else self._c.handles.by_number.get(fh)
        if handle is not None and handle.descriptor is not None:
            return os.fstat(handle.descriptor.fd)
        return self._c.status(node)

    def _getattr(self, unique: int, number: int, length: int) -> None:
        c = self._c
        flags, _, fh = protocol.GETATTR_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        status = self._status(c.node(number), fh if flags & protocol.GETATTR_FH else None)
        c.answer(unique, protocol.encode_attributes_answer(status, c.valid_s))

    def _setattr(self, unique: int, number: int, length: int) -> None:
        c = self._c
        c.check_writable()
        values = protocol.SETATTR_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        valid, _, fh, size = values[:4]
        node = c.node(number)
        handle = fh if valid & protocol.SETATTR_FH else None
        steps: list[Step] = []
        if valid & protocol.SETATTR_SIZE:
            if not node.clean:
                steps += self.privilege_steps(node, bool(valid & protocol.SETATTR_KILL_SUIDGID))
            steps.append(self.truncation(node, size, handle))
        if valid & (_SENT | _TIMES):
            if valid & _OWNERS and not node.clean:
                steps += self.privilege_steps(node, c.owner()[0] != 0)
            steps.append((self.inode_records(node), self._attribute_step(node, values)))
            node.clean = False
        if node.orphan:
            c.save_orphan(node)
            for _, execute in steps:
                execute()
            steps = []

        def payload() -> bytes:
            return protocol.encode_attributes_answer(self._status(node, handle), c.valid_s)

        for records, execute in steps[:-1]:
            c.note(records, execute)
        if steps:
            c.change(unique, *steps[-1], payload, lambda: c.notifier.settle(Doubt([node])))
        else:
            c.answer(unique, payload())

    def _attribute_step(self, node: Node, values: tuple[int, ...]) -> Callable[[], Change | None]:
        c = self._c
        valid, mode, uid, gid = values[0], values[11], values[13], values[14]

        def change(held: Descriptor) -> None:
            path = f"/proc/self/fd/{held.fd}"
            if valid & _OWNERS:
                os.chown(
                    path,
                    uid if valid & protocol.SETATTR_UID else _UNCHANGED,
                    gid if valid & protocol.SETATTR_GID else _UNCHANGED,
                )
            if valid & protocol.SETATTR_MODE:
                os.chmod(path, stat.S_IMODE(mode))
            if valid & _TIMES:
                _set_times(held, values)

        def execute() -> Change | None:
            held = c.descriptor(node)
            before = attributes_of(os.fstat(held.fd))
            try:
                change(held)
            except OSError as error:
                if attributes_of(os.fstat(held.fd)) != before:
                    raise InDoubt(error.errno, f"setattr: {error.strerror}") from error
                raise
            if not valid & _SENT:
                # Only the time of last access, which is not replicated (Z9).
                return None
            return SetAttributes(c.target(node), attributes_of(os.fstat(held.fd)))

        return execute

    def truncation(self, node: Node, size: int, fh: int | None) -> Step:
        """Set the size of a file: the zones that are cut off may differ until the peer has it."""
        c = self._c
        if node.directory:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not node.orphan:
            c.ensure_id(node)
        held = self.data(node, fh)
        former = os.fstat(held.fd).st_size
        records = (
            Record(RecordKind.INODE, node.file),
            *c.data_records(node.file, size, max(size, former)),
        )

        def execute() -> Change:
            os.ftruncate(held.fd, size)
            return Truncate(node.file, size, os.fstat(held.fd).st_mtime_ns)

        return records, execute

    def data(self, node: Node, fh: int | None) -> Descriptor:
        """A descriptor to read and write a file: that of an open handle, or one by id."""
        c = self._c
        handle = None if fh is None else c.handles.by_number.get(fh)
        if handle is not None and handle.descriptor is not None:
            return handle.descriptor
        if node.orphan:
            return Descriptor(c.store.reopen(c.descriptor(node), os.O_RDWR), writable=True)
        if node.file == NO_ID:
            return c.store.open_data(c.descriptor(node))
        return c.store.data(node.file)

    def privilege_steps(self, node: Node, kill_set_id: bool) -> list[Step]:
        """What a write, truncation or new owner takes from a file: capabilities, set-id bits."""
        c = self._c
        held = c.descriptor(node)
        status = os.fstat(held.fd)
        capable = not stat.S_ISDIR(status.st_mode) and capability(held.fd) is not None
        set_id = bool(status.st_mode & SET_ID)
        mode = self._c.without_set_id(status) if set_id and kill_set_id else status.st_mode
        steps: list[Step] = []
        records = self.inode_records(node)

        def drop_capability() -> Change:
            os.removexattr(b"/proc/self/fd/%d" % held.fd, CAPABILITY)
            return SetXattr(c.target(node), CAPABILITY, None)

        def drop_set_id() -> Change:
            os.chmod(f"/proc/self/fd/{held.fd}", stat.S_IMODE(mode))
            return SetAttributes(c.target(node), attributes_of(os.fstat(held.fd)))

        if capable:
            steps.append((records, drop_capability))
        # A new owner takes them from whatever is no directory; only files are written to here.
        if mode != status.st_mode and not stat.S_ISDIR(mode):
            steps.append((records, drop_set_id))
        # With steps to take it is clean only after them, and each of them may fail.
        node.clean = not steps and not mode & SET_ID
        return steps

    def _readlink(self, unique: int, number: int, length: int) -> None:
        held = self._c.descriptor(self._c.node(number))
        self._c.answer(unique, os.readlink(b"", dir_fd=held.fd))

    def _statfs(self, unique: int, number: int, length: int) -> None:
        s = self._c.store.statfs()
        free, available = s.f_bfree, s.f_bavail
        if self.room_limit is not None:
            limit = self.room_limit // s.f_frsize
            free, available = min(free, limit), min(available, limit)
        answer = protocol.STATFS_OUT.pack(
            s.f_blocks, free, available, s.f_files, s.f_ffree, s.f_bsize, s.f_namemax, s.f_frsize, 0
        )
        self._c.answer(unique, answer)

    # --- extended attributes --------------------------------------------------------------

    def _sized(self, unique: int, size: int, value: bytes) -> None:
        """Answer with a value, or with its length when no room was offered."""
        if size == 0:
            self._c.answer(unique, protocol.SIZE_OUT.pack(len(value), 0))
        elif len(value) > size:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        else:
            self._c.answer(unique, value)

    def _getxattr(self, unique: int, number: int, length: int) -> None:
        c = self._c
        size, _ = protocol.GETXATTR_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        name = bytes(self._view[protocol.IN_SIZE + protocol.GETXATTR_IN.size : length - 1])
        node = c.node(number)
        if identity.is_hidden_xattr(name):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        held = c.descriptor(node)
        self._sized(unique, size, os.getxattr(b"/proc/self/fd/%d" % held.fd, name))

    def _listxattr(self, unique: int, number: int, length: int) -> None:
        c = self._c
        size, _ = protocol.GETXATTR_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        uid, _ = protocol.OWNER.unpack_from(self._buffer, protocol.OWNER_OFFSET)
        held = c.descriptor(c.node(number))
        names = [os.fsencode(name) for name in os.listxattr(b"/proc/self/fd/%d" % held.fd)]
        shown = [
            name + b"\0"
            for name in names
            if not identity.is_hidden_xattr(name) and (uid == 0 or name[:8] != b"trusted.")
        ]
        self._sized(unique, size, b"".join(shown))

    def _setxattr(self, unique: int, number: int, length: int) -> None:
        c = self._c
        form = protocol.SETXATTR_IN
        kill = 0
        if c.features & Feature.SETXATTR_EXT:
            size, flags, kill, _ = form.unpack_from(self._buffer, protocol.IN_SIZE)
        else:
            form = protocol.SETXATTR_IN_OLD
            size, flags = form.unpack_from(self._buffer, protocol.IN_SIZE)
        name, rest = bytes(self._view[protocol.IN_SIZE + form.size : length]).split(b"\0", 1)
        value = rest[:size]
        node = self._xattr_target(number, name)

        def execute(_: FileId, again: bool) -> tuple[Change, bytes]:
            held = c.descriptor(node)
            syscalls.set_xattr(held.fd, name, value, 0 if again else flags)
            return SetXattr(c.target(node), name, value), b""

        self._xattr_operation(unique, node, execute)
        if kill & protocol.SETXATTR_ACL_KILL_SGID and name == _ACCESS_LIST:
            # Asked for with default lists too, which on other file systems take no bits away.
            self._drop_group_bit(node)

    def _drop_group_bit(self, node: Node) -> None:
        c = self._c
        held = c.descriptor(node)
        status = os.fstat(held.fd)
        if not status.st_mode & stat.S_ISGID or node.orphan:
            return

        def execute() -> Change:
            os.chmod(f"/proc/self/fd/{held.fd}", stat.S_IMODE(status.st_mode) & ~stat.S_ISGID)
            return SetAttributes(c.target(node), attributes_of(os.fstat(held.fd)))

        c.note(self.inode_records(node), execute)

    def _removexattr(self, unique: int, number: int, length: int) -> None:
        c = self._c
        name = bytes(self._view[protocol.IN_SIZE : length - 1])
        node = self._xattr_target(number, name)

        def execute(_: FileId, again: bool) -> tuple[Change, bytes]:
            held = c.descriptor(node)
            try:
                os.removexattr(b"/proc/self/fd/%d" % held.fd, name)
            except OSError as error:
                if not (again and error.errno == errno.ENODATA):
                    raise
            return SetXattr(c.target(node), name, None), b""

        self._xattr_operation(unique, node, execute)

    def _xattr_target(self, number: int, name: bytes) -> Node:
        self._c.check_writable()
        if identity.is_hidden_xattr(name):
            raise OSError(errno.EPERM, "this attribute belongs to hyperha")
        node = self._c.node(number)
        node.clean = False
        return node

    def _xattr_operation(
        self,
        unique: int,
        node: Node,
        execute: Callable[[FileId, bool], tuple[Change, bytes]],
    ) -> None:
        if node.orphan:
            self._c.save_orphan(node)
            _, payload = execute(NO_ID, False)
            self._c.answer(unique, payload)
            return
        self._c.operation(unique, self.inode_records(node), execute, Doubt([node]))


def _set_times(held: Descriptor, values: tuple[int, ...]) -> None:
    valid = values[0]
    atime: int | Now | None = None
    mtime: int | Now | None = None
    if valid & protocol.SETATTR_ATIME:
        atime = values[5] * 1_000_000_000 + values[8]
        if valid & protocol.SETATTR_ATIME_NOW:
            atime = Now.NOW
    if valid & protocol.SETATTR_MTIME:
        mtime = values[6] * 1_000_000_000 + values[9]
        if valid & protocol.SETATTR_MTIME_NOW:
            mtime = Now.NOW
    syscalls.set_times(held.fd, mtime_ns=mtime, atime_ns=atime)
