"""Writes that overlap end alike on both copies, whichever the kernel lets go first (T2, E13).

HYPERHA_OVERLAP_ROUNDS makes a run longer.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hyperha.core import actions
from tests.support.engine_pair import free_ports
from tests.support.engine_process import ProcessPair

pytestmark = [pytest.mark.root, pytest.mark.fuse]

ROUNDS = int(os.environ.get("HYPERHA_OVERLAP_ROUNDS", "6000"))
BLOCK = 4096
WRITERS = 4
AT_ONCE = 500
"""Rounds between two comparisons: one block each."""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[ProcessPair]:
    both = ProcessPair(tmp_path, free_ports(2))
    try:
        both.a.attach()
        both.b.attach()
        both.in_sync()
        yield both
    finally:
        both.close()


def _rounds(descriptors: list[int], count: int) -> None:
    """Every writer writes the same blocks at the same time, each with a content of its own."""
    together = threading.Barrier(WRITERS)

    def work(writer: int) -> None:
        # Aligned, since a file that is open for direct writes is what lets them run in parallel.
        data = mmap.mmap(-1, 2 * BLOCK)
        for number in range(count):
            data[:] = bytes([1 + (number * WRITERS + writer) % 255]) * (2 * BLOCK)
            together.wait()
            # Half of them reach into the next block, too: overlapping, not only equal, ranges.
            size = BLOCK * (1 + writer % 2)
            assert os.pwrite(descriptors[writer], data[:size], number * BLOCK) == size

    with ThreadPoolExecutor(WRITERS) as pool:
        for done in [pool.submit(work, writer) for writer in range(WRITERS)]:
            done.result()


@pytest.mark.timeout(120 + ROUNDS // 100)
def test_overlapping_writes_are_equal_on_both_copies(pair: ProcessPair) -> None:
    path = pair.a.folder / "overlapping"
    path.write_bytes(bytes((AT_ONCE + 1) * BLOCK))
    other = os.open(pair.b.folder / "overlapping", os.O_RDONLY)
    descriptors = [os.open(path, os.O_RDWR | os.O_DIRECT) for _ in range(WRITERS)]
    different = 0
    try:
        for begun in range(0, ROUNDS, AT_ONCE):
            _rounds(descriptors, min(AT_ONCE, ROUNDS - begun))
            pair.a.do(actions.Barrier)
            mine = path.read_bytes()
            theirs = os.pread(other, len(mine), 0)
            different += sum(
                mine[at : at + BLOCK] != theirs[at : at + BLOCK]
                for at in range(0, len(mine), BLOCK)
            )
    finally:
        for descriptor in (*descriptors, other):
            os.close(descriptor)
    print(f"{ROUNDS} rounds of {WRITERS} overlapping writes, {different} blocks differ")
    assert not different
