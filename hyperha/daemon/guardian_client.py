"""The daemon's side of the guardian: start or adopt it, arm it, hear what it has done (L5', L8).

Belongs to the event loop. While it is not connected no VM may be started (P1).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hyperha
from hyperha.config import Configuration, Home
from hyperha.domain import Epoch
from hyperha.errors import FailedError, RefusedError, TimedOutError
from hyperha.spawn.run import Run, start
from hyperha.spawn.tree import ProcessTree

_log = logging.getLogger(__name__)
_PROGRAM = "hyperha.daemon.guardian"
_PACKET_LIMIT = 65536
_CONNECT_S = 10.0
_ANSWER_S = 2.0
_ANSWER_LOOKS = 8
_BEAT_S = 1.0
_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class GuardianSettings:
    """What a guardian is started with; paths as text. `lans` are (own, peer) addresses."""

    node: str
    own_index: int
    cluster_id: str
    key: str
    socket: str
    lock: str
    record: str
    log: str
    port: int
    lans: tuple[tuple[str, str], ...]
    idle_ms: int = 5000
    certificate_ms: int = 60_000

    @classmethod
    def of(cls, home: Home, configuration: Configuration) -> GuardianSettings:
        """The settings of this node's guardian."""
        cluster, node = configuration.cluster, configuration.node
        return cls(
            node=node,
            own_index=cluster.nodes.index(node),
            cluster_id=cluster.id,
            key=str(home.cluster_key),
            socket=str(home.guardian_socket),
            lock=str(home.guardian_lock),
            record=str(home.guardian_record),
            log=str(home.log / "guardian.log"),
            port=cluster.ports.peer,
            lans=tuple(
                (lan.addresses[node], lan.addresses[configuration.peer]) for lan in cluster.lan
            ),
        )


@dataclass(frozen=True, slots=True)
class Certified:
    """A run that the guardian has ended and certified: this node may not start under that epoch
    before the peer has answered (L8)."""

    module: str
    number: int
    run: int
    epoch: Epoch
    reason: str


@dataclass(frozen=True, slots=True)
class Notice:
    """What the guardian did: `fired`, `stuck`, `certified` or `ended`, for which module and why."""

    what: str
    module: str
    reason: str


@dataclass(frozen=True, slots=True)
class FenceDescriptor:
    """A means to end a module's data path; kinds in `fencing.FENCE_KINDS`. The descriptor stays
    the caller's: the guardian gets a duplicate."""

    kind: str
    descriptor: int


async def _patiently(answer: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
    """The answer, or TimeoutError after `_ANSWER_S` in which this process, too, was running: after
    a freeze of the whole node only one of the looks has passed, and the answer is still read."""
    for _ in range(_ANSWER_LOOKS):
        done, _ = await asyncio.wait([answer], timeout=_ANSWER_S / _ANSWER_LOOKS)
        if done:
            return answer.result()
    raise TimeoutError


class GuardianClient:
    """The connection to the node's guardian.

    `on_lost` is called with the reason when the guardian is gone without having been released:
    connect again and arm again at once. `on_notice` tells what it did on its own.

    A guardian that gives no answer for 2 s is killed: writes are held until it has heard that it
    may certify no more (L8), and one that only stands still could certify when it goes on, while a
    dead one certifies nothing. It is asked every second, so that this is seen before it matters.
    """

    def __init__(
        self,
        settings: GuardianSettings,
        *,
        on_lost: Callable[[str], None],
        on_notice: Callable[[Notice], None],
    ) -> None:
        self._settings = settings
        self._on_lost = on_lost
        self._on_notice = on_notice
        self._connection: socket.socket | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 1
        self._children: list[Run] = []
        self._sent: asyncio.Lock = asyncio.Lock()
        self._adopted = False
        self._beat: asyncio.Task[None] | None = None
        self.instance = ""

    @property
    def connected(self) -> bool:
        """Whether a guardian listens to us."""
        return self._adopted

    async def connect(self) -> tuple[Certified, ...]:
        """Adopt the guardian that runs, or start one; what it certified for a former daemon.

        Raises RefusedError when it guards another daemon, TimedOutError when none comes up.
        """
        deadline = asyncio.get_running_loop().time() + _CONNECT_S
        child: Run | None = None
        while True:
            # One that is just dying still takes connections; it is asked, and then tried again.
            with contextlib.suppress(OSError, FailedError):
                self._open()
                answer = await self._ask({"do": "hello"})
                break
            if asyncio.get_running_loop().time() >= deadline:
                raise TimedOutError(
                    f"the guardian does not answer on {self._settings.socket}",
                    f"Look into {self._settings.log}; without a guardian no VM is started.",
                )
            if child is None or not child.running:
                # One that finds the lock held, by one that is just ending, ends at once.
                child = await self._start_one()
            await asyncio.sleep(_RETRY_S)
        self.instance, self._adopted = str(answer["guardian"]), True
        self._beat = asyncio.get_running_loop().create_task(self._ask_regularly())
        return tuple(
            Certified(
                module=module,
                number=int(fact["number"]),
                run=int(fact["run"]),
                epoch=Epoch(int(fact["epoch"][0]), str(fact["epoch"][1])),
                reason=str(fact["reason"]),
            )
            for module, fact in answer["certified"].items()
        )

    async def arm(
        self,
        module: str,
        *,
        number: int,
        run: int,
        epoch: Epoch,
        trees: Sequence[ProcessTree],
        fences: Sequence[FenceDescriptor],
        peel: str = "",
        certify: bool = True,
    ) -> None:
        """Before a run starts, and again when its fence or processes change (L5').

        `peel` is the folder whose leftover mounts are removed after the end; `certify=False` for
        a module that runs nothing here and is armed only for that.
        """
        request = {
            "do": "arm",
            "module": module,
            "number": number,
            "run": run,
            "epoch": [epoch.counter, epoch.node],
            "trees": [[tree.marker, tree.cgroup, tree.session] for tree in trees],
            "fences": [one.kind for one in fences],
            "peel": peel,
            "certify": certify,
        }
        await self._ask(request, [one.descriptor for one in fences])

    async def disarm(self, module: str) -> bool:
        """After a clean end of the run; False when the guardian was acting on it already."""
        return bool((await self._ask({"do": "disarm", "module": module}, must=False))["ok"])

    async def set_deadlines(self, at_ms: Mapping[str, int | None]) -> None:
        """By module: act at this CLOCK_BOOTTIME unless it is moved on (L6); None: only when the
        daemon dies. Modules that are not armed are passed over."""
        await self._ask({"do": "deadlines", "at_ms": dict(at_ms)})

    async def forget(self, module: str) -> None:
        """The peer or the witness has answered whether the certificate was used (L8)."""
        await self._ask({"do": "forget", "module": module})

    async def release(self) -> None:
        """A clean shutdown: disarm everything and let the guardian end by itself."""
        try:
            if self._connection is not None:
                await self._ask({"do": "release"})
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Close without release, as the daemon's death would: what is armed is ended."""
        self._close()
        for child in self._children:
            await child.let_go()
        self._children.clear()

    def _open(self) -> None:
        if sys.platform == "win32":
            raise RefusedError("the guardian exists on Linux only")
        path = Path(self._settings.socket)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.close(directory)
        except OSError:
            connection.close()
            raise
        connection.setblocking(False)
        self._connection = connection
        asyncio.get_running_loop().add_reader(connection.fileno(), self._read)

    async def _start_one(self) -> Run:
        child = await start(
            [sys.executable, "-m", _PROGRAM, json.dumps(asdict(self._settings))],
            name="guardian",
            cwd=str(Path(hyperha.__file__).parent.parent),
            capture=False,
            outlive=True,
            keep_tree=True,
        )
        self._children = [one for one in self._children if one.running]
        self._children.append(child)
        return child

    async def _ask(
        self, request: dict[str, Any], descriptors: Sequence[int] = (), *, must: bool = True
    ) -> dict[str, Any]:
        if self._connection is None:
            raise FailedError("the guardian is not connected", "It is started again by itself.")
        number = self._next_id
        self._next_id += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        raw = json.dumps({"id": number, **request}).encode()
        if len(raw) > _PACKET_LIMIT:
            raise FailedError(f"a request of {len(raw)} bytes is too large for the guardian")
        try:
            try:
                socket.send_fds(self._connection, [raw], list(descriptors))
            except OSError:
                self._read()  # It may have said why before it hung up.
            value = await _patiently(answer)
        except TimeoutError:
            # Before the connection is closed: it would take that for the daemon's death.
            del self._waiting[number]
            killed = self._kill_hung()
            self._lose(f"gave no answer to {request['do']} for {_ANSWER_S:.0f} s and {killed}")
            raise FailedError("the guardian does not answer") from None
        finally:
            self._waiting.pop(number, None)
        if must and not value["ok"]:
            raise FailedError(f"the guardian refused {request['do']}: {value['text']}")
        return value

    async def _ask_regularly(self) -> None:
        """Notice a guardian that stands still while nothing else is asked of it (P1)."""
        with contextlib.suppress(FailedError):
            while True:
                await asyncio.sleep(_BEAT_S)
                await self._ask({"do": "hello"})

    def _kill_hung(self) -> str:
        """SIGKILL to the process behind the connection, if it is this home's guardian."""
        if sys.platform == "win32" or self._connection is None:
            return "was not killed"
        raw = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        process, _, _ = struct.unpack("iII", raw)
        try:
            # The descriptor first: what is looked at then is what is killed.
            watched = os.pidfd_open(process)
        except OSError as problem:
            return f"was not killed: {problem.strerror}"
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
            if _PROGRAM not in command or json.dumps(self._settings.socket) not in command:
                return f"was not killed: process {process} is no guardian of this home"
            signal.pidfd_send_signal(watched, signal.SIGKILL)
        except OSError as problem:
            return f"was not killed: {problem.strerror}"
        finally:
            os.close(watched)
        return f"was killed (process {process})"

    def _read(self) -> None:
        if self._connection is None:
            return
        try:
            raw = self._connection.recv(_PACKET_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        if not raw:
            self._lose("is gone")
            return
        value = json.loads(raw)
        if value.get("id") in self._waiting:
            answer = self._waiting[value["id"]]
            if not answer.done():
                answer.set_result(value)
        elif value.get("event") == "refused":
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(RefusedError(f"the guardian refuses: {value['reason']}"))
            self._close()
        elif "event" in value:
            self._on_notice(
                Notice(value["event"], value.get("module", ""), value.get("reason", ""))
            )

    def _lose(self, why: str) -> None:
        if self._connection is None:
            return
        _log.error("the guardian %s", why)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(FailedError(f"the guardian {why}"))
        adopted = self._adopted
        self._close()
        if adopted:
            self._on_lost(why)

    def _close(self) -> None:
        if self._beat is not None and self._beat is not asyncio.current_task():
            self._beat.cancel()
        self._beat = None
        if self._connection is not None:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()
            self._connection = None
        self._adopted = False
