"""A node's PEM files, as a cluster's authority issues them."""

from __future__ import annotations

import os
from pathlib import Path

from hyperha.replication.control import TlsFiles
from hyperha.security.authority import Authority


def certificates(base: Path, node: str, authority: Authority) -> TlsFiles:
    """New ones at every call, in a directory of their own below `base`."""
    own = authority.issue(node, ["127.0.0.1"])
    home = base / f"pki-{node}-{os.urandom(2).hex()}"
    home.mkdir()
    (home / "ca").write_bytes(authority.credentials.certificate)
    (home / "crt").write_bytes(own.certificate)
    (home / "key").write_bytes(own.key)
    return TlsFiles(str(home / "ca"), str(home / "crt"), str(home / "key"))
