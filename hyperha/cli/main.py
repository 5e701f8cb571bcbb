"""The command line: options, groups, and one place where errors become messages and exit status."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import hyperha
from hyperha.cli import (
    cluster,
    config,
    console,
    copies,
    demo,
    log,
    module,
    node,
    replay,
    state,
    steering,
    whatif,
    witness,
)
from hyperha.cli.context import options, show_json, the_home
from hyperha.errors import HyperhaError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="High availability for virtual machines on two ordinary servers.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def common(
    home: Annotated[
        str | None, typer.Option(help="Directory of config, state, log and run.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="API of a node, https://ADDRESS:9010.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON.")] = False,
) -> None:
    """Options that stand before the command."""
    options.home, options.url, options.as_json = home, url, as_json


@app.command()
def version(
    verbose: Annotated[bool, typer.Option("-v", help="Also of its parts.")] = False,
) -> None:
    """The version of hyperha, and with -v of what it runs on."""
    if not verbose:
        print(hyperha.__version__)
        return
    import platform
    from importlib import metadata

    print(f"hyperha {hyperha.__version__}")
    print(f"python {platform.python_version()} on {platform.system()} {platform.release()}")
    for name in ("textual", "httpx", "pydantic", "fastapi", "uvicorn", "cryptography", "xxhash"):
        print(f"{name} {metadata.version(name)}")


@app.command()
def paths() -> None:
    """Where everything of this home is."""
    home = the_home()
    found = {
        "config": str(home.config),
        "state": str(home.state),
        "log": str(home.log),
        "run": str(home.run),
        "socket": str(home.api_socket),
    }
    if options.as_json:
        show_json(found)
        return
    for name, path in found.items():
        print(f"{name:8}{path}")


steering.register(app)
state.register(app)
copies.register(app)
console.register(app)
demo.register(app)
log.register(app)
replay.register(app)
whatif.register(app)
app.add_typer(module.app, name="module")
app.add_typer(cluster.app, name="cluster")
app.add_typer(config.app, name="config")
app.add_typer(node.app, name="node")
app.add_typer(witness.app, name="witness")


def run() -> None:
    """The `hyperha` command: errors become one message and their exit status."""
    try:
        # Not standalone, typer hands the status of `typer.Exit` back instead of raising it.
        status = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except HyperhaError as error:
        message(error)
        sys.exit(error.exit_status)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        # Typer carries its own private copy of click: a wrong usage is known by what it can do.
        usage = getattr(error, "show", None)
        if usage is None:
            raise
        usage()
        sys.exit(2)


def message(error: HyperhaError) -> None:
    """What went wrong and what to do, on standard error."""
    if options.as_json:
        import json

        body = {"code": error.problem_code, "text": error.text, "fix": error.fix}
        print(json.dumps(body), file=sys.stderr)
    else:
        print(f"hyperha: {error}", file=sys.stderr)


if __name__ == "__main__":
    run()
