"""Connections: what several threads say stays whole and in order; TLS in memory loses nothing."""

import os
import random
import socket
import threading
from pathlib import Path
from typing import cast

import pytest

from hyperha.replication.speaker import Speaker
from hyperha.replication.tls import Cipher
from hyperha.replication.transport import Connection, tls_context
from hyperha.security.authority import Authority
from tests.support.certificates import certificates

WORD = 64
WORDS = 1000
SPEAKERS = 4


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def test_words_of_many_threads_arrive_whole_and_in_order() -> None:
    near, far = tcp_pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    woken, done = threading.Semaphore(0), threading.Event()
    connection = Connection(near)
    speaker = Speaker(connection, woken.release)

    def word(who: int, number: int) -> bytes:
        return b"%02d %08d " % (who, number) + bytes([who]) * (WORD - 12)

    def speak(who: int) -> None:
        for number in range(WORDS):
            speaker.say(word(who, number))

    def own() -> None:
        number = 0
        while not done.is_set() or number < WORDS:
            if woken.acquire(timeout=0.001):
                speaker.send_rest()
            if number < WORDS:
                speaker.say_now(word(0, number))
                number += 1

    threads = [threading.Thread(target=speak, args=(who,)) for who in range(1, SPEAKERS + 1)]
    owner = threading.Thread(target=own)
    for thread in (*threads, owner):
        thread.start()
    heard: dict[int, int] = {}
    with far, far.makefile("rb") as stream:
        for _ in range(WORDS * (SPEAKERS + 1)):
            raw = stream.read(WORD)
            who, number = int(raw[:2]), int(raw[3:11])
            assert raw == word(who, number)
            assert number == heard.get(who, -1) + 1
            heard[who] = number
        done.set()
        for thread in (*threads, owner):
            thread.join(10)
            assert not thread.is_alive()
    connection.close()


def test_any_pieces_survive_encryption(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    authority = Authority.create("paris", "id")
    near = Cipher(tls_context(certificates(tmp_path, "a", authority), server=False), server=False)
    far = Cipher(tls_context(certificates(tmp_path, "b", authority), server=True), server=True)
    done = [False, False]
    while not all(done):
        done[0] = done[0] or near.shake()
        far.feed(memoryview(near.produced()))
        done[1] = done[1] or far.shake()
        near.feed(memoryview(far.produced()))
    sizes = (0, 1, 32, 4096, 16384, 16385, 100_000, 1 << 20)
    expected = bytearray()
    found = bytearray()
    room = memoryview(bytearray(300_000))
    for _ in range(60):
        pieces = [os.urandom(chance.choice(sizes)) for _ in range(chance.randrange(1, 6))]
        expected += b"".join(pieces)
        for part in near.encrypt([chance.choice((bytes, memoryview))(one) for one in pieces]):
            position = 0
            while position < len(part):
                size = chance.choice((1, 5, 1000, 20_000, 1 << 20))
                far.feed(memoryview(part)[position : position + size])
                position += size
                while count := far.decrypt(room[: chance.choice((1, 7000, 300_000))]):
                    found += room[:count]
    assert found == expected
    assert not far.pending


class _Heard:
    """A connection with TLS on that notes what is said, and whether it was encrypted."""

    encrypted = True

    def __init__(self) -> None:
        self.said: list[bytes] = []

    def send(self, buffers: list[bytes]) -> None:
        self.said += buffers

    def send_some(self, buffers: list[bytes], total: int) -> list[bytes]:
        raise AssertionError(f"{total} bytes would go past TLS: {buffers}")


class _OwnerComesBetween:
    """A lock behind whose first release the owner at once sends what it finds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.owner: Speaker | None = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.send_rest()


def test_nothing_is_said_past_tls_when_the_owner_is_quicker_than_the_speaker() -> None:
    """T5: the peer reads what is not encrypted as a broken record, and it is nobody's to read."""
    connection, woken = _Heard(), threading.Semaphore(0)
    speaker = Speaker(cast("Connection", connection), woken.release)
    lock = _OwnerComesBetween()
    lock.owner = speaker
    speaker._lock = cast("threading.Lock", lock)
    speaker.say(b"word")
    assert connection.said == [b"word"]


def test_a_connection_with_tls_sends_nothing_past_it(tmp_path: Path) -> None:
    authority = Authority.create("paris", "id")
    near, far = map(Connection, tcp_pair())
    files = {name: certificates(tmp_path, name, authority) for name in ("a", "b")}
    server = threading.Thread(
        target=far.secure, args=(files["b"], "a"), kwargs={"server": True, "timeout_s": 5}
    )
    server.start()
    try:
        near.secure(files["a"], "b", server=False, timeout_s=5)
        server.join(5)
        with pytest.raises(RuntimeError, match="past TLS"):
            near.send_some([b"word"], 4)
    finally:
        near.close()
        far.close()
