"""Frozen dataclasses to plain JSON values and back, decoded strictly by their types.

For what crosses a process or a power cut: durable records, messages between the nodes' cores, the
journal. Unknown keys, missing keys and wrong types are errors, never guesses. Pure.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from enum import Enum
from typing import Any


class EncodingError(ValueError):
    """A value that is not what its type says; the text names the place."""


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Field name to (type, required)."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: (
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(kind)
    }


def to_plain(value: Any) -> Any:
    """The JSON value of a dataclass, enumeration, tuple or scalar; defaults are left out."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str | int | bool) or value is None:
        return value
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.default is dataclasses.MISSING or item != field.default:
                plain[field.name] = to_plain(item)
        return plain
    raise EncodingError(f"a {type(value).__name__} cannot be encoded")


def from_plain(kind: type, body: Any, where: str = "") -> Any:
    """The dataclass of a JSON object. Raises EncodingError naming the place that is wrong."""
    where = where or kind.__name__
    if not isinstance(body, dict):
        raise EncodingError(f"{where}: an object is expected, not {body!r}")
    fields = _fields(kind)
    unknown = sorted(set(body) - set(fields))
    if unknown:
        raise EncodingError(f"{where}: unknown key {unknown[0]!r}")
    arguments = {}
    for name, (hint, required) in fields.items():
        if name in body:
            arguments[name] = _value(hint, body[name], f"{where}.{name}")
        elif required:
            raise EncodingError(f"{where}: the key {name!r} is missing")
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
            raise EncodingError(f"{where}: a list is expected, not {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_value(item, one, f"{where}[{i}]") for i, one in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise EncodingError(f"{where}: unknown value {value!r}") from None
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise EncodingError(f"{where}: {getattr(hint, '__name__', hint)} expected, not {value!r}")
