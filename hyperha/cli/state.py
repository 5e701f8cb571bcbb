"""Commands that look: state, log, ready, wait, preflight."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from hyperha.api.wire import ClusterView, LogLine, ModuleView, ScriptOutput
from hyperha.cli.context import JsonToo, ask, options, show_json
from hyperha.cli.steering import Module, Node, side_of
from hyperha.client.node_client import NodeClient
from hyperha.client.sentences import HELD_BACK
from hyperha.domain import Role
from hyperha.errors import NotFoundError, TimedOutError, UsageError
from hyperha.text import clean, size_text

OptionalModule = Annotated[str | None, typer.Argument(help="Name of the module.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (state, log, ready, wait, preflight):
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


def line_text(line: LogLine) -> str:
    """A log line as people read it."""
    rule = f"[{line.rule}] " if line.rule else ""
    return f"{line.at[11:23]} {line.node:8}{line.level} {line.source:12}{rule}{clean(line.text)}"


def log(
    module: OptionalModule = None,
    follow: Annotated[bool, typer.Option("-f", help="Go on showing new lines.")] = False,
    script: Annotated[str | None, typer.Option(help="Newest output of this script.")] = None,
    node: Node = None,
    lines: Annotated[int, typer.Option("-n", help="How many lines at first.")] = 100,
) -> None:
    """The log of a module, or the output of a script."""

    async def work(client: NodeClient) -> None:
        cluster = await client.cluster()
        names = [module] if module else list(cluster.modules)
        for name in names:
            side_of(cluster, name, cluster.answered_by)
        if script is not None:
            _show_script(await _newest(client, names, script, node or ""))
            return
        elsewhere = node is not None and node != cluster.answered_by
        if follow and elsewhere:
            raise UsageError(
                f"only the lines of {cluster.answered_by} can be followed here",
                f"Run it on {node}, or with --url of {node}.",
            )
        pages = [await client.log(name, 0, lines, node=node or "") for name in names]
        found = [line for page in pages for line in page.lines]
        found.sort(key=lambda line: line.seq)
        for line in found[-lines:]:
            print(line_text(line))
        if follow:
            await _follow(client, names, cluster.seq)

    ask(work)


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


async def _follow(client: NodeClient, names: list[str], after: int) -> None:
    async for line in client.stream(after):
        entry = line.log
        if entry is not None and entry.module in names:
            print(line_text(entry), flush=True)


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
