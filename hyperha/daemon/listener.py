"""The replication port: reads the fixed preamble and hands the socket to the module's process.

What does not name this cluster, a module of it and the other node is closed and said once per
address; nothing of it reaches a process.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from hyperha.api.server import tcp_socket
from hyperha.errors import ReplicationError
from hyperha.replication import preamble
from hyperha.replication.preamble import Preamble

_log = logging.getLogger(__name__)
_PREAMBLE_LIMIT_S = 5.0
_OPEN_LIMIT = 32
_COMPLAINTS_LIMIT = 256

Take = Callable[[str, Preamble, bytes, socket.socket], bool]
"""(lan, preamble, its bytes, socket) -> whether a process took it; the socket is then theirs."""
Refused = Callable[[str, str], None]
"""(sentence, address): somebody who speaks this protocol does not belong here."""


class ReplicationListener:
    """Listens on the node's replication LANs."""

    def __init__(self, port: int, cluster_id: str, peer: str, take: Take, refused: Refused) -> None:
        self._port = port
        self._cluster = preamble.cluster_hash(cluster_id)
        self._peer = peer
        self._take = take
        self._refused = refused
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._complained: set[str] = set()
        self._open = 0

    def listen(self, lan: str, address: str) -> None:
        """Begin to accept on one LAN. Raises FailedError when the port is taken."""
        listening = tcp_socket(address, self._port, "replication")
        self._sockets.append(listening)
        self._keep(asyncio.get_running_loop().create_task(self._accept_all(lan, listening)))

    async def close(self) -> None:
        """Stop accepting."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept_all(self, lan: str, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as problem:
                _log.error("replication port on %s: %s", lan, problem)
                await asyncio.sleep(0.5)
                continue
            if self._open >= _OPEN_LIMIT:
                connection.close()
                continue
            connection.setblocking(False)
            self._keep(loop.create_task(self._greet(lan, connection, str(address[0]))))

    async def _greet(self, lan: str, connection: socket.socket, origin: str) -> None:
        self._open += 1
        taken = False
        try:
            async with asyncio.timeout(_PREAMBLE_LIMIT_S):
                raw = await self._read(connection)
            if not raw:
                # Only a look whether the port can be reached (W8, D12).
                return
            found = preamble.decode(raw)
            if found.cluster_hash != self._cluster or found.node != self._peer:
                text = f"it belongs to another cluster or node ({found.node})"
                if self._complain(origin, text):
                    self._refused(f"replication connection from {origin}: {text}", origin)
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            taken = self._take(lan, found, raw, connection)
        except TimeoutError:
            self._complain(origin, "no preamble came")
        except (OSError, ReplicationError) as problem:
            self._complain(origin, str(problem))
        finally:
            self._open -= 1
            if not taken:
                connection.close()

    async def _read(self, connection: socket.socket) -> bytes:
        loop = asyncio.get_running_loop()
        raw = b""
        while len(raw) < preamble.SIZE:
            part = await loop.sock_recv(connection, preamble.SIZE - len(raw))
            if not part and not raw:
                return b""
            if not part:
                raise ReplicationError("the connection ended before its preamble was whole")
            raw += part
        return raw

    def _complain(self, origin: str, text: str) -> bool:
        """Say it once per address and reason; whether it was said now."""
        about = f"{origin} {text}"
        if about in self._complained or len(self._complained) >= _COMPLAINTS_LIMIT:
            return False
        self._complained.add(about)
        _log.warning("replication connection from %s refused: %s", origin, text)
        return True
