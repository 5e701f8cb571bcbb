"""`hyperha whatif`: what would happen, without its happening."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from hyperha.cli.context import JsonToo, ask, options, show_json
from hyperha.cli.steering import Module
from hyperha.client.node_client import NodeClient
from hyperha.text import clean


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(whatif)


def whatif(
    module: Module,
    events: Annotated[
        list[str],
        typer.Argument(
            metavar="EVENT...",
            help="off:NODE, network-cut, vm-exit, disk-full:NODE, swap:NODE, wait:SECONDS, ...; "
            "a wrong one lists them all.",
        ),
    ],
    as_json: JsonToo = False,
) -> None:
    """Tell who would run the VM after these events, what would be lost and how long it would take.

    Both nodes' live views are run forward in virtual time; nothing happens to the cluster. The exit
    status is 0 when the VM runs on one node in the end and no acknowledged write is missing there.
    """
    del as_json
    from hyperha.client.outcomes import Answered, outcome_facts, story_lines
    from hyperha.client.studying import ask_whatif

    async def work(client: NodeClient) -> Answered:
        return await ask_whatif(client, module, events)

    found = ask(work)
    if options.as_json:
        show_json(dataclasses.asdict(found))
    else:
        for label, text in outcome_facts(found):
            print(f"{label:12}{clean(text)}".rstrip())
        print()
        for line in story_lines(found.outcome):
            print(clean(line))
    outcome = found.outcome
    good = outcome.loss == "nothing" and not outcome.broken and not outcome.unsettled
    raise typer.Exit(0 if good else 1)
