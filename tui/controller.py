"""Between session and screens: feeds the model, sends what was confirmed, reads logs and outputs.

Knows no widget. Every failure becomes a sentence; nothing is sent twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar

from pydantic import BaseModel

from hyperha.api.wire import Accepted, ActionRequest, OperationView, ScriptOutput
from hyperha.client.node_client import NodeClient
from hyperha.client.outcomes import Answered
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
from hyperha.client.studying import ask_whatif
from hyperha.text import clean
from tui.actions import Action, Seen, checker_change, requests
from tui.model.cleaning import cleaned
from tui.model.console import ConsoleModel, Issued, Place

T = TypeVar("T")
Told = TypeVar("Told", bound=BaseModel)
LOG_PAGE_LINES = 1000
FOLLOW_EVERY_MS = 1_000
RETRY_AFTER_MS = 5_000
"""How often the other node's log is asked for: while it answers, and after it did not."""
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
        self._reading: set[Place] = set()
        self._due_ms: dict[Place, int] = {}

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

    async def send(
        self, action: Action, seen: Seen, reason: str, copy: str = "", to: str = ""
    ) -> Outcome:
        """Send a confirmed command with what was seen; 409 says that it is another state now."""
        outcome = Outcome(Result.FAILED, "nothing was sent")
        for request in requests(action, seen, reason, copy, to):
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

    async def read_selected(self, scripts: bool) -> None:
        """Log, and on demand the scripts, of the selected module on the selected node.

        The answering node's log is read once, its new lines come by the stream; the other node's is
        asked for through the answering one, again and again. When that fails, the model says why:
        lines of another node are never shown instead.
        """
        place = self.model.place
        if not all(place) or place in self._reading:
            return
        if place in self.model.unread and self.clock_ms() < self._due_ms.get(place, 0):
            return
        self._reading.add(place)
        try:
            await self._read_lines(place)
            if scripts and place not in self.model.scripts_read:
                await self._read_runs(place)
            if self.model.unread.pop(place, None) is not None:
                self.changed = True
        except HyperhaError as problem:
            self._not_read(place, problem)
        finally:
            self._reading.discard(place)

    async def _read_lines(self, place: Place) -> None:
        model, buffer = self.model, self.model.log_of(place)
        module, node = place
        known = place in model.logs_read
        if known and (model.streams(node) or self.clock_ms() < self._due_ms.get(place, 0)):
            return
        epoch = buffer.epoch
        after = buffer.lines[-1].seq if known and buffer.lines else 0
        page = await self._ask(lambda client: client.log(module, after, LOG_PAGE_LINES, node=node))
        if buffer.epoch != epoch:
            return  # Forgotten meanwhile: what was asked for does not fit what is there now.
        self._due_ms[place] = self.clock_ms() + FOLLOW_EVERY_MS
        lines = [cleaned(line) for line in page.lines if line.node == node]
        if page.next < after or (known and len(page.lines) >= LOG_PAGE_LINES):
            buffer.clear()  # Numbers began anew, or there may be a gap before this page.
        buffer.merge(lines)
        model.logs_read.add(place)
        if not known or any(line.run for line in lines):
            model.scripts_read.discard(place)
        if lines or not known:
            self.changed = True

    async def _read_runs(self, place: Place) -> None:
        module, node = place
        # Before the answer: a run that begins meanwhile makes the list old again.
        self.model.scripts_read.add(place)
        try:
            runs = await self._ask(lambda client: client.scripts(module, node=node))
        except HyperhaError:
            self.model.scripts_read.discard(place)
            raise
        self.model.scripts[place] = [cleaned(run) for run in runs if run.node == node]
        self.changed = True

    def _not_read(self, place: Place, problem: HyperhaError) -> None:
        if isinstance(problem, UnreachableError) and not self.model.link.live:
            return  # The link itself is lost, which is said elsewhere; read once it is back.
        silent = isinstance(problem, UnreachableError)
        text = f"{place[1]} does not answer" if silent else clean(problem.text)
        self._due_ms[place] = self.clock_ms() + RETRY_AFTER_MS
        self.changed = self.changed or self.model.unread.get(place) != text
        self.model.unread[place] = text

    async def read_output(self, place: Place, run: str) -> ScriptOutput | str:
        """What a run said, or why it cannot be shown."""
        module, node = place
        try:
            return cleaned(await self._ask(lambda client: client.script(module, run, node=node)))
        except HyperhaError as problem:
            return clean(str(problem))

    async def read_copies(self, read: Callable[[NodeClient], Awaitable[Told]]) -> Told | str:
        """What is told about the copies, or why it is not known."""
        try:
            return cleaned(await self._ask(read))
        except HyperhaError as problem:
            return clean(str(problem))

    async def study(self, module: str, events: list[str]) -> Answered | str:
        """What events would lead to, or why it cannot be told."""
        try:
            return await self._ask(lambda client: ask_whatif(client, module, events))
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
