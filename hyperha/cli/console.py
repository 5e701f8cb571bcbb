"""`hyperha console`: the full-screen console."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from hyperha.cli.context import options, target, the_home
from hyperha.client.node_client import Target
from hyperha.client.targets import url_targets
from hyperha.config import Home, load_cluster, this_node
from hyperha.errors import HyperhaError

_URLS = "https://ADDRESS:9010 of a node, or the path of its socket."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(console)


def targets(urls: list[str]) -> list[Target]:
    """Where the console looks: the URLs or sockets named, else this node and then the other one."""
    home = the_home()
    if urls:
        named = [Target(url, socket=url) for url in urls if url.startswith("/")]
        return named + url_targets([url for url in urls if not url.startswith("/")], home)
    if options.url:
        return [target()]
    return [target(), *_other_node(home)]


def _other_node(home: Home) -> list[Target]:
    """The other node over its LANs, where this home's key may be read (root)."""
    if not os.access(home.node_key, os.R_OK):
        return []
    try:
        cluster = load_cluster(home.cluster_file)
        peer = cluster.peer_of(this_node(home, cluster))
    except HyperhaError:
        return []  # A daemon that runs can be watched whatever became of its files since.
    return url_targets(list(cluster.api_urls(peer)), home)


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
