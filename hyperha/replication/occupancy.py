"""Who holds a file under a folder from outside the mount: processes, loop devices, mounts (M6).

Whoever opened a plain file before the mount covered it goes on writing beside it, unseen and on one
node only. One pass over /proc and /sys finds open descriptors, working and root directories,
mappings, loop devices and mounts inside. It reads; refusing is the caller's part.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hyperha.replication import mounts
from hyperha.replication.trees import walk

_DELETED: Final = " (deleted)"
_LOOPS: Final = "/sys/block"


@dataclass(frozen=True, slots=True)
class Holder:
    """Something that holds a file under the folder."""

    pid: int
    """0 for what no process holds (a loop device, a mount)."""
    command: str
    what: str
    """open file, working directory, root directory, mapping, loop device, mount inside, link."""
    path: str

    def __str__(self) -> str:
        who = f"process {self.pid} ({self.command})" if self.pid else self.command
        return f"{who}: {self.what} {self.path}"


class _Folder:
    """Tells whether a path or an inode belongs to the folder."""

    def __init__(self, path: str, device: int) -> None:
        self.path = path.rstrip("/")
        self.prefix = self.path + "/"
        self.device = device

    def holds(self, path: str) -> bool:
        """By name; a deleted file keeps the name it had."""
        return path.startswith(self.prefix) or path.removesuffix(_DELETED) == self.path

    def same_device(self, link: str) -> bool:
        """Whether a link in /proc leads to the folder's file system (not a like-named other)."""
        try:
            return os.stat(link).st_dev == self.device
        except OSError as error:
            # A handle of a FUSE connection that was ended reaches nothing. Else it went away, or
            # may not be looked at: then the name alone counts.
            return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def _links(pid: str) -> Iterator[tuple[str, str]]:
    """What a process's links in /proc are called, and where they are."""
    yield "working directory", f"/proc/{pid}/cwd"
    yield "root directory", f"/proc/{pid}/root"
    directory = f"/proc/{pid}/fd"
    try:
        for number in os.listdir(directory):
            yield "open file", f"{directory}/{number}"
    except OSError:
        # The process ended, or is somebody else's and we have no rights.
        return


def _mappings(pid: str, folder: _Folder) -> set[str]:
    device = f"{os.major(folder.device):02x}:{os.minor(folder.device):02x}"
    found: set[str] = set()
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.rstrip("\n").split(None, 5)
                if len(fields) == 6 and fields[3] == device and folder.holds(fields[5]):
                    found.add(fields[5])
    except OSError:
        return found
    return found


def _held_by(pid: str, folder: _Folder, ours: frozenset[int]) -> Iterator[Holder]:
    command = _command(pid)
    for what, link in _links(pid):
        try:
            path = os.readlink(link)
        except OSError:
            continue
        if not folder.holds(path) or not folder.same_device(link):
            continue
        if what == "open file" and int(pid) == os.getpid() and int(link.rsplit("/", 1)[1]) in ours:
            continue
        yield Holder(int(pid), command, what, path)
    for path in sorted(_mappings(pid, folder)):
        yield Holder(int(pid), command, "mapping", path)


def _loop_devices(folder: _Folder) -> Iterator[Holder]:
    try:
        names = [name for name in os.listdir(_LOOPS) if name.startswith("loop")]
    except OSError:
        return
    for name in names:
        try:
            with open(f"{_LOOPS}/{name}/loop/backing_file", encoding="utf-8") as file:
                path = file.read().strip()
        except OSError:
            continue
        if folder.holds(path):
            yield Holder(0, f"/dev/{name}", "loop device", path)


def holders(path: str, *, ours: frozenset[int] = frozenset()) -> list[Holder]:
    """Everything that holds a file under the plain folder `path` (absolute, no symbolic links).

    `ours` are this process's own descriptors that may be open (the folder's). Without root rights
    only the caller's own processes are seen (M14). The folder must not be covered.
    """
    folder = _Folder(path, os.stat(path).st_dev)
    found: list[Holder] = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            found.extend(_held_by(pid, folder, ours))
    found.extend(_loop_devices(folder))
    for entry in mounts.beneath(folder.path, mounts.mounted()):
        found.append(Holder(0, entry.kind, "mount inside", entry.path))
    return found


def slipped_in(path: str, folder: int) -> list[Holder]:
    """Who took hold of something after `holders` had looked and before the mount covered it.

    The folder is covered now and `folder` its plain descriptor: who reaches it through the mount
    is on another file system. This process's own descriptors do not count.
    """
    plain = _Folder(path, os.fstat(folder).st_dev)
    processes = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid()]
    return [holder for pid in processes for holder in _held_by(pid, plain, frozenset())]


def links_from_outside(folder: int) -> list[str]:
    """Files that have more names than the folder shows: written to by another one, unseen (M6).

    Walks the whole plain folder; paths are below it, each with both numbers.
    """
    seen: dict[tuple[int, int], tuple[int, int, str]] = {}
    for met in walk(folder):
        status = os.stat(met.name, dir_fd=met.parent, follow_symlinks=False)
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            # A mount inside has inode numbers of its own.
            inode = status.st_dev, status.st_ino
            count = seen.get(inode, (0, 0, ""))[0]
            seen[inode] = (count + 1, status.st_nlink, os.fsdecode(met.path))
    return [
        f"{path} has {links} names, the folder shows {count} of them"
        for count, links, path in seen.values()
        if links > count
    ]
