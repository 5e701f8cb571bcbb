"""The process driver: the "VM" is any command, run in the replicated folder.

driver_options: command (list or text), environment, user, settle_s, heartbeat = {command = [...]}
or {tcp = "host:port"} or {unix = "socket relative to the folder"}, each with timeout_s.
On a unix socket the service must answer: it says something, or closes when we have closed our
half. To be connected proves nothing, the kernel does that for a process that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hyperha.errors import ConfigError, FailedError, HyperhaError
from hyperha.spawn.run import OutputLine, Run, new_run_id, run_to_end, start
from hyperha.spawn.tree import ProcessTree, RunPlace
from hyperha.text import clean, nearest, shorten
from hyperha.threads import in_own_thread
from hyperha.vm.port import Beat, Observation, Reason, StopMode, VmSpec, VmState

_KNOWN = ("command", "environment", "user", "settle_s", "heartbeat")
_HEARTBEATS = ("command", "tcp", "unix")
_UNIX_PROBE = (
    "import socket,sys\n"
    "with socket.socket(socket.AF_UNIX) as s:\n"
    "    s.settimeout(float(sys.argv[2]))\n"
    "    try:\n"
    "        s.connect(sys.argv[1])\n"
    "        s.shutdown(socket.SHUT_WR)\n"
    "        s.recv(1)\n"
    "    except ConnectionResetError: pass\n"
    "    except TimeoutError: sys.exit('connected, but nobody answers')\n"
    "    except OSError as e: sys.exit(str(e))\n"
)


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """driver_options of a process module, checked."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    settle_s: float = 0.2
    """How long the command must live before the start counts as done."""
    heartbeat: tuple[str, Any] | None = None
    heartbeat_timeout_s: float = 2.0


def process_options(options: Mapping[str, Any]) -> ProcessOptions:
    """The options as a value; ConfigError names the key that is wrong and what it should be."""
    for key in options:
        if key not in _KNOWN:
            guess = nearest(key, list(_KNOWN))
            raise ConfigError(
                f"driver_options.{clean(key)}: unknown key",
                f"Did you mean {guess!r}?" if guess else f"Known here: {', '.join(_KNOWN)}.",
            )
    environment = options.get("environment", {})
    if not isinstance(environment, dict) or not all(
        isinstance(value, str) for value in environment.values()
    ):
        raise ConfigError("driver_options.environment: must be a table of texts")
    user = options.get("user", "")
    if not isinstance(user, str):
        raise ConfigError(f"driver_options.user: {user!r} is not a text")
    kind, timeout_s = _heartbeat(options.get("heartbeat"))
    return ProcessOptions(
        command=_command("driver_options.command", options.get("command")),
        environment=environment,
        user=user,
        settle_s=_seconds("driver_options.settle_s", options.get("settle_s", 0.2)),
        heartbeat=kind,
        heartbeat_timeout_s=timeout_s,
    )


def _command(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            parts = shlex.split(value)
        except ValueError as problem:
            raise ConfigError(f"{key}: {value!r}: {problem}") from problem
    elif isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        parts = list(value)
    else:
        raise ConfigError(f"{key}: {value!r} is neither a text nor a list of texts")
    if not parts:
        raise ConfigError(f"{key}: the command is empty")
    return tuple(parts)


def _seconds(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600:
        raise ConfigError(f"{key}: {value!r} is not a number of seconds from 0 to 3600")
    return float(value)


def _heartbeat(table: Any) -> tuple[tuple[str, Any] | None, float]:
    if table is None:
        return None, 2.0
    key = "driver_options.heartbeat"
    if not isinstance(table, dict):
        raise ConfigError(f"{key}: {table!r} is not a table like {{ tcp = '127.0.0.1:80' }}")
    kinds = [kind for kind in _HEARTBEATS if kind in table]
    unknown = set(table) - {*_HEARTBEATS, "timeout_s"}
    if len(kinds) != 1 or unknown:
        raise ConfigError(
            f"{key}: needs exactly one of {', '.join(_HEARTBEATS)} (and timeout_s), "
            f"it has {sorted(table)}"
        )
    kind, value = kinds[0], table[kinds[0]]
    timeout_s = _seconds(f"{key}.timeout_s", table.get("timeout_s", 2.0))
    if kind == "command":
        return (kind, _command(f"{key}.command", value)), timeout_s
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key}.{kind}: {value!r} is not a text")
    if kind == "tcp":
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"{key}.tcp: {value!r} is not host:port")
        return (kind, (host.strip("[]"), int(port))), timeout_s
    if value.startswith("/") or ".." in value.split("/"):
        raise ConfigError(f"{key}.unix: {value!r} is not a path inside the folder")
    return (kind, value), timeout_s


class ProcessDriver:
    """Runs the command of one module; see `port.Driver` for what the methods promise.

    `on_exit(run, text)` is called when the command ends without having been asked to; `on_line`
    for each line it writes.
    """

    def __init__(
        self,
        spec: VmSpec,
        *,
        place: RunPlace | None,
        on_exit: Callable[[int, str], None],
        on_line: Callable[[OutputLine], None] | None = None,
    ) -> None:
        self._spec = spec
        self._options = process_options(spec.options)
        self._place = place
        self._on_exit = on_exit
        self._on_line = on_line
        self._planned: tuple[int, str] = (-1, "")
        self._run: Run | None = None
        self._number = -1
        self._asked = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The main process while it runs."""
        return self._run.pid if self._run is not None and self._run.running else None

    def plan(self, run: int) -> tuple[ProcessTree, ...]:
        """The processes that `start(run)` will make."""
        if self._planned[0] != run:
            self._planned = (run, new_run_id(f"{self._spec.module}-run{run}"))
        run_id = self._planned[1]
        return (self._place.tree(run_id) if self._place else ProcessTree(run_id),)

    async def preflight(self) -> tuple[Reason, ...]:
        """Is the command there, does the user exist?"""
        reasons = []
        program = self._options.command[0]
        inside = not os.path.isabs(program) and "/" in program
        if not inside and not program.startswith(self._spec.folder.rstrip("/") + "/"):
            # A program in the folder cannot be looked at from here: the mount may hang (T1).
            path = self._options.environment.get("PATH")
            if shutil.which(program, path=path) is None:
                reasons.append(
                    Reason(
                        "command-missing",
                        f"{self._spec.module}: the command {program} does not exist on "
                        f"{self._spec.node} or may not be executed",
                        "Install it there, or correct driver_options.command.",
                    )
                )
        if self._options.user and not _user_exists(self._options.user):
            reasons.append(
                Reason(
                    "user-missing",
                    f"{self._spec.module}: there is no user {self._options.user} on "
                    f"{self._spec.node}",
                    "Create the user with the same number on both nodes.",
                )
            )
        return tuple(reasons)

    async def prepare(self) -> None:
        """Nothing has to exist beside the folder."""

    async def start(self, run: int) -> None:
        """Start the command in the folder; it must live for `settle_s`."""
        if self._run is not None and not await self.kill():
            raise FailedError(f"{self._spec.module}: processes of the last run are still there")
        self.plan(run)
        started = await start(
            self._options.command,
            name=self._spec.module,
            place=self._place,
            cwd=self._spec.folder,
            env={**self._spec.environment("PRIM", run), **self._options.environment},
            user=self._options.user,
            output=self._on_line,
            run_id=self._planned[1],
        )
        self._run, self._number, self._asked = started, run, False
        try:
            async with asyncio.timeout(self._options.settle_s):
                done = await started.wait()
        except TimeoutError:
            self._watch = asyncio.get_running_loop().create_task(self._await_end(started, run))
            return
        except asyncio.CancelledError:
            await self.kill()
            raise
        self._run = None
        said = started.lines[-1].text if started.lines else "it wrote nothing"
        raise FailedError(
            f"{self._spec.module}: the command ended at once: {done}; {shorten(said, 200)}"
        )

    async def _await_end(self, started: Run, run: int) -> None:
        done = await started.wait()
        if not self._asked and self._run is started:
            self._on_exit(run, f"{self._spec.module}: the command ended by itself: {done}")

    async def stop(self, mode: StopMode, timeout_s: float) -> str:
        """SIGTERM and patience, or SIGKILL at once; a command cannot be saved, it is stopped."""
        started, self._asked = self._run, True
        if started is None:
            return "it was not running"
        if mode is not StopMode.OFF and started.running:
            started.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await started.wait()
        forced = started.running
        if not await self.kill():
            left = await in_own_thread("search /proc", started.tree.members)
            raise FailedError(
                f"{self._spec.module}: processes {left} do not end",
                "A write of theirs may be held; they end when the data path is fenced.",
            )
        return f"{await started.wait()}" + (", by force" if forced else "")

    async def kill(self) -> bool:
        """SIGKILL to everything of the run."""
        self._asked = True
        if self._run is None:
            return True
        if not await self._run.kill():
            return False
        if self._watch is not None:
            await self._watch
            self._watch = None
        return True

    async def heartbeat(self) -> Beat:
        """As configured; without a heartbeat the living process is the answer."""
        if self.pid is None:
            return Beat(False, "the command does not run")
        if self._options.heartbeat is None:
            return Beat(True)
        kind, value = self._options.heartbeat
        limit_s = self._options.heartbeat_timeout_s
        if kind == "tcp":
            return await tcp_beat(value[0], value[1], limit_s)
        command = list(value)
        if kind == "unix":
            path = f"{self._spec.folder}/{value}"
            command = [sys.executable, "-I", "-S", "-c", _UNIX_PROBE, path, str(limit_s)]
        return await self._ask(command, limit_s)

    async def _ask(self, command: list[str], limit_s: float) -> Beat:
        try:
            done, lines = await run_to_end(
                command,
                name=f"{self._spec.module}-heartbeat",
                time_limit_s=limit_s,
                place=self._place,
                cwd=self._spec.folder,
                env={
                    **self._spec.environment("PRIM", self._number),
                    **self._options.environment,
                },
            )
        except HyperhaError as problem:
            return Beat(False, problem.text)
        said = shorten(lines[-1].text, 200) if lines else ""
        return Beat(done.ok, "" if done.ok else f"{done} {said}".strip())

    async def observe(self) -> Observation:
        """The process table says."""
        if self.pid is not None:
            return Observation(VmState.RUNNING, "process")
        try:
            left = self._run.tree.members() if self._run is not None else []
        except OSError as problem:
            return Observation(VmState.UNKNOWN, "process", f"nobody can look: {problem.strerror}")
        if left:
            return Observation(VmState.UNKNOWN, "process", f"processes {left} are left")
        return Observation(VmState.ABSENT, "process")

    async def forget(self) -> None:
        """A command is registered nowhere."""
        if not await self.kill():
            raise FailedError(f"{self._spec.module}: processes of the last run are still there")
        self._run = None


async def tcp_beat(host: str, port: int, timeout_s: float) -> Beat:
    """Does something accept connections there?"""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return Beat(False, f"{host} port {port} did not answer for {timeout_s:g} s")
    except OSError as problem:
        return Beat(
            False, f"{host} port {port}: {os.strerror(problem.errno) if problem.errno else problem}"
        )
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Beat(True)


def _user_exists(name: str) -> bool:
    try:
        import pwd
    except ImportError:
        return False
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
