"""What was observed of a module's copies and must outlast the daemon: verifications, the pace of
resyncs (R17).

Nothing of it decides anything: it is for people. That copies differed is not forgotten before a
complete verification, on either node, has found them equal.
"""

from __future__ import annotations

import threading
from pathlib import Path

from pydantic import ValidationError

from hyperha.api.wire_copies import VerifyReport, VerifyView
from hyperha.core.state import Resync
from hyperha.durable import DurableRecord
from hyperha.errors import RecordDamagedError

_SIZE = 65536
_WORTH_BYTES = 1 << 20
"""A shorter resync says nothing about the pace of a longer one."""


def after(report: VerifyReport, found: VerifyView) -> VerifyReport:
    """What stands once another verification has ended."""
    clean = found.complete and not found.left
    standing = None if clean else found if found.left else report.standing
    serial = found.serial if clean else report.clean_serial
    return VerifyReport(last=found, standing=standing, clean_serial=serial)


def joined(own: VerifyReport, other: VerifyReport) -> VerifyReport:
    """What both nodes know together; the serial numbers tell what came later."""
    clean_serial = max(own.clean_serial, other.clean_serial)
    lasts = [one.last for one in (own, other) if one.last is not None]
    standings = [
        one.standing
        for one in (own, other)
        if one.standing is not None and one.standing.serial > clean_serial
    ]
    return VerifyReport(
        last=max(lasts, key=lambda one: one.serial, default=None),
        standing=max(standings, key=lambda one: one.serial, default=None),
        clean_serial=clean_serial,
    )


def next_serial(report: VerifyReport) -> int:
    """The number of the verification after all that are known."""
    known = [one.serial for one in (report.last, report.standing) if one is not None]
    return max([report.clean_serial, *known]) + 1


class Pace:
    """How fast a resync went, from what the core is told of it."""

    def __init__(self) -> None:
        self._last: Resync | None = None

    def note(self, resync: Resync | None) -> int | None:
        """Bytes per second of the resync that has just ended; else None."""
        last, self._last = self._last, resync
        if resync is not None or last is None or last.done_bytes < _WORTH_BYTES:
            return None
        return last.bytes_per_s or None


class Observed:
    """The record of one module. `load` and `store` block on the disk."""

    def __init__(self, directory: Path, owner: str) -> None:
        self._record = DurableRecord(directory / "observed", size=_SIZE, owner=f"{owner} observed")
        self._one_at_a_time = threading.Lock()
        self.verify = VerifyReport()
        self.resync_bytes_per_s = 0

    def load(self) -> str:
        """Read the record; what was lost with a damaged one, for people."""
        try:
            body = self._record.load_json() or {}
            self.verify = VerifyReport.model_validate(body.get("verify", {}))
            self.resync_bytes_per_s = int(body.get("resync_bytes_per_s", 0))
        except (RecordDamagedError, ValidationError, TypeError, ValueError) as problem:
            return f"what the last verification found is lost, verify again: {problem}"
        return ""

    def store(self) -> None:
        """Make what is known now durable. Raises HyperhaError."""
        with self._one_at_a_time:
            self._record.store_json(
                {
                    "verify": self.verify.model_dump(mode="json"),
                    "resync_bytes_per_s": self.resync_bytes_per_s,
                }
            )
