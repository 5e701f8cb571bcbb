"""The first bytes of a replication connection: fixed size, in plain, before any TLS.

The daemon's listener reads them and hands the socket to the module's process. They prove nothing
(TLS does, and the handshake behind it): they say which process the connection is for. Pure.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from hyperha.domain import MODULE_NAME_PATTERN, NODE_NAME_PATTERN, Epoch, SessionKey
from hyperha.errors import ReplicationError

MAGIC: Final = b"hyperha\n"
VERSION: Final = 3
_LAYOUT: Final = struct.Struct("<8sHBBHBx16s32s16sQ32sQ32s16s")
SIZE: Final = 256
_CHECKSUM_SIZE: Final = 16
_PADDING: Final = SIZE - _LAYOUT.size - _CHECKSUM_SIZE


class Direction(IntEnum):
    """A session has one connection per direction, each used by one thread per end (T5)."""

    FORWARD = 1
    """Primary to secondary: operations."""
    BACKWARD = 2
    """Secondary to primary: acknowledgements."""


@dataclass(frozen=True, slots=True)
class Preamble:
    """Which cluster, module and session a connection belongs to."""

    cluster_hash: bytes
    module: str
    number: int
    node: str
    """Who connects."""
    session: SessionKey
    direction: Direction
    pair: bytes
    """16 random bytes that both connections of one attempt have in common."""
    encrypted: bool
    resumes: bool = False
    """The session is to go on over this connection (T4)."""


def cluster_hash(cluster_id: str) -> bytes:
    """16 bytes that stand for a cluster's id, so that strangers are refused before TLS."""
    return hashlib.sha256(b"hyperha cluster " + cluster_id.encode()).digest()[:16]


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("ascii")


def encode(preamble: Preamble) -> bytes:
    """The 256 bytes of a preamble."""
    key = preamble.session
    body = _LAYOUT.pack(
        MAGIC,
        VERSION,
        preamble.direction,
        1 if preamble.encrypted else 0,
        preamble.number,
        1 if preamble.resumes else 0,
        preamble.cluster_hash,
        preamble.module.encode(),
        preamble.pair,
        key.epoch.counter,
        key.epoch.node.encode(),
        key.number,
        preamble.node.encode(),
        bytes.fromhex(key.generation) if key.generation else b"",
    )
    body += b"\0" * _PADDING
    return body + hashlib.sha256(body).digest()[:_CHECKSUM_SIZE]


def decode(raw: bytes) -> Preamble:
    """Read a preamble. Raises ReplicationError for anything that is not exactly one."""
    if len(raw) != SIZE:
        raise ReplicationError(f"a replication preamble has {SIZE} bytes, not {len(raw)}")
    if raw[:8] != MAGIC:
        raise ReplicationError("the connection does not speak hyperha's replication protocol")
    body, checksum = raw[:-_CHECKSUM_SIZE], raw[-_CHECKSUM_SIZE:]
    if hashlib.sha256(body).digest()[:_CHECKSUM_SIZE] != checksum:
        raise ReplicationError("the replication preamble is damaged")
    fields = _LAYOUT.unpack_from(body)
    _, version, direction, encrypted, number, resumes, cluster, module, pair = fields[:9]
    counter, epoch_node, session_number, node, generation = fields[9:]
    if version != VERSION:
        raise ReplicationError(
            f"the peer speaks replication version {version}, this node {VERSION}",
            "Install the same hyperha on both nodes.",
        )
    try:
        module_text, node_text, epoch_text = _text(module), _text(node), _text(epoch_node)
        way = Direction(direction)
    except ValueError as problem:
        raise ReplicationError(f"the replication preamble is malformed ({problem})") from None
    if not MODULE_NAME_PATTERN.fullmatch(module_text) or not NODE_NAME_PATTERN.fullmatch(node_text):
        raise ReplicationError(f"the preamble names module {module_text!r}, node {node_text!r}")
    if encrypted not in (0, 1):
        raise ReplicationError(f"the preamble says {encrypted} where 0 (plain) or 1 (TLS) belongs")
    if resumes not in (0, 1):
        raise ReplicationError(f"the preamble says {resumes} where 0 (new) or 1 (resumed) belongs")
    hexadecimal = generation.hex() if generation.strip(b"\0") else ""
    key = SessionKey(hexadecimal, Epoch(counter, epoch_text), session_number)
    return Preamble(
        cluster, module_text, number, node_text, key, way, pair, encrypted == 1, resumes == 1
    )
