"""Connections: what several threads say stays whole and in order; TLS in memory loses nothing."""

import os
import random
import socket
import threading
from pathlib import Path

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
