"""`hyperha config`: whether the configuration of this node holds, before anything rests on it."""

from __future__ import annotations

import asyncio
import secrets

import typer

from hyperha.cli.context import JsonToo, options, show_json, the_home
from hyperha.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="The configuration of this node.")
LIMIT_S = 3.0


@app.callback()
def group() -> None:
    """The configuration of this node."""


@app.command()
def check(as_json: JsonToo = False) -> None:
    """Read all files of this node, and ask the witness once."""
    from hyperha.config import load_all

    del as_json
    configuration = load_all(the_home())
    witness = configuration.cluster.witness
    said = asyncio.run(_asked()) if witness is not None else ""
    count = len(configuration.modules)
    if options.as_json:
        show_json({"modules": sorted(configuration.modules), "witness": said or None})
        return
    print(f"cluster.toml and {count} module file{'s' if count != 1 else ''} are right")
    if said:
        print(said)


async def _asked() -> str:
    """What the witness answers. Raises ConfigError naming the key, when it does not (W8)."""
    from hyperha import ping
    from hyperha.config import load_all
    from hyperha.core.lease import Look
    from hyperha.errors import HyperhaError
    from hyperha.security.cluster_key import load_cluster_key
    from hyperha.witness.client import LeaseClient, token_of

    home = the_home()
    configuration, key = load_all(home), f"{home.cluster_file}: witness"
    cluster, witness = configuration.cluster, configuration.cluster.witness
    assert witness is not None, "asked only where there is one"
    if witness.kind == "ping":
        ways = await asyncio.gather(*(ping.answers(one, LIMIT_S) for one in witness.addresses))
        for address, way in zip(witness.addresses, ways, strict=True):
            if not way:
                raise ConfigError(
                    f"{key}.addresses: {address} answers neither ICMP nor TCP",
                    "Name a machine that answers this node, such as the gateway.",
                )
        found = zip(witness.addresses, ways, strict=True)
        return "; ".join(f"{address} answers ({way})" for address, way in found)
    token = token_of(load_cluster_key(home.cluster_key))
    client = LeaseClient(witness.url, witness.fingerprint, cluster.id, token, LIMIT_S)
    try:
        # Of a module that need not exist: what is wanted is any answer.
        name = next(iter(configuration.modules), "none")
        await client.ask(name, Look(secrets.token_hex(16), configuration.node, 0))
    except HyperhaError as problem:
        raise ConfigError(f"{key}.url: {problem.text}", problem.fix) from None
    finally:
        await client.close()
    return f"{witness.url} answers"
