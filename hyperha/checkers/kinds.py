"""The kinds of checks: one question each, answered within a time limit. No state, no decisions."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from hyperha.config import Checker
from hyperha.errors import ConfigError, HyperhaError
from hyperha.spawn.run import run_to_end
from hyperha.spawn.tree import RunPlace
from hyperha.text import shorten
from hyperha.threads import OwnThread


@dataclass(frozen=True, slots=True)
class Answer:
    """Up or down, and what was seen."""

    ok: bool
    text: str = ""


Check = Callable[[], Awaitable[Answer]]


def make_check(
    checker: Checker,
    *,
    vm: Check,
    place: RunPlace | None,
    environment: Callable[[], Mapping[str, str]],
    directory: str,
) -> Check:
    """The check that a checker's configuration describes.

    `vm` asks the driver; custom commands run in `directory` (never inside the mount, T1) with
    `environment` of the moment. Raises ConfigError for kinds that this version does not have.
    """
    if checker.kind == "vm":
        return vm
    if checker.kind == "custom" and checker.command:
        given = checker.command
        command = ["/bin/sh", "-c", given] if isinstance(given, str) else list(given)

        async def custom() -> Answer:
            return await _command(checker, command, place, environment(), directory)

        return custom
    if checker.kind == "tcp" and checker.port is not None:
        host, port = checker.host, checker.port

        async def tcp() -> Answer:
            return await _tcp(host, port)

        return tcp
    if checker.kind == "process" and checker.process:
        wanted = checker.process

        # Reading /proc of a process that hangs in the kernel may wait: one thread waits, not each.
        thread = OwnThread(f"checker {checker.name}")

        async def process() -> Answer:
            return await thread.do(_process, wanted)

        return process
    raise ConfigError(
        f"checker {checker.resource}: kind {checker.kind!r} is not supported or lacks its keys"
    )


async def _command(
    checker: Checker,
    command: list[str],
    place: RunPlace | None,
    environment: Mapping[str, str],
    directory: str,
) -> Answer:
    try:
        done, lines = await run_to_end(
            command,
            name=f"checker-{checker.name}",
            time_limit_s=float(checker.timeout_s),
            place=place,
            cwd=directory,
            env=environment,
        )
    except HyperhaError as problem:
        return Answer(False, problem.text)
    said = shorten(lines[-1].text, 200) if lines else ""
    return Answer(done.ok, said if done.ok else f"{done} {said}".strip())


async def _tcp(host: str, port: int) -> Answer:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as problem:
        return Answer(
            False, f"{host} port {port}: {os.strerror(problem.errno) if problem.errno else problem}"
        )
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Answer(True)


def _process(wanted: str) -> Answer:
    for process in psutil.process_iter(["pid", "name", "cmdline", "status"]):
        facts: dict[str, Any] = process.info
        if facts["status"] == psutil.STATUS_ZOMBIE:
            continue
        line = " ".join(facts["cmdline"] or ())
        if facts["name"] == wanted or wanted in line:
            return Answer(True, f"process {facts['pid']}")
    return Answer(False, f"no process {wanted!r}")
