"""Two real replication processes with real mounts on one machine: writes, deaths, resync."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

import hyperha
from hyperha.core import actions
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import EngineDone, ResyncCopied, SessionLost, SessionStalled, SessionUp
from hyperha.core.facts import MarkerState
from hyperha.domain import Epoch
from hyperha.replication.control import LogLine
from tests.support.engine_pair import free_ports, wait_for
from tests.support.engine_process import ProcessPair, tree

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def pair(tmp_path: Path):
    both = ProcessPair(tmp_path, free_ports(2))
    try:
        yield both
    finally:
        both.close()


def sync_and_compare(pair: ProcessPair) -> None:
    pair.a.do(actions.Barrier)
    pair.b.do(actions.Barrier)
    assert tree(pair.a.folder) == tree(pair.b.folder)


def busy(folder: Path) -> None:
    """A bit of everything, through the kernel."""
    (folder / "d").mkdir()
    (folder / "disk").write_bytes(os.urandom(3 << 20))
    with open(folder / "disk", "r+b") as file:
        file.seek(1_000_000)
        file.write(b"again" * 1000)
        file.flush()
        os.fsync(file.fileno())
    os.symlink("disk", folder / "soft")
    os.link(folder / "disk", folder / "d" / "hard")
    os.rename(folder / "soft", folder / "d" / "softer")
    os.setxattr(folder / "disk", "user.x", b"y")
    os.chmod(folder / "d", 0o751)
    os.truncate(folder / "disk", 2_500_000)
    os.utime(folder / "d", ns=(5, 6))


def test_two_processes_keep_equal_folders(pair: ProcessPair) -> None:
    assert pair.a.attach().marker is MarkerState.ABSENT
    pair.b.attach()
    pair.in_sync()
    busy(pair.a.folder)
    sync_and_compare(pair)
    with pytest.raises(OSError, match="Read-only"):
        (pair.b.folder / "mine").touch()
    # Swap: the stream ends clean, the other node goes on without a resync.
    pair.a.do(actions.Demote)
    pair.b.do(actions.CloseSession)
    pair.a, pair.b = pair.b, pair.a
    pair.in_sync()
    (pair.a.folder / "after").write_text("swap")
    sync_and_compare(pair)
    for node in (pair.a, pair.b):
        node.counter += 1
        node.do(actions.Detach, node.marker(node.counter))
        assert node.process.wait(10) == 0
    assert tree(pair.a.folder) == tree(pair.b.folder)
    assert (pair.b.folder / "after").read_text() == "swap"


def test_the_peer_dies_and_comes_back(pair: ProcessPair) -> None:
    pair.a.attach()
    pair.b.attach()
    pair.in_sync()
    busy(pair.a.folder)
    pair.b.kill()
    pair.b.drop_kept()
    pair.a.wait(SessionLost)
    held = threading.Thread(target=(pair.a.folder / "held").write_text, args=("x",))
    held.start()
    time.sleep(0.2)
    assert held.is_alive(), "nothing is answered before the core has decided (D1)"
    pair.a.do(actions.EnterAlone, "g0")
    pair.a.do(actions.Release)
    held.join(10)
    assert not held.is_alive()
    with open(pair.a.folder / "disk", "r+b") as file:
        file.seek(2_000_000)
        file.write(b"alone")
    (pair.a.folder / "d" / "hard").rename(pair.a.folder / "moved")
    pair.b.start()
    facts = pair.b.attach(fresh=False)
    assert facts.marker is MarkerState.MATCHES
    assert facts.candidates > 0
    pair.resync(SessionStart.CANDIDATES)
    sync_and_compare(pair)


def test_a_full_resync_under_load(pair: ProcessPair) -> None:
    pair.a.attach()
    pair.b.attach()
    pair.a.do(actions.Promote, Epoch(1, "node1"), Acknowledge.LOCAL)
    busy(pair.a.folder)
    stop = threading.Event()

    def load() -> None:
        number = 0
        with open(pair.a.folder / "disk", "r+b", buffering=0) as file:
            while not stop.is_set():
                number += 1
                file.seek(number * 4096 % 2_000_000)
                file.write(b"%4096d" % number)
                if number % 50 == 0:
                    (pair.a.folder / f"n{number}").write_text(str(number))
                    (pair.a.folder / f"n{number}").rename(pair.a.folder / "d" / f"n{number}")
                stop.wait(0.0002)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        pair.resync(SessionStart.FULL)
    finally:
        stop.set()
        thread.join()
    sync_and_compare(pair)


def test_a_successor_takes_the_mount_over(pair: ProcessPair) -> None:
    """M4, N1: the same mount, handle and file go on; nothing is answered by the dead process."""
    pair.a.attach()
    pair.b.attach()
    pair.in_sync()
    busy(pair.a.folder)
    with open(pair.a.folder / "disk", "r+b", buffering=0) as file:
        file.write(b"before")
        pair.a.kill()
        writer = threading.Thread(target=file.write, args=(b"during",))
        maker = threading.Thread(target=(pair.a.folder / "made").touch)
        writer.start()
        maker.start()
        time.sleep(0.1)
        assert writer.is_alive()
        pair.a.succeed()
        time.sleep(0.2)
        assert writer.is_alive(), "frozen until the core has decided"
        pair.b.do(actions.CloseSession)
        key = pair.connect(SessionStart.CANDIDATES)
        pair.a.wait(SessionUp)
        pair.a.wait(ResyncCopied)
        assert writer.is_alive()
        pair.a.do(actions.EndResync, key)
        writer.join(10)
        maker.join(10)
        assert not writer.is_alive()
        assert not maker.is_alive()
        pair.a.do(actions.Barrier)
        pair.b.do(actions.ClearMap)
        pair.a.do(actions.ClearMap)
        file.write(b"after")
    assert (pair.a.folder / "disk").read_bytes()[:17] == b"beforeduringafter"
    sync_and_compare(pair)


def test_a_folder_in_use_is_refused_with_the_culprit(pair: ProcessPair) -> None:
    (pair.a.folder / "open").touch()
    with open(pair.a.folder / "open", "rb"):
        result = pair.a.done(pair.a.order(actions.Attach, (), pair.a.marker(1), False))
    assert not result.ok
    assert f"process {os.getpid()}" in result.text
    assert "open" in result.text
    pair.a.attach()


def test_a_foreign_folder_is_covered_and_left_alone(pair: ProcessPair) -> None:
    pair.a.attach()
    pair.a.counter += 1
    pair.a.do(actions.Detach, pair.a.marker(pair.a.counter))
    pair.a.process.wait(10)
    log = (pair.a.folder / ".hyperha" / "intent").read_bytes()
    pair.a.drop_kept()
    pair.a.start()
    other = pair.a.marker(99)
    facts = pair.a.do(actions.Attach, (other,), pair.a.marker(100), False).attach
    assert facts.marker is MarkerState.DIFFERS
    assert facts.candidates == -1
    with pytest.raises(OSError, match="Read-only"):
        (pair.a.folder / "x").touch()
    refused = pair.a.done(pair.a.order(actions.Promote, Epoch(1, "node1"), Acknowledge.LOCAL))
    assert not refused.ok
    assert "R12" in refused.text
    pair.a.do(actions.Detach, None)
    pair.a.process.wait(10)
    assert (pair.a.folder / ".hyperha" / "intent").read_bytes() == log


def test_the_death_of_the_daemon_ends_everything(pair: ProcessPair) -> None:
    pair.a.attach()
    pair.a.do(actions.Promote, Epoch(1, "node1"), Acknowledge.LOCAL)
    (pair.a.folder / "f").write_text("x")
    pair.a.drop_kept()
    pair.a.channel.shutdown(2)
    assert pair.a.process.wait(5) == 1
    with pytest.raises(OSError, match="not connected"):
        (pair.a.folder / "f").read_text()


def test_fsync_waits_for_both_and_rsync_finds_nothing(pair: ProcessPair) -> None:
    pair.a.attach()
    pair.b.attach()
    pair.in_sync()
    subprocess.run(
        ["cp", "-a", str(Path(hyperha.__file__).parent), str(pair.a.folder / "code")],
        check=True,
        timeout=60,
    )
    subprocess.run(["sync", str(pair.a.folder / "code")], check=True, timeout=60)
    pair.a.do(actions.Barrier)
    pair.b.do(actions.Barrier)
    found = subprocess.run(
        ["rsync", "-aHAXn", "--checksum", "--delete", "--itemize-changes",
         f"{pair.a.folder}/", f"{pair.b.folder}/"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert found.stdout == ""


def test_a_stopped_peer_is_told_and_does_not_stop_reads(pair: ProcessPair) -> None:
    pair.a.attach()
    pair.b.attach()
    pair.in_sync()
    (pair.a.folder / "f").write_text("x")
    os.kill(pair.b.process.pid, signal.SIGSTOP)
    try:
        writer = threading.Thread(target=(pair.a.folder / "g").write_text, args=("y",))
        writer.start()
        assert not pair.a.wait(SessionStalled).over_limit
        assert pair.a.wait(SessionStalled).over_limit
        assert (pair.a.folder / "f").read_text() == "x"
        assert writer.is_alive()
    finally:
        os.kill(pair.b.process.pid, signal.SIGCONT)
    writer.join(10)
    assert not writer.is_alive()
    wait_for(lambda: not writer.is_alive())
    assert isinstance(pair.a.do(actions.Barrier), EngineDone)


def test_files_touched_while_nothing_was_mounted_are_candidates(pair: ProcessPair) -> None:
    """R14: by their ctime, after a clean end and after a crash."""
    pair.a.attach()
    pair.b.attach()
    pair.in_sync()
    busy(pair.a.folder)
    (pair.a.folder / "other").write_bytes(b"o" * 100_000)
    sync_and_compare(pair)
    pair.b.do(actions.CloseSession)
    for node in (pair.a, pair.b):
        node.counter += 1
        node.do(actions.Detach, node.marker(node.counter))
        assert node.process.wait(10) == 0
        node.drop_kept()
    # Somebody repairs the image of the stopped node, keeping size and mtime.
    status = (pair.a.folder / "other").stat()
    with open(pair.a.folder / "other", "r+b") as file:
        file.seek(50_000)
        file.write(b"repaired")
    os.utime(pair.a.folder / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    (pair.a.folder / "d" / "new").write_text("dropped in")
    pair.a.start()
    pair.b.start()
    assert pair.b.attach(fresh=False).candidates == 0
    facts = pair.a.attach(fresh=False)
    assert facts.candidates > 0
    assert "R14" in {one.rule for one in pair.a.messages if isinstance(one, LogLine)}
    pair.a.do(actions.Promote, Epoch(2, "node1"), Acknowledge.LOCAL)
    pair.resync(SessionStart.CANDIDATES)
    sync_and_compare(pair)
    assert (pair.b.folder / "other").read_bytes()[50_000:50_008] == b"repaired"
    assert (pair.b.folder / "d" / "new").read_text() == "dropped in"
