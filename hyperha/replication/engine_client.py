"""The daemon's end of the control channel of a replication process (asyncio).

It starts nothing: it gets a connected SOCK_SEQPACKET socket, sends orders in order, and calls back
with what the process says. The end of the channel is the death of the process, said once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from hyperha.core.actions import EngineAction
from hyperha.core.events import Event
from hyperha.errors import ReplicationError
from hyperha.replication import control
from hyperha.replication.control import (
    HeldOrphans,
    ProcessMessage,
    Question,
    Start,
    TakenOver,
    TakeSocket,
)

log = logging.getLogger(__name__)

_DESCRIPTORS: Final = 16


class EngineClient:
    """One replication process as the daemon sees it; belongs to the running event loop.

    `on_message` gets the process messages with the descriptors that came along, which are the
    receiver's to close; `on_event` the core's events; `on_lost` the reason, once, when the process
    is gone, but not after `close`.
    """

    def __init__(
        self,
        channel: socket.socket,
        on_message: Callable[[ProcessMessage, tuple[int, ...]], None],
        on_event: Callable[[Event], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._channel = channel
        self._on_message = on_message
        self._on_event = on_event
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._closed = False
        self._taken_over: asyncio.Future[TakenOver] = self._loop.create_future()
        channel.setblocking(False)
        self._loop.add_reader(channel.fileno(), self._readable)

    def start(self, start: Start, descriptors: Sequence[int] = ()) -> None:
        """Tell the process what it is; for a successor with the kept descriptors (M4)."""
        self._send(control.encode(start), tuple(descriptors))

    def give_orphans(self, held: HeldOrphans, descriptors: Sequence[int]) -> None:
        """Give a successor, before its start, what its predecessor had held (M4)."""
        self._send(control.encode(held), tuple(descriptors))

    def perform(self, action: EngineAction) -> None:
        """Order an action; its `EngineDone` comes later."""
        self._send(control.encode(action), ())

    def ask(self, question: Question) -> None:
        """Ask something beside the core's orders; answers name the question's number."""
        self._send(control.encode(question), ())

    def give_socket(self, descriptor: int, take: TakeSocket) -> None:
        """Hand over an accepted connection; the caller keeps and closes its own descriptor."""
        self._send(control.encode(take), (descriptor,))

    async def taken_over(self) -> TakenOver:
        """Whether the successor has the mount; waits until it says so, or is gone (M4)."""
        return await asyncio.shield(self._taken_over)

    def close(self) -> None:
        """End the channel: the process ends with it. `on_lost` is not called."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        for _, descriptors in self._queue:
            _close_all(descriptors)
        self._queue.clear()
        self._channel.close()
        if not self._taken_over.done():
            self._taken_over.set_result(TakenOver(False, "it is gone"))

    # --- sending --------------------------------------------------------------------------

    def _send(self, raw: bytes, descriptors: tuple[int, ...]) -> None:
        if self._closed:
            raise ReplicationError("the replication process is gone")
        if not self._queue and self._try(raw, descriptors):
            return
        # The caller may close its own descriptors as soon as this returns.
        self._queue.append((raw, tuple(os.dup(one) for one in descriptors)))
        self._loop.add_writer(self._channel.fileno(), self._writable)

    def _try(self, raw: bytes, descriptors: tuple[int, ...]) -> bool:
        try:
            if descriptors:
                socket.send_fds(self._channel, [raw], descriptors)
            else:
                self._channel.send(raw)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as problem:
            # The reader sees the end as well, and tells it.
            log.info("the replication process takes no orders: %s", problem)
        return True

    def _writable(self) -> None:
        while self._queue:
            raw, descriptors = self._queue[0]
            if not self._try(raw, descriptors):
                return
            self._queue.popleft()
            _close_all(descriptors)
        self._loop.remove_writer(self._channel.fileno())

    # --- receiving ------------------------------------------------------------------------

    def _readable(self) -> None:
        for _ in range(64):
            try:
                raw, descriptors, _, _ = socket.recv_fds(
                    self._channel, control.PACKET_LIMIT, _DESCRIPTORS
                )
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:
                # It died with orders unread; what it said before is still to be read.
                continue
            except OSError as problem:
                self._lost(f"its control channel broke ({problem.strerror})")
                return
            if not raw:
                self._lost("it closed its control channel")
                return
            self._dispatch(raw, tuple(descriptors))
            if self._closed:
                return

    def _dispatch(self, raw: bytes, descriptors: tuple[int, ...]) -> None:
        try:
            message = control.decode(raw)
        except ReplicationError as problem:
            _close_all(descriptors)
            self._lost(f"it spoke nonsense ({problem.text})")
            return
        if isinstance(message, TakenOver):
            _close_all(descriptors)
            if not self._taken_over.done():
                self._taken_over.set_result(message)
        elif isinstance(message, ProcessMessage):
            self._on_message(message, descriptors)
        elif isinstance(message, Event):
            _close_all(descriptors)
            self._on_event(message)
        else:
            _close_all(descriptors)
            self._lost(f"it gave an order itself ({type(message).__name__})")

    def _lost(self, text: str) -> None:
        self.close()
        self._on_lost(f"the replication process is gone: {text}")


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
