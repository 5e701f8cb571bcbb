"""The end of a verification, waited for."""

from __future__ import annotations

import threading

from hyperha.replication.control import VerifyTold


class Ending:
    """Who is told of verifications that run one after the other: each end, and the last one."""

    def __init__(self) -> None:
        self.ends: list[VerifyTold] = []
        self._over = threading.Event()

    def __call__(self, told: VerifyTold) -> None:
        if told.finished:
            self.ends.append(told)
            self._over.set()

    def comes(self, within_s: float) -> bool:
        """Whether the next end comes in time; the one after it is waited for anew."""
        came = self._over.wait(within_s)
        if came:
            self._over.clear()
        return came

    def within(self, limit_s: float) -> VerifyTold:
        """How it ended."""
        assert self.comes(limit_s), f"no verification has ended in {limit_s} s"
        return self.ends[-1]
