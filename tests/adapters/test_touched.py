"""What was changed beside hyperha is found in every directory, on each file system (R14)."""

from __future__ import annotations

import os
import struct
import threading
import time
from pathlib import Path

import pytest
import xxhash

from hyperha.core import actions
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import ROOT_ID, Record, RecordKind
from hyperha.replication.store import Store
from hyperha.replication.touched import Stamp, StampFile, last_moment, record_touched
from tests.support.engine_pair import free_ports
from tests.support.engine_process import ProcessPair
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


def test_what_was_changed_while_the_clock_was_ahead_is_found(tmp_path: Path) -> None:
    """The stamp of a clean end is later than the change that came behind it: set right since."""
    (tmp_path / "disk").write_bytes(b"x")
    store, intent = opened(tmp_path)
    try:
        file = store.identify(ROOT_ID, b"disk")
        changed_ns = (tmp_path / "disk").stat().st_ctime_ns
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.time_ns() + changed_ns
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as source:
            boot = bytes.fromhex(source.read().strip().replace("-", ""))
        # Made a second before the change, on a clock that was more than that ahead.
        stamp = Stamp(changed_ns + 1_000_000, True, boot, boot_ns - 1_000_000_000)
        time.sleep(0.002)
        found = record_touched(store, intent, stamp)
        assert found.count == 2
        assert Record(RecordKind.WHOLE_FILE, file) in set(intent.candidates() or ())
        other = Stamp(stamp.wall_ns, True, bytes(16), stamp.boottime_ns)
        assert other.set_back_ns == 0, "of another boot it is not known"
    finally:
        intent.close()
        store.close()


def test_a_stamp_of_a_former_release_is_understood(tmp_path: Path) -> None:
    body = struct.pack("<8sQB", b"alive\n\0\1", 1_700_000_000_000_000_000, True)
    raw = (xxhash.xxh3_128_digest(body) + body).ljust(512, b"\0")
    (tmp_path / "alive").write_bytes(raw)
    place = os.open(tmp_path, os.O_RDONLY)
    stamp = StampFile(place)
    try:
        assert stamp.read() == Stamp(1_700_000_000_000_000_000, clean=True)
        stamp.write(clean=True, at=last_moment(place))
        now = stamp.read()
        assert now is not None
        assert now.clean
        assert len(now.boot) == 16
        assert time.time_ns() - now.wall_ns >= 20_000_000
    finally:
        os.close(place)
        stamp.close()


def test_what_is_changed_as_soon_as_the_folder_is_uncovered_is_found(tmp_path: Path) -> None:
    """Whoever waits for the mount to go is quicker than the end of the threads behind it."""
    pair = ProcessPair(tmp_path, free_ports(2))
    try:
        a = pair.a
        a.attach()
        pair.b.attach()
        pair.in_sync()
        (a.folder / "disk").write_bytes(b"x" * 4096)
        a.do(actions.Barrier)
        for node in (pair.b, a):
            node.do(actions.CloseSession)
        a.do(actions.Demote)
        covered = os.stat(a.folder).st_dev

        def change() -> None:
            while True:
                try:
                    if os.stat(a.folder).st_dev != covered:
                        break
                except OSError:
                    continue
            (a.folder / "disk").write_bytes(b"changed beside")

        waiting = threading.Thread(target=change)
        waiting.start()
        a.counter += 1
        a.do(actions.Detach, a.marker(a.counter))
        waiting.join()
        a.close()
        a.start()
        assert a.attach(fresh=False).candidates
    finally:
        pair.close()


@pytest.mark.parametrize(
    "how", [("ext4", "-I", "128"), ("ext4",), ("ext3", "-I", "128")], ids=" ".join
)
def test_what_came_at_once_after_a_clean_end_is_found(tmp_path: Path, how: tuple[str, ...]) -> None:
    """R14, also where a file's times have no parts of a second."""
    kind, *options = how
    with file_system(kind, tmp_path, 64, options=options) as place:
        folder = place / "folder"
        folder.mkdir()
        (folder / "disk").write_bytes(b"x")
        (folder / "ours").write_bytes(b"x")
        store, intent = opened(folder)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            store.identify(ROOT_ID, b"disk")
            store.identify(ROOT_ID, b"ours")
            while time.time() % 1 > 0.5:
                time.sleep(0.01)
            stamp = last_moment(descriptor)
            assert record_touched(store, intent, stamp).count == 0
            (folder / "disk").write_bytes(b"y")
            assert record_touched(store, intent, stamp).example == "disk"
        finally:
            os.close(descriptor)
            intent.close()
            store.close()
