"""A folder with a safety area, whose tree is changed at random as the engine changes it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from hyperha.core.actions import CloseSafety, OpenSafety, SafetyEnd, UndoResync
from hyperha.core.events import SafetyLost
from hyperha.core.records import Generation
from hyperha.replication import syscalls
from hyperha.replication.control import LogLine
from hyperha.replication.operations import (
    NO_ID,
    ROOT_ID,
    Allocate,
    Attributes,
    Create,
    FileId,
    Link,
    Remove,
    Rename,
    SetAttributes,
    SetXattr,
    Target,
    Truncate,
)
from hyperha.replication.safety.area import SafetyArea
from hyperha.replication.safety.retention import Keep
from hyperha.replication.store import Found, Store

GENERATION = Generation("ab" * 16, 7, "test", 0)
BLOCK = 1 << 16
FULL = {"xfs": ("mkfs.xfs", "-q", "-f"), "btrfs": ("mkfs.btrfs", "-q", "-f")}
FULL |= {kind: (f"mkfs.{kind}", "-q", "-F") for kind in ("ext3", "ext4")}


class Folder:
    """One folder, its store and its area, as one process has them."""

    def __init__(self, path: Path, *, keep: Keep | None = None, serving: bool = False) -> None:
        self.path = path
        self.keep = keep
        self.serving = serving
        self.told: list[SafetyLost | LogLine] = []
        path.mkdir(exist_ok=True)
        self.open()

    def open(self) -> None:
        """As a process does at its start."""
        descriptor = os.open(self.path, os.O_RDONLY)
        self.store = Store(descriptor)
        self.area = SafetyArea(
            descriptor, str(self.path), self.store, self.keep, lambda: self.serving,
            self.told.append,
        )  # fmt: skip
        os.close(descriptor)

    def crash(self) -> None:
        """What a process knew is gone; what it wrote is there."""
        self.close()
        self.open()

    def close(self) -> None:
        self.area.close()
        self.store.close()

    def begin(self, *, resume: bool = False, required: bool = False, gives_up: bool = False) -> str:
        required = required or gives_up
        self.area.perform(OpenSafety(1, resume, required, "R7", GENERATION, gives_up))
        return self.area.facts()[-1].id

    def end(self, end: SafetyEnd) -> None:
        self.area.perform(CloseSafety(2, end))

    def undo(self) -> None:
        self.area.perform(UndoResync(3))

    def restore(self, name: str, to: Path) -> None:
        self.area.restore(name, str(to), lambda done, total: None)


@contextlib.contextmanager
def folder_at(path: Path) -> Iterator[Folder]:
    folder = Folder(path)
    try:
        yield folder
    finally:
        folder.close()


def state_of(root: Path, *, ids: bool = True) -> dict[str, object]:
    """Everything that an undo must bring back, read without the engine."""
    found: dict[str, object] = {}
    first: dict[int, str] = {}
    for base, directories, files in os.walk(root):
        if base == str(root):
            directories[:] = [one for one in directories if one != ".hyperha"]
        directories.sort()
        for name in [".", *sorted([*directories, *files])]:
            path = os.path.join(base, name)
            if name == "." and base != str(root):
                continue
            status = os.lstat(path)
            relative = os.path.relpath(path, root)
            link, names = "", 0
            if not stat.S_ISDIR(status.st_mode):
                names = status.st_nlink
                link = first.setdefault(status.st_ino, relative)
            found[relative] = (
                oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns,
                status.st_rdev, link, names, _xattrs(path, ids), _content(path, status),
            )  # fmt: skip
    return found


def _xattrs(path: str, ids: bool) -> tuple[tuple[str, bytes], ...]:
    found = []
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        value = os.getxattr(path, name, follow_symlinks=False)
        if name == "trusted.hyperha.id":
            if ids:
                found.append((name, value[:16]))
        elif "hyperha" not in name:
            found.append((name, value))
    return tuple(found)


def _content(path: str, status: os.stat_result) -> object:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(status.st_mode):
        return None
    descriptor = os.open(path, os.O_RDONLY)
    # By whole blocks: within one a file system may write zeros where there was a hole.
    blocks: set[int] = set()
    try:
        # xfs takes room that was never written for data once somebody has read it, as done below.
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        at = 0
        while at < status.st_size:
            try:
                data = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(descriptor, data, os.SEEK_HOLE)
            blocks.update(range(data // BLOCK, (at - 1) // BLOCK + 1))
    finally:
        os.close(descriptor)
    digest = hashlib.blake2b(Path(path).read_bytes()).hexdigest()
    return status.st_size, digest, tuple(sorted(blocks - {status.st_size // BLOCK}))


class Breaker:
    """Changes a folder as a resync and live operations do: through its store."""

    def __init__(self, folder: Folder, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.grown = False

    @property
    def store(self) -> Store:
        return self.folder.store

    def grow(self, steps: int = 25) -> None:
        """A tree to begin with, every kind of inode in it."""
        for _ in range(steps):
            with contextlib.suppress(FileExistsError):
                self._create()
        for _ in range(steps):
            self.step()
        for found in list(self.store.walk()):
            if self.chance.random() < 0.9:
                self.store.identify(found.parent, found.entry.name)
        self.store.sync_all()
        self.grown = True

    def step(self) -> None:
        """One change; some do not work out."""
        choice = self.chance.choice(
            (self._create, self._create, self._write, self._write, self._write, self._truncate,
             self._punch, self._remove, self._remove, self._rename, self._rename, self._exchange,
             self._link, self._attributes, self._xattr, self._identify)
        )  # fmt: skip
        with contextlib.suppress(OSError):
            choice()

    def _all(self) -> list[Found]:
        return sorted(self.store.walk(), key=lambda one: one.path)

    def _some(self, kind: int = 0) -> Found | None:
        found = [
            one for one in self._all()
            if not kind or stat.S_IFMT(one.entry.attributes.mode) == kind
        ]  # fmt: skip
        return self.chance.choice(found) if found else None

    def _directory(self) -> FileId:
        found = self._some(stat.S_IFDIR)
        if found is None or self.chance.random() < 0.3:
            return ROOT_ID
        return self.store.identify(found.parent, found.entry.name)

    def _file(self) -> FileId:
        found = self._some(stat.S_IFREG)
        if found is None:
            return NO_ID
        return self.store.identify(found.parent, found.entry.name)

    def _name(self) -> bytes:
        return b"n%d" % self.chance.randrange(60)

    def _time(self) -> int:
        return 10**18 + self.chance.randrange(10**9)

    def _create(self) -> None:
        kind = self.chance.choice(
            (stat.S_IFREG, stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR,
             stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR)
        )  # fmt: skip
        bits = 0o777 if kind == stat.S_IFLNK else self.chance.choice((0o600, 0o755, 0o4711))
        size = self.chance.choice((0, 5, 3 * BLOCK + 77)) if kind == stat.S_IFREG else 0
        rdev = os.makedev(1, 3) if kind == stat.S_IFCHR else 0
        attributes = Attributes(
            kind | bits, self.chance.choice((0, 1000)), 0, size, self._time(), rdev
        )
        target = b"to/there" if kind == stat.S_IFLNK else b""
        file = self.store.new_id()
        self.store.apply(
            Create(self._directory(), self._name(), file, attributes, self._time(), target)
        )
        if size:
            self.store.write(file, self.chance.randrange(size), self.chance.randbytes(5000))

    def _write(self) -> None:
        offset = self.chance.choice((0, 1, BLOCK - 3, BLOCK * 2, BLOCK * 5 + 9))
        length = self.chance.choice((1, 4096, BLOCK + 5))
        self.store.write(self._file(), offset, self.chance.randbytes(length))

    def _truncate(self) -> None:
        size = self.chance.choice((0, 1, BLOCK, 2 * BLOCK + 100, 7 * BLOCK))
        self.store.apply(Truncate(self._file(), size, self._time()))

    def _punch(self) -> None:
        file = self._file()
        size = self.store.attributes(Target(file)).size
        # What is allocated and not written counts as hole or data as the page cache likes: none
        # of that in the tree to begin with.
        mode = self.chance.choice((0x01, 0x03, 0x11)) if self.grown else 0x03
        offset = self.chance.choice((0, 4096, BLOCK))
        self.store.apply(Allocate(file, mode, offset, 3 * 4096, size, self._time()))

    def _remove(self) -> None:
        found = self._some()
        if found is not None:
            self.store.apply(
                Remove(found.parent, found.entry.name, found.entry.directory, self._time())
            )

    def _rename(self, flags: int = 0) -> None:
        found, other = self._some(), self._some()
        if found is None or other is None:
            return
        place = (self._directory(), self._name())
        if flags or self.chance.random() < 0.3:
            place = (other.parent, other.entry.name)
        self.store.apply(
            Rename(found.parent, found.entry.name, *place, flags, self._time(), self._time())
        )

    def _exchange(self) -> None:
        self._rename(2)

    def _link(self) -> None:
        found = self._some()
        if found is not None and not found.entry.directory:
            source = Target(NO_ID, found.parent, found.entry.name)
            self.store.apply(Link(source, self._directory(), self._name(), self._time()))

    def _attributes(self) -> None:
        found = self._some()
        if found is None:
            return
        mode = stat.S_IFMT(found.entry.attributes.mode) | self.chance.randrange(0o7777)
        if stat.S_ISLNK(mode):
            mode = stat.S_IFLNK | 0o777
        target = Target(NO_ID, found.parent, found.entry.name)
        self.store.apply(
            SetAttributes(target, Attributes(mode, self.chance.randrange(9), 3, 0, self._time()))
        )

    def _xattr(self) -> None:
        found = self._some()
        if found is None:
            return
        target = Target(NO_ID, found.parent, found.entry.name)
        name = self.chance.choice((b"trusted.a", b"trusted.b"))
        value = self.chance.choice((None, b"", self.chance.randbytes(20)))
        self.store.apply(SetXattr(target, name, value), again=True)

    def _identify(self) -> None:
        found = self._some()
        if found is not None:
            self.store.assign_id(found.entry.handle, self.store.new_id())


@contextlib.contextmanager
def file_system(
    kind: str, base: Path, mib: int = 0, *, options: Sequence[str] = ()
) -> Iterator[Path]:
    """A file system of its own on a loop image; `mib` 0: as small as it can be made."""
    image, place = base / f"{kind}.img", base / f"{kind}-mount"
    place.mkdir()
    size = mib or {"xfs": 320, "btrfs": 160, "ext4": 64}[kind]
    with open(image, "wb") as file:
        file.truncate(size << 20)
    run = subprocess.run
    run([*FULL[kind], *options, str(image)], check=True, capture_output=True)
    run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        # Also when the frames of a test that failed keep descriptors.
        run(["umount", "-l", str(place)], check=True, capture_output=True)
        image.unlink()


def fill(path: Path, leave_bytes: int) -> None:
    """Take all room of a file system but some."""
    room = os.statvfs(path)
    size = room.f_bavail * room.f_frsize - leave_bytes
    descriptor = os.open(path / "filler", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        syscalls.allocate(descriptor, 0, 0, size)
    finally:
        os.close(descriptor)
