"""The undo log of a safety copy, cut at any moment: saved before it is destroyed (R15)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hyperha.replication.safety.undo_log import (
    BLOCK_BYTES,
    Index,
    Kind,
    UndoLog,
    decode_blocks,
    encode_blocks,
)
from tests.crash.disk import SECTOR, State, Tape
from tests.crash.enumeration import Tried, explore
from tests.crash.recorder import Recorder, recording
from tests.crash.tree import Tree

HANDLE = b"the handle of a file"
BLOCKS = 4
_KEPT = 1024
"""Of each block: small, so that a state is small."""


def _original(block: int) -> bytes:
    return bytes([65 + block]) * _KEPT


class _Folder:
    """One file, and the copy that remembers what it was."""

    def __init__(self, root: Path, tape: Tape) -> None:
        self._root = root
        self._tape = tape
        self.log = self.open()

    def open(self) -> UndoLog:
        """As after a start: what is whole is kept, the rest of a cut entry is dropped."""
        log = UndoLog(os.open(self._root / "log", os.O_RDWR), "copy")
        index = Index(log, runs=False)
        index.refresh()
        log.cut()
        return log

    def overwrite(self, *blocks: int) -> None:
        """Save, then change, as a resync does."""
        raw = b"".join(
            self.log.entry(
                Kind.BLOCKS,
                HANDLE,
                encode_blocks([(block * BLOCK_BYTES, _original(block))]),
                block,
                1,
            )
            for block in blocks
        )
        self.log.append(raw)
        descriptor = os.open(self._root / "data", os.O_RDWR)
        for block in blocks:
            os.pwrite(descriptor, b"new" + os.urandom(_KEPT - 3), block * BLOCK_BYTES)
        os.close(descriptor)


class _Undone:
    """Whatever the file holds, the log gives back what it held."""

    def __init__(self, recorder: Recorder, root: Path) -> None:
        self._tree = Tree(recorder, "disk", root)

    def mark(self, value: Any) -> None:
        """Nothing is promised but the one thing."""

    def recover(self, state: State) -> Any:
        self._tree.put(state)
        data = bytearray((self._tree.root / "data").read_bytes())
        log = UndoLog(os.open(self._tree.root / "log", os.O_RDWR), "copy")
        index = Index(log, runs=True)
        index.refresh()
        for saved in index.inodes.values():
            for entry in saved.runs:
                for offset, piece in decode_blocks(log.payload(entry)):
                    data[offset : offset + len(piece)] = piece
        log.close()
        return bytes(data)

    def judge(self, found: Any, state: State) -> str:
        for block in range(BLOCKS):
            there = found[block * BLOCK_BYTES : block * BLOCK_BYTES + _KEPT]
            if there != _original(block):
                return f"block {block} cannot be put back: it is {there[:8]!r}"
        return ""


def undone(base: Path) -> Tried:
    """Batches of one and of several blocks; a start after a cut in the middle of an entry."""
    root = base / "folder"
    root.mkdir()
    with open(root / "data", "wb") as file:
        for block in range(BLOCKS):
            file.seek(block * BLOCK_BYTES)
            file.write(_original(block))
    (root / "log").touch()
    with recording({"disk": root}) as recorder:
        folder = _Folder(root, recorder.tape)
        folder.overwrite(0)
        folder.overwrite(1, 2)
        folder.log.close()
        # What a cut may leave behind the last whole entry.
        descriptor = os.open(root / "log", os.O_RDWR)
        os.pwrite(descriptor, b"half an entry" * 100, os.fstat(descriptor).st_size)
        os.fsync(descriptor)
        os.close(descriptor)
        folder.log = folder.open()
        folder.overwrite(3)
        folder.log.close()
    assert SECTOR < _KEPT
    return explore(recorder.tape, _Undone(recorder, root))
