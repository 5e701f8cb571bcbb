"""What real programs put into the folder arrives on the other node, with all metadata."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.pair import Pair, PairOptions, difference

QUIET = PairOptions(
    module={
        "command = [": 'command = ["/bin/sleep", "100000"]  # [',
        "heartbeat = ": "# heartbeat = ",
    }
)
"""Something that writes nothing itself, so that two copies can be compared at leisure."""

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("options", [QUIET], ids=["quiet"])]


def generate(root: Path, dice: random.Random, files: int) -> None:
    """A tree with everything that copies get wrong."""
    directories = [root]
    for number in range(files // 25):
        parent = dice.choice(directories[-40:])
        name = dice.choice((f"d{number}", f"with blank {number}", f"ümläut-{number}", f"-{number}"))
        directories.append(parent / name)
        directories[-1].mkdir()
    made: list[Path] = []
    for number in range(files):
        path = dice.choice(directories) / dice.choice(
            (f"f{number}", f"new\nline{number}", f"tab\t{number}", f"*?[{number}]", f".h{number}")
        )
        kind = dice.random()
        if kind < 0.06 and made:
            os.link(dice.choice(made), path)
            continue
        if kind < 0.12:
            path.symlink_to(dice.choice(("/nowhere", "../x", "f1", "x" * 300)))
            continue
        if kind < 0.13:
            os.mkfifo(path)
            continue
        with open(path, "wb") as file:
            if kind < 0.16:
                for _ in range(dice.randrange(1, 4)):
                    file.seek(dice.randrange(0, 8 << 20))
                    file.write(dice.randbytes(dice.randrange(1, 20000)))
                file.truncate(dice.randrange(8 << 20, 9 << 20))
            else:
                file.write(dice.randbytes(int(dice.expovariate(1 / 3000))))
        made.append(path)
        os.chmod(path, dice.choice((0o644, 0o600, 0o755, 0o4755, 0o2750, 0)))
        if kind < 0.3:
            os.setxattr(path, "user.note", dice.randbytes(dice.randrange(1, 200)))
        if kind > 0.9:
            os.chown(path, dice.randrange(70000), dice.randrange(70000))
        os.utime(path, ns=(1_500_000_000_123_456_789, dice.randrange(1, 2 * 10**18)))


async def run(*command: str, cwd: Path) -> None:
    """A program in the folder, as a user would run it there."""
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=cwd, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, (command, done.stdout[-500:], done.stderr[-500:])


async def settled_and_equal(pair: Pair, limit_s: float = 15) -> None:
    """The secondary's copy, read through its standby mount, becomes and stays equal."""
    found = "never compared"
    for _ in range(int(limit_s)):
        found = await asyncio.to_thread(difference, pair.folder("node1"), pair.folder("node2"))
        if not found:
            return
        await asyncio.sleep(1)
    raise AssertionError(found[:3000])


async def test_tree_of_5000_files(pair: Pair, tmp_path: Path) -> None:
    """`cp -a` of files with holes, links, xattrs and odd names; then changes; then a resync."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    source = tmp_path / "tree"
    new = tmp_path / "new"
    source.mkdir()
    new.mkdir()
    await asyncio.to_thread(generate, source, random.Random(seed), 5000)
    await pair.redundant()
    folder = pair.folder("node1")
    await run("cp", "-a", str(source), str(folder / "tree"), cwd=tmp_path)
    assert not await asyncio.to_thread(difference, source, folder / "tree")
    await settled_and_equal(pair)
    await pair.kill("node2")
    await pair.roles(10, node1="ALONE")
    tree = folder / "tree"
    directories = [one for one in tree.iterdir() if not one.is_symlink() and one.is_dir()]
    for number, one in enumerate(directories):
        if number % 3 == 0:
            await asyncio.to_thread(shutil.rmtree, one)
        elif number % 3 == 1:
            one.rename(tree / f"moved-{number}")
    # The resync meets 5000 others, moved or removed: ten times as many new ones take 20 s more, for
    # nothing that these do not have.
    await asyncio.to_thread(generate, new, random.Random(seed + 1), 500)
    await run("cp", "-a", str(new), str(folder / "again"), cwd=tmp_path)
    await pair.start("node2")
    await pair.roles(60, node1="PRIM", node2="SECOND")
    await settled_and_equal(pair)


async def test_programs(pair: Pair, tmp_path: Path) -> None:
    """SQLite (WAL and rollback), git, tar, gcc-like renames, a socket, and a failover after all."""
    await pair.redundant()
    folder = pair.folder("node1")
    for mode in ("wal", "delete", "truncate"):
        await asyncio.to_thread(_database, folder / f"{mode}.db", mode)
    await run("git", "init", "-q", "repository", cwd=folder)
    git = folder / "repository"
    await run("git", "config", "user.email", "a@b", cwd=git)
    await run("git", "config", "user.name", "a", cwd=git)
    for number in range(3):
        (git / f"file{number}").write_text("line\n" * 1000 * (number + 1))
        await run("git", "add", "-A", cwd=git)
        await run("git", "commit", "-q", "-m", f"commit {number}", cwd=git)
    await run("git", "gc", "-q", cwd=git)
    await run("git", "fsck", "--full", cwd=git)
    await run("tar", "-cf", "all.tar", "repository", cwd=folder)
    await run("tar", "-xf", "all.tar", "--one-top-level=unpacked", cwd=folder)
    os.mknod(folder / "s", stat.S_IFSOCK | 0o600)
    for number in range(50):
        new = folder / "replaced.new"
        new.write_text(str(number))
        os.replace(new, folder / "replaced")
    await settled_and_equal(pair)
    await pair.kill("node1")
    await pair.roles(10, node2="ALONE")
    other = pair.folder("node2")
    await run("git", "fsck", "--full", cwd=other / "repository")
    assert (other / "replaced").read_text() == "49"
    for mode in ("wal", "delete", "truncate"):
        database = sqlite3.connect(other / f"{mode}.db")
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM t").fetchone() == (500,)
        database.close()


def _database(path: Path, mode: str) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"PRAGMA journal_mode={mode}")
    database.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
    for number in range(25):
        database.execute("BEGIN")
        for _ in range(20):
            database.execute("INSERT INTO t(b) VALUES (randomblob(1000))")
        database.execute("COMMIT" if number % 5 else "END")
    database.execute("VACUUM")
    database.close()
