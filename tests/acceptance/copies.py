"""Whether both copies of a folder are equal: content, metadata, hard links and holes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tests.acceptance.pair import APPLICATION, OTHER, Pair, difference

EQUAL_S = 20.0
"""Times are sent every second; everything else is there when it was acknowledged."""
BLOCK = 64 << 10
"""A resync moves blocks of this size: a hole that is smaller may be filled with zeros."""


PAGE = 4 << 10
"""What is left of one after a file was cut within it may be zeros here and a hole there."""


def _is_rest(descriptor: int, block: int, start: int, end: int) -> bool:
    """Whether the data of a block is but one page of zeros."""
    low, high = max(start, block * BLOCK), min(end, (block + 1) * BLOCK)
    return high - low <= PAGE and not os.pread(descriptor, high - low, low).strip(b"\0")


def _ranges(path: Path) -> list[tuple[int, int, bool]]:
    """Begin and end of what a file system keeps of a file, and whether it is only zeros."""
    found = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        position = 0
        while position < size:
            try:
                start = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            position = os.lseek(descriptor, start, os.SEEK_HOLE)
            zeros = not os.pread(descriptor, position - start, start).strip(b"\0")
            found.append((start, position, zeros))
    finally:
        os.close(descriptor)
    return found


def _data(path: Path) -> list[int]:
    """The blocks of a file in which its file system keeps data."""
    found: set[int] = set()
    with open(path, "rb") as file:
        for start, end, _ in _ranges(path):
            blocks = range(start // BLOCK, (end - 1) // BLOCK + 1)
            found.update(one for one in blocks if not _is_rest(file.fileno(), one, start, end))
    return sorted(found)


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    for base, directories, names in os.walk(folder):
        if base == str(folder) and ".hyperha" in directories:
            directories.remove(".hyperha")
        for name in names:
            path = os.path.join(base, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and not name.endswith("-shm"):
                yield os.path.relpath(path, folder), status


def holes(first: Path, second: Path) -> str:
    """Which blocks are a hole on one copy only."""
    lines = []
    for name, _ in _files(first):
        left, right = _data(first / name), _data(second / name)
        if left != right:
            lines.append(
                f"{name}: data in blocks {left[:20]} here ({_ranges(first / name)}), in "
                f"{right[:20]} there ({_ranges(second / name)})"
            )
    return "\n".join(lines)


def unequal(first: Path, second: Path) -> str:
    """What differs between two copies that nobody changes; empty when they are equal."""
    return difference(first, second) or holes(first, second)


@contextlib.asynccontextmanager
async def standing_still(pair: Pair, primary: str) -> AsyncIterator[None]:
    """The application is stopped, and both copies, seen through the mounts, have become equal."""
    stopped = pair.processes(primary, APPLICATION)
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        await asyncio.sleep(0.3)
        first, second = pair.folder(primary), pair.folder(OTHER[primary])
        deadline = time.monotonic() + EQUAL_S
        while found := await asyncio.to_thread(unequal, first, second):
            assert time.monotonic() < deadline, f"the copies differ:\n{found[:2000]}"
            await asyncio.sleep(0.5)
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


async def equal_now(pair: Pair, primary: str) -> None:
    """Both copies are equal in content, metadata and holes, and have every acknowledged order."""
    pair.no_faults()
    async with standing_still(pair, primary):
        for node in OTHER:
            await asyncio.to_thread(pair.check_folder, node)
