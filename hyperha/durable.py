"""Durable records: small files that survive power cuts, and the lock of the one daemon per home.

Responsible for S2: a record is written completely at creation and afterwards only overwritten in
fixed slots with O_DSYNC; no rename, no allocation, no journal commit on any path that a guest
waits for. Must not be called from the event loop or from a thread that sends heartbeats, and must
not know what a record means.

Layout of a record file: two slots of `size` bytes, each a header and the payload:

    magic "HHR1"  owner hash u64  sequence u64  length u32  zero u32  xxh3_128 of those and payload

A store overwrites the slot that does not hold the newest record. Whatever a power cut leaves of
it, the other slot is whole; so `load` gives the old or the new payload, never a mixture.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash

from hyperha.errors import FailedError, RecordDamagedError, RefusedError, UsageError

_MAGIC = b"HHR1"
_FIELDS = struct.Struct("<4sQQII")
_DIGEST_BYTES = 16
HEADER_BYTES = _FIELDS.size + _DIGEST_BYTES
"""What a slot needs beside the payload."""


def encode_slot(owner: int, sequence: int, payload: bytes, size: int) -> bytes:
    """The bytes of one slot, padded to `size`; pure, so that crash states can be enumerated."""
    fields = _FIELDS.pack(_MAGIC, owner, sequence, len(payload), 0)
    digest = xxhash.xxh3_128_digest(fields + payload)
    return (fields + digest + payload).ljust(size, b"\0")


def decode_slot(owner: int, raw: bytes) -> tuple[int, bytes] | None:
    """Sequence number and payload of a slot, or None when it is torn or not of this owner."""
    if len(raw) < HEADER_BYTES:
        return None
    magic, found_owner, sequence, length, zero = _FIELDS.unpack_from(raw)
    if magic != _MAGIC or found_owner != owner or zero or length > len(raw) - HEADER_BYTES:
        return None
    payload = raw[HEADER_BYTES : HEADER_BYTES + length]
    digest = raw[_FIELDS.size : HEADER_BYTES]
    if xxhash.xxh3_128_digest(raw[: _FIELDS.size] + payload) != digest:
        return None
    return int(sequence), payload


class DurableRecord:
    """One double-slot record of at most `size - HEADER_BYTES` bytes of payload (S2).

    `owner` names whose record it is ("node1 VM1 lineage"); a file of another owner is refused, so
    that a copied or swapped state file is never taken for this one. Not thread-safe: one record
    belongs to one thread at a time.
    """

    def __init__(self, path: Path, *, size: int = 4096, owner: str = "") -> None:
        if size < 512 or size % 512:
            raise UsageError(
                f"record {path}: a slot of {size} bytes is not a multiple of 512 sectors"
            )
        self.path = path
        self.size = size
        self._owner_name = owner
        self._owner = xxhash.xxh3_64_intdigest(owner.encode())
        self._sequence = -1
        self._slot = 1

    def load(self) -> bytes | None:
        """The newest whole payload; None when the record was never written.

        Raises RecordDamagedError when neither slot can be read: the file has then been renamed
        aside and is kept for people, never guessed at.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise FailedError(
                f"record {self.path} cannot be read: {problem.strerror}",
                "Check the disk and the rights of the state directory.",
            ) from problem
        found = [
            (whole[0], index, whole[1])
            for index in (0, 1)
            if (whole := decode_slot(self._owner, raw[index * self.size : (index + 1) * self.size]))
        ]
        if not found:
            raise self._set_aside(raw)
        self._sequence, self._slot, payload = max(found)
        return payload

    def _set_aside(self, raw: bytes) -> RecordDamagedError:
        reason = "neither of its two slots is whole"
        if raw[:4] == _MAGIC and len(raw) >= _FIELDS.size:
            owner = _FIELDS.unpack_from(raw)[1]
            if owner != self._owner:
                reason = f"it is not the record of {self._owner_name or 'this owner'!r}"
        elif raw.strip(b"\0"):
            reason = "it is not a record of this program, or both its slots are damaged"
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns() // 1_000_000}")
        os.rename(self.path, aside)
        _sync_directory(self.path.parent)
        return RecordDamagedError(
            f"record {self.path} cannot be used: {reason}; it is kept as {aside}",
            "What it said is unknown now; nothing is started from it. Compare with the other "
            "node before deciding which copy is the good one.",
        )

    def store(self, payload: bytes) -> None:
        """Make `payload` the record, durably; returns only when it is on stable storage.

        Raises UsageError when it does not fit, FailedError when the disk refuses: the record on
        disk is then still the old one, and this object goes on from it.
        """
        if len(payload) > self.size - HEADER_BYTES:
            raise UsageError(
                f"record {self.path}: a payload of {len(payload)} bytes does not fit into "
                f"{self.size - HEADER_BYTES}"
            )
        if self._sequence < 0 and self.load() is None:
            self._create(payload)
            return
        slot = 1 - self._slot
        raw = encode_slot(self._owner, self._sequence + 1, payload, self.size)
        try:
            self._overwrite(raw, slot * self.size)
        except OSError as problem:
            raise FailedError(
                f"record {self.path} cannot be written: {problem.strerror}",
                "Check the disk of the state directory.",
            ) from problem
        self._sequence += 1
        self._slot = slot

    def _create(self, payload: bytes) -> None:
        """Write both slots in full (not only allocated) and give the file its name when durable.

        Creation is the one place with a rename: no guest waits for it, and a power cut then
        leaves no record at all, never a damaged one.
        """
        first = encode_slot(self._owner, 0, payload, self.size)
        unnamed = self.path.with_name(self.path.name + ".new")
        try:
            make_directory(self.path.parent)
            descriptor = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                _write_all(descriptor, first + first)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(unnamed, self.path)
            _sync_directory(self.path.parent)
        except OSError as problem:
            raise FailedError(
                f"record {self.path} cannot be created: {problem.strerror}",
                "Check the disk and the rights of the state directory.",
            ) from problem
        self._sequence, self._slot = 0, 0

    def _overwrite(self, raw: bytes, offset: int) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | getattr(os, "O_DSYNC", 0))
        try:
            os.lseek(descriptor, offset, os.SEEK_SET)
            _write_all(descriptor, raw)
            if not hasattr(os, "O_DSYNC"):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def load_json(self) -> dict[str, Any] | None:
        """`load` for a record that holds a JSON object; another content is damage."""
        payload = self.load()
        if payload is None:
            return None
        try:
            value = json.loads(payload)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise RecordDamagedError(
                f"record {self.path} is whole but does not hold a JSON object",
                "It was written by another program or version; move it away by hand.",
            )
        return value

    def store_json(self, value: dict[str, Any]) -> None:
        """`store` for a JSON object; keys are sorted so that equal records are equal bytes."""
        self.store(json.dumps(value, separators=(",", ":"), sort_keys=True).encode())


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory, and those above it that are missing with usual rights, durably (S2, F12).

    A record is no safer than the name of the directory that it lies in. Raises OSError.
    """
    missing = [one for one in (path, *path.parents) if not one.is_dir()]
    for one in reversed(missing):
        one.mkdir(mode=mode if one == path else 0o777, exist_ok=True)
        _sync_directory(one.parent)


def _write_all(descriptor: int, raw: bytes) -> None:
    written = os.write(descriptor, raw)
    if written != len(raw):
        raise OSError(errno.ENOSPC, f"only {written} of {len(raw)} bytes were written")


def _sync_directory(path: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DaemonLock:
    """The lock that makes a daemon (or guardian) the only one of its home, held until released.

    A context manager; the kernel drops it when the process dies, however it dies.
    """

    def __init__(self, path: Path, *, what: str = "daemon") -> None:
        self.path = path
        self.what = what
        self._descriptor = -1

    def acquire(self) -> None:
        """Take the lock or raise RefusedError naming the process that holds it."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(self.path, flags, 0o600)
        try:
            _lock_exclusively(descriptor)
        except OSError:
            # Byte 0 alone is locked where locks are mandatory; the pid stands behind it.
            os.lseek(descriptor, 1, os.SEEK_SET)
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise RefusedError(
                f"another {self.what} (process {holder}) already runs for {self.path.parent}",
                f"Stop it first, or use --home for a second {self.what} with files of its own.",
                code="already-running",
            ) from None
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f" {os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; the file stays, so that no second lock on another inode exists."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> DaemonLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _lock_exclusively(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
