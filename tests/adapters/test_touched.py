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


def opened(folder: Path) -> tuple[Store, IntentLog]:
    """The store of a folder, and a fresh log."""
    descriptor = os.open(folder, os.O_RDONLY)
    store = Store(descriptor)
    os.close(descriptor)
    private = store.private_directory()
    intent = IntentLog(private, "rid", store.handle, fresh=True)
    os.close(private)
    return store, intent


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_what_came_since_a_directory_was_opened_is_found(tmp_path: Path, kind: str) -> None:
    with file_system(kind, tmp_path) as place:
        folder = place / "folder"
        (folder / "below").mkdir(parents=True)
        store, intent = opened(folder)
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


@pytest.mark.parametrize(
    ("clean", "late_s", "found"),
    [(True, 0, True), (False, 0, False), (False, 10, True), (False, 3600, True)],
)
def test_a_record_of_one_zone_does_not_speak_for_the_file(
    tmp_path: Path, clean: bool, late_s: int, found: bool
) -> None:
    """What is written beside us is in no zone that the log knows. Only what we may have done
    ourselves in the moments before a crash is told by the log alone: what comes when the next
    stamp would have been there is compared, although a stamp may be late."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 << 20))
    store, intent = opened(tmp_path)
    try:
        file = store.identify(ROOT_ID, b"disk.img")
        intent.activate([Record(RecordKind.ZONE, file, 0)], 5)
        intent.enter_alone("generation")
        time.sleep(0.05)
        stamp = Stamp(time.time_ns() - late_s * 1_000_000_000, clean=clean)
        time.sleep(0.05)
        with image.open("r+b") as disk:
            disk.seek(3 << 20)
            disk.write(b"beside")
        told = record_touched(store, intent, stamp)
        whole = Record(RecordKind.WHOLE_FILE, file) in set(intent.candidates() or ())
        assert whole is found
        assert told.count >= found
    finally:
        intent.close()
        store.close()
