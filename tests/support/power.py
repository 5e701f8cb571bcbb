"""Power cuts for real: disks that forget what was not flushed, under a real ext4.

A node's home lies on an ext4 file system on a loop device whose backing file is served by a small
FUSE file system of a process of its own. That server keeps written sectors in memory until the
loop driver flushes (fsync = flush or FUA). A cut comes at a chosen write: it forgets all of them or
a seeded random part, and from then on answers nothing, so that nobody on the node can notice; then
it fails everything until the disk is switched on again.

    python -m tests.support.power BACKING MOUNTPOINT

Commands on standard input: `cut SEED|all WRITES NAME...`, `fail NAME...`, `on NAME...`.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from hyperha.replication.fuse.mount import raw_mount

SECTOR = 4096
DISK_MIB = 512
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
    """Serves the images of a directory at a mount point; one thread, one request at a time."""

    def __init__(self, backing: Path, mountpoint: Path) -> None:
        names = sorted(one.name for one in backing.iterdir())
        self.disks = {name: Disk(backing / name) for name in names}
        self._nodes = {number: name for number, name in enumerate(names, 2)}
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0"
        raw_mount("power", str(mountpoint), "fuse.power", options)

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
            if disk is not None and disk.holding and operation in (_READ, _WRITE, _FSYNC):
                disk.held.append(unique)
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

    def cut(self, seed: str, writes: int, disks: list[Disk]) -> str:
        """At the WRITES-th write from now on the first of the disks, or after a while without."""
        disks[0].due.clear()
        disks[0].writes_left = writes
        disks[0].due.wait(3)
        told = [disk.cut(seed) for disk in disks]
        return ", ".join(f"{dropped} sectors forgotten, {kept} kept" for dropped, kept in told)

    def fail(self, disk: Disk) -> None:
        """What is held gets EIO: every process of the node is stopped or gone by now."""
        disk.holding = False
        held, disk.held = disk.held, []
        for unique in held:
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


def main() -> None:
    """The server process."""
    server = DiskServer(Path(sys.argv[1]), Path(sys.argv[2]))
    threading.Thread(target=server.serve, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "cut":
            names = rest[2:]
            print(server.cut(rest[0], int(rest[1]), [server.disks[n] for n in names]), flush=True)
            continue
        for name in rest:
            if word == "fail":
                server.fail(server.disks[name])
            else:
                server.disks[name].off = False
        print(word, flush=True)


class PoweredDisks:
    """The disks of some nodes, mounted at directories; `close` leaves nothing."""

    def __init__(self, place: Path, homes: dict[str, Path]) -> None:
        self._homes = homes
        self._loops: dict[str, str] = {}
        self._backing, self._mountpoint = place / "images", place / "disks"
        for directory in (self._backing, self._mountpoint):
            directory.mkdir(parents=True)
        for name in homes:
            image = self._backing / name
            with open(image, "wb") as file:
                file.truncate(DISK_MIB << 20)
            _run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-J", "size=8", str(image))
        self._server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.power",
                str(self._backing),
                str(self._mountpoint),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent.parent,
        )
        try:
            assert self._say() == "ready"
            for name in homes:
                self._attach(name)
        except BaseException:
            self.close()
            raise

    def _say(self, command: str = "") -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        if command:
            self._server.stdin.write(command + "\n")
            self._server.stdin.flush()
        return self._server.stdout.readline().strip()

    def _attach(self, name: str) -> None:
        done = _run("losetup", "--find", "--show", str(self._mountpoint / name))
        self._loops[name] = done.strip()
        self._homes[name].mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "ext4", self._loops[name], str(self._homes[name]))

    def _detach(self, name: str) -> None:
        loop = self._loops.pop(name, "")
        if not loop:
            return
        for _ in range(50):
            done = subprocess.run(
                ["umount", str(self._homes[name])], capture_output=True, text=True, check=False
            )
            if done.returncode == 0 or "not mounted" in done.stderr:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", str(self._homes[name])], check=False)
        subprocess.run(["losetup", "-d", loop], check=False)

    def power_off(self, seed: str, writes: int, names: tuple[str, ...]) -> str:
        """Nothing reaches these disks after some more writes; what was forgotten."""
        return self._say(f"cut {seed} {writes} {' '.join(names)}")

    def fail(self, names: tuple[str, ...]) -> None:
        """Let the kernel's requests end, so that killed processes can."""
        assert self._say(f"fail {' '.join(names)}") == "fail"

    def power_on(self, name: str) -> None:
        """After every process of the node has ended: unmount, forget, mount (journal replay)."""
        self._detach(name)
        assert self._say(f"on {name}") == "on"
        self._attach(name)

    def sync(self, name: str) -> None:
        """Everything of a node onto the medium."""
        _run("sync", "-f", str(self._homes[name]))

    def close(self) -> None:
        """Unmount everything and end the server."""
        if self._server.poll() is None:
            self.fail(tuple(self._homes))
        for name in self._homes:
            self._detach(name)
        subprocess.run(["umount", "-l", str(self._mountpoint)], capture_output=True, check=False)
        for stream in (self._server.stdin, self._server.stdout):
            if stream is not None:
                stream.close()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
