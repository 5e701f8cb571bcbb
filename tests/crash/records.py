"""Durable records and the records of a module, cut at any moment (S2, F5)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperha.config import Home
from hyperha.core.records import Lineage, Settings
from hyperha.daemon.records import ModuleRecords
from hyperha.durable import DurableRecord
from hyperha.errors import RecordDamagedError
from tests.crash.disk import State
from tests.crash.enumeration import Tried, explore
from tests.crash.recorder import recording
from tests.crash.tree import Tree

SIZE = 4096


def _record(root: Path) -> DurableRecord:
    return DurableRecord(root / "state" / "orders" / "lineage", size=SIZE, owner="node1")


class _Values:
    """A record reads as what was stored last, or as what was just being stored."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.stored: bytes | None = None
        self.begun: bytes | None = None
        self.aside: tuple[str, bytes] | None = None

    def mark(self, value: Any) -> None:
        if value[0] == "begin":
            self.begun = value[1]
        elif value[0] == "done":
            self.stored = value[1]
        elif value[0] == "aside":
            self.aside = value[1:]
            self.stored = self.begun = None
        elif value[0] == "damage":
            self.stored = self.begun = None

    def recover(self, state: State) -> Any:
        self.tree.put(state)
        files = {path.name: path.read_bytes() for path in self.tree.root.rglob("lineage*")}
        try:
            found: Any = _record(self.tree.root).load()
        except RecordDamagedError as problem:
            found = problem
        else:
            # It can be used at once, from whatever the cut has left.
            again = _record(self.tree.root)
            again.store(b"next")
            assert _record(self.tree.root).load() == b"next"
        return found, files

    def judge(self, found: Any, state: State) -> str:
        value, files = found
        if self.aside is not None and files.get(self.aside[0]) != self.aside[1]:
            return f"the damaged record is not kept as {self.aside[0]}, as was said"
        if isinstance(value, RecordDamagedError):
            return "" if self.stored is None and self.begun is None else f"damaged: {value}"
        if value not in (self.stored, self.begun):
            return f"reads as {value!r}, stored was {self.stored!r}, then {self.begun!r}"
        return ""


@contextlib.contextmanager
def _no_write_through(*, without: bool) -> Iterator[None]:
    """A platform without O_DSYNC."""
    with pytest.MonkeyPatch.context() as patch:
        if without:
            patch.delattr(os, "O_DSYNC")
        yield


def values(base: Path, *, write_through: bool = True) -> Tried:
    """One record from nothing on: the directories above it are made, too."""
    root = base / "home"
    root.mkdir()
    with recording({"home": root}) as recorder, _no_write_through(without=not write_through):
        tape = recorder.tape
        for number in range(6):
            payload = b"value %d " % number * (100 + 75 * number)
            tape.mark("begin", payload)
            _record(root).store(payload)
            tape.mark("done", payload)
    return explore(tape, _Values(Tree(recorder, "home", root)))


def damaged(base: Path) -> Tried:
    """Both slots are damaged: it is set aside, and stays so; a new one takes its place."""
    root = base / "home"
    path = _record(root).path
    path.parent.mkdir(parents=True)
    raw = b"nothing that can be read".ljust(2 * SIZE, b"\7")
    path.write_bytes(raw)
    with recording({"home": root}) as recorder:
        tape = recorder.tape
        tape.mark("damage")
        try:
            _record(root).load()
        except RecordDamagedError:
            (aside,) = path.parent.glob("lineage.damaged-*")
            tape.mark("aside", aside.name, raw)
        tape.mark("begin", b"new")
        _record(root).store(b"new")
        tape.mark("done", b"new")
    return explore(tape, _Values(Tree(recorder, "home", root)))


class _Module:
    """Lineage and settings: each the former or the new one, the settings never behind."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.stored: tuple[Any, Any] = (None, None)
        self.begun: tuple[Any, Any] = (None, None)

    def mark(self, value: Any) -> None:
        if value[0] == "begin":
            self.begun = value[1:]
        else:
            self.stored = value[1:]

    def recover(self, state: State) -> Any:
        self.tree.put(state)
        state_directory = Home.at(self.tree.root).module_state("orders")
        found = ModuleRecords(state_directory, "node1", "orders").load()
        return found.lineage, found.settings, found.damage

    def judge(self, found: Any, state: State) -> str:
        lineage, settings, damage = found
        if damage:
            return damage
        for i, (name, value) in enumerate((("lineage", lineage), ("settings", settings))):
            if value not in (self.stored[i], self.begun[i]):
                return f"{name} is neither the former nor the new one: {value}"
        return ""


def module(base: Path) -> Tried:
    """What a `Persist` of the core stores."""
    root = base / "home"
    root.mkdir()
    lineage, settings = Lineage("rid", "node1", "node2"), Settings()
    with recording({"home": root}) as recorder:
        tape = recorder.tape
        home = Home.at(root)
        home.create()
        records = ModuleRecords(home.module_state("orders"), "node1", "orders")
        for number in range(3):
            lineage = lineage.minted(f"g{number}", "test", number).with_marker()
            if number % 2:
                settings = replace(settings, wanted=not settings.wanted)
            tape.mark("begin", lineage, settings)
            records.store(lineage, settings)
            tape.mark("done", lineage, settings)
    return explore(tape, _Module(Tree(recorder, "home", root)))
