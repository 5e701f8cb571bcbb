"""Who may cost this node anything: an ASGI layer in front of the routes.

A connection that proves no identity is refused before a byte of its body is read; everybody's body
is bounded before JSON is parsed. Knows no module and no role: rights are the routes' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperha.api.wire import ProblemBody

BODY_LIMIT_BYTES = 65536
"""Far above every request of this API; a JSON text of this size costs little memory."""
_BODY_LIMIT_S = 10.0
_DRAIN_BYTES, _DRAIN_S = 1 << 20, 1.0
_ANONYMOUS = re.compile(r"/v1/modules/[^/]+/ready")
NO_IDENTITY = (
    "this connection proves no identity",
    "Use the local socket on a node as root or a member of a hyperha group.",
)


class Admission:
    """Lets a request through with its whole, bounded body, or answers it here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; anything but HTTP has no way in here and is passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope.get("state", {}).get("caller") is None and not _anonymous(scope):
            await _refuse(receive, send, 403, "denied", *NO_IDENTITY)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        announced = int(headers.get(b"content-length", b"0"))
        if announced == 0 and b"transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        body = None
        if announced <= BODY_LIMIT_BYTES:
            try:
                async with asyncio.timeout(_BODY_LIMIT_S):
                    body = await _whole_body(receive)
            except TimeoutError:
                text = f"the body of the request did not arrive within {_BODY_LIMIT_S:.0f} s"
                await _refuse(receive, send, 408, "timed-out", text, "Send it again.")
                return
        if body is None:
            size = f"of {announced} bytes " if announced else ""
            text = f"a body {size}is larger than the {BODY_LIMIT_BYTES} bytes that are taken"
            await _refuse(receive, send, 413, "too-large", text, "No request here needs as much.")
            return
        await self._app(scope, _replay(body, receive), send)


def _anonymous(scope: Scope) -> bool:
    """What load balancers ask: yes or no, of nobody in particular."""
    return scope["method"] == "GET" and _ANONYMOUS.fullmatch(scope["path"]) is not None


async def _whole_body(receive: Receive) -> bytes | None:
    """The body, or None as soon as it is larger than the limit, whatever was announced."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT_BYTES:
            return None
        if message["type"] != "http.request" or not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever else comes: the end of the connection."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def _refuse(
    receive: Receive, send: Send, status: int, code: str, text: str, fix: str
) -> None:
    """Answer and close. A little of what is still being sent is thrown away first: a connection
    that is closed on unread bytes is reset, and the sender may never see why."""
    problem: dict[str, Any] = ProblemBody(code=code, text=text, fix=fix).model_dump()
    body = json.dumps(problem).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    thrown = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            while thrown < _DRAIN_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    break
                thrown += len(message.get("body", b""))
    await send({"type": "http.response.body", "body": b"", "more_body": False})
