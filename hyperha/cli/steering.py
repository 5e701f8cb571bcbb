"""Commands that change a module: start, stop, prim, second, swap, failover, boot, checker."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from hyperha.api.wire import (
    ActionOptions,
    ActionRequest,
    CheckerChange,
    ClusterView,
    Expectation,
    ModuleNodeView,
    VerbWord,
)
from hyperha.cli.context import ask, follow, options, request_id, show_json
from hyperha.cli.fleet import act_on_all
from hyperha.client.node_client import NodeClient
from hyperha.errors import LossError, NotFoundError, UsageError
from hyperha.text import duration_s

Module = Annotated[str, typer.Argument(help="Name of the module.")]
Node = Annotated[str | None, typer.Option(help="On this node (default: the node asked).")]
OptionalModule = Annotated[str | None, typer.Argument(help="Name of the module.")]
AllModules = Annotated[bool, typer.Option("--all-modules", help="Every module.")]
Everywhere = Annotated[bool, typer.Option("--all", help="On both nodes.")]
Confirm = Annotated[
    str | None, typer.Option(metavar="MODULE", help="Accept the stated loss; name the module.")
]
Reason = Annotated[str, typer.Option(help="For the log and the audit.")]
Full = Annotated[bool, typer.Option(help="Compare everything by digest.")]
Adopt = Annotated[bool, typer.Option(help="Take what is in the folder as a start.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for the end.")]

_HELP: dict[VerbWord, str] = {
    "start": "Start; the rules give the role.",
    "stop": "Stop; an equal secondary takes over.",
    "restart": "Stop and start the VM on the same node.",
    "stopstart": "Stop here, so that the other node takes over, then start again.",
    "prim": "Run the VM on this node.",
    "second": "Follow the node that runs the VM.",
    "primforce": "Run the VM on a copy that is not whole. Damage is likely.",
    "forcestop": "Stop without anything graceful.",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for verb, text in _HELP.items():
        make = _action_on_many if verb in ("start", "stop") else _action
        app.command(verb, help=text)(make(verb))
    app.command()(swap)
    app.command()(failover)
    app.command()(boot)
    app.command()(checker)


def _action(verb: VerbWord) -> Callable[..., None]:
    def command(
        module: Module,
        node: Node = None,
        everywhere: Everywhere = False,
        confirm: Confirm = None,
        reason: Reason = "",
        full: Full = False,
        adopt: Adopt = False,
        timeout: Timeout = 120.0,
    ) -> None:
        act(
            module,
            verb,
            node=node,
            everywhere=everywhere,
            options_sent=ActionOptions(confirm=confirm, full=full, adopt=adopt),
            reason=reason,
            timeout_s=timeout,
        )

    return command


def _action_on_many(verb: VerbWord) -> Callable[..., None]:
    one = _action(verb)

    def command(
        module: OptionalModule = None,
        node: Node = None,
        everywhere: Everywhere = False,
        all_modules: AllModules = False,
        confirm: Confirm = None,
        reason: Reason = "",
        full: Full = False,
        adopt: Adopt = False,
        timeout: Timeout = 120.0,
    ) -> None:
        if all_modules == (module is not None):
            what = "not both" if all_modules else "one of them is needed"
            raise UsageError(f"{verb} takes the name of a module or --all-modules: {what}")
        if module is not None:
            one(module, node, everywhere, confirm, reason, full, adopt, timeout)
        elif confirm is not None or full or adopt:
            raise UsageError("--confirm, --full and --adopt are for one module, by its name")
        else:
            act_on_all(verb, node=node, everywhere=everywhere, reason=reason, timeout_s=timeout)

    return command


def side_of(cluster: ClusterView, module: str, node: str) -> ModuleNodeView:
    """One node's side of a module; errors name what is known."""
    if module not in cluster.modules:
        known = ", ".join(cluster.modules) or "none"
        raise NotFoundError(f"there is no module {module!r}", f"Modules here: {known}.")
    sides = cluster.modules[module].nodes
    if node not in sides:
        raise NotFoundError(f"there is no node {node!r}", f"Nodes: {', '.join(sides)}.")
    return sides[node]


def act(
    module: str,
    verb: VerbWord,
    *,
    node: str | None,
    everywhere: bool,
    options_sent: ActionOptions,
    reason: str,
    timeout_s: float,
) -> None:
    """Send a command with what was seen, wait for its end, say how it ended."""
    if options_sent.confirm not in (None, module):
        raise UsageError(
            f"--confirm names {options_sent.confirm!r}, the module is {module!r}: nothing was done",
            f"To accept a loss: --confirm {module}.",
        )

    async def work(client: NodeClient) -> list[str]:
        cluster = await client.cluster()
        begun: list[tuple[str, str]] = []
        told: list[str] = []
        for name in _order(cluster, module, verb, node, everywhere):
            side = side_of(cluster, module, name)
            loss = side.losses.get(verb)
            if loss and options_sent.confirm != module:
                _confirm_or_refuse(module, verb, loss)
                sent = options_sent.model_copy(update={"confirm": module})
            else:
                sent = options_sent
            request = ActionRequest(
                verb=verb,
                node=name,
                request_id=request_id(),
                expect=Expectation() if begun or told else _expected(side),
                options=sent,
                reason=reason,
            )
            accepted = await client.act(module, request)
            begun.append((name, accepted.operation))
            if verb != "start":
                # One after the other; but two that start may wait for each other.
                told += await _finish(client, module, begun, timeout_s)
        return told + await _finish(client, module, begun, timeout_s)

    lines = ask(work)
    if options.as_json:
        show_json({"done": True, "text": lines})
    else:
        print("\n".join(lines))


async def _finish(
    client: NodeClient, module: str, begun: list[tuple[str, str]], timeout_s: float
) -> list[str]:
    """Wait for what was begun on each node; the first that fails is the command's error."""
    told = []
    while begun:
        name, operation = begun.pop(0)
        done, text = await follow(client, operation, timeout_s)
        told.append(f"{module} on {name}: {text}")
        if not done:
            raise_failed(module, name, text)
    return told


def _expected(side: ModuleNodeView) -> Expectation:
    """What was seen; the second node of a command may have changed by the first one's part."""
    return Expectation(role=side.role, generation=side.generation)


def raise_failed(module: str, node: str, text: str) -> None:
    """A command that was accepted and then failed."""
    from hyperha.errors import FailedError

    # The text may be a whole message with its cure already.
    raise FailedError(
        f"{module} on {node}: {text.rstrip('.')}", "See `hyperha log` for the whole story."
    )


def _order(
    cluster: ClusterView, module: str, verb: str, node: str | None, everywhere: bool
) -> list[str]:
    """The nodes a command goes to, secondaries first when stopping."""
    if not everywhere:
        return [node or cluster.answered_by]
    sides = cluster.modules[module].nodes if module in cluster.modules else {}
    names = sorted(sides, key=lambda name: sides[name].role.runs_vm)
    if verb == "stop":
        names = [name for name in names if sides[name].role != "STOP"]
    return names or [cluster.answered_by]


def _confirm_or_refuse(module: str, verb: str, loss: str) -> None:
    """On a terminal ask for the module's name; without one only --confirm helps (exit 3)."""
    text = f"{verb} {module} would give up data: {loss}"
    if not sys.stdin.isatty() or options.as_json:
        raise LossError(text, f"To accept the loss: --confirm {module}.")
    print(text)
    typed = input(f"Type {module} to accept the loss: ")
    if typed.strip() != module:
        raise LossError("not confirmed: nothing was done")


def swap(
    module: Module,
    cold: Annotated[bool, typer.Option("--cold", help="Stop and start instead of moving live.")] = (
        False
    ),
    reason: Reason = "",
    timeout: Timeout = 120.0,
) -> None:
    """Exchange the roles: the VM moves to the other node."""

    async def primary(client: NodeClient) -> str:
        cluster = await client.cluster()
        side_of(cluster, module, cluster.answered_by)
        sides = cluster.modules[module].nodes
        return next((n for n in sides if sides[n].role.runs_vm), cluster.answered_by)

    del cold  # The process driver knows no live move: every swap is a cold one.
    act(
        module,
        "swap",
        node=ask(primary),
        everywhere=False,
        options_sent=ActionOptions(),
        reason=reason,
        timeout_s=timeout,
    )


def failover(module: Module, value: Annotated[str, typer.Argument(metavar="on|off")]) -> None:
    """Whether the other node takes over by itself."""
    _switch(module, "failover", value, {"on": "failover-on", "off": "failover-off"})


def boot(module: Module, value: Annotated[str, typer.Argument(metavar="on|off|auto")]) -> None:
    """Whether the module starts with the daemon (auto: as it was before)."""
    known: dict[str, VerbWord] = {"on": "boot-on", "off": "boot-off", "auto": "boot-auto"}
    _switch(module, "boot", value, known)


def _switch(module: str, what: str, value: str, known: dict[str, VerbWord]) -> None:
    if value not in known:
        raise UsageError(f"{what} takes {' or '.join(known)}, not {value!r}")
    act(
        module,
        known[value],
        node=None,
        everywhere=what == "failover",
        options_sent=ActionOptions(),
        reason="",
        timeout_s=10.0,
    )


def checker_list(module: Module) -> None:
    """The checkers of a module on both nodes."""

    async def work(client: NodeClient) -> ClusterView:
        return await client.cluster()

    cluster = ask(work)
    side_of(cluster, module, cluster.answered_by)
    for node, side in cluster.modules[module].nodes.items():
        for one in side.checkers:
            held = ""
            if one.suspended is not None:
                until = f" until {one.suspended.until}" if one.suspended.until else ""
                held = f"  suspended by {one.suspended.by}{until}: {one.suspended.reason}"
            print(f"{node:10}{one.kind + '.' + one.name:24}{one.state:8}{one.text}{held}")


def checker(
    module: Module,
    action: Annotated[str, typer.Argument(metavar="list|suspend|resume")],
    name: Annotated[str, typer.Argument(help="Checker; all of them when not named.")] = "all",
    reason: Annotated[str, typer.Option(help="Why; shown to everybody.")] = "",
    for_: Annotated[str | None, typer.Option("--for", help="How long: 90s, 15m, 1h, 2d.")] = None,
    until: Annotated[str | None, typer.Option(help="Until this time, RFC 3339.")] = None,
) -> None:
    """List the checkers, or tell one or all to give no verdict on both nodes, or to judge again."""
    match action:
        case "list":
            checker_list(module)
        case "resume":
            _change(module, name, CheckerChange(suspended=False))
        case "suspend":
            if not reason:
                raise UsageError(
                    "a suspension needs --reason", "Say why, for whoever finds it at night."
                )
            if for_ is not None:
                seconds = duration_s(for_)
                if seconds is None:
                    raise UsageError(f"--for {for_!r} is no duration", "Write 90s, 15m, 1h or 2d.")
                end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
                until = end.strftime("%Y-%m-%dT%H:%M:%SZ")
            _change(module, name, CheckerChange(suspended=True, until=until, reason=reason))
        case _:
            raise UsageError(
                f"checker {module} {action!r} is not known", "Say list, suspend or resume."
            )


def _change(module: str, name: str, change: CheckerChange) -> None:
    async def work(client: NodeClient) -> tuple[bool, str]:
        accepted = await client.change_checker(module, name, change)
        return await follow(client, accepted.operation, 10.0)

    done, text = ask(work)
    if not done:
        raise_failed(module, name, text)
    word = "suspended" if change.suspended else "resumed"
    print(f"{module}: {name} {word}")
