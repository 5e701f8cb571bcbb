"""Two copies of a folder joined by the replication engine over loopback, without FUSE.

A `Side` has the store, the log, the pipeline and the acceptor of one node. The guest is played by
`Guest`, which does what the FUSE session does: changes through the pipeline of the primary.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import (
    Event,
    LocalDiskFailed,
    ResyncCopied,
    ResyncProgressed,
    SessionLost,
    SessionStalled,
    SessionUp,
)
from hyperha.domain import Epoch, SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication import preamble
from hyperha.replication.acceptor import Acceptor
from hyperha.replication.control import EngineConfig, LogLine, PeerLink, TlsFiles
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import (
    ROOT_ID,
    Attributes,
    Change,
    Create,
    FileId,
    Link,
    Record,
    RecordKind,
    Remove,
    Rename,
    SetAttributes,
    SetXattr,
    Target,
    Truncate,
)
from hyperha.replication.primary import Primary
from hyperha.replication.resync_source import ResyncSource
from hyperha.replication.store import Store, attributes_of

log = logging.getLogger(__name__)

LIMIT_S = 30.0


def wait_for(what: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Poll a condition that has no event to wait for."""
    end = time.monotonic() + limit_s
    while not what():
        if time.monotonic() > end:
            raise AssertionError(f"did not become true within {limit_s} s")
        time.sleep(0.005)


class Side:
    """One node's half of the engine."""

    def __init__(self, folder: Path, node: str, peer: str, port: int, peer_port: int) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.node = node
        self.events: list[Event | LogLine] = []
        self._heard = threading.Condition()
        self.config = EngineConfig(
            "cluster", "VM1", 1, node, peer, str(folder), "/nowhere",
            (PeerLink("repl", "127.0.0.1", peer_port, "127.0.0.1", None),),
            suspect_ms=400, stall_limit_ms=1000,
        )  # fmt: skip
        self.port = port
        self.tls: TlsFiles | None = None
        """What its own end of an accepted connection is secured with."""
        self.open()

    def open(self, *, fresh: bool = True) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        self.store = Store(descriptor)
        os.close(descriptor)
        private = self.store.private_directory()
        self.intent = IntentLog(private, "rid", self.store.handle, fresh=fresh)
        os.close(private)
        self.primary = Primary(self.store, self.intent, self.config, self.report)
        self.primary.resync_started = lambda session, welcome, theirs: ResyncSource(
            self.primary, session, welcome, theirs
        ).start()
        self.primary.barriers.run()
        self.acceptor = Acceptor(self.store, self.intent, self.config, self.report)
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(accepted,), daemon=True).start()

    def _greet(self, accepted: socket.socket) -> None:
        try:
            raw = accepted.recv(preamble.SIZE, socket.MSG_WAITALL)
            found = preamble.decode(raw)
        except (OSError, ReplicationError):
            # Only looked at, or broken before it began.
            accepted.close()
            return
        with contextlib.suppress(OSError, ReplicationError):
            self.acceptor.take(accepted, found, self.tls)

    def tick(self) -> None:
        """What the process does every second."""
        self.acceptor.tick()

    def report(self, event: Event | LogLine) -> None:
        # Shown beside a test that fails: what waits for ever may wait for a session that is lost.
        if not isinstance(event, ResyncProgressed):
            log.warning("%s: %s", self.node, event)
        with self._heard:
            self.events.append(event)
            self._heard.notify_all()

    def wait(self, kind: type[Event], limit_s: float = LIMIT_S) -> Event:
        """Take the next event of a kind; others before it stay."""
        with self._heard:
            end = time.monotonic() + limit_s
            while True:
                for one in self.events:
                    if isinstance(one, kind):
                        self.events.remove(one)
                        return one
                left = end - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{self.node}: no {kind.__name__}; {self.events[-5:]}")
                self._heard.wait(left)

    def has(self, kind: type[Event]) -> bool:
        return any(isinstance(one, kind) for one in self.events)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.primary.close()
        self.acceptor.shut()
        self.intent.close()
        self.store.close()

    def crash(self) -> None:
        """As if the process were killed: memory is gone, the log is what it is on disk."""
        self.close()
        self.events.clear()
        self.open(fresh=False)


class Pair:
    """Both nodes; `a` is the primary at first."""

    def __init__(self, base: Path, far: Path | None = None) -> None:
        """`far`: where the second copy is made, if not beside the first one."""
        ports = free_ports(2)
        self.a = Side(base / "a", "node1", "node2", ports[0], ports[1])
        self.b = Side((far or base) / "b", "node2", "node1", ports[1], ports[0])
        self._numbers = itertools.count(1)
        self.key = SessionKey("ab" * 16, Epoch(1, "node1"), 0)

    def connect(self, start: SessionStart, source: Side | None = None) -> SessionKey:
        source = source or self.a
        target = self.b if source is self.a else self.a
        self.key = SessionKey("ab" * 16, Epoch(1, source.node), next(self._numbers))
        target.acceptor.expect(self.key, start)
        source.primary.open_session(self.key, start)
        return self.key

    def resync(self, start: SessionStart, source: Side | None = None) -> None:
        """A whole resync with R11 at its end."""
        source = source or self.a
        target = self.b if source is self.a else self.a
        key = self.connect(start, source)
        source.wait(SessionUp)
        source.wait(ResyncCopied, 60)
        self.finish_resync(key, source, target)

    def finish_resync(self, key: SessionKey, source: Side, target: Side) -> None:
        call(lambda done: source.primary.switch_to_both(key, done))
        self.barrier(source)
        target.acceptor.clear_map()
        source.primary.barriers.clear()

    def barrier(self, source: Side) -> None:
        call(lambda done: source.primary.barriers.start(done, forget_all=True))

    def in_sync(self) -> None:
        self.connect(SessionStart.IN_SYNC)
        self.a.wait(SessionUp)
        self.a.primary.promote(Acknowledge.BOTH)

    def differences(self) -> str:
        """What rsync would still do, from `a` to `b`; empty when the copies are equal."""
        done = subprocess.run(
            ["rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes",
             "--exclude=/.hyperha", "--filter=-x trusted.hyperha.id",
             f"{self.a.folder}/", f"{self.b.folder}/"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    def identities(self, found: str) -> str:
        """Ids and link counts of what differs, for a failure's text."""
        lines = []
        for line in found.splitlines():
            for name in line.split(" ", 1)[1].split(" => "):
                for side in (self.a, self.b):
                    path = side.folder / name
                    if path.exists():
                        carried = os.getxattr(path, "trusted.hyperha.id")[:16].hex()
                        status = path.stat()
                        lines.append(
                            f"{side.node} {name}: {carried} {status.st_nlink} "
                            f"{status.st_ino} {status.st_size}"
                        )
        return "\n".join(lines)

    def check_equal(self, source: Side | None = None) -> None:
        self.barrier(source or self.a)
        found = self.differences()
        assert not found, found + self.identities(found)
        assert snapshot(self.a.folder) == snapshot(self.b.folder)

    def close(self) -> None:
        self.a.close()
        self.b.close()


def call(function: Callable[[Callable[[bool, str], None]], None]) -> None:
    """Wait for something that ends with (ok, text)."""
    result: list[tuple[bool, str]] = []
    event = threading.Event()

    def done(ok: bool, text: str) -> None:
        result.append((ok, text))
        event.set()

    function(done)
    assert event.wait(LIMIT_S), "did not end"
    assert result[0][0], result[0][1]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def snapshot(folder: Path) -> dict[str, object]:
    """Everything that must be equal on both copies, read without the engine."""
    found: dict[str, object] = {}
    links: dict[int, str] = {}
    for base, directories, files in os.walk(folder):
        if base == str(folder):
            directories[:] = [one for one in directories if one != ".hyperha"]
        for name in sorted([*directories, *files]):
            path = os.path.join(base, name)
            status = os.lstat(path)
            relative = os.path.relpath(path, folder)
            content: object = ""
            if stat.S_ISREG(status.st_mode):
                content = (Path(path).read_bytes(), links.setdefault(status.st_ino, relative))
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            found[relative] = (
                status.st_mode, status.st_uid, status.st_mtime_ns, content,
            )  # fmt: skip
    return found


class Guest:
    """Plays the data path: the same calls that the FUSE session makes, from one thread."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.answers = 0
        self.errors: list[int] = []
        self.more = False
        """Further requests wait: what is kept for their company is not sent yet."""
        self._lock = threading.Lock()

    def _answered(self, error: int = 0, _payload: bytes = b"") -> None:
        with self._lock:
            self.answers += 1
            if error:
                self.errors.append(error)

    def _send_kept(self) -> None:
        if not self.more:
            self.side.primary.send_kept()

    def change(self, records: list[Record], execute: Callable[[], Change | None]) -> None:
        self.side.primary.change(tuple(records), execute, self._answered)
        self._send_kept()

    def write(self, file: FileId, offset: int, data: bytes, *, barrier: bool = False) -> None:
        self.side.primary.write(file, offset, data, barrier=barrier, answer=self._answered)
        self._send_kept()

    def flush(self, file: FileId) -> None:
        self.side.primary.flush(file, data_only=True, answer=self._answered)
        self._send_kept()

    def _mtime(self, directory: FileId) -> int:
        return self.side.store.attributes(Target(directory)).mtime_ns

    def create(
        self, parent: FileId, name: bytes, mode: int = stat.S_IFREG | 0o644, target: bytes = b""
    ) -> FileId:
        store, file = self.side.store, self.side.store.new_id()

        def execute() -> Change:
            attributes = Attributes(mode, 0, 0, 0, time.time_ns(), 0)
            store.apply(Create(parent, name, file, attributes, time.time_ns(), target))
            real = attributes_of(store.status(Target(file)))
            return Create(parent, name, file, real, self._mtime(parent), target)

        self.change([Record(RecordKind.DIRECTORY, parent), Record(RecordKind.INODE, file)], execute)
        return file

    def remove(self, parent: FileId, name: bytes, *, directory: bool = False) -> None:
        def execute() -> Change:
            self.side.store.apply(Remove(parent, name, directory, time.time_ns()))
            return Remove(parent, name, directory, self._mtime(parent))

        self.change([Record(RecordKind.DIRECTORY, parent)], execute)

    def rename(self, old: FileId, old_name: bytes, new: FileId, new_name: bytes) -> None:
        def execute() -> Change:
            now = time.time_ns()
            self.side.store.apply(Rename(old, old_name, new, new_name, 0, now, now))
            return Rename(old, old_name, new, new_name, 0, self._mtime(old), self._mtime(new))

        records = [Record(RecordKind.DIRECTORY, old), Record(RecordKind.DIRECTORY, new)]
        self.change(records, execute)

    def link(self, file: FileId, parent: FileId, name: bytes) -> None:
        def execute() -> Change:
            self.side.store.apply(Link(Target(file), parent, name, time.time_ns()))
            return Link(Target(file), parent, name, self._mtime(parent))

        records = [Record(RecordKind.DIRECTORY, parent), Record(RecordKind.INODE, file)]
        self.change(records, execute)

    def truncate(self, file: FileId, size: int) -> None:
        def execute() -> Change:
            self.side.store.apply(Truncate(file, size, time.time_ns()))
            return Truncate(file, size, self._mtime(file))

        records = [Record(RecordKind.INODE, file), Record(RecordKind.WHOLE_FILE, file)]
        self.change(records, execute)

    def set_mode(self, file: FileId, mode: int) -> None:
        def execute() -> Change:
            store = self.side.store
            old = store.attributes(Target(file))
            new = Attributes(
                stat.S_IFMT(old.mode) | mode, old.uid, old.gid, old.size, time.time_ns(), old.rdev
            )
            store.apply(SetAttributes(Target(file), new))
            return SetAttributes(Target(file), store.attributes(Target(file)))

        self.change([Record(RecordKind.INODE, file)], execute)

    def set_xattr(self, file: FileId, name: bytes, value: bytes) -> None:
        def execute() -> Change:
            change = SetXattr(Target(file), name, value)
            self.side.store.apply(change)
            return change

        self.change([Record(RecordKind.INODE, file)], execute)


class Monkey:
    """A seeded guest that does anything, and remembers enough to go on."""

    def __init__(self, guest: Guest, seed: int) -> None:
        self.guest = guest
        self.chance = random.Random(seed)
        self.names = 0
        self.directories: list[tuple[FileId, FileId, bytes]] = [(ROOT_ID, ROOT_ID, b"")]
        self.files: list[tuple[FileId, FileId, bytes]] = []

    def step(self) -> None:
        count = self.chance.choice((1, 1, 3))
        for number in range(count):
            self.guest.more = number < count - 1
            try:
                self._one()
            finally:
                self.guest.more = False
        self.guest.side.primary.send_kept()

    def _one(self) -> None:
        choice = self.chance.random()
        if choice < 0.15 or not self.files:
            self._create()
        elif choice < 0.62:
            self._write()
        elif choice < 0.70:
            self._rename_file()
        elif choice < 0.74:
            self._rename_directory()
        elif choice < 0.78:
            self._remove()
        elif choice < 0.83:
            file = self.chance.choice(self.files)[0]
            self.guest.truncate(file, self.chance.randrange(0, 3 << 20))
        elif choice < 0.87:
            self.guest.set_mode(self.chance.choice(self.files)[0], self.chance.randrange(0o1000))
        elif choice < 0.91:
            value = self.chance.randbytes(self.chance.randrange(40))
            self.guest.set_xattr(self.chance.choice(self.files)[0], b"user.x", value)
        elif choice < 0.95:
            self._link()
        else:
            self.guest.flush(self.chance.choice(self.files)[0])

    def _name(self) -> bytes:
        self.names += 1
        return b"n%d" % self.names

    def _create(self) -> None:
        parent = self.chance.choice(self.directories)[0]
        name = self._name()
        kind = self.chance.random()
        if kind < 0.25 and len(self.directories) < 12:
            file = self.guest.create(parent, name, stat.S_IFDIR | 0o755)
            self.directories.append((file, parent, name))
        elif kind < 0.32:
            self.guest.create(parent, name, stat.S_IFLNK | 0o777, b"to/" + name)
        else:
            self.files.append((self.guest.create(parent, name), parent, name))

    def _write(self) -> None:
        file = self.chance.choice(self.files)[0]
        size = self.chance.choice((1, 100, 4096, 4096, 4096, 70000))
        offset = self.chance.randrange(0, 3 << 20)
        barrier = self.chance.random() < 0.05
        self.guest.write(file, offset, self.chance.randbytes(size), barrier=barrier)

    def _rename_file(self) -> None:
        place = self.chance.randrange(len(self.files))
        file, parent, name = self.files[place]
        new_parent, new_name = self.chance.choice(self.directories)[0], self._name()
        self.guest.rename(parent, name, new_parent, new_name)
        self.files[place] = (file, new_parent, new_name)

    def _rename_directory(self) -> None:
        if len(self.directories) < 2:
            return
        place = self.chance.randrange(1, len(self.directories))
        directory, parent, name = self.directories[place]
        new_parent, new_name = self.chance.choice(self.directories)[0], self._name()
        try:
            self.guest.rename(parent, name, new_parent, new_name)
        except OSError:
            return  # Into itself.
        self.directories[place] = (directory, new_parent, new_name)

    def _remove(self) -> None:
        place = self.chance.randrange(len(self.files))
        file, parent, name = self.files.pop(place)
        self.guest.remove(parent, name)
        if not any(one[0] == file for one in self.files):
            return

    def _link(self) -> None:
        file = self.chance.choice(self.files)[0]
        parent, name = self.chance.choice(self.directories)[0], self._name()
        self.guest.link(file, parent, name)
        self.files.append((file, parent, name))


@contextlib.contextmanager
def pair_at(base: Path, far: Path | None = None) -> Iterator[Pair]:
    pair = Pair(base, far)
    try:
        yield pair
    finally:
        pair.close()


__all__ = [
    "Acknowledge", "Guest", "LocalDiskFailed", "Monkey", "Pair", "SessionLost", "SessionStalled",
    "Side", "call", "pair_at", "snapshot", "wait_for",
]  # fmt: skip
