"""First set-up of a cluster: configuration, authority, node certificates and cluster key.

Writes the files of one or both nodes; checks everything before the first byte, and overwrites
nothing. The authority's key stays on the first node.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from hyperha.config import Home, Timing, Witness, parse_cluster
from hyperha.errors import RefusedError, UsageError
from hyperha.security.authority import Authority, fingerprint
from hyperha.security.cluster_key import new_cluster_key, write_new, write_secret


@dataclass(frozen=True, slots=True)
class LanPlan:
    """One network of the new cluster."""

    name: str
    addresses: Mapping[str, str]
    encryption: str = "tls"


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What `cluster init` was told; unset parts take the defaults of cluster.toml."""

    cluster: str
    nodes: tuple[str, str]
    lans: tuple[LanPlan, ...]
    isolation: str = "run"
    probe: tuple[str, ...] = ()
    timing: Timing | None = None
    witness: Witness | None = None
    api_port: int = 9010
    peer_port: int = 9011


@dataclass(frozen=True, slots=True)
class NewCluster:
    """What was made: the cluster's id and the fingerprint that people compare."""

    cluster_id: str
    fingerprint: str


def init_cluster(homes: Mapping[str, Home], plan: ClusterPlan) -> NewCluster:
    """Write configuration and secrets of the nodes in `homes` (one or both of the plan's nodes).

    Raises ConfigError when the plan does not make a valid cluster.toml, RefusedError when a
    cluster is set up in one of the homes already; nothing has been written then.
    """
    cluster_id = secrets.token_hex(16)
    text = cluster_text(plan, cluster_id)
    cluster = parse_cluster(text, "the new cluster.toml")
    strangers = set(homes) - set(cluster.nodes)
    if strangers or not homes:
        raise UsageError(
            f"there are no homes of the nodes {list(cluster.nodes)}: {sorted(strangers)}"
        )
    for home in homes.values():
        _require_empty(home)
    authority = Authority.create(plan.cluster, cluster_id)
    key = new_cluster_key()
    for node in cluster.nodes:
        if node not in homes:
            continue
        home = homes[node]
        home.create()
        issued = authority.issue(node, [lan.addresses[node] for lan in cluster.lan])
        write_new(home.authority_certificate, authority.credentials.certificate)
        write_new(home.node_certificate, issued.certificate)
        write_secret(home.node_key, issued.key)
        write_secret(home.cluster_key, key)
        if node == plan.nodes[0]:
            write_secret(home.authority_key, authority.credentials.key)
        write_new(home.node_file, f"{node}\n".encode())
        write_new(home.cluster_file, text.encode())
    return NewCluster(cluster_id, fingerprint(authority.credentials.certificate))


def _require_empty(home: Home) -> None:
    for path in (
        home.cluster_file,
        home.node_file,
        home.cluster_key,
        home.authority_certificate,
        home.node_key,
        home.node_certificate,
        home.authority_key,
    ):
        if path.exists():
            raise RefusedError(
                f"{path} exists: a cluster is set up here already, nothing was changed",
                "Move the files of the old cluster away first if it is to be replaced.",
                code="exists",
            )


def cluster_text(plan: ClusterPlan, cluster_id: str) -> str:
    """The text of a new cluster.toml."""
    lines = [
        "# What both nodes agree on; change it with `hyperha config apply`, not by hand.",
        "schema = 1",
        f"cluster = {_quoted(plan.cluster)}",
        f"id = {_quoted(cluster_id)}",
        "version = 1",
        f"nodes = [{', '.join(map(_quoted, plan.nodes))}]",
    ]
    for lan in plan.lans:
        pairs = ", ".join(f"{_quoted(n)} = {_quoted(a)}" for n, a in lan.addresses.items())
        lines += ["", "[[lan]]", f"name = {_quoted(lan.name)}", f"addresses = {{ {pairs} }}"]
        if lan.encryption != "tls":
            lines.append(f"encryption = {_quoted(lan.encryption)}")
    timing = plan.timing or Timing()
    lines += ["", "[timing]"]
    lines += [f"{name} = {value}" for name, value in timing.model_dump().items()]
    lines += ["", "[arbitration]", f"isolation = {_quoted(plan.isolation)}"]
    if plan.probe:
        lines.append(f"probe = [{', '.join(map(_quoted, plan.probe))}]")
    if plan.witness is not None:
        lines += ["", "[witness]", f"kind = {_quoted(plan.witness.kind)}"]
        if plan.witness.addresses:
            lines.append(f"addresses = [{', '.join(map(_quoted, plan.witness.addresses))}]")
        if plan.witness.url:
            lines.append(f"url = {_quoted(plan.witness.url)}")
        lines.append(f"ttl_ms = {plan.witness.ttl_for(timing)}")
    lines += ["", "[ports]", f"api = {plan.api_port}", f"peer = {plan.peer_port}", ""]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(text, ensure_ascii=True)
