"""Changes as plain tuples, for the shared table that a successor reads (M4).

Only what `marshal` takes: ints, bytes, tuples, names. Not a wire or disk format: writer and reader
are processes of the same installed version on one machine.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from hyperha.replication import operations
from hyperha.replication.operations import Attributes, Change, Target

Plain = tuple[Any, ...]

_KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__: kind
    for kind in (
        operations.Create,
        operations.Link,
        operations.Remove,
        operations.Rename,
        operations.SetAttributes,
        operations.Truncate,
        operations.Allocate,
        operations.SetXattr,
        operations.SetTimes,
        Attributes,
        Target,
    )
}


def encode(change: Change | None) -> Plain:
    """A change as a tuple; an empty one for None."""
    return () if change is None else _encode(change)


def _encode(value: Any) -> Plain:
    fields = []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        fields.append(("#", _encode(item)) if dataclasses.is_dataclass(item) else item)
    return (type(value).__name__, *fields)


def decode(plain: Plain) -> Change | None:
    """The change back; None for an empty tuple. KeyError for what was never encoded here."""
    if not plain:
        return None
    change: Change = _decode(plain)
    return change


def _decode(plain: Plain) -> Any:
    kind, *fields = plain
    return _KINDS[kind](*[_decode(f[1]) if _nested(f) else f for f in fields])


def _nested(field: Any) -> bool:
    return isinstance(field, tuple) and len(field) == 2 and field[0] == "#"
