"""The guardian: a tiny process per node that outlives its daemon (L5', L6, L8).

The daemon arms it for each module that it runs. When the daemon dies, or a deadline passes, the
guardian fences the module's data path, kills the run, waits until every process of it is gone,
notes a certificate durably and only then sends it to the peer. A next daemon adopts it and learns
what was certified. Knows nothing about roles; must not import anything big, and its fencing and
killing never wait for a disk or the network (L5): notes and log lines are written by a thread.

    python -m hyperha.daemon.guardian '{"socket": ..., "lock": ..., ...}'
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperha.daemon.fencing import FENCE_KINDS, fence, lock_memory, peel
from hyperha.domain import Epoch
from hyperha.durable import DaemonLock, DurableRecord
from hyperha.errors import HyperhaError
from hyperha.heartbeat.message import Certificate, Header, encode
from hyperha.heartbeat.seal import Sealer
from hyperha.spawn import looking
from hyperha.spawn.tree import ProcessTree

KILL_LIMIT_MS = 2000
PACKET_LIMIT = 65536
RECORD_SIZE = 16384
_POLL_MS, _PATIENT_POLL_MS = 10, 250
_FAST_MS, _FAST_FOR_MS, _SLOW_MS = 100, 2000, 1000
_WATCH_MS = 500


def _now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


@dataclass(slots=True)
class Armed:
    """One module's means to end it; `fired_ms` is set when the guardian acts."""

    module: str
    number: int
    run: int
    epoch: Epoch
    trees: tuple[ProcessTree, ...]
    fences: tuple[tuple[str, int], ...]
    peel: str
    certify: bool
    deadline_ms: int | None = None
    fired_ms: int | None = None
    reason: str = ""
    complaint: str = ""
    alerted: bool = False

    def close(self) -> None:
        """Give the fence descriptors back."""
        for _, descriptor in self.fences:
            os.close(descriptor)


@dataclass(slots=True)
class Sending:
    """A certificate on its way: again and again, since UDP and the peer may be away."""

    certificate: Certificate
    begun_ms: int
    next_ms: int


@dataclass(slots=True)
class Settings:
    """What the daemon that starts the guardian tells it; see `guardian_client.GuardianSettings`."""

    node: str
    own_index: int
    cluster_id: str
    key: str
    socket: str
    lock: str
    record: str
    log: str
    port: int
    lans: list[list[str]]
    idle_ms: int
    certificate_ms: int


@dataclass(slots=True)
class Writer:
    """The thread that touches the disk; what it has done comes back through `done`."""

    jobs: queue.SimpleQueue[Callable[[], None] | None] = field(default_factory=queue.SimpleQueue)
    done: queue.SimpleQueue[Callable[[], None]] = field(default_factory=queue.SimpleQueue)
    wake: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)

    def hand_back(self, continuation: Callable[[], None]) -> None:
        """Have the guardian's loop call this."""
        self.done.put(continuation)
        self.wake[1].send(b"x")

    def serve(self) -> None:
        """Do the jobs in order until a None comes."""
        while (job := self.jobs.get()) is not None:
            job()


class Guardian:
    """The whole guardian; one thread, one loop, one daemon at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sealer = Sealer(Path(settings.key).read_bytes(), settings.cluster_id)
        self.instance = secrets.token_bytes(16)
        self._counter = 0
        self._record = DurableRecord(
            Path(settings.record), size=RECORD_SIZE, owner=f"{settings.node} guardian"
        )
        self._certified: dict[str, dict[str, Any]] = self._load()
        self._armed: dict[str, Armed] = {}
        self._acting: list[Armed] = []
        self._sending: list[Sending] = []
        self._selector = selectors.DefaultSelector()
        self._writer = Writer()
        self._selector.register(self._writer.wake[0], selectors.EVENT_READ, self._woken)
        self._daemon: socket.socket | None = None
        self._daemon_process = 0
        """0 also where it is of another process namespace."""
        self._watched_ms = 0
        self._idle_since_ms = _now_ms()
        self._listener = self._listen()

    def _load(self) -> dict[str, dict[str, Any]]:
        """What was certified before. A damaged note was set aside; then nothing is known of a
        certificate, and the next daemon needs the peer's grant to start anyway (P7)."""
        try:
            value = self._record.load_json()
        except HyperhaError as problem:
            self._append(f"ALERT: {problem}")
            value = None
        certified = (value or {}).get("certified", {})
        return dict(certified)

    def _listen(self) -> socket.socket:
        path = Path(self._settings.socket)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # By descriptor, since a socket's path may have only 107 bytes.
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        path.chmod(0o600)
        listener.listen(4)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        return listener

    def serve(self) -> None:
        """Run until there is nothing left to guard."""
        thread = threading.Thread(target=self._writer.serve, name="writer", daemon=True)
        thread.start()
        looking.prepare()
        self._log("started")
        try:
            while not self._is_over():
                for key, _ in self._selector.select(self._timeout_ms() / 1000):
                    key.data()
                self._turn()
        finally:
            self._listener.close()
            Path(self._settings.socket).unlink(missing_ok=True)
            self._log("ended: nothing to guard")
            self._writer.jobs.put(None)
            thread.join(2)

    def _is_over(self) -> bool:
        if self._daemon is not None or self._armed or self._acting or self._sending:
            self._idle_since_ms = _now_ms()
            return False
        return _now_ms() - self._idle_since_ms >= self._settings.idle_ms

    def _timeout_ms(self) -> int:
        now_ms = _now_ms()
        wanted = [self._settings.idle_ms]
        if self._daemon is not None:
            wanted.append(_WATCH_MS)
        if self._acting:
            patient = all(armed.alerted for armed in self._acting)
            wanted.append(_PATIENT_POLL_MS if patient else _POLL_MS)
        wanted += [sending.next_ms - now_ms for sending in self._sending]
        wanted += [
            armed.deadline_ms - now_ms
            for armed in self._armed.values()
            if armed.deadline_ms is not None
        ]
        return max(1, min(wanted))

    def _turn(self) -> None:
        now_ms = _now_ms()
        due = [
            armed
            for armed in self._armed.values()
            if armed.deadline_ms is not None and now_ms >= armed.deadline_ms
        ]
        if due:
            self._fire(due, "its deadline has passed")
        if self._daemon is not None and self._is_dead(now_ms):
            self._daemon_is_gone("the daemon is dead, a thread of it still hangs")
        for armed in list(self._acting):
            self._go_on(armed, now_ms)
        while not self._writer.done.empty():
            self._writer.done.get()()
        for sending in list(self._sending):
            self._send(sending, now_ms)

    def _woken(self) -> None:
        self._writer.wake[0].recv(64)

    # --- acting ---------------------------------------------------------------------------

    def _fire(self, fired: Sequence[Armed], reason: str) -> None:
        """Fence first, then kill (L5'); the rest is done by `_go_on`. All are fenced before any
        process is looked for."""
        for armed in fired:
            del self._armed[armed.module]
            armed.fired_ms, armed.reason = _now_ms(), reason
            self._acting.append(armed)
            self._fence(armed)
        for armed in fired:
            for tree in armed.trees:
                tree.kill_group()
        for armed in fired:
            for tree in armed.trees:
                tree.kill()
            self._log(f"{armed.module}: run {armed.run} is fenced and killed: {reason}")
            self._notify({"event": "fired", "module": armed.module, "reason": reason})

    def _fence(self, armed: Armed) -> None:
        problems = [why for kind, fd in armed.fences if (why := fence(kind, fd))]
        armed.complaint = f"the data path cannot be fenced: {problems[0]}" if problems else ""

    def _go_on(self, armed: Armed, now_ms: int) -> None:
        """Until every process is gone and the fence has held there is no certificate."""
        why = armed.complaint or self._left(armed)
        if why:
            late = armed.fired_ms is not None and now_ms - armed.fired_ms > KILL_LIMIT_MS
            if late:
                armed.fired_ms, armed.alerted = now_ms, True
                self._log(f"ALERT: {armed.module}: {why}; no certificate is given")
                self._notify({"event": "stuck", "module": armed.module, "reason": why})
            self._fence(armed)
            for tree in armed.trees:
                tree.kill()
            return
        self._acting.remove(armed)
        for tree in armed.trees:
            tree.remove()
        if armed.peel and (why := peel(armed.peel)):
            self._log(f"{armed.module}: a mount at {armed.peel} is still there: {why}")
        armed.close()
        if not armed.certify:
            self._notify({"event": "ended", "module": armed.module})
            return
        self._certified[armed.module] = {
            "number": armed.number,
            "run": armed.run,
            "epoch": [armed.epoch.counter, armed.epoch.node],
            "at_wall_ms": time.time_ns() // 1_000_000,
            "reason": armed.reason,
            "guardian": self.instance.hex(),
        }
        self._note(armed)

    def _left(self, armed: Armed) -> str:
        """Why nobody may say yet that every process is gone; empty when all are."""
        try:
            alive = [process for tree in armed.trees for process in tree.members()]
        except OSError as problem:
            return f"its processes cannot be looked for: {problem.strerror}"
        return f"processes {alive[:8]} do not end" if alive else ""

    def _note(self, armed: Armed) -> None:
        """Make the certificate durable, then send it: it binds this node's next daemon (L8)."""
        payload = {"certified": dict(self._certified)}

        def certify() -> None:
            certificate = Certificate(self.instance, armed.number, armed.run, armed.epoch)
            now_ms = _now_ms()
            self._sending.append(Sending(certificate, now_ms, now_ms))
            self._notify({"event": "certified", "module": armed.module, "run": armed.run})

        def write() -> None:
            try:
                self._record.store_json(payload)
            except (HyperhaError, OSError) as problem:
                self._append(
                    f"ALERT: {armed.module}: no certificate, it cannot be noted: {problem}"
                )
                return
            self._append(f"{armed.module}: run {armed.run} of epoch {armed.epoch} is certified")
            self._writer.hand_back(certify)

        self._writer.jobs.put(write)

    def _send(self, sending: Sending, now_ms: int) -> None:
        if now_ms - sending.begun_ms >= self._settings.certificate_ms:
            self._sending.remove(sending)
            return
        if now_ms < sending.next_ms:
            return
        fast = now_ms - sending.begun_ms < _FAST_FOR_MS
        sending.next_ms = now_ms + (_FAST_MS if fast else _SLOW_MS)
        for own, peer in self._settings.lans:
            self._counter += 1
            header = Header(
                self._sealer.cluster_tag, self._settings.own_index, self.instance, self._counter
            )
            datagram = self._sealer.seal(encode(header, sending.certificate))
            family = socket.AF_INET6 if ":" in peer else socket.AF_INET
            try:
                with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as way:
                    way.bind((own, 0))
                    way.sendto(datagram, (peer, self._settings.port))
            except OSError:
                continue  # That LAN is down; it is tried again with the next round.

    # --- the daemon -----------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        process, user, _ = struct.unpack("iII", raw)
        if user not in (0, os.geteuid()):
            connection.close()
            return
        if self._daemon is not None:
            text = f"daemon {self._daemon_process} is already guarded here"
            connection.send(json.dumps({"event": "refused", "reason": text}).encode())
            # Closed only when the other side has closed: else it would not read the reason.
            self._selector.register(
                connection, selectors.EVENT_READ, lambda: self._dismiss(connection)
            )
            return
        connection.setblocking(False)
        self._daemon, self._daemon_process = connection, process
        self._sending.clear()
        self._selector.register(connection, selectors.EVENT_READ, self._read)
        self._log(f"daemon {process} is guarded")

    def _is_dead(self, now_ms: int) -> bool:
        """A daemon that was killed while a thread of it waits for a disk keeps its connection."""
        if now_ms - self._watched_ms < _WATCH_MS:
            return False
        self._watched_ms = now_ms
        return bool(self._daemon_process) and looking.is_zombie(self._daemon_process)

    def _dismiss(self, connection: socket.socket) -> None:
        try:
            if connection.recv(PACKET_LIMIT):
                return
        except OSError:
            pass  # It is gone, which is what is waited for.
        self._selector.unregister(connection)
        connection.close()

    def _read(self) -> None:
        assert self._daemon is not None
        try:
            raw, descriptors, _, _ = socket.recv_fds(self._daemon, PACKET_LIMIT, 16)
        except BlockingIOError:
            return
        except OSError:
            raw, descriptors = b"", []
        if not raw:
            self._daemon_is_gone("the daemon is gone")
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        request: dict[str, Any] = {}
        try:
            request = json.loads(raw)
            answer = self._obey(request, descriptors)
        except (ValueError, KeyError, TypeError, IndexError) as problem:
            for descriptor in descriptors:
                os.close(descriptor)
            answer = {"ok": False, "text": f"malformed request: {problem!r}"}
        self._notify({"id": request.get("id"), **answer})

    def _obey(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        verb = request["do"]
        if verb == "arm":
            self._arm(request, descriptors)
        elif verb == "disarm":
            found = self._armed.pop(request["module"], None)
            if found is not None:
                found.close()
            busy = any(armed.module == request["module"] for armed in self._acting)
            return {"ok": not busy, "text": "it was fired already" if busy else ""}
        elif verb == "deadlines":
            for module, at_ms in request["at_ms"].items():
                if module in self._armed:
                    self._armed[module].deadline_ms = at_ms
        elif verb == "forget":
            self._forget(request["module"])
        elif verb == "release":
            for armed in self._armed.values():
                armed.close()
            self._armed.clear()
        elif verb != "hello":
            raise ValueError(f"unknown verb {verb!r}")
        return {
            "ok": True,
            "guardian": self.instance.hex(),
            "certified": self._certified,
            "acting": [armed.module for armed in self._acting],
        }

    def _arm(self, request: dict[str, Any], descriptors: list[int]) -> None:
        kinds = request["fences"]
        if len(kinds) != len(descriptors) or not set(kinds) <= set(FENCE_KINDS):
            raise ValueError(f"fences {kinds} with {len(descriptors)} descriptors")
        armed = Armed(
            module=request["module"],
            number=int(request["number"]),
            run=int(request["run"]),
            epoch=Epoch(int(request["epoch"][0]), str(request["epoch"][1])),
            trees=tuple(ProcessTree(*tree) for tree in request["trees"]),
            fences=tuple(zip(kinds, descriptors, strict=True)),
            peel=str(request["peel"]),
            certify=bool(request["certify"]),
        )
        former = self._armed.pop(armed.module, None)
        if former is not None:
            armed.deadline_ms = former.deadline_ms
            former.close()
        self._armed[armed.module] = armed

    def _forget(self, module: str) -> None:
        """The peer has answered: the certificate is used up and binds nobody any more (L8)."""
        self._certified.pop(module, None)
        payload = {"certified": dict(self._certified)}

        def write() -> None:
            try:
                self._record.store_json(payload)
            except (HyperhaError, OSError) as problem:
                self._append(f"{module}: the used certificate cannot be removed: {problem}")

        self._writer.jobs.put(write)

    def _daemon_is_gone(self, reason: str) -> None:
        assert self._daemon is not None
        self._selector.unregister(self._daemon)
        self._daemon.close()
        self._daemon = None
        armed = list(self._armed.values())
        self._fire(armed, reason)
        if not armed:
            self._log("the daemon has left; nothing was armed")

    def _notify(self, value: dict[str, Any]) -> None:
        if self._daemon is not None:
            try:
                self._daemon.send(json.dumps(value).encode())
            except OSError:
                pass  # Its end is seen by the next read.

    # --- the log --------------------------------------------------------------------------

    def _log(self, text: str) -> None:
        self._writer.jobs.put(lambda: self._append(text))

    def _append(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            with open(self._settings.log, "a", encoding="utf-8") as file:
                file.write(f"{stamp} guardian {os.getpid()}: {text}\n")
        except OSError:
            pass  # The log is for people; guarding goes on without it.


def main() -> int:
    """Start from one JSON argument; 3 when another guardian of this home runs already."""
    settings = Settings(**json.loads(sys.argv[1]))
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # It outlives its daemon: whoever stops the service stops the daemon, which releases us.
        signal.signal(number, signal.SIG_IGN)
    lock = DaemonLock(Path(settings.lock), what="guardian")
    try:
        lock.acquire()
    except HyperhaError:
        return 3
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-1000")
    except OSError:
        pass  # Without the right to, it is killed like anybody else when memory ends.
    guardian = Guardian(settings)
    lock_memory()
    guardian.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
