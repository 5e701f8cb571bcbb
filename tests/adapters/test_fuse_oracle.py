"""Random sequences of operations in the mount and in a plain folder: same results, same trees.

The mirror, to which every change went, must equal both. Seeds are printed; a failing one is rerun
with HYPERHA_ORACLE_SEED.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperha.replication import syscalls
from tests.support.fuse_local import Served, compare

pytestmark = [pytest.mark.root, pytest.mark.fuse]

NAMES = ["a", "b", "c", "d/a", "d/b", "d", "e", "e/a", "e/d/a", "e/d", "\udcff"]
STEPS = 1200


class World:
    """One folder and the handles that are open in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handles: dict[int, int] = {}

    def close(self) -> None:
        for fd in self.handles.values():
            os.close(fd)
        self.handles.clear()

    def do(self, action: Callable[[World], object]) -> object:
        try:
            return action(self)
        except OSError as problem:
            return problem.errno

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"


def _open(slot: int, name: str, flags: int) -> Callable[[World], object]:
    def action(world: World) -> object:
        fd = os.open(world.path(name), flags, 0o640)
        if slot in world.handles:
            os.close(world.handles.pop(slot))
        world.handles[slot] = fd
        return stat.S_IFMT(os.fstat(fd).st_mode)

    return action


def _held(slot: int, work: Callable[[int], object]) -> Callable[[World], object]:
    return lambda world: work(world.handles[slot]) if slot in world.handles else None


def _status(name: str) -> Callable[[World], object]:
    def action(world: World) -> object:
        s = os.lstat(world.path(name))
        size = s.st_size if not stat.S_ISDIR(s.st_mode) else 0
        links = s.st_nlink if not stat.S_ISDIR(s.st_mode) else 0
        return (s.st_mode, s.st_uid, s.st_gid, size, links)

    return action


def _rename(old: str, new: str, flags: int) -> Callable[[World], object]:
    def action(world: World) -> object:
        fd = os.open(world.folder, os.O_RDONLY)
        try:
            syscalls.rename(fd, os.fsencode(old), fd, os.fsencode(new), flags)
        finally:
            os.close(fd)
        return None

    return action


def choose(rng: random.Random) -> tuple[str, Callable[[World], object]]:
    """One operation with its description."""
    name, other = rng.choice(NAMES), rng.choice(NAMES)
    slot, offset = rng.randrange(4), rng.randrange(0, 300_000)
    data = bytes([rng.randrange(256)]) * rng.choice([1, 100, 4096, 70_000])
    mode, owner = rng.choice([0o600, 0o644, 0o4755, 0o2775, 0o1777]), rng.choice([0, 12, 65534])
    flags = rng.choice([os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL])
    flags |= rng.choice([0, 0, os.O_TRUNC, os.O_APPEND])
    allocation = rng.choice([0, 1, 3, 0x10, 0x11])
    rename_flags = rng.choice([0, 0, 0, 1, 2])
    choices: list[tuple[str, Callable[[World], object]]] = [
        (f"open {slot} {name!r} {flags:#x}", _open(slot, name, flags)),
        (f"write {slot} {offset} {len(data)}", _held(slot, lambda fd: os.pwrite(fd, data, offset))),
        (f"write {slot} {offset} {len(data)}", _held(slot, lambda fd: os.pwrite(fd, data, offset))),
        (f"append {slot} {len(data)}", _held(slot, lambda fd: os.write(fd, data))),
        (f"read {slot} {offset}", _held(slot, lambda fd: os.pread(fd, 100_000, offset))),
        (f"truncate {slot} {offset}", _held(slot, lambda fd: os.ftruncate(fd, offset))),
        (f"fsync {slot}", _held(slot, os.fsync)),
        (
            f"allocate {slot} {allocation:#x} {offset} {len(data)}",
            _held(slot, lambda fd: syscalls.allocate(fd, allocation, offset, len(data))),
        ),
        (f"hole {slot}", _held(slot, lambda fd: os.fstat(fd).st_size)),
        (f"chmod {name!r} {mode:o}", lambda w: os.chmod(w.path(name), mode)),
        (f"chown {name!r} {owner}", lambda w: os.lchown(w.path(name), owner, owner)),
        (f"utime {name!r}", lambda w: os.utime(w.path(name), ns=(offset, offset * 1000 + 7))),
        (f"mkdir {name!r}", lambda w: os.mkdir(w.path(name), mode)),
        (f"rmdir {name!r}", lambda w: os.rmdir(w.path(name))),
        (f"unlink {name!r}", lambda w: os.unlink(w.path(name))),
        (f"link {name!r} {other!r}", lambda w: os.link(w.path(name), w.path(other))),
        (f"symlink {name!r} {other!r}", lambda w: os.symlink(name, w.path(other))),
        (f"mkfifo {name!r}", lambda w: os.mkfifo(w.path(name), mode)),
        (f"readlink {name!r}", lambda w: os.readlink(w.path(name))),
        (f"rename {name!r} {other!r} {rename_flags}", _rename(name, other, rename_flags)),
        (f"rename {name!r} {other!r} 0", _rename(name, other, 0)),
        (f"list {name!r}", lambda w: sorted(os.listdir(w.path(name)))),
        (f"stat {name!r}", _status(name)),
        (f"stat {other!r}", _status(other)),
        (
            f"setxattr {name!r}",
            lambda w: os.setxattr(
                w.path(name), f"user.{slot}", data[:3000], offset % 3, follow_symlinks=False
            ),
        ),
        (
            f"removexattr {name!r}",
            lambda w: os.removexattr(w.path(name), f"user.{slot}", follow_symlinks=False),
        ),
        (
            f"listxattr {name!r}",
            lambda w: sorted(os.listxattr(w.path(name), follow_symlinks=False)),
        ),
    ]
    return rng.choice(choices)


def _seeds() -> list[int]:
    fixed = os.environ.get("HYPERHA_ORACLE_SEED")
    return [int(fixed)] if fixed else [random.SystemRandom().randrange(1 << 32) for _ in range(3)]


@pytest.mark.parametrize("seed", _seeds())
def test_random_operations(tmp_path: Path, seed: int) -> None:
    print(f"HYPERHA_ORACLE_SEED={seed}")
    for name in ("folder", "run"):
        (tmp_path / name).mkdir()
    for name in ("mirror", "plain"):
        shutil.copytree(tmp_path / "folder", tmp_path / name)
    rng = random.Random(seed)
    with Served(tmp_path / "folder", tmp_path / "run", mirror=tmp_path / "mirror") as session:
        mounted, plain = World(tmp_path / "folder"), World(tmp_path / "plain")
        try:
            for step in range(STEPS):
                text, action = choose(rng)
                # An open fifo would wait for its other end.
                if text.startswith("open") and any(
                    stat.S_ISFIFO(p.stat().st_mode) for p in plain.folder.rglob("*") if p.exists()
                ):
                    continue
                left, right = mounted.do(action), plain.do(action)
                assert left == right, f"step {step}: {text}: mount {left!r}, plain {right!r}"
        finally:
            mounted.close()
            plain.close()
        session.do("times")
        assert compare(mounted.folder, tmp_path / "mirror") == ""
        difference = compare(mounted.folder, plain.folder)
        # Times were given at different moments in the two folders.
        assert all(
            line[1:2] in "dfLSD" and set(line[2:11]) <= set("t.")
            for line in difference.splitlines()
        ), difference
