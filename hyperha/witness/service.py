"""The witness's HTTPS service: requests of many clusters in, answers out (F11).

Knows no rule: `core.lease` decides, the store makes durable. A cluster proves itself by the token
that it came with the first time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from hyperha.encoding import EncodingError
from hyperha.errors import DeniedError, FailedError, HyperhaError, NotFoundError, UsageError
from hyperha.text import clean
from hyperha.witness.store import CLUSTER_ID, Store
from hyperha.witness.wire import KINDS, body_of, request_of

_log = logging.getLogger(__name__)
BODY_LIMIT_BYTES = 4096
MODULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}")
TOKEN = re.compile(r"Bearer ([0-9a-f]{64})")


def make_app(store: Store) -> FastAPI:
    """The application; every request is answered by JSON, errors by code, text and fix."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.post("/v1/clusters/{cluster}/modules/{module}/{kind}")
    async def ask(cluster: str, module: str, kind: str, http: Request) -> JSONResponse:
        try:
            answer = await _answer(store, cluster, module, kind, http)
        except HyperhaError as problem:
            body = {"code": problem.problem_code, "text": clean(problem.text), "fix": problem.fix}
            return JSONResponse(body, status_code=problem.http_status)
        return JSONResponse(answer)

    return app


async def _answer(store: Store, cluster: str, module: str, kind: str, http: Request) -> Any:
    if not (CLUSTER_ID.fullmatch(cluster) and MODULE_NAME.fullmatch(module) and kind in KINDS):
        raise NotFoundError(f"there is no {clean(kind)!r} of {clean(cluster)!r}, {clean(module)!r}")
    token = TOKEN.fullmatch(http.headers.get("authorization", ""))
    if token is None:
        raise DeniedError("a request carries no token of a cluster", "Only nodes ask a witness.")
    await asyncio.to_thread(store.admit, cluster, token.group(1))
    try:
        request = request_of(kind, json.loads(await _body(http)))
    except (EncodingError, ValueError, RecursionError) as problem:
        raise UsageError(f"the request is malformed: {problem}") from problem
    return body_of(await asyncio.to_thread(store.handle, cluster, module, request))


async def _body(http: Request) -> bytes:
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > BODY_LIMIT_BYTES:
            raise UsageError(f"a request of more than {BODY_LIMIT_BYTES} bytes is not taken")
    return bytes(body)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Whoever runs the service has the signal handlers."""
        yield


def listen(address: str, port: int) -> socket.socket:
    """The listening socket. Raises FailedError naming what is wrong with it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
        listening.listen(64)
    except OSError as problem:
        listening.close()
        raise FailedError(
            f"the witness cannot listen on {address} port {port}: {problem.strerror}",
            "The address must be one of this machine's, and the port free: see `ss -ltnp`.",
        ) from problem
    listening.setblocking(False)
    return listening


async def serve(
    store: Store, listening: list[socket.socket], context: ssl.SSLContext, stop: asyncio.Event
) -> None:
    """Answer until `stop` is set."""
    config = uvicorn.Config(
        make_app(store),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,
        limit_concurrency=512,
        h11_max_incomplete_event_size=16384,
    )
    config.load()
    config.ssl = context
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=listening))
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await running
    waiting.cancel()
