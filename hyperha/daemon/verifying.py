"""Verification of a module's copies as a command: begun, followed, stopped, remembered (R17).

The comparison itself is the replication process's; here are its refusal, progress and findings.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from hyperha.api.wire import OperationView
from hyperha.api.wire_copies import DifferenceView, VerifyView
from hyperha.core.state import Link, Phase
from hyperha.daemon.module_task import boottime_ms
from hyperha.daemon.observed import after
from hyperha.daemon.views import rfc3339
from hyperha.domain import Role
from hyperha.errors import HyperhaError
from hyperha.replication.control import Question, StartVerify, StopVerify, VerifyTold
from hyperha.replication.milestones import Milestones
from hyperha.text import count_text, size_text
from hyperha.threads import in_own_thread

if TYPE_CHECKING:
    from hyperha.daemon.module_host import ModuleHost

SILENCE_S = 60.0
"""The process tells twice a second; a barrier or a slow disk may take longer."""
_TOLD_EVERY_MS = 1000
_EQUAL, _SO_FAR = "equal", "no difference so far"


class Verifying:
    """The verifications of one module on this node, one at a time; belongs to the event loop."""

    def __init__(self, host: ModuleHost) -> None:
        self._host = host
        self.operation: OperationView | None = None
        """The one that runs."""
        self._number = 0
        self._told = VerifyTold(0)
        self._told_ms = 0
        self._milestones = Milestones(0)

    def refusal(self) -> str:
        """Why nothing can be compared now; empty when it can."""
        host, state = self._host, self._host.state
        if self.operation is not None:
            return f"a verification runs already, begun by {self.operation.by}"
        if state.role is Role.PRIM and state.link is Link.IN_SYNC and state.phase is Phase.RUNNING:
            return ""
        if state.role.runs_vm:
            return f"{host.peer} has no equal copy now, so there is nothing to compare with"
        return f"{host.node} is {state.role}: copies are compared where the VM runs"

    def stop_refusal(self) -> str:
        """Why there is nothing to be stopped; empty when there is."""
        return "" if self.operation is not None else "no verification runs"

    def begin(self, operation: OperationView, repair: bool, serial: int) -> None:
        """Begin one; its end is the operation's."""
        self.operation = operation
        self._told = VerifyTold(0)
        self._told_ms = boottime_ms()
        self._milestones = Milestones(self._told_ms, quiet_ms=0)
        self._host.go(self._run(operation, repair, serial))

    def stop(self) -> None:
        """End the one that runs; what it found so far is its result."""
        with contextlib.suppress(HyperhaError):
            self._host.engine.tell(StopVerify(self._number))

    async def _run(self, operation: OperationView, repair: bool, serial: int) -> None:
        host = self._host
        what = (
            "compares both copies and repairs the secondary's" if repair else "compares both copies"
        )
        host.log("I", "verify", "R17", f"{what}, by {operation.by}")

        def make(number: int) -> Question:
            self._number = number
            return StartVerify(number, repair)

        problem = ""
        try:
            self._told = await host.engine.ask(
                make, VerifyTold, silence_s=SILENCE_S, told=self._progress
            )
            problem = self._told.text
        except HyperhaError as failure:
            problem = failure.text
            self.stop()
        finally:
            self.operation = None
        view = self._view(operation, repair, serial, problem)
        host.observed.verify = after(host.observed.verify, view)
        try:
            await in_own_thread("observed", host.observed.store)
        except HyperhaError as failure:
            host.log("E", "verify", "R17", f"the findings cannot be kept: {failure}")
        good = view.complete and not view.left
        host.log("I" if good else "E" if view.left else "W", "verify", "R17", view.text)
        host.around.finished(operation.id, good, view.text)
        host.around.changed()

    def _progress(self, told: VerifyTold) -> None:
        self._told = told
        host, operation, now_ms = self._host, self.operation, boottime_ms()
        if operation is None:
            return
        if now_ms - self._told_ms >= _TOLD_EVERY_MS:
            self._told_ms = now_ms
            host.around.progressed(operation.id, told.done_bytes, told.total_bytes)
        if self._milestones.due(told.done_bytes, told.total_bytes, now_ms):
            far = f"{size_text(told.done_bytes)} of {size_text(told.total_bytes)} compared"
            host.log("I", "verify", "R17", f"{far}: {_findings(told, host.peer, _SO_FAR)}")

    def _view(
        self, operation: OperationView, repair: bool, serial: int, problem: str
    ) -> VerifyView:
        told, host = self._told, self._host
        text = sentence(told, host.peer, _SO_FAR if problem else _EQUAL)
        if problem:
            text = f"not complete, {problem}: {text}"
        elif repair and told.others:
            text += f"; those are made equal on {host.peer} by a resync now: verify again then"
        return VerifyView(
            serial=serial,
            node=host.node,
            by=operation.by,
            repair=repair,
            started=operation.started,
            ended=rfc3339(time.time_ns() // 1_000_000),
            complete=not problem,
            text=text,
            objects=told.objects,
            done_bytes=told.done_bytes,
            total_bytes=told.total_bytes,
            blocks=told.blocks,
            others=told.others,
            repaired=told.repaired,
            left=told.blocks - told.repaired + told.others,
            differences=[
                DifferenceView(path=one.path, offset=one.offset, length=one.length)
                for one in told.examples
            ],
        )


def sentence(told: VerifyTold, secondary: str, nothing: str = _EQUAL) -> str:
    """What a verification has found, in one sentence; `nothing`: where it has found nothing."""
    objects = count_text(told.objects, "file or directory", "files and directories")
    compared = f"compared {objects} with {size_text(told.done_bytes)}"
    return f"{compared}: {_findings(told, secondary, nothing)}"


def _findings(told: VerifyTold, secondary: str, nothing: str) -> str:
    parts = []
    if told.blocks:
        where = next((one for one in told.examples if one.length), None)
        place = f" in {where.path} at {where.offset:,}" if where is not None else ""
        more = " and elsewhere" if len([one for one in told.examples if one.length]) > 1 else ""
        verb = "differs" if told.blocks == 1 else "differ"
        text = f"{count_text(told.blocks, 'block')} of 64 KiB {verb}{place}{more}"
        if told.repaired:
            text += f", {told.repaired:,} written again on {secondary}"
        parts.append(text)
    if told.others:
        where = next((one for one in told.examples if not one.length), None)
        place = f", first {where.path}" if where is not None else ""
        parts.append(f"{told.others:,} with other names or attributes{place}")
    return "; ".join(parts) or nothing
