"""A node's API as typed calls: over its local socket, or over HTTPS with the cluster's authority.

Every failure is one of `hyperha.errors`: the daemon's own problems keep their code, text and fix; a
node that cannot be reached is an UnreachableError naming the address.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from hyperha import errors
from hyperha.api.wire import (
    KEEPALIVE_S,
    Accepted,
    ActionRequest,
    CheckerChange,
    ClusterView,
    LogPage,
    NodeReport,
    OperationView,
    PreflightItem,
    ProblemBody,
    ScriptOutput,
    ScriptRun,
    SnapshotView,
    StreamLine,
)
from hyperha.api.wire_copies import DiffView, PlanView, SafetyCopies, VerifyReport

T = TypeVar("T")
ANSWER_S = 10.0
LONG_ANSWER_S = 40.0
"""For what the node may have to look into both folders for."""
STREAM_SILENCE_S = 3 * KEEPALIVE_S


@dataclass(frozen=True, slots=True)
class Target:
    """Where a node's API is: `socket` of a local node, or `url` with the files that prove it."""

    name: str
    socket: str = ""
    url: str = ""
    authority: str = ""
    certificate: str = ""
    key: str = ""

    def __str__(self) -> str:
        return self.socket or self.url


def _all_kinds(root: type[errors.HyperhaError]) -> dict[str, type[errors.HyperhaError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found |= _all_kinds(kind)
    return found


_BY_CODE = _all_kinds(errors.HyperhaError)
_BY_STATUS: dict[int, type[errors.HyperhaError]] = {
    401: errors.DeniedError,
    403: errors.DeniedError,
    404: errors.NotFoundError,
    409: errors.RefusedError,
    422: errors.UsageError,
    423: errors.BusyError,
    502: errors.UnreachableError,
    504: errors.TimedOutError,
}


class NodeClient:
    """One node's API; an async context manager."""

    def __init__(
        self, target: Target, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.target = target
        if transport is None:
            transport = _transport(target)
        self._http = httpx.AsyncClient(
            base_url=target.url or "http://node",
            transport=transport,
            timeout=httpx.Timeout(ANSWER_S, connect=3.0),
            trust_env=False,
        )

    async def __aenter__(self) -> NodeClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def node(self) -> NodeReport:
        """The answering node alone."""
        return await self._get("/v1/node", NodeReport)

    async def cluster(self) -> ClusterView:
        """Both nodes."""
        return await self._get("/v1/cluster", ClusterView)

    async def preflight(self, module: str) -> list[PreflightItem]:
        """Why a start or a failover would not work now."""
        return await self._get(f"/v1/modules/{module}/preflight", list[PreflightItem])

    async def verify_report(self, module: str) -> VerifyReport:
        """What the last verification found."""
        return await self._get(f"/v1/modules/{module}/verify", VerifyReport)

    async def plan(self, module: str, to: str = "") -> PlanView:
        """What a resync would move now; `to`: as if that node's copy gave way."""
        query = f"?to={to}" if to else ""
        return await self._get(f"/v1/modules/{module}/plan{query}", PlanView, LONG_ANSWER_S)

    async def diff(self, module: str) -> DiffView:
        """What each copy's log says that it changed."""
        return await self._get(f"/v1/modules/{module}/diff", DiffView, LONG_ANSWER_S)

    async def safety_copies(self, module: str) -> SafetyCopies:
        """What is kept of former states of both copies."""
        path = f"/v1/modules/{module}/safety-copies"
        return await self._get(path, SafetyCopies, LONG_ANSWER_S)

    async def act(self, module: str, request: ActionRequest) -> Accepted:
        """Begin a command; the node decides whether it may."""
        return await self._send("POST", f"/v1/modules/{module}/actions", request)

    async def change_checker(self, module: str, checker: str, change: CheckerChange) -> Accepted:
        """Suspend or resume a checker (`all`: every one)."""
        return await self._send("PUT", f"/v1/modules/{module}/checkers/{checker}", change)

    async def operation(self, operation_id: str) -> OperationView:
        """How an accepted command stands."""
        return await self._get(f"/v1/operations/{operation_id}", OperationView)

    async def log(
        self, module: str, after: int = 0, limit: int = 500, *, node: str = ""
    ) -> LogPage:
        """The newest lines of a module's log on a node, by default the one that answers."""
        path = f"/v1/modules/{module}/log?after={after}&limit={limit}"
        return await self._get(path + (f"&node={node}" if node else ""), LogPage)

    async def scripts(self, module: str, *, node: str = "") -> list[ScriptRun]:
        """The kept script runs of a module on a node, newest first."""
        query = f"?node={node}" if node else ""
        return await self._get(f"/v1/modules/{module}/scripts{query}", list[ScriptRun])

    async def script(self, module: str, run: str, *, node: str = "") -> ScriptOutput:
        """What one run on a node said."""
        query = f"?node={node}" if node else ""
        return await self._get(f"/v1/modules/{module}/scripts/{run}{query}", ScriptOutput)

    async def snapshot(self, module: str, *, node: str = "") -> SnapshotView:
        """What a node's core knows of a module now, by default the one that answers."""
        query = f"?node={node}" if node else ""
        return await self._get(f"/v1/modules/{module}/snapshot{query}", SnapshotView)

    async def stream(self, after: int | None = None) -> AsyncIterator[StreamLine]:
        """Lines as they come; ends with UnreachableError when nothing comes for three periods."""
        query = "" if after is None else f"?after={after}"
        timeout = httpx.Timeout(10.0, connect=3.0, read=STREAM_SILENCE_S)
        try:
            async with self._http.stream("GET", f"/v1/stream{query}", timeout=timeout) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    raise _error_of(answer)
                async for line in answer.aiter_lines():
                    if line:
                        yield StreamLine.model_validate_json(line)
        except (httpx.HTTPError, ValidationError) as problem:
            raise self._unreachable(problem) from problem

    async def _get(self, path: str, kind: type[T], limit_s: float = ANSWER_S) -> T:
        return TypeAdapter(kind).validate_python(await self._ask("GET", path, None, limit_s))

    async def _send(self, method: str, path: str, body: BaseModel) -> Accepted:
        return Accepted.model_validate(await self._ask(method, path, body))

    async def _ask(
        self, method: str, path: str, body: BaseModel | None, limit_s: float = ANSWER_S
    ) -> Any:
        content = body.model_dump_json() if body is not None else None
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            timeout = httpx.Timeout(limit_s, connect=3.0)
            answer = await self._http.request(
                method, path, content=content, headers=headers, timeout=timeout
            )
        except httpx.HTTPError as problem:
            raise self._unreachable(problem) from problem
        if answer.status_code >= 400:
            raise _error_of(answer)
        return answer.json()

    def _unreachable(self, problem: Exception) -> errors.UnreachableError:
        what = str(problem) or type(problem).__name__
        return errors.UnreachableError(
            f"{self.target.name or 'the node'} does not answer on {self.target}: {what}",
            "Is its daemon running? `hyperha node run` starts it.",
        )


def _transport(target: Target) -> httpx.AsyncBaseTransport:
    if target.socket:
        return httpx.AsyncHTTPTransport(uds=target.socket)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not target.authority or not Path(target.authority).is_file():
        raise errors.UsageError(
            f"no authority to verify {target.url} with",
            "Name the cluster's ca.crt; nothing is trusted without it.",
        )
    context.load_verify_locations(target.authority)
    if target.certificate:
        context.load_cert_chain(target.certificate, target.key)
    return httpx.AsyncHTTPTransport(verify=context)


def _error_of(answer: httpx.Response) -> errors.HyperhaError:
    try:
        problem = ProblemBody.model_validate(answer.json())
    except (ValueError, ValidationError):
        return errors.UnreachableError(f"unexpected answer {answer.status_code}")
    kind = _BY_CODE.get(problem.code) or _BY_STATUS.get(answer.status_code, errors.FailedError)
    return kind(problem.text, problem.fix, code=problem.code)
