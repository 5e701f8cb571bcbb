"""Trees deeper than any path, stack of calls or number of descriptors: a guest makes them step by
step, and nothing that walks through a folder may stop at them."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperha.core.actions import Acknowledge, SafetyEnd, SessionStart
from hyperha.domain import Epoch, SessionKey
from hyperha.replication import admission, capacity, trees
from hyperha.replication.aside import LOST, Aside, lost_names, tidy
from hyperha.replication.entries import PRIVATE_NAME, remove_tree
from hyperha.replication.handshake import Hello
from hyperha.replication.occupancy import links_from_outside
from hyperha.replication.operations import (
    ROOT_ID,
    Attributes,
    Create,
    FileId,
    Rename,
    Target,
)
from hyperha.replication.resync_target import TargetSide
from hyperha.replication.store import Store
from hyperha.replication.tally import read_plain_folder, tree_bytes
from hyperha.replication.wire_changes import ListedEntry
from hyperha.spawn import tree
from tests.support.engine_pair import Guest, pair_at
from tests.support.fuse_local import Served
from tests.support.safety import folder_at

LEVELS = 3000
FEW_DESCRIPTORS = 256
FEWER_LEVELS, LONG_NAME = 1200, "directory"
"""For what takes long: also more than calls and a path can be."""
CONTENT = b"at the end of all of it"

pytestmark = pytest.mark.root


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A directory that is emptied without a call for each level."""
    place = tmp_path / "deep"
    place.mkdir()
    yield place
    parent = os.open(tmp_path, os.O_RDONLY)
    clear(parent, b"deep")
    os.close(parent)


def clear(parent: int, name: bytes) -> None:
    """Not by what is tested: every directory is moved up first, and removed flat."""
    top = os.open(name, os.O_RDONLY, dir_fd=parent)
    count, again = 0, True
    while again:
        again = False
        for one in os.listdir(top):
            if not stat.S_ISDIR(os.stat(one, dir_fd=top, follow_symlinks=False).st_mode):
                os.unlink(one, dir_fd=top)
                continue
            inner = os.open(one, os.O_RDONLY, dir_fd=top)
            for below in os.listdir(inner):
                count += 1
                os.rename(below, f"moved-up-{count}", src_dir_fd=inner, dst_dir_fd=top)
                again = True
            os.close(inner)
            os.rmdir(one, dir_fd=top)
    os.close(top)
    os.rmdir(name, dir_fd=parent)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """As many as a process may have that did not ask for more; a store asks for more itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def grow(top: Path, levels: int = LEVELS, name: str = "d") -> int:
    """As a guest does; the descriptor of the last directory, with a file in it."""
    at = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=at)
    os.write(file, CONTENT)
    os.close(file)
    return at


def depth_of(top: Path, name: str = "d") -> int:
    """How deep a tree of one name goes, followed step by step, and whether the file is there."""
    at, depth = os.open(top, os.O_RDONLY), 0
    while name in os.listdir(at):
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at, depth = below, depth + 1
    file = os.open("file", os.O_RDONLY, dir_fd=at)
    assert os.read(file, 100) == CONTENT
    os.close(file)
    os.close(at)
    return depth


def identified(store: Store, last: int, name: bytes = b"file") -> FileId:
    """Give the file at the end an id, as the engine does."""
    file = store.new_id()
    descriptor = os.open(name, os.O_RDONLY, dir_fd=last)
    store.assign_id(descriptor, file)
    os.close(descriptor)
    return file


@pytest.mark.usefixtures("few_descriptors")
def test_a_folder_with_a_deep_tree_is_admitted_and_measured(base: Path) -> None:
    os.close(grow(base))
    folder = os.open(base, os.O_RDONLY)
    found = admission.admit(str(base), folder)
    assert found.marker is None
    assert tree_bytes(folder) == len(CONTENT)
    # Half of the time that it has may not do on a machine that is busy: then it is a least of 0.
    assert 0 <= capacity.least_bytes(folder) <= 1 << 16
    room = os.fstatvfs(folder)
    most = capacity.room_bytes(folder)
    assert most is None or most >= room.f_bfree * room.f_frsize // 2
    os.close(folder)


@pytest.mark.usefixtures("few_descriptors")
def test_a_name_outside_is_found_at_the_end_of_a_deep_tree(base: Path) -> None:
    (base / "folder").mkdir()
    last = grow(base / "folder")
    os.link("file", base / "outside", src_dir_fd=last)
    os.close(last)
    folder = os.open(base / "folder", os.O_RDONLY)
    (told,) = links_from_outside(folder)
    os.close(folder)
    assert told.endswith("/d/d/file has 2 names, the folder shows 1 of them")
    assert told.startswith(".../d/")
    assert len(told) < 4200


def test_the_log_of_a_folder_that_nobody_serves_names_what_is_deep(base: Path) -> None:
    with pair_at(base) as pair:
        last = grow(pair.a.folder)
        file = identified(pair.a.store, last)
        os.close(last)
        pair.a.primary.promote(Acknowledge.LOCAL)
        pair.a.intent.enter_alone("g1")
        Guest(pair.a).write(file, 0, b"A")
        folder = str(pair.a.folder)
    found = read_plain_folder(folder, "rid")
    assert found.tally.candidates is not None
    (one,) = [each for each in found.tally.candidates if each.path.endswith("/d/file")]
    assert one.bytes == len(CONTENT)


@pytest.mark.parametrize("privileged", [True, False])
def test_what_was_moved_aside_is_known_and_removed(base: Path, privileged: bool) -> None:
    descriptor = os.open(base, os.O_RDONLY)
    store = Store(descriptor, privileged=privileged)
    private = store.private_directory()
    os.makedirs(base / PRIVATE_NAME.decode() / LOST / "one")
    last = grow(base / PRIVATE_NAME.decode() / LOST / "one")
    file = identified(store, last)
    os.close(last)
    store.reset()
    Aside(store).learn()
    assert store.has_learned(file)
    assert store.read(file, 0, 100) == CONTENT
    tidy(store, lost_names(store))
    assert lost_names(store) == []
    os.close(private)
    os.close(descriptor)
    store.close()


@pytest.mark.usefixtures("few_descriptors")
def test_a_deep_tree_is_removed_with_few_descriptors(base: Path) -> None:
    last = grow(base)
    (base / "beside").mkdir()
    os.close(last)
    folder = os.open(base, os.O_RDONLY)
    heard = 0

    def leaving(_directory: int, _name: bytes) -> None:
        nonlocal heard
        heard += 1

    remove_tree(folder, "d", leaving)
    os.close(folder)
    assert os.listdir(base) == ["beside"]
    assert heard == LEVELS


@pytest.mark.usefixtures("few_descriptors")
def test_a_walk_meets_everything_on_its_way_back_as_well(base: Path) -> None:
    at = os.open(base, os.O_RDONLY)
    for level in range(LEVELS):
        for name in ("a", "b"):
            os.mkdir(name, dir_fd=at)
        os.close(os.open(f"file-{level}", os.O_CREAT, dir_fd=at))
        below = os.open("a" if level % 2 else "b", os.O_RDONLY, dir_fd=at)
        os.symlink("..", "link", dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    top = os.open(base, os.O_RDONLY)
    met = [one.name for one in trees.walk(top)]
    os.close(top)
    assert len(met) == 4 * LEVELS
    assert len(set(met)) == LEVELS + 3


def test_a_walk_goes_on_where_names_still_lead_when_directories_are_moved(base: Path) -> None:
    """Further up than what stays open: above is then not what it was."""
    at = os.open(base, os.O_RDONLY)
    for level in range(200):
        os.mkdir("d", dir_fd=at)
        os.mkdir(f"side-{level}", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    top = os.open(base, os.O_RDONLY)
    (base / "elsewhere").mkdir()
    seen: set[bytes] = set()
    for one in trees.walk(top, without=b"elsewhere"):
        seen.add(one.name)
        if one.name == b"side-199":
            # From the middle on it is elsewhere; its levels on the way there were shut.
            os.rename(base.joinpath(*["d"] * 100), base / "elsewhere" / "half")
            os.mkdir(base.joinpath(*["d"] * 100))
    assert {b"side-%d" % level for level in range(200)} <= seen
    os.close(top)


def test_undo_moves_deep_directories_back(base: Path) -> None:
    folder = base / "folder"
    with folder_at(folder) as served:
        os.close(grow(folder))
        for found in served.store.walk():
            served.store.identify(found.parent, found.entry.name)
        chain = chain_of(served.store)
        served.begin(required=True)
        # What hung below another one near the end is moved to the end of another tree.
        (folder / "other").mkdir()
        other = served.store.identify(ROOT_ID, b"other")
        parent = other
        for _ in range(LEVELS):
            new = served.store.new_id()
            made = Attributes(stat.S_IFDIR | 0o755, 0, 0, 0, 5)
            served.store.apply(Create(parent, b"d", new, made, 5))
            parent = new
        served.store.apply(Rename(chain[-2], b"d", parent, b"moved", 0, 7, 7))
        served.undo()
        served.end(SafetyEnd.UNDONE)
    assert depth_of(folder) == LEVELS


def chain_of(store: Store, levels: int = LEVELS, name: bytes = b"d") -> list[FileId]:
    """The ids of the directories, from the top on."""
    found = [ROOT_ID]
    for _ in range(levels):
        found.append(store.identify(found[-1], name))
    return found


def test_a_safety_copy_of_a_deep_tree_is_restored(base: Path, monkeypatch: Any) -> None:
    """Not from the top for each name, which takes the square of the time."""
    opened, steps = os.open, 0

    def counted(*arguments: Any, **named: Any) -> int:
        nonlocal steps
        steps += 1
        assert steps < 10 * LEVELS
        return opened(*arguments, **named)

    folder = base / "folder"
    with folder_at(folder) as served:
        last = grow(folder)
        file = identified(served.store, last)
        os.close(last)
        copy = served.begin(required=True)
        served.store.write(file, 0, b"something else")
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", counted)
            served.restore(copy, base / "to")
    assert depth_of(base / "to") == LEVELS


def test_a_deep_tree_is_copied_and_one_of_its_ends_moved_by_resyncs(base: Path) -> None:
    with pair_at(base) as pair:
        os.close(grow(pair.a.folder, FEWER_LEVELS, LONG_NAME))
        pair.a.primary.promote(Acknowledge.LOCAL)
        pair.resync(SessionStart.FULL)
        assert depth_of(pair.b.folder, LONG_NAME) == FEWER_LEVELS
        pair.a.primary.close_session(clean=False)
        pair.b.acceptor.close()
        pair.a.intent.enter_alone("g1")
        pair.a.primary.set_mode(Acknowledge.LOCAL)
        name = LONG_NAME.encode()
        chain = chain_of(pair.a.store, FEWER_LEVELS, name)
        Guest(pair.a).rename(chain[-6], name, chain[-9], b"moved")
        pair.a.store.reset()
        pair.resync(SessionStart.CANDIDATES)
        end = pair.b.store.find(chain[-9], b"moved").file
        assert end == chain[-5]
        assert pair.b.store.names(chain[-6]) == []
        assert pair.b.store.find(chain[-1], b"file").attributes.size == len(CONTENT)


def test_a_directory_is_brought_from_where_no_path_leads(base: Path) -> None:
    """What the source lists elsewhere is taken from its place here, if that is in the folder."""
    name = LONG_NAME.encode()
    with pair_at(base) as pair:
        os.close(grow(pair.b.folder, FEWER_LEVELS, LONG_NAME))
        store = pair.b.store
        chain = chain_of(store, FEWER_LEVELS, name)
        hello = Hello(SessionKey("g", Epoch(1, "a"), 1), SessionStart.FULL, -1, 7)
        target = TargetSide(store, pair.b.intent, 1, hello)
        attributes = store.attributes(Target(chain[-1]))

        def listed(file: FileId) -> ListedEntry:
            return ListedEntry(b"here", file, attributes, (), 2, b"")

        assert target._bring(chain[3], listed(chain[-1]))
        assert store.names(chain[-2]) == []
        assert store.find(chain[3], b"here").file == chain[-1]
        (base / "outside").mkdir()
        os.rename(pair.b.folder / "/".join([LONG_NAME] * 3) / "here", base / "outside" / "there")
        for file in (chain[-1], ROOT_ID):
            with pytest.raises(OSError, match="not in the folder"):
                target._bring(chain[2], listed(file))
        assert os.listdir(base / "outside") == ["there"]


@pytest.mark.fuse
def test_all_directories_above_get_ids_before_what_is_made_below(base: Path) -> None:
    """They were looked up while the node was standby, when nothing may be changed."""
    folder, run = base / "folder", base / "run"
    folder.mkdir()
    run.mkdir()
    os.close(grow(folder, FEWER_LEVELS))
    with Served(folder, run, primary=False) as served:
        at = os.open(folder, os.O_RDONLY)
        for _ in range(FEWER_LEVELS):
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        served.do("primary")
        os.mkdir("made", dir_fd=at)
        os.close(at)
        assert served.do("log") == ["SetXattr"] * FEWER_LEVELS + ["Create"]


def test_deep_cgroups_are_looked_through_and_removed(base: Path) -> None:
    """Of plain directories: the same calls, which no rights and no kernel stand against."""
    at = os.open(base, os.O_RDONLY)
    for name in ["run", *["d"] * FEWER_LEVELS]:
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    procs = os.open("cgroup.procs", os.O_WRONLY | os.O_CREAT, dir_fd=at)
    os.write(procs, b"%d\n" % os.getpid())
    os.close(procs)
    group = str(base / "run")
    assert tree._cgroup_members(group) == [os.getpid()]
    os.unlink("cgroup.procs", dir_fd=at)
    os.close(at)
    assert tree.ProcessTree("", group).remove()
    assert os.listdir(base) == []


@contextlib.contextmanager
def covered(folder: Path) -> Iterator[None]:
    """Another file system on top of it, as the mount is while a module is started."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_the_way_up_does_not_lead_into_what_covers_the_folder(base: Path) -> None:
    folder = base / "folder"
    (folder / "first" / "second").mkdir(parents=True)
    (base / "outside").mkdir()
    with contextlib.ExitStack() as ending:
        top, first, second, outside = (
            os.open(folder / name, os.O_RDONLY)
            for name in ("", "first", "first/second", "../outside")
        )
        for descriptor in (top, first, second, outside):
            ending.callback(os.close, descriptor)
        ending.enter_context(covered(folder))
        for lower, upper, name in ((first, top, b"first"), (second, first, b"second")):
            assert trees.is_below(top, lower)
            above = trees.open_above(top, lower)
            ending.callback(os.close, above)
            assert os.path.samestat(os.fstat(above), os.fstat(upper))
            assert trees.name_in(above, lower) == name
        assert not trees.is_below(top, outside)
        assert not trees.is_below(top, top)


def test_undo_moves_back_what_is_in_a_covered_folder_itself(base: Path) -> None:
    folder = base / "folder"
    (folder / "first" / "second").mkdir(parents=True)
    with folder_at(folder) as served:
        first = served.store.identify(ROOT_ID, b"first")
        served.store.identify(first, b"second")
        served.begin(required=True)
        served.store.apply(Rename(first, b"second", ROOT_ID, b"moved", 0, 7, 7))
        with covered(folder):
            served.undo()
        served.end(SafetyEnd.UNDONE)
    assert os.listdir(folder / "first") == ["second"]
    assert not (folder / "moved").exists()


def test_a_walk_stays_in_a_covered_folder_when_directories_are_moved(base: Path) -> None:
    """It asks nothing of the mount: whoever walks may be who serves it."""
    folder = base / "folder"
    folder.mkdir()
    os.close(grow(folder, 100))
    top = os.open(folder, os.O_RDONLY)
    half = os.open(folder / "/".join(["d"] * 50), os.O_RDONLY)
    met = 0
    with covered(folder):
        before = os.stat(folder).st_atime_ns
        for one in trees.walk(top):
            met += 1
            if one.name == b"file":
                os.rename("d", "moved", src_dir_fd=half, dst_dir_fd=top)
        assert os.stat(folder).st_atime_ns == before
    assert met == 101
    os.close(half)
    os.close(top)


@pytest.mark.parametrize("levels", [31, 32, 33, 1000, 1100])
def test_few_levels_stay_open_and_all_are_left_again(base: Path, levels: int) -> None:
    os.close(grow(base, levels))
    top = os.open(base, os.O_RDONLY)
    inodes, descent = [os.fstat(top).st_ino], trees.Descent(top)
    gc.collect()  # What earlier tests have left to it may be descriptors.
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(levels):
        descent.enter(b"d")
        inodes.append(os.fstat(descent.descriptor).st_ino)
        assert len(os.listdir("/proc/self/fd")) - before <= 3 * 32
    while descent.depth:
        assert os.fstat(descent.descriptor).st_ino == inodes.pop()
        descent.leave()
        assert len(os.listdir("/proc/self/fd")) - before <= 3 * 32
    assert inodes == [os.fstat(top).st_ino]
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(top)
