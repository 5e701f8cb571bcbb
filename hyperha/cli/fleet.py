"""`start` and `stop` of every module at once."""

from __future__ import annotations

from hyperha.api.wire import ActionRequest, ClusterView, VerbWord
from hyperha.cli.context import ask, follow, options, request_id, show_json
from hyperha.client.node_client import NodeClient
from hyperha.domain import Role
from hyperha.errors import FailedError, HyperhaError, LossError, NotFoundError

Part = tuple[str, str]
"""Module and node."""


def act_on_all(
    verb: VerbWord, *, node: str | None, everywhere: bool, reason: str, timeout_s: float
) -> None:
    """Begin the command for every module on a node, or on both, and wait for all of them.

    Secondaries are stopped first, so that no module is moved to a node that stops as well. What
    fails for one module does not keep the others from it.
    """

    async def work(client: NodeClient) -> tuple[list[str], list[str]]:
        cluster = await client.cluster()
        told: list[str] = []
        failed: list[str] = []
        for group in _groups(cluster, verb, _nodes(cluster, node, everywhere)):
            begun: list[tuple[Part, str]] = []
            for part in group:
                try:
                    begun.append((part, await _begin(client, cluster, verb, part, reason)))
                except HyperhaError as problem:
                    failed.append(f"{part[0]} on {part[1]}: {problem.text}")
            for (module, name), operation in begun:
                done, text = await follow(client, operation, timeout_s)
                (told if done else failed).append(f"{module} on {name}: {text}")
        return told, failed

    told, failed = ask(work)
    if options.as_json:
        show_json({"done": not failed, "text": told, "failed": failed})
    else:
        print("\n".join((*told, *failed)) or f"nothing is there to {verb}")
    if failed:
        raise FailedError(
            f"{verb} has failed for {len(failed)} of {len(told) + len(failed)}",
            "See `hyperha log` for the whole story.",
        )


def _nodes(cluster: ClusterView, node: str | None, everywhere: bool) -> list[str]:
    if everywhere:
        return list(cluster.nodes)
    name = node or cluster.answered_by
    if name not in cluster.nodes:
        raise NotFoundError(f"there is no node {name!r}", f"Nodes: {', '.join(cluster.nodes)}.")
    return [name]


def _groups(cluster: ClusterView, verb: VerbWord, nodes: list[str]) -> list[list[Part]]:
    """What can be done at the same time, in order."""
    sides = {
        (module, node): view.nodes[node]
        for module, view in cluster.modules.items()
        for node in nodes
    }
    if verb == "start":
        return [[part for part, side in sides.items() if side.role is Role.STOP]]
    running = [part for part, side in sides.items() if side.role.runs_vm]
    others = [
        part for part, side in sides.items() if side.role is not Role.STOP and not side.role.runs_vm
    ]
    return [others, running]


async def _begin(
    client: NodeClient, cluster: ClusterView, verb: VerbWord, part: Part, reason: str
) -> str:
    module, node = part
    loss = cluster.modules[module].nodes[node].losses.get(verb)
    if loss:
        raise LossError(loss, f"To accept it: hyperha {verb} {module} --confirm {module}.")
    request = ActionRequest(verb=verb, node=node, request_id=request_id(), reason=reason)
    return (await client.act(module, request)).operation
