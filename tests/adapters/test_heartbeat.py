"""Heartbeats: codec, who is believed, which LANs are up, two real links on loopback (L7, L9)."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperha.domain import DataState, Epoch, Readiness, Role
from hyperha.heartbeat import links
from hyperha.heartbeat.links import HeartbeatLinks, LanPath, LinkSettings, PeerView, boottime_ms
from hyperha.heartbeat.message import (
    DATAGRAM_LIMIT,
    MESSAGE_LIMIT,
    Acknowledgement,
    Body,
    Certificate,
    FrameError,
    Header,
    Heartbeat,
    Message,
    ModuleStatus,
    decode,
    encode,
)
from hyperha.heartbeat.outbox import Inbox, Outbox
from hyperha.heartbeat.seal import (
    NotAuthenticError,
    PeerGate,
    ReplayWindow,
    Sealer,
    Verdict,
)
from hyperha.heartbeat.tracker import LanChanged, PeerFound, PeerLost, Tracker
from tests.support import ROOT

KEY = b"k" * 32
statuses = st.builds(
    ModuleStatus,
    number=st.integers(1, 32),
    role=st.sampled_from(Role),
    readiness=st.sampled_from(Readiness),
    data=st.sampled_from(DataState),
    epoch=st.integers(0, 2**32 - 1),
    generation=st.sampled_from(["", "0123456789abcdef", "ff00000000000001"]),
    stopping=st.booleans(),
    wanted=st.booleans(),
)
counters = st.integers(0, 2**63)
bodies = st.one_of(
    st.builds(
        Heartbeat,
        boot_id=st.binary(min_size=16, max_size=16),
        clock_ms=counters,
        echo_instance=st.binary(min_size=16, max_size=16),
        echo_counter=counters,
        config_version=st.integers(0, 2**32 - 1),
        modules=st.lists(statuses, max_size=32).map(tuple),
    ),
    st.builds(Message, counters, st.integers(1, 32), st.binary(max_size=MESSAGE_LIMIT)),
    st.builds(Acknowledgement, st.lists(counters, max_size=64).map(tuple)),
    st.builds(
        Certificate,
        st.binary(min_size=16, max_size=16),
        st.integers(1, 32),
        counters,
        st.builds(Epoch, counters, st.sampled_from(["", "node1", "n" * 32])),
    ),
)


def _header(instance: int = 1, counter: int = 1, **more: object) -> Header:
    header = Header(b"tag!", 1, bytes([instance]) * 16, counter)
    return replace(header, **more)  # type: ignore[arg-type]


@given(bodies, counters)
def test_every_frame_survives_the_wire(body: Body, counter: int) -> None:
    header = _header(counter=counter, nonce=b"12345678", echoed_nonce=b"abcdefgh")
    sealer = Sealer(KEY, "c")
    datagram = sealer.seal(encode(header, body))
    assert len(datagram) <= DATAGRAM_LIMIT
    assert decode(sealer.open(datagram)) == (header, body)


@given(st.binary(max_size=300))
def test_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(NotAuthenticError):
        Sealer(KEY, "c").open(raw)
    with pytest.raises(FrameError):
        decode(raw)


@given(bodies, st.data())
def test_malformed_bodies_never_crash(body: Body, data: st.DataObject) -> None:
    raw = bytearray(encode(_header(), body))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for candidate in (bytes(raw), bytes(raw[:cut])):
        try:
            decode(candidate)
        except FrameError:
            continue


def test_too_large_a_message_is_refused() -> None:
    with pytest.raises(FrameError, match="1101"):
        encode(_header(), Message(1, 1, b"x" * 1101))


@pytest.mark.parametrize(("key", "cluster"), [(b"o" * 32, "c"), (KEY, "d")])
def test_another_key_or_cluster_is_not_believed(key: bytes, cluster: str) -> None:
    datagram = Sealer(key, cluster).seal(b"frame")
    with pytest.raises(NotAuthenticError):
        Sealer(KEY, "c").open(datagram)


@given(st.lists(st.integers(0, 3000), max_size=200))
def test_no_counter_passes_twice(offered: list[int]) -> None:
    window = ReplayWindow()
    passed = [counter for counter in offered if window.accept(counter)]
    assert len(passed) == len(set(passed))
    assert not offered or max(offered) in passed


def test_a_process_is_believed_only_after_it_echoed_our_challenge() -> None:
    gate = PeerGate(0, random.Random(1).randbytes)
    first = gate.nonce
    assert gate.admit(_header(1, 5, nonce=b"peer-one")) is Verdict.UNPROVEN
    assert gate.peer_nonce == b"peer-one", "so that the peer can believe us"
    recorded = _header(1, 6, echoed_nonce=first)
    assert gate.admit(recorded) is Verdict.NEW_INSTANCE
    assert gate.admit(recorded) is Verdict.REPLAYED
    assert gate.admit(_header(1, 7)) is Verdict.ACCEPTED
    # The peer restarts; its former process, recorded, is never believed again (A21).
    assert gate.admit(_header(2, 1, echoed_nonce=first)) is Verdict.UNPROVEN, "an old challenge"
    assert gate.admit(_header(2, 2, echoed_nonce=gate.nonce)) is Verdict.NEW_INSTANCE
    assert gate.admit(_header(1, 99, echoed_nonce=gate.nonce)) is Verdict.REPLAYED
    assert gate.admit(_header(3, 1, sender=0)) is Verdict.OURSELVES


def test_a_restarted_receiver_believes_no_recording() -> None:
    before = PeerGate(0, random.Random(1).randbytes)
    recorded = _header(1, 1, echoed_nonce=before.nonce)
    assert before.admit(recorded) is Verdict.NEW_INSTANCE
    after = PeerGate(0, random.Random(2).randbytes)
    assert after.admit(recorded) is Verdict.UNPROVEN


@given(st.integers(0, 2**32), st.integers(0, 60))
def test_both_sides_believe_each_other_whatever_is_lost(seed: int, noise: int) -> None:
    """Loss, repetition and restarts for a while, then a quiet network: two beats are enough."""
    chance = random.Random(seed)
    gates = [PeerGate(0, chance.randbytes), PeerGate(1, chance.randbytes)]
    instances = [chance.randbytes(16), chance.randbytes(16)]
    counters_used = itertools.count(1)
    recorded: list[tuple[int, Header]] = []
    age = {instances[0]: 0, instances[1]: 0}
    newest = [0, 0]

    def beat(sender: int, *, arrives: bool) -> Verdict | None:
        gate = gates[sender]
        header = Header(
            b"", sender, instances[sender], next(counters_used), gate.nonce, gate.peer_nonce
        )
        recorded.append((1 - sender, header))
        if not arrives:
            return None
        believed = gates[1 - sender].admit(header)
        if believed in (Verdict.ACCEPTED, Verdict.NEW_INSTANCE):
            newest[1 - sender] = age[header.instance]
        return believed

    for _ in range(noise):
        what = chance.random()
        if what < 0.1:
            one = chance.randrange(2)
            gates[one], instances[one] = PeerGate(one, chance.randbytes), chance.randbytes(16)
            age[instances[one]] = len(age)
        elif what < 0.3 and recorded:
            receiver, header = chance.choice(recorded)
            believed = gates[receiver].admit(header)
            if believed in (Verdict.ACCEPTED, Verdict.NEW_INSTANCE):
                # A late one may pass, one of a process that was followed by another never (A21).
                assert age[header.instance] >= newest[receiver]
                newest[receiver] = age[header.instance]
        else:
            beat(chance.randrange(2), arrives=chance.random() < 0.5)
    for _ in range(3):
        last = beat(0, arrives=True), beat(1, arrives=True)
    assert set(last) <= {Verdict.ACCEPTED, Verdict.NEW_INSTANCE}


def _tracker(*lans: str) -> Tracker:
    return Tracker(lans or ("a", "b"), heartbeat_ms=100, suspect_ms=300, started_ms=1000)


def test_a_lan_is_up_only_while_our_own_counter_comes_back() -> None:
    tracker = _tracker("a")
    tracker.sent(1, 1000)
    assert tracker.received("a", None, 1010) == [], "heard, but are we heard?"
    assert tracker.received("a", 1, 1020) == [LanChanged("a", True), PeerFound()]
    changes = []
    for now in range(1100, 1700, 50):  # The peer still sends, our own counters do not come back.
        tracker.sent(now, now)
        changes += tracker.received("a", 1, now)
    assert changes[0] == LanChanged("a", False)
    assert isinstance(changes[1], PeerLost)
    assert changes[1].last_heard_ms < 1000 + tracker.echo_limit_ms


def test_the_peer_is_lost_only_when_every_path_is_silent() -> None:
    tracker = _tracker()
    tracker.sent(1, 1000)
    tracker.received("a", 1, 1001)
    tracker.sent(2, 1200)
    tracker.received("b", 2, 1201)
    assert tracker.tick(1400) == [LanChanged("a", False)]
    tracker.session_alive(1490, 1495)
    assert tracker.tick(1502) == [LanChanged("b", False)], "the session counts as a LAN"
    assert tracker.tick(1794) == []
    assert tracker.tick(1795) == [PeerLost(1490)]
    assert tracker.tick(9000) == [], "told once"


def test_a_session_shows_life_when_its_frame_came_not_when_it_is_told() -> None:
    tracker = _tracker("a")
    tracker.sent(1, 1000)
    tracker.received("a", 1, 1001)
    tracker.session_alive(1100, 1180)
    assert tracker.session_alive(1100, 1350) == [LanChanged("a", False)], "told once more"
    assert tracker.session_alive(1050, 1399) == [], "and of an older one"
    assert tracker.tick(1698) == [], "it was told to live, and may be told so again"
    assert tracker.tick(1699) == [PeerLost(1100)]


def test_a_frame_is_not_heard_in_the_future() -> None:
    tracker = _tracker("a")
    assert tracker.session_alive(9000, 1100) == [PeerFound()]
    assert tracker.tick(1400) == [PeerLost(1100)]


def test_a_peer_that_was_never_heard_is_told_after_a_full_window() -> None:
    tracker = _tracker()
    assert tracker.tick(1299) == []
    assert tracker.tick(1300) == [PeerLost(1000)]


def test_a_node_that_stalled_has_observed_nothing() -> None:
    tracker = _tracker("a")
    tracker.sent(1, 1000)
    tracker.received("a", 1, 1001)
    tracker.observe_gap(6000)
    assert tracker.tick(6000) == []
    assert tracker.tick(6299) == [], "a full window first (L7)"
    assert tracker.tick(6300) == [LanChanged("a", False), PeerLost(1001)]


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from("sreg")), max_size=60))
def test_lost_and_found_alternate(steps: list[tuple[int, str]]) -> None:
    tracker, now, told = _tracker("a"), 1000, []
    for number, (wait, what) in enumerate(steps, 1):
        now += wait
        if what == "s":
            tracker.sent(number, now)
        elif what == "r":
            told += tracker.received("a", None, now)
        elif what == "e":
            told += tracker.received("a", number - 1, now)
        else:
            tracker.observe_gap(now)
        told += tracker.tick(now)
    kinds = [type(change) for change in told if not isinstance(change, LanChanged)]
    assert all(one is not other for one, other in itertools.pairwise(kinds))


def test_a_message_is_sent_again_until_acknowledged_or_too_old() -> None:
    outbox = Outbox(retry_ms=50)
    outbox.add(1, b"x", 0, 200)
    outbox.add(2, b"y", 0, 200)
    assert [m.payload for m in outbox.due(0)] == [b"x", b"y"]
    assert outbox.due(10) == []
    assert outbox.next_due_ms() == 50
    outbox.acknowledged((1,))
    assert [m.payload for m in outbox.due(50)] == [b"y"]
    assert outbox.due(200) == []
    assert outbox.next_due_ms() is None


def test_a_message_is_handed_on_once_per_process_of_the_peer() -> None:
    inbox = Inbox()
    assert inbox.first_time(Message(1, 1, b""))
    assert not inbox.first_time(Message(1, 1, b""))
    inbox.restart()
    assert inbox.first_time(Message(1, 1, b""))


class Recorder:
    """Writes down what the links tell, and lets a test wait for it."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self._news = asyncio.Event()

    def _note(self, *what: object) -> None:
        self.told.append(what)
        self._news.set()

    def lan_changed(self, lan: str, up: bool) -> None:
        self._note("lan", lan, up)

    def peer_heard(self, view: PeerView, again: bool) -> None:
        self._note("heard", view, again)

    def peer_silent(self, last_heard_ms: int) -> None:
        self._note("silent", last_heard_ms)

    def message_received(self, module: int, payload: bytes) -> None:
        self._note("message", module, payload)

    def certificate_received(self, certificate: Certificate) -> None:
        self._note("certificate", certificate)

    def stalled(self, gap_ms: int) -> None:
        self._note("stalled", gap_ms)

    def refused(self, text: str, source: str) -> None:
        self._note("refused", text, source)

    def of(self, kind: str) -> list[tuple[object, ...]]:
        return [what for what in self.told if what[0] == kind]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _settings(node: int, port: int, key: bytes = KEY) -> LinkSettings:
    own, other = (("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1"))[node]
    own2, other2 = (("127.0.0.3", "127.0.0.4"), ("127.0.0.4", "127.0.0.3"))[node]
    return LinkSettings(
        key=key,
        cluster_id="c",
        own_index=node,
        lans=(LanPath("prod", own, other), LanPath("repl", own2, other2)),
        port=port,
        heartbeat_ms=100,
        suspect_ms=600,
    )


@pytest.fixture
async def pair() -> AsyncIterator[tuple[HeartbeatLinks, Recorder, HeartbeatLinks, Recorder, int]]:
    port = _free_port()
    one, two = Recorder(), Recorder()
    first = HeartbeatLinks(_settings(0, port), one)
    second = HeartbeatLinks(_settings(1, port), two)
    first.start()
    second.start()
    try:
        yield first, one, second, two, port
    finally:
        first.stop()
        second.stop()


PRIM = ModuleStatus(1, Role.PRIM, Readiness.READY, DataState.UPTODATE, 7, "0123456789abcdef")


@pytest.mark.anyio
async def test_two_nodes_hear_each_other(
    pair: tuple[HeartbeatLinks, Recorder, HeartbeatLinks, Recorder, int],
) -> None:
    first, one, second, two, _ = pair
    await one.until(lambda: one.of("heard") and len(one.of("lan")) == 2)
    await two.until(lambda: two.of("heard") and len(two.of("lan")) == 2)
    first.set_status((PRIM,), config_version=3)
    await two.until(lambda: two.of("heard")[-1][1].modules == (PRIM,))  # type: ignore[attr-defined]
    view = two.of("heard")[-1][1]
    assert isinstance(view, PeerView)
    assert (view.config_version, view.instance) == (3, first.instance)
    for number in range(20):
        second.send_message(1, f"message {number}".encode(), timeout_ms=5000)
    await one.until(lambda: len(one.of("message")) >= 20)
    payloads = [what[2] for what in one.of("message")]
    assert sorted(payloads) == sorted(f"message {n}".encode() for n in range(20)), "each once"


@pytest.mark.anyio
async def test_silence_and_restart(
    pair: tuple[HeartbeatLinks, Recorder, HeartbeatLinks, Recorder, int],
) -> None:
    first, one, second, two, port = pair
    await one.until(lambda: one.of("heard"))
    await two.until(lambda: two.of("heard"))
    second.stop()
    await one.until(lambda: one.of("silent"))
    again = HeartbeatLinks(_settings(1, port), two)
    again.start()
    try:
        await one.until(lambda: len([w for w in one.of("heard") if w[2]]) == 2)
        assert one.of("heard")[-1][1].instance == again.instance  # type: ignore[attr-defined]
        again.send_message(4, b"hello", timeout_ms=5000)
        await one.until(lambda: one.of("message"))
    finally:
        again.stop()
    assert first.instance


@pytest.mark.anyio
async def test_a_frame_that_is_told_late_does_not_make_the_peer_live_longer(
    pair: tuple[HeartbeatLinks, Recorder, HeartbeatLinks, Recorder, int],
) -> None:
    first, one, second, _, _ = pair
    await one.until(lambda: one.of("heard"))
    second.stop()
    await asyncio.sleep(0.2)  # What was under way has come in.
    stopped_ms = boottime_ms()
    while boottime_ms() < stopped_ms + 400:
        first.session_alive(stopped_ms)
        await asyncio.sleep(0.05)
    await one.until(lambda: one.of("silent"))
    assert one.of("silent") == [("silent", stopped_ms)]


@pytest.mark.anyio
async def test_a_wrong_key_is_refused_and_said_once() -> None:
    port = _free_port()
    one, two = Recorder(), Recorder()
    first = HeartbeatLinks(_settings(0, port), one)
    second = HeartbeatLinks(_settings(1, port, key=b"o" * 32), two)
    first.start()
    second.start()
    try:
        await one.until(lambda: one.of("silent") and len(one.of("refused")) == 2)
    finally:
        first.stop()
        second.stop()
    assert one.of("heard") == []
    text = "packets from 127.0.0.2 do not carry this cluster's key"
    assert ("refused", text, "127.0.0.2") in one.told


@pytest.mark.anyio
async def test_two_nodes_with_one_name_are_told_apart_by_nobody() -> None:
    """Each says so; neither takes the other one for its peer."""
    port = _free_port()
    one, two = Recorder(), Recorder()
    first = HeartbeatLinks(_settings(0, port), one)
    second = HeartbeatLinks(replace(_settings(1, port), own_index=0), two)
    first.start()
    second.start()
    try:
        await one.until(lambda: one.of("silent") and one.of("refused"))
        await two.until(lambda: two.of("silent") and two.of("refused"))
    finally:
        first.stop()
        second.stop()
    for node in (one, two):
        assert node.of("heard") == []
        assert "come from a node that has this one's name" in str(node.of("refused")[0][1])


_STALLING = """
import asyncio, sys
from hyperha.heartbeat.links import HeartbeatLinks, LanPath, LinkSettings
class Told:
    def __getattr__(self, name):
        return lambda *what: print(name, *what[:1], flush=True)
async def main():
    lan = LanPath("prod", "127.0.0.1", "127.0.0.2")
    settings = LinkSettings(b"k" * 32, "c", 0, (lan,), int(sys.argv[1]), 100, 600)
    links = HeartbeatLinks(settings, Told())
    links.start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.anyio
async def test_a_node_that_was_stopped_says_so_before_it_judges_its_peer() -> None:
    port = _free_port()
    two = Recorder()
    second = HeartbeatLinks(_settings(1, port), two)
    second.start()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _STALLING, str(port), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None
    try:
        lines = b""
        async with asyncio.timeout(20):
            while b"peer_heard" not in lines:
                lines = await child.stdout.readline()
            child.send_signal(signal.SIGSTOP)
            await two.until(lambda: two.of("silent"))
            child.send_signal(signal.SIGCONT)
            await two.until(lambda: len([w for w in two.of("heard") if w[2]]) == 2)
            while b"stalled" not in lines:
                lines = await child.stdout.readline()
                assert b"silent" not in lines, "it has observed nothing (L7)"
        assert int(lines.split()[1]) >= 500
    finally:
        second.stop()
        child.kill()
        await child.communicate()


@pytest.mark.anyio
async def test_a_node_that_got_no_time_says_so_before_it_judges_its_peer(
    pair: tuple[HeartbeatLinks, Recorder, HeartbeatLinks, Recorder, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """L7: what came in meanwhile echoes counters too old to show that a LAN is up."""
    _, one, _, two, _ = pair
    await one.until(lambda: one.of("heard"))
    await two.until(lambda: two.of("heard"))
    monkeypatch.setattr(links, "boottime_ms", lambda: boottime_ms() + 2000)
    for recorder in (one, two):
        await recorder.until(lambda recorder=recorder: recorder.of("stalled"))
        assert not recorder.of("silent")


@pytest.mark.anyio
async def test_a_certificate_comes_from_outside_the_daemon() -> None:
    port = _free_port()
    one = Recorder()
    first = HeartbeatLinks(_settings(0, port), one)
    first.start()
    sealer = Sealer(KEY, "c")
    certificate = Certificate(b"g" * 16, 1, 7, Epoch(3, "node2"))
    header = Header(sealer.cluster_tag, 1, b"g" * 16, 1)
    ours = replace(header, sender=0)
    try:
        await one.until(lambda: one.of("silent"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guardian:
            for sent in (ours, header):
                guardian.sendto(sealer.seal(encode(sent, certificate)), ("127.0.0.1", port))
        await one.until(lambda: one.of("certificate"))
    finally:
        first.stop()
    assert one.of("certificate") == [("certificate", certificate)]


@pytest.mark.anyio
async def test_an_address_that_is_not_ours_is_told_and_the_other_lan_works() -> None:
    port = _free_port()
    one, two = Recorder(), Recorder()
    settings = _settings(0, port)
    lost = LanPath("prod", "192.0.2.1", "127.0.0.2")
    first = HeartbeatLinks(replace(settings, lans=(lost, settings.lans[1])), one)
    second = HeartbeatLinks(_settings(1, port), two)
    first.start()
    second.start()
    try:
        await one.until(lambda: one.of("heard") and one.of("refused"))
    finally:
        first.stop()
        second.stop()
    assert one.of("lan") == [("lan", "repl", True)], one.told
    assert "192.0.2.1" in str(one.of("refused")[0][1])
