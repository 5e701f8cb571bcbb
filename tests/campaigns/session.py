"""One call of the tool on a campaign: rounds until enough, each kept in the tally when it ends.

A tally belongs to a commit: rounds count only while the covered packages are those of the commit
that was checked out at the start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hyperha.errors import BusyError, RefusedError, UsageError
from tests.campaigns.catalogue import Campaign
from tests.campaigns.repository import Repository
from tests.campaigns.rounds import Order, Outcome, run_round
from tests.campaigns.tally import Failure, Round, Tally, load, now

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wishes:
    """Of the command line: for how long, how many units, whether only to try."""

    for_s: float | None = None
    rounds: int | None = None
    dirty: bool = False


def named_changes(changed: list[str]) -> str:
    """The first few."""
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return ", ".join(changed[:3]) + more


class Session:
    """`run` once."""

    def __init__(
        self, campaign: Campaign, repository: Repository, results: Path, wishes: Wishes, say: Say
    ) -> None:
        self._campaign = campaign
        self._repository = repository
        self._path = results / f"{campaign.name}.json"
        self._wishes = wishes
        self._say = say
        self._ended_by: int | None = None
        self._commit = ""

    def run(self) -> int:
        """The exit status: 0 ended as wished, 1 a round failed, 130 ended by ctrl-C.

        Raises UsageError, BusyError and RefusedError before or instead of a round that counts.
        """
        self._require_means()
        self._commit = self._repository.head()
        with _alone(self._campaign.name), self._signals():
            tally = self._begin()
            status = self._rounds(tally)
        self._conclude(tally)
        if status == 0 and self._ended_by == signal.SIGINT:
            return 130
        return status

    def _require_means(self) -> None:
        if self._campaign.needs_root and (os.geteuid() != 0 or not os.path.exists("/dev/fuse")):
            raise UsageError(
                f"campaign {self._campaign.name} needs root rights and /dev/fuse",
                "Run it as root on a machine with the kernel module fuse.",
            )

    def _changed(self, commit: str) -> list[str]:
        return self._repository.changed(commit, self._campaign.covers)

    def _begin(self) -> Tally:
        fresh = Tally(self._campaign.name, self._campaign.unit, self._commit, now())
        if self._wishes.dirty:
            self._say("only a trial: nothing is recorded")
            return fresh
        changed = self._changed("HEAD")
        if changed:
            raise RefusedError(
                f"the work tree is not commit {self._commit[:10]}: {named_changes(changed)}",
                "Commit first; to try it out without recording: --dirty.",
                code="dirty",
            )
        former = load(self._path)
        if former is None:
            return fresh
        changed = self._changed(former.commit)
        if not changed:
            return former
        self._say(
            f"the tally of commit {former.commit[:10]} is stale ({named_changes(changed)}): "
            "a new one begins at zero"
        )
        fresh.failures = former.failures
        return fresh

    def _rounds(self, tally: Tally) -> int:
        begun, made = time.monotonic(), 0
        wishes = self._wishes
        while True:
            if self._ended_by is not None:
                return 0
            if wishes.for_s is not None and time.monotonic() - begun >= wishes.for_s:
                return 0
            if wishes.rounds is not None and made >= wishes.rounds:
                return 0
            _, least = tally.least(self._campaign.rows)
            if wishes.for_s is None and wishes.rounds is None and least >= self._campaign.goal:
                return 0
            wanted = self._campaign.step if wishes.rounds is None else wishes.rounds - made
            order = self._campaign.order(tally, wanted)
            limit_s = self._campaign.step_limit_s
            outcome = run_round(
                self._campaign.kind, order, limit_s, lambda: self._ended_by is not None
            )
            if outcome.stopped:
                self._say(f"ended in the middle of {order.row}, which does not count")
                return 0
            self._require_same_code(outcome)
            if outcome.failure:
                self._fail(tally, order, outcome)
                return 1
            made += order.count
            self._pass(tally, order, outcome)

    def _require_same_code(self, outcome: Outcome) -> None:
        changed = [] if self._wishes.dirty else self._changed(self._commit)
        if not changed:
            return
        ended = f"failed ({outcome.failure}), log {outcome.log}" if outcome.failure else "passed"
        raise RefusedError(
            f"{named_changes(changed)} changed during a round, which does not count; it {ended}",
            "Run campaigns in a checkout of their own (git worktree add), or with --dirty.",
            code="dirty",
        )

    def _pass(self, tally: Tally, order: Order, outcome: Outcome) -> None:
        seed = order.seed if self._campaign.seeds else None
        figures = outcome.figures or {}
        seconds = round(outcome.seconds, 1)
        tally.add(Round(order.row, order.count, seed, now(), seconds, figures))
        if self._campaign.seeds == "next":
            tally.next_seed = order.seed + order.count
        if not self._wishes.dirty:
            tally.store(self._path)
        told = "" if seed is None else f", seed {seed}"
        count = tally.counts[order.row]
        self._say(f"{order.row}: {order.count} in {seconds:.1f} s{told}; now {count}")

    def _fail(self, tally: Tally, order: Order, outcome: Outcome) -> None:
        seed = order.seed if self._campaign.seeds else None
        for line in outcome.tail:
            self._say(f"| {line}")
        told = "" if seed is None else f" with seed {seed}"
        self._say(f"FAILED: {order.row}{told}: {outcome.failure}; log {outcome.log}")
        failure = Failure(
            order.row, seed, now(), self._commit, outcome.failure, outcome.log, list(outcome.tail)
        )
        tally.fail(failure)
        if not self._wishes.dirty:
            tally.store(self._path)

    def _conclude(self, tally: Tally) -> None:
        _, least = tally.least(self._campaign.rows)
        self._say(f"{self._campaign.name}: {least} of {self._campaign.goal} {tally.unit}")
        for name, value in tally.summary().items():
            self._say(f"  {name}: {figure(value)}")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def end(number: int, frame: object) -> None:
            del frame
            self._ended_by = number

        former = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def figure(value: float | dict[str, float]) -> str:
    """A line of a summary."""
    if isinstance(value, dict):
        return f"median {value['median']:.2f}, worst {value['worst']:.2f} ({value['number']:.0f})"
    return f"{value:.0f}"


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Two of the same campaign would count over each other."""
    place = Path(tempfile.gettempdir()) / f"hyperha-campaign-{name}.lock"
    with open(place, "a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise BusyError(
                f"campaign {name} runs already on this machine", f"Its lock is {place}."
            ) from problem
        yield
