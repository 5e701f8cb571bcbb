"""Messages on their way to the peer, and which of the peer's have arrived. Pure; time is given.

Every message is sent on every LAN at once and again until the peer acknowledges it or its time is
over; the receiver acknowledges each copy and hands each message on once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperha.heartbeat.message import Message
from hyperha.heartbeat.seal import ReplayWindow

OUTBOX_LIMIT = 512
"""More waiting messages than the cores of 32 modules can have outstanding: the oldest are dropped;
the cores' own timers say again what matters."""


@dataclass(slots=True)
class _Waiting:
    message: Message
    again_ms: int
    until_ms: int


@dataclass(slots=True)
class Outbox:
    """What has not been acknowledged yet."""

    retry_ms: int
    _next_id: int = 1
    _waiting: dict[int, _Waiting] = field(default_factory=dict)

    def add(self, module: int, payload: bytes, now_ms: int, timeout_ms: int) -> None:
        """Put one message on its way; it is due at once."""
        message = Message(self._next_id, module, payload)
        self._next_id += 1
        self._waiting[message.id] = _Waiting(message, now_ms, now_ms + timeout_ms)
        while len(self._waiting) > OUTBOX_LIMIT:
            del self._waiting[next(iter(self._waiting))]

    def due(self, now_ms: int) -> list[Message]:
        """What is to be sent now, in the order it was added; what is too old is forgotten."""
        out = []
        for number, waiting in list(self._waiting.items()):
            if now_ms >= waiting.until_ms:
                del self._waiting[number]
            elif now_ms >= waiting.again_ms:
                waiting.again_ms = now_ms + self.retry_ms
                out.append(waiting.message)
        return out

    def acknowledged(self, ids: tuple[int, ...]) -> None:
        """The peer has these."""
        for number in ids:
            self._waiting.pop(number, None)

    def next_due_ms(self) -> int | None:
        """When `due` has something again, None when nothing waits."""
        return min((waiting.again_ms for waiting in self._waiting.values()), default=None)


@dataclass(slots=True)
class Inbox:
    """Which messages of the peer's present process were handed on."""

    _seen: ReplayWindow = field(default_factory=ReplayWindow)

    def first_time(self, message: Message) -> bool:
        """Whether this message is new."""
        return self._seen.accept(message.id)

    def restart(self) -> None:
        """The peer's process is another one: its ids begin anew."""
        self._seen = ReplayWindow()
