"""Is this node the isolated one, and does the peer's daemon answer on any path (W6', W8)?

An answer is a TLS handshake or HTTP reply, not an accepted connection: the kernel of a frozen host
accepts. Asked only when the peer is silent; every question is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hyperha import ping
from hyperha.config import Configuration
from hyperha.core.events import ProbeDone
from hyperha.daemon.module_task import boottime_ms

_log = logging.getLogger(__name__)

LOOK_LIMIT_S = 0.7
"""With the pause after it a look around is not older than the core lets it be."""


class Answer(Enum):
    """What one port of the peer did."""

    SPOKE = "spoke"
    MUTE = "mute"
    """The kernel accepts, nobody answers: the daemon is stopped or hangs."""
    REFUSED = "refused"
    """The host lives, nobody listens."""
    UNREACHABLE = "unreachable"
    SILENT = "silent"
    """Neither accepted nor refused: dead, cut off or behind a filter."""


@dataclass(frozen=True, slots=True)
class ProbeTargets:
    """Addresses of the peer, its API and replication ports, and who else should answer."""

    peer_addresses: tuple[str, ...]
    own_addresses: tuple[str, ...]
    ports: tuple[int, ...]
    others: tuple[str, ...]
    """The ping witness, or else `probe` of the configuration; empty: the default gateway, if there
    is one."""
    timeout_s: float = LOOK_LIMIT_S
    """How long one look around may take in all."""
    witness: bool = False
    """Whether `others` are a ping witness, which is asked whatever the LANs are."""

    @classmethod
    def of(cls, configuration: Configuration) -> ProbeTargets:
        """What this configuration says of both nodes; a look is a part of the takeover's wait."""
        cluster, timing = configuration.cluster, configuration.cluster.timing
        witness = cluster.witness
        pinged = witness is not None and witness.kind == "ping"
        # Several looks fit between suspicion and takeover.
        share_s = (timing.takeover_wait_ms - timing.suspect_ms) / 3000
        return cls(
            peer_addresses=tuple(lan.addresses[configuration.peer] for lan in cluster.lan),
            own_addresses=tuple(lan.addresses[configuration.node] for lan in cluster.lan),
            ports=(cluster.ports.api, cluster.ports.peer),
            others=witness.addresses if pinged and witness else cluster.arbitration.probe,
            timeout_s=min(LOOK_LIMIT_S, share_s),
            witness=pinged,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """One look around, and when its questions were sent."""

    isolated: bool | None
    peer_answers: bool
    text: str
    began_ms: int


class Lookout:
    """Looks around for all modules of this node: who asks while a look is under way gets its
    answer, which is as new as one of its own would be."""

    def __init__(self, targets: ProbeTargets, context: ssl.SSLContext) -> None:
        self._targets = targets
        self._context = context
        self._look: asyncio.Task[Found] | None = None
        self.ways: dict[str, str] = {}
        """How each of the others answered last; empty: it did not."""

    async def found(self) -> Found:
        """The answer of the look that is under way, or of a new one. Never fails."""
        if self._look is None or self._look.done():
            self._look = asyncio.get_running_loop().create_task(self._found())
        return await asyncio.shield(self._look)

    async def _found(self) -> Found:
        began_ms = boottime_ms()
        try:
            return await self._ask_all(began_ms)
        except Exception as problem:
            # Who waits for the answer waits for ever; without one nobody takes over (W8).
            _log.exception("the look for the peer failed")
            return Found(None, True, f"the look for the peer failed: {problem}", began_ms)

    async def _ask_all(self, began_ms: int) -> Found:
        hosts = [self._look_at(address) for address in self._targets.peer_addresses]
        (isolated, text), *found = await asyncio.gather(self.isolated(), *hosts)
        told = next((why for answers, why in found if answers), "")
        if isolated or not told:
            nowhere = "" if told else "the peer answers nowhere; "
            return Found(isolated, bool(told), f"{nowhere}{text}", began_ms)
        return Found(isolated, True, told, began_ms)

    async def _look_at(self, address: str) -> tuple[bool, str]:
        """Whether the peer may live behind one address, and how that is known (W8)."""
        paths = [self._ask(address, port) for port in self._targets.ports]
        pong, *answers = await asyncio.gather(ping.echoes(address, self._targets.timeout_s), *paths)
        if Answer.SPOKE in answers:
            return True, f"the peer's daemon still answers at {address}"
        if pong and set(answers) == {Answer.SILENT}:
            text = (
                f"{address} answers ping, but its ports neither accept nor refuse: a filter lies "
                f"between the nodes and the peer may run behind it"
            )
            return True, text
        return False, ""

    async def _ask(self, address: str, port: int) -> Answer:
        """What one port does, and whether somebody speaks there."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        way = socket.socket(family, socket.SOCK_STREAM)
        way.setblocking(False)
        try:
            async with asyncio.timeout(self._targets.timeout_s / 2):
                await loop.sock_connect(way, (address, port))
        except TimeoutError:
            way.close()
            return Answer.SILENT
        except OSError as problem:
            way.close()
            refused = isinstance(problem, ConnectionError)
            return Answer.REFUSED if refused else Answer.UNREACHABLE
        _, writer = await asyncio.open_connection(sock=way)
        # The transport alone may close the socket: the loop watches the number of what is closed
        # behind its back, which the next socket gets.
        transport = writer.transport
        try:
            async with asyncio.timeout(self._targets.timeout_s / 2):
                await writer.start_tls(self._context)
            return Answer.SPOKE
        except ssl.SSLError:
            return Answer.SPOKE  # Somebody spoke TLS, whoever it is: the host and a daemon live.
        except (OSError, TimeoutError):
            return Answer.MUTE
        finally:
            transport.abort()

    async def isolated(self) -> tuple[bool | None, str]:
        """W6', W8: whether nobody but ourselves answers; None when there is nobody to ask."""
        loopback = all(_loopback(address) for address in self._targets.own_addresses)
        if loopback and not self._targets.witness:
            return None, "all LANs are loopback: isolation cannot be told"
        others = self._targets.others or tuple(filter(None, [default_gateway()]))
        if not others:
            return None, "there is no gateway and no probe address: isolation cannot be told"
        limit_s = self._targets.timeout_s
        ways = await asyncio.gather(*(ping.answers(address, limit_s) for address in others))
        self.ways = dict(zip(others, ways, strict=True))
        for address, way in self.ways.items():
            if way:
                return False, f"{address} answers here ({way})"
        return True, f"{_none_of(others)} here: this node is the isolated one"


def _loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _none_of(others: tuple[str, ...]) -> str:
    if len(others) == 1:
        return f"{others[0]} does not answer"
    return f"none of {', '.join(others)} answers"


class Prober:
    """One module's way to the node's lookout (`ports.Prober`)."""

    def __init__(
        self,
        lookout: Lookout,
        post: Callable[[ProbeDone], None],
        reached: Callable[[int], None] | None = None,
    ) -> None:
        self._lookout = lookout
        self._post = post
        self._reached = reached
        """Told when a look found that this node is not the isolated one, with when it began."""
        self._tasks: set[asyncio.Task[None]] = set()

    def probe(self, operation: int) -> None:
        """Begin; the result is posted within about the time-out."""
        task = asyncio.get_running_loop().create_task(self._probe(operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe(self, operation: int) -> None:
        found = await self._lookout.found()
        if found.isolated is False and self._reached is not None:
            self._reached(found.began_ms)
        self._post(ProbeDone(operation, found.isolated, found.peer_answers, found.text))


def default_gateway() -> str:
    """The IPv4 default gateway of this host, or empty."""
    try:
        lines = Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        if len(fields) > 2 and fields[1] == "00000000":
            return socket.inet_ntoa(struct.pack("<I", int(fields[2], 16)))
    return ""
