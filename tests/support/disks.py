"""Disks that forget what was not flushed: image files served by a small FUSE file system.

A loop device lies on each image and an ext4 on that. Written sectors stay in this process' memory
until the loop driver flushes (fsync = flush or FUA). A cut forgets all of them or a seeded random
part; from the write that it comes at, the disk answers nothing, so that nobody on the node can
notice; then it fails everything until it is switched on again. The server never touches a path
on a disk that it serves.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import threading
from pathlib import Path

from hyperha.replication.fuse.mount import raw_mount

SECTOR = 4096
MOUNT_KIND = "fuse.power"
_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_HEAD = struct.Struct("<QII")
_INIT = struct.Struct("<IIIIHHIIHHII24x")
_OPEN = struct.Struct("<QII")
_IO = struct.Struct("<QQIIQII")
_LOOKUP, _FORGET, _GETATTR, _OPEN_OP, _READ, _WRITE, _STATFS = 1, 2, 3, 14, 15, 16, 17
_RELEASE, _FSYNC, _INIT_OP, _BATCH_FORGET = 18, 20, 26, 42
_BIG_WRITES = 1 << 5
_MAX_WRITE = 128 * 1024


class Disk:
    """One image: what is durable lies in the backing file, the rest in memory."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.descriptor).st_size
        self.volatile: dict[int, bytes] = {}
        self.off = False
        self.holding = False
        self.held: list[int] = []
        self.writes_left = -1
        self.due = threading.Event()
        self.lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        """As the drive shows it: with what is only in its memory."""
        with self.lock:
            self._require_on()
            end = min(offset + size, self.size)
            data = bytearray(os.pread(self.descriptor, end - offset, offset))
            for sector in range(offset // SECTOR, (end + SECTOR - 1) // SECTOR):
                kept = self.volatile.get(sector)
                if kept is None:
                    continue
                start = sector * SECTOR
                low, high = max(start, offset), min(start + SECTOR, end)
                data[low - offset : high - offset] = kept[low - start : high - start]
            return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Into the drive's memory only."""
        with self.lock:
            self._require_on()
            done = 0
            while done < len(data):
                sector, inside = divmod(offset + done, SECTOR)
                part = data[done : done + SECTOR - inside]
                done += len(part)
                if len(part) < SECTOR:
                    former = self.volatile.get(sector)
                    if former is None:
                        former = os.pread(self.descriptor, SECTOR, sector * SECTOR)
                    part = former[:inside] + part + former[inside + len(part) :]
                self.volatile[sector] = part
            self.writes_left -= 1
            if self.writes_left == 0:
                self.holding = True
                self.due.set()

    def flush(self) -> None:
        """Everything becomes durable."""
        with self.lock:
            self._require_on()
            self._store(list(self.volatile))
            self.volatile.clear()

    def arm(self, writes: int) -> None:
        """From the WRITES-th write from now on nothing is answered any more; then `due` is set."""
        with self.lock:
            self.due.clear()
            self.writes_left = writes

    def hold(self, unique: int) -> bool:
        """Whether this request gets no answer before `release`."""
        with self.lock:
            if self.holding:
                self.held.append(unique)
            return self.holding

    def release(self) -> list[int]:
        """From here on everything is answered again; the requests that were held."""
        with self.lock:
            self.holding = False
            held, self.held = self.held, []
            return held

    def cut(self, seed: str) -> tuple[int, int]:
        """Power off: sectors forgotten, sectors that had reached the medium by chance."""
        with self.lock:
            sectors = sorted(self.volatile)
            kept: list[int] = []
            if seed != "all":
                dice = random.Random(int(seed))
                share = dice.random()
                kept = [sector for sector in sectors if dice.random() < share]
            self._store(kept)
            self.volatile.clear()
            self.off = self.holding = True
            self.writes_left = -1
            return len(sectors) - len(kept), len(kept)

    def _store(self, sectors: list[int]) -> None:
        for sector in sectors:
            os.pwrite(self.descriptor, self.volatile[sector], sector * SECTOR)

    def _require_on(self) -> None:
        if self.off:
            raise OSError(errno.EIO, "no power")


class DiskServer:
    """Serves images at a mount point; one thread, one request at a time."""

    def __init__(self, images: list[Path], mountpoint: Path, source: str) -> None:
        self.disks = {image.name: Disk(image) for image in images}
        self._nodes = {number: image.name for number, image in enumerate(images, 2)}
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0"
        raw_mount(source, str(mountpoint), MOUNT_KIND, options)

    def serve(self) -> None:
        """Until it is unmounted."""
        while True:
            try:
                raw = os.read(self._device, _MAX_WRITE + 65536)
            except OSError as problem:
                if problem.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return
            _, operation, unique, node, *_ = _IN.unpack_from(raw)
            if operation in (_FORGET, _BATCH_FORGET):
                continue
            disk = self.disks.get(self._nodes.get(node, ""))
            if disk is not None and operation in (_READ, _WRITE, _FSYNC) and disk.hold(unique):
                continue
            try:
                answer, error = self._answer(operation, node, raw[_IN.size :]), 0
            except OSError as problem:
                answer, error = b"", -(problem.errno or errno.EIO)
            self._reply(unique, error, answer)

    def _reply(self, unique: int, error: int, answer: bytes = b"") -> None:
        try:
            os.write(self._device, _OUT.pack(_OUT.size + len(answer), error, unique) + answer)
        except OSError:
            return  # Nobody waits for it any more.

    def fail(self, name: str) -> None:
        """What is held gets EIO, so that the processes that wait for it can end."""
        for unique in self.disks[name].release():
            self._reply(unique, -errno.EIO)

    def _answer(self, operation: int, node: int, body: bytes) -> bytes:
        if operation == _INIT_OP:
            return _INIT.pack(7, 31, 0, _BIG_WRITES, 64, 48, _MAX_WRITE, 1, 0, 0, 0, 0)
        if operation == _LOOKUP:
            wanted = body.rstrip(b"\0").decode()
            for number, name in self._nodes.items():
                if name == wanted:
                    return _ENTRY.pack(number, 0, 3600, 3600, 0, 0) + self._attributes(number)
            raise OSError(errno.ENOENT, wanted)
        if operation == _GETATTR:
            return _ATTR_HEAD.pack(3600, 0, 0) + self._attributes(node)
        if operation == _OPEN_OP:
            return _OPEN.pack(node, 0, 0)
        if operation == _RELEASE:
            return b""
        disk = self.disks[self._nodes[node]] if node in self._nodes else None
        if disk is None:
            raise OSError(errno.ENOSYS, "")
        if operation == _READ:
            _, offset, size, *_ = _IO.unpack_from(body)
            return disk.read(offset, size)
        if operation == _WRITE:
            _, offset, size, *_ = _IO.unpack_from(body)
            disk.write(offset, body[_IO.size : _IO.size + size])
            return struct.pack("<II", size, 0)
        if operation == _FSYNC:
            disk.flush()
            return b""
        raise OSError(errno.ENOSYS, "")

    def _attributes(self, node: int) -> bytes:
        directory = node not in self._nodes
        size = 0 if directory else self.disks[self._nodes[node]].size
        mode = stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o600
        return _ATTR.pack(
            node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, SECTOR, 0
        )  # fmt: skip
