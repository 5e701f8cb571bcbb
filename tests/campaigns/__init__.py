"""Campaigns: more rounds than the test suite makes, with tallies that say for which code they hold.

    python -m tests.campaigns                       what there is and how it stands
    python -m tests.campaigns NAME --for 20m        go on for a while
    python -m tests.campaigns NAME --rounds 100     go on for some rounds

A tally lies in `tests/campaigns/results/NAME.json` and is committed. It stands while the packages
that it covers have not changed since its commit; one failure sets it to zero.
"""
