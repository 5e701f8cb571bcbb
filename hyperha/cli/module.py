"""`hyperha module`: add, list, check and remove modules in this home's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperha.cli.context import the_home
from hyperha.config import load_all, load_cluster, load_module
from hyperha.config.loading import parse_module
from hyperha.errors import NotFoundError, RefusedError, UsageError

app = typer.Typer(no_args_is_help=True, help="Modules in this home's configuration.")


def module_text(name: str, number: int, folder: str, command: str) -> str:
    """The file of a new module with the process driver."""
    quoted = command.replace("\\", "\\\\").replace('"', '\\"')
    return (
        "schema = 1\n"
        f'name = "{name}"\n'
        f"number = {number}\n"
        f'folder = "{folder}"\n'
        'driver = "process"\n'
        'boot = "on"\n'
        "\n"
        "[driver_options]\n"
        f'command = "{quoted}"\n'
        "\n"
        "[[checker]]\n"
        f'name = "{name}"\n'
        'kind = "vm"\n'
        'action = "restart"\n'
    )


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the module.")],
    folder: Annotated[Path, typer.Option(help="The folder to replicate, on both nodes.")],
    command: Annotated[str, typer.Option(help="What runs in the folder (process driver).")] = "",
    template: Annotated[Path | None, typer.Option(help="A module file to start from.")] = None,
    number: Annotated[int | None, typer.Option(help="1 to 32; the next free one if not given.")] = (
        None
    ),
) -> None:
    """Write the module's file on this node; do the same on the other one, then restart both."""
    home = the_home()
    configuration = load_all(home)
    if name in configuration.modules:
        raise RefusedError(f"there is a module {name} already", f"See {home.module_file(name)}.")
    used = {one.number for one in configuration.modules.values()}
    chosen = number or next(n for n in range(1, 34) if n not in used)
    if template is not None:
        text = template.read_text(encoding="utf-8")
    elif command:
        text = module_text(name, chosen, str(folder.absolute()), command)
    else:
        raise UsageError(
            "a module needs --command or --template", "See config/module-process.toml."
        )
    parse_module(text, f"the file of {name}", load_cluster(home.cluster_file))
    if not folder.is_dir():
        folder.mkdir(parents=True)
        print(f"made the folder {folder}")
    path = home.module_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path} (module number {chosen}); the other node needs the same file")


@app.command("list")
def list_modules() -> None:
    """The modules that this home configures."""
    for name, module in load_all(the_home()).modules.items():
        print(f"{module.number:3} {name:20}{module.driver:9}{module.folder}")


@app.command()
def check(name: Annotated[str, typer.Argument()]) -> None:
    """Check one module's file."""
    home = the_home()
    load_module(home.module_file(name), load_cluster(home.cluster_file))
    print(f"{home.module_file(name)} is right")


@app.command()
def remove(name: Annotated[str, typer.Argument()]) -> None:
    """Set the module's file aside; its folder and records stay as they are."""
    home = the_home()
    path = home.module_file(name)
    if not path.is_file():
        raise NotFoundError(f"there is no module {name!r}", f"Expected {path}.")
    aside = path.with_suffix(".toml.removed")
    path.rename(aside)
    print(f"{path} is now {aside}; the VM's files are untouched. Restart the daemon.")
