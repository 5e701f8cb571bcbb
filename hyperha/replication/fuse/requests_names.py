"""Requests about names: look up, list, create, remove, rename, link; and forgetting (M8, M13).

Every mutation is a namespace operation of `Connection`: done locally first, sent with its result,
answered when the rules allow.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from hyperha.replication import identity, syscalls
from hyperha.replication.changes import RENAME_EXCHANGE, RENAME_NOREPLACE
from hyperha.replication.fuse import local, protocol
from hyperha.replication.fuse.connection import Connection
from hyperha.replication.fuse.listing import Listing
from hyperha.replication.fuse.local import Wish
from hyperha.replication.fuse.nodes import Doubt, Node
from hyperha.replication.fuse.protocol import Op
from hyperha.replication.operations import (
    NO_ID,
    Change,
    FileId,
    Link,
    Record,
    RecordKind,
    Remove,
    Rename,
)
from hyperha.replication.store import PRIVATE_NAME, check_name

Handler = Callable[[int, int, int], None]
"""A handler gets `unique`, the node's number and the request's length; errors are OSError."""

_Executor = Callable[[FileId, bool], tuple[Change | None, bytes]]


class NameRequests:
    """Handlers of the requests that name entries of directories."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self._buffer = connection.buffer
        self._view = connection.view

    def handlers(self) -> dict[int, Handler]:
        """Request codes and who handles them."""
        return {
            Op.LOOKUP: self._lookup,
            Op.FORGET: self._forget,
            Op.BATCH_FORGET: self._batch_forget,
            Op.MKNOD: self._mknod,
            Op.MKDIR: self._mkdir,
            Op.SYMLINK: self._symlink,
            Op.UNLINK: self._unlink,
            Op.RMDIR: self._rmdir,
            Op.RENAME: self._rename,
            Op.RENAME2: self._rename2,
            Op.LINK: self.link,
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.READDIRPLUS: self._readdirplus,
            Op.RELEASEDIR: self._releasedir,
        }

    def _name(self, length: int, skip: int = 0) -> bytes:
        return bytes(self._view[protocol.IN_SIZE + skip : length - 1])

    # --- looking up -----------------------------------------------------------------------

    def _lookup(self, unique: int, number: int, length: int) -> None:
        c = self._c
        parent = c.node(number)
        name = self._name(length)
        node, status = self.resolve(parent, name)
        c.answer(unique, protocol.encode_entry(node.number, status, c.valid_s))

    def resolve(self, parent: Node, name: bytes) -> tuple[Node, os.stat_result]:
        """The node of a name, one lookup counted; on the primary its inode gets an id."""
        c = self._c
        handle, file, status = c.look(parent, name)
        if file == NO_ID and self._may_identify(parent, status.st_mode):
            file = self._identified(parent, name, handle)
        node = c.nodes.looked_up(handle, file, stat.S_ISDIR(status.st_mode))
        if file == NO_ID:
            node.place = (parent, name)
        return node, status

    def _identified(self, parent: Node, name: bytes, handle: bytes) -> FileId:
        """The id that an inode is given, or NO_ID where it cannot carry one: it is looked at and
        read all the same, and what would change it meets the error (`ensure_id`)."""
        try:
            return self._c.identify(parent, name, handle)
        except OSError as error:
            if error.errno not in identity.REFUSED:
                raise
            return NO_ID

    def _may_identify(self, parent: Node, mode: int) -> bool:
        c = self._c
        return (
            c.primary and not parent.orphan and c.store.can_carry_id(mode) and c.pipeline.writable()
        )

    def _forget(self, unique: int, number: int, length: int) -> None:
        (lookups,) = protocol.U64.unpack_from(self._buffer, protocol.IN_SIZE)
        self._c.nodes.forget(number, lookups)

    def _batch_forget(self, unique: int, number: int, length: int) -> None:
        count, _ = protocol.BATCH_FORGET_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        offset = protocol.IN_SIZE + protocol.BATCH_FORGET_IN.size
        for _ in range(count):
            node, lookups = protocol.FORGET_ONE.unpack_from(self._buffer, offset)
            self._c.nodes.forget(node, lookups)
            offset += protocol.FORGET_ONE.size

    # --- creating -------------------------------------------------------------------------

    def parent(self, number: int, name: bytes) -> Node:
        """The directory that a name is to be changed in; EPERM for the engine's own name."""
        c = self._c
        c.check_writable()
        check_name(name)
        if number == protocol.ROOT_NODE and name == PRIVATE_NAME:
            raise OSError(errno.EPERM, "this name belongs to hyperha")
        return c.directory(number)

    def _make(self, unique: int, parent: Node, wish: Wish) -> None:
        c = self._c

        def execute(file: FileId, again: bool) -> tuple[Change, bytes]:
            made = local.make(c.store, wish, file, again=again)
            node = c.nodes.looked_up(made.handle, made.file, stat.S_ISDIR(wish.mode))
            if made.file == NO_ID:
                node.place = (parent, wish.name)
            return made.change, protocol.encode_entry(node.number, made.status, c.valid_s)

        records = (Record(RecordKind.DIRECTORY, parent.file),)
        c.operation(unique, records, execute, Doubt([parent]), creates=True)

    def _mknod(self, unique: int, number: int, length: int) -> None:
        mode, rdev, umask, _ = protocol.MKNOD_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        name = self._name(length, protocol.MKNOD_IN.size)
        parent = self.parent(number, name)
        uid, gid = self._c.owner()
        device = protocol.decode_device(rdev) if rdev else 0
        self._make(unique, parent, Wish(parent.file, name, mode, umask, uid, gid, device))

    def _mkdir(self, unique: int, number: int, length: int) -> None:
        mode, umask = protocol.MKDIR_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        name = self._name(length, protocol.MKDIR_IN.size)
        parent = self.parent(number, name)
        uid, gid = self._c.owner()
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        self._make(unique, parent, Wish(parent.file, name, mode, umask, uid, gid))

    def _symlink(self, unique: int, number: int, length: int) -> None:
        name, target = self._name(length).split(b"\0", 1)
        parent = self.parent(number, name)
        uid, gid = self._c.owner()
        mode = stat.S_IFLNK | 0o777
        self._make(unique, parent, Wish(parent.file, name, mode, 0, uid, gid, 0, target))

    def link(self, unique: int, number: int, length: int) -> None:
        """Another name for an inode that has one."""
        c = self._c
        (source_number,) = protocol.U64.unpack_from(self._buffer, protocol.IN_SIZE)
        name = self._name(length, 8)
        parent, source = self.parent(number, name), c.node(source_number)

        def execute(_: FileId, again: bool) -> tuple[Change, bytes]:
            target = c.target(source)
            directory = c.store.directory(parent.file)
            held = c.descriptor(source)
            try:
                os.link(f"/proc/self/fd/{held.fd}", name, dst_dir_fd=directory.fd)
            except FileExistsError:
                if not again or c.look(parent, name)[0] != source.handle:
                    raise
            node = c.nodes.looked_up(source.handle, source.file, source.directory)
            entry = protocol.encode_entry(node.number, os.fstat(held.fd), c.valid_s)
            return Link(target, parent.file, name, os.fstat(directory.fd).st_mtime_ns), entry

        records = (Record(RecordKind.DIRECTORY, parent.file),)
        c.operation(unique, records, execute, Doubt([parent, source]))

    # --- removing and renaming ------------------------------------------------------------

    def _victim(self, parent: Node, name: bytes) -> Node | None:
        """The node that may lose its last name, made safe for who has it open (Z7)."""
        guard = self._c.store.guard
        if guard is not None:
            held = self._c.directory_descriptor(parent)
            guard.last_name(held.fd, name)
        try:
            handle, _, _ = self._c.look(parent, name)
        except FileNotFoundError:
            return None
        node = self._c.nodes.known(handle)
        self._c.lose_name(node)
        return node

    def _unlink(self, unique: int, number: int, length: int) -> None:
        self._remove(unique, number, self._name(length), directory=False)

    def _rmdir(self, unique: int, number: int, length: int) -> None:
        self._remove(unique, number, self._name(length), directory=True)

    def _remove(self, unique: int, number: int, name: bytes, *, directory: bool) -> None:
        c = self._c
        parent = self.parent(number, name)
        doubt = Doubt([parent], ((parent, name),))

        def execute(_: FileId, again: bool) -> tuple[Change, bytes]:
            held = c.store.directory(parent.file)
            victim = self._victim(parent, name)
            if victim is not None:
                doubt.led.append(victim)
            try:
                if directory:
                    os.rmdir(name, dir_fd=held.fd)
                else:
                    os.unlink(name, dir_fd=held.fd)
            except FileNotFoundError:
                if not again:
                    raise
            finally:
                c.name_lost(victim)
            mtime = os.fstat(held.fd).st_mtime_ns
            return Remove(parent.file, name, directory, mtime), b""

        records = (Record(RecordKind.DIRECTORY, parent.file),)
        c.operation(unique, records, execute, doubt)

    def _rename(self, unique: int, number: int, length: int) -> None:
        (new_number,) = protocol.U64.unpack_from(self._buffer, protocol.IN_SIZE)
        self._move(unique, number, new_number, 0, self._name(length, 8))

    def _rename2(self, unique: int, number: int, length: int) -> None:
        new_number, flags, _ = protocol.RENAME2_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        names = self._name(length, protocol.RENAME2_IN.size)
        self._move(unique, number, new_number, flags, names)

    def _move(self, unique: int, number: int, new_number: int, flags: int, names: bytes) -> None:
        c = self._c
        old_name, new_name = names.split(b"\0", 1)
        old, new = self.parent(number, old_name), self.parent(new_number, new_name)
        exchange = bool(flags & RENAME_EXCHANGE)
        source = self._inode(old, old_name)
        # What was exchanged looks as before: only the inode at the old name tells whether it was.
        mark = c.noted(unique, source) if exchange else b""
        doubt = Doubt([old, new], ((old, old_name), (new, new_name)))

        def execute(_: FileId, again: bool) -> tuple[Change, bytes]:
            done = again and mark != b"" and source != mark
            old_held, new_held = c.store.directory(old.file), c.store.directory(new.file)
            other = c.nodes.known(self._inode(new, new_name)) if exchange else None
            victim = None if exchange else self._victim(new, new_name)
            led = (c.nodes.known(source), other, victim)
            doubt.led += [node for node in led if node is not None]
            guard = c.store.guard
            if guard is not None:
                guard.moved(old_held.fd, old_name)
                guard.moved(new_held.fd, new_name)
            try:
                if not done:
                    syscalls.rename(old_held.fd, old_name, new_held.fd, new_name, flags)
            except FileNotFoundError:
                # Where a predecessor has done it, the old name is gone and the new one there.
                if not again or victim is None:
                    raise
            finally:
                c.name_lost(victim)
            old_mtime, new_mtime = (os.fstat(h.fd).st_mtime_ns for h in (old_held, new_held))
            change = Rename(old.file, old_name, new.file, new_name, flags, old_mtime, new_mtime)
            return change, b""

        parents = {old.file, new.file}
        records = tuple(Record(RecordKind.DIRECTORY, file) for file in sorted(parents))
        c.operation(unique, records, execute, doubt, mark=mark)

    def _inode(self, parent: Node, name: bytes) -> bytes:
        """The handle of what a name leads to; nothing where there is none."""
        try:
            return self._c.look(parent, name)[0]
        except FileNotFoundError:
            return b""

    # --- listing --------------------------------------------------------------------------

    def _opendir(self, unique: int, number: int, length: int) -> None:
        c = self._c
        node = c.node(number)
        if not node.directory:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        handle = c.handles.add(node, os.O_RDONLY, 0, None)
        c.answer(unique, protocol.OPEN_OUT.pack(handle.number, 0, 0))

    def _releasedir(self, unique: int, number: int, length: int) -> None:
        fh, _, _, _ = protocol.RELEASE_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        self._c.handles.remove(fh)
        self._c.answer(unique, b"")

    def _listing(self, fh: int, offset: int) -> tuple[Node, Listing]:
        c = self._c
        handle = c.handles.by_number.get(fh)
        if handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        listing = handle.listing
        if offset == 0 or listing is None:
            inode = c.status(handle.node).st_ino
            found = [] if handle.node.orphan else self._scan(handle.node)
            listing = handle.listing = Listing(inode, found)
        return handle.node, listing

    def _scan(self, node: Node) -> list[tuple[bytes, int, int]]:
        return self._c.store.scan(self._c.directory_descriptor(node))

    def _readdir(self, unique: int, number: int, length: int) -> None:
        fh, offset, size, *_ = protocol.READ_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        parts: list[bytes] = []
        _, listing = self._listing(fh, offset)
        for cookie, (name, inode, kind) in listing.behind(offset):
            part = protocol.encode_dirent(inode, cookie, kind, name)
            size -= len(part)
            if size < 0:
                break
            parts.append(part)
        self._c.answer(unique, b"".join(parts))

    def _readdirplus(self, unique: int, number: int, length: int) -> None:
        fh, offset, size, *_ = protocol.READ_IN.unpack_from(self._buffer, protocol.IN_SIZE)
        node, listing = self._listing(fh, offset)
        parts: list[bytes] = []
        for cookie, (name, inode, kind) in listing.behind(offset):
            dirent = protocol.encode_dirent(inode, cookie, kind, name)
            size -= len(dirent) + protocol.ENTRY_SIZE
            if size < 0:
                break
            parts.append(self._entry(node, name))
            parts.append(dirent)
        self._c.answer(unique, b"".join(parts))

    def _entry(self, parent: Node, name: bytes) -> bytes:
        """The inode beside a listed name; none where looking it up has to do more than look."""
        c = self._c
        if name in (b".", b".."):
            return protocol.NO_ENTRY
        try:
            handle, file, status = c.look(parent, name)
        except OSError:
            return protocol.NO_ENTRY
        if file == NO_ID:
            return protocol.NO_ENTRY
        node = c.nodes.looked_up(handle, file, stat.S_ISDIR(status.st_mode))
        return protocol.encode_entry(node.number, status, c.valid_s)
