"""All processes of one run: finding them, killing them, knowing that they are gone.

A run has its own cgroup v2 where that can be made; else its processes are found by session, by
parentage and by a marker in their environment, which also those keep that called setsid.
Standard library only: the guardian uses this when the daemon is dead. Never waits.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MARKER = "HYPERHA_RUN"
"""The environment variable that every process of a run carries, with the run's id."""


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
        a busy machine, so not for an event loop.
        """
        if self.cgroup:
            found = _cgroup_members(self.cgroup)
            if found or not thorough:
                return found
            return self._stray()[0]
        found, silent = self._stray()
        # One that cannot be looked at may be of the run: nobody may say that all are gone.
        return found or silent

    def kill(self, *, thorough: bool = True) -> None:
        """One round of SIGKILL to everything; call again while `members` says something."""
        self.kill_group()
        if thorough or not self.cgroup:
            _signal_all(self._stray()[0])

    def kill_group(self) -> None:
        """SIGKILL to what is in the cgroup; nothing without one. Looks at no other process."""
        if not self.cgroup:
            return
        try:
            _write(os.path.join(self.cgroup, "cgroup.kill"), "1")
        except OSError:  # Before Linux 5.14, or already removed.
            _signal_all(_cgroup_members(self.cgroup))

    def remove(self) -> bool:
        """Remove the empty cgroup with what the run made below it; False while it is in use."""
        if not self.cgroup:
            return True
        for directory in reversed(_groups(self.cgroup)):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True

    def _stray(self) -> tuple[list[int], list[int]]:
        """By /proc: who carries the marker, is of the session, or descends from one of those; and
        who cannot be looked at.

        A descendant that carries another marker is of a run of its own: a daemon's VMs and its
        guardian are not part of the daemon.
        """
        parents: dict[int, int] = {}
        sessions: dict[int, int] = {}
        own = os.getpid()
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == own:
                continue
            facts = _facts(int(name))
            if facts is not None:
                parents[int(name)], sessions[int(name)] = facts
        markers = _markers(list(parents))
        silent = [process for process in parents if process not in markers]
        found = {process for process, marker in markers.items() if marker == self.marker}
        if self.session:
            found |= {process for process, one in sessions.items() if one == self.session}
        others = {process for process, marker in markers.items() if marker} - found
        grown = True
        while grown:
            more = {
                process
                for process, parent in parents.items()
                if parent in found and process not in found and process not in others
            }
            grown = bool(more)
            found |= more
        return sorted(found), sorted(set(silent) - found)


def _facts(process: int) -> tuple[int, int] | None:
    """Parent and session of a living process, None for a zombie or a gone one."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[1]), int(fields[3])


class _Look(threading.Thread):
    """Reads the markers of processes, one after the other; it may never come back from one."""

    def __init__(self, processes: Sequence[int]) -> None:
        super().__init__(name="look at processes", daemon=True)
        self._processes = processes
        self.found: list[tuple[int, str]] = []
        self.ended = threading.Event()

    def run(self) -> None:
        """Look at all of them."""
        for process in self._processes:
            self.found.append((process, _marker_of(process)))
        self.ended.set()


_SILENT_S = 2.0
"""Reading the environment of a process takes microseconds, or waits for its memory: for a disk that
hangs, a file system that does not answer, a lock that a hanging system call holds. On a busy
machine the thread itself may wait."""
_silent: dict[int, tuple[str, _Look]] = {}
"""Processes that could not be looked at: the moment of their start, and the thread that waits for
them. None is asked again before that has come back."""


def _markers(processes: list[int]) -> dict[int, str]:
    """The markers of all processes; what cannot be looked at is left out."""
    for process, (began, look) in list(_silent.items()):
        if _started(process) != began or any(one == process for one, _ in look.found[:]):
            del _silent[process]
    rest = [one for one in processes if one not in _silent]
    found: dict[int, str] = {}
    while rest:
        look = _Look(rest)
        look.start()
        seen = -1
        while not look.ended.wait(_SILENT_S) and len(look.found) > seen:
            seen = len(look.found)
        done = look.found[:]
        found.update(done)
        if len(done) == len(rest):
            break
        stuck = rest[len(done)]
        _silent[stuck] = _started(stuck), look
        rest = rest[len(done) + 1 :]
    return found


def _started(process: int) -> str:
    """When a process began, as /proc tells it; empty for one that is gone."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode("ascii")
    except (OSError, IndexError):
        return ""


def _marker_of(process: int) -> str:
    """The run that a process was started for, empty when it carries no marker."""
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return ""
    prefix = f"{MARKER}=".encode()
    # The last one counts: a run that starts a run replaces the variable, it never has two.
    for variable in reversed(variables):
        if variable.startswith(prefix):
            return variable[len(prefix) :].decode("utf-8", "replace")
    return ""


def _groups(path: str) -> list[str]:
    """A cgroup and all below it, each before those in it; as deep as a run has made them."""
    found = [path]
    for group in found:
        try:
            with os.scandir(group) as entries:
                found += [one.path for one in entries if one.is_dir(follow_symlinks=False)]
        except OSError:
            continue
    return found


def _cgroup_members(path: str) -> list[int]:
    found = []
    for directory in _groups(path):
        try:
            with open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as file:
                found += [int(line) for line in file]
        except OSError:
            continue
    return [process for process in found if process and _facts(process) is not None]


def _signal_all(processes: list[int]) -> None:
    for process in processes:
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
