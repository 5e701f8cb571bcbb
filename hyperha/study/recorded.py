"""Values of the core as JSON, and back exactly: what a replay steps through again.

Each dataclass and enumeration carries its name, so that an event or action of any kind can be read
without knowing which one it is. A field that has its default is left out. Pure.
"""

from __future__ import annotations

import dataclasses
import functools
from enum import Enum
from types import ModuleType
from typing import Any

from hyperha import domain
from hyperha.core import (
    actions,
    conditions,
    events,
    facts,
    lease,
    messages,
    options,
    records,
    state,
)

_MODULES: tuple[ModuleType, ...] = (
    *(actions, conditions, domain, events, facts, lease, messages, options, records, state),
)
_CLASS, _ENUM, _MEMBER = "class", "enum", "value"


class RecordedError(ValueError):
    """A recorded value that this release does not understand; the text names it."""


@functools.cache
def _kinds() -> dict[str, type]:
    """Every dataclass and enumeration of the core by its qualified name."""
    found = {}
    for module in _MODULES:
        short = module.__name__.rpartition(".")[2]
        for name, kind in vars(module).items():
            own = isinstance(kind, type) and kind.__module__ == module.__name__
            if own and (dataclasses.is_dataclass(kind) or issubclass(kind, Enum)):
                found[f"{short}.{name}"] = kind
    return found


@functools.cache
def _names() -> dict[type, str]:
    return {kind: name for name, kind in _kinds().items()}


def plain(value: object) -> Any:
    """The value as JSON has it. Raises RecordedError for what no part of the core is."""
    if isinstance(value, Enum):
        return {_ENUM: _name(type(value)), _MEMBER: value.value}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found: dict[str, Any] = {_CLASS: _name(type(value))}
        for field in dataclasses.fields(value):
            one = getattr(value, field.name)
            if field.default is dataclasses.MISSING or one != field.default:
                found[field.name] = plain(one)
        return found
    raise RecordedError(f"a {type(value).__name__} is no value of the core")


def _name(kind: type) -> str:
    try:
        return _names()[kind]
    except KeyError:
        raise RecordedError(f"{kind.__name__} is not of the core") from None


def value(found: Any) -> Any:
    """The value that `plain` was given. Raises RecordedError naming what is wrong."""
    if isinstance(found, list):
        return tuple(value(one) for one in found)
    if not isinstance(found, dict):
        return found
    if _ENUM in found:
        return _member(str(found[_ENUM]), found.get(_MEMBER))
    name = str(found.get(_CLASS, ""))
    kind = _kinds().get(name)
    if kind is None or issubclass(kind, Enum):
        raise RecordedError(f"{name or repr(found)} is not known to this release")
    fields = {key: value(one) for key, one in found.items() if key != _CLASS}
    try:
        return kind(**fields)
    except TypeError as problem:
        raise RecordedError(f"{name}: {problem}") from None


def _member(name: str, wanted: Any) -> Enum:
    kind = _kinds().get(name)
    if kind is None or not issubclass(kind, Enum):
        raise RecordedError(f"{name} is not known to this release")
    try:
        return kind(wanted)
    except ValueError:
        raise RecordedError(f"{name} has no {wanted!r}") from None
