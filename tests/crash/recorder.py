"""Records what a program asks of disks: the calls of `os` and `syscalls` on some directories.

The calls are really made, but for those that only wait for a disk. Everything is known by inode,
so that descriptors, `dir_fd` and paths through /proc lead to the same file. Writes and what makes
them durable are told apart as POSIX does: fsync of a file says nothing about its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperha.replication import syscalls
from tests.crash.disk import EMPTY, SECTOR, Cell, Change, Sync, Tape

_OS = (
    "open", "write", "pwrite", "ftruncate", "truncate", "fsync", "fdatasync", "rename", "replace",
    "link", "unlink", "remove", "mkdir", "rmdir", "mknod", "symlink", "setxattr", "removexattr",
    "chmod", "chown",
)  # fmt: skip
_SYSCALLS = ("sync_file_system", "rename", "set_xattr", "allocate")
_DURABLE = os.O_DSYNC | os.O_SYNC
PathOrFd = str | bytes | int | os.PathLike[str]


class Recorder:
    """Wrappers around the calls, and the tape that they fill."""

    def __init__(self, roots: dict[str, Path], sync_dice: random.Random | None) -> None:
        self.tape = Tape()
        self._real = {name: getattr(os, name) for name in _OS}
        self._real_syscalls = {name: getattr(syscalls, name) for name in _SYSCALLS}
        self._current: dict[Cell, Any] = {}
        self._keys: dict[tuple[int, int], tuple[str, int]] = {}
        """Disk and number of every inode, by device and inode."""
        self._serial = itertools.count(1)
        self._dice = sync_dice
        for disk, root in roots.items():
            self._load(disk, root)
        self.tape.baseline.update(self._current)

    # --- what is there ----------------------------------------------------------------------

    def _load(self, disk: str, root: Path) -> None:
        self.tape.roots[disk] = self._adopt(disk, os.lstat(root), root)

    def _adopt(self, disk: str, status: os.stat_result, path: Path) -> int:
        known = self._keys.get((status.st_dev, status.st_ino))
        if known is not None:
            return known[1]
        key = self._new(disk, status)
        self._current[disk, "x", key, "mode"] = status.st_mode
        if not stat.S_ISLNK(status.st_mode):
            for name in os.listxattr(path, follow_symlinks=False):
                value = os.getxattr(path, name, follow_symlinks=False)
                self._current[disk, "x", key, name] = value
        if stat.S_ISDIR(status.st_mode):
            names = {
                os.fsencode(entry.name): self._adopt(
                    disk, entry.stat(follow_symlinks=False), Path(entry.path)
                )
                for entry in os.scandir(path)
            }
            self._current[disk, "n", key, None] = names
        elif stat.S_ISREG(status.st_mode):
            self._current[disk, "s", key, None] = status.st_size
            with open(path, "rb") as file:
                for sector in itertools.count():
                    piece = file.read(SECTOR)
                    if not piece:
                        break
                    if piece.strip(b"\0"):
                        self._current[disk, "d", key, sector] = piece.ljust(SECTOR, b"\0")
        return key

    def _new(self, disk: str, status: os.stat_result) -> int:
        key = next(self._serial)
        self._keys[status.st_dev, status.st_ino] = (disk, key)
        return key

    def _of(self, place: PathOrFd, *, dir_fd: int | None = None, follow: bool = True) -> Any:
        """Disk and number of an inode; None when it is not on a recorded disk."""
        if isinstance(place, int):
            status = os.fstat(place)
        else:
            status = os.stat(place, dir_fd=dir_fd, follow_symlinks=follow)
        return self._keys.get((status.st_dev, status.st_ino))

    def _parent(self, path: PathOrFd, dir_fd: int | None) -> tuple[Any, bytes]:
        """The directory that a path's last name is in, and the name."""
        assert not isinstance(path, int), "a descriptor has no last name"
        raw = os.fsencode(path)
        above, _, name = raw.rpartition(b"/")
        if dir_fd is not None and not above:
            return self._of(dir_fd), name
        return self._of(above or b".", dir_fd=dir_fd), name

    # --- changes ----------------------------------------------------------------------------

    def _change(self, what: str, cells: list[tuple[Cell, Any]]) -> None:
        self._current.update(cells)
        self.tape.events.append(Change(tuple(cells), what))

    def _value(self, cell: Cell) -> Any:
        return self._current.get(cell, EMPTY[cell[1]])

    def _named(self, parent: Any, name: bytes, key: int | None) -> tuple[Cell, Any]:
        cell = (parent[0], "n", parent[1], None)
        names = dict(self._value(cell))
        if key is None:
            names.pop(name, None)
        else:
            names[name] = key
        return cell, names

    def _made(self, parent: Any, name: bytes, status: os.stat_result, what: str) -> None:
        key = self._new(parent[0], status)
        # What an inode is comes with its name; a later chmod is a change of its own.
        mode = (parent[0], "x", key, "mode")
        self.tape.baseline[mode] = self._current[mode] = status.st_mode
        self._change(what, [self._named(parent, name, key)])

    def _written(self, place: Any, offset: int, data: bytes, what: str) -> list[int]:
        """New values of the sectors of a range; which ones."""
        disk, key = place
        cells: list[tuple[Cell, Any]] = []
        first, last = offset // SECTOR, (offset + len(data) - 1) // SECTOR
        for sector in range(first, last + 1):
            cell = (disk, "d", key, sector)
            start = sector * SECTOR
            old = bytearray(self._value(cell))
            low, high = max(start, offset), min(start + SECTOR, offset + len(data))
            old[low - start : high - start] = data[low - offset : high - offset]
            if old != self._value(cell):
                cells.append((cell, bytes(old)))
        size = (disk, "s", key, None)
        if offset + len(data) > self._value(size):
            cells.append((size, offset + len(data)))
        self._change(what, cells)
        return list(range(first, last + 1))

    def _sized(self, place: Any, size: int, what: str) -> None:
        disk, key = place
        cells: list[tuple[Cell, Any]] = [((disk, "s", key, None), size)]
        for cell, value in list(self._current.items()):
            if cell[:3] != (disk, "d", key) or (cell[3] + 1) * SECTOR <= size:
                continue
            kept = max(0, size - cell[3] * SECTOR)
            cells.append((cell, value[:kept].ljust(SECTOR, b"\0")))
        self._change(what, cells)

    def _sync(self, matches: Callable[[Cell], bool], what: str) -> None:
        """Takes a while if there are dice for it: what is written meanwhile is not covered."""
        upto = len(self.tape.events)
        if self._dice is not None:
            self.tape.lock.release()
            try:
                time.sleep(self._dice.random() * 0.003)
            finally:
                self.tape.lock.acquire()
        self.tape.events.append(Sync(matches, upto, what))

    # --- the calls --------------------------------------------------------------------------

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        created = False
        if flags & os.O_CREAT:
            try:
                os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
            except FileNotFoundError:
                created = True
        fd: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if created:
            parent, name = self._parent(path, dir_fd)
            if parent is not None:
                self._made(parent, name, os.fstat(fd), f"create {name!r}")
        elif flags & os.O_TRUNC and (place := self._of(fd)) is not None:
            self._sized(place, 0, f"open {path!r} with O_TRUNC")
        return fd

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        written: int = self._real["pwrite"](fd, data, offset)
        self._data(fd, offset, bytes(data)[:written])
        return written

    def write(self, fd: int, data: Any) -> int:
        place = self._of(fd)
        offset = 0 if place is None else os.lseek(fd, 0, os.SEEK_CUR)
        written: int = self._real["write"](fd, data)
        if place is not None:
            self._data(fd, offset, bytes(data)[:written])
        return written

    def _data(self, fd: int, offset: int, data: bytes) -> None:
        place = self._of(fd)
        if place is None or not data:
            return
        sectors = self._written(place, offset, data, f"write {len(data)} at {offset} of {place}")
        if fcntl.fcntl(fd, fcntl.F_GETFL) & _DURABLE:
            disk, key = place
            wanted = {(disk, "d", key, sector) for sector in sectors} | {(disk, "s", key, None)}
            self._sync(wanted.__contains__, "O_DSYNC")

    def ftruncate(self, fd: int, size: int) -> None:
        self.truncate(fd, size)

    def truncate(self, path: Any, size: int) -> None:
        self._real["truncate"](path, size)
        if (place := self._of(path)) is not None:
            self._sized(place, size, f"truncate {place} to {size}")

    def fsync(self, fd: int) -> None:
        self._file_synced(fd, "dsxn")

    def fdatasync(self, fd: int) -> None:
        self._file_synced(fd, "dsn")

    def _file_synced(self, fd: int, kinds: str) -> None:
        place = self._of(fd)
        if place is not None:
            disk, key = place
            self._sync(lambda c: c[0] == disk and c[2] == key and c[1] in kinds, f"fsync {place}")

    def sync_file_system(self, fd: int) -> None:
        place = self._of(fd)
        if place is not None:
            self._sync(lambda cell: cell[0] == place[0], f"syncfs {place[0]}")

    def rename(
        self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        source = self._parent(old, src_dir_fd)
        target = self._parent(new, dst_dir_fd)
        place = self._of(old, dir_fd=src_dir_fd, follow=False)
        self._real["rename"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self._renamed(place, source, target)

    replace = rename

    def _renamed(self, place: Any, source: tuple[Any, bytes], target: tuple[Any, bytes]) -> None:
        if place is None:
            return
        # Atomic within a directory; the disk orders the names of one directory only.
        assert source[0] == target[0], "a rename between directories is not modelled"
        self._current.update([self._named(*source, None)])
        self._change(f"rename {source[1]!r} to {target[1]!r}", [self._named(*target, place[1])])

    def renameat2(self, old: int, old_name: bytes, new: int, new_name: bytes, flags: int) -> None:
        place = self._of(old_name, dir_fd=old, follow=False)
        self._real_syscalls["rename"](old, old_name, new, new_name, flags)
        self._renamed(place, (self._of(old), old_name), (self._of(new), new_name))

    def link(self, source: Any, name: Any, *, dst_dir_fd: int | None = None, **more: Any) -> None:
        self._real["link"](source, name, dst_dir_fd=dst_dir_fd, **more)
        parent, last = self._parent(name, dst_dir_fd)
        if parent is not None:
            key = self._of(name, dir_fd=dst_dir_fd)[1]
            self._change(f"link {last!r}", [self._named(parent, last, key)])

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        parent, name = self._parent(path, dir_fd)
        self._real["unlink"](path, dir_fd=dir_fd)
        if parent is not None:
            self._change(f"unlink {name!r}", [self._named(parent, name, None)])

    remove = unlink

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        parent, name = self._parent(path, dir_fd)
        self._real["rmdir"](path, dir_fd=dir_fd)
        if parent is not None:
            self._change(f"rmdir {name!r}", [self._named(parent, name, None)])

    def _make(self, call: str, path: Any, dir_fd: int | None, *arguments: Any) -> None:
        self._real[call](*arguments, dir_fd=dir_fd)
        parent, name = self._parent(path, dir_fd)
        if parent is not None:
            status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
            self._made(parent, name, status, f"{call} {name!r}")

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._make("mkdir", path, dir_fd, path, mode)

    def mknod(
        self, path: Any, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None
    ) -> None:
        self._make("mknod", path, dir_fd, path, mode, device)

    def symlink(self, source: Any, path: Any, *, dir_fd: int | None = None) -> None:
        self._make("symlink", path, dir_fd, source, path)

    def setxattr(self, path: Any, name: Any, value: bytes, flags: int = 0, **more: Any) -> None:
        self._real["setxattr"](path, name, value, flags, **more)
        self._attribute(path, os.fsdecode(name), value)

    def set_xattr(self, fd: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self._real_syscalls["set_xattr"](fd, name, value, flags)
        self._attribute(fd, os.fsdecode(name), value)

    def removexattr(self, path: Any, name: Any, **more: Any) -> None:
        self._real["removexattr"](path, name, **more)
        self._attribute(path, os.fsdecode(name), None)

    def chmod(self, path: Any, mode: int, **more: Any) -> None:
        self._real["chmod"](path, mode, **more)
        self._attribute(path, "mode", os.stat(path).st_mode)

    def chown(self, path: Any, uid: int, gid: int, **more: Any) -> None:
        self._real["chown"](path, uid, gid, **more)

    def _attribute(self, path: Any, name: str, value: Any) -> None:
        place = self._of(path)
        if place is not None:
            self._change(f"attribute {name} of {place}", [((place[0], "x", place[1], name), value)])

    def allocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        self._real_syscalls["allocate"](fd, mode, offset, length)
        if (place := self._of(fd)) is not None:
            if not mode:
                # Room only; the size is what may have changed.
                self._sized(place, os.fstat(fd).st_size, f"fallocate of {place}")
                return
            data = os.pread(fd, length, offset)
            if data:
                self._written(place, offset, data, f"fallocate {mode} of {place}")

    # --- in place of the real ones ----------------------------------------------------------

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While this lasts the calls of the whole process are recorded."""
        renamed = {"rename": "renameat2"}
        try:
            for name in _OS:
                setattr(os, name, self._locked(getattr(self, name)))
            for name in _SYSCALLS:
                setattr(syscalls, name, self._locked(getattr(self, renamed.get(name, name))))
            yield
        finally:
            for name, real in self._real.items():
                setattr(os, name, real)
            for name, real in self._real_syscalls.items():
                setattr(syscalls, name, real)

    def _locked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self.tape.lock:
                return function(*arguments, **named)

        return call

    def places(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Device and inode of every number, for whoever puts states back."""
        return {key: place for place, key in self._keys.items()}


@contextlib.contextmanager
def recording(roots: dict[str, Path], sync_dice: random.Random | None = None) -> Iterator[Recorder]:
    """Record what this process does below these directories, each a disk of its own."""
    recorder = Recorder(roots, sync_dice)
    with recorder.installed():
        yield recorder
