"""What several keys or several files say together: rules between values, as lists of problems.

Pure: works on loaded models. Shapes and single values are the models' own business.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit

from hyperha.config.cluster import Cluster, Timing
from hyperha.config.expressions import condition_of
from hyperha.config.home import Home
from hyperha.config.module import Checker, ModuleConfig
from hyperha.core.conditions import resources_of
from hyperha.text import nearest

Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: the key's path in the file, what is wrong with which value, and the cure."""

    key: Key
    text: str
    fix: str = ""


_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){31}")


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
        elif not command or not PurePosixPath(command[0]).is_absolute():
            yield Problem(
                ("fence", node),
                f"{list(command)} is no command: the whole path of a program, then its arguments",
            )
    yield from _fence_rules(cluster)
    if cluster.ports.api == cluster.ports.peer:
        yield Problem(("ports", "peer"), f"port {cluster.ports.peer} is also the API's port")


def _fence_rules(cluster: Cluster) -> Iterator[Problem]:
    if not cluster.fence:
        return
    for node in cluster.nodes:
        if node not in cluster.fence:
            yield Problem(
                ("fence",),
                f"there is no command that switches {node} off: its peer could never go on alone",
                f'Add {node} = ["/path/of/command", "{node}"].',
            )
    if cluster.witness is not None:
        yield Problem(
            ("fence",),
            "a witness and commands that switch nodes off: only one of them can decide who goes on",
            "Remove [fence] or [witness].",
        )


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
        if parts.scheme != "https" or not host:
            yield Problem(
                ("witness", "url"),
                f"a lease witness needs a URL like https://witness:9012, not {witness.url!r}",
            )
        else:
            hosts.append(host)
        if not _FINGERPRINT.fullmatch(witness.fingerprint):
            yield Problem(
                ("witness", "fingerprint"),
                f"a lease witness is known by its fingerprint, not {witness.fingerprint!r}",
                "`hyperha witness run` shows it where the witness runs: 32 pairs of digits.",
            )
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
    yield from _failover_rules(module, sorted(resources))
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


def _failover_rules(module: ModuleConfig, resources: Sequence[str]) -> Iterator[Problem]:
    names: set[str] = set()
    for index, rule in enumerate(module.rule):
        if rule.name in names:
            yield Problem(("rule", index, "name"), f"two rules are called {rule.name!r}")
        names.add(rule.name)
        for name in resources_of(condition_of(rule.when)):
            if name not in resources:
                guess = nearest(name, list(resources))
                known = ", ".join(resources) or "none"
                yield Problem(
                    ("rule", index, "when"),
                    f"no checker of this module is called {name!r}",
                    f"Did you mean {guess!r}?" if guess else f"Its checkers: {known}.",
                )


_NEEDS: dict[str, tuple[str, str]] = {
    "custom": ("command", "a command"),
    "tcp": ("port", "a port"),
    "process": ("process", "the name of a process"),
    "ping": ("host", "a host"),
    "interface": ("interface", "the name of a network interface"),
    "ip": ("address", "an address"),
    "service": ("service", "the name of a service"),
    "module": ("module", "the name of another module"),
}
"""The key that a kind of checker cannot do without."""


def _checker_rules(index: int, checker: Checker) -> Iterator[Problem]:
    key, what = _NEEDS.get(checker.kind, ("kind", ""))
    if not getattr(checker, key) or key not in checker.model_fields_set:
        yield Problem(("checker", index), f"{checker.resource} needs {what}: {key} = ...")
    for other, _ in _NEEDS.values():
        given = other in checker.model_fields_set
        if given and other != key and not (other == "host" and checker.kind == "tcp"):
            yield Problem(
                ("checker", index, other), f"a checker of kind {checker.kind!r} has no {other}"
            )
    holds = checker.action in ("wait", "none")
    if checker.when == "pre" and not holds:
        yield Problem(
            ("checker", index, "action"),
            f"{checker.action!r}: what is looked at before the start can only make the module wait",
            'Use action = "wait" or "none", or another value of when.',
        )


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
        yield from _named_modules(module, [one.name for one in modules])
    yield from _circles(modules)
    yield from _overlaps(modules, cluster)


def _named_modules(module: ModuleConfig, names: Sequence[str]) -> Iterator[tuple[str, Problem]]:
    named: list[tuple[Key, str]] = [
        (("checker", index, "module"), checker.module)
        for index, checker in enumerate(module.checker)
        if checker.module is not None
    ]
    named += [(("start_after",), other) for other in module.start_after]
    for key, other in named:
        if other == module.name:
            yield module.name, Problem(key, f"{module.name} cannot wait for itself")
        elif other not in names:
            guess = nearest(other, list(names))
            fix = f"Did you mean {guess!r}?" if guess else f"Known: {sorted(names)}."
            yield module.name, Problem(key, f"there is no module {other!r}", fix)


def _circles(modules: Sequence[ModuleConfig]) -> Iterator[tuple[str, Problem]]:
    """Modules that start after each other."""
    after = {module.name: module.start_after for module in modules}
    for name in after:
        way = [name]
        while following := [other for other in after.get(way[-1], ()) if other in after]:
            nearer = name if name in following else following[0]
            way.append(nearer)
            if nearer == name:
                text = f"{' starts after '.join(way)}: nobody could begin"
                yield name, Problem(("start_after",), text, "Remove one of them.")
                return
            if way.count(nearer) > 1:
                break


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
