"""Serving the app with uvicorn: the local socket by Unix identity, each LAN address by mutual TLS.

Who is calling is established when the connection is made and travels in the request's state; a
handler cannot forget to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from hyperha.api.admission import Admission
from hyperha.api.service import Caller
from hyperha.errors import FailedError, UsageError

Identify = Callable[[asyncio.BaseTransport], Caller | None]
ANONYMOUS_LIMIT = 32
"""Connections of nobody in particular that one listener keeps; the oldest gives way."""


class ApiServer(uvicorn.Server):
    """One listening socket; signals stay the daemon's own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signal handlers alone: the daemon has its own."""
        yield


def make_server(app: FastAPI, identify: Identify, context: ssl.SSLContext | None) -> ApiServer:
    """A server whose requests carry `state.caller`, or none where `identify` finds nobody.

    The other node and people who are known never wait behind strangers: only connections without
    a caller are counted, and of those the oldest is cut when there are too many.
    """
    strangers: dict[asyncio.Transport, None] = {}

    class IdentifyingProtocol(H11Protocol):
        # Uvicorn, too, declares a narrower transport here than asyncio's own base class does.
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            caller = identify(transport)
            self.app_state = {**self.app_state, "caller": caller}
            if caller is None:
                strangers[transport] = None
                if len(strangers) > ANONYMOUS_LIMIT:
                    oldest = next(iter(strangers))
                    del strangers[oldest]
                    oldest.abort()

        def connection_lost(self, problem: Exception | None) -> None:
            strangers.pop(self.transport, None)
            super().connection_lost(problem)

    config = uvicorn.Config(
        Admission(app),
        http=IdentifyingProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=65536,
    )
    config.load()
    config.ssl = context
    return ApiServer(config)


def local_socket(path: Path) -> socket.socket:
    """The Unix socket of a node: anybody may connect, the identity decides (group by group)."""
    if len(os.fsencode(path)) > 107:
        raise UsageError(
            f"the socket path {path} is longer than 107 bytes",
            "Choose a home with a shorter path (--home).",
        )
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(0o666)
        listening.listen(64)
    except OSError as problem:
        listening.close()
        raise FailedError(f"the socket {path} cannot be opened: {problem.strerror}") from problem
    listening.setblocking(False)
    return listening


def tcp_socket(address: str, port: int, what: str) -> socket.socket:
    """A listening TCP socket on one LAN address; a port that is taken is named."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
        listening.listen(64)
    except OSError as problem:
        listening.close()
        raise FailedError(
            f"{what}: cannot listen on {address} port {port}: {problem.strerror}",
            "Is another program, or another hyperha, using it? See `ss -ltnp`; the ports are set "
            "in cluster.toml, the addresses must belong to this machine.",
        ) from problem
    listening.setblocking(False)
    return listening


async def serve(server: ApiServer, listening: socket.socket) -> None:
    """Serve until `server.should_exit` is set."""
    sockets: list[Any] = [listening]
    await server.serve(sockets=sockets)
