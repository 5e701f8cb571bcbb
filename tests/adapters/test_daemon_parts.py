"""Records, messages between cores, operations, steps, the prober and the replication port."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperha.core import messages as m
from hyperha.core.events import PeerHeard, PeerSilent, ProbeDone
from hyperha.core.records import (
    DataLabel,
    Generation,
    Lineage,
    Proof,
    ProofKind,
    Settings,
    Suspension,
)
from hyperha.daemon import peer_codec
from hyperha.daemon.listener import ReplicationListener
from hyperha.daemon.operations import Operations
from hyperha.daemon.peer_link import PeerLink
from hyperha.daemon.probe import Lookout, Prober, ProbeTargets
from hyperha.daemon.records import ModuleRecords
from hyperha.daemon.steps import StepArchive
from hyperha.daemon.vm_host import _missing_folder
from hyperha.domain import DataState, Epoch, Marker, Readiness, Role, SessionKey
from hyperha.encoding import EncodingError, from_plain, to_plain
from hyperha.errors import FailedError, NotFoundError
from hyperha.heartbeat.links import PeerView
from hyperha.heartbeat.message import MESSAGE_LIMIT, ModuleStatus
from hyperha.logbook.outputs import OutputArchive
from hyperha.ping import echoes
from hyperha.replication import preamble
from hyperha.replication.control import Statistics
from hyperha.replication.fuse.mount import MNT_DETACH, raw_mount, raw_unmount
from hyperha.security.authority import Authority
from hyperha.vm.port import VmSpec
from tests.support.certificates import certificates
from tests.support.machine import lacking

ID = "0123456789abcdef0123456789abcdef"
FULL = Lineage(
    "r" * 32,
    "node1",
    "node2",
    current=Generation(ID, 17, "operator", 1_700_000_000_000),
    base="f" * 32,
    history=tuple(f"{n:032x}" for n in range(16)),
    label=DataLabel.INCONSISTENT,
    sync_from="node2",
    target_generation=ID,
    former_label=DataLabel.UPTODATE,
    intent_primary=True,
    peer_out=Proof(ProofKind.POLICY_RUN, Epoch(9, "node1")),
    epoch=Epoch(9, "node1"),
    held=Epoch(8, "node1"),
    released_to=Epoch(9, "node2"),
    marker=Marker("r" * 32, "node1", ID, 4),
    marker_written=True,
    markers_before=(Marker("r" * 32, "node1", ID, 3),),
    was_primary=True,
    alone_since_wall_ms=5,
)
SETTINGS = Settings(
    wanted=True,
    boot="auto",
    failover=False,
    suspensions=(Suspension("", "ann", "disk", 99), Suspension("VM1", "bob", "x", None)),
    recoveries_wall_ms=(1, 2, 3),
    start_failed="no disk",
    certified_epoch=Epoch(3, "node1"),
)


def test_records_come_back_as_they_were(tmp_path):
    records = ModuleRecords(tmp_path / "VM1", "node1", "VM1")
    assert records.load().lineage is None
    records.store(FULL, SETTINGS)
    loaded = ModuleRecords(tmp_path / "VM1", "node1", "VM1").load()
    assert (loaded.lineage, loaded.settings, loaded.damage) == (FULL, SETTINGS, "")


@pytest.mark.parametrize("name", ["lineage", "settings"])
def test_a_damaged_record_is_set_aside_and_never_guessed(tmp_path, name):
    ModuleRecords(tmp_path / "VM1", "node1", "VM1").store(FULL, SETTINGS)
    path = tmp_path / "VM1" / name
    path.write_bytes(b"\xff" * path.stat().st_size)
    loaded = ModuleRecords(tmp_path / "VM1", "node1", "VM1").load()
    assert getattr(loaded, name) is None
    assert str(path) in loaded.damage
    assert list((tmp_path / "VM1").glob(f"{name}.damaged-*"))
    # The next start still knows that the lineage was lost.
    again = ModuleRecords(tmp_path / "VM1", "node1", "VM1").load()
    assert bool(again.damage) == (name == "lineage")


def _messages() -> list[m.PeerMessage]:
    summary = m.Summary.of(FULL, 12, False, adopt=True, full=True)
    session = SessionKey(ID, Epoch(9, "node1"), 3)
    return [
        m.Claim(Epoch(9, "n" * 32), summary, True, True),
        m.JoinOffer(7, summary, "R6", session),
        m.ResyncDone(session, FULL.history, 17, "policy-run", 1_700_000_000_000),
        m.OutdateRequest(ID, Epoch(9, "node1"), 3, ID),
        m.Released(Epoch(9, "node2"), m.HandoverKind.SWAP, False),
        m.Refusal(Epoch(1, "node1"), summary, "node2 has the better copy: " + "x" * 100),
    ]


@pytest.mark.parametrize("message", _messages(), ids=lambda one: type(one).__name__)
def test_messages_fit_a_datagram_and_come_back(message):
    raw = peer_codec.encode(message)
    assert len(raw) <= MESSAGE_LIMIT
    assert peer_codec.decode(raw) == message


@given(st.binary(max_size=300))
def test_foreign_bytes_are_no_message(raw):
    with pytest.raises(EncodingError):
        peer_codec.decode(raw)


def test_a_damaged_message_is_refused_or_equal():
    raw = peer_codec.encode(_messages()[0])
    for place, bit in itertools.product(range(0, len(raw), 7), (0, 5)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << bit
        try:
            peer_codec.decode(bytes(damaged))
        except EncodingError:
            continue


@pytest.mark.parametrize(
    "body",
    [[], {"wanted": 1}, {"x": 1}, {"boot": None}, {"suspensions": {}}, {"suspensions": [{}]}],
)
def test_wrong_values_are_named(body):
    with pytest.raises(EncodingError, match="Settings"):
        from_plain(Settings, body)


def test_encoding_leaves_defaults_out():
    assert to_plain(Settings()) == {}
    assert from_plain(Settings, to_plain(SETTINGS)) == SETTINGS


def test_operations_end_once_and_repeats_get_the_first_answer():
    told = []
    operations = Operations("node1", told.append)
    view = operations.begin("VM1", "stop", "ann", "request-1")
    assert operations.repeated("request-1") == view.id
    assert operations.finish(view.id, True, "stopped").state == "done"
    assert operations.finish(view.id, False, "again") is None
    assert operations.get(view.id).text == "stopped"
    assert [one.state for one in told] == ["running", "done"]
    with pytest.raises(NotFoundError):
        operations.get("node1-unknown")


@pytest.mark.anyio
async def test_a_step_can_be_read_while_it_runs_and_afterwards(tmp_path):
    lines = []
    archive = OutputArchive(tmp_path)
    steps = StepArchive("VM1", "node1", archive, lambda *line: lines.append(line))
    run = steps.begin("start_prim")
    run.add(1_700_000_000_000, "err", "evil \x1b]0;title\x07 text")
    assert steps.runs()[0].state == "running"
    assert (await steps.output(run.id)).output[0].text == "evil  text"
    steps.end(run, False, "exit status 1")
    unwritten = await steps.output(run.id)
    assert unwritten.output[0].text == "evil  text", "also before the disk has it"
    await steps.close()
    later = StepArchive("VM1", "node1", archive, lambda *line: None)
    await later.load()
    kept = later.runs()[0]
    assert (kept.id, kept.state, kept.exit_status) == (run.id, "ended", 1)
    assert kept == steps.runs()[0], "also how long it took and how much it said"
    said = (await later.output(run.id)).output
    assert kept.lines == len(said) == 2
    assert said[0].text == "evil  text"
    assert [line[0] for line in lines] == ["I", "E"]
    assert "FAILED" in lines[1][3]


def _prober(ports, others=(), own=("10.0.0.1",)):
    done: asyncio.Future[ProbeDone] = asyncio.get_running_loop().create_future()
    targets = ProbeTargets(("127.0.0.1",), own, ports, others, timeout_s=0.3)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return Prober(Lookout(targets, context), done.set_result), done


@pytest.mark.anyio
async def test_a_frozen_peer_accepts_and_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        prober, done = _prober((frozen.getsockname()[1],), others=("127.0.0.1",))
        prober.probe(7)
        found = await done
    assert (found.operation, found.peer_answers, found.isolated) == (7, False, False)


@pytest.mark.anyio
async def test_an_answer_that_comes_with_the_end_of_a_look_leaves_nothing(tmp_path: Path):
    """A peer thawed at that moment; the next look gets the descriptors of the last one, which the
    loop took for the last one's. Who waited for the answer waited for ever."""
    files = certificates(tmp_path, "node1", Authority.create("paris", "id"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)

    def thaw(listening: socket.socket) -> None:
        way, _ = listening.accept()
        time.sleep(0.1)
        with contextlib.suppress(OSError), context.wrap_socket(way, server_side=True) as spoken:
            spoken.recv(1)

    with (
        socket.create_server(("127.0.0.1", 0)) as frozen,
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.socket() as waiting,
    ):
        waiting.connect(full.getsockname())
        peer = threading.Thread(target=thaw, args=(frozen,), daemon=True)
        peer.start()
        prober, done = _prober((frozen.getsockname()[1],), others=("127.0.0.1",))
        prober.probe(7)
        # The loop stands still once the peer was asked: time-out and answer are due at once then.
        asyncio.get_running_loop().call_later(0.05, time.sleep, 0.4)
        await done
        prober, done = _prober((full.getsockname()[1],) * 3, others=("127.0.0.1",))
        prober.probe(8)
        assert (await asyncio.wait_for(done, 5)).operation == 8
        peer.join(5)


@pytest.mark.anyio
async def test_a_look_that_fails_is_answered_all_the_same(monkeypatch):
    """W8: and nobody takes over because of it."""

    async def broken(*_: object) -> bool:
        raise RuntimeError("no more descriptors")

    monkeypatch.setattr("hyperha.ping.echoes", broken)
    prober, done = _prober((1,), others=("127.0.0.1",))
    prober.probe(7)
    found = await asyncio.wait_for(done, 5)
    assert (found.operation, found.peer_answers, found.isolated) == (7, True, None)
    assert "no more descriptors" in found.text


@pytest.mark.anyio
async def test_a_peer_that_speaks_is_alive():
    async def speak(reader, writer):
        writer.write(b"HTTP/1.1 400 no\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        prober, done = _prober((server.sockets[0].getsockname()[1],))
        prober.probe(1)
        assert (await done).peer_answers


@pytest.mark.anyio
async def test_a_host_that_pings_but_whose_ports_say_nothing_is_behind_a_filter():
    """W8: no takeover because somebody reloaded a firewall."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        # A listener whose queue is full drops what comes: neither accepted nor refused.
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(full.getsockname())
        prober, done = _prober((full.getsockname()[1],))
        prober.probe(1)
        found = await done
        for one in waiting:
            one.close()
    if not await echoes("127.0.0.1", 0.5):
        lacking("the right to ping (net.ipv4.ping_group_range)")
    assert found.peer_answers
    assert "filter" in found.text


@pytest.mark.anyio
async def test_on_loopback_isolation_cannot_be_told():
    prober, done = _prober((1,), own=("127.0.0.1",))
    prober.probe(1)
    found = await done
    assert found.isolated is None
    assert not found.peer_answers


def _preamble(cluster="c1", node="node2") -> bytes:
    return preamble.encode(
        preamble.Preamble(
            preamble.cluster_hash(cluster),
            "VM1",
            1,
            node,
            SessionKey(ID, Epoch(1, "node2"), 1),
            preamble.Direction.FORWARD,
            b"p" * 16,
            True,
        )
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        (_preamble(), True),
        (_preamble(cluster="c2"), False),
        (_preamble(node="node9"), False),
        (b"GET / HTTP/1.1\r\n" * 20, False),
        (b"short", False),
    ],
)
async def test_only_the_other_node_of_this_cluster_reaches_a_process(sent, taken):
    got: asyncio.Queue[socket.socket] = asyncio.Queue()

    def take(lan, found, raw, connection):
        assert (lan, found.module, raw) == ("lan1", "VM1", sent)
        got.put_nowait(connection)
        return True

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    refused: list[tuple[str, str]] = []
    listener = ReplicationListener(
        port, "c1", "node2", take, lambda text, source: refused.append((text, source))
    )
    listener.listen("lan1", "127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        if sent == b"short":
            writer.write_eof()
        async with asyncio.timeout(5):
            if taken:
                (await got.get()).close()
            assert await reader.read() == b""
        assert got.empty()
    except ConnectionResetError:
        assert not taken
    finally:
        writer.close()
        await listener.close()
    foreign = not taken and len(sent) == len(_preamble()) and sent[:1] != b"G"
    assert [source for _, source in refused] == (["127.0.0.1"] if foreign else [])


def test_a_refused_peer_is_the_reason_until_it_is_heard():
    """Said once in the node's log; others who send are no reason for the peer's silence."""
    said: list[str] = []
    link = PeerLink(lambda: None, said.append, frozenset({"10.0.0.2"}))
    link.refused("packets from 10.0.0.9 are strange", "10.0.0.9")
    assert link.distrust == ""
    link.refused("packets from 10.0.0.2 do not carry this cluster's key", "10.0.0.2")
    assert link.distrust == "packets from 10.0.0.2 do not carry this cluster's key"
    assert len(said) == len(link.refusals) == 2
    link.peer_heard(PeerView("b", "i", 1, ()), True)
    assert link.distrust == ""
    assert link.refusals == ["packets from 10.0.0.9 are strange"]


@pytest.mark.anyio
async def test_a_taken_replication_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        listener = ReplicationListener(port, "c1", "node2", lambda *args: False, lambda *args: None)
        with pytest.raises(FailedError, match=f"port {port}"):
            listener.listen("lan1", "127.0.0.1")
        await listener.close()


def test_a_module_that_the_peer_says_nothing_of_is_silent():
    """K1: the node is heard, but can promise nothing for this module; later it can again."""
    told: list[object] = []

    class Box:
        number = 3

        def post(self, event: object) -> None:
            told.append(event)

    link = PeerLink(lambda: None, lambda text: None, frozenset())
    link.add(Box())
    status = ModuleStatus(3, Role.SECOND, Readiness.READY, DataState.UPTODATE)
    link.peer_heard(PeerView("b", "i", 1, (status,)), again=False)
    link.peer_heard(PeerView("b", "i", 1, (status,)), again=False)
    assert [type(one) for one in told] == [PeerHeard]
    link.peer_heard(PeerView("b", "i", 1, ()), again=False)
    link.peer_heard(PeerView("b", "i", 1, ()), again=False)
    assert [type(one) for one in told] == [PeerHeard, PeerSilent]
    link.peer_heard(PeerView("b", "i", 1, (status,)), again=False)
    assert [type(one) for one in told] == [PeerHeard, PeerSilent, PeerHeard]


@pytest.mark.root
@pytest.mark.fuse
def test_a_folder_under_a_dead_mount_is_not_missing(tmp_path):
    """M5: what a killed daemon left is peeled at the start; nobody needs to be alarmed before."""
    folder = tmp_path / "folder"
    folder.mkdir()
    spec = VmSpec("VM1", 1, "node1", "node2", str(folder), {"command": ["/bin/true"]})
    assert _missing_folder(spec) is None
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    raw_mount("hyperha", str(folder), "fuse.hyperha", options)
    os.close(device)
    try:
        with pytest.raises(OSError, match="not connected"):
            os.stat(folder)
        assert _missing_folder(spec) is None
    finally:
        raw_unmount(str(folder), MNT_DETACH)
    folder.rmdir()
    missing = _missing_folder(spec)
    assert missing is not None
    assert "does not exist" in missing.text


@pytest.mark.parametrize(
    ("age_ms", "way_ms", "lives"),
    [(300, 0, True), (300, 1400, True), (300, 1500, False), (399, 300, True), (400, 0, False)],
)
def test_a_session_lives_by_what_was_known_when_it_was_said(
    age_ms: int, way_ms: int, lives: bool
) -> None:
    """P8: a daemon that reads it late knows nothing less about the peer; a backlog is not news."""
    said = Statistics("up", "both", 0, 0, 0, 0, 0, 1, 0, 0, heard_ms=9000, told_ms=9000 + age_ms)
    assert said.session_lives(said.told_ms + way_ms, 1500) is lives


def test_no_session_does_not_live() -> None:
    said = Statistics("none", "standby", 0, 0, 0, 0, 0, 1, 0, 0, told_ms=9000)
    assert not said.session_lives(9000, 1500)
