"""The marker of a folder: how a foreign, empty, copied or restored folder is known (R12, N6).

It stands twice: as an extended attribute of the folder's root and in `.hyperha/marker`, each with
a checksum and with the file handle of `.hyperha` itself, which no copy or restore reproduces. This
module reads, writes and inspects; what follows from a difference is decided elsewhere.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from dataclasses import dataclass
from typing import Final

from hyperha.domain import Marker
from hyperha.replication import syscalls
from hyperha.replication.store import PRIVATE_NAME, private_directory

_FILE: Final = b"marker"
_NEW_FILE: Final = b"marker.new"
_NO_FOLLOW: Final = syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
_LOST_AND_FOUND: Final = b"lost+found"
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)


@dataclass(frozen=True, slots=True)
class DamagedMarker:
    """A marker that is there and proves nothing: unreadable, copied, or its two places disagree.

    `attribute` and `file` are what each place says, None where it is absent or unreadable, or was
    written for another folder (N6). When the node died between the two writes, `file` is one step
    ahead of `attribute`.
    """

    reason: str
    attribute: Marker | None
    file: Marker | None

    @property
    def half_written(self) -> Marker | None:
        """What was being written, if this looks like the death between the two writes; the next
        write makes both places whole again."""
        before, after = self.attribute, self.file
        if before is None or after is None or after.counter <= before.counter:
            return None
        same = (before.resource, before.node) == (after.resource, after.node)
        return after if same else None


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What can be said about a folder before it is used."""

    empty: bool
    """Nothing in it but what hyperha or the file system put there."""
    marker: Marker | DamagedMarker | None
    xattrs: bool
    """Files can carry ids here."""
    handles: bool
    """The file system gives file handles (needed for ids, Z3)."""
    file_system_type: int
    file_system_id: str
    private_directory: bool
    """`.hyperha` exists."""
    on_fuse: bool
    """The descriptor leads into a FUSE file system: not a backing folder (M5)."""


def _attribute() -> str:
    return "trusted.hyperha.marker" if os.geteuid() == 0 else "user.hyperha.marker"


def _encode(marker: Marker, place: str) -> bytes:
    body = json.dumps(
        {
            "resource": marker.resource,
            "node": marker.node,
            "generation": marker.generation,
            "counter": marker.counter,
            "place": place,
        },
        sort_keys=True,
    ).encode()
    return body + b"\n%08x\n" % zlib.crc32(body)


def _decode(data: bytes) -> tuple[Marker, str] | None:
    lines = data.split(b"\n")
    if len(lines) != 3 or lines[1] != b"%08x" % zlib.crc32(lines[0]):
        return None
    try:
        found = json.loads(lines[0])
        marker = Marker(
            resource=str(found["resource"]),
            node=str(found["node"]),
            generation=str(found["generation"]),
            counter=int(found["counter"]),
        )
        return marker, str(found["place"])
    except (ValueError, KeyError, TypeError):
        return None


def _open_private(folder_fd: int) -> int | None:
    flags = os.O_RDONLY | syscalls.O_DIRECTORY | _NO_FOLLOW
    try:
        return os.open(PRIVATE_NAME, flags, dir_fd=folder_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


def _read_attribute(folder_fd: int) -> bytes | None:
    try:
        return os.getxattr(folder_fd, _attribute())
    except OSError as error:
        if error.errno in (errno.ENODATA, *_UNSUPPORTED):
            return None
        raise


def _read_file(private_fd: int | None) -> bytes | None:
    if private_fd is None:
        return None
    try:
        fd = os.open(_FILE, os.O_RDONLY | _NO_FOLLOW, dir_fd=private_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def read_marker(folder_fd: int) -> Marker | DamagedMarker | None:
    """The folder's marker; None when neither place has one (R12, N6)."""
    private_fd = _open_private(folder_fd)
    try:
        attribute, file = _read_attribute(folder_fd), _read_file(private_fd)
        if attribute is None and file is None:
            return None
        place = "" if private_fd is None else syscalls.file_handle(private_fd)[0].hex()
    finally:
        if private_fd is not None:
            os.close(private_fd)
    left = None if attribute is None else _decode(attribute)
    right = None if file is None else _decode(file)
    said = tuple(one[0] if one is not None and one[1] == place else None for one in (left, right))
    if left is None:
        where = "is missing" if attribute is None else "is unreadable"
        return DamagedMarker(f"the marker attribute of the folder {where}", *said)
    if right is None:
        where = "is missing" if file is None else "is unreadable"
        return DamagedMarker(f".hyperha/marker {where}", *said)
    if left[0] != right[0]:
        return DamagedMarker("the attribute and .hyperha/marker name different states", *said)
    if left[1] != place or right[1] != place:
        return DamagedMarker("the folder or its .hyperha is a copy or was restored", *said)
    return left[0]


def write_marker(folder_fd: int, marker: Marker) -> None:
    """Make the marker durable in both places, `.hyperha/marker` first; creates `.hyperha`."""
    private_fd = private_directory(folder_fd)
    try:
        data = _encode(marker, syscalls.file_handle(private_fd)[0].hex())
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NO_FOLLOW
        fd = os.open(_NEW_FILE, flags, 0o600, dir_fd=private_fd)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(_NEW_FILE, _FILE, src_dir_fd=private_fd, dst_dir_fd=private_fd)
        os.fsync(private_fd)
    finally:
        os.close(private_fd)
    os.setxattr(folder_fd, _attribute(), data)
    os.fsync(folder_fd)


def _takes_xattrs(folder_fd: int) -> bool:
    name = _attribute().replace("marker", "probe")
    try:
        os.setxattr(folder_fd, name, b"probe")
        os.removexattr(folder_fd, name)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _gives_handles(folder_fd: int) -> bool:
    try:
        syscalls.file_handle(folder_fd)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EOVERFLOW):
            return False
        raise
    return True


def inspect(folder_fd: int) -> FolderFacts:
    """Look at a folder without changing what is in it. `folder_fd` must be readable (not O_PATH).

    Where no marker shows that extended attributes work, one is set on the root and removed again.
    """
    kind = syscalls.file_system_type(folder_fd)
    names = {os.fsencode(name) for name in os.listdir(folder_fd)}
    handles = _gives_handles(folder_fd)
    has_attribute = _read_attribute(folder_fd) is not None
    return FolderFacts(
        empty=not names - {PRIVATE_NAME, _LOST_AND_FOUND},
        marker=read_marker(folder_fd) if handles else None,
        xattrs=has_attribute or _takes_xattrs(folder_fd),
        handles=handles,
        file_system_type=kind,
        file_system_id=f"{os.fstatvfs(folder_fd).f_fsid:016x}",
        private_directory=PRIVATE_NAME in names,
        on_fuse=kind == syscalls.FUSE_SUPER_MAGIC,
    )
