"""Messages between the two cores as bytes: a name and the fields, at most 1,100 bytes."""

from __future__ import annotations

import dataclasses
import json
import zlib

from hyperha.core import messages
from hyperha.core.messages import PeerMessage
from hyperha.encoding import EncodingError, from_plain, to_plain

_KINDS: dict[str, type[PeerMessage]] = {
    name: kind
    for name, kind in vars(messages).items()
    if isinstance(kind, type)
    and issubclass(kind, PeerMessage)
    and kind is not PeerMessage
    and dataclasses.is_dataclass(kind)
}


def encode(message: PeerMessage) -> bytes:
    """The bytes of a message; compressed, since a history of sixteen ids must fit a datagram."""
    body = {"k": type(message).__name__, **to_plain(message)}
    return zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 9)


def decode(raw: bytes) -> PeerMessage:
    """The message, or EncodingError; at most 16 KiB are ever unpacked."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(raw, 16384)
        body = json.loads(text)
    except (zlib.error, ValueError) as problem:
        raise EncodingError(f"peer message cannot be read: {problem}") from None
    if not isinstance(body, dict):
        raise EncodingError("peer message is not an object")
    kind = _KINDS.get(str(body.pop("k", "")))
    if kind is None:
        raise EncodingError("peer message of an unknown kind")
    message: PeerMessage = from_plain(kind, body)
    return message
