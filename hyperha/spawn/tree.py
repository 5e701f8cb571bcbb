"""All processes of one run: finding them, killing them, knowing that they are gone.

A run has its own cgroup v2 where that can be made; else its processes are found by session, by
parentage and by a marker in their environment, which also those keep that called setsid.
Standard library only: the guardian uses this when the daemon is dead. Never waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hyperha.spawn import looking
from hyperha.spawn.looking import (
    LACK,
    UNKNOWN,
    Facts,
    facts_of,
    living_processes,
    markers_of,
)


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """Names the processes of one run so that they can be ended, also by another process.

    `cgroup` is the path of the run's cgroup directory or empty; `session` the session id of the
    main process or 0.
    """

    marker: str
    cgroup: str = ""
    session: int = 0

    def members(self, *, thorough: bool = True) -> list[int]:
        """The living processes of the run; zombies do not count, they hold nothing any more.

        Thorough looks through all of /proc also where there is a cgroup: tens of milliseconds on
        a busy machine, so not for an event loop. Raises OSError where it cannot be told, for lack
        of descriptors or memory.
        """
        if self.cgroup:
            found = _cgroup_members(self.cgroup)
            if found or not thorough:
                return found
            strays, _, unasked = self._stray(living_processes())
            return strays or unasked
        found, silent, unasked = self._stray(living_processes())
        # One that cannot be looked at may be of the run: nobody may say that all are gone.
        return found or silent or unasked

    def kill(self, *, thorough: bool = True) -> None:
        """One round of SIGKILL to everything that can be found; call again while `members` says
        something, or cannot."""
        self.kill_group()
        if thorough or not self.cgroup:
            with contextlib.suppress(OSError):
                living = living_processes()
                # Whose session it is can be told without a look at those that may not answer.
                _signal_all(self._of_session(living), living)
                _signal_all(self._stray(living)[0], living)

    def kill_group(self) -> None:
        """SIGKILL to what is in the cgroup; nothing without one. Looks at no other process."""
        if not self.cgroup:
            return
        try:
            _write(os.path.join(self.cgroup, "cgroup.kill"), "1")
        except OSError:  # Before Linux 5.14, or already removed.
            with contextlib.suppress(OSError):
                _signal_all(_cgroup_members(self.cgroup), {})

    def remove(self) -> bool:
        """Remove the empty cgroup with what the run made below it; False while it is in use."""
        if not self.cgroup:
            return True
        try:
            groups = _groups(self.cgroup)
        except OSError:
            return False
        for directory in reversed(groups):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True

    def _of_session(self, living: Mapping[int, Facts]) -> list[int]:
        if not self.session:
            return []
        return [process for process, facts in living.items() if facts.session == self.session]

    def _stray(self, living: Mapping[int, Facts]) -> tuple[list[int], list[int], list[int]]:
        """By /proc: who carries the marker, is of the session, or descends from one of those; who
        cannot be looked at; and who of these was not even asked.

        A descendant that carries another marker is of a run of its own: a daemon's VMs and its
        guardian are not part of the daemon.
        """
        # With a cgroup this finds those that left it: no reason to wait long for a stranger.
        markers, unasked = markers_of(
            living, looking.ALSO_SILENT_S if self.cgroup else looking.SILENT_S
        )
        # Without its marker, who has no known parent and session may be of the run.
        unasked += [
            process
            for process, facts in living.items()
            if facts is UNKNOWN and not markers.get(process)
        ]
        silent = [process for process in living if process not in markers]
        found = {process for process, marker in markers.items() if marker == self.marker}
        found.update(self._of_session(living))
        others = {process for process, marker in markers.items() if marker} - found
        grown = True
        while grown:
            more = {
                process
                for process, facts in living.items()
                if facts.parent in found and process not in found and process not in others
            }
            grown = bool(more)
            found |= more
        return sorted(found), sorted(set(silent) - found), sorted(set(unasked) - found)


def _groups(path: str) -> list[str]:
    """A cgroup and all below it, each before those in it; as deep as a path reaches. Raises OSError
    for lack of descriptors or memory."""
    found = [path]
    for group in found:
        try:
            with os.scandir(group) as entries:
                found += [one.path for one in entries if one.is_dir(follow_symlinks=False)]
        except OSError as problem:
            if problem.errno in LACK:
                raise
    return found


def _cgroup_members(path: str) -> list[int]:
    found = []
    for directory in _groups(path):
        try:
            with open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as file:
                found += [int(line) for line in file]
        except OSError as problem:
            if problem.errno in LACK:
                raise
    return [process for process in found if process and facts_of(process) is not None]


def _signal_all(processes: Iterable[int], living: Mapping[int, Facts]) -> None:
    """SIGKILL, but not to whoever got the number of one of `living` since."""
    for process in processes:
        seen = living.get(process)
        if seen is not None:
            now = facts_of(process)
            if now is None or now is UNKNOWN or now.began != seen.began:
                continue
        try:
            os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        except OSError:
            continue


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def place_name(node: str, run_directory: Path) -> str:
    """The name of a node's place for runs."""
    digest = hashlib.sha256(str(run_directory).encode()).hexdigest()[:8]
    return f"{node}-{digest}"


def place_path(node: str, run_directory: Path) -> str | None:
    """The cgroup directory of a node's place for runs; None where no cgroup v2 is mounted."""
    return _below_own_cgroup(place_name(node, run_directory))


def _below_own_cgroup(name: str) -> str | None:
    base = own_cgroup()
    return None if base is None else os.path.join(base, f"hyperha-{name}")


class RunPlace:
    """Where the cgroups of one node's runs are made: a subtree of the daemon's own cgroup.

    `limit` is empty, or the sentence that says why runs get no cgroup of their own here.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.limit = ""
        self._root: str = ""
        try:
            root = _below_own_cgroup(name)
            if root is None:
                self.limit = "no cgroup v2 is mounted: runs are ended by process group and marker"
                return
            os.makedirs(root, exist_ok=True)
            if not os.access(os.path.join(root, "cgroup.procs"), os.W_OK):
                raise PermissionError(13, "not writable")
            self._root = root
        except OSError as problem:
            self.limit = (
                f"no cgroup may be made here ({problem.strerror}): runs are ended by process "
                "group and marker"
            )

    @classmethod
    def for_home(cls, node: str, run_directory: Path) -> RunPlace:
        """The place of a node's daemon: the same after a restart, another for another home."""
        return cls(place_name(node, run_directory))

    def tree(self, run_id: str) -> ProcessTree:
        """How the processes of a run will be found that is started with this id: for the
        guardian, which is armed before the start."""
        return ProcessTree(run_id, os.path.join(self._root, run_id) if self._root else "")

    def make(self, run_id: str) -> str:
        """Make the cgroup of a run and return its path, empty where cgroups are not possible."""
        path = self.tree(run_id).cgroup
        if path:
            os.makedirs(path, exist_ok=True)
        return path

    def leftovers(self) -> list[ProcessTree]:
        """Runs whose cgroups are still there from a daemon that is dead."""
        if not self._root or not os.path.isdir(self._root):
            return []
        names = [entry.name for entry in os.scandir(self._root) if entry.is_dir()]
        return [ProcessTree(name, os.path.join(self._root, name)) for name in sorted(names)]

    def close(self) -> bool:
        """Remove the subtree when no run is left in it; False while something is still there.

        A process that was killed holds its cgroup for a moment longer than it can be seen, so that
        False may become True without anybody doing anything.
        """
        for tree in self.leftovers():
            with contextlib.suppress(OSError):
                if not tree.members():
                    tree.remove()
        if self._root:
            try:
                os.rmdir(self._root)
            except FileNotFoundError:
                return True  # Another daemon of this home removed it.
            except OSError:
                return False
        return True


def own_cgroup() -> str | None:
    """The directory of this process in the cgroup v2 hierarchy, also in the hybrid layout."""
    if sys.platform == "win32":
        return None
    mount = ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if after.startswith("cgroup2 "):
                mount = before.split(" ")[4]
                break
    if not mount:
        return None
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("0::/"):
                inside = line.rstrip("\n")[len("0::/") :]
                path = os.path.join(mount, inside) if inside else mount
                return path if os.path.isdir(path) else mount
    return None
