"""The mounts of one module's folder, one on top of the other, with no uncovered moment (M2, M3).

A session that leaves PRIM or ALONE is replaced: a new mount is put on top and served, then the old
connection is aborted. The dead layer stays below the living one (the kernel detaches a mount only
together with what lies on it) and goes when the folder is uncovered.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from hyperha.errors import FailedError
from hyperha.replication import mounts
from hyperha.replication.fuse import fence as fencing
from hyperha.replication.fuse import mount as mounting
from hyperha.replication.fuse.fence import Fence
from hyperha.replication.mounts import MountEntry, MountWatch


@dataclass(slots=True)
class Layer:
    """One mount: its /dev/fuse descriptor (the session owns it), its fence, its line in mountinfo.

    `fence` is None only without rights, where nothing can be fenced (M14).
    """

    device: int
    entry: MountEntry
    fence: Fence | None


class MountStack:
    """Covers one folder. `path` must be absolute and free of symbolic links.

    `run_directory` is a directory of ours outside the folder. Used by one thread at a time.
    """

    def __init__(self, path: str, name: str, run_directory: str) -> None:
        _check_path(path)
        self.path = path
        self._name = name
        self._run_directory = run_directory
        self._layers: list[Layer] = []
        self._watch: MountWatch | None = None

    def peel_stale(self) -> int:
        """Remove what an earlier daemon left mounted here (M5); how many layers there were."""
        return fencing.peel(self.path, self._run_directory)

    def open_folder(self) -> int:
        """Open the plain folder, after stale mounts were peeled and before it is covered (M5).

        Raises RefusedError when it is not a plain folder or has mounts inside.
        """
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounting.check_backing(self.path, folder)
        except BaseException:
            os.close(folder)
            raise
        return folder

    @property
    def top(self) -> Layer | None:
        """The layer that users see."""
        return self._layers[-1] if self._layers else None

    def cover(self) -> Layer:
        """Put a new mount on top; the caller serves `device` at once."""
        fresh = mounting.mount(self.path, self._name)
        try:
            fence = fencing.open_fence(self.path, fresh.entry, self._run_directory)
        except FailedError:
            if os.geteuid() == 0:
                os.close(fresh.device)
                mounting.unmount(self.path)
                raise
            fence = None
        layer = Layer(fresh.device, fresh.entry, fence)
        self._layers.append(layer)
        if self._watch is not None:
            self._watch.expect(layer.entry.number)
        return layer

    def replace(self, serve: Callable[[Layer], None]) -> Layer:
        """Cover with a new layer, have it served, and end the connections below (M2).

        When `serve` raises, the new layer is taken off and the old one stays in force.
        """
        below = list(self._layers)
        if os.geteuid() != 0:
            # fusermount3 may not look into a user's own mount, so nothing goes on top of it: the
            # folder lies open for a moment (M14: without root this is a demonstration).
            while self._layers:
                self._end(self._layers.pop())
                mounting.unmount(self.path)
            below = []
        layer = self.cover()
        try:
            serve(layer)
        except BaseException:
            self._layers.pop()
            self._end(layer)
            mounting.unmount(self.path)
            raise
        for old in below:
            self._end(old)
        return layer

    def adopt(self, device: int, fence: Fence | None) -> Layer:
        """Take over the mount of a predecessor that died (M4), with the descriptors it left."""
        entry = mounts.on_top(self.path)
        if entry is None or entry.kind != mounts.FUSE_TYPE:
            raise FailedError(f"{self.path} is not mounted any more")
        layer = Layer(device, entry, fence)
        self._layers.append(layer)
        return layer

    def watch(self, changed: Callable[[str], None]) -> MountWatch:
        """Have it told when the top mount is gone or covered by somebody else's (M6)."""
        if not self._layers:
            raise FailedError(f"{self.path} is not mounted")
        self._watch = MountWatch(self.path, self._layers[-1].entry.number, changed)
        self._watch.start()
        return self._watch

    def uncover(self) -> None:
        """End every connection and detach every layer: the plain folder is visible again."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        while self._layers:
            layer = self._layers.pop()
            self._end(layer)
            mounting.unmount(self.path)
        self.peel_stale()

    def _end(self, layer: Layer) -> None:
        if layer.fence is not None:
            layer.fence.abort()
            layer.fence.close()
            layer.fence = None


def _check_path(path: str) -> None:
    """Refuse a path that mountinfo would show under another name.

    Without stat(2) on the folder itself: a mount whose server is dead would never answer (M5).
    """
    parent, name = os.path.split(path)
    if not os.path.isabs(path) or not name:
        raise FailedError(f"the folder {path} is not an absolute path", "Write it in full")
    try:
        os.readlink(path)
    except OSError as error:
        linked = error.errno == errno.ELOOP
    else:
        linked = True
    if linked or os.path.realpath(parent) != parent:
        raise FailedError(
            f"the folder {path} is reached through a symbolic link",
            f"Use {os.path.realpath(parent)}/{name}, or what the link points to",
        )
