"""`hyperha node`: the daemon of this node, and keeping a node free for maintenance."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from hyperha.api.wire import ActionRequest, ClusterView, VerbWord
from hyperha.cli.context import ask, follow, request_id, the_home
from hyperha.cli.steering import Node, Reason
from hyperha.client.node_client import NodeClient
from hyperha.domain import Role
from hyperha.errors import NotFoundError, RefusedError

app = typer.Typer(no_args_is_help=True, help="The daemon of this node; maintenance.")
SWITCH_LIMIT_S = 10.0
LOOK_AGAIN_S = 0.3
SETTLE_S = 5.0


@app.callback()
def group() -> None:
    """The daemon of this node; maintenance."""


@app.command()
def run() -> None:
    """Run the daemon in the foreground until SIGTERM: modules are stopped cleanly first."""
    from hyperha.daemon.node import run_node

    run_node(the_home())


@app.command()
def drain(
    node: Node = None,
    reason: Reason = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the moves.")] = 300.0,
) -> None:
    """Move every module away from a node, and nothing to it until it is resumed.

    A module without an equal copy on the other node goes on here, is named, and moves as soon as
    there is one. A failure of the other node is still answered here.
    """

    async def work(client: NodeClient) -> list[str]:
        cluster = await client.cluster()
        name = _node(cluster, node)
        await _switch_all(client, cluster, name, "drain-on", reason)
        return await _moved(client, name, timeout)

    stayed = ask(work)
    for line in stayed:
        print(line)
    if stayed:
        raise RefusedError(
            "not everything could be moved",
            "It moves as soon as the other node has an equal copy; `hyperha state` shows it.",
        )


@app.command()
def resume(node: Node = None, reason: Reason = "") -> None:
    """Use a drained node again: it may take modules, and none moves back by itself."""

    async def work(client: NodeClient) -> None:
        cluster = await client.cluster()
        await _switch_all(client, cluster, _node(cluster, node), "drain-off", reason)

    ask(work)


def _node(cluster: ClusterView, wanted: str | None) -> str:
    name = wanted or cluster.answered_by
    if name not in cluster.nodes:
        raise NotFoundError(f"there is no node {name!r}", f"Nodes: {', '.join(cluster.nodes)}.")
    return name


async def _switch_all(
    client: NodeClient, cluster: ClusterView, node: str, verb: VerbWord, reason: str
) -> None:
    for module in cluster.modules:
        request = ActionRequest(verb=verb, node=node, request_id=request_id(), reason=reason)
        accepted = await client.act(module, request)
        await follow(client, accepted.operation, SWITCH_LIMIT_S)


async def _moved(client: NodeClient, node: str, timeout_s: float) -> list[str]:
    """Wait until nothing runs there; what stays, in sentences."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    shown: set[str] = set()
    still_since = loop.time()
    while True:
        cluster = await client.cluster()
        here = {
            name: view.nodes[node]
            for name, view in cluster.modules.items()
            if view.nodes[node].role in (Role.PRIM, Role.ALONE)
        }
        for name in sorted(set(cluster.modules) - set(here) - shown):
            shown.add(name)
            print(f"{name} does not run on {node}", flush=True)
        if any(one.role is Role.PRIM for one in here.values()):
            still_since = loop.time()
        settled = loop.time() - still_since > SETTLE_S
        if not here or settled or loop.time() > deadline:
            return [f"{name} stays on {node}: {one.why.text}" for name, one in here.items()]
        await asyncio.sleep(LOOK_AGAIN_S)
