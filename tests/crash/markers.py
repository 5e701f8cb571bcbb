"""The folder's marker and the record that names it, on two disks, cut at any moment (R12, R14)."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperha.core.facts import MarkerState
from hyperha.core.records import Lineage, Settings
from hyperha.daemon.records import ModuleRecords
from hyperha.replication import marker as markers
from hyperha.replication.admission import judge
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.store import PRIVATE_NAME, private_directory
from hyperha.replication.touched import Stamp, StampFile
from tests.crash.disk import State, Tape
from tests.crash.enumeration import Tried, explore
from tests.crash.recorder import recording
from tests.crash.tree import Tree


def _no_handle(_file: object) -> bytes:
    return b""


class _Node:
    """What core and engine do with record, marker and stamp, in their order."""

    def __init__(self, tape: Tape, state: Path, folder: Path) -> None:
        self.tape = tape
        self.lineage = Lineage("resource", "node1", "node2")
        self.records = ModuleRecords(state / "orders", "node1", "orders")
        self.folder = os.open(folder, os.O_RDONLY)
        self.stamp: StampFile | None = None

    def _persist(self, lineage: Lineage) -> None:
        self.lineage = lineage
        self.records.store(lineage, Settings())

    def open(self) -> None:
        """A folder that is used for the first time: log and stamp before the marker."""
        self._persist(self.lineage.with_marker())
        private = private_directory(self.folder)
        IntentLog(private, "resource", _no_handle, fresh=True, slots=4).close()
        self.stamp = StampFile(private)
        os.close(private)
        self._mark()

    def mark(self) -> None:
        """Another value, as at every mount, unmount and generation."""
        self._persist(self.lineage.with_marker())
        self._mark()

    def _mark(self) -> None:
        assert self.lineage.marker is not None
        markers.write_marker(self.folder, self.lineage.marker)
        self._persist(replace(self.lineage, marker_written=True))
        self.tape.mark("carries")

    def mint(self, name: str) -> None:
        """Another generation."""
        self._persist(self.lineage.minted(name, "test", 0))

    def live(self, *, clean: bool) -> None:
        """A stamp of life."""
        assert self.stamp is not None
        self.tape.mark("stamping")
        self.stamp.write(clean=clean)
        stamped = self.stamp.read()
        assert stamped is not None
        self.tape.mark("stamped", stamped)

    def close(self) -> None:
        os.close(self.folder)
        if self.stamp is not None:
            self.stamp.close()


class _Folder:
    """The marker is recognised in every state, and the stamp is the last one or the next."""

    def __init__(self, state: Tree, folder: Tree) -> None:
        self._state = state
        self._folder = folder
        self._carries = False
        self._stamped: Stamp | None = None
        self._stamping = False

    def mark(self, value: Any) -> None:
        if value[0] == "carries":
            self._carries = True
        elif value[0] == "stamping":
            self._stamping = True
        else:
            self._stamping, self._stamped = False, value[1]

    def recover(self, state: State) -> Any:
        self._state.put(state)
        self._folder.put(state)
        loaded = ModuleRecords(self._state.root / "orders", "node1", "orders").load()
        accept = loaded.lineage.acceptable_markers if loaded.lineage else ()
        folder = os.open(self._folder.root, os.O_RDONLY)
        try:
            found = markers.inspect(folder)
            word, known = judge(found, accept)
            return loaded.damage, word, f"{found.marker}; accepted {accept}; {known}", self._stamp()
        finally:
            os.close(folder)

    def _stamp(self) -> Stamp | None:
        place = self._folder.root / os.fsdecode(PRIVATE_NAME)
        if not (place / "alive").exists():
            return None
        private = os.open(place, os.O_RDONLY)
        stamp = StampFile(private)
        try:
            return stamp.read()
        finally:
            stamp.close()
            os.close(private)

    def judge(self, found: Any, state: State) -> str:
        damage, word, text, stamp = found
        if damage:
            return str(damage)
        wanted = (
            (MarkerState.MATCHES,) if self._carries else (MarkerState.MATCHES, MarkerState.ABSENT)
        )
        if word not in wanted:
            return f"the folder is taken for {word}: {text}"
        if self._stamped is not None and (stamp is None or stamp.wall_ns < self._stamped.wall_ns):
            return f"the stamp is {stamp}, {self._stamped} was durable"
        if stamp is not None and stamp != self._stamped and not self._stamping:
            # A later one would hide what was changed before it.
            return "" if self._stamped is None else f"the stamp is {stamp}, never durable"
        return ""


def life(base: Path) -> Tried:
    """From the first use on: marks, generations, stamps, a clean end."""
    state, folder = base / "state", base / "folder"
    state.mkdir()
    folder.mkdir()
    with recording({"state": state, "folder": folder}) as recorder:
        node = _Node(recorder.tape, state, folder)
        node.open()
        node.live(clean=False)
        node.mint("g1")
        node.mark()
        node.live(clean=False)
        node.mint("g2")
        node.mark()
        node.mark()
        node.live(clean=True)
        node.close()
    case = _Folder(Tree(recorder, "state", state), Tree(recorder, "folder", folder))
    return explore(recorder.tape, case)
