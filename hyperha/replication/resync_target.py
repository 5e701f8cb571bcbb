"""The target's side of a resync: make this copy equal, frame by frame, in stream order (R13, Z5).

Directories are reconciled to the source's listings; what has no place there is moved aside until
the last directory is done, so that what has only moved is found by its id. Zones are compared by
digest, and only below the current size: a block never extends a file. Until a mark is clean the
trees may differ, so that live changes may fail here; they are reported and settled by the source.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import replace
from typing import Final

import xxhash

from hyperha.core.actions import SessionStart
from hyperha.errors import ReplicationError
from hyperha.replication import allocation, syscalls, wire
from hyperha.replication.aside import Aside, is_aside
from hyperha.replication.buffers import Buffers
from hyperha.replication.comparison import COMPARISONS, CompareSide
from hyperha.replication.handshake import Hello
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import (
    NO_ID,
    OFFSET_LIMIT,
    ROOT_ID,
    Attributes,
    Create,
    FileId,
    Link,
    Record,
    RecordKind,
    SetAttributes,
    SetXattr,
    Target,
    Truncate,
)
from hyperha.replication.store import Entry, Store
from hyperha.replication.trees import is_below, name_in, open_above
from hyperha.replication.wire import BLOCK_BYTES, ZONE_BYTES, Frame, Kind
from hyperha.replication.wire_changes import (
    Inode,
    ListedEntry,
    Listing,
    decode_inode,
    decode_listing,
)

log = logging.getLogger(__name__)

_PUNCH: Final = syscalls.FALLOC_PUNCH_HOLE | syscalls.FALLOC_KEEP_SIZE
_FRAMES: Final = 1024
"""Of one inode or one listing: Linux lists 64 KiB of names of attributes at most, each of which
holds 64 KiB; a directory of millions of entries needs no more either."""
_UNSETTLED: Final = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.EINVAL, errno.EEXIST)


class TargetSide:
    """One session's resync on the target; used by the applier's thread only."""

    def __init__(self, store: Store, intent: IntentLog, tag: int, hello: Hello) -> None:
        self.lenient = hello.start is not SessionStart.IN_SYNC
        self._store = store
        self._intent = intent
        self._tag = tag
        self._seed = hello.seed
        self._compare = CompareSide(store, tag, hello.seed)
        self._reading = memoryview(Buffers().take(ZONE_BYTES))
        self._full = hello.start is SessionStart.FULL
        self._dirty = False
        self._reported: set[Record] = set()
        """Told as unsettled, and not yet looked at again by the source."""
        self._unequal: set[FileId] = set()
        """Directories that were told as unsettled and not listed since."""
        self._begun: list[bytes | memoryview] = []
        """Payloads of the frames before the last one of an inode or a listing,"""
        self._begun_kind = Kind.MARK
        """and which of both it is."""
        self._aside = Aside(store)

    def handle(self, frame: Frame) -> bytes | None:
        """Perform one frame; the answer that the source waits for, if it waits for one."""
        if frame.kind in COMPARISONS:
            return self._compare.answer(frame)
        if not self.lenient:
            raise ReplicationError(f"a {frame.kind.name} frame outside a resync")
        # Every id, before anything is moved aside: what stands in a directory that was away while
        # the ids were learned would be taken for missing and made a second time (Z3).
        self._store.learn_all()
        self._aside.learn()
        if self._begun and frame.kind is not self._begun_kind:
            raise ReplicationError(f"{self._begun_kind.name} frames end in {frame.kind.name}")
        if frame.kind in (Kind.INODE, Kind.LISTING):
            return self._joined(frame)
        if frame.kind is Kind.BLOCK:
            return self._block(frame)
        if frame.kind is Kind.DIGESTS:
            return self._digests(frame)
        if frame.kind is Kind.HOLE:
            return self._hole(frame)
        if frame.kind is Kind.RESERVE:
            return self._reserve(frame)
        return self._mark(frame)

    def _joined(self, frame: Frame) -> bytes | None:
        """Perform what comes in several frames when the last one is here."""
        if not frame.flags & wire.FLAG_LAST:
            if len(self._begun) >= _FRAMES:
                raise ReplicationError(
                    f"{frame.kind.name}: one of more than {_FRAMES} frames is too large"
                )
            self._begun.append(frame.payload)
            self._begun_kind = frame.kind
            return None
        whole = frame
        if self._begun:
            whole = frame._replace(payload=b"".join((*self._begun, frame.payload)))
        answer = self._inode(whole) if frame.kind is Kind.INODE else self._listing(whole)
        # Only now: with more room the same frame is tried again.
        self._begun = []
        return answer

    def unsettled(self, records: tuple[Record, ...], number: int = 0) -> bytes:
        """The frame that tells the source what could not be applied; empty if it knows already."""
        self._dirty = True
        self._unequal.update(one.file for one in records if one.kind is RecordKind.DIRECTORY)
        if not number:
            records = tuple(one for one in records if one not in self._reported)
            self._reported.update(records)
            if not records:
                return b""
        payload = wire.encode_records(records)
        return wire.frame(Kind.UNSETTLED, self._tag, number, payload)

    def doubtful(self, records: tuple[Record, ...]) -> bool:
        """Whether a change that worked may have met other inodes than on the source."""
        return any(one.file in self._unequal for one in records)

    # --- directories ----------------------------------------------------------------------

    def _listing(self, frame: Frame) -> bytes:
        listing = decode_listing(frame.payload)
        directory = Record(RecordKind.DIRECTORY, listing.directory.target.file)
        self._reported.discard(directory)
        self._intent.activate([directory], frame.number)
        try:
            need = self._reconcile(listing)
        except OSError as error:
            if error.errno not in _UNSETTLED:
                raise
            log.info("directory %s is not settled: %s", directory.file.hex(), error)
            return self.unsettled((directory,), frame.number)
        self._unequal.discard(directory.file)
        return self._answer(frame.number, need)

    def _answer(self, number: int, need: list[Record]) -> bytes:
        size = wire.RECORDS_PER_FRAME
        parts = [need[at : at + size] for at in range(0, len(need), size)] or [[]]
        return b"".join(
            wire.frame(
                Kind.RECONCILED,
                self._tag,
                number,
                wire.encode_records(part),
                wire.FLAG_LAST if part is parts[-1] else 0,
            )
            for part in parts
        )

    def _reconcile(self, listing: Listing) -> list[Record]:
        """Give a directory exactly the source's entries. What the source must send for that."""
        store, directory = self._store, listing.directory.target.file
        wanted = {entry.name: entry for entry in listing.entries}
        present = {}
        adopted: dict[FileId, bytes] = {}
        for entry in store.list(directory):
            one = wanted.get(entry.name)
            if (
                one is not None
                and self._may_stay(directory, one, entry)
                and _is_alone(adopted, one, entry)
            ):
                present[entry.name] = entry
            else:
                self._aside.move(directory, entry.name)
        need: list[Record] = []
        self._remember(listing, present)
        for one in listing.entries:
            here = present.get(one.name)
            if here is not None and here.file != one.file:
                store.assign_id(here.handle, one.file)
                need.append(_everything_of(one))
        for one in listing.entries:
            if one.name not in present:
                self._place(directory, one, need)
            self._settle(_target(directory, one), one.attributes, one.xattrs, sized=False)
        self._settle(
            listing.directory.target,
            listing.directory.attributes,
            listing.directory.xattrs,
            sized=False,
        )
        return need

    def _remember(self, listing: Listing, present: dict[bytes, Entry]) -> None:
        """What is about to be made or adopted lacks its content until the source has sent it:
        durable before, since a cut would leave an inode that only looks equal (Z2)."""
        records = []
        for one in listing.entries:
            here = present.get(one.name)
            if one.file == NO_ID or (here is not None and here.file == one.file):
                continue
            if here is not None or not self._store.known(one.file):
                records += [_everything_of(one), Record(RecordKind.INODE, one.file)]
        self._intent.activate(records, 0)

    def _may_stay(self, directory: FileId, one: ListedEntry, here: Entry) -> bool:
        """Whether the inode here is, or may become, what the source has under this name."""
        if stat.S_IFMT(one.attributes.mode) != stat.S_IFMT(here.attributes.mode):
            return False
        if here.file == one.file and one.file != NO_ID:
            return True
        if stat.S_ISLNK(one.attributes.mode):
            place = Target(NO_ID, directory, here.name)
            if self._store.symlink_target(place) != one.symlink_target:
                return False
        if one.attributes.rdev != here.attributes.rdev:
            return False
        if one.file == NO_ID:
            return here.file == NO_ID
        if self._store.known(one.file):
            # The source's inode is somewhere else here: it comes to this place.
            return False
        # Adopt an inode without identity; in a full compare also one of another history.
        return here.file == NO_ID or (self._full and (here.directory or here.nlink == 1))

    def _place(self, directory: FileId, one: ListedEntry, need: list[Record]) -> None:
        """Bring the inode that the source has under this name: found by id, or made."""
        if one.file != NO_ID and self._bring(directory, one):
            return
        # Empty: its size comes with the inode, when no write is under way on the source (Z5).
        attributes = replace(one.attributes, size=0)
        change = Create(
            directory, one.name, one.file, attributes, 0, one.symlink_target, one.xattrs
        )
        self._store.apply(change)
        if stat.S_ISDIR(one.attributes.mode) or stat.S_ISREG(one.attributes.mode):
            need.append(_everything_of(one))

    def _bring(self, directory: FileId, one: ListedEntry) -> bool:
        store = self._store
        if not store.known(one.file):
            return False
        mode = store.attributes(Target(one.file)).mode
        if stat.S_IFMT(mode) != stat.S_IFMT(one.attributes.mode):
            store.forget(one.file)
            return False
        if not stat.S_ISDIR(mode):
            try:
                store.apply(Link(Target(one.file), directory, one.name, 0))
            except OSError:
                if store.status(Target(one.file)).st_nlink:
                    raise
                # Its last name is gone: only a descriptor keeps it.
                store.forget(one.file)
                return False
            return True
        if not store.status(Target(one.file)).st_nlink:
            store.forget(one.file)
            return False
        moving = store.directory(one.file)
        root = store.directory(ROOT_ID)
        if not is_below(root.fd, moving.fd):
            raise OSError(errno.ESTALE, "the directory is not in the folder any more")
        old_parent = open_above(root.fd, moving.fd)
        try:
            old_name = name_in(old_parent, moving.fd)
            if old_name is None:
                raise OSError(errno.ESTALE, "the directory was moved meanwhile")
            held = store.directory(directory)
            guard = store.guard
            if guard is not None:
                # None where the path is longer than the kernel can say: nothing aside has such.
                if not is_aside(store.path_of(one.file) or b""):
                    guard.directory(old_parent)
                guard.directory(held.fd)
                guard.moved(old_parent, old_name)
            syscalls.rename(old_parent, old_name, held.fd, one.name, 0)
        finally:
            os.close(old_parent)
        return True

    # --- inodes ---------------------------------------------------------------------------

    def _inode(self, frame: Frame) -> bytes:
        inode = decode_inode(frame.payload)
        record = Record(RecordKind.INODE, inode.target.file)
        self._reported -= {record, Record(RecordKind.WHOLE_FILE, inode.target.file)}
        self._intent.activate([record], frame.number)
        try:
            self._check_type(inode)
            self._settle(inode.target, inode.attributes, inode.xattrs, sized=True)
        except OSError as error:
            if error.errno not in _UNSETTLED:
                raise
            return self.unsettled((record,), frame.number)
        return self._answer(frame.number, [])

    def _check_type(self, inode: Inode) -> None:
        mode = self._store.attributes(inode.target).mode
        if stat.S_IFMT(mode) != stat.S_IFMT(inode.attributes.mode):
            raise OSError(errno.ESTALE, "an inode of another type carries the id")

    def _settle(
        self,
        target: Target,
        wanted: Attributes,
        xattrs: tuple[tuple[bytes, bytes], ...],
        *,
        sized: bool,
    ) -> None:
        """Owner, mode and attributes as on the source; of a regular file size, mtime and extended
        attributes only if `sized`."""
        store = self._store
        mine = store.attributes(target)
        regular = stat.S_ISREG(wanted.mode) and target.file != NO_ID
        if regular and not sized:
            # A listing may be older than a write whose time is in the stream already (Z9); the
            # inode's own frame has it.
            wanted = replace(wanted, mtime_ns=mine.mtime_ns)
        if sized and regular and mine.size != wanted.size:
            # Only here and by live truncations a resync changes a size (Z5).
            store.apply(Truncate(target.file, wanted.size, wanted.mtime_ns))
        present = store.xattrs(target)
        # What a new owner takes from a file that was listed is given back.
        given = present if regular and not sized else dict(xattrs)
        if (mine.uid, mine.gid) != (wanted.uid, wanted.gid) or present != given:
            # Before the attributes of other kinds: a new owner clears capabilities.
            store.apply(SetAttributes(target, wanted))
            present = store.xattrs(target)
            for name in present.keys() - given.keys():
                store.apply(SetXattr(target, name, None), again=True)
            for name, value in given.items():
                if present.get(name) != value:
                    store.apply(SetXattr(target, name, value))
        mine = store.attributes(target)
        if replace(mine, size=wanted.size) != wanted:
            store.apply(SetAttributes(target, wanted))

    # --- data -----------------------------------------------------------------------------

    def _digests(self, frame: Frame) -> bytes:
        zone = wire.decode_digests(frame.payload)
        store, file = self._store, zone.file
        self._intent.activate(
            [Record(RecordKind.ZONE, file, zone.offset // ZONE_BYTES)], frame.number
        )
        different = []
        try:
            length = len(zone.digests) * BLOCK_BYTES
            # First: once it was read, room that was never written counts as data.
            ranges = store.data_ranges(file, zone.offset, zone.offset + length)
            data = self._reading[: store.read_into(file, zone.offset, self._reading[:length])]
            for i, digest in enumerate(zone.digests):
                start = i * BLOCK_BYTES
                if digest is None:
                    self._punch(file, zone.offset + start, BLOCK_BYTES, ranges)
                elif digest != xxhash.xxh3_128_digest(
                    data[start : start + BLOCK_BYTES], self._seed
                ):
                    different.append(i)
            guard = store.guard
            if guard is not None:
                # The source sends these next: saved together, with one wait for the disk.
                guard.prepare(
                    store,
                    [(file, zone.offset + i * BLOCK_BYTES, BLOCK_BYTES) for i in different],
                )
        except OSError as error:
            if error.errno not in _UNSETTLED:
                raise
            return self.unsettled((Record(RecordKind.WHOLE_FILE, file),), frame.number)
        payload = wire.encode_different(different)
        return wire.frame(Kind.DIFFERENT, self._tag, frame.number, payload)

    def _punch(self, file: FileId, offset: int, length: int, ranges: list[tuple[int, int]]) -> None:
        """Make a hole where there is data: holes stay holes."""
        end = offset + length
        for start, size in ranges:
            if start < end and start + size > offset:
                held = self._store.data(file)
                first = max(start, offset)
                last = min(start + size, end)
                if last >= os.fstat(held.fd).st_size:
                    # A page is freed only if all of it goes: here it is more than its data.
                    last = min(-(-last // BLOCK_BYTES) * BLOCK_BYTES, OFFSET_LIMIT)
                guard = self._store.guard
                if guard is not None:
                    handle = self._store.handle(file)
                    guard.data(held.fd, handle, first, last - first)
                syscalls.allocate(held.fd, _PUNCH, first, last - first)

    def _hole(self, frame: Frame) -> bytes | None:
        file, offset, length = wire.decode_hole(frame.payload)
        try:
            ranges = self._store.data_ranges(file, offset, offset + length)
            if ranges:
                self._intent.activate([Record(RecordKind.WHOLE_FILE, file)], frame.number)
                self._punch(file, offset, length, ranges)
        except OSError as error:
            if error.errno not in _UNSETTLED:
                raise
            return self.unsettled((Record(RecordKind.WHOLE_FILE, file),))
        return None

    def _reserve(self, frame: Frame) -> bytes | None:
        file, offset, length = wire.decode_hole(frame.payload)
        try:
            allocation.take(self._store, self._intent, frame.number, (file, offset, length))
        except OSError as error:
            if error.errno not in _UNSETTLED:
                raise
            return self.unsettled((Record(RecordKind.INODE, file),))
        return None

    def _block(self, frame: Frame) -> bytes | None:
        file, offset, data = wire.decode_block(frame.payload)
        try:
            room = self._store.attributes(Target(file)).size - offset
            if room > 0:
                self._intent.activate(
                    [Record(RecordKind.ZONE, file, offset // ZONE_BYTES)], frame.number
                )
                piece = data[:room]
                if self._store.write(file, offset, piece) != len(piece):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if error.errno not in _UNSETTLED:
                raise
            return self.unsettled((Record(RecordKind.WHOLE_FILE, file),))
        return None

    # --- the end --------------------------------------------------------------------------

    def _mark(self, frame: Frame) -> bytes:
        """Clean when nothing was left unsettled since the last mark; then the trees are equal."""
        clean = not self._dirty
        self._dirty = False
        if clean:
            self.lenient = False
            self._aside.purge()
        return wire.frame(
            Kind.MARKED, self._tag, frame.number, b"", wire.FLAG_CLEAN if clean else 0
        )


def _is_alone(adopted: dict[FileId, bytes], one: ListedEntry, here: Entry) -> bool:
    """Two names of one inode on the source may be two inodes here: only one can become it."""
    if one.file == NO_ID:
        return True
    return adopted.setdefault(one.file, here.handle) == here.handle


def _target(directory: FileId, one: ListedEntry) -> Target:
    if one.file != NO_ID:
        return Target(one.file)
    return Target(NO_ID, directory, one.name)


def _everything_of(one: ListedEntry) -> Record:
    if stat.S_ISDIR(one.attributes.mode):
        return Record(RecordKind.DIRECTORY, one.file)
    return Record(RecordKind.WHOLE_FILE, one.file)
