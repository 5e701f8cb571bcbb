"""What travels in a heartbeat datagram, as bytes and as values. Pure; standard library only.

    header   magic "HHB1", cluster tag, sender index, kind, instance, counter, nonce, echoed nonce
    body     by kind: heartbeat, message, acknowledgement, certificate

Everything is at most 1,200 bytes with the seal that `seal` adds, also with 32 modules, so that no
datagram is ever fragmented (L9).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from hyperha.domain import DataState, Epoch, Readiness, Role

MAGIC = b"HHB1"
DATAGRAM_LIMIT = 1200
SEAL_BYTES = 16
MESSAGE_LIMIT = 1100
NO_INSTANCE = bytes(16)
NO_NONCE = bytes(8)

_HEADER = struct.Struct("<4s4sBBH16sQ8s8s")
_HEARTBEAT = struct.Struct("<16sQ16sQIB")
_MODULE = struct.Struct("<BBBBI8s")
_MESSAGE = struct.Struct("<QB")
_CERTIFICATE = struct.Struct("<16sBQQB")

_ROLES = tuple(Role)
_READINESS = tuple(Readiness)
_DATA = tuple(DataState)
_STOPPING, _WANTED = 1, 2


class FrameError(ValueError):
    """Bytes that are no frame of this protocol."""


class Kind(IntEnum):
    """The kinds of datagrams."""

    HEARTBEAT = 1
    MESSAGE = 2
    ACKNOWLEDGEMENT = 3
    CERTIFICATE = 4


@dataclass(frozen=True, slots=True)
class Header:
    """Who sent a datagram, and its place in the order of that sender's datagrams.

    `sender` is the node's index in the cluster's list; `instance` 16 random bytes of the sending
    process; `counter` grows with every datagram of the instance. `nonce` is the sender's current
    challenge, `echoed_nonce` the newest one it heard from the other node (L9).
    """

    cluster_tag: bytes
    sender: int
    instance: bytes
    counter: int
    nonce: bytes = NO_NONCE
    echoed_nonce: bytes = NO_NONCE


@dataclass(frozen=True, slots=True)
class ModuleStatus:
    """What a node says about its side of a module: durable state only, never a proof (P7).

    `generation` is the first 16 hexadecimal digits of the current generation, or empty.
    """

    number: int
    role: Role
    readiness: Readiness
    data: DataState
    epoch: int = 0
    generation: str = ""
    stopping: bool = False
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life: whose, when by its CLOCK_BOOTTIME, and what it received on this LAN (L9)."""

    boot_id: bytes
    clock_ms: int
    echo_instance: bytes
    echo_counter: int
    config_version: int
    modules: tuple[ModuleStatus, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """Opaque bytes from one core to the other, at most 1,100; `id` is unique in the instance."""

    id: int
    module: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The messages that have arrived; sent also for duplicates."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Certificate:
    """The sender's guardian has fenced this run and seen the exit of all its processes (L8)."""

    guardian: bytes
    module: int
    run: int
    epoch: Epoch


Body = Heartbeat | Message | Acknowledgement | Certificate


def encode(header: Header, body: Body) -> bytes:
    """The bytes of a frame, without seal. Raises FrameError when it would be too large."""
    if isinstance(body, Heartbeat):
        kind, raw = Kind.HEARTBEAT, _encode_heartbeat(body)
    elif isinstance(body, Message):
        if len(body.payload) > MESSAGE_LIMIT:
            raise FrameError(f"a message of {len(body.payload)} bytes exceeds {MESSAGE_LIMIT}")
        kind, raw = Kind.MESSAGE, _MESSAGE.pack(body.id, body.module) + body.payload
    elif isinstance(body, Acknowledgement):
        kind, raw = Kind.ACKNOWLEDGEMENT, struct.pack(f"<{len(body.ids)}Q", *body.ids)
    else:
        node = body.epoch.node.encode("ascii")
        kind = Kind.CERTIFICATE
        raw = _CERTIFICATE.pack(body.guardian, body.module, body.run, body.epoch.counter, len(node))
        raw += node
    packed = _HEADER.pack(
        MAGIC,
        header.cluster_tag,
        header.sender,
        kind,
        0,
        header.instance,
        header.counter,
        header.nonce,
        header.echoed_nonce,
    )
    if len(packed) + len(raw) > DATAGRAM_LIMIT - SEAL_BYTES:
        raise FrameError(f"a frame of {len(packed) + len(raw)} bytes is too large")
    return packed + raw


def decode(raw: bytes) -> tuple[Header, Body]:
    """Header and body of an authenticated frame; FrameError when it is malformed."""
    if len(raw) < _HEADER.size:
        raise FrameError(f"{len(raw)} bytes are no frame")
    magic, tag, sender, kind, zero, instance, counter, nonce, echoed = _HEADER.unpack_from(raw)
    if magic != MAGIC or zero:
        raise FrameError("not a frame of this protocol version")
    header = Header(tag, sender, instance, counter, nonce, echoed)
    body = raw[_HEADER.size :]
    try:
        if kind == Kind.HEARTBEAT:
            return header, _decode_heartbeat(body)
        if kind == Kind.MESSAGE:
            number, module = _MESSAGE.unpack_from(body)
            return header, Message(number, module, body[_MESSAGE.size :])
        if kind == Kind.ACKNOWLEDGEMENT:
            return header, Acknowledgement(struct.unpack(f"<{len(body) // 8}Q", body))
        if kind == Kind.CERTIFICATE:
            return header, _decode_certificate(body)
    except (struct.error, IndexError, UnicodeDecodeError) as problem:
        raise FrameError(f"malformed body of kind {kind}: {problem}") from problem
    raise FrameError(f"unknown kind {kind}")


def _encode_heartbeat(body: Heartbeat) -> bytes:
    parts = [
        _HEARTBEAT.pack(
            body.boot_id,
            body.clock_ms,
            body.echo_instance,
            body.echo_counter,
            body.config_version,
            len(body.modules),
        )
    ]
    for status in body.modules:
        state = (
            _ROLES.index(status.role)
            | _READINESS.index(status.readiness) << 3
            | _DATA.index(status.data) << 5
        )
        flags = _STOPPING * status.stopping | _WANTED * status.wanted
        generation = bytes.fromhex(status.generation[:16]) if status.generation else bytes(8)
        parts.append(
            _MODULE.pack(status.number, state, flags, 0, status.epoch & 0xFFFFFFFF, generation)
        )
    return b"".join(parts)


def _decode_heartbeat(raw: bytes) -> Heartbeat:
    boot_id, clock_ms, echo_instance, echo_counter, version, count = _HEARTBEAT.unpack_from(raw)
    if len(raw) != _HEARTBEAT.size + count * _MODULE.size:
        raise FrameError(f"a heartbeat of {count} modules does not have {len(raw)} bytes")
    modules = []
    for number, state, flags, _, epoch, generation in _MODULE.iter_unpack(raw[_HEARTBEAT.size :]):
        modules.append(
            ModuleStatus(
                number=number,
                role=_ROLES[state & 7],
                readiness=_READINESS[state >> 3 & 3],
                data=_DATA[state >> 5 & 7],
                epoch=epoch,
                generation=generation.hex() if any(generation) else "",
                stopping=bool(flags & _STOPPING),
                wanted=bool(flags & _WANTED),
            )
        )
    return Heartbeat(boot_id, clock_ms, echo_instance, echo_counter, version, tuple(modules))


def _decode_certificate(raw: bytes) -> Certificate:
    guardian, module, run, counter, length = _CERTIFICATE.unpack_from(raw)
    node = raw[_CERTIFICATE.size :]
    if len(node) != length:
        raise FrameError("a certificate's node name has another length than stated")
    return Certificate(guardian, module, run, Epoch(counter, node.decode("ascii")))
