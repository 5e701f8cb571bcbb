"""Two real replication processes over one plain folder as the oracle: one directory per sequence.

The copies are read below the mounts, through the descriptors that a daemon would keep.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperha.core import actions
from hyperha.core.actions import SessionStart
from hyperha.core.events import SessionLost
from tests.filesystem.copies import difference, snapshot
from tests.support.engine_pair import free_ports
from tests.support.engine_process import NodeProcess, ProcessPair


def backing(node: NodeProcess) -> int:
    """The plain folder of a node, below its mount."""
    assert node.kept is not None
    names, descriptors = node.kept
    return descriptors[names.names.index("folder")]


class Trio:
    """The mount of the primary, the secondary's copy, and the plain folder."""

    def __init__(self, base: Path) -> None:
        self.plain = base / "plain"
        self.plain.mkdir()
        self.pair = ProcessPair(base, free_ports(2))
        try:
            self.pair.a.attach()
            self.pair.b.attach()
            self.pair.in_sync()
        except BaseException:
            self.pair.close()
            raise
        self._resynced = False
        self._watch: threading.Thread | None = None
        self._failed: list[BaseException] = []

    def close(self) -> None:
        self.pair.close()

    @property
    def mounted(self) -> Path:
        return self.pair.a.folder

    # --- one sequence ---------------------------------------------------------------------

    def make(self, name: str, mode: int, owner: int, group: int) -> None:
        """A directory of the same rights in both folders, ready for steps."""
        self._resynced = False
        for folder in (self.mounted, self.plain):
            path = folder / name
            path.mkdir()
            os.chown(path, owner, group)
            path.chmod(mode)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.mounted / name)
        shutil.rmtree(self.plain / name)

    def unequal(self, name: str) -> list[str]:
        """How the three copies of a directory differ, after a barrier on both nodes."""
        self.pair.a.do(actions.Barrier)
        found = []
        for folder in (backing(self.pair.a), backing(self.pair.b)):
            with _opened(name, folder) as fd:
                found.append(snapshot(fd))
        with _opened(str(self.plain / name)) as fd:
            oracle = snapshot(fd)
        first, second = found
        return [
            *difference(
                first, second, said="primary, secondary", nodes=True, resynced=self._resynced
            ),
            *difference(first, oracle, said="primary, plain"),
        ]

    # --- losing the session -----------------------------------------------------------------

    def lose(self) -> None:
        """The secondary dies now; what is held meanwhile is released when the primary is alone."""
        pair = self.pair
        pair.b.kill()
        pair.b.drop_kept()
        self._start(self._alone)

    def _alone(self) -> None:
        a = self.pair.a
        a.wait(SessionLost)
        a.do(actions.EnterAlone, "g0")
        a.do(actions.Release)

    def return_(self) -> None:
        """The secondary comes back and is made equal, while steps go on."""
        self.settle()
        self._start(self._returned)

    def _returned(self) -> None:
        self.pair.b.start()
        self.pair.b.attach(fresh=False)
        self.pair.resync(SessionStart.CANDIDATES)

    def succeed(self) -> None:
        """The primary's process dies and a successor adopts its mount, while steps go on (M4)."""
        self.settle()
        self.pair.a.kill()
        self._start(self._succeeded)

    def _succeeded(self) -> None:
        a, b = self.pair.a, self.pair.b
        a.succeed()
        b.wait(SessionLost)
        b.do(actions.CloseSession)
        self.pair.resync(SessionStart.CANDIDATES)

    def settle(self) -> None:
        """Wait for the end of what was begun beside the steps."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.join()
        if self._failed:
            raise self._failed.pop()

    def _start(self, work: Callable[[], None]) -> None:
        self.settle()
        self._resynced = True

        def run() -> None:
            try:
                work()
            except BaseException as problem:
                self._failed.append(problem)

        self._watch = threading.Thread(target=run, daemon=True)
        self._watch.start()


@contextmanager
def _opened(path: str, folder: int | None = None) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)
