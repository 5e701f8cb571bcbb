"""Is this node the isolated one, and does the peer's daemon answer on any path (W6', W8)?

An answer is a TLS handshake or HTTP reply, not an accepted connection: the kernel of a frozen host
accepts. Asked only when the peer is silent; every question is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hyperha.core.events import ProbeDone


@dataclass(frozen=True, slots=True)
class ProbeTargets:
    """Addresses of the peer, its API and replication ports, and who else should answer."""

    peer_addresses: tuple[str, ...]
    own_addresses: tuple[str, ...]
    ports: tuple[int, ...]
    others: tuple[str, ...]
    """`probe` of the configuration; empty: the default gateway, if there is one."""
    timeout_s: float = 1.0


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
        paths = [
            self._answers(address, port)
            for address in self._targets.peer_addresses
            for port in self._targets.ports
        ]
        answers = await asyncio.gather(*paths)
        if any(answers):
            text = "the peer's daemon still answers on some path"
            self._post(ProbeDone(operation, None, True, text))
            return
        isolated, text = await self._isolated()
        self._post(ProbeDone(operation, isolated, False, f"the peer answers nowhere; {text}"))

    async def _answers(self, address: str, port: int) -> bool:
        writer = None
        try:
            async with asyncio.timeout(self._targets.timeout_s):
                _, writer = await asyncio.open_connection(
                    address, port, ssl=self._context, server_hostname=""
                )
            return True
        except ssl.SSLError:
            return True  # Somebody spoke TLS, whoever it is: the host and a daemon live.
        except (OSError, TimeoutError):
            return False
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _isolated(self) -> tuple[bool | None, str]:
        if all(_loopback(address) for address in self._targets.own_addresses):
            return None, "all LANs are loopback: isolation cannot be told"
        others = self._targets.others or tuple(filter(None, [default_gateway()]))
        if not others:
            return None, "there is no gateway and no probe address: isolation cannot be told"
        for address in others:
            if await self._reachable(address):
                return False, f"{address} answers here"
        return True, f"neither does {' nor '.join(others)}: this node is the isolated one"

    async def _reachable(self, address: str) -> bool:
        if await _ping(address, self._targets.timeout_s):
            return True
        for port in (53, 80, 443, 22):
            try:
                async with asyncio.timeout(self._targets.timeout_s / 4):
                    _, writer = await asyncio.open_connection(address, port)
                writer.transport.abort()
                return True
            except ConnectionRefusedError:
                return True
            except (OSError, TimeoutError):
                continue
        return False


def _loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


async def _ping(address: str, timeout_s: float) -> bool:
    """One ICMP echo through an unprivileged datagram socket, where the system allows it."""
    if sys.platform == "win32" or ":" in address:
        return False
    loop = asyncio.get_running_loop()
    try:
        icmp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    except OSError:
        return False
    with contextlib.closing(icmp):
        icmp.setblocking(False)
        try:
            icmp.sendto(_echo_request(), (address, 0))
            async with asyncio.timeout(timeout_s):
                await loop.sock_recv(icmp, 1024)
        except (OSError, TimeoutError):
            return False
        return True


def _echo_request() -> bytes:
    body = b"hyperha!"
    header = struct.pack("!BBHHH", 8, 0, 0, 0, 1)
    total = sum(struct.unpack("!8H", header + body))
    total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, 0, 1) + body


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
