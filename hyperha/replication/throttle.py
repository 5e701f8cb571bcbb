"""How much a resync or verification may do beside the guest: what the guest does not feel (T7).

A window of bytes is halved when the 99th percentile of the guest's latency is clearly above what
it is without us; it doubles at first and grows by a step later when it is not. It bounds what is
unacknowledged, and while the guest is busy also the pace, one window in 16 ms: on a fast network it
is disks and processor that hurt the guest, not the queue. Each kind of operation has a baseline:
what it took before we began, and at the floor, where what the guest feels is its own, what it takes
there. A guest that asks for nothing leaves all the room there is.

The floor is 4 MiB/s: work always goes on, since a copy that is not equal protects nobody. (DRBD has
c-min-rate for this; its default of 250 KiB/s is one that users are told to raise.) Pure: times come
in with the calls, in milliseconds of one clock, and latencies in microseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

BLOCK: Final = 64 << 10
FLOOR: Final = BLOCK
"""Bytes of the least window."""
BEGIN: Final = 256 << 10
"""The window beside a guest whose latency without us is known."""
CEILING: Final = 8 << 20
STEP: Final = BLOCK
PERIOD_MS: Final = 16
"""While the guest is busy, one window in this time at most."""
DECIDE_MS: Final = 100
SLIDING_MS: Final = 2000
"""How old samples count."""
QUIET_MS: Final = 250
"""A guest that asked for nothing for so long is not disturbed."""
FACTOR: Final = 2.0
SLACK_US: Final = 1000
"""Clearly above: more than twice the baseline and this, which hardly any guest notices."""
_ENOUGH: Final = 16
"""Samples that say something; fewer do when they come from so many milliseconds or more."""
_LONG_MS: Final = 500
_KNOWN: Final = 200
"""Samples from before the work began from which the baseline is taken."""
_LATELY_MS: Final = 10_000
"""How old those may be."""
_RISE: Final = 1.25
_FALL: Final = 0.125
"""At the floor the baseline follows a higher latency by this factor; a lower one always, by a part
of the difference."""


def percentile(latencies: Iterable[int]) -> int:
    """The 99th, by nearest rank: of fewer than a hundred the highest."""
    ordered = sorted(latencies)
    return ordered[-(-len(ordered) * 99 // 100) - 1]


class Series:
    """One kind of operation: its samples of the last moments and its baseline."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int]] = deque()
        self.baseline_us: float | None = None
        self.p99_us = 0
        """As it was at the last decision."""

    def add(self, at_ms: int, latency_us: int) -> None:
        """A sample, in the order of time."""
        self._samples.append((at_ms, latency_us))

    def forget(self) -> None:
        """From here on something else is measured."""
        self._samples.clear()

    def learn(self, now_ms: int) -> None:
        """What is there was measured before the work began."""
        while self._samples and self._samples[0][0] < now_ms - _LATELY_MS:
            self._samples.popleft()
        if len(self._samples) >= _KNOWN:
            self.baseline_us = percentile(latency for _, latency in self._samples)
        self.forget()

    def look(self, now_ms: int, waiting_us: int) -> bool:
        """Whether `p99_us` is known. `waiting_us`: what an unanswered operation has waited."""
        samples = self._samples
        while samples and samples[0][0] < now_ms - SLIDING_MS:
            samples.popleft()
        few = len(samples) < _ENOUGH and not (samples and samples[0][0] <= now_ms - _LONG_MS)
        self.p99_us = max(percentile(us for _, us in samples) if samples else 0, waiting_us)
        return not few or waiting_us > self.limit_us()

    def limit_us(self) -> float:
        """Above this it hurts."""
        return (self.baseline_us or 0) * FACTOR + SLACK_US

    def hurts(self, *, floor: bool) -> bool:
        """Judge `p99_us`, and let the baseline follow where it may."""
        if self.baseline_us is None:
            # Learned at the floor only; until then nothing is known to be harmless.
            if floor:
                self.baseline_us = self.p99_us
            return True
        hurts = self.p99_us > self.limit_us()
        if self.p99_us < self.baseline_us:
            self.baseline_us += (self.p99_us - self.baseline_us) * _FALL
        elif floor and hurts:
            self.baseline_us = min(self.baseline_us * _RISE + 1, self.p99_us)
        return hurts


class Throttle:
    """The controller of one piece of work. `kinds`: of operations that are sampled.

    Call `note` with samples, `decide` now and then, `may_go` before each step and `spend` with what
    it took.
    """

    def __init__(self, kinds: int, now_ms: int) -> None:
        self._series = [Series() for _ in range(kinds)]
        self._begun = False
        self._window = BEGIN
        self._doubling = True
        """Until the guest is hurt for the first time; from then on the window grows by a step."""
        self._at_floor = 0
        """Decisions on end that found the window there."""
        self._quiet = True
        self._decided_ms = now_ms
        self._heard_ms = now_ms - QUIET_MS
        """When the guest last asked for something."""
        self._credit = float(BEGIN)
        self._credited_ms = now_ms

    def note(self, kind: int, at_ms: int, latency_us: int) -> None:
        """An operation of the guest was answered; before the first decision: before we began."""
        self._series[kind].add(at_ms, latency_us)
        self._heard_ms = max(self._heard_ms, at_ms)

    def due(self, now_ms: int) -> bool:
        """Whether it is time to `decide`."""
        return not self._begun or now_ms - self._decided_ms >= DECIDE_MS

    def decide(self, now_ms: int, waiting_us: Iterable[int]) -> None:
        """Change the window if it is time to. `waiting_us`: per kind, what an operation that was
        not answered yet has waited; 0 without one."""
        waiting = list(waiting_us)
        if any(waiting):
            self._heard_ms = now_ms
        if not self._begun:
            self._begun = True
            for one in self._series:
                one.learn(now_ms)
            self._start()
            return
        self._decided_ms = now_ms
        quiet, self._quiet = self._quiet, not self.busy(now_ms)
        if self._quiet or quiet:
            # Until now nothing was held back; or ids were learned and logs read for the session.
            self._start()
            return
        self._at_floor = self._at_floor + 1 if self._window == FLOOR else 0
        # What the first one finds there was measured before, at least in part.
        floor = self._at_floor > 1
        known = [one for one, us in zip(self._series, waiting, strict=True) if one.look(now_ms, us)]
        if any([one.hurts(floor=floor) for one in known]):
            self._doubling = self._window == FLOOR and self._doubling
            self._window = max(FLOOR, self._window // 2)
            self._forget()
        elif known:
            self._window = min(CEILING, self._window + (self._window if self._doubling else STEP))

    def _start(self) -> None:
        """The guest has begun to ask, or will: carefully, where nothing is known of it."""
        known = any(one.baseline_us is not None for one in self._series)
        self._window = BEGIN if known else FLOOR
        self._doubling, self._at_floor = True, 0
        self._forget()

    def _forget(self) -> None:
        """What comes now is what another window does."""
        for one in self._series:
            one.forget()

    def busy(self, now_ms: int) -> bool:
        """Whether the guest asked for something lately."""
        return now_ms - self._heard_ms < QUIET_MS

    def window(self, now_ms: int) -> int:
        """Bytes that may be unacknowledged."""
        return self._window if self.busy(now_ms) else CEILING

    def requests(self, now_ms: int, most: int) -> int:
        """Questions that may be under way, at most `most`."""
        return max(1, min(most, self.window(now_ms) // BLOCK))

    def rate(self, now_ms: int) -> int:
        """Bytes per second that the guest's latency allows; 0: any."""
        window = self.window(now_ms)
        return 0 if window == CEILING else window * 1000 // PERIOD_MS

    def may_go(self, now_ms: int) -> bool:
        """Whether the pace allows a step now."""
        window = self.window(now_ms)
        if window == CEILING:
            self._credit = float(window)
        else:
            passed = now_ms - self._credited_ms
            self._credit = min(window, self._credit + window * passed / PERIOD_MS)
        self._credited_ms = now_ms
        return self._credit > 0

    def spend(self, size: int) -> None:
        """A step has read or sent so many bytes; it may have been more than there was credit."""
        self._credit -= size

    def due_in_ms(self) -> float:
        """How long until the pace allows a step, as things are."""
        return max(0.0, -self._credit) * PERIOD_MS / self._window

    def latency(self) -> tuple[int, int]:
        """The 99th percentile and the baseline, in microseconds, of the kind that is hurt most."""
        known = [one for one in self._series if one.baseline_us is not None and one.p99_us]
        if not known:
            return 0, 0
        worst = max(known, key=lambda one: one.p99_us / one.limit_us())
        return worst.p99_us, int(worst.baseline_us or 0)
