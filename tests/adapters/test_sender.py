"""What sends one connection's frames (T5, T8): nothing queued is left behind at its end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from hyperha.replication.sender import Sender
from hyperha.replication.transport import Connection
from tests.support.engine_pair import wait_for


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
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connection = Connection(socket.create_connection(listening.getsockname()))
        far, _ = listening.accept()
    sender = Sender(threading.Lock())
    sender.start(connection)
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
    connection.close()
    with far, far.makefile("rb") as received:
        assert received.read() == b"write1" + goodbye
