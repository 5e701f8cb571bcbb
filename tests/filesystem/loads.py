"""Programs under load and what must hold of their data afterwards, on whichever node.

What was acknowledged is written down outside the folder, at the moment it was.
"""

from __future__ import annotations

import os
import pwd
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

Running = subprocess.Popen[bytes]


class Load(Protocol):
    """One program. Methods may wait; they are called in a thread."""

    def prepare(self, folder: Path) -> None:
        """Before the first round."""

    def start(self, folder: Path) -> Running:
        """Begin to work there, as a process group of its own."""

    def wait_for_progress(self, limit_s: float) -> None:
        """Until something has been acknowledged since `start`."""

    def check(self, folder: Path) -> int:
        """How much was acknowledged in all; AssertionError when some of it is missing."""


def run(*command: str, cwd: Path | None = None, limit_s: float = 120.0) -> str:
    """A command that must succeed; what it said."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s,
        text=True, check=False, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, (command, done.returncode, done.stdout[-3000:])
    return done.stdout


class _Noted:
    """A load that notes each acknowledgement as a line of a file outside the folder."""

    def __init__(self, place: Path) -> None:
        self.notes = place / "acknowledged"
        self.notes.touch()
        self._before = 0

    def lines(self) -> list[str]:
        text = self.notes.read_text(encoding="ascii")
        # The last line may be half written: its load was killed.
        return text[: text.rfind("\n") + 1].splitlines()

    def script(self, source: str, folder: Path) -> Running:
        self._before = len(self.lines())
        with open(self.notes, "ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", source, str(folder), str(self._before)],
                stdout=output,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait_for_progress(self, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while len(self.lines()) <= self._before + 3:
            assert time.monotonic() < end, f"no progress within {limit_s} s"
            time.sleep(0.05)


_SQLITE = """
import os, sqlite3, sys
folder, number = sys.argv[1], int(sys.argv[2])
bases = [sqlite3.connect(os.path.join(folder, one + ".db"), isolation_level=None)
         for one in ("wal", "delete")]
for base, mode in zip(bases, ("wal", "delete")):
    base.execute("PRAGMA journal_mode=" + mode)
    base.execute("PRAGMA synchronous=FULL")
    base.execute("CREATE TABLE IF NOT EXISTS t (number INTEGER PRIMARY KEY, data BLOB)")
while True:
    number += 1
    for base in bases:
        base.execute("BEGIN IMMEDIATE")
        base.execute("INSERT OR REPLACE INTO t VALUES (?, randomblob(?))", (number, number % 9000))
        base.execute("UPDATE t SET data = randomblob(500) WHERE number = ?", (number // 2,))
        base.execute("COMMIT")
    os.write(1, b"%d\\n" % number)
"""


class SQLite(_Noted):
    """Two databases, with a write-ahead log and with a rollback journal."""

    def prepare(self, folder: Path) -> None:
        """Nothing: the load makes its tables."""

    def start(self, folder: Path) -> Running:
        return self.script(_SQLITE, folder)

    def check(self, folder: Path) -> int:
        wanted = {int(one) for one in self.lines()}
        for name in ("wal", "delete"):
            database = sqlite3.connect(folder / f"{name}.db")
            try:
                state = database.execute("PRAGMA integrity_check").fetchone()
                assert state == ("ok",), (name, state)
                found = {row[0] for row in database.execute("SELECT number FROM t")}
            finally:
                database.close()
            assert wanted <= found, f"{name}: lost {sorted(wanted - found)[:5]}"
        return len(wanted)


_GIT = """
import os, random, subprocess, sys
folder, number = os.path.join(sys.argv[1], "repository"), int(sys.argv[2])
def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, stdout=subprocess.PIPE)
    return done.stdout
while True:
    number += 1
    with open(os.path.join(folder, "file%d" % (number % 20)), "wb") as file:
        file.write(os.urandom(random.randrange(1, 50000)))
    git("add", "-A")
    git("commit", "-q", "--allow-empty", "-m", str(number))
    if number % 15 == 0:
        git("gc", "-q")
    os.write(1, git("rev-parse", "HEAD"))
"""


class GitLoad(_Noted):
    """Commits, with a collection of garbage now and then."""

    def prepare(self, folder: Path) -> None:
        git = folder / "repository"
        run("git", "init", "-q", str(git))
        for name, value in (
            ("user.email", "a@b"), ("user.name", "a"), ("core.fsync", "all"), ("gc.auto", "0"),
        ):  # fmt: skip
            run("git", "config", name, value, cwd=git)

    def start(self, folder: Path) -> Running:
        return self.script(_GIT, folder)

    def check(self, folder: Path) -> int:
        git = folder / "repository"
        for lock in git.glob(".git/**/*.lock"):
            lock.unlink()  # As a person would after a crash.
        run("git", "fsck", "--full", "--strict", cwd=git)
        history = set(run("git", "rev-list", "HEAD", cwd=git).split())
        wanted = self.lines()
        missing = [one for one in wanted if one not in history]
        assert not missing, f"lost {len(missing)} of {len(wanted)} commits: {missing[:3]}"
        run("git", "reset", "-q", "--hard", cwd=git)
        return len(wanted)


class Fio:
    """Eight jobs of random writes with fdatasync; fio notes itself what was acknowledged."""

    JOBS = 8

    def __init__(self, place: Path) -> None:
        self._state = place / "fio"
        self._state.mkdir()
        self._round = 0

    def _command(self, folder: Path, *more: str) -> list[str]:
        return [
            "fio", "--name=verified", f"--directory={folder}", "--rw=randwrite", "--bs=4k",
            "--size=64m", f"--numjobs={self.JOBS}", "--ioengine=psync", "--verify=xxhash",
            "--verify_fatal=1", f"--randseed={1000 + self._round}", "--fdatasync=4",
            f"--aux-path={self._state}", "--allrandrepeat=1", "--group_reporting", *more,
        ]  # fmt: skip

    def prepare(self, folder: Path) -> None:
        """Nothing: each round writes files of its own."""

    def start(self, folder: Path) -> Running:
        self._round += 1
        for old in self._state.glob("*"):
            old.unlink()
        place = folder / f"fio{self._round}"
        place.mkdir()
        return subprocess.Popen(
            self._command(place, "--do_verify=0", "--verify_state_save=1", "--rate_iops=400"),
            cwd=self._state, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def wait_for_progress(self, limit_s: float) -> None:
        """The load of a second is enough."""

    def check(self, folder: Path) -> int:
        end = time.monotonic() + 20
        while len(list(self._state.glob("*.state"))) < self.JOBS:
            assert time.monotonic() < end, f"fio left {list(self._state.glob('*'))}"
            time.sleep(0.1)
        place = folder / f"fio{self._round}"
        command = self._command(place, "--verify_only=1", "--verify_state_load=1")
        done = subprocess.run(
            command, cwd=self._state, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        found = re.search(r"read: .*?\n.*?issued rwts: total=(\d+),", done.stdout, re.DOTALL)
        assert found is not None, done.stdout[-2000:]
        for old in place.glob("*"):
            old.unlink()
        return int(found.group(1))


class PostgreSQL:
    """A server in the folder and pgbench against it; sums, checksums and history are checked."""

    def __init__(self, place: Path, programs: Path, user: pwd.struct_passwd) -> None:
        self._programs = programs
        self._user = user
        self._outside = place / "postgresql"
        self._outside.mkdir()
        os.chown(self._outside, user.pw_uid, user.pw_gid)
        self._server: Running | None = None
        self._round = 0
        self._reported = 0

    def _as_user(self, *command: str) -> list[str]:
        user = self._user
        return [
            "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups",
            *command,
        ]  # fmt: skip

    def _run(self, name: str, *arguments: str) -> str:
        command = self._as_user(str(self._programs / name), *arguments)
        return run(*command, cwd=self._outside)

    def _connect(self) -> list[str]:
        return ["-h", str(self._outside), "-p", "54321", "-U", "postgres"]

    def _serve(self, folder: Path) -> None:
        (folder / "database" / "postmaster.pid").unlink(missing_ok=True)
        with open(self._outside / "log", "ab") as log:
            self._server = subprocess.Popen(
                self._as_user(
                    str(self._programs / "postgres"), "-D", str(folder / "database"),
                    "-k", str(self._outside), "-p", "54321", "-c", "listen_addresses=",
                    "-c", "shared_buffers=16MB", "-c", "full_page_writes=on",
                ),
                cwd=self._outside, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + 60
        ready = self._as_user(str(self._programs / "pg_isready"), *self._connect(), "-q")
        while subprocess.run(ready, cwd=self._outside, check=False).returncode != 0:
            log_text = (self._outside / "log").read_text(errors="replace")
            assert self._server.poll() is None, log_text[-2000:]
            assert time.monotonic() < end, log_text[-2000:]
            time.sleep(0.1)

    def prepare(self, folder: Path) -> None:
        """A database of scale 1, with checksums of its pages."""
        data = folder / "database"
        data.mkdir()
        os.chown(data, self._user.pw_uid, self._user.pw_gid)
        data.chmod(0o700)
        self._run("initdb", "-D", str(data), "-k", "-U", "postgres", "-A", "trust", "-N")
        self._serve(folder)
        self._run("pgbench", *self._connect(), "-i", "-q", "-s", "1", "postgres")
        self._sql("TRUNCATE pgbench_history")
        self._stop()

    def _sql(self, text: str) -> str:
        return self._run("psql", *self._connect(), "-At", "-c", text, "postgres").strip()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(2)  # SIGINT: fast shutdown.
            assert self._server.wait(60) == 0
            self._server = None

    def close(self) -> None:
        """End the server, however it is."""
        if self._server is not None and self._server.poll() is None:
            os.killpg(self._server.pid, 9)
            self._server.wait(30)

    def start(self, folder: Path) -> Running:
        self._round += 1
        self._serve(folder)
        return subprocess.Popen(
            self._as_user(
                str(self._programs / "pgbench"), *self._connect(), "-c", "4", "-j", "2", "-n",
                "-T", "600", "--log", f"--log-prefix={self._outside}/done{self._round}", "postgres",
            ),
            cwd=self._outside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def _logged(self) -> int:
        texts = (one.read_bytes() for one in self._outside.glob("done*"))
        return sum(one.count(b"\n") for one in texts)

    def wait_for_progress(self, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        before = self._reported
        while self._logged() <= before:
            assert time.monotonic() < end, f"no transaction logged within {limit_s} s"
            time.sleep(0.1)

    def check(self, folder: Path) -> int:
        assert self._server is not None
        os.killpg(self._server.pid, 9)
        self._server.wait(30)
        self._reported = self._logged()
        self._serve(folder)
        history = int(self._sql("SELECT count(*) FROM pgbench_history"))
        assert history >= self._reported, f"{self._reported} reported, {history} there"
        sums = self._sql(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = "
            "(SELECT coalesce(sum(delta), 0) FROM pgbench_history), "
            "(SELECT sum(bbalance) FROM pgbench_branches) = "
            "(SELECT sum(tbalance) FROM pgbench_tellers), "
            "(SELECT sum(bbalance) FROM pgbench_branches) = "
            "(SELECT coalesce(sum(delta), 0) FROM pgbench_history)"
        )
        assert sums == "t|t|t", sums
        self._stop()
        self._run("pg_checksums", "--check", "-D", str(folder / "database"))
        return self._reported
