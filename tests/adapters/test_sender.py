"""What sends one connection's frames (T5, T8): nothing queued is left behind at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from hyperha.replication.sender import Sender
from tests.support.engine_pair import wait_for


class Recorded:
    """A connection without TLS that takes everything."""

    encrypted = False

    def __init__(self) -> None:
        self.sent = b""

    def send_some(self, buffers: list[bytes], total: int) -> list[bytes]:
        self.sent += b"".join(buffers)
        return []

    def send(self, buffers: list[bytes]) -> None:
        self.sent += b"".join(buffers)

    def abort(self) -> None:
        raise AssertionError("nothing is wrong with it")


def _send(sender: Sender) -> None:
    sender.send_now(b"write", b"1")


def _keep(sender: Sender) -> None:
    with sender.lock:
        sender.keep(b"write", b"1")
    sender.send_kept()


@pytest.mark.parametrize("how", [_send, _keep])
@pytest.mark.parametrize("goodbye", [b"goodbye", b""])
def test_what_is_queued_while_another_one_sends_leaves_before_the_end(
    how: Callable[[Sender], None], goodbye: bytes
) -> None:
    """T4: without its goodbye the peer waits for another line as long as for a break."""
    connection, sender = Recorded(), Sender(threading.Lock())
    sender.start(connection)  # type: ignore[arg-type]
    wait_for(lambda: not sender._busy)
    with sender.lock:
        assert sender.put_now(b"write", b"1", None)
        if goodbye:
            sender.put(goodbye)
    ending = threading.Thread(target=sender.end, args=(10.0,))
    ending.start()
    # Whoever ends it has said so; the data path sends only now.
    wait_for(lambda: sender._ending or not ending.is_alive())
    how(sender)
    ending.join(5)
    assert not ending.is_alive()
    assert connection.sent == b"write1" + goodbye
