"""The lease witness as a service: durable before it answers, known by its fingerprint, bounded."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from hyperha.core.lease import Look, Register, Renew, Shrink, Takeover, Verdict
from hyperha.errors import DeniedError, FailedError, RefusedError, UnreachableError
from hyperha.security.authority import fingerprint, self_signed
from hyperha.witness import store as store_module
from hyperha.witness.client import LeaseClient, token_of
from hyperha.witness.service import BODY_LIMIT_BYTES, listen, serve
from hyperha.witness.store import Store

pytestmark = pytest.mark.anyio
NODES = ("node1", "node2")
TTL_MS = 2750
CLUSTER = "c1"
TOKEN = token_of(b"k" * 32)
FIRST = Register("r1", "node1", 0, NODES, 1, NODES, "g17", TTL_MS)


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


class Served:
    """A witness on a port of its own, and clients of it."""

    def __init__(self, url: str, shown: str) -> None:
        self.url = url
        self.fingerprint = shown

    def client(self, *, token: str = TOKEN, shown: str = "", cluster: str = CLUSTER) -> LeaseClient:
        return LeaseClient(self.url, shown or self.fingerprint, cluster, token, 5.0)


@contextlib.asynccontextmanager
async def witness(directory: Path, store: Store) -> AsyncIterator[Served]:
    made = self_signed("witness")
    for name, content in (("crt", made.certificate), ("key", made.key)):
        (directory / f"w.{name}").write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "w.crt", directory / "w.key")
    listening = listen("127.0.0.1", 0)
    stop = asyncio.Event()
    running = asyncio.create_task(serve(store, [listening], context, stop))
    try:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}"
        yield Served(url, fingerprint(made.certificate))
    finally:
        stop.set()
        await running


async def test_it_answers_and_remembers_over_its_own_end(tmp_path: Path) -> None:
    clock = Clock()
    async with witness(tmp_path, Store(tmp_path / "state", clock, 0)) as served:
        client = served.client()
        unknown = await client.ask("VM1", Look("l1", "node1", 0))
        assert unknown.verdict is Verdict.UNKNOWN
        answer = await client.ask("VM1", FIRST)
        assert (answer.verdict, answer.holder, answer.in_sync) == (Verdict.DONE, "node1", NODES)
        shrunk = await client.ask("VM1", Shrink("s1", "node1", answer.version, 1, "g18"))
        assert shrunk.in_sync == ("node1",)
        await client.close()
    clock.now_ms += 10 * TTL_MS
    async with witness(tmp_path, Store(tmp_path / "state", clock, 1)) as served:
        client = served.client()
        again = await client.ask("VM1", Shrink("s1", "node1", answer.version, 1, "g18"))
        assert again == shrunk
        renewed = await client.ask("VM1", Renew("n1", "node1", shrunk.version, 1, TTL_MS))
        assert (renewed.verdict, renewed.generation) == (Verdict.DONE, "g18")
        await client.close()


async def test_w10_after_its_own_start_it_waits_for_one_lease(tmp_path: Path) -> None:
    clock = Clock()
    version = Store(tmp_path, clock, 0).handle(CLUSTER, "VM1", FIRST).version
    clock.now_ms += 10 * TTL_MS
    store = Store(tmp_path, clock, 1000)
    clock.now_ms += 1000
    takeover = Takeover("t1", "node2", version, 2, 1000, ("g17",))
    assert store.handle(CLUSTER, "VM1", takeover).wait_ms == TTL_MS - 1000
    clock.now_ms += TTL_MS
    later = replace(takeover, id="t2")
    assert store.handle(CLUSTER, "VM1", later).verdict is Verdict.DONE


async def test_only_the_witness_that_is_named_is_told_anything(tmp_path: Path) -> None:
    async with witness(tmp_path, Store(tmp_path / "state", Clock(), 0)) as served:
        other = served.client(shown=fingerprint(self_signed("witness").certificate))
        with pytest.raises(DeniedError, match="has the fingerprint"):
            await other.ask("VM1", Look("l1", "node1", 0))
    assert not list((tmp_path / "state").iterdir())


async def test_another_key_of_a_known_cluster_is_refused(tmp_path: Path) -> None:
    async with witness(tmp_path, Store(tmp_path / "state", Clock(), 0)) as served:
        client = served.client()
        await client.ask("VM1", FIRST)
        await client.close()
        stranger = served.client(token=token_of(b"x" * 32))
        with pytest.raises(DeniedError, match="with another key"):
            await stranger.ask("VM1", Look("l1", "node1", 0))
        await stranger.close()


async def test_what_is_not_a_request_is_refused_and_nothing_happens(tmp_path: Path) -> None:
    async with witness(tmp_path, Store(tmp_path / "state", Clock(), 0)) as served:
        trust = ssl.create_default_context(cafile=str(tmp_path / "w.crt"))
        trust.check_hostname = False
        headers = {"authorization": f"Bearer {TOKEN}"}
        base = f"/v1/clusters/{CLUSTER}/modules/VM1"
        async with httpx.AsyncClient(base_url=served.url, verify=trust) as http:
            for path, content, status in (
                (f"{base}/look", b"{}", 422),
                (f"{base}/look", b"[" * 1000, 422),
                (f"{base}/look", b"x" * (BODY_LIMIT_BYTES + 1), 422),
                (f"{base}/erase", b"{}", 404),
                ("/v1/clusters/..%2f..%2fetc/modules/VM1/look", b"{}", 404),
                (f"/v1/clusters/{CLUSTER}/modules/%1b[2J/look", b"{}", 404),
            ):
                response = await http.post(path, content=content, headers=headers)
                assert response.status_code == status, (path, response.text)
                assert "\x1b" not in response.text
            response = await http.post(f"{base}/look", content=b"{}")
            assert response.status_code == 403
    assert not list((tmp_path / "state").glob("*/*.lease"))


async def test_a_witness_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with witness(tmp_path, Store(tmp_path / "state", Clock(), 0)) as served:
        client = served.client()
    with pytest.raises(UnreachableError, match=served.url):
        await client.ask("VM1", Look("l1", "node1", 0))


def test_a_damaged_record_is_kept_aside_and_the_module_unknown(tmp_path: Path) -> None:
    Store(tmp_path, Clock(), 0).handle(CLUSTER, "VM1", FIRST)
    path = tmp_path / CLUSTER / "VM1.lease"
    path.write_bytes(b"\xff" * path.stat().st_size)
    store = Store(tmp_path, Clock(), 1)
    assert store.handle(CLUSTER, "VM1", Look("l1", "node1", 0)).verdict is Verdict.UNKNOWN
    assert list(path.parent.glob("VM1.lease.damaged-*"))


def test_a_disk_that_refuses_answers_nothing_and_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, Clock(), 0)
    version = store.handle(CLUSTER, "VM1", FIRST).version
    shrink = Shrink("s1", "node1", version, 1, "g18")

    def refuses(record: object, value: object) -> None:
        raise FailedError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(store_module.DurableRecord, "store_json", refuses)
        with pytest.raises(FailedError, match="no space left"):
            store.handle(CLUSTER, "VM1", shrink)
    assert store.handle(CLUSTER, "VM1", Look("l1", "node1", version)).in_sync == NODES
    assert store.handle(CLUSTER, "VM1", shrink).in_sync == ("node1",)


def test_how_many_clusters_and_modules_there_are_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CLUSTERS_LIMIT", 2)
    monkeypatch.setattr(store_module, "MODULES_LIMIT", 2)
    store = Store(tmp_path, Clock(), 0)
    for name in ("c1", "c2"):
        store.admit(name, TOKEN)
    with pytest.raises(RefusedError, match="knows 2 clusters"):
        store.admit("c3", TOKEN)
    for name in ("VM1", "VM2"):
        store.handle(CLUSTER, name, FIRST)
    with pytest.raises(RefusedError, match="has 2 modules"):
        store.handle(CLUSTER, "VM3", FIRST)
