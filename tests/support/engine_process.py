"""A replication process as the daemon would run it, for tests: orders, events, accepted sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from hyperha.core import actions
from hyperha.core.actions import Acknowledge, EngineAction, SessionStart
from hyperha.core.events import EngineDone, Event, ResyncCopied, SessionUp
from hyperha.core.facts import AttachFacts
from hyperha.daemon.held_orphans import HoldsOrphans
from hyperha.domain import Epoch, Marker, SessionKey
from hyperha.replication import control, preamble
from hyperha.replication.control import (
    Descriptors,
    DropOrphan,
    EngineConfig,
    HoldOrphan,
    LogLine,
    PeerLink,
    Start,
    Statistics,
    TakenOver,
    TakeSocket,
    TlsFiles,
)
from hyperha.replication.fuse import fence as fencing
from tests.support.machine import lacking

LIMIT_S = 20.0
GENERATION = "ab" * 16
PROGRAM = "hyperha.replication.process"
"""The module whose main is a replication process."""


class NodeProcess:
    """One node: its folder, its process, its listener. `close` leaves nothing behind."""

    def __init__(
        self,
        base: Path,
        node: str,
        peer: str,
        port: int,
        peer_port: int,
        *,
        tls: TlsFiles | None = None,
        features_off: tuple[str, ...] = (),
        program: str = PROGRAM,
    ) -> None:
        self._program = program
        self.folder = base / node
        self.folder.mkdir()
        self.run_directory = base / f"{node}-run"
        self.run_directory.mkdir()
        self.node = node
        self.config = EngineConfig(
            "cluster", "VM1", 1, node, peer, str(self.folder), str(self.run_directory),
            (PeerLink("repl", "127.0.0.1", peer_port, "127.0.0.1", tls),),
            suspect_ms=500, stall_limit_ms=1500, kernel_features_off=features_off,
        )  # fmt: skip
        self.messages: list[object] = []
        self.kept: tuple[Descriptors, list[int]] | None = None
        self.orphans = HoldsOrphans()
        self.counter = 0
        self._operation = 0
        self.channel: socket.socket | None = None
        self._heard = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", port))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        self.start()

    # --- the process ----------------------------------------------------------------------

    def start(self, *, successor: bool = False, program: str = "") -> None:
        self._program = program or self._program
        if self.channel is not None:
            self.channel.close()
            self._reading.join()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = ours
        self.process = subprocess.Popen(
            [sys.executable, "-m", self._program, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self._mute = False
        self._reading = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reading.start()
        names: tuple[str, ...] = ()
        descriptors: list[int] = []
        accepted = True
        if successor:
            for message, held in self.orphans.messages():
                socket.send_fds(ours, [control.encode(message)], held)
            assert self.kept is not None
            names, accepted = self.kept[0].names, self.kept[0].ours
            descriptors = self.kept[1]
        raw = control.encode(Start(self.config, successor, names, accepted))
        socket.send_fds(ours, [raw], descriptors)

    def succeed(self, *, program: str = "") -> None:
        """A successor of the process that was killed takes the mount over (M4)."""
        self.start(successor=True, program=program)
        taken = self.wait(TakenOver)
        if not taken.ok and "6.9" in taken.text:
            lacking(taken.text)
        assert taken.ok, taken.text

    def outcome(self, operation: int) -> EngineDone | None:
        """The result of an order; None when the process has died of it."""

        def found() -> EngineDone | None:
            told = (one for one in self.messages if isinstance(one, EngineDone))
            return next((one for one in told if one.operation == operation), None)

        with self._heard:
            assert self._heard.wait_for(lambda: found() or self._mute, LIMIT_S)
            return found()

    def kill(self) -> None:
        """As a crash of the process; the daemon (this object) keeps its descriptors."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        # What it said before it died is read to the end, as the daemon does.
        self._reading.join()
        self.channel.close()

    def drop_kept(self) -> None:
        if self.kept is not None:
            for descriptor in self.kept[1]:
                os.close(descriptor)
            self.kept = None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.channel.close()
        self._reading.join()
        self.drop_kept()
        self.orphans.close()
        fencing.peel(str(self.folder), str(self.run_directory))

    def _read(self, channel: socket.socket) -> None:
        while True:
            try:
                raw, descriptors, _, _ = socket.recv_fds(channel, control.PACKET_LIMIT, 16)
            except ConnectionResetError:
                continue
            except OSError:
                return
            if not raw:
                with self._heard:
                    self._mute = True
                    self._heard.notify_all()
                return
            message = control.decode(raw)
            if isinstance(message, HoldOrphan):
                assert not self.orphans.hold(message, tuple(descriptors))
            elif isinstance(message, DropOrphan):
                self.orphans.drop(message)
            with self._heard:
                if isinstance(message, Descriptors):
                    self.drop_kept()
                    self.kept = (message, list(descriptors))
                self.messages.append(message)
                self._heard.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            raw = accepted.recv(preamble.SIZE, socket.MSG_WAITALL)
            with contextlib.suppress(OSError):
                take = control.encode(TakeSocket("repl", raw.hex()))
                socket.send_fds(self.channel, [take], [accepted.fileno()])
            accepted.close()

    # --- orders ---------------------------------------------------------------------------

    def order(self, kind: type[EngineAction], *arguments: object) -> int:
        self._operation += 1
        self.channel.send(control.encode(kind(self._operation, *arguments)))
        return self._operation

    def done(self, operation: int) -> EngineDone:
        return self.wait(EngineDone, lambda one: one.operation == operation)

    def do(self, kind: type[EngineAction], *arguments: object) -> EngineDone:
        result = self.done(self.order(kind, *arguments))
        assert result.ok, f"{self.node}: {kind.__name__}: {result.text}"
        return result

    def wait(self, kind, fits=lambda one: True, limit_s: float = LIMIT_S):
        with self._heard:
            end = time.monotonic() + limit_s
            while True:
                for one in self.messages:
                    if isinstance(one, kind) and fits(one):
                        self.messages.remove(one)
                        return one
                left = end - time.monotonic()
                assert left > 0, f"{self.node}: no {kind.__name__}: {self.told()[-8:]}"
                self._heard.wait(left)

    def told(self) -> list[object]:
        return [one for one in self.messages if not isinstance(one, Statistics)]

    def marker(self, counter: int) -> Marker:
        return Marker("rid", self.node, GENERATION, counter)

    def attach(self, *, fresh: bool = True, adopt: bool = False) -> AttachFacts:
        accept = () if fresh else (self.marker(self.counter),)
        self.counter += 1
        facts = self.do(actions.Attach, accept, self.marker(self.counter), adopt).attach
        assert facts is not None
        self.wait(Descriptors)
        return facts


class ProcessPair:
    """Both nodes, ordered as the core would; `tls`: per node, for an encrypted stream."""

    def __init__(
        self,
        base: Path,
        ports: list[int],
        *,
        tls: Mapping[str, TlsFiles] | None = None,
        program: str = PROGRAM,
    ) -> None:
        near, far = ((tls or {}).get(name) for name in ("node1", "node2"))
        self.a = NodeProcess(base, "node1", "node2", ports[0], ports[1], tls=near, program=program)
        try:
            self.b = NodeProcess(
                base, "node2", "node1", ports[1], ports[0], tls=far, program=program
            )
        except BaseException:
            self.a.close()
            raise
        self.number = 0

    def connect(self, start: SessionStart) -> SessionKey:
        self.number += 1
        key = SessionKey(GENERATION, Epoch(1, self.a.node), self.number)
        self.b.do(actions.ExpectSession, key, start)
        self.a.do(actions.OpenSession, key, start)
        return key

    def in_sync(self) -> None:
        self.connect(SessionStart.IN_SYNC)
        self.a.wait(SessionUp)
        self.a.do(actions.Promote, Epoch(1, self.a.node), Acknowledge.BOTH)

    def resync(self, start: SessionStart) -> None:
        key = self.connect(start)
        self.a.wait(SessionUp)
        self.a.wait(ResyncCopied, limit_s=30)
        self.a.do(actions.EndResync, key)
        self.a.do(actions.Barrier)
        self.b.do(actions.ClearMap)
        self.a.do(actions.ClearMap)

    def close(self) -> None:
        self.a.close()
        self.b.close()


def tree(folder: Path) -> dict[str, object]:
    """Names, types, owners, times and content of a folder as seen by users."""
    found: dict[str, object] = {}
    for base, directories, files in os.walk(folder):
        if base == str(folder):
            directories[:] = [one for one in directories if one != ".hyperha"]
        for name in [*directories, *files]:
            path = Path(base) / name
            status = path.lstat()
            content: object = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            found[str(path.relative_to(folder))] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content,
            )  # fmt: skip
    return found


__all__ = ["Event", "LogLine", "NodeProcess", "ProcessPair", "TakenOver", "tree"]
