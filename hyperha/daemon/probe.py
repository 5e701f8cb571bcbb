"""Is this node the isolated one, and does the peer's daemon answer on any path (W6', W8)?

An answer is a TLS handshake or HTTP reply, not an accepted connection: the kernel of a frozen host
accepts. Asked only when the peer is silent; every question is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hyperha.config import Configuration
from hyperha.core.events import ProbeDone

_log = logging.getLogger(__name__)
_COMMON_PORTS = (53, 80, 443, 22)

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
    """`probe` of the configuration; empty: the default gateway, if there is one."""
    timeout_s: float = LOOK_LIMIT_S
    """How long one look around may take in all."""

    @classmethod
    def of(cls, configuration: Configuration) -> ProbeTargets:
        """What this configuration says of both nodes; a look is a part of the takeover's wait."""
        cluster, timing = configuration.cluster, configuration.cluster.timing
        # Several looks fit between suspicion and takeover.
        share_s = (timing.takeover_wait_ms - timing.suspect_ms) / 3000
        return cls(
            peer_addresses=tuple(lan.addresses[configuration.peer] for lan in cluster.lan),
            own_addresses=tuple(lan.addresses[configuration.node] for lan in cluster.lan),
            ports=(cluster.ports.api, cluster.ports.peer),
            others=cluster.arbitration.probe,
            timeout_s=min(LOOK_LIMIT_S, share_s),
        )


class Prober:
    """Asks on demand and posts one `ProbeDone`."""

    def __init__(
        self, targets: ProbeTargets, context: ssl.SSLContext, post: Callable[[ProbeDone], None]
    ) -> None:
        self._targets = targets
        self._context = context
        self._post = post
        self._tasks: set[asyncio.Task[None]] = set()

    def probe(self, operation: int) -> None:
        """Begin; the result is posted within about the time-out."""
        task = asyncio.get_running_loop().create_task(self._probe(operation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe(self, operation: int) -> None:
        try:
            self._post(await self._found(operation))
        except Exception as problem:
            # Who waits for the answer waits for ever; without one nobody takes over (W8).
            _log.exception("the look for the peer failed")
            text = f"the look for the peer failed: {problem}"
            self._post(ProbeDone(operation, None, True, text))

    async def _found(self, operation: int) -> ProbeDone:
        hosts = [self._look(address) for address in self._targets.peer_addresses]
        (isolated, text), *found = await asyncio.gather(self._isolated(), *hosts)
        told = next((why for answers, why in found if answers), "")
        if told:
            return ProbeDone(operation, None, True, told)
        return ProbeDone(operation, isolated, False, f"the peer answers nowhere; {text}")

    async def _look(self, address: str) -> tuple[bool, str]:
        """Whether the peer may live behind one address, and how that is known (W8)."""
        paths = [self._ask(address, port) for port in self._targets.ports]
        pong, *answers = await asyncio.gather(ping(address, self._targets.timeout_s), *paths)
        if Answer.SPOKE in answers:
            return True, f"the peer's daemon still answers at {address}"
        if pong and set(answers) == {Answer.SILENT}:
            text = (
                f"{address} answers ping, but its ports neither accept nor refuse: a filter lies "
                f"between the nodes and the peer may run behind it"
            )
            return True, text
        return False, ""

    async def _ask(self, address: str, port: int, *, speak: bool = True) -> Answer:
        """What one port does; with `speak` somebody must answer there, too."""
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
        if not speak:
            way.close()
            return Answer.MUTE
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

    async def _isolated(self) -> tuple[bool | None, str]:
        """W6': whether nobody but ourselves answers; None when there is nobody to ask."""
        if all(_loopback(address) for address in self._targets.own_addresses):
            return None, "all LANs are loopback: isolation cannot be told"
        others = self._targets.others or tuple(filter(None, [default_gateway()]))
        if not others:
            return None, "there is no gateway and no probe address: isolation cannot be told"
        answers = await asyncio.gather(*map(self._reachable, others))
        for address, answered in zip(others, answers, strict=True):
            if answered:
                return False, f"{address} answers here"
        return True, f"neither does {' nor '.join(others)}: this node is the isolated one"

    async def _reachable(self, address: str) -> bool:
        ways = [self._ask(address, port, speak=False) for port in _COMMON_PORTS]
        pong, *answers = await asyncio.gather(ping(address, self._targets.timeout_s), *ways)
        return bool(pong) or not {Answer.MUTE, Answer.REFUSED}.isdisjoint(answers)


def _loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


_ECHO = b"hyperha!"
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
"""ICMP types of echo request and echo reply by IP version."""


async def ping(address: str, timeout_s: float) -> bool:
    """Whether the host answers one ICMP echo; False also where nobody may ask (M14)."""
    loop = asyncio.get_running_loop()
    version = 6 if ":" in address else 4
    icmp = _icmp_socket(version)
    if icmp is None:
        return False
    with contextlib.closing(icmp):
        icmp.setblocking(False)
        try:
            # Connected: only what this address sends is received.
            icmp.connect((address, 0))
            icmp.send(_echo_request(version))
            async with asyncio.timeout(timeout_s):
                while not _is_reply(await loop.sock_recv(icmp, 1024), version):
                    pass  # A raw socket also sees what others were answered.
        except (OSError, TimeoutError):
            return False
        return True


def _icmp_socket(version: int) -> socket.socket | None:
    """A datagram socket where the system lets this user have one, else a raw one, or none."""
    if sys.platform == "win32":
        return None
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            return socket.socket(family, kind, protocol)
        except OSError:
            continue
    return None


def _echo_request(version: int) -> bytes:
    header = struct.pack("!BBHHH", _REQUEST[version], 0, 0, 0, 1)
    total = sum(struct.unpack("!8H", header + _ECHO))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    # The kernel fills in the checksum of version 6, which covers addresses.
    return struct.pack("!BBHHH", _REQUEST[version], 0, ~total & 0xFFFF, 0, 1) + _ECHO


def _is_reply(packet: bytes, version: int) -> bool:
    """An echo reply with our content; a raw socket of version 4 shows the IP header, too."""
    if version == 4 and packet[:1] and packet[0] >> 4 == 4:
        packet = packet[(packet[0] & 15) * 4 :]
    return packet[:1] == bytes((_REPLY[version],)) and packet.endswith(_ECHO)


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
