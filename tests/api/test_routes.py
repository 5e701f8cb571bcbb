"""The routes over a real Unix socket and real TLS: rights, errors, shapes, the stream."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from hyperha.api.app import build_app
from hyperha.api.server import Identify, local_socket, make_server, serve, tcp_socket
from hyperha.api.service import Caller
from hyperha.api.wire import ActionRequest, CheckerChange, Expectation
from hyperha.cli import steering
from hyperha.client.node_client import NodeClient, Target
from hyperha.client.studying import ask_whatif
from hyperha.config import Home
from hyperha.daemon.peer_api import PeerApi
from hyperha.domain import Role
from hyperha.errors import DeniedError, FailedError, HyperhaError, UnreachableError, UsageError
from hyperha.security.authority import holder_of
from hyperha.security.initialise import ClusterPlan, LanPlan, init_cluster
from hyperha.security.tls import api_server_context, node_client_context
from hyperha.study.snapshot import snapshot_of
from tests.support.fake_service import PROBLEMS, FakeService

pytestmark = pytest.mark.anyio
GOLDEN = Path(__file__).parent / "cluster.golden.json"


@asynccontextmanager
async def serving(
    service: FakeService,
    listening: socket.socket,
    identify: Identify,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[None]:
    server = make_server(build_app(service), identify, context)
    task = asyncio.ensure_future(serve(server, listening))
    try:
        # uvicorn has no event for it: it sets a flag.
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def local(
    tmp_path: Path, role: str | None = "admin"
) -> AsyncIterator[tuple[FakeService, NodeClient]]:
    service = FakeService()
    path = tmp_path / "api.sock"
    caller = Caller("ann", role, "local") if role else None
    async with (
        serving(service, local_socket(path), lambda transport: caller),
        NodeClient(Target("node1", socket=str(path))) as client,
    ):
        yield service, client


def request(verb: str = "stop") -> ActionRequest:
    return ActionRequest(
        verb=verb,  # type: ignore[arg-type]
        request_id="0123456789",
        expect=Expectation(role=Role.PRIM, generation="g17"),
    )


async def test_the_state_has_its_golden_shape(tmp_path):
    async with local(tmp_path) as (_, client):
        found = (await client.cluster()).model_dump(mode="json")
    assert found == json.loads(GOLDEN.read_text()), "the contract of `state --json` has changed"


async def test_a_command_carries_what_was_seen(tmp_path):
    async with local(tmp_path) as (service, client):
        accepted = await client.act("VM1", request())
        assert accepted.operation == "node1-1"
        assert (await client.operation("node1-1")).state == "done"
    name, sent, caller = service.asked[0]
    assert (name, sent, caller.name) == ("VM1", request(), "ann")


@pytest.mark.parametrize(("problem", "status", "code"), PROBLEMS)
async def test_problems_keep_code_and_kind(tmp_path, problem, status, code):
    async with local(tmp_path) as (service, client):
        service.problem = problem
        with pytest.raises(type(problem)) as caught:
            await client.act("VM1", request())
        assert caught.value.text == problem.text
        answer = await client._http.post(
            "/v1/modules/VM1/actions", json=request().model_dump(mode="json")
        )
        assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("role", "reads", "commands"),
    [("admin", 200, 202), ("control", 200, 202), ("monitor", 200, 403), (None, 403, 403)],
)
async def test_roles(tmp_path, role, reads, commands):
    async with local(tmp_path, role) as (service, client):
        http = client._http
        assert (await http.get("/v1/cluster")).status_code == reads
        posted = await http.post("/v1/modules/VM1/actions", json=request().model_dump(mode="json"))
        assert posted.status_code == commands
        assert len(service.asked) == (commands == 202)
        # Load balancers ask without being anybody.
        assert (await http.get("/v1/modules/VM1/ready")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/modules/..%2f..%2fetc", None, 404),
        ("GET", "/v1/modules/-x", None, 422),
        ("GET", "/v1/modules/VM9", None, 404),
        ("POST", "/v1/modules/VM1/actions", "{", 422),
        ("POST", "/v1/modules/VM1/actions", '{"verb":"explode","request_id":"12345678"}', 422),
        ("POST", "/v1/modules/VM1/actions", '{"verb":"stop","request_id":"12345678","x":1}', 422),
        ("POST", "/v1/modules/VM1/actions", '{"verb":"stop","request_id":"a b"}', 422),
        ("PUT", "/v1/modules/VM1/checkers/x%1b", "{}", 422),
        ("GET", "/v1/modules/VM1/log?limit=0", None, 422),
        ("GET", "/v1/modules/VM1/log?node=node9", None, 404),
        ("GET", "/v1/modules/VM1/log?node=../x", None, 422),
        ("GET", "/v1/modules/VM1/scripts?node=node9", None, 404),
        ("GET", "/v1/stream?after=-1", None, 422),
        ("GET", "/docs", None, 404),
    ],
)
async def test_bad_requests_get_one_clear_problem(tmp_path, method, path, body, status):
    async with local(tmp_path) as (service, client):
        answer = await client._http.request(
            method, path, content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == status
        problem = answer.json()
        assert set(problem) == {"code", "text", "fix"}
        assert "\x1b" not in answer.text
        assert "Traceback" not in answer.text
        assert not service.asked


async def test_logs_scripts_and_checkers(tmp_path):
    async with local(tmp_path) as (service, client):
        assert [line.seq for line in (await client.log("VM1", after=4)).lines] == [5, 6, 7]
        runs = await client.scripts("VM1")
        assert (await client.script("VM1", runs[0].id)).output[0].text == "up"
        change = CheckerChange(suspended=True, reason="disk change")
        await client.change_checker("VM1", "all", change)
        assert service.asked[0][:2] == ("all", change)


async def test_lines_of_a_named_node_are_that_nodes_or_a_problem(tmp_path):
    async with local(tmp_path, "monitor") as (_, client):
        page = await client.log("VM1", after=4, node="node1")
        assert {line.node for line in page.lines} == {"node1"}
        run = (await client.scripts("VM1", node="node1"))[0]
        assert (await client.script("VM1", run.id, node="node1")).run == run
        for asked in (
            client.log("VM1", node="node2"),
            client.scripts("VM1", node="node2"),
            client.script("VM1", run.id, node="node2"),
        ):
            with pytest.raises(UnreachableError, match="node2 does not answer"):
                await asked


async def test_the_stream_goes_on_after_a_number(tmp_path):
    async with local(tmp_path) as (_, client):
        lines = [line async for line in client.stream(after=5)]
    assert [line.type for line in lines] == ["hello", "cluster", "log", "log"]
    assert lines[2].log.text == "l6"


async def test_a_node_that_is_not_there(tmp_path):
    async with NodeClient(Target("node1", socket=str(tmp_path / "none.sock"))) as client:
        with pytest.raises(UnreachableError, match="node1 does not answer"):
            await client.cluster()


async def test_every_command_of_the_core_has_an_endpoint(tmp_path):
    from typing import get_args

    from hyperha.api.wire import VerbWord
    from hyperha.core.events import Verb

    assert {verb.value for verb in Verb} <= set(get_args(VerbWord))
    assert {*steering._HELP, "swap"} == {verb.value for verb in Verb}


def _cluster(tmp_path: Path, name: str) -> dict[str, Home]:
    homes = {node: Home.at(tmp_path / name / node) for node in ("node1", "node2")}
    lan = LanPlan("lo", {"node1": "127.0.0.1", "node2": "127.0.0.2"})
    init_cluster(homes, ClusterPlan(name, ("node1", "node2"), (lan,)))
    return homes


def _identify(transport: asyncio.BaseTransport) -> Caller | None:
    connection = transport.get_extra_info("ssl_object")
    der = connection.getpeercert(binary_form=True)
    if der is None:
        return None
    return Caller(holder_of(der).node, "admin", "tls", holder_of(der).node)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_the_other_node_comes_with_its_certificate_and_speaks_for_a_user(tmp_path):
    homes = _cluster(tmp_path, "paris")
    one, two = homes["node1"], homes["node2"]
    server = api_server_context(one.authority_certificate, one.node_certificate, one.node_key)
    client = node_client_context(two.authority_certificate, two.node_certificate, two.node_key)
    service, port = FakeService(), _free_port()
    async with serving(service, tcp_socket("127.0.0.1", port, "API"), _identify, server):
        headers = {"x-hyperha-user": "ann", "x-hyperha-role": "monitor"}
        async with httpx.AsyncClient(verify=client, trust_env=False) as http:
            base = f"https://127.0.0.1:{port}"
            assert (await http.get(f"{base}/v1/node", headers=headers)).status_code == 200
            refused = await http.post(
                f"{base}/v1/modules/VM1/actions",
                json=request().model_dump(mode="json"),
                headers=headers,
            )
            assert refused.status_code == 403, "a forwarded user keeps the user's own role"
            assert "ann" in refused.json()["text"]
        anonymous = ssl.create_default_context(cafile=str(one.authority_certificate))
        anonymous.check_hostname = False
        async with httpx.AsyncClient(verify=anonymous, trust_env=False) as http:
            assert (await http.get(f"{base}/v1/node")).status_code == 403


async def test_the_other_nodes_lines_are_asked_for_with_the_users_role(tmp_path, monkeypatch):
    homes = _cluster(tmp_path, "paris")
    one, two = homes["node1"], homes["node2"]
    server = api_server_context(one.authority_certificate, one.node_certificate, one.node_key)
    client = node_client_context(two.authority_certificate, two.node_certificate, two.node_key)
    port = _free_port()
    peer = PeerApi("node1", (f"https://127.0.0.1:{port}",), client)
    ann, nobody = Caller("ann", "monitor", "local"), Caller("eve", "", "local")
    try:
        async with serving(FakeService(), tcp_socket("127.0.0.1", port, "API"), _identify, server):
            page = await peer.log_page("VM1", 5, 100, ann)
            assert [line.seq for line in page.lines] == [6, 7]
            run = (await peer.script_runs("VM1", ann))[0]
            assert (await peer.script_output("VM1", run.id, ann)).output[0].text == "up"
            with pytest.raises(DeniedError, match="eve"):
                await peer.log_page("VM1", 0, 100, nobody)
            monkeypatch.setattr("hyperha.daemon.peer_api.ANSWER_LIMIT_BYTES", 100)
            with pytest.raises(UnreachableError, match="longer than"):
                await peer.log_page("VM1", 0, 100, ann)
        with pytest.raises(UnreachableError, match="node1 does not answer"):
            await peer.script_runs("VM1", ann)
    finally:
        await peer.close()


async def test_a_certificate_of_another_cluster_is_not_taken(tmp_path):
    one = _cluster(tmp_path, "paris")["node1"]
    other = _cluster(tmp_path, "rome")["node2"]
    server = api_server_context(one.authority_certificate, one.node_certificate, one.node_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(one.authority_certificate)
    context.load_cert_chain(other.node_certificate, other.node_key)
    port = _free_port()
    async with (
        serving(FakeService(), tcp_socket("127.0.0.1", port, "API"), _identify, server),
        httpx.AsyncClient(verify=context, trust_env=False) as http,
    ):
        with pytest.raises(httpx.HTTPError):
            await http.get(f"https://127.0.0.1:{port}/v1/node")


def test_a_taken_port_is_named():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(FailedError, match=f"port {port}"):
            tcp_socket("127.0.0.1", port, "API")


def test_a_socket_path_that_is_too_long_is_named(tmp_path):
    with pytest.raises(UsageError, match="107 bytes"):
        local_socket(tmp_path / ("x" * 120))


def test_every_error_has_its_own_code():
    def all_kinds(kind):
        return [kind, *(one for sub in kind.__subclasses__() for one in all_kinds(sub))]

    codes = {kind.code for kind in all_kinds(HyperhaError)}
    assert {"stale-view", "busy", "loss", "refused", "not-found", "denied"} <= codes


async def test_a_view_for_a_study_comes_from_either_node(tmp_path):
    async with local(tmp_path) as (_, client):
        found = await client.snapshot("VM1", node="node1")
        assert snapshot_of(found.model_dump()).state.config.node == "node1"
        with pytest.raises(UnreachableError, match="node2 does not answer"):
            await client.snapshot("VM1", node="node2")


async def test_a_study_takes_a_silent_node_for_off(tmp_path):
    async with local(tmp_path) as (_, client):
        answered = await ask_whatif(client, "VM1", ["vm-exit"])
    assert answered.outcome.runs == ("node1",)
    assert [node for node, _ in answered.assumed] == ["node2"]
