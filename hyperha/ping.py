"""Whether a host answers: by ICMP echo where this user may ask, else by what its TCP ports do.

A refused connection is an answer, too: a kernel sent it. One question sends several echoes, so that
one lost datagram is no verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys

TCP_PORTS = (53, 80, 443, 22)
ECHOES = 3


async def answers(address: str, timeout_s: float) -> str:
    """How the host answered: "ICMP" or "TCP"; empty: not at all, within the time."""
    connects = [_connects(address, port, timeout_s) for port in TCP_PORTS]
    echo, *connected = await asyncio.gather(echoes(address, timeout_s), *connects)
    if echo:
        return "ICMP"
    return "TCP" if any(connected) else ""


async def _connects(address: str, port: int, timeout_s: float) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as way:
            way.setblocking(False)
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(way, (address, port))
    except (TimeoutError, OSError) as problem:
        return isinstance(problem, ConnectionError)
    return True


_ECHO = b"hyperha!"
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
"""ICMP types of echo request and echo reply by IP version."""


async def echoes(address: str, timeout_s: float) -> bool:
    """Whether the host answers an ICMP echo; False also where nobody may ask (M14)."""
    version = 6 if ":" in address else 4
    icmp = _icmp_socket(version)
    if icmp is None:
        return False
    with contextlib.closing(icmp):
        icmp.setblocking(False)
        try:
            # Connected: only what this address sends is received.
            icmp.connect((address, 0))
            async with asyncio.timeout(timeout_s):
                return await _echoed(icmp, version, timeout_s / ECHOES)
        except (OSError, TimeoutError):
            return False


async def _echoed(icmp: socket.socket, version: int, patience_s: float) -> bool:
    """Ask again after a while, until the caller's time is over."""
    loop = asyncio.get_running_loop()
    while True:
        icmp.send(_echo_request(version))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not _is_reply(await loop.sock_recv(icmp, 1024), version):
                    pass  # A raw socket also sees what others were answered.
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
