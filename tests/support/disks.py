"""Disks that forget what was not flushed: image files served by a small FUSE file system.

A loop device lies on each image and an ext4 on that. Written sectors stay in this process' memory
until the loop driver flushes (fsync = flush or FUA). A cut forgets all of them or a seeded random
part; that write is still answered and nothing behind it, so that nobody on the node can notice;
then the disk fails everything until it is switched on again. The server never touches a path on a
disk that it serves.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
from pathlib import Path

from hyperha.replication.fuse import protocol
from hyperha.replication.fuse.mount import raw_mount
from hyperha.replication.fuse.protocol import Feature, Op

SECTOR = 4096
MOUNT_KIND = "fuse.power"
_VALID_S = 3600
_HELD = (Op.READ, Op.WRITE, Op.FSYNC)


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
        """The WRITES-th write from now on sets `due` and is the last request that is answered."""
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
                raw = os.read(self._device, protocol.BUFFER_SIZE)
            except OSError as problem:
                if problem.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return
            _, operation, unique, node, *_ = protocol.IN_HEADER.unpack_from(raw)
            if operation in (Op.FORGET, Op.BATCH_FORGET):
                continue
            disk = self.disks.get(self._nodes.get(node, ""))
            if disk is not None and operation in _HELD and disk.hold(unique):
                continue
            try:
                answer, error = self._answer(operation, node, raw[protocol.IN_SIZE :]), 0
            except OSError as problem:
                answer, error = b"", -(problem.errno or errno.EIO)
            self._reply(unique, error, answer)

    def _reply(self, unique: int, error: int, answer: bytes = b"") -> None:
        try:
            header = protocol.OUT_HEADER.pack(protocol.OUT_SIZE + len(answer), error, unique)
            os.write(self._device, header + answer)
        except OSError:
            return  # Nobody waits for it any more.

    def fail(self, name: str) -> None:
        """What is held gets EIO, so that the processes that wait for it can end."""
        for unique in self.disks[name].release():
            self._reply(unique, -errno.EIO)

    def _answer(self, operation: int, node: int, body: bytes) -> bytes:
        if operation == Op.INIT:
            return protocol.encode_init(protocol.OLDEST_MINOR, 0, Feature.BIG_WRITES)
        if operation == Op.LOOKUP:
            wanted = body.rstrip(b"\0").decode()
            for number, name in self._nodes.items():
                if name == wanted:
                    return protocol.encode_entry(number, self._status(number), _VALID_S)
            raise OSError(errno.ENOENT, wanted)
        if operation == Op.GETATTR:
            return protocol.encode_attributes_answer(self._status(node), _VALID_S)
        if operation == Op.OPEN:
            return protocol.OPEN_OUT.pack(node, 0, 0)
        if operation == Op.RELEASE:
            return b""
        disk = self.disks[self._nodes[node]] if node in self._nodes else None
        if disk is None:
            raise OSError(errno.ENOSYS, "")
        if operation == Op.READ:
            _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
            return disk.read(offset, size)
        if operation == Op.WRITE:
            _, offset, size, *_ = protocol.WRITE_IN.unpack_from(body)
            start = protocol.WRITE_IN.size
            disk.write(offset, body[start : start + size])
            return protocol.SIZE_OUT.pack(size, 0)
        if operation == Op.FSYNC:
            disk.flush()
            return b""
        raise OSError(errno.ENOSYS, "")

    def _status(self, node: int) -> os.stat_result:
        directory = node not in self._nodes
        size = 0 if directory else self.disks[self._nodes[node]].size
        mode = stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o600
        more = {"st_blocks": size // 512, "st_blksize": SECTOR, "st_rdev": 0}
        more |= {"st_atime_ns": 0, "st_mtime_ns": 0, "st_ctime_ns": 0}
        return os.stat_result((mode, node, 0, 1, 0, 0, size, 0, 0, 0), more)
