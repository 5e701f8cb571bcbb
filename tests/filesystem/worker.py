"""A process that does the steps of sequences in two folders, with users' rights, and compares.

`python -m tests.filesystem.worker DESCRIPTOR`: apart from the test's own process, since it changes
its user and its working directory all the time while that one starts other processes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from tests.filesystem.steps import Step
from tests.filesystem.world import World
from tests.support import ROOT

BREAKS = ("lose", "return_", "succeed")
"""Steps that are not a user's: the test's process does them when it is told."""


class Worker:
    """The test's end."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.filesystem.worker", str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=(theirs.fileno(),))
        self._channel = Connection(ours.detach())

    def play(
        self, mounted: str, plain: str, steps: Sequence[Step], broken: Callable[[str], None]
    ) -> str:
        """What differed, or nothing; `broken` is called for steps that are not a user's."""
        self._channel.send((mounted, plain, list(steps)))
        while True:
            kind, text = self._channel.recv()
            if kind == "done":
                return str(text)
            broken(text)
            self._channel.send(None)

    def close(self) -> None:
        """End it; it holds nothing open between sequences."""
        self._channel.close()
        self._process.kill()
        self._process.wait()


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) < 300 else f"{said[:140]} ... {said[-140:]} ({len(said)})"


def _compare(channel: Connection, worlds: list[World], steps: list[Step]) -> str:
    for number, step in enumerate(steps):
        if step.kind in BREAKS:
            if step.kind == "succeed":
                for world in worlds:
                    world.close_nameless()
            channel.send(("break", step.kind))
            channel.recv()
            continue
        left, right = (world.do(step) for world in worlds)
        if left != right:
            return f"step {number}: {step!r}: mount {_short(left)}, plain {_short(right)}"
    return ""


def main() -> None:
    """Until the other end is closed."""
    channel = Connection(int(sys.argv[1]))
    while True:
        try:
            mounted, plain, steps = channel.recv()
        except EOFError:
            return
        worlds: list[World] = []
        try:
            for folder in (mounted, plain):
                worlds.append(World(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)))
            said = _compare(channel, worlds, steps)
        except OSError as problem:
            said = f"the worker: {problem}"
        finally:
            for world in worlds:
                world.close()
        channel.send(("done", said))


if __name__ == "__main__":
    main()
