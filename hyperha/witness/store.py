"""What a lease witness keeps: one durable record for each module of each cluster (F11, S2).

Blocks on the disk: call it in worker threads, each module by one at a time. A record that cannot be
read has been set aside by then, and the module is unknown: its nodes register it anew (W4).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path

from hyperha.core.lease import Answer, Record, Request, answered, started
from hyperha.durable import DurableRecord, make_directory
from hyperha.encoding import EncodingError, from_plain, to_plain
from hyperha.errors import DeniedError, RecordDamagedError, RefusedError

_log = logging.getLogger(__name__)
RECORD_BYTES = 8192
CLUSTERS_LIMIT = 256
MODULES_LIMIT = 32
CLUSTER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")


class Store:
    """All clusters of one witness. Thread-safe; requests of different modules do not wait for each
    other.

    `now_ms` reads CLOCK_BOOTTIME; `fresh` is a number that grows with each start of the witness.
    """

    def __init__(self, directory: Path, now_ms: Callable[[], int], fresh: int) -> None:
        self._directory = directory
        self._now_ms = now_ms
        self._fresh = fresh
        self._modules: dict[tuple[str, str], _Module] = {}
        self._lock = threading.Lock()
        make_directory(directory)
        for path in sorted(directory.glob("*/*.lease")):
            self._open(path.parent.name, path.stem)

    def admit(self, cluster: str, token: str) -> None:
        """The cluster has this token from its first contact on. Raises DeniedError for another
        one, RefusedError when there are too many clusters."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        directory = self._directory / cluster
        record = DurableRecord(directory / "owner", size=512, owner=f"{cluster} owner")
        with self._lock:
            known = record.load()
            if known is None:
                if sum(1 for _ in self._directory.iterdir()) >= CLUSTERS_LIMIT:
                    raise RefusedError(
                        f"this witness knows {CLUSTERS_LIMIT} clusters and takes no more",
                        f"Remove the directories of former ones from {self._directory}.",
                        code="too-many",
                    )
                make_directory(directory)
                record.store(digest.encode())
                _log.info("cluster %s is known from here on", cluster)
                return
        if not hmac.compare_digest(known, digest.encode()):
            raise DeniedError(
                f"the cluster {cluster} is known to this witness with another key",
                "If the cluster was made anew, remove its directory from the witness's state.",
            )

    def handle(self, cluster: str, module: str, request: Request) -> Answer:
        """The answer, once what it says is durable. Raises FailedError when the disk refuses."""
        return self._module(cluster, module).handle(request, self._now_ms)

    def _module(self, cluster: str, name: str) -> _Module:
        with self._lock:
            module = self._modules.get((cluster, name))
            if module is None:
                if sum(1 for known, _ in self._modules if known == cluster) >= MODULES_LIMIT:
                    raise RefusedError(
                        f"the cluster {cluster} has {MODULES_LIMIT} modules here already",
                        "Remove the records of modules that are no more from the witness's state.",
                        code="too-many",
                    )
                module = self._open(cluster, name)
            return module

    def _open(self, cluster: str, name: str) -> _Module:
        path = self._directory / cluster / f"{name}.lease"
        module = _Module(path, f"{cluster} {name} lease", self._now_ms(), self._fresh)
        self._modules[cluster, name] = module
        return module


class _Module:
    """One module: its record on disk, and what is known beside it."""

    def __init__(self, path: Path, owner: str, now_ms: int, fresh: int) -> None:
        self._lock = threading.Lock()
        self._record = DurableRecord(path, size=RECORD_BYTES, owner=owner)
        self._known = started(self._load(), now_ms, fresh)

    def _load(self) -> Record | None:
        try:
            body = self._record.load_json()
            record = None if body is None else from_plain(Record, body, "lease")
        except (RecordDamagedError, EncodingError) as problem:
            _log.error("%s", problem)
            return None
        assert record is None or isinstance(record, Record)
        return record

    def handle(self, request: Request, now_ms: Callable[[], int]) -> Answer:
        """One request at a time; the lease is counted from after it has come (L2)."""
        with self._lock:
            known, answer = answered(self._known, request, now_ms())
            if known.record is not None and known.record != self._known.record:
                self._record.store_json(to_plain(known.record))
            self._known = known
            return answer
