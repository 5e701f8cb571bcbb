"""What is compared when nothing is to be changed: digests of zones, inodes and directories (R17).

Both nodes compute them here, so that equal copies give equal digests: regular files without what
one node alone knows, entries in the order of their names. `CompareSide` answers for the secondary.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import xxhash

from hyperha.replication import wire
from hyperha.replication.operations import NO_ID, ROOT_ID, FileId, Target
from hyperha.replication.store import Store
from hyperha.replication.wire import BLOCK_BYTES, Frame, Kind
from hyperha.replication.wire_changes import Inode, ListedEntry, Listing, encode_inode, put_entry
from hyperha.text import clean

_PATH_LIMIT: Final = 200
"""Characters: what tells of many paths must fit into one message."""
COMPARISONS: Final = (Kind.COMPARE, Kind.COMPARE_INODE, Kind.COMPARE_LISTING)


def ordered(found: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Extended attributes in the order in which they are compared and sent."""
    return tuple(sorted(found.items()))


def inode_of(store: Store, target: Target) -> Inode:
    """An inode as it is now. Raises OSError."""
    return Inode(target, store.attributes(target), ordered(store.xattrs(target)))


def listing_of(store: Store, directory: FileId) -> Listing:
    """A directory as it is now; nothing is given an identity by looking. Raises OSError."""
    entries = []
    for entry in store.list(directory):
        target = Target(entry.file)
        if entry.file == NO_ID:
            target = Target(NO_ID, directory, entry.name)
        link = store.symlink_target(target) if stat.S_ISLNK(entry.attributes.mode) else b""
        xattrs = ordered(store.xattrs(target))
        entries.append(
            ListedEntry(entry.name, entry.file, entry.attributes, xattrs, entry.nlink, link)
        )
    return Listing(inode_of(store, Target(directory)), tuple(entries))


def inode_digest(inode: Inode, seed: int) -> bytes:
    """Of size, mode, owner, mtime and extended attributes."""
    return xxhash.xxh3_128_digest(encode_inode(inode), seed)


def listing_digest(listing: Listing, seed: int) -> bytes:
    """Of a directory and its entries. A regular file counts by name, id and links: its own
    attributes, which a write changes before the peer hears of it, are compared by themselves."""
    digest = xxhash.xxh3_128(seed=seed)
    digest.update(encode_inode(listing.directory))
    for entry in sorted(listing.entries, key=lambda one: one.name):
        if stat.S_ISREG(entry.attributes.mode) and entry.file != NO_ID:
            digest.update(b"regular %d " % entry.links + entry.file + entry.name + b"\0")
        elif stat.S_ISDIR(entry.attributes.mode) and entry.file != NO_ID:
            digest.update(b"directory " + entry.file + entry.name + b"\0")
        else:
            digest.update(put_entry(entry))
    return digest.digest()


def zone_digests(store: Store, file: FileId, offset: int, seed: int) -> tuple[bytes, ...]:
    """Of the blocks of a zone, read from the disk as far as nothing of it waits to be written.

    A hole counts as the zeros that a reader gets: how a file system stores them is its own affair.
    """
    held = store.data(file)
    os.posix_fadvise(held.fd, offset, wire.ZONE_BYTES, os.POSIX_FADV_DONTNEED)
    view = memoryview(store.read(file, offset, wire.ZONE_BYTES))
    return tuple(
        xxhash.xxh3_128_digest(view[start : start + BLOCK_BYTES], seed)
        for start in range(0, len(view), BLOCK_BYTES)
    )


class CompareSide:
    """The secondary's answers; used by the applier's thread, so at one position of the stream."""

    def __init__(self, store: Store, tag: int, seed: int) -> None:
        self._store = store
        self._tag = tag
        self._seed = seed

    def answer(self, frame: Frame) -> bytes:
        """The frame that tells what differs; everything does, where this copy lacks the inode."""
        if frame.kind is Kind.COMPARE:
            different = self._zone(frame)
        else:
            file, theirs = wire.decode_digest(frame.payload)
            different = [] if self._same(frame.kind, file, theirs) else [0]
        payload = wire.encode_different(different)
        return wire.frame(Kind.DIFFERENT, self._tag, frame.number, payload)

    def _zone(self, frame: Frame) -> list[int]:
        zone = wire.decode_digests(frame.payload)
        mine: tuple[bytes, ...] = ()
        try:
            # What is no regular file here has no content: opened, it may even make us wait.
            if stat.S_ISREG(self._store.attributes(Target(zone.file)).mode):
                mine = zone_digests(self._store, zone.file, zone.offset, self._seed)
        except OSError as error:
            if not is_gone(error):
                raise
        longer = max(len(mine), len(zone.digests))
        return [
            i
            for i in range(longer)
            if i >= len(mine) or i >= len(zone.digests) or mine[i] != zone.digests[i]
        ]

    def _same(self, kind: Kind, file: FileId, theirs: bytes) -> bool:
        store, seed = self._store, self._seed
        try:
            if kind is Kind.COMPARE_INODE:
                return inode_digest(inode_of(store, Target(file)), seed) == theirs
            return listing_digest(listing_of(store, file), seed) == theirs
        except OSError as error:
            if not is_gone(error):
                raise
            return False


def path_text(store: Store, file: FileId) -> str:
    """Where a file or directory is, for people: the end of a path says more than its beginning."""
    if file == ROOT_ID:
        return "."
    path = store.path_of(file)
    if not path:
        return f"(removed) {file.hex()}"
    return _readable(path)


def entry_text(store: Store, directory: FileId, name: bytes) -> str:
    """`path_text` for an entry, also of an inode that carries no id."""
    path = store.path_of(directory)
    return _readable(path + b"/" + name if path else name)


def _readable(path: bytes) -> str:
    text = clean(path.decode("utf-8", "surrogateescape"))
    return text if len(text) <= _PATH_LIMIT else f"...{text[-_PATH_LIMIT:]}"


def is_gone(error: OSError) -> bool:
    """Whether it says that what was looked at is not there (any more)."""
    return error.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)


@contextmanager
def unless_gone() -> Iterator[None]:
    """A file that the guest removes meanwhile needs nothing more: the peer hears it in order."""
    try:
        yield
    except OSError as error:
        if not is_gone(error):
            raise
