"""What several keys or several files say together: rules between values, as lists of problems.

Pure: works on loaded models. Shapes and single values are the models' own business.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit

from hyperha.config.cluster import Cluster, Timing
from hyperha.config.home import Home
from hyperha.config.module import Checker, ModuleConfig
from hyperha.text import nearest

Key = tuple[str | int, ...]
SUPPORTED_CHECKERS = ("vm", "custom", "tcp", "process")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: the key's path in the file, what is wrong with which value, and the cure."""

    key: Key
    text: str
    fix: str = ""


def cluster_rules(cluster: Cluster) -> Iterator[Problem]:
    """Everything that cluster.toml says with more than one key."""
    if len(cluster.nodes) != 2 or len(set(cluster.nodes)) != 2:
        yield Problem(
            ("nodes",),
            f"a cluster has two nodes with different names, not {list(cluster.nodes)}",
        )
        return
    yield from _lan_rules(cluster)
    yield from _witness_rules(cluster)
    yield from timing_rules(cluster.timing, cluster.ttl_ms)
    for node, command in cluster.fence.items():
        if node not in cluster.nodes:
            yield Problem(("fence", node), f"{node!r} is no node of this cluster")
        elif not command:
            yield Problem(("fence", node), "the command is empty")
    if cluster.ports.api == cluster.ports.peer:
        yield Problem(("ports", "peer"), f"port {cluster.ports.peer} is also the API's port")


def _lan_rules(cluster: Cluster) -> Iterator[Problem]:
    if not cluster.lan:
        yield Problem(("lan",), "no LAN is given", "Add at least one [[lan]] table.")
    names = [lan.name for lan in cluster.lan]
    used: dict[str, str] = {}
    for index, lan in enumerate(cluster.lan):
        if lan.name in names[:index]:
            yield Problem(("lan", index, "name"), f"two LANs are called {lan.name!r}")
        if set(lan.addresses) != set(cluster.nodes):
            yield Problem(
                ("lan", index, "addresses"),
                f"LAN {lan.name!r} needs one address for each of {list(cluster.nodes)}, "
                f"it has {sorted(lan.addresses)}",
            )
            continue
        if len({ipaddress.ip_address(a).version for a in lan.addresses.values()}) > 1:
            yield Problem(
                ("lan", index, "addresses"), f"LAN {lan.name!r} mixes IPv4 and IPv6 addresses"
            )
        for node, address in lan.addresses.items():
            if address in used:
                yield Problem(
                    ("lan", index, "addresses"), f"address {address} is also {used[address]}"
                )
            used[address] = f"{node} on LAN {lan.name!r}"
    for index, name in enumerate(cluster.replication.lans):
        if name not in names:
            guess = nearest(name, names)
            yield Problem(
                ("replication", "lans"),
                f"there is no LAN {name!r}",
                f"Did you mean {guess!r}?" if guess else f"Known: {names}.",
            )
        elif name in cluster.replication.lans[:index]:
            yield Problem(("replication", "lans"), f"LAN {name!r} is named twice")


def _witness_rules(cluster: Cluster) -> Iterator[Problem]:
    witness = cluster.witness
    if witness is None:
        return
    if witness.kind == "ping" and not witness.addresses:
        yield Problem(("witness", "addresses"), "a ping witness needs at least one address")
    hosts = list(witness.addresses)
    if witness.kind == "lease":
        try:
            parts = urlsplit(witness.url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if parts.scheme not in ("https", "http") or not host:
            yield Problem(
                ("witness", "url"),
                f"a lease witness needs a URL like https://witness:9012, not {witness.url!r}",
            )
        else:
            hosts.append(host)
    for lan in cluster.lan:
        for node, address in lan.addresses.items():
            if address in hosts:
                yield Problem(
                    ("witness", "url" if witness.kind == "lease" else "addresses"),
                    f"the witness {address} is {node} itself: both would fail together (W11)",
                    "Name a machine that is neither of the nodes.",
                )


def timing_rules(timing: Timing, ttl_ms: int | None) -> Iterator[Problem]:
    """L3': the primary asks early, releases late, and the secondary acts last."""
    heartbeat, suspect = timing.heartbeat_ms, timing.suspect_ms
    stall, takeover = timing.stall_limit_ms, timing.takeover_wait_ms
    if heartbeat * 3 > suspect:
        yield Problem(
            ("timing", "suspect_ms"),
            f"L3': three heartbeats of {heartbeat} ms do not fit into suspect_ms = {suspect}",
            f"suspect_ms = {heartbeat * 3} or heartbeat_ms = {max(1, suspect // 3)} would fit.",
        )
    if suspect >= stall:
        yield Problem(
            ("timing", "stall_limit_ms"),
            f"L3': stall_limit_ms = {stall} must be above suspect_ms = {suspect}",
            f"stall_limit_ms = {suspect * 2} would fit.",
        )
    margin = timing.takeover_margin_ms
    if stall > takeover - margin:
        yield Problem(
            ("timing", "takeover_wait_ms"),
            f"L3': stall_limit_ms {stall} + margin {margin} is more than takeover_wait_ms = "
            f"{takeover}: the secondary would act before the primary has released",
            f"takeover_wait_ms = {_takeover_for(stall, 500)} would fit.",
        )
    if timing.pause_after_ms <= stall:
        yield Problem(
            ("timing", "pause_after_ms"),
            f"M7: pause_after_ms = {timing.pause_after_ms} must be above stall_limit_ms = {stall}: "
            "the guest would be paused before arbitration can answer",
            f"pause_after_ms = {stall + timing.scaled(2000)} would fit.",
        )
    if ttl_ms is None:
        return
    needed = suspect + timing.ask_timeout_ms + timing.ask_margin_ms
    if needed > ttl_ms:
        yield Problem(
            ("witness", "ttl_ms"),
            f"L3': suspect_ms {suspect} + time to ask {timing.ask_timeout_ms} + margin "
            f"{timing.ask_margin_ms} = {needed} is more than ttl_ms = {ttl_ms}",
            f"ttl_ms = {needed} would fit.",
        )
    needed = ttl_ms + timing.fence_ms + margin
    if needed > takeover:
        yield Problem(
            ("timing", "takeover_wait_ms"),
            f"L3': ttl_ms {ttl_ms} + time to fence {timing.fence_ms} + margin {margin} = {needed} "
            f"is more than takeover_wait_ms = {takeover}",
            f"takeover_wait_ms = {_takeover_for(ttl_ms, 750)} would fit.",
        )


def _takeover_for(span_ms: int, full_margin_ms: int) -> int:
    """The smallest takeover_wait (in steps of 50 ms) that leaves the scaled margin after a span."""
    candidate = span_ms
    while span_ms + Timing(takeover_wait_ms=candidate).scaled(full_margin_ms) > candidate:
        candidate += 50
    return candidate


def module_rules(module: ModuleConfig, cluster: Cluster | None = None) -> Iterator[Problem]:
    """Everything that one module file says with more than one key, and against the cluster."""
    if module.folder_on and module.driver == "hyperv":
        yield Problem(
            ("folder_on",), "folder_on cannot be used with hyperv: the path is part of the VM"
        )
    resources: set[str] = set()
    for index, checker in enumerate(module.checker):
        if checker.resource in resources:
            yield Problem(("checker", index), f"two checkers are called {checker.resource!r}")
        resources.add(checker.resource)
        yield from _checker_rules(index, checker)
    if module.driver == "process":
        yield from _process_rules(module)
    if cluster is None:
        return
    known = ["none", "last", *cluster.nodes]
    if module.default_primary not in known:
        guess = nearest(module.default_primary, known)
        yield Problem(
            ("default_primary",),
            f"{module.default_primary!r} is none of {known}",
            f"Did you mean {guess!r}?" if guess else "",
        )
    for node in module.folder_on:
        if node not in cluster.nodes:
            yield Problem(("folder_on",), f"{node!r} is no node of this cluster")


def _checker_rules(index: int, checker: Checker) -> Iterator[Problem]:
    if checker.kind not in SUPPORTED_CHECKERS:
        yield Problem(
            ("checker", index, "kind"),
            f"checkers of kind {checker.kind!r} are not supported by this version",
            f"Use one of {list(SUPPORTED_CHECKERS)}; a custom checker runs any command.",
        )
    elif checker.kind == "custom" and not checker.command:
        yield Problem(("checker", index), f"{checker.resource} needs a command")
    elif checker.kind == "tcp" and checker.port is None:
        yield Problem(("checker", index), f"{checker.resource} needs a port")
    elif checker.kind == "process" and not checker.process:
        yield Problem(("checker", index), f"{checker.resource} needs the name of a process")


def _process_rules(module: ModuleConfig) -> Iterator[Problem]:
    command = module.driver_options.get("command")
    whole = isinstance(command, str) or (
        isinstance(command, list) and all(isinstance(part, str) for part in command)
    )
    if not command or not whole:
        yield Problem(
            ("driver_options",),
            f"the process driver needs command = a text or a list of texts, not {command!r}",
        )


def fleet_rules(modules: Sequence[ModuleConfig], cluster: Cluster) -> Iterator[tuple[str, Problem]]:
    """What the module files say together; each problem with the name of the module to change."""
    numbers: dict[int, str] = {}
    for module in modules:
        if module.number in numbers:
            yield (
                module.name,
                Problem(
                    ("number",), f"number {module.number} is also {numbers[module.number]}'s number"
                ),
            )
        numbers[module.number] = module.name
    yield from _overlaps(modules, cluster)


def _overlaps(modules: Sequence[ModuleConfig], cluster: Cluster) -> Iterator[tuple[str, Problem]]:
    for index, module in enumerate(modules):
        for other in modules[:index]:
            for node in cluster.nodes:
                if _nested(module.folder_of(node), other.folder_of(node)):
                    yield (
                        module.name,
                        Problem(
                            ("folder",),
                            f"folder {module.folder_of(node)} overlaps with "
                            f"{other.folder_of(node)} of {other.name} on {node}",
                        ),
                    )
                    break


def place_rules(module: ModuleConfig, node: str, home: Home) -> Iterator[Problem]:
    """A node does not replicate its own files: keys and records are each node's own."""
    folder = module.folder_of(node)
    for name in ("config", "state", "log", "run"):
        directory = str(getattr(home, name))
        if _nested(folder, directory):
            yield Problem(
                ("folder_on" if node in module.folder_on else "folder",),
                f"folder {folder} overlaps with the {name} directory {directory} of {node} itself",
                "Name a folder that holds nothing but the module's own files.",
            )


def _nested(first: str, second: str) -> bool:
    kind = PureWindowsPath if first[1:2] == ":" else PurePosixPath
    one, two = kind(first), kind(second)
    return one.is_relative_to(two) or two.is_relative_to(one)
