"""A FUSE session in a process of its own with a pipeline that has no peer, steered by a test.

`python -m tests.support.fuse_local FOLDER RUN [MIRROR]` covers FOLDER and obeys JSON lines on its
standard input. With MIRROR every change is also applied there, as a secondary would. `Served` is
the test's end of it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperha.replication import syscalls
from hyperha.replication.fuse.fence import Fence
from hyperha.replication.fuse.layers import Layer, MountStack
from hyperha.replication.fuse.session import Session
from hyperha.replication.operations import (
    Answer,
    Change,
    FileId,
    GiveBack,
    Record,
    SetTimes,
    Target,
)
from hyperha.replication.store import Store
from tests.support import ROOT


class LocalPipeline:
    """Applies at once and answers at once, or parks the answers while told to hold."""

    def __init__(self, store: Store, mirror: Store | None) -> None:
        self.store = store
        self.mirror = mirror
        self.holding = False
        self.takes_writes = True
        self.parked: list[Answer] = []
        self.lock = threading.Lock()
        self.counters = {"writes": 0, "barriers": 0, "changes": 0, "flushes": 0, "closed": 0}
        self.records = 0
        self.again = False
        self.written: set[FileId] = set()
        self.log: list[str] = []

    def writable(self) -> bool:
        return self.takes_writes

    def _done(self, answer: Answer) -> None:
        with self.lock:
            if self.holding:
                self.parked.append(answer)
                return
        answer(0, b"")

    def release(self, number: int = 0) -> None:
        with self.lock:
            self.holding = False
            parked, self.parked = self.parked, []
        for answer in parked:
            answer(number, b"")

    def write(
        self,
        file: FileId,
        offset: int,
        data: bytes | memoryview,
        *,
        barrier: bool,
        answer: Answer,
        give_back: GiveBack | None = None,
    ) -> bool:
        self.counters["writes"] += 1
        if barrier:
            self.counters["barriers"] += 1
        self.store.write(file, offset, data)
        if self.mirror is not None:
            self.mirror.write(file, offset, data)
            self.written.add(file)
        self._done(answer)
        return False

    def change(
        self,
        records: tuple[Record, ...],
        execute: Callable[[], Change | None],
        answer: Answer,
    ) -> None:
        self.records += len(records)
        change = execute()
        self.counters["changes"] += 1
        if change is None:
            answer(0, b"")
            return
        self.log.append(type(change).__name__)
        if self.mirror is not None:
            self.mirror.apply(change, again=self.again)
        self._done(answer)

    def flush(self, file: FileId, *, data_only: bool, answer: Answer) -> None:
        self.counters["flushes"] += 1
        self.store.sync(file, data_only)
        self._done(answer)

    keeps: object = None

    def send_kept(self) -> None:
        """Nothing is ever kept here."""

    def closed(self, file: FileId) -> None:
        self.counters["closed"] += 1

    def settle_times(self) -> None:
        """What the engine does at barriers: the mirror gets the times of written files (Z9)."""
        if self.mirror is None:
            return
        for file in self.written:
            if self.store.known(file):
                stamp = self.store.attributes(Target(file)).mtime_ns
                self.mirror.apply(SetTimes(file, stamp))
        self.written.clear()


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Server:
    """The child process."""

    def __init__(self, folder: str, run: str, mirror: str, inherited: list[int]) -> None:
        self.stack = MountStack(folder, "hyperha:test", run)
        self.disabled = int(os.environ.get("FUSE_DISABLED", "0"))
        if inherited:
            backing, device, table, fence = inherited
            self.store = Store(backing)
        else:
            self.peeled = self.stack.peel_stale()
            backing = self.stack.open_folder()
            self.store = Store(backing)
        self.backing = backing
        other = Store(os.open(mirror, os.O_RDONLY)) if mirror else None
        self.pipeline = LocalPipeline(self.store, other)
        self.sessions: list[Session] = []
        self.counted: dict[int, int] = {}
        if inherited:
            self.pipeline.again = True
            layer = self.stack.adopt(device, Fence.from_descriptors("abort-file", [fence]))
            self._serve(layer, table)
        else:
            self._serve(self.stack.cover(), None)
        self.events: list[str] = []
        self.watch = self.stack.watch(self.events.append)

    def _serve(self, layer: Layer, table: int | None) -> None:
        session = Session(
            self.store, self.pipeline, layer.device, disabled=self.disabled, inherited=table
        )
        session.start()
        if not session.ready.wait(5):
            raise TimeoutError("no INIT")
        self.sessions.append(session)

    def do(self, command: str, argument: Any) -> Any:
        session = self.sessions[-1]
        if command == "primary":
            session.become_primary()
        elif command == "hold":
            self.pipeline.holding = True
        elif command == "release":
            self.pipeline.release(argument or 0)
        elif command == "refuse":
            self.pipeline.takes_writes = False
        elif command == "counters":
            return {**self.pipeline.counters, "parked": len(self.pipeline.parked)}
        elif command == "log":
            return self.pipeline.log
        elif command == "times":
            self.pipeline.settle_times()
        elif command == "fence":
            top = self.stack.top
            assert top is not None
            assert top.fence is not None
            top.fence.abort()
        elif command == "replace":
            old = session
            self.stack.replace(lambda layer: self._serve(layer, None))
            return old.ended.wait(5)
        elif command == "features":
            return session.features
        elif command == "handles":
            return session.handles_open()
        elif command == "nodes":
            return len(session._connection.nodes)
        elif command == "idle":
            return session.wait_released(argument)
        elif command == "events":
            return self.events
        elif command == "count":
            return self._count(session, argument)
        elif command == "invalidate":
            for node in list(session._connection.nodes):
                session.invalidate(node.file)
        elif command == "room":
            session.limit_room(argument)
        elif command == "pending":
            return [type(change).__name__ for change in session.pending_namespace_changes()]
        elif command == "die":
            # Between the local call and the note of its result: the narrowest gap (M4).
            session.table.finish_operation = _die  # type: ignore[method-assign,assignment]
        elif command == "die renaming":
            syscalls.rename = _die
        elif command == "descriptors":
            self._hand_over(argument)
        else:
            raise ValueError(command)
        return None

    def _count(self, session: Session, operation: int) -> int:
        """How many requests of a kind came since this was asked first."""
        if operation not in self.counted:
            handler, self.counted[operation] = session._handlers[operation], 0
            assert handler is not None

            def counting(unique: int, number: int, length: int) -> None:
                self.counted[operation] += 1
                handler(unique, number, length)

            session._handlers[operation] = counting
        return self.counted[operation]

    def _hand_over(self, path: str) -> None:
        """What the daemon keeps for a successor: backing, device, table, fence (M4)."""
        top = self.stack.top
        assert top is not None
        assert top.fence is not None
        session = self.sessions[-1]
        numbers = [self.backing, session.device, session.table.descriptor]
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(path)
            socket.send_fds(link, [b"x"], [*numbers, *top.fence.descriptors])

    def stop(self) -> None:
        self.stack.uncover()
        for session in self.sessions:
            if not session.close():
                raise TimeoutError("the reader did not end")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder, run, mirror, *numbers = sys.argv[1:]
    server = Server(folder, run, mirror, [int(number) for number in numbers])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "stop":
            break
        try:
            answer = {"result": server.do(request["do"], request["with"])}
        except Exception as problem:
            answer = {"problem": f"{type(problem).__name__}: {problem}"}
        print(json.dumps(answer), flush=True)
    server.stop()
    print(json.dumps({"stopped": True}), flush=True)


HANGS_S = 80
"""From a session's start: a test that still runs then hangs, also on a slow disk; less than what
pytest gives a test."""


class Served:
    """The test's end of a server process; use as a context manager."""

    def __init__(
        self,
        folder: Path,
        run: Path,
        *,
        mirror: Path | None = None,
        primary: bool = True,
        disabled: int = 0,
        inherited: list[int] | None = None,
    ) -> None:
        self.folder = folder
        self.run = run
        numbers = inherited or []
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.fuse_local",
                str(folder),
                str(run),
                str(mirror or ""),
                *map(str, numbers),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=numbers,
            text=True,
            env={**os.environ, "FUSE_DISABLED": str(disabled)},
        )
        # A call that hangs in the mount cannot be interrupted; ending the mount frees it.
        self._watchdog = threading.Timer(HANGS_S, self._free)
        self._watchdog.daemon = True
        self._watchdog.start()
        try:
            self._read()
            if primary and inherited is None:
                self.do("primary")
        except BaseException:
            self.kill()
            raise

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self.process.wait(5)}")
        answer = json.loads(line)
        if "problem" in answer:
            raise RuntimeError(answer["problem"])
        return answer.get("result")

    def do(self, command: str, argument: Any = None) -> Any:
        """Have the server do something; its result."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": command, "with": argument}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def descriptors(self) -> list[int]:
        """Duplicates of what the daemon would keep for a successor."""
        path = str(self.run / "keeper.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            thread = threading.Thread(target=self.do, args=("descriptors", path))
            thread.start()
            link, _ = listener.accept()
            with link:
                _, numbers, _, _ = socket.recv_fds(link, 1, 8)
            thread.join()
        os.unlink(path)
        return numbers

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            assert self.process.stdin is not None
            try:
                self.process.stdin.write('{"do": "stop"}\n')
                self.process.stdin.close()
                self.process.wait(10)
            except (OSError, subprocess.TimeoutExpired):
                pass
        self.kill()

    def _free(self) -> None:
        self.process.kill()
        MountStack(str(self.folder), "hyperha:test", str(self.run)).peel_stale()

    def kill(self) -> None:
        """End the process as a crash would, and remove what it left mounted."""
        self._watchdog.cancel()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        MountStack(str(self.folder), "hyperha:test", str(self.run)).peel_stale()


def compare(left: Path, right: Path) -> str:
    """What rsync finds different between two trees; empty when equal in content and metadata."""
    if shutil.which("rsync") is None:
        raise RuntimeError("rsync is needed")
    result = subprocess.run(
        [
            "rsync",
            "-aHAXni",
            "--checksum",
            "--delete",
            "--filter=-x trusted.hyperha.*",
            f"{left}/",
            f"{right}/",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


if __name__ == "__main__":
    main()
