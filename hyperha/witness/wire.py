"""How requests and answers travel: a JSON object per request, at a path that names what it is.

POST /v1/clusters/{id}/modules/{module}/{what}, with the token of the cluster.
"""

from __future__ import annotations

from typing import Any

from hyperha.core import lease
from hyperha.core.lease import Answer, Request
from hyperha.encoding import from_plain, to_plain

KINDS: dict[str, type[Request]] = {
    "look": lease.Look,
    "renew": lease.Renew,
    "shrink": lease.Shrink,
    "grow": lease.Grow,
    "takeover": lease.Takeover,
    "handover": lease.HandOver,
    "register": lease.Register,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


def path_of(cluster: str, module: str, request: Request) -> str:
    """Where the request goes."""
    return f"/v1/clusters/{cluster}/modules/{module}/{_NAMES[type(request)]}"


def body_of(value: Request | Answer) -> Any:
    """The JSON object."""
    return to_plain(value)


def request_of(kind: str, body: Any) -> Request:
    """The request that a client sent. Raises EncodingError."""
    request = from_plain(KINDS[kind], body, kind)
    assert isinstance(request, Request)
    return request


def answer_of(body: Any) -> Answer:
    """The answer that a witness sent. Raises EncodingError."""
    answer = from_plain(Answer, body, "answer")
    assert isinstance(answer, Answer)
    return answer
