"""Questions about what would happen: both nodes' views are asked for, the study runs here.

No daemon spends its time on a question, and nothing of it can reach the live cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from hyperha.client.node_client import NodeClient
from hyperha.client.outcomes import Answered
from hyperha.errors import BusyError, FailedError, NotFoundError, UnreachableError
from hyperha.study.recorded import RecordedError
from hyperha.study.snapshot import Snapshot, snapshot_of
from hyperha.study.whatif import happening, whatif

_TRIES = 10
_AGAIN_S = 0.3


async def ask_whatif(client: NodeClient, module: str, events: Sequence[str]) -> Answered:
    """Put events, as they are written, to a clone of the cluster.

    Raises UsageError for one that is not understood, RefusedError for one that cannot happen when
    its turn comes, BusyError while a node does not rest, FailedError for nodes of another release.
    """
    cluster = await client.cluster()
    if module not in cluster.modules:
        known = ", ".join(cluster.modules) or "none"
        raise NotFoundError(f"there is no module {module!r}", f"Modules: {known}.")
    asked = [happening(one, cluster.nodes) for one in events]
    tries = _TRIES
    while True:
        found, missing = await _snapshots(client, module, tuple(cluster.nodes))
        try:
            outcome = await asyncio.to_thread(whatif, found, asked)
        except BusyError:
            tries -= 1
            if not tries:
                raise
            await asyncio.sleep(_AGAIN_S)
        else:
            return Answered(module, outcome, tuple(sorted(missing.items())))


async def _snapshots(
    client: NodeClient, module: str, nodes: Sequence[str]
) -> tuple[Mapping[str, Snapshot], Mapping[str, str]]:
    found: dict[str, Snapshot] = {}
    missing: dict[str, str] = {}
    for node in nodes:
        try:
            view = await client.snapshot(module, node=node)
            found[node] = snapshot_of(view.model_dump())
        except UnreachableError as problem:
            missing[node] = problem.text
        except RecordedError as problem:
            raise FailedError(
                f"what {node} knows is not understood here: {problem}",
                "Do the nodes and this program have the same version?",
            ) from None
    if not found:
        raise UnreachableError("; ".join(missing.values()))
    return found, missing
