"""Puts what a power cut has left into real directories, so that the real recovery can read it.

Directories stay the inodes that they were, since the folder's marker holds the handle of one of
them (R12); files are made anew. A directory that has no name in a state waits in a limbo.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from tests.crash.disk import State
from tests.crash.recorder import Recorder

_RIGHTS = 0o600


class Tree:
    """The recorded directory of one disk; nobody else may use it any more."""

    def __init__(self, recorder: Recorder, disk: str, root: Path) -> None:
        self.root = root
        self._disk = disk
        self._limbo = root.with_name(f"{root.name}.limbo")
        self._limbo.mkdir()
        self._top = recorder.tape.roots[disk]
        self._directories: dict[int, Path] = {self._top: root}
        places = {place: number for number, place in recorder.places().items()}
        for base, names, _ in os.walk(root):
            for name in names:
                path = Path(base, name)
                status = path.stat()
                key = places.get((status.st_dev, status.st_ino))
                if key is not None and key[0] == disk:
                    self._directories[key[1]] = path
        self._empty()

    def _empty(self) -> None:
        """Every directory but the root into the limbo, everything else away."""
        known = {path: key for key, path in self._directories.items() if path != self.root}
        for path, key in sorted(known.items(), reverse=True):
            if path.parent == self._limbo:
                continue
            aside = self._limbo / str(key)
            path.rename(aside)
            self._directories[key] = aside
        for path in self._directories.values():
            for entry in os.scandir(path):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
            if path != self.root:
                continue
            for name in os.listxattr(path):
                os.removexattr(path, name)

    def put(self, state: State) -> None:
        """Make the directory what the state says."""
        self._empty()
        self._attributes(state, self._top, self.root)
        self._fill(state, self._top, self.root)

    def _fill(self, state: State, directory: int, path: Path) -> None:
        for raw, key in state.names(self._disk, directory).items():
            child = path / os.fsdecode(raw)
            mode = state.get((self._disk, "x", key, "mode"))
            if mode is not None and stat.S_ISDIR(mode):
                kept = self._directories.get(key)
                if kept is None:
                    child.mkdir(_RIGHTS | 0o100)
                else:
                    kept.rename(child)
                self._directories[key] = child
                self._fill(state, key, child)
            else:
                child.write_bytes(state.content(self._disk, key))
                child.chmod(_RIGHTS)
            self._attributes(state, key, child)

    def _attributes(self, state: State, key: int, path: Path) -> None:
        for name, value in state.attributes(self._disk, key).items():
            if isinstance(value, bytes):
                os.setxattr(path, name, value)
