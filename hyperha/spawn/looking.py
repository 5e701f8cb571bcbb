"""Looking at processes that may be strangers: any of them may keep whoever looks waiting.

Standard library only: the guardian uses this when the daemon is dead.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MARKER = "HYPERHA_RUN"
"""The environment variable that every process of a run carries, with the run's id."""


class Facts(NamedTuple):
    """What /proc tells of a living process at once; `began` distinguishes it from a later one that
    got its number."""

    parent: int
    session: int
    began: bytes


UNKNOWN = Facts(0, 0, b"")
"""Of a process that is there, and of which no more can be told now."""
_ENDED = (b"Z", b"X")
LACK = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Whoever looks has no descriptor or no memory for it: that says nothing about the process."""


def _stat(process: int) -> list[bytes]:
    """The fields of /proc behind a process's name, its state first. Raises OSError."""
    with open(f"/proc/{process}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def facts_of(process: int) -> Facts | None:
    """None for a zombie or a gone one; UNKNOWN for lack of descriptors or memory."""
    try:
        fields = _stat(process)
    except OSError as problem:
        return UNKNOWN if problem.errno in LACK else None
    if fields[0] in _ENDED:
        return None
    return Facts(int(fields[1]), int(fields[3]), fields[19])


def is_zombie(process: int) -> bool:
    """Whether a process has ended, though a thread of it may still hang. What cannot be read says
    nothing: a lack of files or memory must not be taken for a death."""
    try:
        return _stat(process)[0] in _ENDED
    except OSError:
        return False


def living_processes() -> dict[int, Facts]:
    """All processes but this one. Raises OSError for lack of descriptors or memory."""
    own = os.getpid()
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]
    return {process: facts for process in numbers if (facts := facts_of(process)) is not None}


class _Look:
    """Processes whose markers are read one after the other."""

    def __init__(self, processes: Sequence[int]) -> None:
        self.processes = processes
        self.found: list[tuple[int, str | None]] = []
        """A marker is None where it could not be read for lack of descriptors or memory."""
        self.ended = threading.Event()
        self.given_up = False

    def go(self) -> None:
        """Look at all of them, or until nobody waits any more."""
        for process in self.processes:
            try:
                self.found.append((process, _marker_of(process)))
            except (OSError, MemoryError):
                self.found.append((process, None))
            if self.given_up:
                break


class _Lookers:
    """Threads that look, since one may never come back. One waits in reserve: a run that has
    filled the system with processes leaves no room for another thread when it is to be killed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._waiting: list[queue.SimpleQueue[_Look]] = []

    def prepare(self) -> None:
        """Have one wait. Raises RuntimeError where no thread can be started."""
        with self.lock:
            if not self._waiting:
                self._start()

    def send(self, look: _Look) -> bool:
        """Have somebody look; False where nobody can."""
        with self.lock:
            if not self._waiting:
                try:
                    self._start()
                except RuntimeError:  # No room for one more thread.
                    return False
            self._waiting.pop().put(look)
        return True

    def _start(self) -> None:
        asked: queue.SimpleQueue[_Look] = queue.SimpleQueue()
        threading.Thread(
            target=self._serve, args=(asked,), name="look at processes", daemon=True
        ).start()
        self._waiting.append(asked)

    def _serve(self, asked: queue.SimpleQueue[_Look]) -> None:
        while True:
            look = asked.get()
            try:
                look.go()
            except MemoryError:
                # Not even a note of that: who was not looked at is silent; the thread goes on.
                pass
            finally:
                with self.lock:
                    stays = len(self._waiting) < _IN_RESERVE
                    if stays:
                        self._waiting.append(asked)
                look.ended.set()
            if not stays:
                return


_IN_RESERVE = 2
SILENT_S = 2.0
"""Reading the environment of a process takes microseconds, or waits for its memory: for a disk that
hangs, a file system that does not answer, a lock that a hanging system call holds. On a busy
machine the thread itself may wait."""
ALSO_SILENT_S = 0.5
"""For those behind the first one that does not answer."""
_lookers = _Lookers()
_silent: dict[int, tuple[bytes, _Look]] = {}
"""Processes that could not be looked at: the moment of their start, and the look that waits for
them. None is asked again before that has come back."""


def prepare() -> None:
    """Start what `members` and `kill` need while there is room for it; at a program's start."""
    _lookers.prepare()


def markers_of(living: Mapping[int, Facts], patience_s: float) -> tuple[dict[int, str], list[int]]:
    """The markers of processes, without those that do not answer; and who could not even be asked:
    for lack of a thread, of descriptors or of memory."""
    with _lookers.lock:
        for process, (began, look) in list(_silent.items()):
            facts = living.get(process)
            if facts is None or facts.began != began or look.ended.is_set():
                del _silent[process]
        rest = [one for one in living if one not in _silent]
    found: dict[int, str] = {}
    unasked: list[int] = []
    while rest:
        look = _Look(rest)
        if not _lookers.send(look):
            return found, unasked + rest
        seen = 0
        while not look.ended.wait(patience_s) and len(look.found) > seen:
            seen = len(look.found)
        look.given_up = True
        done = look.found[:]
        found.update((process, marker) for process, marker in done if marker is not None)
        unasked += [process for process, marker in done if marker is None]
        if len(done) == len(rest):
            break
        stuck = rest[len(done)]
        with _lookers.lock:
            _silent[stuck] = living[stuck].began, look
        patience_s = min(patience_s, ALSO_SILENT_S)
        rest = rest[len(done) + 1 :]
    return found, unasked


def _marker_of(process: int) -> str:
    """The run that a process was started for, empty when it carries no marker. Raises OSError for
    lack of descriptors or memory."""
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError as problem:
        if problem.errno in LACK:
            raise
        return ""
    prefix = f"{MARKER}=".encode()
    # The last one counts: a run that starts a run replaces the variable, it never has two.
    for variable in reversed(variables):
        if variable.startswith(prefix):
            return variable[len(prefix) :].decode("utf-8", "replace")
    return ""
