"""TCP connections of a replication session, plain or TLS 1.3 with both sides' certificates.

Each connection is used by one thread per end, without TLS by one at a time (T5); only `abort` may
be called by others. TLS works in memory (`tls`), so that calls on the socket are few and large.
Nothing here knows frames. Certificates are pinned to the cluster's authority, and the peer's must
name the expected node; the time of validity alone never refuses a peer (S4: they are made to
outlast it).
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections.abc import Sequence
from typing import Final

from hyperha.errors import ReplicationError
from hyperha.replication.buffers import Buffers
from hyperha.replication.control import TlsFiles
from hyperha.replication.tls import Cipher

RECEIVE_BYTES: Final = 1 << 19
_SEALED_BYTES: Final = 1 << 18
_VECTOR_LIMIT: Final = 512

Piece = bytes | memoryview
"""What is sent: a view must stay as it is until it was sent."""


class HungUpError(ReplicationError):
    """The other side has ended the connection where an answer was due."""


class Connection:
    """One connected socket. `abort` ends blocked calls from any thread; `close` is the owner's."""

    def __init__(self, plain: socket.socket) -> None:
        self._socket = plain
        # A second object for the same connection, for `abort` by other threads.
        self._control = plain.dup()
        self._cipher: Cipher | None = None
        self._sealed = memoryview(b"")
        """Room for what is received and not yet decrypted."""
        self._more = False
        """The last call filled all the room that it was given."""
        self._expected = 1
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def secure(self, files: TlsFiles, peer: str, *, server: bool, timeout_s: float) -> None:
        """Do the TLS handshake and check that the other side is `peer`."""
        cipher = Cipher(tls_context(files, server=server), server=server)
        self._socket.settimeout(timeout_s)
        self._sealed = memoryview(Buffers().take(_SEALED_BYTES))
        try:
            self._shake(cipher)
        except (OSError, ValueError, HungUpError) as problem:
            kind = HungUpError if isinstance(problem, HungUpError) else ReplicationError
            raise kind(
                f"no TLS with {peer}: {problem}",
                "Both nodes need certificates of this cluster's authority.",
            ) from None
        self._cipher = cipher
        self._socket.settimeout(None)
        name = _common_name(cipher.certificate())
        if name != peer:
            raise ReplicationError(f"the certificate on the replication LAN is {name}'s")

    def _shake(self, cipher: Cipher) -> None:
        done = False
        while not done:
            try:
                done = cipher.shake()
            finally:
                # Also the alert that tells the other side what is wrong.
                self._socket.sendall(cipher.produced())
            if not done:
                size = self._socket.recv_into(self._sealed)
                if not size:
                    raise HungUpError("the other side hung up")
                cipher.feed(self._sealed[:size])

    def set_timeout(self, timeout_s: float | None) -> None:
        """Bound the next calls; None: wait for ever."""
        self._socket.settimeout(timeout_s)

    def fileno(self) -> int:
        """For poll(2)."""
        return self._socket.fileno()

    def send(self, buffers: Sequence[Piece]) -> None:
        """Send all buffers in order, as few calls as possible. Raises OSError."""
        if self._cipher is not None:
            for part in self._cipher.encrypt(buffers):
                self._socket.sendall(part)
            return
        send = self._socket.sendmsg
        rest = list(buffers)
        while rest:
            sent = send(rest[:_VECTOR_LIMIT])
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if sent:
                rest[0] = memoryview(rest[0])[sent:]

    def send_one(self, piece: bytes) -> None:
        """`send` for one small piece, which nearly always goes at once."""
        if self._cipher is not None:
            self.send([piece])
            return
        sent = self._socket.send(piece)
        if sent < len(piece):
            self._socket.sendall(piece[sent:])

    def wait_at_most(self, time_ms: int) -> bool:
        """Have `receive_into` raise BlockingIOError after a time in which nothing came, so that it
        needs no poll(2) before it. False: not with TLS, where nobody knows how much is a byte."""
        if self._cipher is not None:
            return False
        limit = struct.pack("ll", time_ms // 1000, time_ms % 1000 * 1000)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        return True

    @property
    def encrypted(self) -> bool:
        """Whether TLS is on."""
        return self._cipher is not None

    def send_some(self, buffers: list[Piece], total: int) -> list[Piece]:
        """Send as much of `total` bytes as goes without waiting; what is left. Not with TLS.

        An error leaves everything: the next call that may wait meets it again.
        """
        if self._cipher is not None:
            raise RuntimeError(f"{total} bytes would be sent past TLS")
        try:
            sent = self._socket.sendmsg(buffers, (), socket.MSG_DONTWAIT)
        except OSError:
            return buffers
        if sent == total:
            return []
        for i, raw in enumerate(buffers):
            if sent < len(raw):
                return [memoryview(raw)[sent:], *buffers[i + 1 :]]
            sent -= len(raw)
        return []

    def receive_into(self, buffer: memoryview) -> int:
        """Receive what there is, at least one byte; 0 at the end. Raises OSError."""
        cipher = self._cipher
        if cipher is None:
            return self._socket.recv_into(buffer)
        while not (count := cipher.decrypt(buffer)):
            size = self._socket.recv_into(self._sealed)
            if not size:
                return 0
            cipher.feed(self._sealed[:size])
            answer = cipher.produced()
            if answer:
                self._socket.sendall(answer)
        self._more = count == len(buffer)
        return count

    def expect(self, size: int) -> None:
        """Have receiving wait for `size` bytes, or as many as there is room for; not with TLS."""
        if self._cipher is None and size != self._expected:
            self._expected = size
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def receive_exactly(self, size: int) -> bytes:
        """Receive `size` bytes. Raises HungUpError when the stream ends before."""
        data = memoryview(bytearray(size))
        filled = 0
        while filled < size:
            count = self.receive_into(data[filled:])
            if not count:
                raise HungUpError("the peer closed the connection")
            filled += count
        return bytes(data)

    def hung_up(self) -> bool:
        """Whether the other side has ended its half of the connection by now."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def pending(self) -> bool:
        """Whether received bytes wait inside the TLS layer, where poll(2) does not see them."""
        return self._more and self._cipher is not None and self._cipher.pending

    def abort(self) -> None:
        """End the connection from any thread; the owner's calls return or raise."""
        try:
            self._control.shutdown(socket.SHUT_RDWR)
        except OSError:
            # Already gone, which is what was wanted.
            pass

    def close(self) -> None:
        """Close it; for the owner, when no thread uses it any more."""
        self.abort()
        self._socket.close()
        self._control.close()


def connect(address: str, port: int, local_address: str, timeout_s: float) -> Connection:
    """Connect from the node's own address on that LAN. Raises OSError."""
    plain = socket.create_connection(
        (address, port), timeout=timeout_s, source_address=(local_address, 0)
    )
    plain.settimeout(timeout_s)
    return Connection(plain)


def tls_context(files: TlsFiles, *, server: bool) -> ssl.SSLContext:
    """TLS 1.3 with this node's certificate, for peers of the same authority."""
    protocol = ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        # A ticket would wait for ever in a connection that its client only writes to.
        context.num_tickets = 0
    try:
        context.load_verify_locations(files.ca)
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as problem:
        raise ReplicationError(
            f"the certificates for replication cannot be loaded ({problem}): "
            f"{files.ca}, {files.certificate}, {files.key}"
        ) from None
    return context


def _common_name(certificate: object) -> str:
    if isinstance(certificate, dict):
        for part in certificate.get("subject", ()):
            for name, value in part:
                if name == "commonName":
                    return str(value)
    return ""
