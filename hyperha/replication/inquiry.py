"""Questions to the other copy while the guest keeps running: each at one position of the stream.

What is read here (a zone's digests, a listing, a block) is put into the stream at a position at
which it is the content, so that no live operation slips between question and answer (R13, R17).
Shared by resync and verify; one of them at a time, in a thread of its own.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from queue import Empty
from typing import Final

import xxhash

from hyperha.core.actions import Acknowledge
from hyperha.errors import ReplicationError
from hyperha.replication import identity, syscalls, wire
from hyperha.replication.buffers import Buffers
from hyperha.replication.clock import now_ms
from hyperha.replication.comparison import entry_text, inode_of, is_gone, ordered
from hyperha.replication.fuse.protocol import PAYLOAD_SIZE
from hyperha.replication.operations import NO_ID, FileId, Target
from hyperha.replication.primary import Primary
from hyperha.replication.stopwatch import Timed
from hyperha.replication.store import Entry
from hyperha.replication.stream import PrimarySession
from hyperha.replication.throttle import DECIDE_MS, Throttle
from hyperha.replication.token_bucket import TokenBucket
from hyperha.replication.wire import BLOCK_BYTES, ZONE_BYTES, Frame, Kind
from hyperha.replication.wire_changes import ListedEntry, Listing

TRIES: Final = 2
_REQUESTS: Final = 32
"""Digests and listings under way at most."""
_LONGEST_WAIT_S: Final = 0.02
"""For the pace; then the guest's latency is looked at again."""


GUEST: Final = "guest"
RATE: Final = "rate"
NETWORK: Final = "network"
"""What work waits for: the guest's latency, `resync_rate_mib_s`, or the other node."""


class Ended(Exception):
    """The session is over; whoever ended it reports it."""


class Inquiry:
    """One run over a session. `progress` is called now and then, also while it waits."""

    def __init__(self, primary: Primary, session: PrimarySession) -> None:
        self._primary = primary
        self._store = primary.store
        self._session = session
        self._buffers = Buffers()
        self._reading = memoryview(self._buffers.take(ZONE_BYTES))
        """For what is only looked at."""
        self._waiting: dict[int, Callable[[Frame], None]] = {}
        self._in_flight: deque[tuple[int, int]] = deque()
        self._in_flight_bytes = 0
        self._sent_bytes = 0
        self._started_ms = now_ms()
        self._throttle = Throttle(len(Timed), self._started_ms)
        self._set_rate = TokenBucket(self._started_ms)
        """Of what is sent: `resync_rate_mib_s`."""
        self.held_ms = {GUEST: 0, RATE: 0, NETWORK: 0}
        """How long it has waited for what."""

    def progress(self) -> None:
        """For display; overridden."""

    def unasked(self, frame: Frame) -> bool:
        """A frame that is not simply the answer to a question: whether it was understood."""
        return False

    # --- the stream -----------------------------------------------------------------------

    def _put(self, kind: Kind, payloads: list[bytes], then: Callable[[Frame], None] | None) -> int:
        """Put frames of one request into the stream; the caller has the pipeline's lock."""
        primary, session = self._primary, self._session
        if primary.session is not session:
            raise Ended
        number = 0
        for payload in payloads:
            number = primary.number = primary.number + 1
            flags = wire.FLAG_LAST if payload is payloads[-1] else 0
            session.put(wire.frame(kind, session.tag, number, payload, flags), number)
        if then is not None:
            self._waiting[number] = then
        return number

    def _replies(self, wait_s: float) -> None:
        """Handle what the target has said; wait at most so long for the first of it."""
        block = wait_s > 0
        while True:
            try:
                frame = self._session.replies.get(block, wait_s if block else None)
            except Empty:
                break
            block = False
            if frame is None:
                raise Ended
            if self.unasked(frame):
                continue
            then = self._waiting.pop(frame.number, None)
            if then is None:
                raise ReplicationError(f"the target answers a question not asked: {frame}")
            then(frame)
        self.progress()

    def _room(self) -> None:
        """Wait until a request more may be under way, and the pace allows it (T7)."""
        while True:
            self._listen_to_guest()
            if len(self._waiting) < self._throttle.requests(now_ms(), _REQUESTS):
                break
            self._replies(DECIDE_MS / 1000)
        while not self._throttle.may_go(now_ms()):
            self._hold(GUEST, self._throttle.due_in_ms())
        if not self._session.replies.empty():
            self._replies(0)
        self.progress()

    def _listen_to_guest(self) -> None:
        """Tell the controller what the guest's operations have taken since it was last told."""
        watch, throttle, now = self._primary.stopwatch, self._throttle, now_ms()
        if not throttle.due(now):
            return
        offset_ms = now - time.monotonic_ns() // 1_000_000
        waiting_us = [0] * len(Timed)
        for kind in Timed:
            samples = watch.take(kind)
            if kind is not Timed.READ and self._ends_a_freeze:
                # To go slowly would only have it wait longer.
                continue
            for at_ns, took_ns in samples:
                throttle.note(kind, at_ns // 1_000_000 + offset_ms, took_ns // 1000)
            waiting_us[kind] = watch.waiting_ns(kind) // 1000
        throttle.decide(now, waiting_us)

    @property
    def _ends_a_freeze(self) -> bool:
        """Whether what the guest writes is answered when both copies are equal, and not before."""
        return not self._session.copied and self._primary.mode is not Acknowledge.LOCAL

    def _hold(self, reason: str, due_ms: float = 0.0) -> None:
        """Wait a little, for that reason; for what is due then, if it is soon."""
        if self._primary.session is not self._session:
            raise Ended
        begun_ms = now_ms()
        time.sleep(min(_LONGEST_WAIT_S, max(0.001, due_ms / 1000)))
        self.held_ms[reason] += now_ms() - begun_ms
        self._listen_to_guest()
        self.progress()

    def _settle_replies(self) -> None:
        while self._waiting:
            self._replies(1.0)

    def _wait_for_room(self) -> None:
        """Bound what is unacknowledged, by what the guest feels, and keep the rate (T7)."""
        primary = self._primary
        while True:
            self._listen_to_guest()
            while self._in_flight and self._in_flight[0][0] <= primary.acknowledged_number:
                self._in_flight_bytes -= self._in_flight.popleft()[1]
            now = now_ms()
            if not self._set_rate.may_go(primary.config.resync_rate_mib_s << 20, now):
                self._hold(RATE, self._set_rate.due_in_ms())
            elif not self._throttle.may_go(now):
                self._hold(GUEST, self._throttle.due_in_ms())
            elif self._in_flight_bytes < self._throttle.window(now):
                return
            else:
                self._hold(GUEST if self._throttle.rate(now) else NETWORK)

    # --- what the copy holds --------------------------------------------------------------

    def _steady(
        self,
        file: FileId,
        zone: int,
        read: Callable[[], list[bytes]],
        kind: Kind,
        then: Callable[[Frame], None] | None,
    ) -> int:
        """`_steadily`, for the payloads of one question."""
        payloads: list[bytes] = []

        def look() -> None:
            payloads[:] = read()

        return self._steadily(
            file, zone, look, lambda: self._put(kind, payloads, then) if payloads else 0
        )

    def _steadily(
        self, file: FileId, zone: int, read: Callable[[], None], put: Callable[[], int]
    ) -> int:
        """Put what `read` has read into the stream where it is the zone's content.

        A write enters the stream before its local call: none may have been under way when reading
        began, and none may have begun since, nor one that makes the file longer. Without a quiet
        moment the data path waits once.
        """
        primary, key = self._primary, (file, zone)
        try:
            for attempt in range(TRIES + 1):
                with primary.operation if attempt == TRIES else nullcontext():
                    size = self._store.attributes(Target(file)).size
                    with primary.lock:
                        primary.watched[key] = 0
                        primary.watched_ends[file] = size
                        begun, version = primary.begun, primary.version
                    read()
                    with primary.lock:
                        # Missing: the last steps of a former resync have let go of the zone.
                        steady = primary.watched.get(key) == 0 and version == primary.version
                        steady = steady and not version & 1
                        if steady and primary.completed >= begun:
                            return put()
        finally:
            with primary.lock:
                primary.watched.pop(key, None)
                primary.watched_ends.pop(file, None)
        raise ReplicationError("an operation went on beside the lock of operations")

    def _send_data(self, file: FileId, zone: int, offset: int, length: int) -> int:
        """Send what a part of a zone holds now, live writes keep their place before or behind it;
        how many bytes it had. The data goes from the file to the connection without a copy."""
        buffer = self._buffers.take(PAYLOAD_SIZE)
        room = memoryview(buffer)[:length]
        filled = 0
        primary, session = self._primary, self._session

        def read() -> None:
            nonlocal filled
            filled = self._store.read_into(file, offset, room)

        def put() -> int:
            if primary.session is not session:
                raise Ended
            if not filled:
                self._buffers.give_back(buffer)
                return 0
            number = primary.number = primary.number + 1
            head = wire.block_head(filled, session.tag, number, file, offset)
            session.put_lent(head, room[:filled], number, self._buffers.give_back_view)
            return number

        number = self._steadily(file, zone, read, put)
        self._in_flight.append((number, filled))
        self._in_flight_bytes += filled
        self._sent_bytes += filled
        self._throttle.spend(filled)
        self._set_rate.spend(filled)
        return filled

    def _digests(self, file: FileId, offset: int) -> tuple[bytes | None, ...]:
        store = self._store
        # First: once it was read, room that was never written counts as data.
        ranges = store.data_ranges(file, offset, offset + ZONE_BYTES)
        size = store.read_into(file, offset, self._reading)
        self._throttle.spend(size)
        digests: list[bytes | None] = []
        view = self._reading[:size]
        for start in range(0, size, BLOCK_BYTES):
            low, high = offset + start, offset + start + BLOCK_BYTES
            if any(at < high and at + length > low for at, length in ranges):
                block = view[start : start + BLOCK_BYTES]
                digests.append(xxhash.xxh3_128_digest(block, self._session.seed))
            else:
                digests.append(None)
        return tuple(digests)

    def _has_name(self, file: FileId) -> bool:
        """Whether the inode exists under some name: without one it is not replicated (Z7), also
        while somebody has it open."""
        try:
            return self._store.status(Target(file)).st_nlink > 0
        except OSError as error:
            if is_gone(error):
                return False
            raise

    def _read_listing(self, directory: FileId, *, quiet: bool) -> Listing | None:
        store = self._store
        try:
            inode = inode_of(store, Target(directory))
            if not stat.S_ISDIR(inode.attributes.mode) or not self._has_name(directory):
                return None
            entries = []
            for entry in store.list(directory):
                one = self._listed(directory, entry, quiet)
                if one is not None:
                    entries.append(one)
        except OSError as error:
            if is_gone(error):
                return None
            raise
        return Listing(inode, tuple(entries))

    def _listed(self, directory: FileId, entry: Entry, quiet: bool) -> ListedEntry | None:
        store, file = self._store, entry.file
        try:
            if file == NO_ID and store.can_carry_id(entry.attributes.mode):
                file = self._identified(directory, entry.name, quiet)
            target = Target(file) if file != NO_ID else Target(NO_ID, directory, entry.name)
            link = self._link_text(target) if stat.S_ISLNK(entry.attributes.mode) else b""
            if link is None:
                return None
            # A regular file's come with its own frame: those of all files would be without bound.
            own = stat.S_ISREG(entry.attributes.mode) and file != NO_ID
            xattrs = () if own else ordered(store.xattrs(target))
        except OSError as error:
            if is_gone(error):
                # Gone since it was listed; the version tells that this listing is void.
                return None
            raise
        return ListedEntry(entry.name, file, entry.attributes, xattrs, entry.nlink, link)

    def _identified(self, directory: FileId, name: bytes, quiet: bool) -> FileId:
        """The id of an entry, which is given one. Raises OSError where it is gone, and
        ReplicationError where it cannot carry one: nothing else names its content to the peer."""
        try:
            # Not beside the data path doing the same (Z3).
            with nullcontext() if quiet else self._primary.operation:
                return self._store.identify(directory, name)
        except OSError as error:
            if error.errno not in identity.REFUSED:
                raise
            advice = "stop the module and take its immutable flag away (chattr -i)"
            if error.errno in syscalls.FULL_ERRORS:
                advice = "make room on the disk, or in its extended attributes"
            raise ReplicationError(
                f"{entry_text(self._store, directory, name)} cannot be copied, since it takes no "
                f"attribute of hyperha ({error.strerror}): {advice}"
            ) from error

    def _link_text(self, target: Target) -> bytes | None:
        """Of a symbolic link; None when something else has taken its place, which voids the
        listing as well."""
        try:
            return self._store.symlink_target(target)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    def _first_data(self, file: FileId, position: int) -> int | None:
        """Where data begins at or behind `position`; None when only a hole follows."""
        held = self._store.data(file)
        try:
            return max(position, os.lseek(held.fd, position, os.SEEK_DATA))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
