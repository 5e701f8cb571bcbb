"""TLS contexts: mutual TLS 1.3 between the nodes, server-side TLS for people and their tools.

Pinned to the cluster's own authority; no system-wide authority is ever trusted. Instead of a host
name, the certificate of the other side must carry the name of the node that is expected: call
`require_node` after every handshake. One thread owns each SSL object (T5); that is the caller's.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from hyperha.errors import ConfigError, DeniedError, NotFoundError
from hyperha.security.authority import Holder, holder_of

_RESTORE = "Restore the pki directory of this node as `hyperha cluster init` wrote it."


def node_server_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """For listening to the other node: its certificate is required."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, authority, certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    return context


def node_client_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """For connecting to the other node; the node's name is checked by `require_node`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    _load(context, authority, certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def api_server_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """For the API: people come without a certificate, the other node with one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, authority, certificate, key)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def api_client_context(authority: Path) -> ssl.SSLContext:
    """For people's tools that pinned the authority; checks the host against name and addresses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def holder(connection: ssl.SSLSocket | ssl.SSLObject) -> Holder | None:
    """Whom the verified certificate of the other side names, or None when it sent none."""
    der = connection.getpeercert(binary_form=True)
    return holder_of(der) if der else None


def require_node(connection: ssl.SSLSocket | ssl.SSLObject, node: str, cluster_id: str) -> None:
    """Raise DeniedError unless the other side is exactly `node` of this cluster."""
    found = holder(connection)
    if found is None:
        raise DeniedError(f"the other side of a connection for {node} sent no certificate")
    if found != Holder(node, cluster_id):
        raise DeniedError(
            f"the certificate of the other side names {found.node!r} of cluster "
            f"{found.cluster_id!r}, expected {node!r} of {cluster_id!r}",
            "Check the addresses in cluster.toml; was a node's folder copied to another machine?",
        )


def _load(
    context: ssl.SSLContext,
    authority: Path,
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    try:
        context.load_verify_locations(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except FileNotFoundError as problem:
        missing = [
            str(p) for p in (authority, certificate, key) if p is not None and not p.exists()
        ]
        raise NotFoundError(
            f"certificate file {', '.join(missing)} does not exist",
            "Run `hyperha cluster init` on the first node, `cluster join` on the other.",
        ) from problem
    except PermissionError as problem:
        raise DeniedError(f"the certificate files beside {authority} may not be read") from problem
    except ssl.SSLError as problem:
        _name_damaged(authority, certificate, key)
        why = f": {problem.reason}" if problem.reason else ""
        raise ConfigError(
            f"the certificate files beside {authority} do not fit together{why}", _RESTORE
        ) from problem


def _name_damaged(authority: Path, certificate: Path | None, key: Path | None) -> None:
    """OpenSSL does not say which of its files it could not read."""
    for path, what in ((authority, "certificate"), (certificate, "certificate"), (key, "key")):
        if path is None:
            continue
        raw = path.read_bytes()
        try:
            if what == "key":
                load_pem_private_key(raw, None)
            else:
                load_pem_x509_certificate(raw)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ConfigError(f"{path} is damaged: it holds no PEM {what}", _RESTORE) from None
