"""Cleans up after a demonstration that was killed: a small process that outlives it.

Its standard input is a pipe from the demonstration. When that ends, it waits for the guardians to
do their work, ends what still carries the demonstration's mark, takes away leftover mounts below
its directory, and removes the directory if it was a temporary one.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

from hyperha.daemon.fencing import peel
from hyperha.spawn.tree import RunPlace

MARK = "HYPERHA_DEMO"
MARK_FILE = "demo.mark"
GUARDIANS_LIMIT_S = 8.0
GROUPS_LIMIT_S = 10.0
"""How long cgroups are tried: a process that was killed leaves its own when it likes."""


def marked(mark: str, *, but: int = 0) -> list[int]:
    """Processes whose environment carries the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (but, os.getpid()):
            continue
        try:
            raw = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if wanted in raw.split(b"\0") and state != "Z":
            found.append(int(entry.name))
    return found


def end(processes: list[int]) -> None:
    """SIGKILL to each, by its own id."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def mounts_below(directory: str) -> list[str]:
    """Folders below the directory that are still covered."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            if fields[4].startswith(directory.rstrip("/") + "/") and "fuse.hyperha" in fields:
                found.append(fields[4])
    return found


def owns(directory: str, mark: str) -> bool:
    """Whether the directory is still this demonstration's: a newer one may have begun in it."""
    try:
        return (Path(directory) / MARK_FILE).read_text(encoding="ascii") == mark
    except OSError:
        return False


def remove_groups(directory: Path) -> None:
    """What daemons that were killed could not remove: the empty cgroups of their runs."""
    homes = list(directory.iterdir()) if directory.is_dir() else []
    left = [RunPlace.for_home(home.name, home / "run") for home in homes if (home / "run").is_dir()]
    deadline = time.monotonic() + GROUPS_LIMIT_S
    while left := [place for place in left if not place.close()]:
        if time.monotonic() >= deadline:
            return  # Somebody else is in them; they hold nothing of ours any more.
        time.sleep(0.05)


def clean(directory: str, mark: str, *, remove: bool) -> None:
    """Leave nothing: processes, mounts, and the directory when it was a temporary one."""
    deadline = time.monotonic() + GUARDIANS_LIMIT_S
    while time.monotonic() < deadline and (marked(mark) or mounts_below(directory)):
        time.sleep(0.1)
    for _ in range(50):
        left = marked(mark)
        if not owns(directory, mark):
            end(left)
            return
        for folder in mounts_below(directory):
            peel(folder)
        if not left and not mounts_below(directory):
            break
        end(left)
        time.sleep(0.1)
    remove_groups(Path(directory))
    if remove and owns(directory, mark):
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """`python -m hyperha.demo.janitor DIRECTORY MARK keep|remove`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    directory, mark, remove = sys.argv[1], sys.argv[2], sys.argv[3] == "remove"
    while os.read(int(sys.argv[4]), 4096):
        pass
    clean(directory, mark, remove=remove)


if __name__ == "__main__":
    main()
