"""One file, worked on in every way there is at random; what is read must be what was written.

The model is in memory; the secondary's file is compared now and then and at the end.
HYPERHA_FSX_SECONDS and HYPERHA_FSX_SEED choose how long and which operations.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperha.core import actions
from hyperha.replication import syscalls
from tests.filesystem.pairing import Trio, backing

SECONDS = float(os.environ.get("HYPERHA_FSX_SECONDS", "4"))
LIMIT = 512 << 10
PAGE = 4096
COMPARED_EVERY = 3000
_KEEP_SIZE, _PUNCH, _ZERO = 1, 3, 0x10
pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.timeout(120 + int(SECONDS))]


class File:
    """The file, what it should hold, and how it is opened."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self.dice = random.Random(seed)
        self.model = bytearray()
        self.done: deque[str] = deque(maxlen=40)
        self.count = 0
        path.touch()
        self._open()
        self._ways: list[Callable[[], str]] = [
            self._write, self._write, self._write, self._read, self._read, self._cut,
            self._map_write, self._map_write, self._map_read, self._punch, self._zero, self._copy,
            self._allocate, self._direct_write, self._direct_read, self._again, self._append,
            self._sync, self._holes, self._durable_write,
        ]  # fmt: skip

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR)
        self._direct = os.open(self._path, os.O_RDWR | os.O_DIRECT)
        self._durable = os.open(self._path, os.O_RDWR | os.O_DSYNC)
        self._end = os.open(self._path, os.O_RDWR | os.O_APPEND)
        self._map: mmap.mmap | None = None

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None
        for fd in (self._fd, self._direct, self._durable, self._end):
            os.close(fd)

    def step(self) -> None:
        """One operation, and now and then the whole file."""
        self.count += 1
        self.done.append(self.dice.choice(self._ways)())
        assert os.fstat(self._fd).st_size == len(self.model)
        if self.count % 200 == 0:
            self._same(os.pread(self._fd, LIMIT + 1, 0), 0, len(self.model))

    def _same(self, got: bytes, start: int, end: int) -> None:
        wanted = bytes(self.model[start:end])
        if got == wanted:
            return
        at = next(
            (n for n in range(min(len(got), len(wanted))) if got[n] != wanted[n]), len(wanted)
        )
        raise AssertionError(
            f"{len(got)} bytes from {start} on, {len(wanted)} expected, first wrong one at "
            f"{start + at}: {got[at : at + 8].hex()}, not {wanted[at : at + 8].hex()}"
        )

    # --- places ---------------------------------------------------------------------------

    def _range(self, limit: int, unit: int = 1) -> tuple[int, int]:
        offset = self.dice.randrange(limit + 1) // unit * unit
        length = self.dice.choice((1, 100, PAGE, PAGE - 1, 20_000, 65_536, 131_072))
        length = self.dice.randrange(1, length + 1)
        return offset, min(-(-length // unit) * unit, max(0, (LIMIT - offset) // unit * unit))

    def _bytes(self, length: int) -> bytes:
        return self.dice.randbytes(length)

    def _put(self, offset: int, data: bytes) -> None:
        if not data:
            return
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    # --- operations -----------------------------------------------------------------------

    def _written(self, fd: int, offset: int, length: int) -> None:
        data = self._bytes(length)
        assert os.pwrite(fd, data, offset) == length
        self._put(offset, data)

    def _write(self) -> str:
        offset, length = self._range(LIMIT)
        self._written(self._fd, offset, length)
        return f"write {offset} {length}"

    def _durable_write(self) -> str:
        offset, length = self._range(LIMIT)
        self._written(self._durable, offset, length)
        return f"durable write {offset} {length}"

    def _append(self) -> str:
        data = self._bytes(min(self.dice.randrange(1, 9000), LIMIT - len(self.model)))
        assert os.write(self._end, data) == len(data)
        self._put(len(self.model), data)
        return f"append {len(data)}"

    def _read(self) -> str:
        offset, length = self._range(LIMIT)
        self._same(os.pread(self._fd, length, offset), offset, offset + length)
        return f"read {offset} {length}"

    def _direct_write(self) -> str:
        offset, length = self._range(LIMIT, PAGE)
        if length == 0:
            return "no direct write"
        with mmap.mmap(-1, length) as memory:
            memory[:] = self._bytes(length)
            assert os.pwrite(self._direct, memory, offset) == length
            self._put(offset, memory[:])
        return f"direct write {offset} {length}"

    def _direct_read(self) -> str:
        offset, length = self._range(LIMIT, PAGE)
        if length == 0:
            return "no direct read"
        with mmap.mmap(-1, length) as memory:
            got = os.preadv(self._direct, [memory], offset)
            self._same(memory[:got], offset, offset + length)
        return f"direct read {offset} {length}"

    def _cut(self) -> str:
        size = self.dice.randrange(LIMIT)
        os.ftruncate(self._fd, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))
        return f"cut {size}"

    def _mapped(self) -> mmap.mmap | None:
        """A mapping of the whole file, kept for as long as the file is not shorter."""
        if self._map is not None and len(self._map) > len(self.model):
            self._map.close()
            self._map = None
        if self._map is None and self.model:
            self._map = mmap.mmap(self._fd, len(self.model))
        return self._map

    def _map_write(self) -> str:
        mapping = self._mapped()
        if mapping is None:
            return "nothing to map"
        offset, length = self._range(len(mapping) - 1)
        data = self._bytes(min(length, len(mapping) - offset))
        mapping[offset : offset + len(data)] = data
        self._put(offset, data)
        # Direct reads and the other node see it from now on.
        mapping.flush()
        return f"map write {offset} {len(data)}"

    def _map_read(self) -> str:
        mapping = self._mapped()
        if mapping is None:
            return "nothing to map"
        offset, length = self._range(len(mapping) - 1)
        end = min(offset + length, len(mapping))
        self._same(mapping[offset:end], offset, end)
        return f"map read {offset} {end - offset}"

    def _blank(self, mode: int) -> str:
        offset, length = self._range(LIMIT)
        if length == 0:
            return "nothing to allocate"
        syscalls.allocate(self._fd, mode, offset, length)
        end = offset + length
        if mode & _KEEP_SIZE:
            end = min(end, len(self.model))
        if end > offset:
            self._put(offset, bytes(end - offset))
        return f"allocate {mode:#x} {offset} {length}"

    def _punch(self) -> str:
        return self._blank(_PUNCH)

    def _zero(self) -> str:
        return self._blank(self.dice.choice((_ZERO, _ZERO | _KEEP_SIZE)))

    def _allocate(self) -> str:
        offset, length = self._range(LIMIT)
        mode = self.dice.choice((0, _KEEP_SIZE))
        if length == 0:
            return "nothing to allocate"
        syscalls.allocate(self._fd, mode, offset, length)
        if mode == 0 and offset + length > len(self.model):
            self.model.extend(bytes(offset + length - len(self.model)))
        return f"allocate {mode} {offset} {length}"

    def _copy(self) -> str:
        source, length = self._range(max(0, len(self.model) - 1))
        length = min(length, len(self.model) - source)
        target = self.dice.randrange(LIMIT - length + 1)
        if length <= 0 or abs(source - target) < length:
            return "nothing to copy"
        done = 0
        while done < length:
            done += os.copy_file_range(
                self._fd, self._fd, length - done, source + done, target + done
            )
        self._put(target, bytes(self.model[source : source + length]))
        return f"copy {source} {target} {length}"

    def _holes(self) -> str:
        at, size = 0, len(self.model)
        while at < size:
            try:
                data = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError:
                data = size
            assert not any(self.model[at:data]), f"said to be a hole: {at} to {data}"
            if data == size:
                break
            at = os.lseek(self._fd, data, os.SEEK_HOLE)
        return "holes"

    def _sync(self) -> str:
        os.fdatasync(self._fd)
        return "sync"

    def _again(self) -> str:
        if self.dice.random() < 0.8:
            return "stay"
        self.close()
        self._open()
        return "close and open"


def compare(trio: Trio, tester: File) -> None:
    """Both nodes' files, below the mounts, after a barrier."""
    trio.pair.a.do(actions.Barrier)
    for node in (trio.pair.a, trio.pair.b):
        fd = os.open("file", os.O_RDONLY, dir_fd=backing(node))
        try:
            assert os.pread(fd, LIMIT + 1, 0) == tester.model, f"{node.node} holds something else"
        finally:
            os.close(fd)


def test_fsx(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Buffered, direct, mapped, appended, punched, copied: one content, and the peer has it."""
    seed = int(os.environ.get("HYPERHA_FSX_SEED") or random.SystemRandom().randrange(1 << 24))
    print(f"HYPERHA_FSX_SEED={seed}")
    trio = Trio(tmp_path)
    try:
        tester = File(trio.mounted / "file", seed)
        end = time.monotonic() + SECONDS
        try:
            while time.monotonic() < end:
                tester.step()
                if tester.count % COMPARED_EVERY == 0:
                    compare(trio, tester)
            compare(trio, tester)
        except AssertionError as problem:
            last = "\n".join(tester.done)
            raise AssertionError(
                f"operation {tester.count}: {problem}; before it:\n{last}"
            ) from problem
        finally:
            tester.close()
        record_property("operations", tester.count)
        print(f"{tester.count} operations")
    finally:
        trio.close()
