"""Deaths of either replication process under load, again and again; the copies end equal."""

import contextlib
import os
import random
import threading
import time
from pathlib import Path

import pytest

from hyperha.core import actions
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import ResyncCopied, SessionLost, SessionUp
from hyperha.domain import Epoch
from tests.support.engine_pair import free_ports
from tests.support.engine_process import ProcessPair, tree

pytestmark = [pytest.mark.root, pytest.mark.fuse]


class Load(threading.Thread):
    """Does anything that files allow, through the mount, and checks what it reads back."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.chance = random.Random(seed)
        self.stop = threading.Event()
        self.steps = 0
        self.problem: BaseException | None = None
        self.expected: dict[str, bytearray] = {}
        self.made = 0

    def run(self) -> None:
        try:
            (self.folder / "sub").mkdir(exist_ok=True)
            while not self.stop.is_set():
                self.step()
                self.steps += 1
                self.stop.wait(0.0003)
        except BaseException as problem:
            self.problem = problem

    def step(self) -> None:
        what = self.chance.random()
        if what < 0.1 or not self.expected:
            self.made += 1
            name = self.chance.choice(("", "sub/")) + f"f{self.made}"
            data = self.chance.randbytes(self.chance.randrange(50_000))
            (self.folder / name).write_bytes(data)
            self.expected[name] = bytearray(data)
        elif what < 0.75:
            name = self.chance.choice(list(self.expected))
            content = self.expected[name]
            offset = self.chance.randrange(len(content) + 1000)
            data = self.chance.randbytes(self.chance.choice((1, 512, 4096, 9000)))
            with open(self.folder / name, "r+b", buffering=0) as file:
                file.seek(offset)
                file.write(data)
                if self.chance.random() < 0.1:
                    os.fsync(file.fileno())
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
        elif what < 0.85:
            name = self.chance.choice(list(self.expected))
            self.made += 1
            new = self.chance.choice(("", "sub/")) + f"r{self.made}"
            os.rename(self.folder / name, self.folder / new)
            self.expected[new] = self.expected.pop(name)
        elif what < 0.9:
            name = self.chance.choice(list(self.expected))
            size = self.chance.randrange(40_000)
            os.truncate(self.folder / name, size)
            content = self.expected[name]
            del content[size:]
            content.extend(bytes(size - len(content)))
        elif what < 0.95 and len(self.expected) > 20:
            name = self.chance.choice(list(self.expected))
            os.unlink(self.folder / name)
            del self.expected[name]
        else:
            name = self.chance.choice(list(self.expected))
            assert (self.folder / name).read_bytes() == self.expected[name], name

    def finish(self) -> None:
        self.stop.set()
        self.join(20)
        assert not self.is_alive()
        if self.problem is not None:
            raise self.problem

    def check(self) -> None:
        for name, content in self.expected.items():
            assert (self.folder / name).read_bytes() == content, name


@pytest.fixture
def pair(tmp_path: Path):
    both = ProcessPair(tmp_path, free_ports(2))
    try:
        yield both
    finally:
        both.close()


def lose_the_secondary(pair: ProcessPair) -> None:
    pair.b.kill()
    pair.b.drop_kept()
    pair.a.wait(SessionLost)
    pair.a.do(actions.Freeze)
    pair.a.do(actions.CloseSession)
    pair.a.do(actions.EnterAlone, "g0")
    pair.a.do(actions.Release)
    time.sleep(0.2)
    pair.b.start()
    pair.b.attach(fresh=False)
    pair.resync(SessionStart.CANDIDATES)


def succeed_the_primary(pair: ProcessPair) -> None:
    pair.a.kill()
    time.sleep(0.05)
    pair.a.succeed()
    with contextlib.suppress(AssertionError):
        pair.b.wait(SessionLost, limit_s=5)
    pair.b.do(actions.CloseSession)
    key = pair.connect(SessionStart.CANDIDATES)
    pair.a.wait(SessionUp)
    pair.a.wait(ResyncCopied, limit_s=20)
    pair.a.do(actions.EndResync, key)
    pair.a.do(actions.Barrier)
    pair.b.do(actions.ClearMap)
    pair.a.do(actions.ClearMap)


@pytest.mark.parametrize("attempt", range(2))
def test_deaths_under_load(pair: ProcessPair, attempt: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, attempt {attempt}")
    chance = random.Random(seed)
    pair.a.attach()
    pair.b.attach()
    pair.in_sync()
    load = Load(pair.a.folder, seed)
    load.start()
    try:
        for _ in range(4):
            time.sleep(chance.random() * 0.6)
            if chance.random() < 0.5:
                lose_the_secondary(pair)
            else:
                succeed_the_primary(pair)
            assert load.problem is None, load.problem
    finally:
        load.finish()
    load.check()
    pair.a.do(actions.Barrier)
    pair.b.do(actions.Barrier)
    assert tree(pair.a.folder) == tree(pair.b.folder)
    # The other node takes over: it serves the same files.
    pair.a.do(actions.Demote)
    pair.b.do(actions.CloseSession)
    pair.b.do(actions.Promote, Epoch(2, "node2"), Acknowledge.LOCAL)
    load.folder = pair.b.folder
    load.check()
