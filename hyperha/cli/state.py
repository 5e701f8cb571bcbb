"""Commands that look: state, ready, wait, preflight."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from hyperha.api.wire import ClusterView, ModuleView
from hyperha.cli.context import JsonToo, ask, options, show_json
from hyperha.cli.steering import Module, Node, OptionalModule, side_of
from hyperha.client.node_client import NodeClient
from hyperha.client.sentences import HELD_BACK
from hyperha.domain import Role
from hyperha.errors import TimedOutError, UsageError
from hyperha.text import clean, size_text


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (state, ready, wait, preflight):
        app.command()(command)


def state(
    module: OptionalModule = None,
    verbose: Annotated[bool, typer.Option("-v", help="Also boot, epoch, checkers, LANs.")] = False,
    as_json: JsonToo = False,
) -> None:
    """Roles, readiness and data of all modules, or one."""
    del as_json  # It has been put among the options of all commands.

    async def work(client: NodeClient) -> ClusterView:
        return await client.cluster()

    cluster = ask(work)
    if module is not None:
        side_of(cluster, module, cluster.answered_by)
        cluster = cluster.model_copy(update={"modules": {module: cluster.modules[module]}})
    if options.as_json:
        show_json(cluster.model_dump(mode="json"))
        return
    _show_nodes(cluster, verbose)
    for name, view in cluster.modules.items():
        _show_module(name, view, verbose)


def _show_nodes(cluster: ClusterView, verbose: bool) -> None:
    print(f"cluster {cluster.cluster}, answered by {cluster.answered_by} at {cluster.at}")
    for name, node in cluster.nodes.items():
        age = "now" if node.reachable else "never"
        if not node.reachable and node.seen_ms_ago is not None:
            age = f"{node.seen_ms_ago / 1000:.0f} s ago"
        lans = " ".join(f"{lan}={state}" for lan, state in node.lans.items())
        print(f"  {name:10}{'reachable' if node.reachable else 'NOT REACHABLE'} ({age}) {lans}")
        if verbose:
            print(f"  {'':10}version {node.version}, configuration {node.config_version}")
            for limit in node.limits:
                print(f"  {'':10}limit: {limit}")


def _show_module(name: str, view: ModuleView, verbose: bool) -> None:
    redundant = "redundant" if view.redundant else "NOT redundant"
    print(f"module {name}: {redundant}, failover {'on' if view.failover else 'off'}")
    for node, side in view.nodes.items():
        print(
            f"  {node:10}{side.role:7}{side.readiness:10}{side.data:13}vm {side.vm.state:9}"
            f"{clean(side.why.text)}"
        )
        if side.resync is not None and side.resync.total_bytes:
            r = side.resync
            percent = 100 * r.done_bytes // max(1, r.total_bytes)
            left = f"{r.seconds_left} s left" if r.seconds_left is not None else ""
            rate = r.recent_bytes_per_s / 1048576
            held = f", {HELD_BACK[r.held_back]}" if r.held_back in HELD_BACK else ""
            told = side.role.runs_vm or r.safety_copy  # The target alone knows of its way back.
            back = "" if told else " (no way back during this resync)"
            print(f"  {'':10}resync {r.rule}: {percent} %, {rate:.1f} MiB/s {left}{held}{back}")
        if verbose:
            budget = side.restarts
            used = f"{budget.used} of {budget.of} in {budget.window_h} h" if budget else "-"
            print(f"  {'':10}boot {side.boot}, module {view.number}, epoch {side.epoch},")
            print(f"  {'':10}restarts {used}, generation {side.generation[:16] or '-'}")
            if side.replication_lan:
                print(f"  {'':10}replication over {side.replication_lan}")
            for one in side.checkers:
                held = f" (suspended: {one.suspended.reason})" if one.suspended else ""
                print(f"  {'':10}checker {one.kind}.{one.name} {one.state}{held}")
            for kept in side.safety_copies:
                end = f", until {kept.expires[:16]}" if kept.expires else ""
                lost = f": {clean(kept.text)}" if kept.text else ""
                size = size_text(kept.bytes)
                print(f"  {'':10}safety copy {kept.id} {kept.state}, {size}{end}{lost}")


def ready(module: Module) -> None:
    """Exit status 0 when the VM runs here and is ready, 1 when not."""

    async def work(client: NodeClient) -> ClusterView:
        return await client.cluster()

    cluster = ask(work)
    side = side_of(cluster, module, cluster.answered_by)
    is_ready = side.role.runs_vm and side.readiness == "Ready"
    print("ready" if is_ready else f"not ready: {side.role} {side.readiness}")
    raise typer.Exit(0 if is_ready else 1)


def wait(
    module: Module,
    state: Annotated[str, typer.Option(help="STOP, WAIT, ALONE, PRIM or SECOND.")],
    node: Node = None,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 60.0,
) -> None:
    """Wait until a node is steadily in a role."""
    if state not in set(Role):
        raise UsageError(f"{state!r} is no role", f"Roles: {', '.join(Role)}.")

    async def work(client: NodeClient) -> None:
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            cluster = await client.cluster()
            side = side_of(cluster, module, node or cluster.answered_by)
            if side.role == state and side.readiness != "Transient":
                print(f"{module}: {side.role} {side.readiness}")
                return
            if asyncio.get_running_loop().time() >= deadline:
                raise TimedOutError(
                    f"{module} is {side.role} {side.readiness} after {timeout:.0f} s, not {state}"
                )
            await asyncio.sleep(0.1)

    ask(work)


def preflight(module: OptionalModule = None) -> None:
    """What would stand in the way of a start or failover now."""

    async def work(client: NodeClient) -> ClusterView:
        return await client.cluster()

    cluster = ask(work)
    if module is not None:
        side_of(cluster, module, cluster.answered_by)
    found = [
        (name, item)
        for name, view in cluster.modules.items()
        if module in (None, name)
        for item in view.preflight
    ]
    for name, item in found:
        print(f"{name} on {item.node}: {clean(item.text)}. {clean(item.fix)}".rstrip())
    if not found:
        print("nothing stands in the way")
    raise typer.Exit(1 if found else 0)
