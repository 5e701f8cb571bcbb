"""The intent log and dirty map of one copy: what a resync must look at after any crash (Z1-Z6).

One file of fixed slots in the folder's private directory, fully written at creation and overwritten
in place (S2). A record is durable before its operation is applied or sent (Z2); it is retired only
behind a barrier that both nodes completed. While nothing may be retired (the node is alone, or a
resync has not been confirmed) the same records are the dirty map (Z1), in the header's `retained`.
Anything unreadable means that everything is a candidate, never nothing (Z6). So does an operation
that finds no slot, until a barrier covers it: then nothing is owed for it any more, as for one that
has a record (N4). The log knows nothing of sessions and peers: who calls `retire` and `clear`
answers for the barrier.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from typing import Final

import xxhash

from hyperha.replication import syscalls
from hyperha.replication.intent_file import (
    FREE_BODY,
    HANDLE_LIMIT,
    HEADER_AT,
    HEADER_BYTES,
    NAME,
    RECORD,
    RECORD_BYTES,
    Header,
    scan,
    seal,
)
from hyperha.replication.operations import NO_ID, FileId, Record, RecordKind

SLOTS: Final = 8192
"""Slots at creation: 8 GiB of scattered hot zones in 1 MiB."""
SLOTS_LIMIT: Final = 65536
"""The log doubles up to here; beyond, zones of a file coarsen into the whole file (Z5)."""

HOLD: Final = 1 << 62
"""Number of an operation that has none yet: its records cannot be retired meanwhile."""

Key = tuple[int, FileId, int]


class Entry:
    """One record in use. `last` is the number of the last operation that needed it."""

    __slots__ = ("handle", "key", "last", "slot")

    def __init__(self, key: Key, slot: int, last: int, handle: bytes) -> None:
        self.key = key
        self.slot = slot
        self.last = last
        self.handle = handle


class IntentLog:
    """The log of one copy. `activate` is called by one thread at a time; the rest by any.

    `lock` guards `active` and the numbers in it; it is never held across a system call, so that
    the hot path may take it: look the key up, store the operation's number in `Entry.last`.

    A slot belongs to who took it from the free ones, to the entry in `active`, or to who took that
    entry out. Two things need more than that and hold `_settling`, which comes before `lock`:
    zones that are gathered into one record keep their slots while that one is written, so that
    nobody may take them out meanwhile; and whether an operation found no slot must not change
    between the look at it and the header that rests on it.
    """

    def __init__(
        self,
        directory_fd: int,
        resource: str,
        handle_of: Callable[[FileId], bytes],
        *,
        fresh: bool,
        slots: int = SLOTS,
        slots_limit: int = SLOTS_LIMIT,
    ) -> None:
        """Open or create the log in a directory.

        `fresh`: a missing log is an empty one; otherwise a log that is missing, damaged or of
        another resource means that everything is a candidate (Z6, N6).
        """
        self.lock = threading.Lock()
        self.active: dict[Key, Entry] = {}
        self._settling = threading.Lock()
        """See above. Who only takes free slots does without it, so that a record for the data path
        waits for no disk but its own; who retires holds it for as long as memory takes."""
        self._header_lock = threading.Lock()
        """Growing the log and ordering what it means come from different threads."""
        self.order = 0
        """How often it was ordered that records are kept. To be read where `clear` is decided."""
        self._directory = os.dup(directory_fd)
        self._resource = resource
        self._seed = xxhash.xxh3_64_intdigest(resource.encode())
        self._handle_of = handle_of
        self._limit = slots_limit
        self._per_file: dict[FileId, int] = {}
        self._gathered: set[FileId] = set()
        """Files whose zones were coarsened into one record for want of room."""
        self._free: list[int] = []
        self._retaining = False
        self._unrecorded = 0
        """The last operation that found no slot; HOLD when its end is in doubt."""
        self._unnumbered = False
        """One found no slot that has no number yet."""
        self.damage = ""
        """Why everything is a candidate, for people; empty when nothing was damaged."""
        self._header = Header(0, slots, False, False, resource, "")
        self._durable_fd = self._plain_fd = -1
        try:
            self._open(fresh)
        except BaseException:
            self.close()
            raise

    # --- what callers ask -----------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Slots that the file has now."""
        return self._header.slots

    @property
    def used(self) -> int:
        """Records in use."""
        return self._header.slots - len(self._free)

    @property
    def base(self) -> str:
        """The generation that the dirty map is relative to; empty when there is no map."""
        return self._header.base

    @property
    def everything(self) -> bool:
        """Whether every file is a candidate."""
        return self._header.everything

    @property
    def retaining(self) -> bool:
        """Whether records are kept until a finished resync (Z1)."""
        return self._retaining

    @property
    def overflowed(self) -> bool:
        """Whether everything is a candidate for want of a slot only, until a barrier covers it."""
        return self._header.everything and not self._retaining

    def candidates(self) -> list[Record] | None:
        """What a resync must look at; None: everything."""
        if self._header.everything:
            return None
        with self.lock:
            keys = list(self.active)
        return [Record(RecordKind(kind), file, zone) for kind, file, zone in keys]

    def candidate_count(self) -> int:
        """How many records are candidates; -1: everything."""
        return -1 if self._header.everything else len(self.active)

    def handles(self) -> dict[FileId, bytes]:
        """Local file handles of the recorded files, as far as they were known."""
        with self.lock:
            entries = list(self.active.values())
        return {entry.key[1]: entry.handle for entry in entries if entry.handle}

    # --- recording ------------------------------------------------------------------------

    def activate(self, records: Iterable[Record], number: int = HOLD) -> None:
        """Make the records durable for operation `number`; returns at once for warm ones (Z2).

        With HOLD, `touch` must follow when the operation has its number, or has failed.
        """
        cold: list[Key] = []
        with self.lock:
            for record in records:
                key = (int(record.kind), record.file, record.zone)
                if record.file == NO_ID:
                    # Named by its directory's entry; that record stands beside this one.
                    continue
                entry = self.active.get(key) or self._coarser(key)
                if entry is not None:
                    entry.last = max(entry.last, number)
                elif key not in cold:
                    cold.append(key)
        if cold:
            self._record(cold, number)

    def touch(self, records: Iterable[Record], number: int) -> None:
        """Tell the number of the operation that activated the records. The caller has `lock`.

        HOLD: nobody knows what it did, so that only a resync may forget them.
        """
        for record in records:
            key = (int(record.kind), record.file, record.zone)
            entry = self.active.get(key) or self._coarser(key)
            if entry is not None:
                entry.last = number
            elif self._unnumbered and record.file != NO_ID:
                self._unnumbered = False
                self._unrecorded = max(self._unrecorded, number)

    def _coarser(self, key: Key) -> Entry | None:
        """The record that stands for a zone of a file that was coarsened. One that an operation on
        the whole file made does not count: it would be renewed by every write, for ever."""
        if key[0] == RecordKind.ZONE and key[1] in self._gathered:
            return self.active.get((int(RecordKind.WHOLE_FILE), key[1], 0))
        return None

    def _record(self, keys: list[Key], number: int) -> None:
        if len(keys) > len(self._free):
            keys = self._make_room(keys, number)
        if not keys:
            return
        with self.lock:
            slots = sorted(self._free.pop() for _ in keys)
        entries = [
            Entry(key, slot, number, self._handle(key[1]))
            for key, slot in zip(keys, slots, strict=True)
        ]
        try:
            self._write_runs(entries)
        except OSError:
            with self.lock:
                self._free.extend(reversed(slots))
            raise
        with self.lock:
            for entry in entries:
                self.active[entry.key] = entry
                if entry.key[0] == RecordKind.ZONE:
                    self._per_file[entry.key[1]] = self._per_file.get(entry.key[1], 0) + 1

    def _make_room(self, keys: list[Key], number: int) -> list[Key]:
        """What is left to be recorded, for which there are slots then (Z5)."""
        while len(keys) > len(self._free) and self._header.slots < self._limit:
            if not self._grow():
                break
        with self._settling:
            while len(keys) > len(self._free):
                if self._header.everything or not self._coarsen():
                    self._overflow(number)
                    return []
                keys = [key for key in keys if not self._covered_by_file(key, number)]
        return keys

    def _overflow(self, number: int) -> None:
        """No slot: everything is a candidate, durably, before the operation goes on (Z2, Z5). The
        caller has `_settling`. What is retained for another reason stays so (F4)."""
        if not self._header.everything:
            self._write_header(everything=True)
        with self.lock:
            if number < HOLD:
                self._unrecorded = max(self._unrecorded, number)
                return
            if self._unnumbered:
                # Of the former one no number ever came: no barrier is known to cover it.
                self._unrecorded = HOLD
            self._unnumbered = True

    def _covered_by_file(self, key: Key, number: int) -> bool:
        with self.lock:
            coarse = self._coarser(key)
            if coarse is not None:
                coarse.last = max(coarse.last, number)
        return coarse is not None

    def _handle(self, file: FileId) -> bytes:
        try:
            handle = self._handle_of(file)
        except OSError:
            # A file that is about to be created has none yet; the id is enough to find it.
            return b""
        return handle if len(handle) <= HANDLE_LIMIT else b""

    def _image(self, entry: Entry) -> bytes:
        kind, file, zone = entry.key
        body = RECORD.pack(kind, len(entry.handle), 0, file, zone, entry.handle)
        return seal(body, entry.slot, self._seed)

    def _write_runs(self, entries: list[Entry]) -> None:
        """One durable write for each run of neighbouring slots."""
        start = 0
        for i in range(1, len(entries) + 1):
            if i < len(entries) and entries[i].slot == entries[i - 1].slot + 1:
                continue
            image = b"".join(map(self._image, entries[start:i]))
            self._pwrite(self._durable_fd, image, entries[start].slot)
            start = i

    def _pwrite(self, descriptor: int, image: bytes, slot: int) -> None:
        written = os.pwrite(descriptor, image, HEADER_BYTES + slot * RECORD_BYTES)
        if written != len(image):
            raise OSError(errno.ENOSPC, f"the intent log took {written} of {len(image)} bytes")

    # --- room -----------------------------------------------------------------------------

    def _grow(self) -> bool:
        """Double the slots; False when the disk has no room, then zones coarsen earlier."""
        first = self._header.slots
        last = min(first * 2, self._limit)
        try:
            self._write_free(self._durable_fd, range(first, last))
        except OSError as error:
            if error.errno not in syscalls.FULL_ERRORS:
                raise
            self._limit = first
            return False
        self._write_header(slots=last)
        with self.lock:
            self._free[:0] = range(last - 1, first - 1, -1)
        return True

    def _coarsen(self) -> bool:
        """Let one record stand for all zones of the file that has most of them (Z5). The caller
        has `_settling`: until the record is written, it shares the slot of the first zone."""
        with self.lock:
            if not self._per_file:
                return False
            file = max(self._per_file, key=lambda one: self._per_file[one])
            zones = [one for one in self.active.values() if one.key[:2] == (RecordKind.ZONE, file)]
        if len(zones) < 2:
            return False
        whole = Entry((int(RecordKind.WHOLE_FILE), file, 0), zones[0].slot, 0, zones[0].handle)
        self._write_runs([whole])
        with self.lock:
            for one in zones:
                self.active.pop(one.key, None)
            self._per_file.pop(file, None)
            self._gathered.add(file)
            former = self.active.get(whole.key)
            if former is not None:
                zones.append(former)
            # Only now: a zone may have been used again while the record was on its way.
            whole.last = max(one.last for one in zones)
            self.active[whole.key] = whole
        self._release(zones[1:])
        return True

    def _release(self, entries: list[Entry]) -> None:
        """Free slots. Not durable by itself: a record too many after a crash is harmless."""
        if not entries:
            return
        ordered = sorted(entries, key=lambda one: one.slot)
        start = 0
        for i in range(1, len(ordered) + 1):
            if i < len(ordered) and ordered[i].slot == ordered[i - 1].slot + 1:
                continue
            self._write_free(self._plain_fd, range(ordered[start].slot, ordered[i - 1].slot + 1))
            start = i
        with self.lock:
            self._free.extend(one.slot for one in reversed(ordered))

    def _write_free(self, descriptor: int, slots: range) -> None:
        image = b"".join([seal(FREE_BODY, slot, self._seed) for slot in slots])
        self._pwrite(descriptor, image, slots.start)

    # --- forgetting -----------------------------------------------------------------------

    def retire(self, upto: int, covered: int | None = None) -> int:
        """Forget records whose last operation is not behind `upto`; how many were forgotten.

        The caller answers for Z2: both nodes' fsyncs of a barrier began after operation `covered`
        was complete on both, which is not before `upto` (None: the same). If all that found no slot
        is among that, the log has overcome it. Does nothing while records are retained (Z1).
        """
        covered = upto if covered is None else covered
        with self._settling:
            if self._retaining:
                return 0
            gone = self._take_out(upto)
        self._release(gone)
        if self._header.everything:
            self._end_overflow(covered)
        return len(gone)

    def _end_overflow(self, covered: int) -> None:
        """Single records count again, unless more than the want of a slot stands against it. They
        are all durable: also while everything was a candidate, whatever found a slot was recorded.
        """
        with self._settling:
            if self.overflowed and self._all_recorded(covered):
                self._write_header(everything=False)
                self._unrecorded = 0

    def _take_out(self, covered: int) -> list[Entry]:
        """Take records out of memory whose last operation is not behind `covered`; their slots are
        the caller's, who has `_settling`."""
        with self.lock:
            gone = [entry for entry in self.active.values() if entry.last <= covered]
            for entry in gone:
                del self.active[entry.key]
                kind, file, _ = entry.key
                if kind == RecordKind.WHOLE_FILE:
                    self._gathered.discard(file)
                if kind == RecordKind.ZONE:
                    left = self._per_file[file] - 1
                    if left:
                        self._per_file[file] = left
                    else:
                        del self._per_file[file]
        return gone

    def retain(self) -> None:
        """From here on nothing is retired before `clear`: a resync has begun (R3, R4).

        Needs no disk: after a crash every record found is retained anyway. What was recorded up to
        now, or found no slot, is behind whatever barrier `clear` follows, also if another node
        counted it.
        """
        with self._settling:
            self._keep()
            with self.lock:
                for entry in self.active.values():
                    entry.last = 0
                self._unrecorded = 0

    def mark_everything(self) -> None:
        """Nothing can be excluded: everything is a candidate until `clear` (Z6, R14)."""
        with self._settling:
            self._keep()
            self._write_header(everything=True)

    def enter_alone(self, base: str) -> None:
        """Z1: every record becomes dirty, relative to `base`, in one durable step.

        A base that is already there stays (G3').
        """
        with self._settling:
            self._keep()
            self._write_header(retained=True, base=self._header.base or base)

    def _keep(self) -> None:
        self.order += 1
        self._retaining = True

    def clear(self, covered: int, order: int | None = None) -> bool:
        """R11, F10: forget the map. Records of operations after `covered` stay, as active ones.

        `order`: what `order` was when this was decided, where that was in another thread than the
        orders come from. False, and the map stays: an operation after `covered` found no slot, so
        that it is to be called again behind a later barrier; or an order to keep records came
        since, which is never undone by what was decided before it.
        """
        with self._settling:
            order = self.order if order is None else order
            if not self._may_clear(covered, order):
                return False
            gone = self._take_out(covered)
        self._release(gone)
        # Without the lock, for which the data path may wait: therefore looked at once more.
        os.fdatasync(self._plain_fd)
        with self._settling:
            if not self._may_clear(covered, order):
                return False
            self._write_header(retained=False, everything=False, base="")
            self._retaining = False
            self._unrecorded = 0
            self.damage = ""
        return True

    def _may_clear(self, covered: int, order: int) -> bool:
        return order == self.order and self._all_recorded(covered)

    def _all_recorded(self, covered: int) -> bool:
        """Whether every operation after `covered` has its record; true for as long as the caller,
        who has it, keeps `_settling`."""
        with self.lock:
            return not self._unnumbered and self._unrecorded <= covered

    def close(self) -> None:
        """Close the descriptors; the file stays as it is."""
        for name in ("_durable_fd", "_plain_fd", "_directory"):
            descriptor = getattr(self, name, -1)
            if descriptor >= 0:
                os.close(descriptor)
            setattr(self, name, -1)

    # --- the file -------------------------------------------------------------------------

    def _open(self, fresh: bool) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        problem = ""
        try:
            self._plain_fd = os.open(NAME, flags, dir_fd=self._directory)
        except FileNotFoundError:
            problem = "" if fresh else "the intent log is missing"
            self._create(everything=not fresh)
        else:
            problem = self._load()
            if problem:
                os.close(self._plain_fd)
                self._create(everything=True)
        self._durable_fd = os.open(NAME, flags | os.O_DSYNC, dir_fd=self._directory)
        self.damage = problem
        self._retaining = bool(self._header.retained or self._header.everything or self.active)

    def _create(self, *, everything: bool) -> None:
        """Write every byte of a new file before it gets the name (S2)."""
        self.active.clear()
        self._per_file.clear()
        slots = min(self._header.slots, self._limit)
        self._header = Header(1, slots, False, everything, self._resource, "")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        temporary = f"{NAME}.new"
        self._plain_fd = os.open(temporary, flags, 0o600, dir_fd=self._directory)
        os.pwrite(self._plain_fd, b"\0" * HEADER_BYTES, 0)
        for at in HEADER_AT:
            os.pwrite(self._plain_fd, self._header.image(), at)
        self._write_free(self._plain_fd, range(slots))
        os.fsync(self._plain_fd)
        directory = self._directory
        os.rename(temporary, NAME, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
        self._free = list(range(slots - 1, -1, -1))

    def _load(self) -> str:
        """Read the file; what is wrong with it, or nothing."""
        found = scan(self._plain_fd, self._resource, self._seed)
        if isinstance(found, str):
            return found
        self._header, bodies = found
        free = [slot for slot, body in enumerate(bodies) if not self._adopt(body, slot)]
        self._free = free[::-1]
        return ""

    def _adopt(self, body: bytes, slot: int) -> bool:
        kind, handle_length, _, file, zone, handle = RECORD.unpack(body)
        if kind == 0:
            return False
        key = (kind, FileId(file), zone)
        if key in self.active:
            # Retired and recorded anew elsewhere, and the crash kept both: one of them is enough.
            self._write_free(self._plain_fd, range(slot, slot + 1))
            return False
        self.active[key] = Entry(key, slot, 0, handle[:handle_length])
        if kind == RecordKind.ZONE:
            self._per_file[key[1]] = self._per_file.get(key[1], 0) + 1
        return True

    def _write_header(
        self,
        *,
        slots: int | None = None,
        retained: bool | None = None,
        everything: bool | None = None,
        base: str | None = None,
    ) -> None:
        """Overwrite the older of the two header slots, durably; the other one stays readable."""
        with self._header_lock:
            old = self._header
            header = Header(
                old.sequence + 1,
                old.slots if slots is None else slots,
                old.retained if retained is None else retained,
                old.everything if everything is None else everything,
                old.resource,
                old.base if base is None else base,
            )
            os.pwrite(self._durable_fd, header.image(), HEADER_AT[header.sequence % 2])
            self._header = header
