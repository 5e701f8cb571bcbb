"""The console on a real pseudo-terminal: what bytes reach the operator's terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support import ROOT

IDLE_S = 3.0
IDLE_MOST_BYTES = 300

_CHILD = r"""
from hyperha.client.node_client import Target
from tests.console.fake_node import FakeNode, cluster, log, module, side
from tui.app import ConsoleApp
evil = "\x1b]0;owned\x07\x1b[31mred\x9b1m [/foo] end-of-evil"
view = cluster({"web": module(nodes={"node1": side(why={"rule": "P1", "text": evil})})})
node = FakeNode(view)
node.lines = [log(n, evil) for n in range(1, 5)]
app = ConsoleApp([Target("node1", socket="/none")], transport_of=node.transport)
app.run(mouse=False)
"""


class Terminal:
    """A child on a pseudo-terminal of 80x24."""

    def __init__(self) -> None:
        import fcntl
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.child = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def read(self, seconds: float, wanted: bytes = b"") -> bytes:
        """What comes within a time, or until something wanted has come."""
        out = b""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if wanted and wanted in out:
                break
            if select.select([self.master], [], [], left)[0]:
                try:
                    out += os.read(self.master, 65536)
                except OSError:
                    break
        return out

    def close(self) -> None:
        """End the child."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    one = Terminal()
    try:
        yield one
    finally:
        one.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_foreign_escapes_stay_out_and_an_idle_console_is_silent(terminal: Terminal) -> None:
    out = terminal.read(60, b"end-of-evil")
    assert b"end-of-evil" in out, out[-2000:]
    out += terminal.read(5)
    assert b"]0;owned" not in out
    assert b"\x07" not in re.sub(rb"\x1b\][^\x07\x1b]*\x07", b"", out)
    assert b"\x1b[31mred" not in out
    assert "\x9b" not in out.decode("utf-8", "replace")
    idle = terminal.read(IDLE_S)
    print("idle bytes", len(idle), "in", IDLE_S, "s")
    assert len(idle) <= IDLE_MOST_BYTES, idle
    os.write(terminal.master, b"q")
    terminal.read(20, b"\x1b[?1049l")
    assert terminal.child.wait(20) == 0
