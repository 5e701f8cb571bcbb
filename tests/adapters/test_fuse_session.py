"""The FUSE session on real files: programs, POSIX details, caches, roles (M1-M3, M8, Z7, Z9)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyperha.replication.fuse.protocol import Feature
from tests.support.engine_pair import wait_for
from tests.support.fuse_local import Served, compare

pytestmark = [pytest.mark.root, pytest.mark.fuse]

MIB = 1 << 20


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    # Not of this second: a copy that began with times of its own must not look equal by chance.
    os.utime(tmp_path / "folder", (1_500_000_000, 1_500_000_000))
    return tmp_path / "folder"


@pytest.fixture
def mirror(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "mirror")


@pytest.fixture
def served(folder: Path, run: Path, mirror: Path) -> Iterator[Served]:
    """A primary whose every change also went to `mirror`, which must be equal in the end."""
    with Served(folder, run, mirror=mirror) as session:
        yield session
        session.do("times")
        assert compare(folder, mirror) == ""


def shell(command: str, folder: Path) -> str:
    result = subprocess.run(
        ["bash", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=90
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def failure(action: Callable[[], object]) -> int:
    with pytest.raises(OSError, match="Errno") as caught:
        action()
    assert caught.value.errno is not None
    return caught.value.errno


# --- programs ------------------------------------------------------------------------------


def test_copy_tar_and_rsync(served: Served, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shell(
        "mkdir -p a/b; echo 1 > a/one; ln a/one a/b/two; ln -s ../one a/b/three; mkfifo a/pipe;"
        "mknod a/null c 1 3; chmod 4751 a/one; chown 12:34 a/b; truncate -s 5M a/hole;"
        "printf x | dd of=a/hole bs=1 seek=3000000 conv=notrunc status=none; touch -d @1 a;"
        "setfattr -n user.note -v text a/one; printf 'odd' > $'a/\\377\\n'",
        source,
    )
    shell(
        f"cp -a {source}/a copied && tar -C {source} --xattrs -cf - a | tar --xattrs -xf -", folder
    )
    shell(f"mkdir r && rsync -aHAX {source}/ r/", folder)
    assert compare(source / "a", folder / "copied") == ""
    assert compare(source / "a", folder / "r" / "a") == ""
    assert compare(source / "a", folder / "a") == ""


def test_git(served: Served, folder: Path) -> None:
    shell(
        "git init -q . && git config user.email a@b && git config user.name n;"
        "for i in $(seq 200); do echo $i > f$i; done; git add . && git commit -qm one;"
        "git mv f1 g1 && rm f2 && git commit -qam two && git gc -q && git fsck --strict",
        folder,
    )
    assert shell("git status --porcelain", folder) == ""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite(served: Served, folder: Path, journal: str) -> None:
    link = sqlite3.connect(folder / "data.db")
    assert link.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
    link.execute("create table t(a integer primary key, b blob)")
    other = sqlite3.connect(folder / "data.db")
    for number in range(50):
        with link:
            link.execute("insert into t values(?, ?)", (number, os.urandom(3000)))
        assert other.execute("select count(*) from t").fetchone() == (number + 1,)
    assert other.execute("pragma integrity_check").fetchone() == ("ok",)
    other.close()
    link.close()


def test_many_files(served: Served, folder: Path) -> None:
    shell(
        "for d in $(seq 50); do mkdir d$d; for f in $(seq 100); do echo $f > d$d/$f; done; done",
        folder,
    )
    assert int(shell("find . -type f | wc -l", folder)) == 5000
    shell("rm -r d1 d2; find . -name 7 | xargs rm", folder)
    assert int(shell("ls -R | grep -c '^[0-9]*$'", folder)) >= 4752


def test_fio_verifies_what_it_wrote(served: Served, folder: Path) -> None:
    for direct in (0, 1):
        shell(
            f"fio --name=v{direct} --size=16m --rw=randwrite --bs=4k-64k --verify=crc32c "
            f"--direct={direct} --ioengine=libaio --iodepth=8 --verify_fatal=1 --end_fsync=1",
            folder,
        )


# --- details -------------------------------------------------------------------------------


def test_shared_mapping(served: Served, folder: Path) -> None:
    (folder / "m").write_bytes(bytes(65536))
    with open(folder / "m", "r+b") as file, mmap.mmap(file.fileno(), 65536) as memory:
        memory[5000:5005] = b"hello"
        memory.flush()
        assert os.pread(file.fileno(), 5, 5000) == b"hello"
        os.pwrite(file.fileno(), b"world", 9000)
        assert memory[9000:9005] == b"world"


@pytest.mark.parametrize("disabled", [0, Feature.DIRECT_IO_ALLOW_MMAP])
@pytest.mark.parametrize("direct_first", [True, False])
def test_direct_and_cached_handles_agree(
    folder: Path, run: Path, disabled: int, direct_first: bool
) -> None:
    page = mmap.mmap(-1, 4096)
    path = folder / "disk"
    with Served(folder, run, disabled=int(disabled)):
        path.write_bytes(b"a" * 8192)
        kinds = [os.O_RDWR | os.O_DIRECT, os.O_RDWR]
        fds = {kind: os.open(path, kind) for kind in (kinds if direct_first else kinds[::-1])}
        direct, cached = fds[kinds[0]], fds[kinds[1]]
        try:
            for letter in (b"b", b"c", b"d"):
                page[:] = letter * 4096
                assert os.pwritev(direct, [page], 4096) == 4096
                assert os.pread(cached, 4096, 4096) == letter * 4096
                assert os.pwrite(cached, letter * 10, 0) == 10
                os.preadv(direct, [page], 0)
                assert page[:10] == letter * 10
        finally:
            os.close(cached)
            os.close(direct)


def test_reads_that_have_to_wait_for_the_disk(folder: Path, run: Path) -> None:
    content = os.urandom(3 * MIB + 777)
    (folder / "cold").write_bytes(content)
    os.truncate(folder / "cold", 5 * MIB)
    backing = os.open(folder / "cold", os.O_RDONLY)
    page = mmap.mmap(-1, 65536)
    expected = content + bytes(5 * MIB - len(content))
    try:
        os.fsync(backing)
        with Served(folder, run):
            os.posix_fadvise(backing, 0, 0, os.POSIX_FADV_DONTNEED)
            fd = os.open(folder / "cold", os.O_RDONLY | os.O_DIRECT)
            try:
                for offset in (4 * MIB, 2 * MIB, 3 * MIB, 0):
                    assert os.preadv(fd, [page], offset) == 65536
                    assert page[:] == expected[offset : offset + 65536]
            finally:
                os.close(fd)
            os.posix_fadvise(backing, 0, 0, os.POSIX_FADV_DONTNEED)
            assert (folder / "cold").read_bytes() == expected
    finally:
        os.close(backing)


def test_holes_and_allocation(served: Served, folder: Path) -> None:
    path = folder / "sparse"
    shell(
        "truncate -s 10M sparse;printf data | dd of=sparse bs=1M seek=4 conv=notrunc status=none",
        folder,
    )
    fd = os.open(path, os.O_RDWR)
    try:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 4 * MIB
        assert os.lseek(fd, 4 * MIB, os.SEEK_HOLE) < 10 * MIB
        assert failure(lambda: os.lseek(fd, 9 * MIB, os.SEEK_DATA)) == errno.ENXIO
        os.pwrite(fd, b"z" * (2 * MIB), 0)
        shell("fallocate -p -o 4096 -l 1M sparse", folder)
        assert os.pread(fd, MIB, 4096) == bytes(MIB)
        shell("fallocate -l 12M sparse && fallocate -z -o 0 -l 4096 sparse", folder)
        assert os.fstat(fd).st_size == 12 * MIB
        assert os.pread(fd, 4096, 0) == bytes(4096)
        assert failure(lambda: collapse(fd)) == errno.EOPNOTSUPP
    finally:
        os.close(fd)


def collapse(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, 8, ctypes.c_int64(0), ctypes.c_int64(4096)):
        raise OSError(ctypes.get_errno(), "Errno")


def test_unlinked_files_go_on_working(served: Served, folder: Path) -> None:
    fd = os.open(folder / "gone", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"before")
        os.unlink(folder / "gone")
        writes = served.do("counters")["writes"]
        os.write(fd, b" after")
        os.ftruncate(fd, 9)
        os.fchmod(fd, 0o600)
        os.fsync(fd)
        assert os.pread(fd, 100, 0) == b"before af"
        assert os.fstat(fd).st_nlink == 0
        assert served.do("counters")["writes"] == writes
    finally:
        os.close(fd)


def test_a_replaced_file_keeps_its_old_reader(served: Served, folder: Path) -> None:
    (folder / "a").write_text("old")
    (folder / "b").write_text("new")
    with open(folder / "a") as reader:
        os.rename(folder / "b", folder / "a")
        assert reader.read() == "old"
    assert (folder / "a").read_text() == "new"


def test_removed_directory_as_working_directory(served: Served, folder: Path) -> None:
    shell(
        f"mkdir w && cd w && rmdir {folder}/w && stat . >/dev/null && ! touch x 2>/dev/null", folder
    )


def test_append_and_truncate_on_open(served: Served, folder: Path) -> None:
    shell(
        "echo one > log;"
        "for i in 1 2 3; do (for j in $(seq 50); do echo $i$j >> log; done) & done; wait",
        folder,
    )
    assert len((folder / "log").read_text().splitlines()) == 151
    (folder / "log").write_text("x")
    assert (folder / "log").stat().st_size == 1


def test_rename_flags(served: Served, folder: Path) -> None:
    from hyperha.replication import syscalls

    (folder / "a").write_text("a")
    (folder / "b").write_text("b")
    fd = os.open(folder, os.O_RDONLY)
    try:
        assert failure(lambda: syscalls.rename(fd, b"a", fd, b"b", 1)) == errno.EEXIST
        syscalls.rename(fd, b"a", fd, b"b", 2)
        assert ((folder / "a").read_text(), (folder / "b").read_text()) == ("b", "a")
        assert failure(lambda: syscalls.rename(fd, b"a", fd, b"c", 4)) == errno.EINVAL
    finally:
        os.close(fd)


def test_errors_have_the_right_number(served: Served, folder: Path) -> None:
    (folder / "file").write_text("x")
    (folder / "dir").mkdir()
    (folder / "dir" / "inner").mkdir()
    assert failure(lambda: os.stat(folder / "none")) == errno.ENOENT
    assert failure(lambda: os.mkdir(folder / "dir")) == errno.EEXIST
    assert failure(lambda: os.rmdir(folder / "dir")) == errno.ENOTEMPTY
    assert failure(lambda: os.unlink(folder / "dir")) == errno.EISDIR
    assert failure(lambda: os.rmdir(folder / "file")) == errno.ENOTDIR
    assert failure(lambda: os.open(folder / "file" / "x", os.O_RDONLY)) == errno.ENOTDIR
    assert (
        failure(lambda: os.rename(folder / "dir", folder / "dir" / "inner" / "y")) == errno.EINVAL
    )
    assert failure(lambda: os.stat(folder / ("n" * 256))) == errno.ENAMETOOLONG
    assert failure(lambda: os.open(folder / "file", os.O_CREAT | os.O_EXCL)) == errno.EEXIST
    assert failure(lambda: os.getxattr(folder / "file", "user.none")) == errno.ENODATA
    assert failure(lambda: os.removexattr(folder / "file", "user.none")) == errno.ENODATA
    assert failure(lambda: os.truncate(folder / "file", -1)) == errno.EINVAL
    (folder / ("n" * 255)).write_text("long")
    os.mkfifo(folder / "fifo")
    assert stat.S_ISFIFO(os.stat(folder / "fifo").st_mode)


def test_hyperha_is_invisible(served: Served, folder: Path) -> None:
    assert failure(lambda: os.stat(folder / ".hyperha")) == errno.ENOENT
    assert failure(lambda: os.mkdir(folder / ".hyperha")) == errno.EPERM
    (folder / "file").write_text("x")
    assert failure(lambda: os.rename(folder / "file", folder / ".hyperha")) == errno.EPERM
    assert os.listxattr(folder / "file") == []
    assert failure(lambda: os.getxattr(folder / "file", "trusted.hyperha.id")) == errno.ENODATA
    assert failure(lambda: os.setxattr(folder / "file", "trusted.hyperha.id", b"")) == errno.EPERM
    assert os.listdir(folder) == ["file"]


def test_xattrs(served: Served, folder: Path) -> None:
    path = folder / "file"
    path.write_text("x")
    os.setxattr(path, "user.big", b"v" * 3000)
    os.setxattr(path, "trusted.own", b"a\0b")
    assert os.getxattr(path, "user.big") == b"v" * 3000
    assert failure(lambda: os.setxattr(path, "user.big", b"", os.XATTR_CREATE)) == errno.EEXIST
    assert failure(lambda: os.setxattr(path, "user.no", b"", os.XATTR_REPLACE)) == errno.ENODATA
    assert sorted(os.listxattr(path)) == ["trusted.own", "user.big"]
    os.removexattr(path, "user.big")
    assert os.listxattr(path) == ["trusted.own"]


def test_access_lists_and_inherited_groups(served: Served, folder: Path) -> None:
    if shutil.which("setfacl") is None:
        access_lists_by_hand(folder)
    else:
        shell("mkdir d && setfacl -d -m u:1234:rw d && umask 077 && touch d/f && mkdir d/s", folder)
        assert "user:1234:rw-" in shell("getfacl d/f", folder)
        assert "default:user:1234:rw-" in shell("getfacl d/s", folder)
    shell("mkdir g && chown :77 g && chmod 2775 g && touch g/f && mkdir g/s", folder)
    assert (folder / "g" / "f").stat().st_gid == 77
    assert (folder / "g" / "s").stat().st_mode & stat.S_ISGID


def access_lists_by_hand(folder: Path) -> None:
    """A default list (owner rwx, user 1234 rw, group r, mask rw, other none), as bytes."""
    import struct

    entries = [
        (1, 7, 0xFFFFFFFF),
        (2, 6, 1234),
        (4, 4, 0xFFFFFFFF),
        (16, 6, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    ]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    (folder / "d").mkdir()
    os.setxattr(folder / "d", "system.posix_acl_default", value)
    old = os.umask(0o077)
    try:
        (folder / "d" / "f").write_text("x")
        (folder / "d" / "s").mkdir()
    finally:
        os.umask(old)
    assert os.getxattr(folder / "d" / "s", "system.posix_acl_default") == value
    assert len(os.getxattr(folder / "d" / "f", "system.posix_acl_access")) == len(value)
    assert stat.S_IMODE((folder / "d" / "f").stat().st_mode) == 0o660


def test_writing_clears_set_id_bits_and_capabilities(served: Served, folder: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    for name, writer in (("w", "printf y >> w"), ("t", "truncate -s 5 t"), ("o", "printf z > o")):
        path = folder / name
        path.write_text("x")
        os.setxattr(path, "security.capability", capability)
        path.chmod(0o6777)
        subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", writer],
            cwd=folder,
            check=True,
        )
        assert stat.S_IMODE(path.stat().st_mode) == 0o777, name
        assert os.listxattr(path) == [], name
    path = folder / "c"
    path.write_text("x")
    path.chmod(0o6777)
    os.chown(path, 5, 6)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_what_is_made_after_a_touch_is_not_older(served: Served, folder: Path) -> None:
    """As make(1) and stamp files expect: one clock for both, that of the file system."""
    for number in range(100):
        (folder / "stamp").touch()
        os.close(os.open(folder / f"made{number}", os.O_CREAT | os.O_WRONLY))
        made = (folder / f"made{number}").stat().st_mtime_ns
        assert made >= (folder / "stamp").stat().st_mtime_ns, number


def test_times(served: Served, folder: Path) -> None:
    path = folder / "file"
    path.write_text("x")
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    before = path.stat().st_ctime_ns
    with open(path, "a") as file:
        file.write("more")
    assert path.stat().st_mtime_ns > before
    assert path.stat().st_size == 5
    shell("touch -a file; touch -h -d @5 file", folder)


def test_hard_links_share_one_inode(served: Served, folder: Path) -> None:
    (folder / "a").write_text("1")
    os.link(folder / "a", folder / "b")
    assert (folder / "a").stat().st_ino == (folder / "b").stat().st_ino
    assert (folder / "b").stat().st_nlink == 2
    with open(folder / "a", "r+") as file:
        file.write("2")
    assert (folder / "b").read_text() == "2"


def test_other_users_are_kept_out(served: Served, folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "secret").write_text("x")
    (folder / "secret").chmod(0o600)
    user = ["setpriv", "--reuid=65534", "--clear-groups"]
    assert subprocess.run([*user, "cat", "secret"], cwd=folder, capture_output=True).returncode == 1
    assert subprocess.run([*user, "touch", "new"], cwd=folder, capture_output=True).returncode == 1
    folder.chmod(0o777)
    subprocess.run([*user, "touch", "mine"], cwd=folder, check=True)
    assert (folder / "mine").stat().st_uid == 65534


def test_forgotten_nodes_leave_the_table(served: Served, folder: Path) -> None:
    for number in range(300):
        (folder / f"f{number}").write_text("x")
    assert served.do("nodes") >= 300
    for number in range(300):
        (folder / f"f{number}").unlink()
    wait_for(lambda: served.do("nodes") <= 2)


@pytest.mark.parametrize("make", ["mkdir", "mknod", "symlink", "link", "open"])
def test_what_ended_with_an_error_is_not_looked_up(served: Served, folder: Path, make: str) -> None:
    """M7, M8: the kernel was told of no node, so it never says that it forgets one."""
    (folder / "old").write_text("x")
    wait_for(lambda: served.do("handles") == 0)
    steps = {
        "mkdir": lambda: os.mkdir(folder / "new"),
        "mknod": lambda: os.mknod(folder / "new", stat.S_IFREG | 0o600),
        "symlink": lambda: os.symlink("old", folder / "new"),
        "link": lambda: os.link(folder / "old", folder / "new"),
        "open": lambda: os.open(folder / "new", os.O_CREAT | os.O_WRONLY),
    }
    served.do("hold")
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(failure, steps[make])
        wait_for(lambda: served.do("counters")["parked"])
        served.do("release", errno.EIO)
        assert ended.result(10) == errno.EIO
    assert served.do("handles") == 0
    if make == "mkdir":
        (folder / "new").rmdir()
    else:
        (folder / "new").unlink()
    (folder / "old").unlink()
    wait_for(lambda: served.do("nodes") == 1, 5)


# --- barriers ------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [os.O_DSYNC, os.O_SYNC])
def test_synchronous_flags_are_barriers(served: Served, folder: Path, flag: int) -> None:
    page = mmap.mmap(-1, 4096)
    fd = os.open(folder / "disk", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        os.pwritev(fd, [page], 0)
        assert served.do("counters")["barriers"] == 0
        os.pwritev(fd, [page], 0, os.RWF_DSYNC)
        assert served.do("counters")["barriers"] == 1
    finally:
        os.close(fd)
    fd = os.open(folder / "disk", os.O_RDWR | os.O_DIRECT | flag)
    try:
        os.pwritev(fd, [page], 4096)
        assert served.do("counters")["barriers"] == 2
        assert served.do("counters")["flushes"] == 0
    finally:
        os.close(fd)
    fd = os.open(folder / "disk", os.O_RDWR)
    try:
        os.pwrite(fd, b"x", 0)
        os.fsync(fd)
        os.fdatasync(fd)
        assert served.do("counters")["flushes"] == 2
    finally:
        os.close(fd)
    root = os.open(folder, os.O_RDONLY)
    os.fsync(root)
    os.close(root)
    assert served.do("counters")["flushes"] == 3


@pytest.mark.parametrize("engine", ["psync", "libaio", "io_uring"])
def test_asynchronous_engines_keep_their_barriers(
    served: Served, folder: Path, engine: str
) -> None:
    shell(
        f"fio --name=b --filename=b --size=1m --rw=randwrite --bs=4k --direct=1 --sync=dsync "
        f"--ioengine={engine} --iodepth=8",
        folder,
    )
    assert served.do("counters")["barriers"] >= 256


def test_close_tells_that_a_written_file_is_done(served: Served, folder: Path) -> None:
    (folder / "a").write_text("x")
    assert served.do("idle", 2000)
    assert served.do("counters")["closed"] == 1
    with open(folder / "a") as file:
        file.read()
        assert served.do("handles") == 1
    assert served.do("idle", 2000)
    assert served.do("counters")["closed"] == 1


# --- roles ---------------------------------------------------------------------------------


def test_standby_shows_everything_and_takes_nothing(folder: Path, run: Path) -> None:
    (folder / "file").write_text("one")
    (folder / "dir").mkdir()
    backing = os.open(folder, os.O_RDONLY)
    try:
        with Served(folder, run, primary=False):
            fd = os.open(folder / "file", os.O_RDWR)
            try:
                assert os.pread(fd, 10, 0) == b"one"
                assert failure(lambda: os.pwrite(fd, b"x", 0)) == errno.EROFS
                assert failure(lambda: os.ftruncate(fd, 0)) == errno.EROFS
                for action in (
                    lambda: os.mkdir(folder / "new"),
                    lambda: os.unlink(folder / "file"),
                    lambda: os.rmdir(folder / "dir"),
                    lambda: os.rename(folder / "file", folder / "x"),
                    lambda: os.link(folder / "file", folder / "x"),
                    lambda: os.symlink("x", folder / "x"),
                    lambda: os.chmod(folder / "file", 0o600),
                    lambda: os.utime(folder / "file"),
                    lambda: os.setxattr(folder / "file", "user.x", b""),
                    lambda: os.open(folder / "new", os.O_CREAT | os.O_RDWR),
                    lambda: os.open(folder / "file", os.O_RDWR | os.O_TRUNC),
                    lambda: os.posix_fallocate(fd, 0, 10),
                ):
                    assert failure(action) == errno.EROFS
                # What the applier of a secondary does beneath is seen at once (M2, E5).
                changed = os.open("file", os.O_RDWR, dir_fd=backing)
                os.pwrite(changed, b"two and more", 0)
                os.close(changed)
                assert os.pread(fd, 100, 0) == b"two and more"
                assert os.fstat(fd).st_size == 12
                os.mkdir("late", dir_fd=backing)
                assert (folder / "late").is_dir()
                os.rmdir("late", dir_fd=backing)
                assert not (folder / "late").exists()
            finally:
                os.close(fd)
        assert (folder / "file").read_text() == "two and more"
    finally:
        os.close(backing)


def test_promotion_keeps_handles_and_begins_to_take_writes(folder: Path, run: Path) -> None:
    (folder / "disk").write_bytes(b"a" * 8192)
    backing = os.open(folder / "disk", os.O_RDWR)
    try:
        with Served(folder, run, primary=False) as session:
            fd = os.open(folder / "disk", os.O_RDWR)
            reader = os.open(folder / "disk", os.O_RDONLY)
            memory = mmap.mmap(reader, 8192, prot=mmap.PROT_READ)
            try:
                assert memory[:4] == b"aaaa"
                os.pwrite(backing, b"b" * 8192, 0)
                session.do("primary")
                assert memory[:4] == b"bbbb"
                assert (folder / "disk").read_bytes() == b"b" * 8192
                assert os.pwrite(fd, b"c", 0) == 1
                assert (folder / "disk").read_bytes()[:2] == b"cb"
            finally:
                memory.close()
                os.close(fd)
                os.close(reader)
    finally:
        os.close(backing)


def test_files_of_before_get_their_ids_in_whatever_way_they_are_reached(
    folder: Path, run: Path, mirror: Path
) -> None:
    for top in (folder, mirror):
        (top / "d" / "e").mkdir(parents=True)
        for name in ("d/e/disk", "d/e/mode", "d/e/plain"):
            (top / name).write_bytes(b"a" * 8192)
    shell(f"rsync -aHAX {folder}/ {mirror}/", folder)
    with Served(folder, run, mirror=mirror, primary=False) as session:
        disk = os.open(folder / "d" / "e" / "disk", os.O_RDWR)
        mode = os.open(folder / "d" / "e" / "mode", os.O_RDWR)
        inner = os.open(folder / "d" / "e", os.O_RDONLY)
        try:
            session.do("primary")
            os.pwrite(disk, b"changed", 100)
            os.fchmod(mode, 0o751)
            os.posix_fallocate(mode, 0, 10000)
            os.mkdir("new", dir_fd=inner)
            (folder / "d" / "e" / "plain").rename(folder / "d" / "moved")
        finally:
            for fd in (disk, mode, inner):
                os.close(fd)
        session.do("times")
        assert session.do("log").count("SetXattr") == 5
        assert compare(folder, mirror) == ""


@contextmanager
def immutable(folder: Path, *names: str) -> Iterator[Callable[[], None]]:
    """Files that cannot be changed, until what is given is called."""
    opened = os.open(folder, os.O_RDONLY)

    def flag(change: str) -> None:
        # The folder's path may be covered by a mount by now.
        for name in names:
            place = f"/proc/{os.getpid()}/fd/{opened}/{name}"
            subprocess.run(["chattr", change, place], check=True)

    flag("+i")
    try:
        yield lambda: flag("-i")
    finally:
        flag("-i")
        os.close(opened)


def test_a_file_of_before_that_takes_no_id_can_be_read(folder: Path, run: Path) -> None:
    """A plain folder shows it; only who wants to change it needs its id."""
    (folder / "d").mkdir()
    fixed, inner = folder / "fixed", folder / "d" / "inner"
    fixed.write_text("as it is")
    inner.write_text("below")
    with immutable(folder, "fixed", "d") as free, Served(folder, run) as session:
        assert fixed.stat().st_size == 8
        assert fixed.read_text() == "as it is"
        assert inner.read_text() == "below"
        assert sorted(os.listdir(folder)) == ["d", "fixed"]
        assert os.listdir(folder / "d") == ["inner"]
        for change in (
            lambda: fixed.write_text("other"),
            lambda: fixed.chmod(0o600),
            lambda: fixed.rename(folder / "moved"),
            lambda: fixed.unlink(),
            lambda: os.truncate(fixed, 1),
            lambda: os.link(fixed, folder / "again"),
            lambda: os.setxattr(fixed, "user.a", b"b"),
            lambda: (folder / "d" / "new").touch(),
            lambda: inner.unlink(),
        ):
            assert failure(change) == errno.EPERM
        assert fixed.read_text() == "as it is"
        assert session.do("log") == []
        free()
        fixed.write_text("free")
        inner.write_text("again")
        assert session.do("log").count("SetXattr") == 3
        assert (fixed.read_text(), inner.read_text()) == ("free", "again")


def test_a_file_without_room_for_its_id_can_be_read(folder: Path, run: Path) -> None:
    """Where a file system gives a file little room for its attributes (ext4)."""
    path = folder / "full"
    path.write_text("text")
    for size in (60_000, 3000, 500, 50, 10, 1):
        with contextlib.suppress(OSError):
            for number in range(100):
                os.setxattr(path, f"user.{size}.{number}", bytes(size))
    with Served(folder, run) as session:
        assert path.read_text() == "text"
        identified = session.do("log") == ["SetXattr"]
        if identified:
            path.write_text("other")
        else:
            assert failure(lambda: path.write_text("other")) == errno.ENOSPC
        path.rename(folder / "moved")
        (folder / "moved").unlink()
        assert os.listdir(folder) == []


def test_a_pipeline_that_stops_taking_writes(served: Served, folder: Path) -> None:
    (folder / "file").write_text("x")
    served.do("refuse")
    assert failure(lambda: (folder / "new").write_text("x")) == errno.EROFS
    with open(folder / "file", "r+b", buffering=0) as file:
        assert failure(lambda: file.write(b"y")) == errno.EROFS


def test_room_on_the_peer_bounds_statfs(served: Served, folder: Path) -> None:
    served.do("room", 1 << 20)
    status = os.statvfs(folder)
    assert status.f_bavail * status.f_frsize <= 1 << 20


@pytest.mark.parametrize(
    "feature",
    [
        Feature.HANDLE_KILLPRIV_V2,
        Feature.DIRECT_IO_ALLOW_MMAP,
        Feature.DO_READDIRPLUS,
        Feature.MAX_PAGES,
        Feature.ATOMIC_O_TRUNC,
        Feature.SETXATTR_EXT,
        Feature.POSIX_ACL,
        Feature.EXPLICIT_INVAL_DATA,
    ],
)
def test_without_a_kernel_feature(folder: Path, run: Path, mirror: Path, feature: int) -> None:
    with Served(folder, run, mirror=mirror, disabled=int(feature)) as session:
        assert not session.do("features") & feature
        shell(
            "mkdir a && seq 100000 > a/f && cp a/f a/g && chmod 4755 a/g && printf x > a/f;"
            "setfattr -n user.a -v b a/g; cmp a/g <(seq 100000); ls -l a",
            folder,
        )
        session.do("times")
        assert compare(folder, mirror) == ""
