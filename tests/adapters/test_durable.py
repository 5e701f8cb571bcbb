"""Durable records: every state that a power cut can leave holds the old or the new payload (S2)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperha.durable import HEADER_BYTES, DaemonLock, DurableRecord, decode_slot, encode_slot
from hyperha.errors import FailedError, RecordDamagedError, RefusedError, UsageError
from tests.support import ROOT

SECTOR = 512


def test_a_record_keeps_the_last_payload(tmp_path: Path) -> None:
    record = DurableRecord(tmp_path / "state" / "lineage", owner="node1 VM1")
    assert record.load() is None
    for number in range(7):
        record.store(f"value {number}".encode())
        assert DurableRecord(record.path, owner="node1 VM1").load() == f"value {number}".encode()
    assert record.path.stat().st_size == 2 * 4096, "no slot is ever only allocated"
    assert record.path.stat().st_mode & 0o777 == 0o600


def test_a_new_object_continues_in_the_right_slot(tmp_path: Path) -> None:
    path = tmp_path / "r"
    for number in range(5):
        DurableRecord(path).store_json({"n": number})
    assert DurableRecord(path).load_json() == {"n": 4}


@given(first=st.binary(max_size=1400), second=st.binary(max_size=1400), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_torn_store_keeps_old_or_new(
    tmp_path_factory: pytest.TempPathFactory, first: bytes, second: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "record"
    size = 2048
    record = DurableRecord(path, size=size)
    record.store(b"zero")
    record.store(first)
    before = path.read_bytes()
    record.store(second)
    after = path.read_bytes()
    written = data.draw(st.lists(st.booleans(), min_size=len(after) // SECTOR, max_size=None))
    torn = b"".join(
        (after if chosen else before)[index * SECTOR : (index + 1) * SECTOR]
        for index, chosen in enumerate(written[: len(after) // SECTOR])
    )
    path.write_bytes(torn)
    reread = DurableRecord(path, size=size)
    assert reread.load() in (first, second)
    reread.store(b"next")
    assert DurableRecord(path, size=size).load() == b"next"


def test_every_prefix_and_every_sector_set_of_a_store(tmp_path: Path) -> None:
    size = 2048
    path = tmp_path / "record"
    record = DurableRecord(path, size=size)
    record.store(b"old" * 400)
    record.store(b"OLD" * 400)
    before = path.read_bytes()
    record.store(b"new" * 500)
    after = path.read_bytes()
    changed = [
        i for i in range(0, len(after), SECTOR) if before[i : i + SECTOR] != after[i : i + SECTOR]
    ]
    assert 1 < len(changed) <= size // SECTOR, "a store touches one slot only"
    states = 0
    for choice in range(1 << len(changed)):
        state = bytearray(before)
        for bit, start in enumerate(changed):
            if choice >> bit & 1:
                state[start : start + SECTOR] = after[start : start + SECTOR]
        path.write_bytes(state)
        found = DurableRecord(path, size=size).load()
        expected = b"new" * 500 if choice == (1 << len(changed)) - 1 else b"OLD" * 400
        assert found == expected
        states += 1
    for cut in range(0, size, 64):
        slot = 0 if before[:size] != after[:size] else size
        path.write_bytes(before[:slot] + after[slot : slot + cut] + before[slot + cut :])
        assert DurableRecord(path, size=size).load() in (b"OLD" * 400, b"new" * 500)
    assert states >= 4


def test_a_cut_creation_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "record"
    (tmp_path / "record.new").write_bytes(b"half a slot")
    assert DurableRecord(path).load() is None
    DurableRecord(path).store(b"x")
    assert DurableRecord(path).load() == b"x"
    assert [p.name for p in tmp_path.iterdir()] == ["record"]


@pytest.mark.parametrize("raw", [b"", b"garbage" * 2000, b"\0" * 8192, b"HHR1" + b"\7" * 8188])
def test_two_damaged_slots_are_set_aside_and_never_guessed(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "record"
    path.write_bytes(raw)
    with pytest.raises(RecordDamagedError) as caught:
        DurableRecord(path, owner="node1").load()
    aside = list(tmp_path.glob("record.damaged-*"))
    assert [a.read_bytes() for a in aside] == [raw]
    assert str(path) in str(caught.value)
    assert str(aside[0]) in str(caught.value)
    assert DurableRecord(path).load() is None


def test_a_record_of_another_owner_is_refused(tmp_path: Path) -> None:
    DurableRecord(tmp_path / "r", owner="node1 VM1").store(b"mine")
    with pytest.raises(RecordDamagedError, match="not the record of 'node2 VM1'"):
        DurableRecord(tmp_path / "r", owner="node2 VM1").load()


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    record = DurableRecord(tmp_path / "r", size=512)
    record.store(b"a" * (512 - HEADER_BYTES))
    with pytest.raises(UsageError, match="does not fit"):
        record.store(b"a" * (512 - HEADER_BYTES + 1))
    assert DurableRecord(record.path, size=512).load() == b"a" * (512 - HEADER_BYTES)
    with pytest.raises(UsageError):
        DurableRecord(tmp_path / "s", size=100)


def test_a_refusing_disk_is_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FailedError, match="file"):
        DurableRecord(tmp_path / "file" / "r").store(b"x")


def test_json_of_another_kind_is_damage(tmp_path: Path) -> None:
    DurableRecord(tmp_path / "r").store(b"[1]")
    with pytest.raises(RecordDamagedError):
        DurableRecord(tmp_path / "r").load_json()


@given(
    st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.binary(max_size=400), st.integers(0, 511)
)
def test_a_flipped_byte_never_passes(owner: int, sequence: int, payload: bytes, at: int) -> None:
    raw = encode_slot(owner, sequence, payload, 512)
    assert decode_slot(owner, raw) == (sequence, payload)
    broken = bytearray(raw)
    broken[at] ^= 0x40
    found = decode_slot(owner, bytes(broken))
    assert found is None or (at >= HEADER_BYTES + len(payload) and found == (sequence, payload))


def test_one_daemon_per_home(tmp_path: Path) -> None:
    lock = DaemonLock(tmp_path / "run" / "daemon.lock")
    with lock, pytest.raises(RefusedError, match=f"process {os.getpid()}"):
        DaemonLock(lock.path).acquire()
    with DaemonLock(lock.path):
        pass


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    program = (
        "import sys,os,pathlib\nfrom hyperha.durable import DaemonLock\n"
        "l=DaemonLock(pathlib.Path(sys.argv[1]));l.acquire();print('held',flush=True);sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"held\n"
            with pytest.raises(RefusedError, match=f"process {child.pid}"):
                DaemonLock(path).acquire()
        finally:
            child.kill()
            child.wait()
    with DaemonLock(path):
        pass
