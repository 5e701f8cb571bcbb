"""A file over one TCP connection and nothing else: what a resync is compared with.

`python -m tests.benchmarks.raw_copy DESCRIPTOR FILE` receives: DESCRIPTOR is a listening socket,
FILE exists and is overwritten in place. It answers with one byte when all is written.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from hyperha.errors import FailedError

_PIECE = 1 << 20


def send(file: Path, port: int) -> float:
    """Copy the file to the receiver behind the port; seconds until it has written all."""
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        open(file, "rb", buffering=0) as stream,
    ):
        # The receiver has started once it says so; its start is not part of the copy.
        _expect(connection)
        begun = time.monotonic()
        while piece := stream.read(_PIECE):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        _expect(connection)
        return time.monotonic() - begun


def _expect(connection: socket.socket) -> None:
    if connection.recv(1) != b"!":
        raise FailedError("the receiver of the raw copy ended early")


def receive(listener: socket.socket, file: Path) -> None:
    """Take one connection and overwrite the file with what comes."""
    accepted, _ = listener.accept()
    buffer = memoryview(bytearray(_PIECE))
    with accepted:
        target = os.open(file, os.O_WRONLY)
        accepted.sendall(b"!")
        while count := accepted.recv_into(buffer):
            os.write(target, buffer[:count])
        os.close(target)
        accepted.sendall(b"!")


if __name__ == "__main__":
    receive(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
