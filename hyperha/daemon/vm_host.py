"""One module's VM on this node: driver, scripts, fence and guardian, behind the core's actions.

Implements `ports.VmHost`. Nothing here touches a path in the mount (T1), and no run begins before
the guardian is armed for it (P1, L5').
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from hyperha.core import actions as a
from hyperha.core.events import Event, VmDone, VmExited
from hyperha.daemon import fencing
from hyperha.daemon.engine_host import Kept
from hyperha.daemon.guardian_client import FenceDescriptor, GuardianClient
from hyperha.daemon.steps import StepArchive, StepRun, line_of
from hyperha.domain import Epoch
from hyperha.errors import FailedError, HyperhaError
from hyperha.scripts.runner import ScriptRunner, Step
from hyperha.spawn.run import OutputLine
from hyperha.spawn.tree import ProcessTree
from hyperha.threads import OwnThread, in_own_thread
from hyperha.vm.port import Driver, Reason, StopMode, VmSpec

_log = logging.getLogger(__name__)
_TELL_AGAIN_S = 0.1
FORCED = "force"
"""The argument of a script's second pass, when the first one has failed or took too long."""


@dataclass(frozen=True, slots=True)
class Stops:
    """How the VM is ended: modes and the time limit of the graceful one."""

    normal: StopMode
    force: StopMode
    timeout_s: float


@contextlib.asynccontextmanager
async def _at_once(say: Callable[[str], None]) -> AsyncIterator[None]:
    """Nobody else starts."""
    del say
    yield


async def _nothing() -> None:
    """The guardian need not be told more."""


class VmHost:
    """Belongs to the event loop; each action runs in its own task, one VM action at a time."""

    def __init__(
        self,
        spec: VmSpec,
        stops: Stops,
        scripts: ScriptRunner,
        steps: StepArchive,
        guardian: GuardianClient,
        post: Callable[[Event], None],
        released: Callable[[], Awaitable[bool]],
        cut: Callable[[], Awaitable[None]],
    ) -> None:
        self._spec = spec
        self._stops = stops
        self._scripts = scripts
        self._steps = steps
        self._guardian = guardian
        self._post = post
        self._released = released
        """Whether every handle of the mount has been released (M12)."""
        self._cut = cut
        """The last means of a fence: end the replication process and its connection."""
        self._driver: Driver | None = None
        self._kept: Kept | None = None
        self._step: StepRun | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._folder_thread = OwnThread(f"folder of {spec.module}")
        self._serial = asyncio.Lock()
        self._current: asyncio.Future[str] | None = None
        self._armed: tuple[int, Epoch] | None = None
        self._certify = False
        self.running_changed: Callable[[int | None], None] = lambda run: None
        self.turn: Callable[[Callable[[str], None]], AbstractAsyncContextManager[None]] = _at_once
        """Its place among the modules that start; told where to say what it waits for."""
        self.before_start: Callable[[], Awaitable[None]] = _nothing
        """What the guardian must be told when it is armed, before a VM runs."""

    def use(self, driver: Driver) -> None:
        """Give the host its driver; once."""
        self._driver = driver

    @property
    def driver(self) -> Driver:
        """The module's driver."""
        assert self._driver is not None
        return self._driver

    def perform(self, action: a.VmAction) -> None:
        """Begin the action; its result is posted as VmDone."""
        task = asyncio.get_running_loop().create_task(self._perform(action))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _perform(self, action: a.VmAction) -> None:
        operation = action.operation
        try:
            text = await self._do(action)
        except asyncio.CancelledError:
            raise
        except (HyperhaError, OSError) as problem:
            self._post(VmDone(operation, False, str(problem)))
        except Exception as problem:
            # The core waits for every operation's end.
            name = type(action).__name__
            _log.exception("%s: %s failed in an unforeseen way", self._spec.module, name)
            self._post(VmDone(operation, False, f"{name} failed: {problem!r}"))
        else:
            self._post(VmDone(operation, True, text))

    async def _do(self, action: a.VmAction) -> str:
        match action:
            case a.Fence():
                return await self._fence()
            case a.KillVm():
                return await self._kill()
            case a.Preflight():
                return await self._preflight()
            case a.AllowCertificate(_, allowed):
                return await self._allow_certificate(allowed)
            case a.StartVm(_, run, epoch, certify):
                self._certify = certify
                return await self._interruptible(self._start(run, epoch))
            case a.StopVm(_, run, force):
                return await self._interrupting(self._stop(run, force))
        raise FailedError(f"the VM host cannot do {type(action).__name__}")

    async def _interruptible(self, work: Awaitable[str]) -> str:
        """A start that a stop or kill may end early."""
        async with self._serial:
            task = asyncio.ensure_future(work)
            self._current = task
            try:
                return await task
            except asyncio.CancelledError:
                me = asyncio.current_task()
                if me is not None and me.cancelling():
                    raise
                raise FailedError("ended early by a stop") from None
            finally:
                self._current = None

    async def _interrupting(self, work: Awaitable[str]) -> str:
        if self._current is not None:
            self._current.cancel()
        async with self._serial:
            return await work

    # --- guardian --------------------------------------------------------------------------

    def descriptors(self, kept: Kept) -> None:
        """The data path was covered anew: the guardian gets its fence."""
        self._kept = kept
        task = asyncio.get_running_loop().create_task(self._arm_again())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _arm_again(self) -> None:
        try:
            await self.arm()
        except HyperhaError as problem:
            _log.error("%s: guardian not armed: %s", self._spec.module, problem)

    async def arm(self) -> None:
        """Arm with what is known now; with no run only the leftover mount is its concern."""
        kept = self._kept
        if kept is None:
            return
        fences = [FenceDescriptor(_kind(name, kept), one) for name, one in kept.fences()]
        if self._armed is None:
            run, epoch = 0, Epoch(0, "")
            trees: tuple[ProcessTree, ...] = ()
        else:
            run, epoch = self._armed
            trees = self.driver.plan(run)
        await self._guardian.arm(
            self._spec.module,
            number=self._spec.number,
            run=run,
            epoch=epoch,
            trees=trees,
            fences=fences,
            peel=self._spec.folder,
            certify=self._armed is not None and self._certify,
        )

    async def _allow_certificate(self, allowed: bool) -> str:
        """L8: writes are held until the guardian knows, so it is told until it answers."""
        self._certify = allowed
        while self._certify is allowed:
            try:
                await self.arm()
                break
            except HyperhaError as problem:
                _log.warning("%s: the guardian is told again: %s", self._spec.module, problem)
                await asyncio.sleep(_TELL_AGAIN_S)
        return ""

    async def detached(self) -> None:
        """The folder is plain again: nothing is left to guard."""
        self._kept = None
        self._armed = None
        if self._guardian.connected:
            await self._guardian.disarm(self._spec.module)

    # --- steps -----------------------------------------------------------------------------

    def on_line(self, line: OutputLine) -> None:
        """Output of the VM's process: in the step while one runs."""
        if self._step is not None:
            self._step.add(*line_of(line))

    def on_script_line(self, step: str, line: OutputLine) -> None:
        """Output of a script."""
        del step
        self.on_line(line)

    def on_exit(self, run: int, text: str) -> None:
        """The VM ended by itself."""
        self.running_changed(None)
        self._post(VmExited(run, text))

    async def _start(self, run: int, epoch: Epoch) -> str:
        if not self._guardian.connected:
            raise FailedError("the guardian does not run: no VM is started without it (P1)")
        async with self.turn(self._steps.waits):
            self._armed = (run, epoch)
            await self.arm()
            await self.before_start()
            return await self._start_now(run)

    async def _start_now(self, run: int) -> str:
        step = self._step = self._steps.begin(Step.START_PRIM)
        environment = self._spec.environment("PRIM", run)
        try:
            await self._script(Step.PRESTART, environment, step)
            replaced = self._scripts.replaces(Step.START_PRIM)
            await self._script(Step.START_PRIM, environment, step, keep=replaced)
            if not replaced:
                step.say(f"driver: starting run {run}")
                await self.driver.prepare()
                await self.driver.start(run)
        except (Exception, asyncio.CancelledError) as problem:
            text = str(problem) or "ended early"
            self._steps.end(step, False, text)
            self._step = None
            raise
        self._steps.end(step, True, "")
        self._step = None
        self.running_changed(run)
        return ""

    async def _script(
        self,
        step: Step,
        environment: dict[str, str],
        log: StepRun,
        *,
        keep: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        result = await self._scripts.run(step, environment, arguments=arguments, keep_tree=keep)
        if result is None:
            return
        log.say(result.text)
        if not result.ok:
            raise FailedError(result.text)

    async def _stop(self, run: int, force: bool) -> str:
        self.running_changed(None)
        step = self._step = self._steps.begin(Step.STOP_PRIM)
        environment = self._spec.environment("PRIM", run)
        how = ""
        try:
            if not force:
                await self._script_soft(Step.STOP_PRIM, environment, step)
            mode = self._stops.force if force else self._stops.normal
            how = await self.driver.stop(mode, self._stops.timeout_s)
            await self._scripts.end_kept()
            step.say(f"driver: {how}")
            if not await self._released():
                step.say("handles on the folder are still open: waiting for them is given up")
            await self._script_soft(Step.POSTSTOP, environment, step)
        except Exception as problem:
            self._steps.end(step, False, str(problem))
            raise
        finally:
            self._step = None
        self._steps.end(step, True, how)
        self._armed = None
        await self.arm()
        return how

    async def _script_soft(self, step: Step, environment: dict[str, str], log: StepRun) -> None:
        """A script whose failure must not keep the VM running: said, once more with the argument
        `force`, then on without it."""
        for arguments in ((), (FORCED,)):
            try:
                await self._script(step, environment, log, arguments=arguments)
            except HyperhaError as problem:
                again = "is run with force" if not arguments else "went on by force"
                log.say(f"{step} {again}: {problem}")
            else:
                return

    async def _preflight(self) -> str:
        reasons = [reason.text for reason in await self.driver.preflight()]
        for step in (Step.PRESTART, Step.START_PRIM):
            self._scripts.find(step)
        if not self._guardian.connected:
            reasons.append("the guardian does not run")
        if reasons:
            raise FailedError("; ".join(reasons))
        return ""

    async def missing_folder(self) -> Reason | None:
        """Why the folder cannot be covered; asked while nothing covers it, never through a mount
        of ours (T1)."""
        if self._kept is not None:
            return None
        return await self._folder_thread.do(_missing_folder, self._spec)

    async def _fence(self) -> str:
        kept = self._kept
        if kept is None:
            return "nothing to fence"
        fences = kept.fences()
        problems = [
            problem
            for name, one in fences
            if (problem := await in_own_thread("fence", fencing.fence, _kind(name, kept), one))
        ]
        if fences and not problems:
            return ""
        if problems:
            _log.error("%s: fence: %s", self._spec.module, "; ".join(problems))
        # Without the process and its descriptors nothing of the run reaches the folder either.
        await self._cut()
        return "the replication process was ended instead of its connection"

    async def _kill(self) -> str:
        self.running_changed(None)
        if self._current is not None:
            self._current.cancel()
        gone = await self.driver.kill()
        gone = await self._scripts.end_kept() and gone
        if not gone:
            raise FailedError("processes of the VM do not end although the data path is fenced")
        self._armed = None
        return ""

    async def close(self) -> None:
        """The daemon ends: nothing of the VM may remain. Raises FailedError where it does."""
        try:
            await self._end_processes()
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _end_processes(self) -> None:
        ways = [self._scripts.end_kept()]
        if self._driver is not None:
            ways.append(self.driver.kill())
        for gone in await asyncio.gather(*ways, return_exceptions=True):
            if isinstance(gone, BaseException):
                raise gone
            if not gone:
                raise FailedError("processes of the VM do not end")


def _missing_folder(spec: VmSpec) -> Reason | None:
    if fencing.layers(spec.folder):
        # A mount of a daemon that was killed: dead it says nothing, alive it might not answer (T1).
        return None
    if os.path.isdir(spec.folder):
        return None
    what = "is no directory" if os.path.lexists(spec.folder) else "does not exist"
    return Reason(
        "folder-missing",
        f"{spec.module}: the folder {spec.folder} {what} on {spec.node}",
        "Mount its file system or make the directory, or correct `folder` in the module's file.",
    )


def _kind(name: str, kept: Kept) -> str:
    """What a fence descriptor is, for the guardian and for us."""
    del name
    return kept.fence
