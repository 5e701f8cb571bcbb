"""What a resync moves aside on the target: names without a place in the tree of the source.

They wait below the private directory until the last directory is equal, so that what has only moved
is found by its id; then they are deleted. A broken resync leaves them to the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import Final

from hyperha.errors import ReplicationError
from hyperha.replication import syscalls
from hyperha.replication.entries import Descriptor, remove_tree
from hyperha.replication.operations import FileId
from hyperha.replication.store import PRIVATE_NAME, Store

log = logging.getLogger(__name__)

LOST: Final = "lost"
"""Below the private directory: what was moved aside, in a directory for each session."""
_PREFIX: Final = PRIVATE_NAME + b"/" + LOST.encode() + b"/"
_DEPTH: Final = 3
"""Slashes in the path of what was moved aside itself: it is in no directory of the copy's."""


class Aside:
    """One session's place for it; used by one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._directory = -1
        self._count = 0
        self._learned = False

    def learn(self) -> None:
        """Know by its id, once, what a resync that broke off has moved aside and not brought back:
        it is neither copied anew nor in the way twice. Raises OSError."""
        if self._learned:
            return
        private = self._store.private_directory()
        try:
            lost = os.open(LOST, os.O_RDONLY | syscalls.O_DIRECTORY, dir_fd=private)
            self._store.learn_below(Descriptor(lost, directory=True))
        except FileNotFoundError:
            # No resync has broken off here.
            pass
        finally:
            os.close(private)
        self._learned = True

    def move(self, directory: FileId, name: bytes) -> None:
        """Take a name out of a directory of the copy. Raises OSError."""
        held = self._store.directory(directory)
        guard = self._store.guard
        if guard is not None:
            guard.directory(held.fd)
            guard.moved(held.fd, name)
        self._count += 1
        syscalls.rename(held.fd, name, self._place(), b"%d" % self._count, 0)

    def _place(self) -> int:
        if self._directory < 0:
            private = self._store.private_directory()
            try:
                os.makedirs(f"/proc/self/fd/{private}/{LOST}", mode=0o700, exist_ok=True)
                place = f"{LOST}/{os.urandom(8).hex()}"
                os.mkdir(place, 0o700, dir_fd=private)
                flags = os.O_RDONLY | syscalls.O_DIRECTORY | syscalls.O_CLOEXEC
                self._directory = os.open(place, flags, dir_fd=private)
            finally:
                os.close(private)
        return self._directory

    def purge(self) -> None:
        """All directories are equal: delete what nobody wanted back, also of earlier resyncs."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
        names = lost_names(self._store)
        if names:
            threading.Thread(
                target=_purge, args=(self._store, names), name="purge", daemon=True
            ).start()


def is_aside(path: bytes) -> bool:
    """Whether what has this path below the folder was itself moved aside."""
    return path.count(b"/") == _DEPTH and path.startswith(_PREFIX)


def lost_names(store: Store) -> list[str]:
    """The places of finished and broken resyncs below `lost`."""
    private = store.private_directory()
    try:
        return os.listdir(f"/proc/self/fd/{private}/{LOST}")
    except FileNotFoundError:
        return []
    finally:
        os.close(private)


def _purge(store: Store, names: list[str]) -> None:
    guard = store.guard
    try:
        with contextlib.nullcontext() if guard is None else guard.tidying:
            tidy(store, names)
    except (OSError, ReplicationError) as error:
        # Space only; the next resync tries again.
        log.warning("what a resync moved aside cannot be deleted: %s", error)


def tidy(store: Store, names: list[str]) -> None:
    """`purge`, by who holds the guard's `tidying`. OSError: some of it is left."""

    def leaving(directory: int, name: bytes) -> None:
        guard = store.guard
        if guard is not None:
            # What was there before the resync is kept by the safety copy (R15).
            guard.last_name(directory, name)

    private = store.private_directory()
    try:
        lost = os.open(LOST, os.O_RDONLY | syscalls.O_DIRECTORY, dir_fd=private)
        try:
            for name in names:
                remove_tree(lost, name, leaving)
        finally:
            os.close(lost)
    finally:
        os.close(private)
