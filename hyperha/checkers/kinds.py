"""The kinds of checks: one question each, answered within a time limit. No state, no decisions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from hyperha import ping
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
    module: Callable[[str], Answer],
    place: RunPlace | None,
    environment: Callable[[], Mapping[str, str]],
    directory: str,
) -> Check:
    """The check that a checker's configuration describes.

    `vm` asks the driver, `module` tells of another module of the cluster; custom commands run in
    `directory` (never inside the mount, T1) with `environment` of the moment. Raises ConfigError
    where the configuration lacks what the kind needs.
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
    found = _of_this_node(checker, module)
    if found is None:
        raise ConfigError(f"checker {checker.resource}: a key of kind {checker.kind!r} is missing")
    return found


def _of_this_node(checker: Checker, module: Callable[[str], Answer]) -> Check | None:
    """What is looked up around the VM: networks, services, other modules."""
    timeout_s = float(checker.timeout_s)
    match checker.kind:
        case "ping":
            return lambda: _ping(checker.host, timeout_s)
        case "interface" if checker.interface:
            name = checker.interface
            return lambda: asyncio.to_thread(_cable, name)
        case "ip" if checker.address:
            address = checker.address
            return lambda: asyncio.to_thread(_address, address)
        case "service" if checker.service:
            service = checker.service
            return lambda: _service(service, timeout_s)
        case "module" if checker.module:
            other = checker.module

            async def look() -> Answer:
                return module(other)

            return look
    return None


async def _ping(host: str, timeout_s: float) -> Answer:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError as problem:
        return Answer(False, f"{host}: {problem.strerror}")
    # Less than the checker's own time, or its end would be told and not what was found.
    way = await ping.answers(str(found[0][4][0]), timeout_s * 0.8)
    return Answer(bool(way), f"{host} answers ({way})" if way else f"{host} does not answer")


def _cable(name: str) -> Answer:
    found = psutil.net_if_stats().get(name)
    if found is None:
        return Answer(False, f"there is no interface {name}")
    return Answer(found.isup, f"{name} is up" if found.isup else f"{name} is down or has no cable")


def _address(wanted: str) -> Answer:
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == wanted for one in addresses):
            return Answer(True, f"{wanted} is on {name}")
    return Answer(False, f"this node does not have the address {wanted}")


async def _service(name: str, timeout_s: float) -> Answer:
    if sys.platform == "win32":
        return await asyncio.to_thread(_windows_service, name)
    try:
        done, lines = await run_to_end(
            ["systemctl", "is-active", "--", name], name=f"service-{name}", time_limit_s=timeout_s
        )
    except HyperhaError as problem:
        return Answer(False, problem.text)
    said = shorten(lines[-1].text, 200) if lines else str(done)
    return Answer(done.ok, f"{name} is {said}")


def _windows_service(name: str) -> Answer:
    get = getattr(psutil, "win_service_get", None)
    if get is None:
        return Answer(False, "this system has no services")
    try:
        status = str(get(name).status())
    except psutil.Error as problem:
        return Answer(False, f"{name}: {problem}")
    return Answer(status == "running", f"{name} is {status}")


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
