"""What both ends say before a session begins, and what they must agree on (H3, G4). Pure.

`HELLO` goes from the primary, `WELCOME` or `REFUSED` back; JSON, since it is read by people when
something does not fit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from hyperha.core.actions import SessionStart
from hyperha.domain import Epoch, SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication.wire import ZONE_BYTES

PROTOCOL: Final = 6
NOT_EXPECTED: Final = "not expected"
"""Refusal of a session that the secondary's core has not ordered (yet): worth another try."""
GONE: Final = "gone"
"""Refusal to go on with a session that this process does not serve, or not any more (T4)."""
BROKEN: Final = "broken"
"""Refusal of a line of which one half does not do: it says nothing of the session (T4)."""
WORTH_ANOTHER_TRY: Final = (NOT_EXPECTED, BROKEN)


@dataclass(frozen=True, slots=True)
class Hello:
    """The primary's offer. `candidates`: -1 means everything."""

    session: SessionKey
    start: SessionStart
    candidates: int
    seed: int
    """Of the digests of this session's resync."""
    least_bytes: int = -1
    """What a full copy needs at least; -1: not known, or only a part is copied."""
    instance: str = ""
    """The session is to go on (T4): of the process that serves it. Empty: it is to begin."""
    answers: int = 0
    """How many answers of the secondary's copy have come, when the session goes on."""
    attempt: int = 0
    """Grows with every try to go on: one that comes late, over a slow LAN, is not to be served."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The secondary's answer."""

    candidates: int
    instance: str
    """Of the secondary's process."""
    received: int = 0
    """Frames of the session that it has, when the session goes on (T4)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the secondary does not serve the session."""

    code: str
    text: str


def encode_hello(hello: Hello) -> bytes:
    """Payload of HELLO."""
    key = hello.session
    body = {
        "protocol": PROTOCOL,
        "zone": ZONE_BYTES,
        "generation": key.generation,
        "counter": key.epoch.counter,
        "node": key.epoch.node,
        "number": key.number,
        "start": hello.start.value,
        "candidates": hello.candidates,
        "seed": hello.seed,
        "least_bytes": hello.least_bytes,
        "instance": hello.instance,
        "answers": hello.answers,
        "attempt": hello.attempt,
    }
    return json.dumps(body).encode()


def decode_hello(payload: bytes | memoryview) -> Hello:
    """Read HELLO. Raises ReplicationError naming what does not fit."""
    body = _object(payload, "hello")
    for name, mine in (("protocol", PROTOCOL), ("zone", ZONE_BYTES)):
        if body.get(name) != mine:
            raise ReplicationError(
                f"the peer's replication {name} is {body.get(name)!r}, this node's {mine}",
                "Install the same hyperha on both nodes.",
            )
    try:
        start = SessionStart(_text(body, "start"))
    except ValueError:
        raise ReplicationError(f"the hello says start {body.get('start')!r}") from None
    epoch = Epoch(_number(body, "counter"), _text(body, "node"))
    key = SessionKey(_text(body, "generation"), epoch, _number(body, "number"))
    candidates, seed = _number(body, "candidates"), _number(body, "seed")
    least = _number(body, "least_bytes")
    instance, answers = _text(body, "instance"), _number(body, "answers")
    attempt = _number(body, "attempt")
    return Hello(key, start, candidates, seed, least, instance, answers, attempt)


def encode_welcome(welcome: Welcome) -> bytes:
    """Payload of WELCOME."""
    body = {
        "candidates": welcome.candidates,
        "instance": welcome.instance,
        "received": welcome.received,
    }
    return json.dumps(body).encode()


def decode_welcome(payload: bytes | memoryview) -> Welcome:
    """Read WELCOME."""
    body = _object(payload, "welcome")
    received = _number(body, "received")
    return Welcome(_number(body, "candidates"), _text(body, "instance"), received)


def encode_refusal(refusal: Refusal) -> bytes:
    """Payload of REFUSED."""
    return json.dumps({"code": refusal.code, "text": refusal.text[:1000]}).encode()


def decode_refusal(payload: bytes | memoryview) -> Refusal:
    """Read REFUSED."""
    body = _object(payload, "refusal")
    return Refusal(_text(body, "code"), _text(body, "text"))


def contradiction(start: SessionStart, mine: int, theirs: int) -> str:
    """Why a session may not begin this way, or nothing (G4: equal names never mean equal data)."""
    if start is SessionStart.IN_SYNC and (mine or theirs):
        return (
            f"the session is to begin in sync, but candidates for a resync are left: "
            f"{_count(mine)} here, {_count(theirs)} on the peer (G4)"
        )
    return ""


def _count(candidates: int) -> str:
    return "everything" if candidates < 0 else str(candidates)


def _object(payload: bytes | memoryview, what: str) -> dict[str, object]:
    try:
        body = json.loads(bytes(payload))
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ReplicationError(f"the peer's {what} is not a JSON object")
    return body


def _number(body: dict[str, object], name: str) -> int:
    value = body.get(name)
    if type(value) is not int or not -1 <= value < 1 << 64:
        raise ReplicationError(f"the peer says {value!r} for {name}")
    return value


def _text(body: dict[str, object], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or len(value) > 4096:
        raise ReplicationError(f"the peer says {value!r} for {name}")
    return value
