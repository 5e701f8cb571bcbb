"""Open files without a name go on when the process that serves them dies (C10, M4, Z7)."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.core import actions
from hyperha.core.actions import Acknowledge
from hyperha.daemon.held_orphans import HoldsOrphans
from hyperha.domain import Epoch
from hyperha.replication.control import DropOrphan, HeldOrphans, HoldOrphan, LogLine
from hyperha.replication.fuse import orphans
from tests.support.engine_pair import free_ports, wait_for
from tests.support.engine_process import NodeProcess
from tests.support.safety import file_system

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    """One node that runs alone."""
    ports = free_ports(2)
    one = NodeProcess(tmp_path, "node1", "node2", ports[0], ports[1])
    try:
        one.attach()
        one.do(actions.Promote, Epoch(1, "node1"), Acknowledge.LOCAL)
        learn_no_flush(one)
        yield one
    finally:
        one.close()


def learn_no_flush(node: NodeProcess) -> None:
    """A child that is started while nobody serves closes what this process has open: the kernel
    must know by then that a close asks for nothing."""
    (node.folder / "flushed").touch()
    (node.folder / "flushed").unlink()


def succeed(node: NodeProcess) -> None:
    """Kill the process at once, and let a successor go on."""
    node.kill()
    node.succeed()
    node.do(actions.Release)


class Temporary(threading.Thread):
    """Opens a file that has no name, and writes, cuts and reads it without end."""

    def __init__(self, folder: Path, number: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.number = number
        self.chance = random.Random(seed + number)
        self.stop = threading.Event()
        self.steps = 0
        self.problem: BaseException | None = None

    def _open(self) -> int:
        if self.number % 2:
            return os.open(self.folder, os.O_TMPFILE | os.O_RDWR, 0o640)
        path = self.folder / f"temporary-{self.number}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
        os.write(descriptor, b"before")
        if self.number % 4:
            os.unlink(path)
        else:
            (self.folder / f"other-{self.number}").touch()
            os.rename(self.folder / f"other-{self.number}", path)
            os.unlink(path)
        return descriptor

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                descriptor = self._open()
                content = bytearray(os.pread(descriptor, 100, 0))
                try:
                    for _ in range(self.chance.randrange(40, 400)):
                        self._step(descriptor, content)
                        self.steps += 1
                        if self.stop.wait(0.0005):
                            break
                finally:
                    os.close(descriptor)
        except BaseException as problem:
            self.problem = problem

    def _step(self, descriptor: int, content: bytearray) -> None:
        what = self.chance.random()
        if what < 0.7:
            offset = self.chance.randrange(len(content) + 2000)
            data = self.chance.randbytes(self.chance.randrange(1, 9000))
            os.pwrite(descriptor, data, offset)
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
        elif what < 0.8:
            size = self.chance.randrange(len(content) + 1)
            os.ftruncate(descriptor, size)
            del content[size:]
        elif what < 0.85:
            os.fsync(descriptor)
        else:
            assert os.pread(descriptor, len(content) + 1, 0) == content
            status = os.fstat(descriptor)
            assert (status.st_nlink, status.st_size) == (0, len(content))

    def finish(self) -> None:
        self.stop.set()
        self.join(20)
        assert not self.is_alive()
        if self.problem is not None:
            raise self.problem


def plain_folder(node: NodeProcess) -> str:
    """The folder below the mount."""
    assert node.kept is not None
    descriptors, numbers = node.kept
    return f"/proc/{os.getpid()}/fd/{numbers[descriptors.names.index('folder')]}/"


def plain_names(node: NodeProcess) -> set[str]:
    """Everything below the mount, the private directory's too."""
    base = plain_folder(node)
    found = set()
    for place, directories, files in os.walk(base):
        found |= {os.path.relpath(os.path.join(place, one), base) for one in directories + files}
    return found


def test_files_without_a_name_go_on_after_deaths_under_load(node: NodeProcess) -> None:
    before = plain_names(node)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    loads = [Temporary(node.folder, number, seed) for number in range(4)]
    for one in loads:
        one.start()
    chance = random.Random(seed)
    try:
        for _ in range(5):
            steps = [one.steps for one in loads]
            wait_for(lambda steps=steps: all(
                one.problem or one.steps > before + 50
                for one, before in zip(loads, steps, strict=True)
            ))  # fmt: skip
            time.sleep(chance.random() * 0.2)
            succeed(node)
            assert [one.problem for one in loads] == [None] * len(loads)
    finally:
        for one in loads:
            one.finish()
    # The kernel forgets what is closed, and so does everybody else.
    wait_for(lambda: len(node.orphans) == 0)
    assert plain_names(node) == before


def test_a_file_that_gets_its_first_name_after_a_death_is_whole(node: NodeProcess) -> None:
    descriptor = os.open(node.folder, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(descriptor, b"x" * 70_000)
    wait_for(lambda: len(node.orphans) == 1)
    succeed(node)
    source = f"/proc/self/fd/{descriptor}"
    os.link(source, node.folder / "named", src_dir_fd=descriptor, follow_symlinks=True)
    wait_for(lambda: len(node.orphans) == 0)
    os.write(descriptor, b"more")
    succeed(node)
    os.write(descriptor, b"!")
    os.close(descriptor)
    assert (node.folder / "named").read_bytes() == b"x" * 70_000 + b"more!"


def test_only_what_may_lose_its_last_name_while_open_is_held(node: NodeProcess) -> None:
    def held() -> list[HoldOrphan]:
        return [one for one in node.messages if isinstance(one, HoldOrphan)]

    closed, linked = node.folder / "closed", node.folder / "linked"
    closed.touch()
    linked.touch()
    os.link(linked, node.folder / "second")
    with open(linked, "rb"):
        closed.unlink()
        linked.unlink()
        assert not held()
        (node.folder / "second").unlink()
        wait_for(lambda: len(held()) == 1)
        wait_for(lambda: len(node.orphans) == 1)
    wait_for(lambda: len(node.orphans) == 0)
    full = node.folder / "directory"
    (full / "below").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        full.rmdir()
    assert len(held()) == 1


def test_a_removal_that_fails_holds_nothing(node: NodeProcess) -> None:
    path = node.folder / "stays"
    path.touch()
    below = Path(plain_folder(node)) / "stays"
    with open(path, "rb") as file:
        subprocess.run(["chattr", "+i", below], check=True)
        try:
            with pytest.raises(PermissionError):
                path.unlink()
        finally:
            subprocess.run(["chattr", "-i", below], check=True)
        wait_for(lambda: len(node.orphans) == 0)
        assert os.fstat(file.fileno()).st_nlink == 1


def test_more_than_the_limit_is_said_and_ends_with_an_error(node: NodeProcess) -> None:
    files = []
    try:
        for number in range(orphans.LIMIT + 3):
            path = node.folder / f"f{number}"
            files.append(os.open(path, os.O_RDWR | os.O_CREAT))
            os.write(files[-1], b"%d" % number)
            os.unlink(path)
        wait_for(lambda: len(node.orphans) == orphans.LIMIT)
        told = node.wait(LogLine, lambda one: one.rule == "M4")
        assert "more than 256 files without a name" in told.text
        succeed(node)
        for number, descriptor in enumerate(files[: orphans.LIMIT]):
            assert os.pread(descriptor, 9, 0) == b"%d" % number
        for descriptor in files[orphans.LIMIT :]:
            with pytest.raises(OSError, match="Stale"):
                os.pwrite(descriptor, b"x", 0)
    finally:
        for descriptor in files:
            os.close(descriptor)
    wait_for(lambda: len(node.orphans) == 0)


def test_leaving_the_role_lets_go_of_everything(node: NodeProcess) -> None:
    descriptor = os.open(node.folder, os.O_TMPFILE | os.O_RDWR, 0o640)
    wait_for(lambda: len(node.orphans) == 1)
    node.do(actions.Demote)
    wait_for(lambda: len(node.orphans) == 0)
    with contextlib.suppress(OSError):
        os.close(descriptor)
    # The same numbers are not given twice: what is held now stays held.
    node.do(actions.Promote, Epoch(2, "node1"), Acknowledge.LOCAL)
    learn_no_flush(node)
    descriptor = os.open(node.folder, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(descriptor, b"kept")
    succeed(node)
    assert os.pread(descriptor, 9, 0) == b"kept"
    os.close(descriptor)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_crash_of_the_node_leaves_nothing_on_the_disk(tmp_path: Path, kind: str) -> None:
    with file_system(kind, tmp_path, 320) as place:
        ports = free_ports(2)
        node = NodeProcess(place, "node1", "node2", ports[0], ports[1])
        try:
            node.attach()
            node.do(actions.Promote, Epoch(1, "node1"), Acknowledge.LOCAL)
            (node.folder / "unlinked").touch()
            before, names = os.statvfs(place).f_bfree, plain_names(node)
            files = [
                os.open(node.folder, os.O_TMPFILE | os.O_RDWR, 0o640),
                os.open(node.folder / "unlinked", os.O_RDWR),
            ]
            os.unlink(node.folder / "unlinked")
            for descriptor in files:
                os.write(descriptor, os.urandom(20 << 20))
                os.fsync(descriptor)
            wait_for(lambda: len(node.orphans) == 2)
            assert os.statvfs(place).f_bfree < before - (35 << 20) // 4096
            assert plain_names(node) == names - {"unlinked"}
            # The daemon dies, and everything with it.
            node.kill()
            node.orphans.close()
        finally:
            node.close()
            for descriptor in files:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        wait_for(lambda: os.statvfs(place).f_bfree > before - (2 << 20) // 4096)


def test_the_daemon_keeps_descriptors_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def limits(_: int) -> tuple[int, int]:
        return 6 + 2 * HoldsOrphans._total, 1 << 20

    monkeypatch.setattr("resource.getrlimit", limits)
    one, other = HoldsOrphans(), HoldsOrphans()
    mine = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    assert one.hold(HoldOrphan(1, 11), (mine[0],)) == ""
    assert one.hold(HoldOrphan(1, 12), (mine[1],)) == ""
    assert other.hold(HoldOrphan(1, 13), (mine[2],)) == ""
    assert [found for found, _ in one.messages()] == [HeldOrphans((1,), (12,))]
    assert "no message" not in one.hold(HoldOrphan(2, 14), ())
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(mine[0])
    one.drop(DropOrphan(1))
    one.drop(DropOrphan(1))
    assert len(one) == 0
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(mine[1])
    other.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(mine[2])
    monkeypatch.setattr("resource.getrlimit", lambda _: (2 * HoldsOrphans._total, 1 << 20))
    assert "no room for more" in one.hold(HoldOrphan(3, 15), (mine[3],))
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(mine[3])
    os.close(mine[4])
