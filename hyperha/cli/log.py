"""`hyperha log`: what happened, on both nodes in one time line, and what scripts said."""

from __future__ import annotations

import asyncio
import datetime
import sys
from typing import Annotated

import typer

from hyperha.api.wire import ClusterView, LogLine, ScriptOutput
from hyperha.cli.context import ask
from hyperha.cli.steering import Node, OptionalModule, side_of
from hyperha.client.node_client import NodeClient
from hyperha.errors import HyperhaError, NotFoundError, UsageError
from hyperha.text import clean, duration_s

POLL_S = 0.5
PAGE = 500


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(log)


def log(
    module: OptionalModule = None,
    follow: Annotated[bool, typer.Option("-f", help="Go on showing new lines.")] = False,
    script: Annotated[str | None, typer.Option(help="Newest output of this script.")] = None,
    node: Node = None,
    since: Annotated[
        str | None, typer.Option(help="Only what is newer: 90s, 15m, 2h, 1d, or RFC 3339.")
    ] = None,
    lines: Annotated[int, typer.Option("-n", help="How many lines at first.")] = 100,
) -> None:
    """The log of a module, of both nodes in one time line, or the output of a script."""
    begin = _begin(since)

    async def work(client: NodeClient) -> None:
        cluster = await client.cluster()
        names = [module] if module else list(cluster.modules)
        for name in names:
            side_of(cluster, name, cluster.answered_by)
        if script is not None:
            _show_script(await _newest(client, names, script, node or ""))
            return
        nodes = [node] if node is not None else list(cluster.nodes)
        found: list[LogLine] = []
        last: dict[tuple[str, str], int] = {}
        for one in nodes:
            for name in names:
                page = await _page(client, cluster, name, one, lines)
                found += page
                last[one, name] = page[-1].seq if page else 0
        found = sorted((line for line in found if line.at >= begin), key=_moment)
        for line in found[-lines:]:
            print(line_text(line))
        if follow:
            await _follow(client, cluster, last)

    ask(work)


def _begin(since: str | None) -> str:
    """The moment as the lines have it, which can be compared as text; empty: the beginning."""
    if since is None:
        return ""
    seconds = duration_s(since)
    try:
        if seconds is None:
            moment = datetime.datetime.fromisoformat(since)
            if moment.tzinfo is None:
                moment = moment.astimezone()
        else:
            moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since {since!r} is no time", "Write 90s, 15m, 2h, 1d, or 2026-11-22T08:50:00."
        ) from None
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _moment(line: LogLine) -> tuple[str, str, int]:
    return line.at, line.node, line.seq


async def _page(
    client: NodeClient, cluster: ClusterView, name: str, node: str, lines: int
) -> list[LogLine]:
    """The newest lines of one node. A node that does not answer is named, not an end of it all."""
    own = node == cluster.answered_by
    try:
        return (await client.log(name, 0, lines, node="" if own else node)).lines
    except HyperhaError as problem:
        if own or node not in cluster.nodes:
            raise
        _warn(f"without the lines of {node}: {problem.text}")
        return []


def _warn(text: str) -> None:
    print(f"hyperha: {clean(text)}", file=sys.stderr, flush=True)


def line_text(line: LogLine) -> str:
    """A log line as people read it."""
    rule = f"[{line.rule}] " if line.rule else ""
    return f"{line.at[11:23]} {line.node:8}{line.level} {line.source:12}{rule}{clean(line.text)}"


async def _newest(client: NodeClient, names: list[str], script: str, node: str) -> ScriptOutput:
    for name in names:
        for run in await client.scripts(name, node=node):
            if run.script == script:
                return await client.script(name, run.id, node=node)
    raise NotFoundError(f"no run of {script!r} is kept", "It has not run on this node yet.")


def _show_script(output: ScriptOutput) -> None:
    run = output.run
    print(f"{run.script} on {run.node}, started {run.started}, {run.state}")
    for line in output.output:
        print(f"{line.at[11:23]} {line.stream} {clean(line.text)}")
    if run.state == "ended":
        how = f"signal {run.signal}" if run.signal else f"exit status {run.exit_status}"
        print(f"{how} after {(run.duration_ms or 0) / 1000:.1f} s")


async def _follow(
    client: NodeClient, cluster: ClusterView, last: dict[tuple[str, str], int]
) -> None:
    """New lines of every node, for ever; the ones of a moment in the order of their times."""
    silent: set[str] = set()
    while True:
        news: list[LogLine] = []
        for (node, name), after in last.items():
            own = node == cluster.answered_by
            try:
                page = await client.log(name, after, PAGE, node="" if own else node)
            except HyperhaError as problem:
                if own:
                    raise
                if node not in silent:
                    _warn(f"{node} is not followed for now: {problem.text}")
                silent.add(node)
                continue
            silent.discard(node)
            if page.lines:
                last[node, name] = page.lines[-1].seq
            news += page.lines
        for line in sorted(news, key=_moment):
            print(line_text(line), flush=True)
        await asyncio.sleep(POLL_S)
