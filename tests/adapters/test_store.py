"""The backing tree by ids: identity, names, changes, and the folder's marker (Z3, M13, R12, N6)."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperha.domain import Marker
from hyperha.replication import identity
from hyperha.replication.marker import DamagedMarker, inspect, read_marker, write_marker
from hyperha.replication.operations import (
    NO_ID,
    ROOT_ID,
    Allocate,
    Attributes,
    Change,
    Create,
    FileId,
    Link,
    Remove,
    Rename,
    SetAttributes,
    SetTimes,
    SetXattr,
    Target,
    Truncate,
)
from hyperha.replication.store import Store
from tests.support.machine import lacking

IS_ROOT = os.geteuid() == 0
STAMP = 1_600_000_000_123_456_789


def opened(folder: Path, **options: bool) -> Store:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return Store(fd, **options)
    finally:
        os.close(fd)


@pytest.fixture(params=[True, False], ids=["privileged", "unprivileged"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param and not IS_ROOT:
        lacking("needs root rights")
    store = opened(tmp_path, privileged=request.param)
    yield store
    store.close()


def regular(mode: int = 0o640, size: int = 0) -> Attributes:
    return Attributes(stat.S_IFREG | mode, os.getuid(), os.getgid(), size, STAMP)


def made(store: Store, name: bytes, parent: FileId = ROOT_ID, kind: int = stat.S_IFREG) -> FileId:
    file = store.new_id()
    attributes = Attributes(kind | 0o750, os.getuid(), os.getgid(), 0, STAMP)
    store.apply(Create(parent, name, file, attributes, STAMP + 1))
    return file


def test_create_carries_id_owner_mode_and_times(store: Store, tmp_path: Path) -> None:
    file = store.new_id()
    store.apply(Create(ROOT_ID, b"disk", file, regular(0o640), STAMP + 5))
    status = (tmp_path / "disk").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_mtime_ns == STAMP
    assert tmp_path.stat().st_mtime_ns == STAMP + 5
    assert store.find(ROOT_ID, b"disk").file == file
    assert store.known(file)
    assert not store.known(store.new_id())


def test_write_read_and_ranges(store: Store, tmp_path: Path) -> None:
    file = made(store, b"disk")
    assert store.write(file, 1 << 20, b"x" * 4096) == 4096
    assert store.read(file, (1 << 20) - 2, 4) == b"\0\0xx"
    assert store.read(file, (1 << 20) + 4090, 100) == b"x" * 6
    assert store.data_ranges(file, 0, 1 << 30) == [(1 << 20, 4096)]
    assert store.data_ranges(file, (1 << 20) + 100, (1 << 20) + 200) == [((1 << 20) + 100, 100)]
    store.start_writeback(file, 1 << 20, 4096)
    store.sync(file, True)
    store.sync(ROOT_ID, False)
    store.sync_all()
    store.apply(SetTimes(file, STAMP))
    assert (tmp_path / "disk").stat().st_mtime_ns == STAMP


def test_ids_survive_a_new_store_and_rename(store: Store, tmp_path: Path) -> None:
    folder = made(store, b"dir", kind=stat.S_IFDIR)
    file = made(store, b"disk", folder)
    handle = store.handle(file)
    store.apply(Rename(folder, b"disk", ROOT_ID, b"moved", 0, STAMP, STAMP))
    other = opened(tmp_path, privileged=store.privileged)
    assert other.find(ROOT_ID, b"moved").file == file
    third = opened(tmp_path, privileged=store.privileged)
    assert third.known(file)
    assert third.path_of(file) == b"moved"
    if store.privileged:
        assert opened(tmp_path, privileged=True).bind_handle(file, handle)
        assert not opened(tmp_path, privileged=True).bind_handle(store.new_id(), handle)


def test_a_copied_attribute_is_no_id(store: Store, tmp_path: Path) -> None:
    file = made(store, b"disk")
    subprocess.run(["cp", "-a", "disk", "copy"], cwd=tmp_path, check=True)
    attribute = identity.id_attribute(store.privileged).decode()
    os.setxattr(tmp_path / "copy", attribute, os.getxattr(tmp_path / "disk", attribute))
    assert store.find(ROOT_ID, b"copy").file == NO_ID
    assert store.find(ROOT_ID, b"disk").file == file
    assert not store.bind(file, ROOT_ID, b"copy")
    assert store.bind(file, ROOT_ID, b"disk")
    fresh = store.identify(ROOT_ID, b"copy")
    assert fresh not in (NO_ID, file)
    assert opened(tmp_path, privileged=store.privileged).find(ROOT_ID, b"copy").file == fresh


def test_an_id_dies_with_its_file(store: Store) -> None:
    file = made(store, b"disk")
    store.write(file, 0, b"data")
    store.apply(Link(Target(file), ROOT_ID, b"second", STAMP))
    store.apply(Remove(ROOT_ID, b"disk", False, STAMP))
    assert store.known(file)
    store.apply(Remove(ROOT_ID, b"second", False, STAMP))
    assert not store.known(file)
    with pytest.raises(OSError, match="no file carries") as caught:
        store.write(file, 0, b"more")
    assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"x" * 256])
def test_only_plain_names(store: Store, name: bytes) -> None:
    for change in (
        Create(ROOT_ID, name, store.new_id(), regular(), STAMP),
        Remove(ROOT_ID, name, False, STAMP),
    ):
        with pytest.raises(OSError, match=r"name|long") as caught:
            store.apply(change)
        assert caught.value.errno in (errno.EINVAL, errno.ENAMETOOLONG)


def test_links_are_never_followed(store: Store, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    try:
        directory = made(store, b"x", kind=stat.S_IFDIR)
        (tmp_path / "x").rename(tmp_path / "y")
        (tmp_path / "x").symlink_to(outside)
        store.apply(Create(directory, b"file", store.new_id(), regular(), STAMP))
        assert (tmp_path / "y" / "file").exists()
        assert list(outside.iterdir()) == []
        link = store.find(ROOT_ID, b"x")
        with pytest.raises(OSError, match=r"carries|directories") as caught:
            store.directory(link.file if link.file != NO_ID else store.new_id())
        assert caught.value.errno in (errno.ENOTDIR, errno.EINVAL, errno.ESTALE)
        target = Target(link.file, ROOT_ID, b"x")
        assert store.symlink_target(target) == os.fsencode(outside)
    finally:
        shutil.rmtree(outside)


def test_the_private_directory_does_not_exist_for_callers(store: Store, tmp_path: Path) -> None:
    fd = store.private_directory()
    os.close(fd)
    made(store, b"disk")
    assert [entry.name for entry in store.list(ROOT_ID)] == [b"disk"]
    with pytest.raises(FileNotFoundError):
        store.find(ROOT_ID, b".hyperha")
    with pytest.raises(FileNotFoundError):
        store.apply(Rename(ROOT_ID, b".hyperha", ROOT_ID, b"seen", 0, STAMP, STAMP))
    inner = made(store, b"sub", kind=stat.S_IFDIR)
    made(store, b".hyperha", inner)
    assert (tmp_path / "sub" / ".hyperha").exists()


def test_every_kind_of_change(store: Store, tmp_path: Path) -> None:
    file = made(store, b"disk")
    store.write(file, 0, b"d" * 8192)
    store.apply(Truncate(file, 5000, STAMP + 1))
    assert (tmp_path / "disk").stat().st_size == 5000
    store.apply(Allocate(file, 3, 0, 4096, 5000, STAMP + 2))
    assert (tmp_path / "disk").read_bytes() == b"\0" * 4096 + b"d" * 904
    store.apply(SetAttributes(Target(file), regular(0o4711)))
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o4711
    assert (tmp_path / "disk").stat().st_mtime_ns == STAMP
    store.apply(SetXattr(Target(file), b"user.note", b"a\0b"))
    assert store.xattrs(Target(file)) == {b"user.note": b"a\0b"}
    store.apply(SetXattr(Target(file), b"user.note", None))
    assert store.xattrs(Target(file)) == {}
    with pytest.raises(OSError, match="No data"):
        store.apply(SetXattr(Target(file), b"user.note", None))
    store.apply(SetXattr(Target(file), b"user.note", None), again=True)
    with pytest.raises(OSError, match="hyperha"):
        store.apply(SetXattr(Target(file), b"user.hyperha.x", b"1"))
    other = made(store, b"other")
    store.apply(Rename(ROOT_ID, b"disk", ROOT_ID, b"other", 2, STAMP, STAMP))
    assert store.find(ROOT_ID, b"disk").file == other
    store.apply(Rename(ROOT_ID, b"disk", ROOT_ID, b"other", 0, STAMP, STAMP))
    assert not store.known(file)
    assert [entry.name for entry in store.list(ROOT_ID)] == [b"other"]


def test_replayed_changes_are_accepted_only_when_told(store: Store, tmp_path: Path) -> None:
    file = store.new_id()
    changes: list[Change] = [
        Create(ROOT_ID, b"a", file, regular(), STAMP),
        Link(Target(file), ROOT_ID, b"b", STAMP),
        Rename(ROOT_ID, b"a", ROOT_ID, b"c", 0, STAMP, STAMP),
    ]
    store.apply(changes[0])
    with pytest.raises(FileExistsError):
        store.apply(changes[0])
    store.apply(changes[0], again=True)
    for change in changes[1:]:
        store.apply(change)
        store.apply(change, again=True)
    remove = Remove(ROOT_ID, b"b", False, STAMP)
    store.apply(remove)
    with pytest.raises(FileNotFoundError):
        store.apply(remove)
    store.apply(remove, again=True)
    stranger = Create(ROOT_ID, b"c", store.new_id(), regular(), STAMP)
    with pytest.raises(FileExistsError):
        store.apply(stranger, again=True)


@pytest.mark.root
def test_special_files_and_links_carry_ids_as_root(tmp_path: Path) -> None:
    store = opened(tmp_path)
    wanted = {
        b"fifo": (stat.S_IFIFO, 0, b""),
        b"device": (stat.S_IFCHR, os.makedev(1, 3), b""),
        b"link": (stat.S_IFLNK, 0, b"to/nowhere"),
    }
    for name, (kind, rdev, target) in wanted.items():
        attributes = Attributes(kind | 0o777, 12, 34, 0, STAMP, rdev)
        file = store.new_id()
        store.apply(Create(ROOT_ID, name, file, attributes, STAMP, target))
        entry = opened(tmp_path).find(ROOT_ID, name)
        assert entry.file == file
        assert entry.attributes == attributes
    assert os.readlink(tmp_path / "link") == "to/nowhere"


def test_walk_meets_everything_once(store: Store) -> None:
    folder = made(store, b"dir", kind=stat.S_IFDIR)
    inner = made(store, b"inner", folder, stat.S_IFDIR)
    made(store, b"leaf", inner)
    made(store, b"top")
    assert sorted(found.path for found in store.walk()) == [
        b"dir",
        b"dir/inner",
        b"dir/inner/leaf",
        b"top",
    ]


def test_walk_enters_directories_that_get_an_id_on_the_way(store: Store, tmp_path: Path) -> None:
    (tmp_path / "old" / "deep").mkdir(parents=True)
    (tmp_path / "old" / "deep" / "file").write_bytes(b"1")
    assert [found.path for found in store.walk()] == [b"old"]
    paths = []
    for found in store.walk():
        store.identify(found.parent, found.entry.name)
        paths.append(found.path)
    assert sorted(paths) == [b"old", b"old/deep", b"old/deep/file"]


def test_more_files_than_cached_descriptors(store: Store) -> None:
    files = [made(store, b"f%d" % number) for number in range(600)]
    for number, file in enumerate(files):
        store.write(file, 0, b"%d" % number)
    assert [store.read(file, 0, 9) for file in files] == [b"%d" % n for n in range(600)]
    assert len(store._open) <= 256


def test_marker(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert read_marker(fd) is None
        facts = inspect(fd)
        assert (facts.empty, facts.marker, facts.xattrs, facts.handles) == (True, None, True, True)
        first, second = Marker("VM1", "node1", "a" * 32, 1), Marker("VM1", "node1", "a" * 32, 2)
        write_marker(fd, first)
        assert read_marker(fd) == first
        assert inspect(fd).empty
        attribute = next(name for name in os.listxattr(fd) if name.endswith("marker"))
        before = os.getxattr(fd, attribute)
        write_marker(fd, second)
        assert read_marker(fd) == second
        os.setxattr(fd, attribute, before)
        torn = read_marker(fd)
        assert isinstance(torn, DamagedMarker)
        assert (torn.attribute, torn.file) == (first, second)
        write_marker(fd, second)
        (tmp_path / ".hyperha" / "marker").write_bytes(b"{}\n00000000\n")
        assert isinstance(read_marker(fd), DamagedMarker)
        (tmp_path / ".hyperha" / "marker").unlink()
        assert isinstance(read_marker(fd), DamagedMarker)
    finally:
        os.close(fd)


def test_a_restored_marker_proves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    try:
        write_marker(fd, Marker("VM1", "node1", "b" * 32, 7))
        shutil.copytree(folder / ".hyperha", tmp_path / "saved")
        shutil.rmtree(folder / ".hyperha")
        shutil.copytree(tmp_path / "saved", folder / ".hyperha")
        found = read_marker(fd)
        assert isinstance(found, DamagedMarker)
        assert "copy" in found.reason
    finally:
        os.close(fd)
