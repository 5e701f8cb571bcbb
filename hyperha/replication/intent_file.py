"""What the file of an intent log looks like, and reading one that somebody else owns.

A header twice, in two sectors that are overwritten in turn, then slots of a fixed size. Header and
records carry a checksum of their own; that of a record depends on its slot and its module, so that
a record which was copied elsewhere is not believed. Anything unreadable is told, never skipped
(Z6).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

import xxhash

from hyperha.replication.operations import FileId, Record, RecordKind

NAME: Final = "intent"
HEADER_BYTES: Final = 4096
HEADER_AT: Final = (0, 2048)
RECORD_BYTES: Final = 128
RECORD: Final = struct.Struct("<BBH4x16sQ80s")
"""Kind, length of the handle, nothing yet, file, zone, handle."""
HANDLE_LIMIT: Final = 80
FREE_BODY: Final = RECORD.pack(0, 0, 0, b"", 0, b"")

_MAGIC: Final = b"hyperha intent\0\1"
_HEADER: Final = struct.Struct("<16sQQBB6x64s64s")


@dataclass(frozen=True, slots=True)
class Header:
    """What the log means as a whole; the copy with the higher `sequence` counts."""

    sequence: int
    slots: int
    retained: bool
    """Nothing may be retired: the records are the dirty map (Z1)."""
    everything: bool
    """Every file is a candidate, whatever the records say."""
    resource: str
    base: str
    """The generation that both copies had in common when this one went on alone."""

    def image(self) -> bytes:
        """What is written, checksum first."""
        body = _HEADER.pack(
            _MAGIC,
            self.sequence,
            self.slots,
            self.retained,
            self.everything,
            self.resource.encode(),
            self.base.encode(),
        )
        return xxhash.xxh3_128_digest(body) + body


def seal(body: bytes, slot: int, seed: int) -> bytes:
    """What a slot holds: a record behind its checksum. `seed` is the module's."""
    return xxhash.xxh3_128_digest(body + slot.to_bytes(8, "little"), seed) + body


def _read_header(raw: bytes) -> Header | None:
    checksum, body = raw[:16], raw[16 : 16 + _HEADER.size]
    if xxhash.xxh3_128_digest(body) != checksum:
        return None
    magic, sequence, slots, retained, everything, resource, base = _HEADER.unpack(body)
    if magic != _MAGIC:
        return None
    texts = [one.rstrip(b"\0").decode("utf-8", "replace") for one in (resource, base)]
    return Header(sequence, slots, bool(retained), bool(everything), texts[0], texts[1])


def scan(descriptor: int, resource: str, seed: int) -> tuple[Header, list[bytes]] | str:
    """The header and what stands in each slot; or what is wrong with the file."""
    raw = os.pread(descriptor, HEADER_BYTES, 0)
    headers = [one for one in (_read_header(raw[at:]) for at in HEADER_AT) if one]
    if len(headers) < len(HEADER_AT):
        # A sector is written whole or not at all: this one was damaged, and which of the two
        # is the newer cannot be told.
        return "the header of the intent log is unreadable"
    header = max(headers, key=lambda one: one.sequence)
    if header.resource != resource:
        return f"the intent log belongs to the module with id {header.resource}"
    size = header.slots * RECORD_BYTES
    content = bytearray()
    while len(content) < size:
        piece = os.pread(descriptor, size - len(content), HEADER_BYTES + len(content))
        if not piece:
            return "the intent log is shorter than its header says"
        content += piece
    bodies = []
    for slot in range(header.slots):
        at = slot * RECORD_BYTES
        image = bytes(content[at : at + RECORD_BYTES])
        if image != seal(image[16:], slot, seed):
            return f"record {slot} of the intent log is unreadable"
        bodies.append(image[16:])
    return header, bodies


@dataclass(frozen=True, slots=True)
class Reading:
    """What a log holds, read by somebody who does not own it."""

    records: tuple[Record, ...] | None
    """None: everything is a candidate."""
    base: str = ""
    problem: str = ""
    """What is wrong with the file; empty when nothing is."""


def read_log(directory_fd: int, resource: str) -> Reading:
    """Look into the log of a folder that nobody serves; nothing is written, made or repaired."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(NAME, flags, dir_fd=directory_fd)
    except FileNotFoundError:
        return Reading(None, problem="the intent log is missing")
    try:
        found = scan(descriptor, resource, xxhash.xxh3_64_intdigest(resource.encode()))
    finally:
        os.close(descriptor)
    if isinstance(found, str):
        return Reading(None, problem=found)
    header, bodies = found
    if header.everything:
        return Reading(None, header.base)
    records: dict[Record, None] = {}
    for body in bodies:
        kind, _, _, file, zone, _ = RECORD.unpack(body)
        if kind:
            records[Record(RecordKind(kind), FileId(file), zone)] = None
    return Reading(tuple(records), header.base)
