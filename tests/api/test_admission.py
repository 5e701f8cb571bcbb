"""Strangers and large bodies cost the node next to nothing, and are told why."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from hyperha.api.admission import BODY_LIMIT_BYTES
from hyperha.api.server import ANONYMOUS_LIMIT, local_socket
from hyperha.api.service import Caller
from tests.api.test_routes import serving
from tests.support.fake_service import FakeService

pytestmark = pytest.mark.anyio
ANN = Caller("ann", "admin", "local")
ACTION = "POST /v1/modules/VM1/actions HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n"
READY = "GET /v1/modules/VM1/ready HTTP/1.1\r\nHost: node\r\n\r\n"
Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def listening(tmp_path: Path, caller: Caller | None):
    path = tmp_path / "api.sock"
    service = FakeService()
    async with serving(service, local_socket(path), lambda transport: caller):
        yield path, service


async def answer(wire: Wire) -> tuple[int, dict[str, object]]:
    head = (await wire[0].readuntil(b"\r\n\r\n")).decode()
    length = int(head.lower().partition("content-length: ")[2].split()[0])
    return int(head.split()[1]), json.loads(await wire[0].readexactly(length))


async def asked(path: Path, *sent: bytes) -> tuple[int, dict[str, object]]:
    wire = await asyncio.open_unix_connection(str(path))
    try:
        wire[1].writelines(sent)
        async with asyncio.timeout(5):
            return await answer(wire)
    finally:
        wire[1].close()


def chunked(size: int) -> list[bytes]:
    part = b"[" * 4096
    head = (ACTION + "Transfer-Encoding: chunked\r\n\r\n").encode()
    return [head, *(b"1000\r\n" + part + b"\r\n" for _ in range(size // 4096)), b"0\r\n\r\n"]


async def test_nobodys_body_is_not_read(tmp_path):
    """The answer is there before the body is; not one byte of it is sent here."""
    async with listening(tmp_path, None) as (path, service):
        head = (ACTION + "Content-Length: 300000000\r\n\r\n").encode()
        status, problem = await asked(path, head)
        assert (status, problem["code"]) == (403, "denied")
        status, problem = await asked(path, *chunked(4096))
        assert (status, problem["code"]) == (403, "denied")
    assert not service.asked


async def test_nobody_may_still_ask_whether_a_module_is_ready(tmp_path):
    async with listening(tmp_path, None) as (path, _):
        assert (await asked(path, READY.encode()))[0] == 200


@pytest.mark.parametrize("caller", [ANN, Caller("dan", "monitor", "local")])
async def test_a_body_is_bounded_by_what_is_announced_and_by_what_arrives(tmp_path, caller):
    async with listening(tmp_path, caller) as (path, service):
        head = (ACTION + f"Content-Length: {BODY_LIMIT_BYTES + 1}\r\n\r\n").encode()
        status, problem = await asked(path, head)
        assert (status, problem["code"]) == (413, "too-large")
        assert str(BODY_LIMIT_BYTES) in str(problem["text"])
        status, problem = await asked(path, *chunked(BODY_LIMIT_BYTES + 4096))
        assert (status, problem["code"]) == (413, "too-large")
    assert not service.asked


async def test_a_chunked_body_within_the_limit_arrives(tmp_path):
    async with listening(tmp_path, ANN) as (path, service):
        body = json.dumps({"verb": "stop", "request_id": "0123456789", "expect": {}}).encode()
        parts = [body[:10], body[10:]]
        sent = [f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts]
        head = (ACTION + "Transfer-Encoding: chunked\r\n\r\n").encode()
        status, found = await asked(path, head, *sent, b"0\r\n\r\n")
        assert status == 202, found
    assert service.asked[0][1].verb == "stop"


async def test_idle_strangers_keep_nobody_out(tmp_path):
    """The oldest one gives way: connections that say nothing do not pile up."""
    async with listening(tmp_path, None) as (path, _):
        strangers = [
            await asyncio.open_unix_connection(str(path)) for _ in range(ANONYMOUS_LIMIT + 3)
        ]
        try:
            async with asyncio.timeout(5):
                assert await strangers[0][0].read(1) == b""
            assert (await asked(path, READY.encode()))[0] == 200
        finally:
            for _, writer in strangers:
                writer.close()
