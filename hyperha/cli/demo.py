"""`hyperha demo`: two nodes on this machine, and the failover drill."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperha.cli.context import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    headless: Annotated[bool, typer.Option("--headless", help="Without the console.")] = False,
    drill: Annotated[bool, typer.Option("--drill", help="Run the failover drill and end.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="How many drills.")] = 1,
    driver: Annotated[str, typer.Option(help="process.")] = "process",
    directory: Annotated[
        Path | None, typer.Option("--home", help="Where the nodes live; a temporary one if unset.")
    ] = None,
    ports: Annotated[int, typer.Option(help="First port: API, the next one replication.")] = 9010,
) -> None:
    """Two nodes on loopback that protect a small order service; nothing is left behind."""
    from hyperha.demo.run import DemoOptions, run_demo

    home = directory or (Path(options.home) if options.home else None)
    raise typer.Exit(
        run_demo(
            DemoOptions(
                headless=headless,
                drill=drill,
                repeat=repeat,
                driver=driver,
                home=home,
                ports=ports,
            )
        )
    )
