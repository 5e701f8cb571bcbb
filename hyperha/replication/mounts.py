"""What the kernel says is mounted: /proc/.../mountinfo as values, and watching it (M5, M6).

Reads only. Everything here works on text and numbers; mounting and unmounting is elsewhere.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FUSE_TYPE: Final = "fuse.hyperha"
_OWN: Final = "/proc/self/mountinfo"
_HOST: Final = "/proc/1/mountinfo"
_CONFIRMATIONS: Final = 3
_CONFIRM_S: Final = 0.02
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo."""

    number: int
    parent: int
    device: str
    """major:minor, which for FUSE names the connection by its minor."""
    path: str
    kind: str
    source: str

    @property
    def minor(self) -> int:
        """The minor number: the connection's name under fusectl."""
        return int(self.device.split(":")[1])


def _plain(text: str) -> str:
    raw = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
    return raw.encode("latin-1", "surrogateescape").decode("utf-8", "surrogateescape")


def parse(text: str) -> list[MountEntry]:
    """The entries of a mountinfo file, which was read as latin-1."""
    entries = []
    # At newlines only: a path may hold any other character that Python takes for a line's end.
    for line in text.split("\n"):
        head, _, tail = line.partition(" - ")
        fields, rest = head.split(" "), tail.split(" ")
        if len(fields) < 6 or len(rest) < 2:
            continue
        entries.append(
            MountEntry(
                number=int(fields[0]),
                parent=int(fields[1]),
                device=fields[2],
                path=_plain(fields[4]),
                kind=rest[0],
                source=_plain(rest[1]),
            )
        )
    return entries


def mounted() -> list[MountEntry]:
    """What is mounted in this process's namespace."""
    return parse(_read(_OWN))


def mounted_on_host() -> list[MountEntry]:
    """What is mounted in the namespace of process 1. Raises OSError without the right to look."""
    return parse(_read(_HOST))


def _read(path: str) -> str:
    with open(path, encoding="latin-1", newline="\n") as file:
        return file.read()


def layers(path: str, entries: list[MountEntry]) -> list[MountEntry]:
    """The mounts exactly at `path`, lowest first; the last one is what a user sees."""
    here = [entry for entry in entries if entry.path == path]
    numbers = {entry.number for entry in here}
    ordered = [entry for entry in here if entry.parent not in numbers]
    while len(ordered) < len(here):
        below = {entry.number for entry in ordered}
        above = [e for e in here if e.parent in below and e.number not in below]
        if not above:
            break
        ordered.extend(above)
    return ordered


def beneath(path: str, entries: list[MountEntry]) -> list[MountEntry]:
    """The mounts inside a folder."""
    return [entry for entry in entries if entry.path.startswith(path.rstrip("/") + "/")]


def on_top(path: str) -> MountEntry | None:
    """The mount that a user of `path` sees, when one is exactly there."""
    found = layers(path, mounted())
    return found[-1] if found else None


def settled(said: str, look: Callable[[], str]) -> str:
    """What `look` finds, when it differs from what was said: seen several times, or not so.

    A list that changes while it is read may lack a line, ours or the one that covers it.
    """
    found = look()
    for _ in range(_CONFIRMATIONS):
        if found == said:
            break
        time.sleep(_CONFIRM_S)
        found = look()
    return found


class MountWatch:
    """Tells when the mount at a path is gone or covered by another one (M6).

    `changed` is called from the watch's thread with one sentence, once per change that matters.
    """

    def __init__(self, path: str, number: int, changed: Callable[[str], None]) -> None:
        self._path = path
        self._number = number
        self._changed = changed
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="mount-watch", daemon=True)

    def start(self) -> None:
        """Start the thread; a mount that is wrong already is reported at once."""
        self._thread.start()

    def expect(self, number: int) -> None:
        """From now on this mount is the right one (a new session lies on top)."""
        self._number = number

    def stop(self) -> None:
        """End the thread."""
        os.write(self._waker, b"x")
        self._thread.join()
        os.close(self._wake)
        os.close(self._waker)

    def _problem(self) -> str:
        top = on_top(self._path)
        if top is not None and top.number == self._number:
            return ""
        if top is not None and top.kind == FUSE_TYPE:
            # Between the mount of a new session and `expect`; anybody else's has another type.
            return ""
        if any(entry.number == self._number for entry in mounted()):
            return f"{self._path} is covered by another mount"
        return f"{self._path} is no longer mounted"

    def _run(self) -> None:
        with open(_OWN, "rb") as file:
            poll = select.poll()
            poll.register(file.fileno(), select.POLLERR | select.POLLPRI)
            poll.register(self._wake, select.POLLIN)
            said = ""
            while True:
                problem = settled(said, self._problem)
                if problem and problem != said:
                    self._changed(problem)
                said = problem
                if any(number == self._wake for number, _ in poll.poll()):
                    return
