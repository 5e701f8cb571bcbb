"""Connections of the engine: TLS of both sides, garbage, LAN order, the daemon's client."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperha.core import actions
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.events import EngineDone, Event, SessionLost, SessionUp
from hyperha.domain import Epoch, Marker, SessionKey
from hyperha.errors import ReplicationError
from hyperha.replication import connecting, handshake, preamble, wire
from hyperha.replication.control import (
    Descriptors,
    EngineConfig,
    PeerLink,
    ProcessMessage,
    Start,
    TlsFiles,
)
from hyperha.replication.engine_client import EngineClient
from hyperha.replication.fuse import fence
from hyperha.replication.lines import Lines
from hyperha.replication.operations import ROOT_ID
from hyperha.replication.transport import Connection
from hyperha.security.authority import Authority
from tests.support.certificates import certificates
from tests.support.engine_pair import Guest, Pair, free_ports, wait_for
from tests.support.engine_process import ProcessPair, tree


@pytest.mark.root
@pytest.mark.fuse
def test_the_stream_over_tls(tmp_path: Path) -> None:
    authority = Authority.create("paris", "id")
    both = ProcessPair(tmp_path, free_ports(2))
    try:
        for side in (both.a, both.b):
            side.process.kill()
            side.process.wait()
            files = certificates(tmp_path, side.node, authority)
            links = tuple(replace(link, tls=files) for link in side.config.links)
            side.config = replace(side.config, links=links)
            side.start()
            side.attach()
        both.in_sync()
        (both.a.folder / "big").write_bytes(os.urandom(5 << 20))
        for number in range(200):
            (both.a.folder / f"f{number}").write_text(str(number))
        both.a.do(actions.Barrier)
        both.b.do(actions.Barrier)
        assert tree(both.a.folder) == tree(both.b.folder)
    finally:
        both.close()


def shake_hands(client: TlsFiles, server: TlsFiles, expected: str) -> list[str]:
    """Both ends of a TLS handshake; what each complained about."""
    listener = socket.create_server(("127.0.0.1", 0))
    said: list[str] = []

    def serve() -> None:
        accepted, _ = listener.accept()
        connection = Connection(accepted)
        try:
            connection.secure(server, "node1", server=True, timeout_s=5)
            connection.receive_exactly(1)
        except (ReplicationError, OSError) as problem:
            said.append(f"server: {problem}")
        finally:
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    connection = Connection(socket.create_connection(listener.getsockname()))
    try:
        connection.secure(client, expected, server=False, timeout_s=5)
        connection.send([b"x"])
    except (ReplicationError, OSError) as problem:
        said.append(f"client: {problem}")
    finally:
        connection.close()
        thread.join()
        listener.close()
    return said


def test_tls_accepts_only_the_expected_node_of_this_cluster(tmp_path: Path) -> None:
    ours, other = Authority.create("paris", "id"), Authority.create("rome", "id2")
    one, two = certificates(tmp_path, "node1", ours), certificates(tmp_path, "node2", ours)
    stranger = certificates(tmp_path, "node1", other)
    assert shake_hands(one, two, "node2") == []
    assert any("node2's" in text for text in shake_hands(one, two, "node3"))
    assert any(text.startswith("server: ") for text in shake_hands(stranger, two, "node2"))
    assert any(text.startswith("server: ") for text in shake_hands(two, two, "node2"))


@pytest.mark.root
def test_the_next_lan_carries_the_session_when_the_first_does_not(pair: Pair) -> None:
    """D12: in order of preference."""
    (dead,) = free_ports(1)
    real = pair.a.primary.config.links[0]
    links = (PeerLink("repl", "127.0.0.1", dead, "127.0.0.1", None), replace(real, lan="prod"))
    pair.a.primary.config = replace(pair.a.primary.config, links=links)
    pair.in_sync()


@pytest.mark.root
def test_a_session_that_is_closed_while_it_connects_ends(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that comes too late was aborted by nobody: the closing waited for ever."""
    begun, aborted = threading.Event(), threading.Event()
    connect, abort = connecting.connect, Lines.abort

    def late(*where: Any) -> Connection:
        made = connect(*where)
        begun.set()
        assert aborted.wait(10)
        return made

    def noted(lines: Lines) -> None:
        abort(lines)
        aborted.set()

    monkeypatch.setattr(connecting, "connect", late)
    monkeypatch.setattr(Lines, "abort", noted)
    pair.connect(SessionStart.IN_SYNC)
    assert begun.wait(10)
    closing = threading.Thread(target=lambda: pair.a.primary.close_session(clean=True), daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


@pytest.mark.root
def test_garbage_ends_the_session_and_changes_nothing(pair: Pair) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    guest = Guest(pair.b)
    pair.b.primary.promote(Acknowledge.LOCAL)
    guest.create(ROOT_ID, b"kept")
    pair.b.intent.clear(100)
    pair.b.primary.demote()
    for number in range(1, 30):
        key = SessionKey("ab" * 16, Epoch(1, "node1"), number)
        pair.b.acceptor.expect(key, SessionStart.IN_SYNC)
        tag = wire.session_tag(key)
        sockets = []
        for direction in preamble.Direction:
            raw = preamble.Preamble(
                preamble.cluster_hash("cluster"), "VM1", 1, "node1", key, direction,
                b"%016d" % number, False,
            )  # fmt: skip
            one = socket.create_connection(("127.0.0.1", pair.b.port))
            one.sendall(preamble.encode(raw))
            sockets.append(one)
        hello = handshake.encode_hello(handshake.Hello(key, SessionStart.IN_SYNC, 0, 1))
        sockets[0].sendall(wire.frame(wire.Kind.HELLO, tag, 0, hello))
        pair.b.wait(SessionUp)
        kind = chance.choice([one for one in wire.Kind if one < 32])
        body = chance.randbytes(chance.randrange(60))
        noise = wire.frame(kind, tag, chance.randrange(100), body)
        if chance.random() < 0.3:
            noise = chance.randbytes(100)
        sockets[0].sendall(noise + chance.randbytes(chance.randrange(40)))
        sockets[0].shutdown(socket.SHUT_WR)
        pair.b.wait(SessionLost)
        for one in sockets:
            one.close()
        assert sorted(os.listdir(pair.b.folder)) == [".hyperha", "kept"], f"session {number}"
        pair.b.acceptor.close()
        pair.b.intent.clear(1 << 40)


@pytest.mark.root
def test_a_session_nobody_ordered_is_refused(pair: Pair) -> None:
    pair.a.primary.open_session(SessionKey("ab" * 16, Epoch(1, "node1"), 5), SessionStart.IN_SYNC)
    wait_for(lambda: pair.b.tick() or pair.a.has(SessionLost))
    lost = pair.a.wait(SessionLost)
    assert not lost.refused
    assert "not expected" in lost.text
    assert not pair.b.has(SessionUp)


@pytest.mark.root
def test_a_limited_resync_keeps_its_rate(pair: Pair) -> None:
    (pair.a.folder / "disk").write_bytes(os.urandom(6 << 20))
    pair.a.primary.config = replace(pair.a.primary.config, resync_rate_mib_s=4)
    pair.a.primary.promote(Acknowledge.LOCAL)
    started = time.monotonic()
    pair.resync(SessionStart.FULL)
    assert time.monotonic() - started > 1.0
    pair.check_equal()


def run_process(descriptor: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hyperha.replication.process", str(descriptor)]
    return subprocess.Popen(command, pass_fds=(descriptor,))


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.anyio
async def test_the_daemons_client(tmp_path: Path) -> None:
    folder, run = tmp_path / "folder", tmp_path / "run"
    folder.mkdir()
    run.mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = run_process(theirs.fileno())
    theirs.close()
    events: asyncio.Queue[Event] = asyncio.Queue()
    kept: list[tuple[ProcessMessage, tuple[int, ...]]] = []
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    client = EngineClient(
        ours, lambda message, fds: kept.append((message, fds)), events.put_nowait, lost.set_result
    )
    try:
        client.start(
            Start(EngineConfig("c", "VM1", 1, "node1", "node2", str(folder), str(run), ()))
        )
        client.perform(actions.Attach(1, (), Marker("r", "node1", "", 1), False))
        async with asyncio.timeout(20):
            done = await events.get()
            assert isinstance(done, EngineDone)
            assert done.ok, done.text
            assert done.candidates == 0
            client.perform(actions.Promote(2, Epoch(1, "node1"), Acknowledge.LOCAL))
            assert await events.get() == EngineDone(2, True, candidates=0)
            await asyncio.to_thread((folder / "f").write_text, "x")
            os.kill(process.pid, signal.SIGKILL)
            assert "gone" in await lost
        assert any(isinstance(message, Descriptors) for message, _ in kept)
    finally:
        client.close()
        process.kill()
        process.wait()
        for _, descriptors in kept:
            for one in descriptors:
                os.close(one)
        fence.peel(str(folder), str(run))
