"""Builds of the product without exactly one of the calls that make something durable.

The calls are found in the source, so that a new one needs a test that misses it. A build is made by
giving one function the code that it has without the call; nothing else of the process changes.

    os.fsync(...), os.fdatasync(...), syncfs, helpers     not done
    O_DSYNC                                               not asked for
    syncer.file(..., done), syncer.everything(done)       `done` at once, nothing synced
    barriers.start(done)                                  `done` at once, no barrier
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

MODULES = (
    "hyperha.durable",
    "hyperha.daemon.records",
    "hyperha.replication.intent_log",
    "hyperha.replication.marker",
    "hyperha.replication.touched",
    "hyperha.replication.store",
    "hyperha.replication.syncer",
    "hyperha.replication.barriers",
    "hyperha.replication.parking",
    "hyperha.replication.primary",
    "hyperha.replication.applier",
    "hyperha.replication.secondary",
    "hyperha.replication.acceptor",
    "hyperha.replication.resync_source",
    "hyperha.replication.resync_target",
    "hyperha.replication.safety.undo_log",
)
_SYNCING = {"fsync", "fdatasync", "sync_file_system", "sync_all", "_sync_directory"}
_HANDED_ON = {"file", "everything"}


@dataclass(frozen=True, slots=True)
class Site:
    """One call: the `number`-th of its function."""

    module: str
    function: str
    number: int
    text: str

    def __str__(self) -> str:
        short = self.module.removeprefix("hyperha.")
        return f"{short}.{self.function}#{self.number}"


def _attribute(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else ""


def _owner(node: ast.AST) -> str:
    """`store` of `self._store.sync`."""
    if not isinstance(node, ast.Attribute):
        return ""
    value = node.value
    name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return str(name).lstrip("_")


def _none() -> ast.Constant:
    return ast.Constant(value=None)


def _without(node: ast.AST) -> ast.AST | None:
    """What takes the node's place, or None where nothing is made durable by it."""
    if isinstance(node, ast.Attribute) and node.attr == "O_DSYNC":
        return ast.Constant(value=0)
    if not isinstance(node, ast.Call):
        return None
    called = node.func
    name = called.id if isinstance(called, ast.Name) else _attribute(called)
    if name == "getattr" and any(getattr(one, "value", "") == "O_DSYNC" for one in node.args):
        return ast.Constant(value=0)
    if name in _SYNCING or (name == "sync" and _owner(called) == "store"):
        return _none()
    if name in _HANDED_ON and _owner(called) == "syncer":
        return ast.Call(func=node.args[-1], args=[_none()], keywords=[])
    if name == "start" and _owner(called) == "barriers":
        done = [ast.Constant(value=True), ast.Constant(value="")]
        return ast.Call(func=node.args[0], args=list(done), keywords=[])
    return None


class _Walker(ast.NodeTransformer):
    """Counts the calls of each function; takes one away if it is told which."""

    def __init__(self, wanted: tuple[str, int] | None = None) -> None:
        self._wanted = wanted
        self._names: list[str] = []
        self._functions = 0
        self._counts: dict[str, int] = {}
        self.found: list[tuple[str, int, str]] = []

    def visit(self, node: ast.AST) -> Any:
        """As `NodeTransformer`, knowing which function it is in."""
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            inner = bool(self._functions)
            function = isinstance(node, ast.FunctionDef)
            if not inner:
                self._names.append(node.name)
            self._functions += function
            self.generic_visit(node)
            self._functions -= function
            if not inner:
                self._names.pop()
            return node
        instead = _without(node) if self._functions else None
        if instead is None:
            return self.generic_visit(node)
        name = ".".join(self._names)
        number = self._counts[name] = self._counts.get(name, 0) + 1
        self.found.append((name, number, ast.unparse(node)))
        if self._wanted == (name, number):
            return ast.copy_location(instead, node)
        return self.generic_visit(node)


def sites() -> list[Site]:
    """Every call that makes something durable, in the modules that are looked at."""
    found = []
    for module in MODULES:
        walker = _Walker()
        walker.visit(ast.parse(inspect.getsource(importlib.import_module(module))))
        found += [Site(module, *one) for one in walker.found]
    return found


def _code(code: CodeType, path: list[str]) -> CodeType:
    for name in path:
        code = next(
            one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == name
        )
    return code


@contextlib.contextmanager
def build_without(site: Site) -> Iterator[None]:
    """While this lasts the product does not make this call."""
    module = importlib.import_module(site.module)
    walker = _Walker((site.function, site.number))
    tree = walker.visit(ast.parse(inspect.getsource(module)))
    compiled = compile(ast.fix_missing_locations(tree), f"<without {site}>", "exec")
    path = site.function.split(".")
    place: Any = module
    for name in path:
        place = inspect.getattr_static(place, name)
    assert isinstance(place, FunctionType), site
    kept = place.__code__
    place.__code__ = _code(compiled, path)
    try:
        yield
    finally:
        place.__code__ = kept
