"""The other node's API over mutual TLS: its report, forwarded commands, its logs for who asks here.

What it answers is bounded in size and checked against the wire models.
"""

from __future__ import annotations

import json
import logging
import ssl
import time
from typing import Any, TypeVar
from urllib.parse import urlencode

import httpx
from pydantic import TypeAdapter, ValidationError

from hyperha.api.app import FORWARDED_NAME, FORWARDED_ROLE
from hyperha.api.service import Caller
from hyperha.api.wire import (
    Accepted,
    ActionRequest,
    CheckerChange,
    LogPage,
    NodeReport,
    OperationView,
    ProblemBody,
    ScriptOutput,
    ScriptRun,
    SnapshotView,
)
from hyperha.api.wire_copies import CopyView, SafetyCopies, VerifyReport
from hyperha.daemon.clocks import PeerClock
from hyperha.errors import (
    BusyError,
    DeniedError,
    HyperhaError,
    LossError,
    NotFoundError,
    RefusedError,
    StaleViewError,
    UnreachableError,
    UsageError,
)

_log = logging.getLogger(__name__)
T = TypeVar("T")
ANSWER_S = 3.0
LONG_ANSWER_S = 25.0
"""For what may have to look into a whole folder; an operator waits for it."""
ANSWER_LIMIT_BYTES = 16 << 20
"""More than the longest log page or script output; what is longer is not read to its end."""
_ERRORS: dict[str, type[HyperhaError]] = {
    kind.code: kind
    for kind in (
        BusyError,
        DeniedError,
        LossError,
        NotFoundError,
        RefusedError,
        StaleViewError,
        UsageError,
    )
}
_BY_STATUS: dict[int, type[HyperhaError]] = {
    403: DeniedError,
    404: NotFoundError,
    409: RefusedError,
    423: BusyError,
}


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class PeerApi:
    """Talks to the other node on the first of its addresses that answers."""

    def __init__(
        self, peer: str, bases: tuple[str, ...], context: ssl.SSLContext, node: str = "this node"
    ) -> None:
        self._peer = peer
        self.clock = PeerClock(node, peer)
        self.distrust = ""
        """Why the other node's certificate, or ours there, is not taken; empty while they fit."""
        self._bases = list(bases)
        self._client = httpx.AsyncClient(
            verify=context, timeout=httpx.Timeout(ANSWER_S, connect=1.0), trust_env=False
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def report(self) -> NodeReport | None:
        """The other node's own report; None when it does not answer."""
        asked_ms = _wall_ms()
        try:
            report = await self._get("/v1/node", NodeReport, None)
        except HyperhaError:
            return None
        self.clock.heard(asked_ms, _wall_ms(), report.wall_ms)
        # Whoever compares two reports looks for what has changed over there.
        return report.model_copy(update={"wall_ms": 0})

    async def act(self, module: str, request: ActionRequest, caller: Caller) -> Accepted:
        """Forward a command with the user's name and role."""
        path = f"/v1/modules/{module}/actions"
        return self._read(await self._ask("POST", path, request, caller), Accepted)

    async def change_checker(
        self, module: str, checker: str, change: CheckerChange, caller: Caller
    ) -> Accepted:
        """Forward a suspension or its end."""
        path = f"/v1/modules/{module}/checkers/{checker}"
        return self._read(await self._ask("PUT", path, change, caller), Accepted)

    async def operation(self, operation_id: str) -> OperationView:
        """How a forwarded command stands."""
        return await self._get(f"/v1/operations/{operation_id}", OperationView, None)

    async def verify_report(self, module: str) -> VerifyReport:
        """What the other node knows of verifications."""
        return await self._get(f"/v1/modules/{module}/verify", VerifyReport, None)

    async def safety_copies(self, module: str) -> SafetyCopies:
        """The other node's safety copies."""
        path = f"/v1/modules/{module}/safety-copies"
        body = await self._ask("GET", path, None, None, limit_s=LONG_ANSWER_S)
        return self._read(body, SafetyCopies)

    async def copy_of(
        self, module: str, against: dict[str, Any] | None, target: str, *, sizes: bool = False
    ) -> CopyView:
        """The other node's copy, and its verdict beside our summary."""
        query: dict[str, str] = {"sizes": "1"} if sizes else {}
        if against is not None:
            query["against"] = json.dumps(against, separators=(",", ":"))
        if target:
            query["to"] = target
        path = f"/v1/modules/{module}/copy?{urlencode(query)}"
        body = await self._ask("GET", path, None, None, limit_s=LONG_ANSWER_S)
        return self._read(body, CopyView)

    async def log_page(self, module: str, after: int, limit: int, caller: Caller) -> LogPage:
        """The newest lines of the module's log there."""
        path = f"/v1/modules/{module}/log?after={after}&limit={limit}"
        return await self._get(path, LogPage, caller)

    async def script_runs(self, module: str, caller: Caller) -> list[ScriptRun]:
        """The kept runs of the module's scripts there, newest first."""
        return await self._get(f"/v1/modules/{module}/scripts", list[ScriptRun], caller)

    async def script_output(self, module: str, run: str, caller: Caller) -> ScriptOutput:
        """What one run there said."""
        return await self._get(f"/v1/modules/{module}/scripts/{run}", ScriptOutput, caller)

    async def snapshot(self, module: str, caller: Caller) -> SnapshotView:
        """What the other node's core knows of the module."""
        return await self._get(f"/v1/modules/{module}/snapshot", SnapshotView, caller)

    async def _get(self, path: str, kind: type[T], caller: Caller | None) -> T:
        return self._read(await self._ask("GET", path, None, caller), kind)

    def _read(self, body: Any, kind: type[T]) -> T:
        try:
            return TypeAdapter(kind).validate_python(body)
        except ValidationError as problem:
            raise UnreachableError(
                f"the answer of {self._peer} is not understood: {problem.error_count()} errors",
                "Do both nodes run the same version?",
            ) from problem

    async def _ask(
        self,
        method: str,
        path: str,
        request: ActionRequest | CheckerChange | None,
        caller: Caller | None,
        limit_s: float = ANSWER_S,
    ) -> Any:
        headers = {}
        if caller is not None:
            headers = {FORWARDED_NAME: caller.name, FORWARDED_ROLE: caller.role}
        content = request.model_dump_json() if request is not None else None
        if content is not None:
            headers["content-type"] = "application/json"
        last = "no address"
        for base in list(self._bases):
            try:
                timeout = httpx.Timeout(limit_s, connect=1.0)
                async with self._client.stream(
                    method, base + path, content=content, headers=headers, timeout=timeout
                ) as answer:
                    self.distrust = ""
                    return _body(answer.status_code, await self._content(answer))
            except (httpx.HTTPError, ssl.SSLError) as problem:
                last = str(problem) or type(problem).__name__
                reason = _certificate_problem(problem)
                if reason:
                    self.distrust = (
                        f"{self._peer} and this node do not take each other's certificates on "
                        f"{base.removeprefix('https://')}: {reason}"
                    )
                if not isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout):
                    break  # It may have been received: another address could do it twice.
                self._bases.append(self._bases.pop(0))
        raise UnreachableError(
            f"{self._peer} does not answer: {last}", f"Is its daemon running? Ask {self._peer}."
        )

    async def _content(self, answer: httpx.Response) -> bytes:
        content = bytearray()
        async for part in answer.aiter_bytes():
            content += part
            if len(content) > ANSWER_LIMIT_BYTES:
                raise UnreachableError(
                    f"the answer of {self._peer} is longer than {ANSWER_LIMIT_BYTES >> 20} MiB"
                )
        return bytes(content)


def _certificate_problem(problem: BaseException | None) -> str:
    """What TLS says against one of the certificates; empty for every other failure."""
    while problem is not None:
        if isinstance(problem, ssl.SSLCertVerificationError):
            return problem.verify_message
        if isinstance(problem, ssl.SSLError) and "ALERT" in (problem.reason or ""):
            return str(problem.reason).lower().replace("_", " ")
        problem = problem.__cause__ or problem.__context__
    return ""


def _body(status: int, content: bytes) -> Any:
    try:
        body = json.loads(content)
        if status < 400:
            return body
        problem = ProblemBody.model_validate(body)
    except (ValueError, ValidationError):
        raise UnreachableError(f"unexpected answer {status}") from None
    kind = _ERRORS.get(problem.code) or _BY_STATUS.get(status, RefusedError)
    raise kind(problem.text, problem.fix, code=problem.code)
