"""Where a node keeps its files: configuration, state, logs and run-time files.

Knows every path of the contract; must not read or interpret the files' content.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hyperha.durable import make_directory
from hyperha.errors import FailedError, UsageError

_DEFAULT = ("/etc/hyperha", "/var/lib/hyperha", "/var/log/hyperha", "/run/hyperha")


@dataclass(frozen=True, slots=True)
class Home:
    """The four directories of one node, and the files in them."""

    config: Path
    state: Path
    log: Path
    run: Path

    @classmethod
    def at(cls, directory: Path) -> Home:
        """A home with all four directories under `directory` (--home, HYPERHA_HOME)."""
        base = directory.absolute()
        return cls(base / "config", base / "state", base / "log", base / "run")

    @classmethod
    def default(cls) -> Home:
        """The home of an installed service."""
        return cls(*(Path(path) for path in _DEFAULT))

    @property
    def cluster_file(self) -> Path:
        """cluster.toml, the same bytes on both nodes."""
        return self.config / "cluster.toml"

    @property
    def node_file(self) -> Path:
        """Names which of the two nodes this home is; written by `cluster init` and `join`."""
        return self.config / "node"

    @property
    def modules_directory(self) -> Path:
        """Holds one TOML file per module."""
        return self.config / "modules"

    def module_file(self, module: str) -> Path:
        """The configuration of one module."""
        return self.modules_directory / f"{module}.toml"

    def scripts_directory(self, module: str) -> Path:
        """The operators' scripts of one module."""
        return self.config / "scripts" / module

    @property
    def pki(self) -> Path:
        """Authority's certificate, this node's certificate and key."""
        return self.config / "pki"

    @property
    def authority_certificate(self) -> Path:
        """The certificate that every node of this cluster is pinned to."""
        return self.pki / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """The authority's key; only on the node that ran `cluster init`."""
        return self.pki / "ca.key"

    @property
    def node_certificate(self) -> Path:
        """This node's certificate."""
        return self.pki / "node.crt"

    @property
    def node_key(self) -> Path:
        """This node's private key, 0600."""
        return self.pki / "node.key"

    @property
    def cluster_key(self) -> Path:
        """The 32 random bytes that authenticate heartbeats and certificates, 0600."""
        return self.config / "cluster.key"

    @property
    def users_file(self) -> Path:
        """Users of the API with their roles."""
        return self.config / "users.toml"

    @property
    def node_record(self) -> Path:
        """The durable record of the node itself."""
        return self.state / "node.record"

    @property
    def guardian_record(self) -> Path:
        """Where the guardian notes the certificates that it sent (L8)."""
        return self.state / "guardian.record"

    def module_state(self, module: str) -> Path:
        """The directory of a module's durable records."""
        return self.state / "modules" / module

    def lineage_record(self, module: str) -> Path:
        """The lineage record of a module."""
        return self.module_state(module) / "lineage"

    def settings_record(self, module: str) -> Path:
        """What operators switched at run time: boot, failover, suspended checkers."""
        return self.module_state(module) / "settings"

    @property
    def journal(self) -> Path:
        """The directory of the journal of events and messages."""
        return self.log / "journal"

    def script_logs(self, module: str) -> Path:
        """The captured outputs of a module's scripts and steps."""
        return self.log / "scripts" / module

    def decisions(self, module: str) -> Path:
        """What a module's core was told and decided, for `hyperha replay`."""
        return self.log / "decisions" / module

    @property
    def audit(self) -> Path:
        """The directory of the audit log."""
        return self.log / "audit"

    @property
    def daemon_lock(self) -> Path:
        """Held by the one daemon of this home."""
        return self.run / "daemon.lock"

    @property
    def api_socket(self) -> Path:
        """The Unix socket of the API for people on this machine."""
        return self.run / "api.sock"

    @property
    def guardian_lock(self) -> Path:
        """Held by the one guardian of this home."""
        return self.run / "guardian.lock"

    @property
    def guardian_socket(self) -> Path:
        """Where the daemon reaches its guardian."""
        return self.run / "guardian.sock"

    def create(self) -> None:
        """Make the directories that are missing; the ones with secrets are for the owner only."""
        private = (self.config, self.pki, self.state, self.state / "modules")
        public = (self.modules_directory, self.log, self.journal, self.audit, self.run)
        for directory, mode in [(d, 0o750) for d in private] + [(d, 0o755) for d in public]:
            try:
                make_directory(directory, mode)
            except OSError as problem:
                raise FailedError(
                    f"directory {directory} cannot be made: {problem.strerror}",
                    "Run as root, or name a directory of your own with --home.",
                ) from problem


def find_home(option: str | None, environment: Mapping[str, str] | None = None) -> Home:
    """The home that --home or HYPERHA_HOME names, else the installed service's.

    Raises UsageError when the text is empty; whether the directory exists is seen at its first use.
    """
    environment = os.environ if environment is None else environment
    named = option if option is not None else environment.get("HYPERHA_HOME")
    if named is None:
        return Home.default()
    source = "--home" if option is not None else "HYPERHA_HOME"
    if not named.strip():
        raise UsageError(f"{source} is empty", "Name the directory that holds config/ and state/.")
    return Home.at(Path(named))
