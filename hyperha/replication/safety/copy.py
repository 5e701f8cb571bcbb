"""One safety copy on disk: its directory in `.hyperha/safety`, its record, and what it keeps whole.

    <id>/record   double slot (S2): state, opening, why it was made
    <id>/undo     the undo log
    <id>/files/   inodes that lost their last name, under their handles
    <id>/clones/  reflinks of files of which much was about to be overwritten

Everything is reached below the held descriptor of the folder, one component at a time (M13). This
module knows where things are; what is saved and put back is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Container
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from hyperha.durable import DurableRecord
from hyperha.errors import FailedError, HyperhaError, RecordDamagedError
from hyperha.replication import identity, syscalls
from hyperha.replication.entries import PRIVATE_NAME, remove_tree
from hyperha.replication.safety.undo_log import Index, Listing, SavedInode, SavedName, UndoLog

AREA: Final = "safety"
FILES: Final = "files"
CLONES: Final = "clones"
LEAVING: Final = ".deleted-"
"""Before the name of a copy that is being deleted."""
_VERSION: Final = 2
_OLDEST: Final = 1
"""Also read; it becomes the present one before anything is added that it does not know."""
_DIRECTORY: Final = os.O_RDONLY | syscalls.O_DIRECTORY | syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
_NO_FOLLOW: Final = syscalls.O_NOFOLLOW | syscalls.O_CLOEXEC
_JOURNALS: Final = (syscalls.EXT_SUPER_MAGIC, syscalls.XFS_SUPER_MAGIC)
"""ext4 and xfs keep changes of names in their order; elsewhere the new name is synced first."""


class State(StrEnum):
    """What a copy is good for."""

    OPEN = "open"
    """The resync that it belongs to can be undone."""
    KEPT = "kept"
    """The former state can be restored to another place."""
    LOST = "lost"
    """Given up: nothing can be restored from it any more."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the record says. Sizes are as of the last change of the state."""

    id: str
    opened_wall_ms: int
    state: State
    required: bool
    rule: str
    generation: str
    ordinal: int
    """Of the line of data that the copy holds."""
    saved_bytes: int = 0
    files: int = 0
    """Inodes of which something is saved."""
    text: str = ""
    """Why it was lost."""
    lived_ms: int = 0
    """For how long it was looked after since its resync ended, by a clock that nobody sets."""
    gives_up: bool = False
    """A line of data gave way: nobody else holds what it had acknowledged (N3)."""

    @property
    def stands(self) -> bool:
        """Whether it is kept whatever room that takes: a guest rather meets a full disk (N3)."""
        return self.gives_up and self.state is State.KEPT


def open_below(parent: int, name: str | bytes) -> int:
    """A descriptor of a directory's subdirectory, never through a link (M13)."""
    return os.open(name, _DIRECTORY, dir_fd=parent)


def make_below(parent: int, name: str) -> int:
    """`open_below`; made first where it is missing, durably."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
        os.fsync(parent)
    except FileExistsError:
        pass
    return open_below(parent, name)


def open_area(folder: int) -> int:
    """A new descriptor of `.hyperha/safety`; made where it is missing."""
    private = make_below(folder, os.fsdecode(PRIVATE_NAME))
    try:
        return make_below(private, AREA)
    finally:
        os.close(private)


def file_name(handle: bytes) -> str:
    """The name of an inode in `files` and `clones`."""
    return handle.hex()


def saved_inode(descriptor: int, handle: bytes) -> SavedInode:
    """Attributes and extended attributes of the inode behind any descriptor."""
    status = os.fstat(descriptor)
    path = b"/proc/self/fd/%d" % descriptor
    xattrs = []
    try:
        names = sorted(os.fsencode(name) for name in os.listxattr(path))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        names = []
    for name in names:
        if not identity.is_hidden_xattr(name):
            xattrs.append((name, os.getxattr(path, name)))
    regular = stat.S_ISREG(status.st_mode)
    return SavedInode(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        rdev=status.st_rdev,
        size=status.st_size if regular else 0,
        mtime_ns=status.st_mtime_ns,
        file=identity.read_id(descriptor, b"", handle, privileged=True),
        xattrs=tuple(xattrs),
    )


def names_in(directory: int) -> list[str]:
    """The names in a directory. By a new descriptor: one that was open before may not show what
    came since (btrfs), and has a position that others use."""
    descriptor = os.open(".", _DIRECTORY, dir_fd=directory)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def scan_listing(directory: int, *, root: bool) -> Listing:
    """The names in a directory with handle and type, as they are. `root`: of the folder, whose
    `.hyperha` is no part of the copy. ENOENT when a name goes away meanwhile."""
    listing: Listing = {}
    for name in map(os.fsencode, names_in(directory)):
        if root and name == PRIVATE_NAME:
            continue
        handle, _ = syscalls.file_handle(directory, name)
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        listing[name] = SavedName(handle, stat.S_IFMT(mode))
    return listing


class SafetyCopy:
    """One copy. Owns its descriptors; the caller sees to one user of each method at a time."""

    def __init__(self, area: int, facts: Facts | None, name: str) -> None:
        self.id = name
        self._version = _VERSION
        """What the record says of the form of the log."""
        self.directory = open_below(area, name)
        self._record = DurableRecord(
            Path(f"/proc/self/fd/{self.directory}/record"), owner=f"safety {name}"
        )
        self._log_flags = os.O_RDWR | os.O_CREAT | _NO_FOLLOW
        try:
            self.files = make_below(self.directory, FILES)
        except OSError:
            os.close(self.directory)
            raise
        try:
            self.ordered = syscalls.file_system_type(self.directory) in _JOURNALS
            self.facts = self._load() if facts is None else facts
            if facts is not None:
                self._record.store_json(_plain(facts))
                os.fsync(self.directory)
        except (OSError, HyperhaError):
            # Held open, what is deleted then would keep its inodes.
            self.close()
            raise

    @classmethod
    def create(cls, area: int, facts: Facts) -> SafetyCopy:
        """Make a copy, durably: it is open when this returns."""
        os.mkdir(facts.id, 0o700, dir_fd=area)
        copy = None
        try:
            copy = cls(area, facts, facts.id)
            os.close(copy._open_log())
            os.fsync(copy.directory)
            os.fsync(area)
        except (OSError, HyperhaError):
            # What has a record would be taken for an open copy later.
            if copy is not None:
                copy.close()
            remove_tree(area, facts.id)
            raise
        return copy

    def _load(self) -> Facts:
        found = self._record.load_json()
        if found is None:
            raise RecordDamagedError(f"the safety copy {self.id} has no record")
        version = found.pop("version", None)
        if type(version) is not int or not _OLDEST <= version <= _VERSION:
            raise FailedError(
                f"the safety copy {self.id} has format {version}, this program knows {_VERSION}",
                "Use the version of hyperha that made it.",
            )
        self._version = version
        # An older record does not say it: rather kept for too long.
        found.setdefault("gives_up", found.get("required", False))
        try:
            return replace(Facts(**found), state=State(found["state"]))
        except (TypeError, ValueError) as problem:
            raise RecordDamagedError(
                f"the record of the safety copy {self.id} is not understood: {problem}"
            ) from None

    def change(self, **values: Any) -> None:
        """Change the record, durably."""
        facts = replace(self.facts, **values)
        self._record.store_json(_plain(facts))
        self.facts, self._version = facts, _VERSION

    def renew(self) -> None:
        """Before something is added: a program that does not know its form refuses the copy."""
        if self._version != _VERSION:
            self.change()

    def _open_log(self) -> int:
        return os.open("undo", self._log_flags, 0o600, dir_fd=self.directory)

    def open_log(self) -> UndoLog:
        """A new object for the log, at its beginning."""
        return UndoLog(self._open_log(), self.id)

    def read(self) -> Index:
        """All that is saved, with the places of the blocks. The caller closes its log."""
        index = Index(self.open_log(), runs=True)
        index.refresh()
        return index

    # --- what is kept whole ---------------------------------------------------------------

    def kept(self) -> set[bytes]:
        """The handles of the inodes in `files`."""
        return {bytes.fromhex(name) for name in names_in(self.files)}

    def keep(self, directory: int, name: bytes, handle: bytes) -> None:
        """Give an inode that is about to lose its last name one here."""
        try:
            os.link(
                name,
                file_name(handle),
                src_dir_fd=directory,
                dst_dir_fd=self.files,
                follow_symlinks=False,
            )
        except FileExistsError:
            return
        if not self.ordered:
            os.fsync(self.files)

    def names(self, handle: bytes) -> int:
        """How many names an inode in `files` has in all."""
        return os.stat(file_name(handle), dir_fd=self.files, follow_symlinks=False).st_nlink

    def release(self, handle: bytes) -> None:
        """Take the name here from an inode."""
        os.unlink(file_name(handle), dir_fd=self.files)

    def clone(self, descriptor: int, handle: bytes) -> bool:
        """Clone a file, durably. False where the file system cannot, or has no inode for it."""
        name = file_name(handle)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | _NO_FOLLOW
        with contextlib.ExitStack() as held:
            try:
                clones = make_below(self.directory, CLONES)
                held.callback(os.close, clones)
                made = os.open(name, flags, 0o600, dir_fd=clones)
                held.callback(os.close, made)
            except OSError as error:
                if error.errno in syscalls.FULL_ERRORS:
                    return False
                raise
            try:
                syscalls.clone_file(made, descriptor)
                os.fsync(made)
            except OSError as error:
                os.unlink(name, dir_fd=clones)
                if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV):
                    return False
                raise
            os.fsync(clones)
        return True

    def open_clone(self, handle: bytes) -> int:
        """A descriptor to read a clone."""
        clones = open_below(self.directory, CLONES)
        try:
            return os.open(file_name(handle), os.O_RDONLY | _NO_FOLLOW, dir_fd=clones)
        finally:
            os.close(clones)

    def size(self) -> int:
        """Bytes on disk that the copy keeps from being free; a clone counts whole."""
        total = _used(self.directory, "undo")
        for name in (FILES, CLONES):
            try:
                place = open_below(self.directory, name)
            except FileNotFoundError:
                continue
            try:
                total += sum(_used(place, file) for file in os.listdir(place))
            finally:
                os.close(place)
        return total

    def give_up(self, text: str, *, drop: bool = True) -> None:
        """Say durably that the copy is good for nothing, then free what it held."""
        self.change(state=State.LOST, text=text, saved_bytes=0 if drop else self.size(), files=0)
        if drop:
            self.drop()

    def drop(self) -> None:
        """Free the room of a copy that was given up; the record stays."""
        for name in ("undo", CLONES, FILES):
            remove_tree(self.directory, name)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.files)
        os.close(self.directory)


def _used(directory: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        # Given up meanwhile.
        return 0


def _plain(facts: Facts) -> dict[str, Any]:
    return {"version": _VERSION, **asdict(facts)}


def is_unborn(area: int, name: str) -> bool:
    """Whether a copy's making was cut short: nobody was told of it, and it holds nothing."""
    directory = open_below(area, name)
    try:
        return not {"record", "undo"} & set(names_in(directory))
    finally:
        os.close(directory)


def delete(area: int, name: str) -> None:
    """Delete a copy: gone when this returns, also if it is cut short in the middle."""
    leaving = LEAVING + name
    os.rename(name, leaving, src_dir_fd=area, dst_dir_fd=area)
    os.fsync(area)
    remove_tree(area, leaving)


def new_id(known: Container[str]) -> str:
    """A name for a copy, none of those known: when it was opened, and something random."""
    while True:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        name = f"{stamp}-{os.urandom(2).hex()}"
        if name not in known:
            return name
