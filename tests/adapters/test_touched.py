"""What was changed beside hyperha is found in every directory, on each file system (R14)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import ROOT_ID, Record, RecordKind
from hyperha.replication.store import Store
from hyperha.replication.touched import Stamp, record_touched
from tests.support.safety import file_system

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_what_came_since_a_directory_was_opened_is_found(tmp_path: Path, kind: str) -> None:
    with file_system(kind, tmp_path) as place:
        folder = place / "folder"
        (folder / "below").mkdir(parents=True)
        descriptor = os.open(folder, os.O_RDONLY)
        store = Store(descriptor)
        os.close(descriptor)
        private = store.private_directory()
        intent = IntentLog(private, "rid", store.handle, fresh=True)
        os.close(private)
        try:
            below = store.identify(ROOT_ID, b"below")
            for directory in (ROOT_ID, below):
                # Opened now, and kept.
                store.list(directory)
            now = time.time_ns()
            stamp = Stamp(now, clean=True)
            wanted = set()
            for number in range(3):
                for parent, path in ((ROOT_ID, folder), (below, folder / "below")):
                    name = f"new{number}"
                    (path / name).write_text("beside")
                    file = store.identify(parent, os.fsencode(name))
                    wanted |= {Record(RecordKind.WHOLE_FILE, file), Record(RecordKind.INODE, file)}
            found = record_touched(store, intent, stamp)
            records = set(intent.candidates() or ())
            # The directories, too, and `below` is named by its parent.
            assert wanted <= records, wanted - records
            assert found.count == 8
            assert found.example
        finally:
            intent.close()
            store.close()
