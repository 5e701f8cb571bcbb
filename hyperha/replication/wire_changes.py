"""Changes, inodes and directory listings as payloads of frames. Pure and strict.

A name is one component without `/`, NUL, `.` or `..` (M13); anything else ends the session.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from hyperha.errors import ReplicationError
from hyperha.replication.operations import (
    OFFSET_LIMIT,
    Allocate,
    Attributes,
    Change,
    Create,
    FileId,
    Link,
    Remove,
    Rename,
    SetAttributes,
    SetTimes,
    SetXattr,
    Target,
    Truncate,
)
from hyperha.replication.wire import FRAME_LIMIT, Cursor

_ATTRIBUTES: Final = struct.Struct("<IIIQqIQ")
_TIME: Final = struct.Struct("<qI")
"""Seconds and nanoseconds, as file systems have them: nanoseconds alone in 64 bits end in 2262."""
_SECOND_NS: Final = 1_000_000_000
_SIZE_LIMIT: Final = 1 << 63
_ENTRY_LINKS: Final = struct.Struct("<I")


def _put_name(name: bytes) -> bytes:
    return len(name).to_bytes(2, "little") + name


def _name(cursor: Cursor) -> bytes:
    name = cursor.short()
    if not name or len(name) > 255 or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise ReplicationError(f"the peer sent the impossible file name {name[:64]!r} (M13)")
    return name


def _put_long(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def _id(cursor: Cursor) -> FileId:
    return FileId(cursor.take(16))


def _put_number(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


def _number(cursor: Cursor) -> int:
    return int.from_bytes(cursor.take(8), "little", signed=True)


def _size(cursor: Cursor) -> int:
    value = _number(cursor)
    if value < 0:
        raise ReplicationError(f"the peer sent the impossible size {value}")
    return value


def _put_time(time_ns: int) -> bytes:
    return _TIME.pack(*divmod(time_ns, _SECOND_NS))


def _joined(seconds: int, part_ns: int) -> int:
    if part_ns >= _SECOND_NS:
        raise ReplicationError(f"the peer sent a time with {part_ns} nanoseconds in a second")
    return seconds * _SECOND_NS + part_ns


def _time(cursor: Cursor) -> int:
    return _joined(*cursor.fields(_TIME))


def _put_flag(value: bool) -> bytes:
    return b"\1" if value else b"\0"


def _flag(cursor: Cursor) -> bool:
    value = cursor.take(1)[0]
    if value > 1:
        raise ReplicationError(f"the peer sent {value} where yes or no belongs")
    return value == 1


def _put_target(target: Target) -> bytes:
    return target.file + target.parent + len(target.name).to_bytes(2, "little") + target.name


def _target(cursor: Cursor) -> Target:
    file, parent = _id(cursor), _id(cursor)
    name = cursor.short()
    if any((b"/" in name, b"\0" in name, name in (b".", b".."), len(name) > 255)):
        raise ReplicationError(f"the peer sent the impossible file name {name[:64]!r} (M13)")
    return Target(file, parent, name)


def _put_attributes(one: Attributes) -> bytes:
    seconds, part_ns = divmod(one.mtime_ns, _SECOND_NS)
    return _ATTRIBUTES.pack(one.mode, one.uid, one.gid, one.size, seconds, part_ns, one.rdev)


def _attributes(cursor: Cursor) -> Attributes:
    mode, uid, gid, size, seconds, part_ns, rdev = cursor.fields(_ATTRIBUTES)
    if size >= _SIZE_LIMIT:
        raise ReplicationError(f"the peer sent the impossible size {size}")
    return Attributes(mode, uid, gid, size, _joined(seconds, part_ns), rdev)


_Xattrs = tuple[tuple[bytes, bytes], ...]


def _put_xattrs(xattrs: _Xattrs) -> bytes:
    parts = [len(xattrs).to_bytes(2, "little")]
    for name, value in xattrs:
        parts.append(_put_name(name) + _put_long(value))
    return b"".join(parts)


def _xattr_name(cursor: Cursor) -> bytes:
    name = cursor.short()
    if not name or len(name) > 255 or b"\0" in name:
        raise ReplicationError(f"the peer sent the impossible attribute name {name[:64]!r}")
    return name


def _xattrs(cursor: Cursor) -> _Xattrs:
    count = int.from_bytes(cursor.take(2), "little")
    return tuple((_xattr_name(cursor), cursor.long()) for _ in range(count))


def _put_value(value: bytes | None) -> bytes:
    return b"\0" if value is None else b"\1" + _put_long(value)


def _value(cursor: Cursor) -> bytes | None:
    return cursor.long() if _flag(cursor) else None


_Codec = tuple[Callable[[Any], bytes], Callable[[Cursor], Any]]
_ID: Final[_Codec] = (bytes, _id)
_NAME: Final[_Codec] = (_put_name, _name)
_TIME_NS: Final[_Codec] = (_put_time, _time)
_SIZE: Final[_Codec] = (_put_number, _size)
_FLAG: Final[_Codec] = (_put_flag, _flag)
_LONG: Final[_Codec] = (_put_long, Cursor.long)
_TARGET: Final[_Codec] = (_put_target, _target)
_ATTR: Final[_Codec] = (_put_attributes, _attributes)
_XATTRS: Final[_Codec] = (_put_xattrs, _xattrs)
_XNAME: Final[_Codec] = (_put_name, _xattr_name)
_VALUE: Final[_Codec] = (_put_value, _value)

_SCHEMAS: Final[dict[int, tuple[type[Change], tuple[tuple[str, _Codec], ...]]]] = {
    1: (
        Create,
        (
            ("parent", _ID),
            ("name", _NAME),
            ("file", _ID),
            ("attributes", _ATTR),
            ("parent_mtime_ns", _TIME_NS),
            ("target", _LONG),
            ("xattrs", _XATTRS),
        ),
    ),
    2: (
        Link,
        (("source", _TARGET), ("parent", _ID), ("name", _NAME), ("parent_mtime_ns", _TIME_NS)),
    ),
    3: (
        Remove,
        (("parent", _ID), ("name", _NAME), ("directory", _FLAG), ("parent_mtime_ns", _TIME_NS)),
    ),
    4: (
        Rename,
        (
            ("old_parent", _ID),
            ("old_name", _NAME),
            ("new_parent", _ID),
            ("new_name", _NAME),
            ("flags", _SIZE),
            ("old_parent_mtime_ns", _TIME_NS),
            ("new_parent_mtime_ns", _TIME_NS),
        ),
    ),
    5: (SetAttributes, (("inode", _TARGET), ("attributes", _ATTR))),
    6: (Truncate, (("file", _ID), ("size", _SIZE), ("mtime_ns", _TIME_NS))),
    7: (
        Allocate,
        (
            ("file", _ID),
            ("mode", _SIZE),
            ("offset", _SIZE),
            ("length", _SIZE),
            ("size", _SIZE),
            ("mtime_ns", _TIME_NS),
        ),
    ),
    8: (SetXattr, (("inode", _TARGET), ("name", _XNAME), ("value", _VALUE))),
    9: (SetTimes, (("file", _ID), ("mtime_ns", _TIME_NS))),
}
_NUMBERS: Final = {kind: number for number, (kind, _) in _SCHEMAS.items()}
_TIMES: Final = _NUMBERS[SetTimes]


def is_time(payload: bytes | memoryview) -> bool:
    """Whether an encoded change only sets a time."""
    return len(payload) > 0 and payload[0] == _TIMES


def encode_change(change: Change) -> bytes:
    """The payload of one change. Raises ReplicationError for what the protocol has no room for."""
    number = _NUMBERS[type(change)]
    parts = [bytes((number,))]
    try:
        for name, (put, _) in _SCHEMAS[number][1]:
            parts.append(put(getattr(change, name)))
    except (struct.error, OverflowError) as problem:
        what = type(change).__name__
        raise ReplicationError(f"a {what} has no form for the peer: {problem}") from problem
    raw = b"".join(parts)
    if len(raw) > FRAME_LIMIT:
        what = type(change).__name__
        raise ReplicationError(f"a {what} has no form for the peer: {len(raw)} bytes")
    return raw


def decode_change(payload: bytes | memoryview) -> Change:
    """The change of a payload. Raises ReplicationError for anything malformed."""
    cursor = Cursor(payload, "change")
    schema = _SCHEMAS.get(cursor.take(1)[0])
    if schema is None:
        raise ReplicationError(f"the peer sent an unknown change ({payload[0]})")
    kind, fields = schema
    change = kind(**{name: take(cursor) for name, (_, take) in fields})
    cursor.end()
    if isinstance(change, Allocate) and change.offset + change.length > OFFSET_LIMIT:
        raise ReplicationError(f"the peer sent a range that ends at no place in a file: {change}")
    return change


@dataclass(frozen=True, slots=True)
class Inode:
    """The state of an inode on the source at one position of the stream."""

    target: Target
    attributes: Attributes
    xattrs: _Xattrs


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """One entry of a listed directory, with the state of its inode. In a resync a regular file is
    listed without its extended attributes, which come with its own INODE frame."""

    name: bytes
    file: FileId
    attributes: Attributes
    xattrs: _Xattrs
    links: int
    symlink_target: bytes


@dataclass(frozen=True, slots=True)
class Listing:
    """A directory of the source at one position of the stream."""

    directory: Inode
    entries: tuple[ListedEntry, ...]


def in_frames(raw: bytes) -> list[bytes]:
    """What may be larger than a frame, as the payloads of several: joined they are `raw`."""
    return [raw[at : at + FRAME_LIMIT] for at in range(0, len(raw), FRAME_LIMIT)]


def encode_inode(inode: Inode) -> bytes:
    """An inode's state; one with many extended attributes needs several frames."""
    return _put_target(inode.target) + _put_attributes(inode.attributes) + _put_xattrs(inode.xattrs)


def _inode(cursor: Cursor) -> Inode:
    return Inode(_target(cursor), _attributes(cursor), _xattrs(cursor))


def decode_inode(payload: bytes | memoryview) -> Inode:
    """The inode of all its frames."""
    cursor = Cursor(payload, "inode")
    inode = _inode(cursor)
    cursor.end()
    return inode


def put_entry(entry: ListedEntry) -> bytes:
    """The bytes of one entry, equal for equal ones."""
    return b"".join(
        (
            _put_name(entry.name),
            entry.file,
            _put_attributes(entry.attributes),
            _put_xattrs(entry.xattrs),
            _ENTRY_LINKS.pack(entry.links),
            _put_long(entry.symlink_target),
        )
    )


def _entry(cursor: Cursor) -> ListedEntry:
    name, file, attributes = _name(cursor), _id(cursor), _attributes(cursor)
    xattrs = _xattrs(cursor)
    (links,) = cursor.fields(_ENTRY_LINKS)
    return ListedEntry(name, file, attributes, xattrs, links, cursor.long())


def encode_listing(listing: Listing) -> bytes:
    """A listing; a large one needs several frames."""
    return encode_inode(listing.directory) + b"".join(map(put_entry, listing.entries))


def decode_listing(payload: bytes | memoryview) -> Listing:
    """The listing of all its frames."""
    cursor = Cursor(payload, "listing")
    directory = _inode(cursor)
    entries = []
    while cursor.more():
        entries.append(_entry(cursor))
    return Listing(directory, tuple(entries))
