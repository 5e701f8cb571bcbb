"""`hyperha node`: the daemon of this node."""

from __future__ import annotations

import typer

from hyperha.cli.context import the_home

app = typer.Typer(no_args_is_help=True, help="The daemon of this node.")


@app.callback()
def group() -> None:
    """The daemon of this node."""


@app.command()
def run() -> None:
    """Run the daemon in the foreground until SIGTERM: modules are stopped cleanly first."""
    from hyperha.daemon.node import run_node

    run_node(the_home())
