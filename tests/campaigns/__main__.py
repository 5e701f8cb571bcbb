"""The command line of the campaigns."""

from __future__ import annotations

import argparse
import re
import sys

from hyperha.errors import HyperhaError, UsageError
from hyperha.text import duration_s
from tests.campaigns import __doc__ as explanation
from tests.campaigns.catalogue import Campaign, campaigns, named
from tests.campaigns.repository import Repository
from tests.campaigns.session import Session, Wishes, figure, named_changes
from tests.campaigns.tally import load
from tests.support import ROOT

RESULTS = ROOT / "tests" / "campaigns" / "results"


def period_s(text: str) -> int:
    """Seconds of `90s`, `20m` or `2h`. Raises UsageError."""
    found = duration_s(text)
    if found is None:
        raise UsageError(f"--for {text!r} is no duration", "Write 90s, 20m or 2h.")
    return found


def amount(text: str) -> int:
    """A number from 1 on. Raises UsageError."""
    if re.fullmatch(r"[1-9]\d{0,8}", text) is None:
        raise UsageError(f"--rounds {text!r} is no number", "Write a whole number from 1 on.")
    return int(text)


def standing(campaign: Campaign, repository: Repository) -> list[str]:
    """How a campaign's tally stands, with its figures."""
    head = f"{campaign.name:16}"
    path = RESULTS / f"{campaign.name}.json"
    tally = load(path)
    if tally is None:
        return [f"{head} no tally    goal {campaign.goal} {campaign.unit}: {campaign.purpose}"]
    changed = repository.changed(tally.commit, campaign.covers)
    _, least = tally.least(campaign.rows)
    word = "stale" if changed else ("stands" if least >= campaign.goal else "not enough")
    if not changed and not tally.counts and tally.failures:
        word = "failed"
    said = [
        f"{head} {word:11} {least} of {campaign.goal} {campaign.unit}, "
        f"{tally.seconds:.0f} s, commit {tally.commit[:10]}"
    ]
    if changed:
        said.append(f"{'':17}changed since: {named_changes(changed)}")
    said += [f"{'':17}{name}: {figure(value)}" for name, value in tally.summary().items()]
    for failure in tally.failures[-1:]:
        said.append(
            f"{'':17}last failure: {failure.row}, {failure.at}, commit {failure.commit[:10]}: "
            f"{failure.what}"
        )
    return said


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaigns",
        description=explanation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="the campaign; without it, how they all stand")
    parser.add_argument("--for", dest="period", metavar="TIME", help="begin no round after it")
    parser.add_argument("--rounds", metavar="N", help="end after so many cuts, seeds, runs ...")
    parser.add_argument("--dirty", action="store_true", help="only try: nothing is recorded")
    return parser


def main(arguments: list[str]) -> int:
    """The exit status."""
    given = _parser().parse_args(arguments)
    repository = Repository(ROOT)
    try:
        wishes = Wishes(
            period_s(given.period) if given.period is not None else None,
            amount(given.rounds) if given.rounds is not None else None,
            given.dirty,
        )
        if given.name is None:
            if wishes != Wishes():
                raise UsageError("no campaign is named", f"There are: {', '.join(campaigns())}.")
            for campaign in campaigns().values():
                print(*standing(campaign, repository), sep="\n")
            return 0

        def say(text: str) -> None:
            print(text, flush=True)

        return Session(named(given.name), repository, RESULTS, wishes, say).run()
    except HyperhaError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
