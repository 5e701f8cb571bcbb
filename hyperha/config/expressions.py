"""Reads the condition of a failover rule from text.

    local.ping.gateway is down and (remote.ping.gateway is up or not local.tcp.web is up)

`local.` may be left out. `not` binds closer than `and`, and that closer than `or`.
"""

from __future__ import annotations

import re

from hyperha.core.conditions import All, Condition, Is, Not, Side, Some
from hyperha.domain import ResourceState

_TOKEN = re.compile(r"\s*([()]|[A-Za-z0-9][A-Za-z0-9.-]*)")
_WORDS = ("and", "or", "not", "is", "(", ")")


def condition_of(text: str) -> Condition:
    """The condition. Raises ValueError saying what was expected where."""
    tokens = _tokens(text)
    found = _Reader(tokens)
    condition = found.some()
    if found.rest:
        raise ValueError(f"{found.rest[0]!r} is not expected behind {found.before!r}")
    return condition


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{text[position:].strip()[:20]!r} cannot be read")
        tokens.append(match[1])
        position = match.end()
    return tokens


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self.rest = tokens
        self.before = ""

    def _next(self, expected: str) -> str:
        if not self.rest:
            raise ValueError(f"{expected} is missing behind {self.before!r}")
        self.before = self.rest.pop(0)
        return self.before

    def _skip(self, word: str) -> bool:
        if self.rest and self.rest[0] == word:
            self._next(word)
            return True
        return False

    def some(self) -> Condition:
        parts = [self._every()]
        while self._skip("or"):
            parts.append(self._every())
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def _every(self) -> Condition:
        parts = [self._one()]
        while self._skip("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self) -> Condition:
        if self._skip("not"):
            return Not(self._one())
        if self._skip("("):
            inner = self.some()
            if not self._skip(")"):
                raise ValueError(f"')' is missing behind {self.before!r}")
            return inner
        return self._test()

    def _test(self) -> Is:
        name = self._next("a resource, as in ping.gateway,")
        first, _, rest = name.partition(".")
        side = Side(first) if first in set(Side) else Side.LOCAL
        resource = rest if first in set(Side) else name
        if name in _WORDS or resource.count(".") != 1:
            raise ValueError(f"{name!r} is no resource: write KIND.NAME, as in ping.gateway")
        if not self._skip("is"):
            raise ValueError(f"'is' is missing behind {name!r}")
        state = self._next("up, down, init or unknown")
        if state not in set(ResourceState):
            raise ValueError(f"{state!r} is no state: up, down, init or unknown")
        return Is(side, resource, ResourceState(state))
