"""The routes: HTTP in, `NodeService` out. No state, no decision; rights and errors at the edge."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

import hyperha
from hyperha.api.admission import NO_IDENTITY
from hyperha.api.service import Caller, NodeService
from hyperha.api.wire import (
    Accepted,
    ActionRequest,
    CheckerChange,
    ClusterView,
    LogPage,
    ModuleView,
    NodeReport,
    OperationView,
    PreflightItem,
    ProblemBody,
    ScriptOutput,
    ScriptRun,
    SnapshotView,
)
from hyperha.api.wire_copies import CopyView, DiffView, PlanView, SafetyCopies, VerifyReport
from hyperha.errors import DeniedError, HyperhaError
from hyperha.text import clean

FORWARDED_NAME = "x-hyperha-user"
FORWARDED_ROLE = "x-hyperha-role"
ModuleName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,31}$")]
CheckerName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
NodeName = Annotated[str, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,62}$")]
RunName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]


def caller_of(request: Request) -> Caller:
    """Who asks, as the connection proves it; a peer node speaks for the user it names."""
    found: Caller | None = getattr(request.state, "caller", None)
    if found is None:
        raise DeniedError(*NO_IDENTITY)
    if found.peer_node and FORWARDED_NAME in request.headers:
        name = clean(request.headers[FORWARDED_NAME])[:64]
        role = request.headers.get(FORWARDED_ROLE, "")
        return Caller(name, role, f"{found.peer_node}", found.peer_node)
    return found


def _needs(role: str) -> Callable[[Request], Caller]:
    def check(request: Request) -> Caller:
        caller = caller_of(request)
        if not caller.may(role):
            raise DeniedError(
                f"{caller.name} has the role {caller.role or 'none'}, {role} is needed",
                "Ask an administrator of the cluster.",
            )
        return caller

    return check


Monitor = Annotated[Caller, Depends(_needs("monitor"))]
Control = Annotated[Caller, Depends(_needs("control"))]


def _problem(status: int, code: str, text: str, fix: str = "") -> JSONResponse:
    return JSONResponse(ProblemBody(code=code, text=text, fix=fix).model_dump(), status_code=status)


async def _known_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HyperhaError)
    return _problem(error.http_status, error.problem_code, clean(error.text), error.fix)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _problem(422, "invalid", clean(f"{where}: {first['msg']}"))


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, "http", clean(str(error.detail)))


def build_app(service: NodeService) -> FastAPI:
    """The application of one node."""
    app = FastAPI(
        title="hyperha",
        version=hyperha.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.add_exception_handler(HyperhaError, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    _add_reading(app, service)
    _add_logs(app, service)
    _add_copies(app, service)
    _add_commands(app, service)
    return app


def _add_reading(app: FastAPI, service: NodeService) -> None:
    @app.get("/v1/node")
    async def node(caller: Monitor) -> NodeReport:
        return service.node_report()

    @app.get("/v1/cluster")
    async def cluster(caller: Monitor) -> ClusterView:
        return service.cluster()

    @app.get("/v1/modules")
    async def modules(caller: Monitor) -> dict[str, ModuleView]:
        return service.cluster().modules

    @app.get("/v1/modules/{module}")
    async def module(module: ModuleName, caller: Monitor) -> ModuleView:
        return service.module(module)

    @app.get("/v1/modules/{module}/preflight")
    async def preflight(module: ModuleName, caller: Monitor) -> list[PreflightItem]:
        return service.preflight(module)

    @app.get("/v1/operations/{operation}")
    async def operation(operation: RunName, caller: Monitor) -> OperationView:
        return await service.operation(operation)

    @app.get("/v1/modules/{module}/ready", response_model=None)
    async def ready(module: ModuleName) -> Response:
        # Asked by load balancers: says nothing but yes or no, so nobody needs to be known.
        is_ready, text = service.ready(module)
        return JSONResponse({"ready": is_ready, "text": text}, status_code=200 if is_ready else 503)


def _add_logs(app: FastAPI, service: NodeService) -> None:
    # `node` names the node whose lines are wanted: another one than this is asked for them.
    @app.get("/v1/modules/{module}/log")
    async def log(
        module: ModuleName,
        caller: Monitor,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=5000)] = 500,
        node: NodeName | None = None,
    ) -> LogPage:
        return await service.log_page(module, after, limit, node, caller)

    @app.get("/v1/modules/{module}/scripts")
    async def scripts(
        module: ModuleName, caller: Monitor, node: NodeName | None = None
    ) -> list[ScriptRun]:
        return await service.script_runs(module, node, caller)

    @app.get("/v1/modules/{module}/scripts/{run}")
    async def script(
        module: ModuleName, run: RunName, caller: Monitor, node: NodeName | None = None
    ) -> ScriptOutput:
        return await service.script_output(module, run, node, caller)

    @app.get("/v1/modules/{module}/snapshot")
    async def snapshot(
        module: ModuleName, caller: Monitor, node: NodeName | None = None
    ) -> SnapshotView:
        return await service.snapshot(module, node, caller)

    @app.get("/v1/stream", response_model=None)
    async def stream(
        caller: Monitor, after: Annotated[int | None, Query(ge=0)] = None
    ) -> StreamingResponse:
        return StreamingResponse(_lines(service, after), media_type="application/x-ndjson")


def _add_copies(app: FastAPI, service: NodeService) -> None:
    @app.get("/v1/modules/{module}/verify")
    async def verify(module: ModuleName, caller: Monitor) -> VerifyReport:
        return await service.verify_report(module, caller)

    @app.get("/v1/modules/{module}/plan")
    async def plan(module: ModuleName, caller: Monitor, to: NodeName | None = None) -> PlanView:
        return await service.plan(module, to or "")

    @app.get("/v1/modules/{module}/diff")
    async def diff(module: ModuleName, caller: Monitor) -> DiffView:
        return await service.diff(module)

    @app.get("/v1/modules/{module}/safety-copies")
    async def safety_copies(module: ModuleName, caller: Monitor) -> SafetyCopies:
        return await service.safety_copies(module, caller)

    @app.get("/v1/modules/{module}/copy")
    async def copy(
        module: ModuleName,
        caller: Monitor,
        against: Annotated[str, Query(max_length=8000)] = "",
        to: NodeName | None = None,
        sizes: bool = False,
    ) -> CopyView:
        return await service.own_copy(module, against, to or "", sizes=sizes)


async def _lines(service: NodeService, after: int | None) -> AsyncIterator[bytes]:
    async for line in service.stream(after):
        # Only the line's own absent parts are left out: inside them null is a value.
        body = {
            key: value for key, value in line.model_dump(mode="json").items() if value is not None
        }
        yield json.dumps(body, separators=(",", ":")).encode() + b"\n"


def _add_commands(app: FastAPI, service: NodeService) -> None:
    @app.post("/v1/modules/{module}/actions", status_code=202)
    async def act(module: ModuleName, request: ActionRequest, caller: Control) -> Accepted:
        return await service.act(module, request, caller)

    @app.put("/v1/modules/{module}/checkers/{checker}", status_code=202)
    async def change_checker(
        module: ModuleName, checker: CheckerName, change: CheckerChange, caller: Control
    ) -> Accepted:
        return await service.change_checker(module, checker, change, caller)
