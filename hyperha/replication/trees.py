"""Ways through a directory tree that is as deep as a guest has made it.

No path leads to its end and no stack of calls reaches there, and a process may open fewer
descriptors than it has levels: the way is a list, and a few descriptors follow its end. Links are
never followed. Nothing here knows of ids.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hyperha.replication import syscalls

DIRECTORY: Final = os.O_RDONLY | syscalls.O_DIRECTORY | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
_SPACING: Final = 32
_SPACINGS: Final = (_SPACING, _SPACING**2, _SPACING**3)
"""Above the place where one is, this many levels stay open; further up one of so many, and of so
many of those. Between them the way back is found by names."""
_PATH_BYTES: Final = 4096
_PASSED_OVER: Final = (
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE),
    *(errno.EACCES, errno.EPERM),
)
"""What vanished or became something else, and what this process may not look into."""


@dataclass(slots=True)
class _Level:
    name: bytes
    descriptor: int
    inode: tuple[int, int]

    def shut(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def open_again(self, above: int) -> bool:
        """False where the name is not that of this very directory any more."""
        try:
            found = _open_level(above, self.name)
        except OSError as error:
            if error.errno not in _PASSED_OVER:
                raise
            return False
        if found.inode != self.inode:
            found.shut()
            return False
        self.descriptor = found.descriptor
        return True


class Descent:
    """The way from a directory, whose descriptor stays the caller's, down to one below it."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._levels: list[_Level] = []

    @property
    def descriptor(self) -> int:
        """The directory where one is, until the next step."""
        return self._levels[-1].descriptor if self._levels else self._top

    @property
    def depth(self) -> int:
        """How far below the top that is."""
        return len(self._levels)

    @property
    def name(self) -> bytes:
        """The last name that leads there; empty at the top."""
        return self._levels[-1].name if self._levels else b""

    def path(self, name: bytes) -> bytes:
        """The path of a name there, for people: below the top, or the end of one that is longer
        than a path can be."""
        names, size = [name], len(name)
        for level in reversed(self._levels):
            size += len(level.name) + 1
            if size >= _PATH_BYTES:
                names.append(b"...")
                break
            names.append(level.name)
        return b"/".join(reversed(names))

    def enter(self, name: bytes) -> None:
        """Go down into a directory. Raises OSError, and stays."""
        self._levels.append(_open_level(self.descriptor, name))
        self._shut_above(self.depth)

    def leave(self) -> None:
        """Go up by one; further where the directory above was moved away meanwhile, to the next one
        that its names still lead to: look at `depth`. Raises OSError."""
        gone = self._levels.pop()
        try:
            if self._levels and self._levels[-1].descriptor < 0:
                self._open_again()
        finally:
            os.close(gone.descriptor)

    def _open_again(self) -> None:
        """By names from the next one that is open, not by `..`: out of what was moved to the top
        that leads into the mount that covers the top, which this very process may serve."""
        depth = self.depth
        while depth and self._levels[depth - 1].descriptor < 0:
            depth -= 1
        above = self._levels[depth - 1].descriptor if depth else self._top
        for place in range(depth, self.depth):
            level = self._levels[place]
            if not level.open_again(above):
                # No longer there by these names.
                del self._levels[place:]
                return
            above = level.descriptor
            self._shut_above(place + 1)

    def _shut_above(self, depth: int) -> None:
        for spacing in _SPACINGS:
            passed = depth - spacing
            if passed > 0 and (passed % spacing or spacing == _SPACINGS[-1]):
                self._levels[passed - 1].shut()

    def close(self) -> None:
        """Let go of what is open."""
        for level in self._levels:
            level.shut()


@dataclass(frozen=True, slots=True)
class Met:
    """An entry that a walk meets. Its directory is open until the next one is asked for."""

    descent: Descent
    name: bytes

    @property
    def parent(self) -> int:
        """Its directory's descriptor."""
        return self.descent.descriptor

    @property
    def path(self) -> bytes:
        """Where it is, for people (`Descent.path`)."""
        return self.descent.path(self.name)


def walk(top: int, *, without: bytes = b"") -> Iterator[Met]:
    """Every entry below a directory, those of one directory together and before what is in them.

    What has the name `without` in the top itself is passed over, and so is what is in a directory
    that vanishes meanwhile or may not be looked into. OSError where one cannot be read.
    """
    # Opened anew: a listing has a position that others use, and may not show what came since.
    own = os.open(".", DIRECTORY, dir_fd=top)
    descent = Descent(own)
    pending: list[list[bytes]] = []
    try:
        entered = True
        while True:
            if entered:
                inner = []
                for name, directory in _listing(descent.descriptor):
                    if name == without and not descent.depth:
                        continue
                    if directory:
                        inner.append(name)
                    yield Met(descent, name)
                inner.reverse()
                pending.append(inner)
                entered = False
            elif pending[-1]:
                entered = _entered(descent, pending[-1].pop())
            elif descent.depth:
                descent.leave()
                del pending[descent.depth + 1 :]
            else:
                return
    finally:
        descent.close()
        os.close(own)


def _entered(descent: Descent, name: bytes) -> bool:
    try:
        descent.enter(name)
    except OSError as error:
        if error.errno not in _PASSED_OVER:
            raise
        return False
    return True


def _listing(directory: int) -> list[tuple[bytes, bool]]:
    with os.scandir(directory) as entries:
        return [(os.fsencode(one.name), one.is_dir(follow_symlinks=False)) for one in entries]


def _open_level(above: int, name: bytes) -> _Level:
    descriptor = os.open(name, DIRECTORY, dir_fd=above)
    try:
        status = os.fstat(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return _Level(name, descriptor, _inode(status))


def is_below(top: int, directory: int) -> bool:
    """Whether a directory lies below another one."""
    current = os.dup(directory)
    try:
        # One that the kernel cannot say is not in the top itself (`open_above`).
        while (path := _said(current)) is None:
            above = os.open("..", DIRECTORY, dir_fd=current)
            os.close(current)
            current = above
    finally:
        os.close(current)
    return path.startswith((_said(top) or b"") + b"/")


def open_above(top: int, directory: int) -> int:
    """The directory above one; the caller closes it. Not by `..` where it is the top: that leads
    into the mount that covers it."""
    path = _said(directory)
    if path is not None and path.rpartition(b"/")[0] == _said(top):
        return os.open(".", DIRECTORY, dir_fd=top)
    return os.open("..", DIRECTORY, dir_fd=directory)


def _said(directory: int) -> bytes | None:
    """The path as the kernel says it; None where it is longer than it can."""
    try:
        return os.readlink(b"/proc/self/fd/%d" % directory)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None


def name_in(above: int, directory: int) -> bytes | None:
    """The name in a directory of one that it holds; None where it has none there."""
    wanted = _inode(os.fstat(directory))

    def is_it(name: bytes) -> bool:
        try:
            return _inode(os.stat(name, dir_fd=above, follow_symlinks=False)) == wanted
        except FileNotFoundError:
            return False

    hint = (_said(directory) or b"").rpartition(b"/")[2]
    # What the kernel says may be old by now.
    if hint and is_it(hint):
        return hint
    own = os.open(".", DIRECTORY, dir_fd=above)
    try:
        return next((name for name, directory in _listing(own) if directory and is_it(name)), None)
    finally:
        os.close(own)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
