"""`hyperha console`: the full-screen console."""

from __future__ import annotations

from typing import Annotated

import typer

from hyperha.cli.context import target, the_home
from hyperha.client.node_client import Target

_URLS = "https://ADDRESS:9010 of a node, or the path of its socket."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(console)


def targets(urls: list[str]) -> list[Target]:
    """Where the console looks: the URLs or sockets named, else the local node."""
    if not urls:
        return [target()]
    home = the_home()
    return [
        Target(url, socket=url)
        if url.startswith("/")
        else Target(
            url,
            url=url,
            authority=str(home.authority_certificate),
            certificate=str(home.node_certificate),
            key=str(home.node_key),
        )
        for url in urls
    ]


def console(
    urls: Annotated[list[str] | None, typer.Argument(help=_URLS)] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Lock all commands.")] = False,
    theme: Annotated[str | None, typer.Option(help="Colours, for example deuteranopia.")] = None,
    ascii_only: Annotated[bool, typer.Option("--ascii", help="No characters but ASCII.")] = False,
    mono: Annotated[bool, typer.Option("--mono", help="No colours.")] = False,
) -> None:
    """Watch and steer the cluster from a full-screen console."""
    from tui.app import run_console

    run_console(targets(urls or []), read_only=read_only, theme=theme, ascii=ascii_only, mono=mono)
