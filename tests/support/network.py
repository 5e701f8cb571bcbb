"""Hosts in network namespaces: two nodes, one or two LANs between them, and somebody outside.

Each LAN is a bridge in a namespace of its own (`hub`); cutting a cable is taking one port of the
bridge down, so that the node's own interface loses nothing but its peer. A third network reaches
the observer and is never cut. Everything is named after the test and removed at the end.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

NODES = ("node1", "node2")
_CLONE_NEWNET = 0x40000000


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


class Network:
    """Namespaces `hX-hub`, `hX-node1`, `hX-node2`; LANs are numbered from 0."""

    def __init__(self, lans: int) -> None:
        self.lans = lans
        self.mark = f"h{secrets.token_hex(2)}"
        self.hub = f"{self.mark}-hub"
        self._made: list[str] = []
        self._tables = itertools.count(1)
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def namespace(self, node: str) -> str:
        """The namespace of a node."""
        return f"{self.mark}-{node}"

    def address(self, lan: int, node: str) -> str:
        """A node's address on a LAN; LAN `lans` is the one of the observer."""
        return f"10.213.{lan}.{NODES.index(node) + 1}"

    def outside(self) -> str:
        """The observer's address."""
        return f"10.213.{self.lans}.254"

    def _build(self) -> None:
        for name in (self.hub, *(self.namespace(node) for node in NODES)):
            _run("ip", "netns", "add", name)
            self._made.append(name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        for lan in range(self.lans + 1):
            bridge = f"br{lan}"
            _run("ip", "-n", self.hub, "link", "add", bridge, "type", "bridge")
            for node in NODES:
                port, there = f"p{lan}{node[-1]}", self.namespace(node)
                _run(
                    "ip", "-n", self.hub, "link", "add", port, "type", "veth",
                    "peer", "name", f"lan{lan}", "netns", there,
                )  # fmt: skip
                _run("ip", "-n", self.hub, "link", "set", port, "master", bridge, "up")
                address = f"{self.address(lan, node)}/24"
                _run("ip", "-n", there, "address", "add", address, "dev", f"lan{lan}")
                _run("ip", "-n", there, "link", "set", f"lan{lan}", "up")
            _run("ip", "-n", self.hub, "link", "set", bridge, "up")
        last = f"br{self.lans}"
        _run("ip", "-n", self.hub, "address", "add", f"{self.outside()}/24", "dev", last)

    def cut(self, lan: int, node: str) -> None:
        """Pull the node's cable out of the switch of a LAN."""
        _run("ip", "-n", self.hub, "link", "set", f"p{lan}{node[-1]}", "down")

    def mend(self, lan: int, node: str) -> None:
        """Put it back."""
        _run("ip", "-n", self.hub, "link", "set", f"p{lan}{node[-1]}", "up")

    def filter(self, lan: int, node: str) -> str:
        """A firewall on the node that drops everything of the LAN but ICMP, and says nothing; its
        name, for `unfilter`."""
        matches = [("meta", "l4proto", protocol) for protocol in ("tcp", "udp")]
        return self._firewall(lan, node, matches, ("drop",))

    def reset(self, lan: int, node: str, port: int) -> str:
        """A firewall on the node that resets every TCP connection of the LAN to or from a port; its
        name, for `unfilter`."""
        matches = [("tcp", end, str(port)) for end in ("sport", "dport")]
        return self._firewall(lan, node, matches, ("reject", "with", "tcp", "reset"))

    def _firewall(
        self, lan: int, node: str, matches: list[tuple[str, ...]], verdict: tuple[str, ...]
    ) -> str:
        # One of its own for each: two faults may overlap, and end one after the other.
        table = f"fault{next(self._tables)}"
        there = ("ip", "netns", "exec", self.namespace(node), "nft")
        _run(*there, "add", "table", "inet", table)
        for chain, face in (("input", "iifname"), ("output", "oifname")):
            hook = f"{{ type filter hook {chain} priority 0; policy accept; }}"
            _run(*there, "add", "chain", "inet", table, chain, hook)
            for match in matches:
                rule = (face, f"lan{lan}", *match, *verdict)
                _run(*there, "add", "rule", "inet", table, chain, *rule)
        return table

    def unfilter(self, node: str, table: str) -> None:
        """Take a firewall away."""
        _run("ip", "netns", "exec", self.namespace(node), "nft", "delete", "table", "inet", table)

    def listening(self) -> socket.socket:
        """A UDP socket at the observer's address."""

        def make() -> socket.socket:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind((self.outside(), 0))
            return udp

        return inside(self.hub, make)

    def close(self) -> None:
        """Remove the namespaces, and with them links and bridges."""
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        self._made.clear()


T = TypeVar("T")


def inside(namespace: str, work: Callable[[], T]) -> T:
    """Do it in a network namespace; a socket that it makes stays in there."""
    done: list[T] = []

    def do() -> None:
        # The namespace is the thread's; the socket keeps it when the thread has ended.
        libc = ctypes.CDLL(None, use_errno=True)
        place = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        try:
            assert libc.setns(place, _CLONE_NEWNET) == 0
            done.append(work())
        finally:
            os.close(place)

    thread = threading.Thread(target=do)
    thread.start()
    thread.join()
    return done[0]
