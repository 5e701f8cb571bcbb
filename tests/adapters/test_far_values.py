"""What only some file systems hold: times, offsets and attributes far beyond the usual ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperha.core.actions import (
    Acknowledge,
    CloseSafety,
    EnterAlone,
    OpenSafety,
    Promote,
    SafetyEnd,
    SessionStart,
)
from hyperha.core.actions import UndoResync as Undo
from hyperha.core.events import LocalDiskFailed, SessionLost
from hyperha.core.records import Generation
from hyperha.domain import Epoch
from hyperha.errors import ReplicationError
from hyperha.replication import resync_source, wire_changes
from hyperha.replication.operations import (
    ROOT_ID,
    Attributes,
    Change,
    FileId,
    Record,
    RecordKind,
    SetAttributes,
    Target,
    Truncate,
)
from hyperha.replication.safety.area import SafetyArea
from hyperha.replication.safety.saver import Saver
from hyperha.replication.safety.undo_log import Kind, SavedInode, decode_inode
from tests.support.engine_pair import Guest, Pair, free_ports, pair_at, wait_for
from tests.support.engine_process import ProcessPair
from tests.support.machine import lacking
from tests.support.safety import Folder, file_system, folder_at, state_of

pytestmark = pytest.mark.root

_FAR_NS = (10_413_792_000 * 10**9 + 7, -11_676_096_000 * 10**9 + 123_456_789)
"""In 2300 and in 1600: signed 64 bits of nanoseconds hold neither."""
_GENERATION = Generation("cd" * 16, 2, "test", 0)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds any second and any offset."""
    place = tmp_path / "memory"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(params=["tmpfs", "xfs"])
def wide(request: pytest.FixtureRequest) -> Iterator[Path]:
    """File systems whose files end where the kernel's offsets do."""
    if request.param == "tmpfs":
        yield request.getfixturevalue("memory")
        return
    if not os.path.exists("/dev/loop-control"):
        lacking("needs loop devices")
    with file_system("xfs", request.getfixturevalue("tmp_path")) as mounted:
        yield mounted


@pytest.fixture
def pair(memory: Path) -> Iterator[Pair]:
    with pair_at(memory) as both:
        yield both


def _go_alone(pair: Pair) -> None:
    pair.a.primary.close_session(clean=False)
    pair.b.acceptor.close()
    pair.a.intent.enter_alone("g1")
    pair.a.primary.set_mode(Acknowledge.LOCAL)


def _with_a_file(pair: Pair) -> tuple[Guest, FileId, FileId]:
    """In sync; a folder and a file in it."""
    pair.in_sync()
    guest = Guest(pair.a)
    folder = guest.create(ROOT_ID, b"folder", 0o40755)
    return guest, folder, guest.create(folder, b"file")


def _set_time(guest: Guest, file: FileId, mtime_ns: int) -> None:
    def execute() -> Change:
        store = guest.side.store
        wanted = replace(store.attributes(Target(file)), mtime_ns=mtime_ns)
        store.apply(SetAttributes(Target(file), wanted))
        return SetAttributes(Target(file), store.attributes(Target(file)))

    guest.change([Record(RecordKind.INODE, file)], execute)


def _check_no_loss(pair: Pair) -> None:
    for side in (pair.a, pair.b):
        assert not side.has(SessionLost)
        assert not side.has(LocalDiskFailed)


# --- times --------------------------------------------------------------------------------


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 10**9 - 1))
def test_the_undo_log_holds_every_time_of_a_file_system(seconds: int, part_ns: int) -> None:
    time_ns = seconds * 10**9 + part_ns
    one = SavedInode(0o100644, 1, 2, 3, 4, time_ns, FileId(b"f" * 16), ((b"user.a", b"b"),))
    assert decode_inode(one.encode(), Kind.INODE) == one


@pytest.mark.parametrize("time_ns", _FAR_NS)
def test_a_far_time_travels_in_a_session_and_in_a_resync(pair: Pair, time_ns: int) -> None:
    guest, folder, file = _with_a_file(pair)
    _set_time(guest, file, time_ns)
    # A directory's time travels with every change of its names as well.
    guest.create(folder, b"other")
    _set_time(guest, folder, time_ns)
    wait_for(lambda: guest.answers == 5)
    pair.check_equal()
    assert (pair.b.folder / "folder").stat().st_mtime_ns == time_ns
    assert (pair.b.folder / "folder" / "file").stat().st_mtime_ns == time_ns
    _go_alone(pair)
    later = guest.create(ROOT_ID, b"later")
    _set_time(guest, later, time_ns + 1)
    _set_time(guest, folder, time_ns + 2)
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    assert (pair.b.folder / "later").stat().st_mtime_ns == time_ns + 1
    _go_alone(pair)
    pair.resync(SessionStart.FULL)
    pair.check_equal()
    _check_no_loss(pair)
    assert not guest.errors


@pytest.mark.parametrize("time_ns", _FAR_NS)
def test_a_safety_copy_holds_far_times_and_gives_them_back(pair: Pair, time_ns: int) -> None:
    guest, folder, file = _with_a_file(pair)
    guest.write(file, 0, b"former")
    pair.barrier(pair.a)
    _set_time(guest, file, time_ns)
    _set_time(guest, folder, time_ns)
    pair.check_equal()
    before = state_of(pair.b.folder)
    _go_alone(pair)
    guest.write(file, 0, b"later!")
    guest.create(folder, b"another")
    _set_time(guest, file, time_ns + 9)
    held = os.open(pair.b.folder, os.O_RDONLY)
    told: list[object] = []
    area = SafetyArea(held, str(pair.b.folder), pair.b.store, report=told.append)
    os.close(held)
    area.perform(OpenSafety(1, False, True, "R7", _GENERATION, False))
    pair.resync(SessionStart.CANDIDATES)
    pair.check_equal()
    _check_no_loss(pair)
    pair.a.primary.close_session(clean=False)
    pair.b.acceptor.close()
    area.perform(Undo(2))
    assert state_of(pair.b.folder) == before
    assert (pair.b.folder / "folder" / "file").stat().st_mtime_ns == time_ns
    area.perform(CloseSafety(3, SafetyEnd.UNDONE))
    assert told == []
    area.close()


def _set(folder: Folder, file: FileId, time_ns: int) -> None:
    wanted = replace(folder.store.attributes(Target(file)), mtime_ns=time_ns)
    folder.store.apply(SetAttributes(Target(file), wanted))


def _made_by_format_1(patch: pytest.MonkeyPatch) -> None:
    """Logs and records as they were before times had seconds of their own."""
    from hyperha.replication.safety import copy, saver, undo_log

    def encode(one: SavedInode) -> bytes:
        fields = (one.mode, one.uid, one.gid, one.rdev, one.size, one.mtime_ns, one.file)
        head = undo_log._NARROW.pack(*fields, len(one.xattrs))
        pairs = ((undo_log._PAIR.pack(len(n), len(v)), n, v) for n, v in one.xattrs)
        return head + b"".join(piece for pair in pairs for piece in pair)

    real = Saver._note

    def note(
        self: Saver,
        kind: Kind,
        handle: bytes,
        payload: bytes = b"",
        first: int = 0,
        second: int = 0,
    ) -> None:
        kind = Kind.NARROW_INODE if kind is Kind.INODE else kind
        real(self, kind, handle, payload, first, second)

    patch.setattr(undo_log.SavedInode, "encode", encode)
    patch.setattr(saver.Saver, "_note", note)
    patch.setattr(copy, "_VERSION", 1)


def test_a_copy_of_the_former_format_is_read_and_goes_on(memory: Path) -> None:
    with folder_at(memory / "folder") as folder:
        for name in ("old", "new"):
            (folder.path / name).write_bytes(b"former")
        old, new = (folder.store.identify(ROOT_ID, name) for name in (b"old", b"new"))
        _set(folder, old, -5)
        _set(folder, new, _FAR_NS[0])
        folder.store.apply(SetAttributes(Target(ROOT_ID), Attributes(0o40755, 0, 0, 0, 5, 0)))
        before = state_of(folder.path)
        with pytest.MonkeyPatch.context() as patch:
            _made_by_format_1(patch)
            name = folder.begin(required=True)
            folder.store.write(old, 0, b"later!")
            _set(folder, old, 77)
            folder.close()
        record = folder.path / ".hyperha" / "safety" / name / "record"
        assert b'"version":1' in record.read_bytes().replace(b" ", b"")
        folder.open()
        assert [one.id for one in folder.area.facts()] == [name]
        assert b'"version":2' not in record.read_bytes().replace(b" ", b""), "only read so far"
        _set(folder, new, 1)
        assert b'"version":2' in record.read_bytes().replace(b" ", b""), "others refuse it now"
        folder.crash()
        folder.undo()
        assert state_of(folder.path) == before
        assert folder.told == []


def test_a_copy_of_a_later_format_is_refused_and_stays(memory: Path) -> None:
    with folder_at(memory / "folder") as folder:
        (folder.path / "file").write_bytes(b"former")
        file = folder.store.identify(ROOT_ID, b"file")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hyperha.replication.safety.copy._VERSION", 3)
            name = folder.begin(required=True)
            folder.store.write(file, 0, b"later!")
            folder.close()
        log = folder.path / ".hyperha" / "safety" / name / "undo"
        size = log.stat().st_size
        folder.open()
        assert folder.area.facts() == ()
        assert f"safety copy {name} has format 3, this program knows" in str(folder.told)
        assert log.stat().st_size == size


def test_what_has_no_form_in_the_log_is_no_failed_disk(memory: Path, monkeypatch) -> None:
    """Also of what the peer must be told: it is the protocol's error, and the session's end."""

    def encode(one: SavedInode) -> bytes:
        raise OverflowError("too large")

    with folder_at(memory / "folder") as folder:
        (folder.path / "file").write_bytes(b"former")
        file = folder.store.identify(ROOT_ID, b"file")
        folder.begin(required=True)
        with monkeypatch.context() as patch:
            patch.setattr(SavedInode, "encode", encode)
            with pytest.raises(ReplicationError, match="no form in the log: too large"):
                _set(folder, file, 1)
        _set(folder, file, 2)


def test_a_change_that_cannot_be_told_ends_the_session_and_fails_no_disk(pair: Pair) -> None:
    pair.in_sync()
    guest = Guest(pair.a)

    def execute() -> Change:
        return SetAttributes(Target(ROOT_ID), Attributes(1 << 40, 0, 0, 0, 0, 0))

    with pytest.raises(OSError, match="has no form for the peer"):
        guest.change([Record(RecordKind.INODE, ROOT_ID)], execute)
    pair.a.wait(SessionLost)
    assert not pair.a.has(LocalDiskFailed)
    assert pair.a.primary.writable()


# --- offsets ------------------------------------------------------------------------------

_LAST = (1 << 63) - 1
"""No byte of a file has this offset, and none a greater one."""


def _require_seeking(place: Path, offset: int) -> None:
    if place.name == "memory" and offset >> 12 == _LAST >> 12:
        pytest.skip("tmpfs finds no data in the last page of all (SEEK_DATA)")


def _sparse(path: Path) -> tuple[int, list[tuple[int, bytes]]]:
    """Size and data of a file that is too long to be read as a whole."""
    found: list[tuple[int, bytes]] = []
    at = 0
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            # File systems keep blocks of different sizes: zeros around the data do not count.
            data = os.pread(file.fileno(), end - at, at)
            kept = data.lstrip(b"\0")
            found.append((at + len(data) - len(kept), kept.rstrip(b"\0")))
            at = end
    found = [one for one in found if one[1]]
    assert found or size < 1 << 62
    return size, found


def _check_sparse(pair: Pair, name: str) -> None:
    pair.barrier(pair.a)
    assert _sparse(pair.b.folder / name) == _sparse(pair.a.folder / name)
    _check_no_loss(pair)


@pytest.mark.parametrize("offset", [(1 << 62) + 4096, _LAST - 70_000, _LAST - 7])
def test_far_offsets_travel_in_a_session_and_in_a_resync(wide: Path, offset: int) -> None:
    _require_seeking(wide, offset)
    with pair_at(wide) as pair:
        pair.in_sync()
        guest = Guest(pair.a)
        file = guest.create(ROOT_ID, b"sparse")
        guest.write(file, offset, b"further")
        guest.write(file, 0, b"near")
        wait_for(lambda: guest.answers == 3)
        _check_sparse(pair, "sparse")
        assert (pair.b.folder / "sparse").stat().st_size == offset + 7
        _go_alone(pair)
        guest.write(file, offset - 200_000, b"between")
        guest.write(file, offset, b"changed")
        other = guest.create(ROOT_ID, b"other")
        guest.write(other, offset, b"another")
        with open(pair.b.folder / "sparse", "rb+") as copy:
            # What is there only on the target is a hole again.
            os.pwrite(copy.fileno(), b"stray", offset - 400_000)
        store = pair.b.store
        mine = [Record(RecordKind.ZONE, file, (offset - 400_000) >> 20)]
        pair.b.intent.activate(mine, 0)
        assert store.known(file)
        pair.resync(SessionStart.CANDIDATES)
        _check_sparse(pair, "sparse")
        _check_sparse(pair, "other")
        _go_alone(pair)
        os.truncate(pair.b.folder / "sparse", 3)
        pair.resync(SessionStart.FULL)
        _check_sparse(pair, "sparse")
        assert not guest.errors


@pytest.mark.parametrize("offset", [(1 << 62) + 4096, _LAST - 7])
def test_a_safety_copy_holds_far_data_and_gives_it_back(wide: Path, offset: int) -> None:
    _require_seeking(wide, offset)
    with folder_at(wide / "folder") as folder:
        path = folder.path / "sparse"
        path.touch()
        file = folder.store.identify(ROOT_ID, b"sparse")
        for at, data in ((0, b"near"), (offset, b"further")):
            folder.store.write(file, at, data)
        before = _sparse(path)
        name = folder.begin(required=True)
        folder.store.write(file, offset - 3, b"changed")
        folder.crash()
        folder.restore(name, wide / "to")
        assert _sparse(wide / "to" / "sparse") == before
        folder.store.apply(Truncate(file, 2, 0))
        folder.store.write(file, offset - 200_000, b"another")
        folder.crash()
        folder.undo()
        assert _sparse(path) == before
        assert folder.told == []


def test_a_copy_saves_all_that_a_cut_takes_away(memory: Path) -> None:
    """Also of a file more than half of which lies behind the middle of all offsets."""
    with folder_at(memory / "folder") as folder:
        path = folder.path / "sparse"
        path.touch()
        file = folder.store.identify(ROOT_ID, b"sparse")
        folder.store.write(file, _LAST - 9000, b"further")
        before = _sparse(path)
        folder.begin(required=True)
        folder.store.apply(Truncate(file, 2, 0))
        folder.undo()
        assert _sparse(path) == before


# --- attributes ---------------------------------------------------------------------------


def _values(path: Path) -> dict[str, bytes]:
    names = [one for one in os.listxattr(path) if "hyperha" not in one]
    return {name: os.getxattr(path, name) for name in names}


def test_more_attributes_than_a_frame_holds_are_resynced(tmp_path: Path) -> None:
    """Each came by itself while the copies were equal; a resync says all of an inode at once."""
    if not os.path.exists("/dev/loop-control"):
        lacking("needs loop devices")
    with file_system("xfs", tmp_path) as mounted, pair_at(mounted) as pair:
        pair.in_sync()
        guest = Guest(pair.a)
        folder = guest.create(ROOT_ID, b"folder", 0o40755)
        below = guest.create(folder, b"below", 0o40755)
        file = guest.create(folder, b"file")
        everything = {"folder": folder, "folder/below": below, "folder/file": file}
        for number in range(20):
            for one in everything.values():
                guest.set_xattr(one, b"user.%d" % number, bytes((number,)) * 65536)
        wait_for(lambda: guest.answers == 63)
        pair.barrier(pair.a)
        _go_alone(pair)
        for one in everything.values():
            guest.set_xattr(one, b"user.new", b"new")
        # Of other owners: that takes capabilities, which come back.
        capability = b"\1\0\0\2" + b"\0\4\0\0" + bytes(12)
        guest.set_xattr(file, b"security.capability", capability)
        other = guest.create(folder, b"other")
        for number in range(20):
            guest.set_xattr(other, b"user.%d" % number, os.urandom(65536))
        os.removexattr(pair.b.folder / "folder" / "below", "user.3")
        pair.b.intent.activate([Record(RecordKind.INODE, below)], 0)
        pair.resync(SessionStart.CANDIDATES)
        for name in (*everything, "folder/other"):
            assert _values(pair.b.folder / name) == _values(pair.a.folder / name)
        _go_alone(pair)
        for name in (*everything, "folder/other"):
            os.setxattr(pair.b.folder / name, "user.stray", b"stray")
            os.chown(pair.b.folder / name, 7, 7)
        pair.resync(SessionStart.FULL)
        for name in (*everything, "folder/other"):
            assert _values(pair.b.folder / name) == _values(pair.a.folder / name)
        assert "security.capability" in _values(pair.b.folder / "folder" / "file")
        pair.check_equal()
        _check_no_loss(pair)


def test_attributes_of_files_are_not_listed_beside_all_others(pair: Pair, monkeypatch) -> None:
    """Those of a large directory's files would stand in memory at once, on both nodes."""
    listed: list[wire_changes.Listing] = []
    real = resync_source.encode_listing

    def encode(listing: wire_changes.Listing) -> bytes:
        listed.append(listing)
        return real(listing)

    monkeypatch.setattr(resync_source, "encode_listing", encode)
    for name in ("one", "two"):
        (pair.a.folder / name).write_bytes(b"data")
        os.setxattr(pair.a.folder / name, "trusted.a", b"value")
    pair.a.primary.promote(Acknowledge.LOCAL)
    pair.resync(SessionStart.FULL)
    assert [entry.xattrs for one in listed for entry in one.entries] == [(), ()]
    for name in ("one", "two"):
        assert _values(pair.b.folder / name) == {"trusted.a": b"value"}


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in sync"])
def test_a_first_name_for_more_attributes_than_a_frame_holds(tmp_path: Path, alone: bool) -> None:
    """linkat(2) of what O_TMPFILE has made: what it brings comes in several changes."""
    if not os.path.exists("/dev/loop-control"):
        lacking("needs loop devices")
    with file_system("xfs", tmp_path, 600) as mounted:
        pair = ProcessPair(mounted, free_ports(2))
        try:
            pair.a.attach()
            if alone:
                pair.a.do(EnterAlone, "g0")
                pair.a.do(Promote, Epoch(1, "node1"), Acknowledge.LOCAL)
            else:
                pair.b.attach()
                pair.in_sync()
            file = os.open(pair.a.folder, os.O_TMPFILE | os.O_RDWR, 0o600)
            directory = os.open(pair.a.folder, os.O_RDONLY)
            try:
                os.write(file, b"content")
                for number in range(20):
                    os.setxattr(file, f"user.{number}", os.urandom(60000))
                os.link(
                    f"/proc/self/fd/{file}", "named", dst_dir_fd=directory, follow_symlinks=True
                )
                os.fsync(file)
            finally:
                os.close(directory)
                os.close(file)
            assert os.listdir(pair.a.folder) == ["named"]
            values = _values(pair.a.folder / "named")
            assert len(values) == 20
            if not alone:
                assert not [one for one in pair.a.messages if isinstance(one, SessionLost)]
                assert _values(pair.b.folder / "named") == values
                assert (pair.b.folder / "named").read_bytes() == b"content"
        finally:
            pair.close()


def test_more_names_of_attributes_than_linux_lists_are_told(tmp_path: Path) -> None:
    if not os.path.exists("/dev/loop-control"):
        lacking("needs loop devices")
    with file_system("xfs", tmp_path) as mounted, pair_at(mounted) as pair:
        (pair.a.folder / "disk").write_bytes(b"x")
        for number in range(2500):
            os.setxattr(pair.a.folder / "disk", f"user.{number:030}", b"")
        pair.a.primary.promote(Acknowledge.LOCAL)
        pair.connect(SessionStart.FULL)
        wait_for(lambda: pair.a.has(SessionLost))
        (lost,) = (one for one in pair.a.events if isinstance(one, SessionLost))
        assert "disk" in str(lost)
        assert "more names of extended attributes than Linux lists" in str(lost)
