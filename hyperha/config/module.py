"""The model of modules/NAME.toml: one protected VM, its folder, driver, checkers and settings.

Shapes and single values only; what several keys or files say together is checked in `loading`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from hyperha.config.cluster import AddressText, NodeNameText, PortNumber, Positive, Section
from hyperha.config.expressions import condition_of
from hyperha.domain import MODULE_NAME_PATTERN

Step = Literal["prestart", "start_prim", "stop_prim", "poststop", "transition"]
"""The steps that operators' scripts may surround or replace."""

_ABSOLUTE = re.compile(r"/|[A-Za-z]:[\\/]")


def _module_name(value: str) -> str:
    if not MODULE_NAME_PATTERN.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a module name: up to 32 letters, digits and -, "
            "the first not a hyphen"
        )
    return value


def _folder(value: str) -> str:
    if not _ABSOLUTE.match(value):
        raise ValueError(f"{value!r} is not an absolute path")
    parts = re.split(r"[\\/]", value) if value[1:2] == ":" else value.split("/")
    if ".." in parts or "\0" in value:
        raise ValueError(f"{value!r} may not contain '..' or NUL")
    trimmed = value.rstrip("/")
    if not trimmed or re.fullmatch(r"[A-Za-z]:[\\/]?", value):
        raise ValueError("the root of a file system cannot be a module's folder")
    return trimmed


def _zone(value: int) -> int:
    if value != 1024:
        raise ValueError(f"{value} is not supported: zones are 1024 KiB")
    return value


ModuleNameText = Annotated[StrictStr, AfterValidator(_module_name)]
Folder = Annotated[StrictStr, AfterValidator(_folder)]
NotNegative = Annotated[StrictInt, Field(ge=0)]
Seconds = Annotated[StrictInt | StrictFloat, Field(gt=0, le=86400)]


class Stop(Section):
    """How the VM is stopped, by default and when force is asked for."""

    normal: Literal["stop", "save", "off"] = "stop"
    force: Literal["stop", "save", "off"] = "off"
    timeout_s: Seconds = 300


class ModuleReplication(Section):
    """How this module's folder is replicated."""

    durability: Literal["normal", "strict"] = "normal"
    zone_kib: Annotated[StrictInt, AfterValidator(_zone)] = 1024
    resync_rate_mib_s: NotNegative = 0


class SafetyCopy(Section):
    """What is kept before a resync overwrites a copy (R15, N3)."""

    mode: Literal["required", "best_effort", "off"] = "best_effort"
    keep_days: NotNegative = 7
    max_gib: NotNegative = 0


class RestartBudget(Section):
    """How many automatic recoveries are made in a sliding window before the peer takes over."""

    count: NotNegative = 3
    window_h: Positive = 24


class Checker(Section):
    """One check of the module; `KIND.NAME` is the name of its resource.

    `command` is for kind custom, `host` for ping, `host` and `port` for tcp, `process` (name of the
    executable or a part of the command line) for process, `interface` (its cable), `address` (of
    this node) for ip, `service` (of the system) and `module` (another one of this cluster, which
    runs ready on either node) for the kinds of these names.
    """

    name: ModuleNameText
    kind: Literal["vm", "custom", "tcp", "ping", "interface", "ip", "process", "service", "module"]
    when: Literal["pre", "prim", "second", "both"] = "prim"
    action: Literal["restart", "stopstart", "stop", "wait", "none"] = "restart"
    interval_s: Seconds = 5
    timeout_s: Seconds = 5
    failures: Positive = 2
    grace_s: Annotated[StrictInt | StrictFloat, Field(ge=0, le=86400)] = 120
    command: StrictStr | tuple[StrictStr, ...] | None = None
    host: StrictStr = "127.0.0.1"
    port: PortNumber | None = None
    process: StrictStr | None = None
    interface: StrictStr | None = None
    address: AddressText | None = None
    service: StrictStr | None = None
    module: ModuleNameText | None = None

    @property
    def holds(self) -> bool:
        """Whether the module waits while the resource is not up."""
        return self.when == "pre" and self.action == "wait"

    @property
    def resource(self) -> str:
        """The name under which its verdict is shown."""
        return f"{self.kind}.{self.name}"


def _condition(value: str) -> str:
    condition_of(value)
    return value


class Rule(Section):
    """What a combination of the checkers' resources on both nodes leads to.

    `when` is a condition such as `ping.gateway is down and remote.ping.gateway is up`.
    """

    name: ModuleNameText
    when: Annotated[StrictStr, AfterValidator(_condition)]
    action: Literal["swap", "restart", "stopstart", "stop", "wait", "none"] = "none"
    stable_s: Seconds = 3


class Scripts(Section):
    """Which of the driver's steps the operators' scripts replace, and their time limit."""

    replace: tuple[
        Literal["prestart", "start_prim", "stop_prim", "poststop", "transition"], ...
    ] = ()
    timeout_s: Seconds = 300


class ModuleConfig(Section):
    """modules/NAME.toml as a value."""

    schema_number: Literal[1] = Field(alias="schema")
    name: ModuleNameText
    number: Annotated[StrictInt, Field(ge=1, le=32)]
    folder: Folder
    folder_on: dict[NodeNameText, Folder] = Field(default_factory=dict)
    driver: Literal["hyperv", "qemu", "libvirt", "process"]
    boot: Literal["on", "off", "auto"] = "on"
    boot_delay_s: NotNegative = 0
    failover: StrictBool = True
    default_primary: StrictStr = "none"
    priority: NotNegative = 100
    start_after: tuple[ModuleNameText, ...] = ()
    driver_options: dict[str, Any] = Field(default_factory=dict)
    stop: Stop = Stop()
    replication: ModuleReplication = ModuleReplication()
    safety_copy: SafetyCopy = SafetyCopy()
    restart_budget: RestartBudget = RestartBudget()
    checker: tuple[Checker, ...] = ()
    rule: tuple[Rule, ...] = ()
    scripts: Scripts = Scripts()

    def folder_of(self, node: str) -> str:
        """Where the replicated folder is on `node`."""
        return self.folder_on.get(node, self.folder)
