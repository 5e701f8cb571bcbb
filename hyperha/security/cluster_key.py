"""Files with secrets: written once with mode 0600, refused when others may read them.

Also the cluster key: the 32 random bytes that authenticate heartbeats and certificates of death.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
from pathlib import Path

from hyperha.errors import ConfigError, FailedError, NotFoundError, RefusedError

KEY_BYTES = 32


def write_secret(path: Path, content: bytes) -> None:
    """Create a file with mode 0600 and make it durable; an existing one is never overwritten."""
    write_new(path, content, mode=0o600)


def write_new(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Create a file durably; RefusedError when it exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise RefusedError(
            f"{path} exists and is not overwritten",
            "A cluster is set up here already; move its files away first if it is to be replaced.",
            code="exists",
        ) from None
    except OSError as problem:
        raise FailedError(f"{path} cannot be created: {problem.strerror}") from problem
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def new_cluster_key() -> bytes:
    """32 random bytes."""
    return secrets.token_bytes(KEY_BYTES)


def load_cluster_key(path: Path) -> bytes:
    """The cluster key; refused when the file is of another size or readable by others."""
    try:
        content = path.read_bytes()
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise NotFoundError(
            f"the cluster key {path} does not exist",
            "Run `hyperha cluster init` on the first node, `cluster join` on the other.",
        ) from None
    except OSError as problem:
        raise FailedError(f"the cluster key {path} cannot be read: {problem.strerror}") from problem
    if len(content) != KEY_BYTES:
        raise ConfigError(f"the cluster key {path} has {len(content)} bytes, not {KEY_BYTES}")
    if sys.platform != "win32" and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"the cluster key {path} has mode {stat.S_IMODE(mode):04o}: others may read it",
            f"Run `chmod 600 {path}`, and consider a new key if the machine has other users.",
        )
    return content
