"""Main of a module's replication process: `python -m hyperha.replication.process FD` (M9, M4).

FD is its end of the control channel. The first message is `Start`; orders follow. The end of the
channel is the daemon's death: the process ends at once, and with it what it acknowledged.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from queue import SimpleQueue
from typing import Final, NoReturn

from hyperha.core.actions import EngineAction
from hyperha.core.events import Event
from hyperha.errors import HyperhaError, ReplicationError
from hyperha.replication import control
from hyperha.replication.control import (
    HeldOrphans,
    ProcessMessage,
    Question,
    Start,
    TakenOver,
    TakeSocket,
)
from hyperha.replication.engine import Engine
from hyperha.replication.fuse.orphans import Given

log = logging.getLogger("hyperha.replication")

_STACK_BYTES: Final = 512 * 1024
_DESCRIPTORS: Final = 16
_PR_SET_IO_FLUSHER: Final = 57
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_STATISTICS_S: Final = 1.0
_SWITCH_S: Final = 0.001
"""A thread that computes (digests) gives way to the data path this soon."""
_LOOK_S: Final = 0.1
_SESSION_S: Final = 0.25
"""How often while a session is up: its frames count as signs of life (P8)."""


class Channel:
    """The control channel: a thread sends, so that no caller waits for the daemon."""

    def __init__(self, channel: socket.socket) -> None:
        self._socket = channel
        self._queue: SimpleQueue[tuple[bytes, tuple[int, ...]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tell", daemon=True)
        self._thread.start()

    def send(self, message: Event | ProcessMessage, descriptors: tuple[int, ...] = ()) -> None:
        """Queue a message; descriptors are duplicated now and may be closed by the caller."""
        kept = tuple(os.dup(one) for one in descriptors)
        self._queue.put((control.encode(message), kept))

    def send_now(self, message: ProcessMessage, descriptor: int) -> None:
        """Hand over a message with a descriptor before this returns, past what is queued. Where
        the daemon has no room for it at the moment it is queued; nobody waits (T1)."""
        try:
            socket.send_fds(
                self._socket, [control.encode(message)], [descriptor], socket.MSG_DONTWAIT
            )
        except OSError:
            # Full, or the daemon is gone, which the main thread sees.
            self.send(message, (descriptor,))

    def receive(self) -> tuple[bytes, list[int]]:
        """The next packet; empty at the end of the channel."""
        raw, descriptors, flags, _ = socket.recv_fds(
            self._socket, control.PACKET_LIMIT, _DESCRIPTORS
        )
        if flags & socket.MSG_CTRUNC:
            raise ReplicationError("the daemon sent more descriptors than can be taken")
        return raw, list(descriptors)

    def finish(self) -> None:
        """Wait until what was queued is sent."""
        self._queue.put(None)
        self._thread.join(2.0)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            raw, descriptors = item
            try:
                socket.send_fds(self._socket, [raw], descriptors)
            except OSError as problem:
                # The daemon is gone; the main thread sees the end of the channel.
                log.info("nobody hears: %s", problem)
                return
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)


def protect() -> None:
    """Keep running when memory is short (M9); each step only where it is permitted."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        log.info("PR_SET_IO_FLUSHER is not permitted")
    if library.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        log.info("memory cannot be locked: %s", os.strerror(ctypes.get_errno()))
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-900")
    except OSError as problem:
        log.info("oom_score_adj stays: %s", problem.strerror)


class Process:
    """Reads the channel and gives the engine its orders."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._engine: Engine | None = None
        self._orphans: list[Given] = []
        """What a predecessor had held by the daemon."""

    def run(self) -> int:
        """Serve until the daemon is gone (1); a detached folder ends the process elsewhere (0)."""
        while True:
            raw, descriptors = self._channel.receive()
            if not raw:
                # With the daemon its duplicate of /dev/fuse is gone: the connection ends with us.
                return 1
            try:
                self._dispatch(control.decode(raw), descriptors)
            except HyperhaError as problem:
                log.error("%s", problem)
                for descriptor in descriptors:
                    os.close(descriptor)

    def _dispatch(self, message: control.Message, descriptors: list[int]) -> None:
        engine = self._engine
        if isinstance(message, Start):
            self._start(message, descriptors)
        elif isinstance(message, HeldOrphans) and engine is None:
            self._orphans += zip(message.serials, message.nodes, descriptors, strict=True)
        elif engine is None:
            raise ReplicationError(f"{type(message).__name__} came before Start")
        elif isinstance(message, EngineAction):
            engine.perform(message)
        elif isinstance(message, Question):
            engine.questions.ask(message)
        elif isinstance(message, TakeSocket) and len(descriptors) == 1:
            engine.take_socket(message, descriptors[0])
        else:
            raise ReplicationError(f"{type(message).__name__} is nothing that a daemon says here")

    def _start(self, start: Start, descriptors: list[int]) -> None:
        if self._engine is not None:
            raise ReplicationError("a second Start")
        engine = Engine(start.config, self._channel.send, self._channel.send_now)
        self._engine = engine
        if start.successor:
            kept: dict[str, list[int]] = {}
            for name, descriptor in zip(start.descriptors, descriptors, strict=True):
                kept.setdefault(name, []).append(descriptor)
            try:
                engine.take_over(kept, self._orphans, ours=start.ours)
            except (HyperhaError, OSError, ValueError) as problem:
                self._channel.send(TakenOver(False, str(problem)))
            else:
                self._channel.send(TakenOver(True))
        threading.Thread(target=self._statistics, name="statistics", daemon=True).start()

    def _statistics(self) -> None:
        engine = self._engine
        assert engine is not None
        told_s, busy, heard = 0.0, False, False
        while not engine.detached.wait(_LOOK_S):
            # The last handle's release ends a stop (M12): it is told at once.
            released = busy and engine.handles_open() == 0
            pause_s = _SESSION_S if heard else _STATISTICS_S
            if not released and time.monotonic() - told_s < pause_s:
                continue
            statistics = engine.statistics()
            if statistics is not None:
                told_s, busy = time.monotonic(), statistics.handles_open > 0
                heard = statistics.heard_ms > 0
                self._channel.send(statistics)
        # The folder is uncovered: the last answer leaves, then the process ends.
        self._channel.finish()
        _end(0)


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit status."""
    if len(arguments) != 1 or not arguments[0].isdigit():
        sys.stderr.write("usage: python -m hyperha.replication.process DESCRIPTOR\n")
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    protect()
    threading.stack_size(_STACK_BYTES)
    # What is made per request makes no cycles; the collector would only cost time.
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    sys.setswitchinterval(_SWITCH_S)
    # Signals to the daemon's terminal are the daemon's to judge.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raw = socket.socket(fileno=int(arguments[0]))
    raw.set_inheritable(False)
    channel = Channel(raw)
    _end(Process(channel).run())


def _end(status: int) -> NoReturn:
    """Threads may hang in calls on a disk or a mount: nothing is worth waiting for them."""
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
