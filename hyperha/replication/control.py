"""Messages between the daemon and a module's replication process, and their codec.

One message is one packet of the SOCK_SEQPACKET control channel: JSON with a type tag, decoded
strictly by the types of the dataclass. Descriptors travel beside a packet (SCM_RIGHTS) and are
named by what the message is. Pure: no sockets here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from hyperha.core import actions, events
from hyperha.errors import ReplicationError

PACKET_LIMIT: Final = 160 * 1024
"""Bytes of one packet; below the smallest socket buffer that Linux gives by itself."""


class ProcessMessage:
    """Root of the messages that are neither actions nor events of the core."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files for mutual TLS are."""

    ca: str
    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class PeerLink:
    """One LAN that replication may use; `tls` None only where the operator declared it private."""

    lan: str
    peer_address: str
    peer_port: int
    local_address: str
    tls: TlsFiles | None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything a replication process is told at its start. Times in milliseconds."""

    cluster_id: str
    module: str
    number: int
    node: str
    peer: str
    folder: str
    run_directory: str
    links: tuple[PeerLink, ...]
    """In order of preference."""
    suspect_ms: int = 1500
    stall_limit_ms: int = 3000
    strict: bool = False
    """durability = "strict": every write is a barrier."""
    resync_rate_mib_s: int = 0
    """0: bounded by the guest's latency only."""
    kernel_features_off: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Start(ProcessMessage):
    """First message to the process. A successor (M4) gets with it the kept descriptors, in the
    order of `descriptors`, and answers with `TakenOver`."""

    config: EngineConfig
    successor: bool = False
    descriptors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TakeSocket(ProcessMessage):
    """A TCP connection that the daemon accepted on `lan`; its preamble was read (hexadecimal)."""

    lan: str
    preamble: str


@dataclass(frozen=True, slots=True)
class Descriptors(ProcessMessage):
    """Duplicates for the daemon to keep: names in the order of the descriptors beside it.

    `folder` (the plain folder below the mount), `device` (/dev/fuse) and `table` are kept for a
    successor (M4); `fence` arms the guardian (L5'), and the field of that name says of which kind
    it is. Without rights there may be no fence. A new set replaces the former one, whose
    descriptors are to be closed.
    """

    names: tuple[str, ...]
    fence: str = ""


@dataclass(frozen=True, slots=True)
class TakenOver(ProcessMessage):
    """A successor's first word: whether it serves the mount of its predecessor (M4)."""

    ok: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class Statistics(ProcessMessage):
    """What the process does, every second while the folder is covered."""

    session: str
    """`none`, `connecting`, `up`, `resync`, `serving`."""
    acknowledge: str
    """`local`, `both`, `none`, or `standby`."""
    parked: int
    oldest_parked_ms: int
    writes: int
    """Since the start."""
    written_bytes: int
    log_records: int
    log_capacity: int
    queue_bytes: int
    """Received and not yet applied (secondary), or not yet acknowledged (primary)."""
    handles_open: int
    heard_ms_ago: int = -1
    """Since the last frame of the peer in a session that is up; -1 without one."""


@dataclass(frozen=True, slots=True)
class LogLine(ProcessMessage):
    """One line for the module's log. `level`: I, W or E; `rule`: the rule it follows, or empty."""

    level: str
    rule: str
    text: str


Message = actions.EngineAction | events.Event | ProcessMessage

_EVENTS: Final = (
    events.EngineDone,
    events.SessionUp,
    events.SessionLost,
    events.SessionStalled,
    events.ResyncProgressed,
    events.ResyncCopied,
    events.LocalDiskFailed,
    events.MountLost,
)


def _all_types() -> dict[str, type]:
    found: dict[str, type] = {kind.__name__: kind for kind in _EVENTS}
    # By name, since a class with slots leaves its unslotted twin among the subclasses.
    for root, home in ((actions.EngineAction, vars(actions)), (ProcessMessage, globals())):
        for name, kind in list(home.items()):
            if isinstance(kind, type) and issubclass(kind, root) and kind is not root:
                found[name] = kind
    return found


_TYPES: Final = _all_types()


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Field name -> (type, required)."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: (hints[field.name], field.default is dataclasses.MISSING)
        for field in dataclasses.fields(kind)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str | int | bool) or value is None:
        return value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in _fields(type(value))}
    raise ReplicationError(f"a control message cannot carry a {type(value).__name__}")


def encode(message: Message) -> bytes:
    """The packet of one message. Raises ReplicationError when it would not fit."""
    name = type(message).__name__
    if _TYPES.get(name) is not type(message):
        raise ReplicationError(f"{name} is no message of the control channel")
    body = {"type": name, **_plain(message)}
    raw = json.dumps(body, separators=(",", ":"), ensure_ascii=True).encode()
    if len(raw) > PACKET_LIMIT:
        raise ReplicationError(f"control message {name} of {len(raw)} bytes is too large")
    return raw


def decode(raw: bytes) -> Message:
    """The message of one packet. Raises ReplicationError naming what is wrong with it."""
    try:
        body = json.loads(raw)
    except ValueError as problem:
        raise ReplicationError(f"control message is not JSON ({problem})") from None
    if not isinstance(body, dict):
        raise ReplicationError("control message is not a JSON object")
    name = body.pop("type", None)
    kind = _TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ReplicationError(f"control message has the unknown type {name!r}")
    message: Message = _build(kind, body, str(name))
    return message


def _build(kind: type, body: Any, where: str) -> Any:
    if not isinstance(body, dict):
        raise ReplicationError(f"{where}: an object is expected, not {body!r}")
    fields = _fields(kind)
    unknown = sorted(set(body) - set(fields))
    if unknown:
        raise ReplicationError(f"{where}: unknown key {unknown[0]!r}")
    arguments = {}
    for name, (hint, required) in fields.items():
        if name in body:
            arguments[name] = _value(hint, body[name], f"{where}.{name}")
        elif required:
            raise ReplicationError(f"{where}: the key {name!r} is missing")
    return kind(**arguments)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        choices = typing.get_args(hint)
        if value is None and type(None) in choices:
            return None
        (rest,) = [choice for choice in choices if choice is not type(None)]
        return _value(rest, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ReplicationError(f"{where}: a list is expected, not {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_value(item, one, f"{where}[{i}]") for i, one in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise ReplicationError(f"{where}: unknown value {value!r}") from None
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise ReplicationError(f"{where}: {getattr(hint, '__name__', hint)} expected, not {value!r}")
