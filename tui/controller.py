"""Between session and screens: feeds the model, sends what was confirmed, reads logs and outputs.

Knows no widget. Every failure becomes a sentence; nothing is sent twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar

from hyperha.api.wire import Accepted, ActionRequest, OperationView, ScriptOutput
from hyperha.client.node_client import NodeClient
from hyperha.client.problems import BusyError, HyperhaError, RefusedError, UnreachableError
from hyperha.client.session import (
    ClusterSeen,
    LinkChanged,
    LogSeen,
    OperationSeen,
    Reset,
    Session,
    SessionEvent,
)
from hyperha.text import clean
from tui.actions import Action, Seen, checker_change, requests
from tui.model.cleaning import cleaned
from tui.model.console import ConsoleModel, Issued

T = TypeVar("T")
LOG_PAGE_LINES = 1000
POLL_AFTER_MS = 1_500
"""The end of a command on the answering node comes by the stream; others are asked for."""


class Result(StrEnum):
    """What became of a request."""

    REQUESTED = "requested"
    CHANGED = "changed"
    """Refused because the state is another one: to be looked at again."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result and its sentence."""

    result: Result
    text: str


class Controller:
    """One console's conversation with the cluster."""

    def __init__(
        self, model: ConsoleModel, clock_ms: Callable[[], int], say: Callable[[str, bool], None]
    ) -> None:
        self.model = model
        self.clock_ms = clock_ms
        self._say = say
        """Tell the operator a sentence; True when it is about trouble."""
        self.session: Session | None = None
        self.changed = True
        """Whether anything is to be drawn anew."""

    # --- events ------------------------------------------------------------------------------

    def told(self, event: SessionEvent) -> None:
        """What the session has to tell."""
        self.changed = True
        model = self.model
        match event:
            case LinkChanged(link):
                model.link = link
            case ClusterSeen(view):
                model.take_cluster(view, self.clock_ms())
            case LogSeen(line):
                model.take_log(line)
                if line.run:
                    model.scripts.pop(line.module, None)
            case OperationSeen(view):
                self._ended(view)
            case Reset(reason):
                model.reset()
                self._say(clean(reason), False)

    def _ended(self, view: OperationView) -> None:
        running = {one.operation for one in self.model.running_commands()}
        self.model.take_operation(view, self.clock_ms())
        if view.id in running and view.state == "failed":
            text = f"{view.state}: {view.verb} {view.module} on {view.node}: {view.text}"
            self._say(clean(text), True)

    # --- commands ----------------------------------------------------------------------------

    async def send(self, action: Action, seen: Seen, reason: str) -> Outcome:
        """Send a confirmed command with what was seen; 409 says that it is another state now."""
        outcome = Outcome(Result.FAILED, "nothing was sent")
        for request in requests(action, seen, reason):
            try:
                accepted = await self._ask(partial(_act, seen.module, request))
            except HyperhaError as problem:
                return await self._refused(problem)
            node = request.node or seen.node
            outcome = self._requested(accepted, seen.module, node, request.verb)
        return outcome

    async def send_checker(
        self, action: Action, seen: Seen, checker: str, reason: str, until: str | None
    ) -> Outcome:
        """Suspend or resume a checker, `all` for every one."""
        change = checker_change(action, reason, until)
        try:
            accepted = await self._ask(
                lambda client: client.change_checker(seen.module, checker, change)
            )
        except HyperhaError as problem:
            return await self._refused(problem)
        node = self.model.cluster.answered_by if self.model.cluster else seen.node
        return self._requested(accepted, seen.module, node, f"{action.id} {checker} of")

    def _requested(self, accepted: Accepted, module: str, node: str, verb: str) -> Outcome:
        issued = Issued(module, node, verb, accepted.operation, self.clock_ms())
        self.model.requested(issued)
        self.changed = True
        if issued.ended_ms is not None:
            text = f"{issued.state}: {verb} {module} on {node}: {issued.text}"
            return Outcome(Result.REQUESTED, text)
        return Outcome(Result.REQUESTED, f"requested: {verb} {module} on {node}")

    async def _refused(self, problem: HyperhaError) -> Outcome:
        text = clean(str(problem))
        if isinstance(problem, RefusedError) and not isinstance(problem, BusyError):
            await self.read_cluster()
            return Outcome(Result.CHANGED, text)
        if isinstance(problem, UnreachableError):
            text += " Whether it was begun is not known: look at the state."
        return Outcome(Result.FAILED, text)

    # --- reading -----------------------------------------------------------------------------

    async def read_cluster(self) -> None:
        """The state at once, without waiting for the stream."""
        try:
            self.told(ClusterSeen(await self._ask(lambda client: client.cluster())))
        except HyperhaError as problem:
            self._say(clean(str(problem)), True)

    async def read_log(self, module: str) -> None:
        """The older lines of a module's log."""
        if module in self.model.logs_read:
            return
        self.model.logs_read.add(module)
        try:
            page = await self._ask(lambda client: client.log(module, limit=LOG_PAGE_LINES))
        except HyperhaError as problem:
            if isinstance(problem, UnreachableError):
                self.model.logs_read.discard(module)  # once the link is back
            else:
                self._say(clean(str(problem)), True)
            return
        self.model.log_of(module).merge([cleaned(line) for line in page.lines])
        self.changed = True

    async def read_scripts(self, module: str) -> None:
        """The kept runs of a module's scripts."""
        try:
            runs = await self._ask(lambda client: client.scripts(module))
        except HyperhaError as problem:
            self._say(clean(str(problem)), True)
            return
        self.model.scripts[module] = [cleaned(run) for run in runs]
        self.changed = True

    async def read_output(self, module: str, run: str) -> ScriptOutput | str:
        """What a run said, or why it cannot be shown."""
        try:
            return cleaned(await self._ask(lambda client: client.script(module, run)))
        except HyperhaError as problem:
            return clean(str(problem))

    async def poll_operations(self) -> None:
        """Ask how commands stand whose end does not come by this node's stream."""
        now_ms = self.clock_ms()
        for one in self.model.running_commands():
            if now_ms - one.requested_ms < POLL_AFTER_MS or not self.model.link.live:
                continue
            try:
                self._ended(await self._ask(partial(_operation, one.operation)))
                self.changed = True
            except HyperhaError as problem:
                self._lost_sight(one, problem)

    def _lost_sight(self, one: Issued, problem: HyperhaError) -> None:
        """A daemon that was started anew forgot its operations; the state tells how it ended."""
        if problem.http_status == 404:
            one.state, one.text = "unknown", "the node forgot it; see the state and the log"
            one.ended_ms = self.clock_ms()
            self.changed = True

    async def _ask(self, work: Callable[[NodeClient], Awaitable[T]]) -> T:
        """Ask the node; whatever goes wrong is a HyperhaError, so that nothing fails unseen."""
        if self.session is None:
            raise UnreachableError("the console has not started to connect")
        try:
            return await work(self.session.client())
        except (ValueError, RuntimeError) as problem:
            # An answer unlike the wire models, or a connection closed under the request.
            raise UnreachableError(
                f"the node's answer cannot be understood: {problem}"
            ) from problem


async def _act(module: str, request: ActionRequest, client: NodeClient) -> Accepted:
    return await client.act(module, request)


async def _operation(operation: str, client: NodeClient) -> OperationView:
    return await client.operation(operation)
