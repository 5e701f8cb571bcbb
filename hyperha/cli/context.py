"""What every command shares: the home, the node to talk to, how results and errors are shown."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from hyperha.client.node_client import NodeClient, Target
from hyperha.config import Home, find_home
from hyperha.errors import TimedOutError, UnreachableError

T = TypeVar("T")
POLL_S = 0.1


@dataclass(slots=True)
class Options:
    """The options before the command."""

    home: str | None = None
    url: str | None = None
    as_json: bool = False


options = Options()


def _also_json(wanted: bool) -> bool:
    options.as_json = options.as_json or wanted
    return wanted


JsonToo = Annotated[bool, typer.Option("--json", help="Answer in JSON.", callback=_also_json)]
"""`--json` behind the command, where it means the same as before it."""


def the_home() -> Home:
    """The home that --home or HYPERHA_HOME names, else the default one."""
    return find_home(options.home, os.environ)


def target() -> Target:
    """Where commands go: --url, else the local node's socket."""
    home = the_home()
    if options.url:
        return Target(
            options.url,
            url=options.url,
            authority=str(home.authority_certificate),
            certificate=str(home.node_certificate),
            key=str(home.node_key),
        )
    if not home.api_socket.exists():
        raise UnreachableError(
            f"no daemon answers: there is no socket {home.api_socket}",
            "Start it with `hyperha node run`, or name another home with --home.",
        )
    return Target("the local node", socket=str(home.api_socket))


def ask(work: Callable[[NodeClient], Awaitable[T]]) -> T:
    """Run requests against the node."""

    async def run() -> T:
        async with NodeClient(target()) as client:
            return await work(client)

    return asyncio.run(run())


def request_id() -> str:
    """A fresh id: a repeated request does nothing twice."""
    return secrets.token_hex(8)


async def follow(client: NodeClient, operation_id: str, timeout_s: float) -> tuple[bool, str]:
    """Wait for the end of an operation: whether it was done, and the sentence."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        view = await client.operation(operation_id)
        if view.state != "running":
            return view.state == "done", view.text
        if asyncio.get_running_loop().time() >= deadline:
            raise TimedOutError(
                f"{view.verb} {view.module} still runs after {timeout_s:.0f} s",
                "It goes on; see `hyperha state` and `hyperha log`.",
            )
        await asyncio.sleep(POLL_S)


def show_json(value: Any) -> None:
    """JSON on standard output."""
    print(json.dumps(value, indent=1))
