"""Performs steps in one folder as the users that they name, and says what each one gave.

What comes back is the same in any folder of the same file system: no inode numbers, no moments.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from hyperha.replication import syscalls
from tests.filesystem.steps import PAGE, USERS, Step

LONG_AGO_NS = 10**18
"""Times before it were set by a step; later ones are those of the machine's clock."""
_HERE = -100  # AT_FDCWD
_DEVICES = (stat.S_IFBLK, stat.S_IFCHR)


@contextmanager
def acting(user: int) -> Iterator[None]:
    """The file system's rights of that user, without any capability unless it is root."""
    uid, gid, groups = USERS[user]
    if uid == 0:
        yield
        return
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(())


def plain_time(nanoseconds: int) -> int | str:
    """A time that can be compared with that of another folder."""
    return nanoseconds if nanoseconds < LONG_AGO_NS else "now"


def facts(status: os.stat_result) -> tuple[object, ...]:
    """What stat(2) says, as far as it is the same everywhere."""
    folder = stat.S_ISDIR(status.st_mode)
    return (
        oct(status.st_mode), status.st_uid, status.st_gid, status.st_nlink, status.st_rdev,
        0 if folder else status.st_size, plain_time(status.st_mtime_ns),
    )  # fmt: skip


@dataclass(slots=True)
class Held:
    """An open file and its mapping."""

    fd: int
    flags: int
    mapping: mmap.mmap | None = None

    def close(self) -> None:
        if self.mapping is not None:
            self.mapping.close()
            self.mapping = None
        os.close(self.fd)

    def size(self) -> int:
        return os.fstat(self.fd).st_size


def _aligned(length: int) -> mmap.mmap:
    return mmap.mmap(-1, max(PAGE, -(-length // PAGE) * PAGE))


def _data_from(fd: int, position: int, size: int) -> int:
    """Where data begins, from a position in the file on; its end where there is none."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as problem:
        if problem.errno != errno.ENXIO or position > size:
            raise
        return size


class World:
    """One folder, whose descriptor it takes over, and what is open in it."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._held: dict[int, Held] = {}
        self._mask = 0o022
        self._home = os.open(".", syscalls.O_PATH)

    def close(self) -> None:
        """Close everything that steps have left open, and the folder."""
        held, self._held = self._held, {}
        for one in held.values():
            with suppress(OSError):
                one.close()
        if self._folder >= 0:
            os.close(self._folder)
            os.close(self._home)
            self._folder = -1

    def close_nameless(self) -> None:
        """Close files without a name: they end with the process that serves them."""
        for slot, held in list(self._held.items()):
            if os.fstat(held.fd).st_nlink == 0:
                self._close(slot)

    def do(self, step: Step) -> object:
        """What the step gave: a value, or the name of its error."""
        os.fchdir(self._folder)
        former = os.umask(self._mask)
        try:
            with acting(step.user):
                result = getattr(self, f"_{step.kind}")(*step.arguments)
        except OSError as problem:
            result = errno.errorcode[problem.errno or 0]
        except ValueError as problem:
            result = str(problem)
        finally:
            os.umask(former)
            os.fchdir(self._home)
        return result

    def _at(self, slot: int) -> Held:
        held = self._held.get(slot)
        if held is None:
            raise ValueError("nothing open")
        return held

    # --- handles --------------------------------------------------------------------------

    def _take(self, slot: int, fd: int, flags: int) -> object:
        self._held[slot] = Held(fd, flags)
        return facts(os.fstat(fd))

    def _open(self, slot: int, name: str, flags: int, mode: int) -> object:
        self._close(slot)
        with suppress(OSError):
            if stat.S_IFMT(os.stat(name).st_mode) in _DEVICES:
                return "not opened"  # Mounts of tests forbid devices.
        return self._take(slot, os.open(name, flags | os.O_NONBLOCK, mode), flags)

    def _temporary(self, slot: int, name: str, flags: int, mode: int) -> object:
        self._close(slot)
        flags |= os.O_TMPFILE | os.O_RDWR
        return self._take(slot, os.open(name, flags, mode), flags & ~os.O_EXCL)

    def _close(self, slot: int) -> None:
        held = self._held.pop(slot, None)
        if held is not None:
            held.close()

    def _name_again(self, slot: int, name: str) -> None:
        """linkat(2) of an open file, as one does with O_TMPFILE."""
        self._link(f"/proc/self/fd/{self._at(slot).fd}", name, True)

    # --- data -----------------------------------------------------------------------------

    def _write(self, slot: int, offset: int, value: int, length: int) -> object:
        held = self._at(slot)
        if not held.flags & os.O_DIRECT:
            return os.pwrite(held.fd, bytes((value,)) * length, offset)
        if held.flags & os.O_APPEND and stat.S_ISREG(os.fstat(held.fd).st_mode):
            return "not written"  # At an end that is not aligned file systems differ.
        with _aligned(length) as memory:
            memory[:] = bytes((value,)) * len(memory)
            return os.pwrite(held.fd, memory, offset // PAGE * PAGE)

    def _read(self, slot: int, offset: int, length: int) -> object:
        held = self._at(slot)
        if not held.flags & os.O_DIRECT:
            return os.pread(held.fd, length, offset)
        with _aligned(length) as memory:
            got = os.preadv(held.fd, [memory], offset // PAGE * PAGE)
            return memory[:got]

    def _cut(self, slot: int, size: int) -> None:
        os.ftruncate(self._at(slot).fd, size)

    def _cut_name(self, name: str, size: int) -> None:
        os.truncate(name, size)

    def _sync(self, slot: int, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self._at(slot).fd)

    def _sync_all(self) -> None:
        syscalls.sync_file_system(self._folder)

    def _allocate(self, slot: int, mode: int, offset: int, length: int) -> object:
        held = self._at(slot)
        if stat.S_ISFIFO(os.fstat(held.fd).st_mode):
            return "no file"
        syscalls.allocate(held.fd, mode, offset, min(length, 1 << 20))
        return held.size()

    def _map(self, slot: int, writable: bool) -> object:
        held = self._at(slot)
        size = min(held.size(), 1 << 20)
        if size == 0 or not stat.S_ISREG(os.fstat(held.fd).st_mode):
            return "nothing to map"
        if held.mapping is not None:
            held.mapping.close()
            held.mapping = None
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        held.mapping = mmap.mmap(held.fd, size, mmap.MAP_SHARED, protection)
        return size

    def _mapped(self, slot: int, offset: int, length: int) -> tuple[mmap.mmap, int, int]:
        held = self._at(slot)
        if held.mapping is None:
            raise ValueError("nothing mapped")
        end = min(len(held.mapping), held.size())
        if offset >= end:
            raise ValueError("beyond the end")
        return held.mapping, offset, min(offset + length, end)

    def _map_write(self, slot: int, offset: int, value: int, length: int, flush: bool) -> object:
        mapping, start, end = self._mapped(slot, offset, length)
        try:
            mapping[start:end] = bytes((value,)) * (end - start)
        except TypeError:
            return "read only"
        if flush:
            mapping.flush()
        return end - start

    def _map_read(self, slot: int, offset: int, length: int) -> object:
        mapping, start, end = self._mapped(slot, offset, length)
        return mapping[start:end]

    def _unmap(self, slot: int) -> None:
        held = self._at(slot)
        if held.mapping is not None:
            held.mapping.close()
            held.mapping = None

    def _copy(self, source: int, target: int, start: int, to: int, length: int) -> object:
        first, second = self._at(source), self._at(target)
        if (first.flags | second.flags) & os.O_DIRECT:
            return "not copied"
        done = 0
        while done < length:
            got = os.copy_file_range(first.fd, second.fd, length - done, start + done, to + done)
            if got == 0:
                break
            done += got
        return done

    def _holes(self, slot: int, offset: int) -> object:
        """Where holes are said to be, nothing is read but zeros; how many is not POSIX's. What was
        written through a mapping may count only once it is synced: the kernel asks before."""
        held = self._at(slot)
        status = os.fstat(held.fd)
        if held.flags & (os.O_WRONLY | os.O_DIRECT) or not stat.S_ISREG(status.st_mode):
            return "not looked at"
        right = self._holes_are_empty(held, offset)
        mapped = [os.fstat(one.fd) for one in self._held.values() if one.mapping is not None]
        if not right and any(os.path.samestat(status, one) for one in mapped):
            os.fsync(held.fd)
            right = self._holes_are_empty(held, offset)
        return right

    def _holes_are_empty(self, held: Held, offset: int) -> bool:
        size = held.size()
        data = _data_from(held.fd, offset, size)
        hole = os.lseek(held.fd, offset, os.SEEK_HOLE)
        end = _data_from(held.fd, hole, size)
        read = os.pread(held.fd, min(data - offset, 1 << 20), offset)
        read += os.pread(held.fd, min(end - hole, 1 << 20), hole)
        return not any(read) and offset <= data <= size and offset <= hole <= end <= size

    # --- inodes ---------------------------------------------------------------------------

    def _status(self, name: str, follow: bool) -> object:
        return facts(os.stat(name, follow_symlinks=follow))

    def _status_open(self, slot: int) -> object:
        return facts(os.fstat(self._at(slot).fd))

    def _chmod(self, name: str, mode: int) -> None:
        os.chmod(name, mode)

    def _chmod_open(self, slot: int, mode: int) -> None:
        os.fchmod(self._at(slot).fd, mode)

    def _chown(self, name: str, owner: int, group: int) -> None:
        os.lchown(name, owner, group)

    def _chown_open(self, slot: int, owner: int, group: int) -> None:
        os.fchown(self._at(slot).fd, owner, group)

    def _write_back(self) -> None:
        """What was written through mappings sets a time of its own, at some moment until msync(2):
        POSIX does not say whether before or behind a time that is set meanwhile."""
        for held in self._held.values():
            if held.mapping is not None:
                held.mapping.flush()

    def _times(self, name: str, atime: int, mtime: int, follow: bool) -> None:
        self._write_back()
        os.utime(name, ns=(atime, mtime), follow_symlinks=follow)

    def _times_open(self, slot: int, now: int | None, mtime: int) -> None:
        self._write_back()
        os.utime(self._at(slot).fd, **({"ns": (0, mtime)} if now is None else {}))

    def _access(self, name: str, mode: int) -> object:
        return os.access(name, mode, effective_ids=True)

    def _set_xattr(self, name: str, attribute: str, value: bytes, flags: int) -> None:
        os.setxattr(name, attribute, value, flags, follow_symlinks=False)

    def _set_xattr_open(self, slot: int, attribute: str, value: bytes, flags: int) -> None:
        os.setxattr(self._at(slot).fd, attribute, value, flags)

    def _acl(self, name: str, attribute: str, value: bytes, flags: int) -> None:
        os.setxattr(name, attribute, value, flags)
        # By the mode that a list gives links are judged once the kernel has heard it.
        os.stat(name)

    def _get_xattr(self, name: str, attribute: str) -> object:
        return os.getxattr(name, attribute, follow_symlinks=False)

    def _remove_xattr(self, name: str, attribute: str) -> None:
        os.removexattr(name, attribute, follow_symlinks=False)

    def _list_xattr(self, name: str) -> object:
        names = os.listxattr(name, follow_symlinks=False)
        return sorted(one for one in names if not one.startswith("trusted.hyperha"))

    # --- names ----------------------------------------------------------------------------

    def _mkdir(self, name: str, mode: int) -> None:
        os.mkdir(name, mode)

    def _rmdir(self, name: str) -> None:
        os.rmdir(name)

    def _unlink(self, name: str) -> None:
        os.unlink(name)

    def _link(self, old: str, new: str, follow: bool) -> None:
        try:
            os.link(old, new, src_dir_fd=self._folder, follow_symlinks=follow)
        except PermissionError as problem:
            if problem.errno != errno.EPERM:
                raise
            # The kernel refuses a stranger by the mode that it heard last: now it hears it.
            os.stat(old, follow_symlinks=follow)
            os.link(old, new, src_dir_fd=self._folder, follow_symlinks=follow)

    def _symlink(self, text: str, name: str) -> None:
        os.symlink(text, name)

    def _node(self, name: str, mode: int, device: int) -> None:
        os.mknod(name, mode, device)

    def _rename(self, old: str, new: str, flags: int) -> None:
        syscalls.rename(_HERE, os.fsencode(old), _HERE, os.fsencode(new), flags)

    def _readlink(self, name: str) -> object:
        return os.readlink(name)

    def _list(self, name: str) -> object:
        return sorted(os.listdir(name))

    def _umask(self, value: int) -> None:
        self._mask = value
