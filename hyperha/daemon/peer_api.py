"""The other node's API over mutual TLS: its report for our cluster view, and forwarded commands."""

from __future__ import annotations

import contextlib
import logging
import ssl
from typing import Any

import httpx
from pydantic import ValidationError

from hyperha.api.app import FORWARDED_NAME, FORWARDED_ROLE
from hyperha.api.service import Caller
from hyperha.api.wire import (
    Accepted,
    ActionRequest,
    CheckerChange,
    NodeReport,
    OperationView,
    ProblemBody,
)
from hyperha.errors import (
    BusyError,
    HyperhaError,
    LossError,
    NotFoundError,
    RefusedError,
    StaleViewError,
    UnreachableError,
    UsageError,
)

_log = logging.getLogger(__name__)
_ERRORS: dict[str, type[HyperhaError]] = {
    kind.code: kind
    for kind in (BusyError, LossError, NotFoundError, RefusedError, StaleViewError, UsageError)
}
_BY_STATUS: dict[int, type[HyperhaError]] = {404: NotFoundError, 409: RefusedError, 423: BusyError}


class PeerApi:
    """Talks to the other node on the first of its addresses that answers."""

    def __init__(
        self, peer: str, addresses: tuple[str, ...], port: int, context: ssl.SSLContext
    ) -> None:
        self._peer = peer
        self._bases = [
            f"https://[{address}]:{port}" if ":" in address else f"https://{address}:{port}"
            for address in addresses
        ]
        self._client = httpx.AsyncClient(
            verify=context, timeout=httpx.Timeout(3.0, connect=1.0), trust_env=False
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def report(self) -> NodeReport | None:
        """The other node's own report; None when it does not answer."""
        with contextlib.suppress(HyperhaError, ValidationError):
            body = await self._ask("GET", "/v1/node", None, None)
            return NodeReport.model_validate(body)
        return None

    async def act(self, module: str, request: ActionRequest, caller: Caller) -> Accepted:
        """Forward a command with the user's name and role."""
        body = await self._ask("POST", f"/v1/modules/{module}/actions", request, caller)
        return Accepted.model_validate(body)

    async def change_checker(
        self, module: str, checker: str, change: CheckerChange, caller: Caller
    ) -> Accepted:
        """Forward a suspension or its end."""
        path = f"/v1/modules/{module}/checkers/{checker}"
        return Accepted.model_validate(await self._ask("PUT", path, change, caller))

    async def operation(self, operation_id: str) -> OperationView:
        """How a forwarded command stands."""
        body = await self._ask("GET", f"/v1/operations/{operation_id}", None, None)
        return OperationView.model_validate(body)

    async def _ask(
        self,
        method: str,
        path: str,
        request: ActionRequest | CheckerChange | None,
        caller: Caller | None,
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
                answer = await self._client.request(
                    method, base + path, content=content, headers=headers
                )
            except (httpx.HTTPError, ssl.SSLError) as problem:
                last = str(problem) or type(problem).__name__
                if not isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout):
                    break  # It may have been received: another address could do it twice.
                self._bases.append(self._bases.pop(0))
                continue
            return _body(answer)
        raise UnreachableError(
            f"{self._peer} does not answer: {last}", f"Is its daemon running? Ask {self._peer}."
        )


def _body(answer: httpx.Response) -> Any:
    if answer.status_code < 400:
        return answer.json()
    try:
        problem = ProblemBody.model_validate(answer.json())
    except (ValueError, ValidationError):
        raise UnreachableError(f"unexpected answer {answer.status_code}") from None
    kind = _ERRORS.get(problem.code) or _BY_STATUS.get(answer.status_code, RefusedError)
    raise kind(problem.text, problem.fix, code=problem.code)
