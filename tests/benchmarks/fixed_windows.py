"""A replication process with fixed windows instead of the controller; only `latency` starts it.

What hyperha did before it measured the guest's latency: 256 KiB of unacknowledged data and four
requests under way while the guest is busy, 8 MiB and 32 of them while it is not; no pace.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from unittest import mock

from hyperha.replication import inquiry, process, throttle


class FixedWindows(throttle.Throttle):
    """Knows only whether the guest is busy."""

    def decide(self, now_ms: int, waiting_us: Iterable[int]) -> None:
        """Nothing is decided."""
        super().decide(now_ms, waiting_us)
        self._window = throttle.BEGIN

    def may_go(self, now_ms: int) -> bool:
        """There is no pace."""
        return True


if __name__ == "__main__":
    with mock.patch.object(inquiry, "Throttle", FixedWindows):
        sys.exit(process.main(sys.argv[1:]))
