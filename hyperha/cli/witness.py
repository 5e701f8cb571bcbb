"""`hyperha witness`: the third party that two nodes ask before one goes on alone."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import time
from pathlib import Path
from typing import Annotated

import typer

from hyperha.cli.context import the_home
from hyperha.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="The witness of one or many clusters.")


@app.callback()
def group() -> None:
    """The witness of one or many clusters."""


@app.command()
def run(
    listen: Annotated[
        list[str] | None, typer.Option(help="Address of this machine; may be repeated.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 9012,
) -> None:
    """Run a lease witness in the foreground, on a machine that is neither of the nodes."""
    from hyperha.witness.service import listen as listening_on
    from hyperha.witness.service import serve
    from hyperha.witness.store import Store

    if not listen:
        raise UsageError(
            "the witness does not know where to listen",
            "Name an address of this machine that both nodes reach: --listen 10.0.0.254",
        )
    home = the_home()
    context, shown = _credentials(home.config / "pki")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    store = Store(home.state / "witness", _boottime_ms, time.time_ns())
    sockets = [listening_on(address, port) for address in listen]

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        host = f"[{listen[0]}]" if ":" in listen[0] else listen[0]
        print("the witness answers; in cluster.toml of the clusters that shall ask it:\n")
        print(f'[witness]\nkind = "lease"\nurl = "https://{host}:{port}"')
        print(f'fingerprint = "{shown}"\n', flush=True)
        await serve(store, sockets, context, stop)

    asyncio.run(main())


def _credentials(directory: Path) -> tuple[ssl.SSLContext, str]:
    """The witness's own certificate, made at the first start, and its fingerprint."""
    from hyperha.durable import make_directory
    from hyperha.security.authority import fingerprint, self_signed
    from hyperha.security.cluster_key import write_new, write_secret

    certificate, key = directory / "witness.crt", directory / "witness.key"
    if not certificate.exists():
        made = self_signed("witness")
        make_directory(directory)
        key.unlink(missing_ok=True)
        write_secret(key, made.key)
        write_new(certificate, made.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context, fingerprint(certificate.read_bytes())


def _boottime_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
