"""The one place where text from nodes, guests and scripts is cleaned before it is kept."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from hyperha.text import clean

M = TypeVar("M", bound=BaseModel)


def cleaned(model: M) -> M:
    """The same answer with every text printable, on one line and without control characters."""
    return type(model).model_validate(_tree(model.model_dump()))


def _tree(value: Any) -> Any:
    if type(value) is str:
        return clean(value)
    if isinstance(value, dict):
        return {_tree(key): _tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tree(item) for item in value]
    return value
