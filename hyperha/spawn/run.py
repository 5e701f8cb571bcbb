"""Starting a child and following it to its end: the one place where the daemon forks (S1).

Children are forked by the main thread only, since the parent-death signal belongs to the thread
that forks (E16), and start through `launcher`, which enters cgroup, session, user and directory.
Must not know what a run is for; drivers, scripts and checkers give it its meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperha.errors import FailedError, RefusedError, TimedOutError
from hyperha.spawn.looking import MARKER
from hyperha.spawn.output import LineSplitter, OutputLine, OutputStore, Stream
from hyperha.spawn.tree import ProcessTree, RunPlace
from hyperha.text import clean
from hyperha.threads import in_own_thread

_LAUNCHER = str(Path(__file__).with_name("launcher.py"))
LAUNCH_LIMIT_S = 10.0
"""How long cgroup, user, directory and exec may take; a hanging mount ends here."""

_DRAIN_S = 0.5
_KILL_PAUSE_S = 0.01

_LET_GO: list[subprocess.Popen[bytes]] = []
"""Children that nobody follows and that had not ended when last looked at."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a run ended: exit status or signal, whether a time limit ended it, how long it took."""

    status: int | None
    signal: int | None
    timed_out: bool
    duration_ms: int

    @property
    def ok(self) -> bool:
        """Exit status 0 within the time limit."""
        return self.status == 0 and not self.timed_out

    def __str__(self) -> str:
        seconds = f"after {self.duration_ms / 1000:.1f} s"
        if self.timed_out:
            return f"stopped by its time limit {seconds}"
        if self.signal is not None:
            try:
                name = signal.Signals(self.signal).name
            except ValueError:
                name = f"signal {self.signal}"
            return f"killed by {name} {seconds}"
        return f"exit status {self.status} {seconds}"


class Run:
    """A started child with everything it starts in turn; made by `start`.

    Belongs to the event loop that started it. Whoever starts a run awaits `wait` or `kill`.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        tree: ProcessTree,
        *,
        name: str,
        on_line: Callable[[OutputLine], None] | None,
        keep_tree: bool,
    ) -> None:
        self.name = name
        self.tree = tree
        self.pid = process.pid
        self._process = process
        self._on_line = on_line
        self._keep_tree = keep_tree
        self._store = OutputStore()
        self._started_ns = time.monotonic_ns()
        self._timed_out = False
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._open_pipes: set[int] = set()
        self._drained = asyncio.Event()
        self._finished: asyncio.Task[Exit] | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._killing: asyncio.Task[bool] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._watched: int | None = None

    @property
    def lines(self) -> tuple[OutputLine, ...]:
        """The captured output, the newest up to 1 MiB."""
        return self._store.lines

    @property
    def dropped_lines(self) -> int:
        """How many older lines were given up for newer ones."""
        return self._store.dropped

    @property
    def running(self) -> bool:
        """Whether the main process has not ended yet."""
        return not self._ended.done()

    def follow(self, time_limit_s: float | None) -> None:
        """Begin to watch exit, output and time limit; called once by `start`."""
        loop = asyncio.get_running_loop()
        for pipe, stream in ((self._process.stdout, "out"), (self._process.stderr, "err")):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._open_pipes.add(pipe.fileno())
                splitter = LineSplitter("out" if stream == "out" else "err")
                loop.add_reader(pipe.fileno(), self._read, pipe.fileno(), splitter)
        if not self._open_pipes:
            self._drained.set()
        try:
            watched = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # Not Linux 5.3, or a seccomp filter without pidfds.
            self._watcher = loop.create_task(self._poll())
        else:
            self._watched = watched
            loop.add_reader(watched, self._reap, watched)
        if time_limit_s is not None:
            self._limit = loop.call_later(time_limit_s, self._out_of_time)
        self._finished = loop.create_task(self._finish())

    async def wait(self) -> Exit:
        """The end of the main process, after its output is read and (by default) its tree is gone.

        What the main process left running is killed, unless the run was started with `keep_tree`.
        """
        assert self._finished is not None
        return await asyncio.shield(self._finished)

    def terminate(self) -> None:
        """SIGTERM to the main process: asks it to end."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    async def kill(self, timeout_s: float = 2.0) -> bool:
        """End every process of the run; True when all are gone, False when some still exist.

        A process with a held write does not end before its data path is fenced (L5').
        """
        return await self._end_tree(timeout_s, thorough=True)

    async def _end_tree(self, timeout_s: float, *, thorough: bool) -> bool:
        """Kill until nobody is left. A cgroup is asked at once; /proc is searched in a thread,
        where there is no cgroup or, with `thorough`, to be sure at the end."""
        deadline = time.monotonic() + timeout_s
        search = not self.tree.cgroup
        while True:
            if self.running:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            if search:
                left = await in_own_thread("search /proc", _kill_and_look, self.tree, True)
            else:
                left = _kill_and_look(self.tree, False)
            if not self.running and not left:
                if search or not thorough:
                    break
                search = True
                continue
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_KILL_PAUSE_S)
        # The session's number may be given to strangers from now on.
        self.tree = replace(self.tree, session=0)
        await self._remove_cgroup()
        return True

    async def let_go(self) -> None:
        """Stop following a child that outlives this process; it is not touched.

        Ends it first nevertheless, it is reaped when this process starts its next child.
        """
        loop = asyncio.get_running_loop()
        if self._watched is not None:
            loop.remove_reader(self._watched)
            os.close(self._watched)
            self._watched = None
        for task in (self._watcher, self._finished):
            if task is not None and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        for descriptor in list(self._open_pipes):
            self._forget_pipe(descriptor)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        _LET_GO.append(self._process)

    def _out_of_time(self) -> None:
        self._timed_out = True
        self._killing = asyncio.get_running_loop().create_task(self.kill())

    def _reap(self, watched: int) -> None:
        status = self._process.poll()
        if status is None:
            return
        asyncio.get_running_loop().remove_reader(watched)
        os.close(watched)
        self._watched = None
        self._ended.set_result(status)

    async def _poll(self) -> None:
        while (status := self._process.poll()) is None:  # noqa: ASYNC110 - no event without pidfd
            await asyncio.sleep(0.02)
        self._ended.set_result(status)

    def _read(self, descriptor: int, splitter: LineSplitter) -> None:
        wall_ms = time.time_ns() // 1_000_000
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for line in splitter.feed(data, wall_ms) if data else splitter.end(wall_ms):
            self._store.add(line)
            if self._on_line is not None:
                self._on_line(line)
        if not data:
            self._forget_pipe(descriptor)

    def _forget_pipe(self, descriptor: int) -> None:
        if descriptor in self._open_pipes:
            self._open_pipes.discard(descriptor)
            asyncio.get_running_loop().remove_reader(descriptor)
        if not self._open_pipes:
            self._drained.set()

    async def _finish(self) -> Exit:
        status = await self._ended
        duration_ms = (time.monotonic_ns() - self._started_ns) // 1_000_000
        if self._limit is not None:
            self._limit.cancel()
        if self._killing is not None:
            await self._killing
        if not self._keep_tree:
            await self._end_tree(2.0, thorough=False)
        # Whoever inherited the pipes and was allowed to stay may hold them open for ever.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), _DRAIN_S)
        for descriptor in list(self._open_pipes):
            self._forget_pipe(descriptor)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        if status < 0:
            return Exit(None, -status, self._timed_out, duration_ms)
        return Exit(status, None, self._timed_out, duration_ms)

    async def _remove_cgroup(self) -> None:
        """The kernel lets go of an emptied cgroup a moment after its last process."""
        for _ in range(20):
            if self.tree.remove():
                return
            await asyncio.sleep(_KILL_PAUSE_S)


def new_run_id(name: str) -> str:
    """An id that names a run's cgroup and marks its processes."""
    return f"{clean(name).replace('/', '-').replace(' ', '-')[:40]}-{secrets.token_hex(8)}"


def _kill_and_look(tree: ProcessTree, thorough: bool) -> bool:
    """Whether somebody may be left."""
    tree.kill(thorough=thorough)
    try:
        return bool(tree.members(thorough=thorough))
    except OSError:  # Nobody can tell.
        return True


async def start(
    command: Sequence[str],
    *,
    name: str,
    place: RunPlace | None = None,
    cwd: str = "",
    env: Mapping[str, str] | None = None,
    user: str = "",
    output: Callable[[OutputLine], None] | None = None,
    capture: bool = True,
    time_limit_s: float | None = None,
    keep_tree: bool = False,
    outlive: bool = False,
    pass_fds: Sequence[int] = (),
    run_id: str = "",
) -> Run:
    """Start a command in a session and (with `place`) a cgroup of its own.

    `run_id`, from `new_run_id`, where the processes had to be known before the start.
    `name` says what it is in errors. `output` is called for each line in the event loop. With
    `outlive` the child does not die with this process. Raises FailedError naming the step that
    failed (cgroup, user, directory, command), TimedOutError when a step hangs, RefusedError on
    systems without process sessions.
    """
    if sys.platform == "win32":
        raise RefusedError(f"{name}: starting processes is supported on Linux only")
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are forked by the main thread only (S1)")
    if not command or any("\0" in part for part in command):
        raise FailedError(f"{name}: the command is empty or contains NUL")
    run_id = run_id or new_run_id(name)
    cgroup = _make_cgroup(place, run_id, name)
    told, telling = os.pipe()
    order = {
        "argv": list(command),
        "cgroup": cgroup,
        "cwd": cwd,
        "user": user,
        "parent": 0 if outlive else os.getpid(),
        "status": telling,
    }
    variables = {**os.environ, **(env or {}), MARKER: run_id}
    try:
        process = _fork(order, variables, (telling, *pass_fds), capture=capture)
    except OSError as problem:
        os.close(told)
        ProcessTree(run_id, cgroup).remove()
        raise FailedError(f"{name}: cannot be started: {problem.strerror}") from problem
    finally:
        os.close(telling)
    tree = ProcessTree(run_id, cgroup, process.pid)
    run = Run(process, tree, name=name, on_line=output, keep_tree=keep_tree)
    run.follow(time_limit_s)
    await _confirm(run, told, cwd)
    return run


async def _confirm(run: Run, told: int, cwd: str) -> None:
    """Return when the launcher has become the command; else end the run and say what failed."""
    try:
        refusal = await _launched(told)
    except TimeoutError:
        await run.kill()
        raise TimedOutError(
            f"{run.name}: was not running {LAUNCH_LIMIT_S:.0f} s after its start",
            f"Does {cwd or 'its directory'} answer?",
        ) from None
    except asyncio.CancelledError:
        await run.kill()
        raise
    if refusal is not None:
        await run.wait()
        raise FailedError(f"{run.name}: {refusal['step']}: {clean(refusal['reason'])}")


def _fork(
    order: Mapping[str, object],
    variables: Mapping[str, str],
    descriptors: Sequence[int],
    *,
    capture: bool,
) -> subprocess.Popen[bytes]:
    """vfork and exec of the launcher: about a millisecond of the event loop's time."""
    _LET_GO[:] = [child for child in _LET_GO if child.poll() is None]
    pipe = subprocess.PIPE if capture else subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _LAUNCHER, json.dumps(order)],
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        env=variables,
        pass_fds=descriptors,
        bufsize=0,
    )


def _make_cgroup(place: RunPlace | None, run_id: str, name: str) -> str:
    if place is None:
        return ""
    try:
        return place.make(run_id)
    except OSError as problem:
        raise FailedError(f"{name}: no cgroup can be made: {problem.strerror}") from problem


async def _launched(told: int) -> dict[str, str] | None:
    """Wait until the launcher has become the command (None) or said why not; closes `told`."""
    loop = asyncio.get_running_loop()
    os.set_blocking(told, False)
    done: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        if not done.done():
            done.set_result(os.read(told, 65536))

    loop.add_reader(told, read)
    try:
        async with asyncio.timeout(LAUNCH_LIMIT_S):
            raw = await done
    finally:
        loop.remove_reader(told)
        os.close(told)
    if not raw:
        return None
    refusal: dict[str, str] = json.loads(raw)
    return refusal


async def run_to_end(
    command: Sequence[str],
    *,
    name: str,
    time_limit_s: float,
    place: RunPlace | None = None,
    cwd: str = "",
    env: Mapping[str, str] | None = None,
    user: str = "",
) -> tuple[Exit, tuple[OutputLine, ...]]:
    """Start a short command, wait for its end, return how it ended and what it said."""
    run = await start(
        command,
        name=name,
        place=place,
        cwd=cwd,
        env=env,
        user=user,
        time_limit_s=time_limit_s,
    )
    try:
        done = await run.wait()
    except asyncio.CancelledError:
        await run.kill()
        raise
    return done, run.lines


__all__ = ["Exit", "OutputLine", "Run", "Stream", "new_run_id", "run_to_end", "start"]
