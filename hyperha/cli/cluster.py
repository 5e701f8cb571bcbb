"""`hyperha cluster`: set up a cluster, look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperha.cli.context import options, show_json, the_home
from hyperha.config import Home, load_all, load_cluster
from hyperha.errors import UsageError
from hyperha.security.authority import fingerprint
from hyperha.security.initialise import ClusterPlan, LanPlan, init_cluster

app = typer.Typer(no_args_is_help=True, help="Set up the cluster, look at it.")


def lan_plan(text: str, nodes: tuple[str, str]) -> LanPlan:
    """`prod=10.0.0.1,10.0.0.2` or `repl=10.9.0.1,10.9.0.2,none` as a network."""
    name, equals, rest = text.partition("=")
    parts = rest.split(",")
    if not equals or len(parts) not in (2, 3):
        raise UsageError(
            f"--lan {text!r} is not understood",
            "Write NAME=ADDRESS1,ADDRESS2 in the order of the nodes; add ,none for no encryption.",
        )
    encryption = parts[2] if len(parts) == 3 else "tls"
    return LanPlan(name, dict(zip(nodes, parts[:2], strict=True)), encryption)


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the cluster.")],
    nodes: Annotated[str, typer.Option(help="Both nodes: node1,node2.")],
    lan: Annotated[list[str], typer.Option(help="NAME=ADDRESS1,ADDRESS2[,none]; repeatable.")],
    second: Annotated[
        Path, typer.Option(help="Where the second node's home is written, to be carried there.")
    ],
    isolation: Annotated[
        str, typer.Option(help="When the peer is silent everywhere: primary, run or hold.")
    ] = "primary",
    api_port: Annotated[int, typer.Option()] = 9010,
    peer_port: Annotated[int, typer.Option()] = 9011,
) -> None:
    """Make the authority, certificates, cluster key and configuration of both nodes.

    The first node's files go to this home; the second node's are written to --second. Carry that
    directory to the other server (it holds secrets) and use it there as its home.
    """
    pair = tuple(part.strip() for part in nodes.split(","))
    if len(pair) != 2:
        raise UsageError(f"--nodes {nodes!r} does not name two nodes", "Write node1,node2.")
    both = (pair[0], pair[1])
    plan = ClusterPlan(
        cluster=name,
        nodes=both,
        lans=tuple(lan_plan(one, both) for one in lan),
        isolation=isolation,
        api_port=api_port,
        peer_port=peer_port,
    )
    home = the_home()
    made = init_cluster({both[0]: home, both[1]: Home.at(second)}, plan)
    print(f"cluster {name} is set up; authority {made.fingerprint}")
    print(f"{both[0]}: {home.config}")
    print(f"{both[1]}: {second}: carry it to that server, for example with")
    print(f"  tar -C {second} -cpf - . | ssh {both[1]} 'tar -C /etc/hyperha-home -xpf -'")
    print("Then on each node: hyperha module add ..., hyperha node run")


@app.command()
def check() -> None:
    """Check this home's whole configuration without applying anything."""
    found = load_all(the_home())
    modules = ", ".join(found.modules) or "none"
    print(f"{found.node} of cluster {found.cluster.cluster}: configuration is right")
    print(f"modules: {modules}")


@app.command()
def show() -> None:
    """The cluster as this home has it."""
    home = the_home()
    cluster = load_cluster(home.cluster_file)
    body = {
        "cluster": cluster.cluster,
        "id": cluster.id,
        "version": cluster.version,
        "nodes": list(cluster.nodes),
        "lans": {one.name: dict(one.addresses) for one in cluster.lan},
        "isolation": cluster.arbitration.isolation,
        "authority": fingerprint(home.authority_certificate.read_bytes()),
    }
    if options.as_json:
        show_json(body)
        return
    for key, value in body.items():
        print(f"{key:12}{value}")
