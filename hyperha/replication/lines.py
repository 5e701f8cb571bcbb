"""The lines of one session, on the primary: the one that carries it, and the next (T4, D12).

The receiver's thread asks for another line when its own has ended; a thread of its own looks for
one while the session goes on. One of them at a time. A peer that refuses or hangs up ends the
search, since its host answers and nobody there has the session; unless its process has just
answered over another LAN. What does not answer is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from hyperha.errors import ReplicationError
from hyperha.replication import handshake
from hyperha.replication.clock import now_ms
from hyperha.replication.connecting import Connector, Line
from hyperha.replication.control import EngineConfig, PeerLink
from hyperha.replication.handshake import Hello, Welcome
from hyperha.replication.transport import HungUpError
from hyperha.replication.wire import Frame, Kind

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.05
_TRIES: Final = 6
"""A try over one LAN takes this part of stall_limit at most, so that several fit in."""


@dataclass(frozen=True, slots=True)
class Found:
    """A line to go on with."""

    line: Line
    received: int
    """Frames that the peer has, by its own word."""
    answers: int
    """Answers that had come when it was asked: it says the later ones again."""
    why: str
    alarm: bool
    """Something was wrong with the former one."""


class Lines:
    """`hello` makes the offer of the moment; `ended` says why nothing is to be tried any more."""

    def __init__(
        self, config: EngineConfig, tag: int, hello: Callable[[], Hello], ended: Callable[[], str]
    ) -> None:
        self.connector = Connector(config, tag)
        self.instance = ""
        """Of the peer's process that has the session; empty before it has begun."""
        self._config = config
        self._hello = hello
        self._ended = ended
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._since_ms = 0
        """When the session went over to it; 0: it began with it."""
        self._former: Line | None = None
        """Somebody late may still hold it: closed when the next one is, or at the end."""
        self._next: Found | None = None
        self._connecting = threading.Lock()
        """Held while another line is looked for."""
        self._mover: threading.Thread | None = None

    @property
    def line(self) -> Line | None:
        """What carries the session."""
        return self._line

    def begin(self, line: Line) -> None:
        """The session's first line."""
        with self._lock:
            self._line = line

    def move(self, links: Sequence[PeerLink], why: str, *, alarm: bool) -> None:
        """Look for a line over one of these LANs, in order; then end the one that is used, so that
        its receiver finds the next. Returns at once; while one move is under way others are not
        begun."""
        with self._lock:
            if self._mover is not None and self._mover.is_alive():
                return
            self._mover = threading.Thread(
                target=self._move, args=(list(links), why, alarm), name="session-move", daemon=True
            )
            # Under the lock: else nobody would wait for one that was not alive yet.
            self._mover.start()

    def _move(self, links: list[PeerLink], why: str, alarm: bool) -> None:
        with self._connecting:
            if self._ended() or self._next is not None:
                return
            found, problem = self._another(links, now_ms(), why, alarm)
            if found is None:
                log.info("the session stays where it is: %s", problem)
                return
            with self._lock:
                self._next = found
                line = self._line
        if line is not None:
            line.abort()
        if self._ended():
            self.abort()

    def following(self, deadline_ms: int, why: str) -> tuple[Found | None, str]:
        """Another line instead of the one that has ended, or why there is none."""
        with self._connecting:
            with self._lock:
                found, self._next = self._next, None
            problem = ""
            if found is None:
                # A line that broke at once may be one of many.
                time.sleep(max(0.0, _RETRY_S - (now_ms() - self._since_ms) / 1000))
                found, problem = self._another(self._config.links, deadline_ms, why, True)
            if found is None:
                return None, self._ended() or (f"{why}; {problem}" if problem else why)
            with self._lock:
                before, former = self._former, self._line
                self._former, self._line = former, found.line
                self._since_ms = now_ms()
        if former is not None:
            former.abort()
        if before is not None:
            before.close()
        if self._ended():
            # While it was found: nobody else would abort it any more.
            self.abort()
        return found, ""

    def _another(
        self, links: Sequence[PeerLink], deadline_ms: int, why: str, alarm: bool
    ) -> tuple[Found | None, str]:
        part_s = self._config.stall_limit_ms / _TRIES / 1000
        problem, answered, answered_before = "", "", ""
        while True:
            refused, answered, answered_before = "", "", answered
            for link in links:
                if self._ended():
                    return None, self._ended()
                hello = self._hello()
                try:
                    line, answer = self.connector.offer(
                        link, hello, connect_s=part_s, answer_s=part_s
                    )
                except HungUpError as error:
                    return None, not_over(link, error)
                except ConnectionRefusedError as error:
                    # Nobody listens, or a firewall of that LAN says so: the others will tell.
                    refused = not_over(link, error)
                    continue
                except (OSError, ReplicationError) as error:
                    problem = not_over(link, error)
                    continue
                if answer.kind is Kind.REFUSED:
                    line.close()
                    refusal = handshake.decode_refusal(answer.payload)
                    if refusal.code not in handshake.WORTH_ANOTHER_TRY:
                        return None, refusal.text
                    answered = f"{link.lan}: {refusal.text}"
                    continue
                try:
                    received = self._received(line, answer)
                except ReplicationError as error:
                    line.close()
                    return None, error.text
                return Found(line, received, hello.answers, why, alarm), ""
            alive = answered or answered_before
            if (refused and not alive) or now_ms() >= deadline_ms:
                return None, alive or refused or problem
            time.sleep(_RETRY_S)

    def _received(self, line: Line, answer: Frame) -> int:
        """How many frames of the session the peer has."""
        welcome = welcome_of(answer)
        if welcome.instance != self.instance:
            raise ReplicationError("another process of the peer answers")
        line.set_timeout(None)
        return welcome.received

    def abort(self) -> None:
        """End what carries the session and every search, from any thread."""
        self.connector.abort()
        with self._lock:
            found = (self._line, None if self._next is None else self._next.line)
        for line in found:
            if line is not None:
                line.abort()

    def close(self) -> None:
        """Close all of it; when nobody sends or receives any more."""
        with self._connecting, self._lock:
            found = (self._line, self._former, None if self._next is None else self._next.line)
            self._line = self._former = self._next = None
        for line in found:
            if line is not None:
                line.close()

    def join(self) -> None:
        """Wait for a search that is under way."""
        if self._mover is not None:
            self._mover.join()


def not_over(link: PeerLink, problem: Exception) -> str:
    """Why a LAN did not do."""
    return f"{link.lan} to {link.peer_address}:{link.peer_port}: {problem}"


def welcome_of(answer: Frame) -> Welcome:
    """The welcome in an answer to a hello. Raises ReplicationError when it is another one."""
    if answer.kind is not Kind.WELCOME:
        raise ReplicationError(f"the peer answers the hello with {answer.kind.name}")
    return handshake.decode_welcome(answer.payload)
