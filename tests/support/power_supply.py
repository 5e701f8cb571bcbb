"""The power of some nodes: a process that owns their disks, mounts and control groups.

A test says what shall happen, one JSON object a line, and gets one line back; it never has to
touch a path on a disk that is held, freeze a process, or unmount anything. When standard input
ends, also because the test was killed, everything is taken away: held requests fail first, then
the nodes' processes are ended, then file systems, loop devices and mounts go.

    python -m tests.support.power_supply PLACE NODE=HOME...

What a supply leaves that was itself killed is named after its process, and the next one frees it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hyperha.replication.fuse.mount import raw_unmount
from hyperha.replication.mounts import beneath, mounted
from hyperha.spawn.tree import ProcessTree, RunPlace, own_cgroup
from tests.support.disks import MOUNT_KIND, DiskServer

DISK_MIB = int(os.environ.get("HYPERHA_POWER_DISK_MIB", "512"))
NO_WRITE_LIMIT_S = 2.0
"""A cut comes at a write; on a disk that nobody writes to it comes after this time."""
DIRTY_KIB = 2048
"""Of a node's file system, in memory only. With a quarter of it the kernel paused writers for so
long at a time that a resync of 13 MB took 40 s on a busy machine."""
END_LIMIT_S = 15.0
CONFIRMATIONS = 3
"""mountinfo may leave out what is there while somebody else mounts (M6)."""
NAME = "hyperha-power"
_NAMED = re.compile(rf"^{NAME}-(\d+)-(\d+)(-|$)")
_DETACH = 2
_LOOPS = Path("/sys/block")


def start_ticks(process: int) -> str:
    """When a living process was started, in the kernel's ticks; empty when it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def _is_left(name: str) -> bool:
    """Whether a name is of a supply that is dead."""
    found = _NAMED.match(name)
    return found is not None and start_ticks(int(found[1])) != found[2]


def loops() -> Iterator[tuple[str, str]]:
    """Loop devices in use, each with the name of its file."""
    for entry in _LOOPS.glob("loop*"):
        with contextlib.suppress(OSError):
            file = (entry / "loop" / "backing_file").read_text().strip()
            yield f"/dev/{entry.name}", Path(file.removesuffix(" (deleted)")).name


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _write_back_early(home: Path) -> None:
    """Let the kernel write to this disk all the time, not only every few seconds.

    Else two nodes that fail at one moment forget the same writes, and nobody sees a difference.
    """
    device = home.stat().st_dev
    limits = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
    if (limits / "strict_limit").exists():  # Since Linux 6.2.
        (limits / "strict_limit").write_text("1")
        (limits / "max_bytes").write_text(str(DIRTY_KIB << 10))


def end_processes(tree: ProcessTree) -> None:
    """SIGKILL to a whole control group, also a frozen one, until nobody is left in it."""
    deadline = time.monotonic() + END_LIMIT_S
    while left := tree.members(thorough=False):
        if time.monotonic() > deadline:
            raise OSError(f"processes do not end: {left}")
        tree.kill(thorough=False)
        time.sleep(0.01)


def unmount_below(home: Path, *, give_up: bool) -> None:
    """The home's file system and all in it; with `give_up` detached when it stays busy.

    Never detached before a disk is switched on again: the old file system would write to it.
    """
    deadline = time.monotonic() + END_LIMIT_S
    looks_clean = 0
    while looks_clean < CONFIRMATIONS:
        entries = mounted()
        inside = beneath(str(home), entries)
        found = inside or [entry for entry in entries if entry.path == str(home)]
        if not found:
            looks_clean += 1
            time.sleep(0.01)
            continue
        looks_clean = 0
        late = time.monotonic() > deadline
        try:
            raw_unmount(found[-1].path, _DETACH if inside or (late and give_up) else 0)
        except OSError as problem:
            if late:
                raise OSError(f"{found[-1].path} is still in use: {problem}") from problem
            time.sleep(0.05)


def free_loop(device: str) -> None:
    """Detach a loop device and wait until it has let its file go."""
    used = _LOOPS / Path(device).name / "loop" / "backing_file"
    with contextlib.suppress(OSError):
        _run("losetup", "-d", device)
    deadline = time.monotonic() + END_LIMIT_S
    while used.exists():
        if time.monotonic() > deadline:
            raise OSError(f"{device} is still in use")
        time.sleep(0.02)


def sweep() -> list[str]:
    """Free what dead supplies left: processes, file systems, loop devices, mounts."""
    freed = []
    base = own_cgroup()
    for directory in Path(base).glob(f"hyperha-{NAME}-*") if base else ():
        if _is_left(directory.name.removeprefix("hyperha-")):
            tree = ProcessTree("", str(directory))
            end_processes(tree)
            tree.remove()
            freed.append(str(directory))
    for device, file in loops():
        if _is_left(file):
            for one in mounted():
                if one.source == device:
                    unmount_below(Path(one.path), give_up=True)
            free_loop(device)
            freed.append(device)
    for one in mounted():
        if one.kind == MOUNT_KIND and _is_left(one.source):
            raw_unmount(one.path, _DETACH)
            freed.append(one.path)
    return freed


class Supply:
    """Disks and control groups of the nodes."""

    def __init__(self, place: Path, homes: dict[str, Path]) -> None:
        self.tag = f"{NAME}-{os.getpid()}-{start_ticks(os.getpid())}"
        self._homes = homes
        self._loops: dict[str, str] = {}
        self._groups = RunPlace(self.tag)
        if self._groups.limit:
            raise OSError(f"a power cut needs control groups: {self._groups.limit}")
        images, self._mountpoint = place / "images", place / "disks"
        for directory in (images, self._mountpoint):
            directory.mkdir(parents=True)
        for node in homes:
            with open(images / self._image(node), "wb") as file:
                file.truncate(DISK_MIB << 20)
            _run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-J", "size=8", file.name)
        made = [images / self._image(node) for node in homes]
        self._server = DiskServer(made, self._mountpoint, self.tag)
        threading.Thread(target=self._server.serve, daemon=True).start()

    def _image(self, node: str) -> str:
        return f"{self.tag}-{node}"

    def group(self, node: str) -> str:
        """The directory of a node's control group, made when it is not there."""
        return self._groups.make(node)

    def on(self, node: str) -> None:
        """Power: the disk forgets nothing more, the journal is replayed, the home is there."""
        self._server.disks[self._image(node)].off = False
        device = _run("losetup", "--find", "--show", str(self._mountpoint / self._image(node)))
        self._loops[node] = device
        self._homes[node].mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "ext4", device, str(self._homes[node]))
        _write_back_early(self._homes[node])

    def cut(self, seed: str, writes: int, nodes: list[str]) -> dict[str, Any]:
        """Power off at the WRITES-th write from now on to the first node's disk, for all of them.

        Nothing of the nodes is left when this returns but their disks. What these forgot is told,
        and the moment (time.monotonic, the same for all processes).
        """
        disks = [self._server.disks[self._image(node)] for node in nodes]
        disks[0].arm(writes)
        disks[0].due.wait(NO_WRITE_LIMIT_S)
        for node in nodes:
            Path(self.group(node), "cgroup.freeze").write_text("1")
        at_s = time.monotonic()
        told = [disk.cut(seed) for disk in disks]
        for node in nodes:
            self._server.fail(self._image(node))
        for node in nodes:
            end_processes(self._groups.tree(node))
        for node in nodes:
            Path(self.group(node), "cgroup.freeze").write_text("0")
            self._take_off(node, give_up=False)
        text = ", ".join(f"{dropped} sectors forgotten, {kept} kept" for dropped, kept in told)
        return {"at_s": at_s, "told": text}

    def kill(self, node: str) -> None:
        """End every process of a node; its disk stays."""
        end_processes(self._groups.tree(node))

    def _take_off(self, node: str, *, give_up: bool) -> None:
        unmount_below(self._homes[node], give_up=give_up)
        device = self._loops.pop(node, "")
        if device:
            free_loop(device)

    def close(self) -> list[str]:
        """Take everything away; what could not be."""
        left = []
        for node in self._homes:
            self._server.fail(self._image(node))
        for node in self._homes:
            try:
                self.kill(node)
                self._take_off(node, give_up=True)
            except OSError as problem:
                left.append(f"{node}: {problem}")
        try:
            raw_unmount(str(self._mountpoint), _DETACH)
        except OSError as problem:
            left.append(str(problem))
        for node in self._homes:
            self._groups.tree(node).remove()
        self._groups.close()
        return left

    def obey(self, order: dict[str, Any]) -> Any:
        """One order of the test."""
        node = order.get("node", "")
        if order["order"] == "cut":
            return self.cut(order["seed"], order["writes"], order["nodes"])
        if order["order"] == "on":
            return self.on(node)
        if order["order"] == "kill":
            return self.kill(node)
        if order["order"] == "group":
            return self.group(node)
        raise OSError(f"unknown order {order['order']!r}")


def _say(**answer: Any) -> None:
    # Whoever asked may be gone; then standard input ends, too.
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(answer), flush=True)


def main() -> int:
    """Until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pairs = (one.partition("=") for one in sys.argv[2:])
    freed = sweep()
    supply = Supply(Path(sys.argv[1]), {node: Path(home) for node, _, home in pairs})
    _say(ready=supply.tag, freed=freed)
    for line in sys.stdin:
        try:
            _say(done=supply.obey(json.loads(line)))
        except OSError as problem:
            _say(failed=str(problem))
    left = supply.close()
    for one in left:
        print(f"{supply.tag} leaves behind: {one}", file=sys.stderr, flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
