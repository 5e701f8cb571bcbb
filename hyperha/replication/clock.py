"""The clock of deadlines: CLOCK_BOOTTIME in milliseconds (K4). No rule about safety rests on it."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Milliseconds since boot, suspended time included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
