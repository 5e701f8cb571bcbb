"""Commands about the copies: verify, plan, diff, safety."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated

import typer

from hyperha.api.wire import ActionOptions, ActionRequest, OperationView, VerbWord
from hyperha.api.wire_copies import DiffView, PlanView, SafetyCopies, VerifyView
from hyperha.cli.context import POLL_S, JsonToo, ask, options, request_id, show_json
from hyperha.cli.steering import Module, Node, Reason, raise_failed
from hyperha.client.node_client import NodeClient
from hyperha.client.sentences import copy_text, plan_facts
from hyperha.errors import HyperhaError, TimedOutError, UsageError
from hyperha.text import clean, count_text, size_text

_SHOWN = 40
"""Rows of a table of files; the whole of what was told is in --json."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (verify, plan, diff, safety):
        app.command()(command)


# --- verify -------------------------------------------------------------------------------


def verify(
    module: Module,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write what differs again on the secondary.")
    ] = False,
    reason: Reason = "",
    timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait for the end (default: for ever).")
    ] = None,
    as_json: JsonToo = False,
) -> None:
    """Compare both copies while the module runs. Status 0: equal, or made equal; 1: differences."""
    del as_json  # It has been put among the options of all commands.

    async def work(client: NodeClient) -> tuple[OperationView, VerifyView | None]:
        view = await _operate(
            client, module, "verify", ActionOptions(repair=repair), reason, timeout
        )
        return view, (await client.verify_report(module)).last

    view, found = ask(work)
    if options.as_json:
        show_json(found.model_dump(mode="json") if found is not None else None)
    else:
        print(f"{module}: {clean(view.text)}")
        for one in found.differences if found is not None else ():
            what = f"{one.length:,} bytes at {one.offset:,}" if one.length else "names, attributes"
            print(f"  {clean(one.path)}: {what}")
    raise typer.Exit(0 if view.state == "done" else 1)


async def _operate(
    client: NodeClient,
    module: str,
    verb: VerbWord,
    sent: ActionOptions,
    reason: str,
    timeout_s: float | None,
    node: str | None = None,
) -> OperationView:
    """Send a command and follow it to its end, with a line of progress on a terminal."""
    request = ActionRequest(
        verb=verb, node=node, request_id=request_id(), options=sent, reason=reason
    )
    accepted = await client.act(module, request)
    line = _ProgressLine()
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    try:
        while True:
            view = await client.operation(accepted.operation)
            if view.state != "running":
                return view
            line.show(view)
            if deadline is not None and loop.time() >= deadline:
                raise TimedOutError(
                    f"{verb} {module} still runs after {timeout_s:.0f} s",
                    "It goes on; see `hyperha state` and `hyperha log`.",
                )
            await asyncio.sleep(POLL_S)
    except asyncio.CancelledError:
        line.clear()
        if verb == "verify":
            await _stop(client, module)
        raise
    finally:
        line.clear()


async def _stop(client: NodeClient, module: str) -> None:
    """Ctrl-C: the verification ends, too."""
    request = ActionRequest(verb="verify-stop", request_id=request_id())
    try:
        await client.act(module, request)
        print("the verification was stopped", file=sys.stderr)
    except HyperhaError as problem:
        print(f"the verification was not stopped: {problem}", file=sys.stderr)


class _ProgressLine:
    """One line on the terminal that is written over; nothing where nobody looks."""

    def __init__(self) -> None:
        self._wanted = sys.stderr.isatty() and not options.as_json
        self._shown = ""

    def show(self, view: OperationView) -> None:
        """How far it is."""
        if not self._wanted or view.total_bytes is None or view.done_bytes is None:
            return
        percent = 100 * view.done_bytes // max(1, view.total_bytes)
        of = f"{size_text(view.done_bytes)} of {size_text(view.total_bytes)}"
        text = f"{view.verb} {view.module}: {percent:3d} %, {of}"
        if text != self._shown:
            print(f"\r{text.ljust(len(self._shown))}", end="", file=sys.stderr, flush=True)
            self._shown = text

    def clear(self) -> None:
        """Before anything else is said."""
        if self._shown:
            print("\r" + " " * len(self._shown) + "\r", end="", file=sys.stderr, flush=True)
            self._shown = ""


# --- plan and diff ------------------------------------------------------------------------


def plan(
    module: Module,
    to: Annotated[str, typer.Option(metavar="NODE", help="As if this node's copy gave way.")] = "",
    as_json: JsonToo = False,
) -> None:
    """What a resync would move now, in which direction and by which rule; nothing is done."""
    del as_json

    async def work(client: NodeClient) -> PlanView:
        return await client.plan(module, to)

    found = ask(work)
    if options.as_json:
        show_json(found.model_dump(mode="json"))
    else:
        for label, text in plan_facts(found):
            print(f"{label:12}{clean(text)}".rstrip())
    raise typer.Exit(0 if found.agree else 1)


def diff(module: Module, as_json: JsonToo = False) -> None:
    """What each copy's log says that it changed, file by file."""
    del as_json

    async def work(client: NodeClient) -> DiffView:
        return await client.diff(module)

    found = ask(work)
    if options.as_json:
        show_json(found.model_dump(mode="json"))
        return
    print(f"{module}: {clean(found.text)}")
    if found.base:
        print(f"both relative to generation {found.base[:6]}")
    for node, one in found.copies.items():
        print(f"{node}: {clean(copy_text(one))}")
        for entry in one.candidates.listed[:_SHOWN]:
            what = "whole" if entry.whole else "zones" if entry.bytes else ""
            names = "names" if entry.names else ""
            print(f"  {size_text(entry.bytes):>10} {what:6}{names:6}{clean(entry.path)}")
        more = one.candidates.files - min(_SHOWN, len(one.candidates.listed))
        if more > 0:
            print(f"  and {count_text(more, 'more file', 'more files')}")
    for node, why in found.missing.items():
        print(f"{node}: not known: {clean(why)}")


# --- safety copies ------------------------------------------------------------------------


def safety(
    module: Module,
    action: Annotated[str, typer.Argument(metavar="list|restore|delete")],
    name: Annotated[str, typer.Argument(metavar="[ID]", help="Which safety copy.")] = "",
    to: Annotated[
        str, typer.Option(metavar="DIR", help="Where to: a directory that is missing or empty.")
    ] = "",
    node: Node = None,
    reason: Reason = "",
    as_json: JsonToo = False,
) -> None:
    """What is kept of a copy's state before a resync: list it, restore it elsewhere, delete it."""
    del as_json
    if action == "list":
        _list_safety(module, node)
        return
    verbs: dict[str, VerbWord] = {"restore": "safety-restore", "delete": "safety-delete"}
    if action not in verbs:
        raise UsageError(f"safety {action!r} is not known", "Say list, restore or delete.")
    if not name:
        raise UsageError(
            f"safety {module} {action} needs an ID", "`safety MODULE list` names them."
        )
    if action == "restore" and not to:
        raise UsageError(
            "restore needs --to DIR", "Name a directory on that node, missing or empty."
        )
    sent = ActionOptions(id=name, to=os.path.abspath(to) if to else "")

    async def work(client: NodeClient) -> OperationView:
        return await _operate(client, module, verbs[action], sent, reason, None, node)

    view = ask(work)
    if view.state != "done":
        raise_failed(module, view.node, clean(view.text))
    if options.as_json:
        show_json({"done": True, "text": [view.text]})
    else:
        print(f"{module} on {view.node}: {clean(view.text)}")


def _list_safety(module: str, node: str | None) -> None:
    async def work(client: NodeClient) -> SafetyCopies:
        return await client.safety_copies(module)

    found = ask(work)
    copies = [one for one in found.copies if node in (None, one.node)]
    if options.as_json:
        show_json(found.model_copy(update={"copies": copies}).model_dump(mode="json"))
        return
    for one in copies:
        size = f"{size_text(one.bytes)}, {count_text(one.files, 'file')}"
        until = f", until {one.expires[:16]}" if one.expires else ""
        kind = " required" if one.required else ""
        text = f": {clean(one.text)}" if one.text else ""
        print(f"{one.id}  {one.node:8}{one.state:5}{kind} ({one.rule}) {size}{until}{text}")
    for name, why in found.missing.items():
        print(f"{name}: not known: {clean(why)}")
    if not copies and not found.missing:
        print("there is no safety copy")
