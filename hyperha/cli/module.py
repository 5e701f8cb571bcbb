"""`hyperha module`: add, list, check and remove modules in this home's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hyperha.cli.context import the_home
from hyperha.config import load_all, load_cluster, load_module, read_text
from hyperha.domain import MODULE_NAME_PATTERN
from hyperha.errors import FailedError, NotFoundError, RefusedError, UsageError

app = typer.Typer(no_args_is_help=True, help="Modules in this home's configuration.")


def module_text(name: str, number: int, folder: str, command: str) -> str:
    """The file of a new module with the process driver."""
    return (
        "schema = 1\n"
        f'name = "{name}"\n'
        f"number = {number}\n"
        f"folder = {_quoted(folder)}\n"
        'driver = "process"\n'
        'boot = "on"\n'
        "\n"
        "[driver_options]\n"
        f"command = {_quoted(command)}\n"
        "\n"
        "[[checker]]\n"
        f'name = "{name}"\n'
        'kind = "vm"\n'
        'action = "restart"\n'
    )


def _quoted(text: str) -> str:
    """A TOML text: what JSON escapes, TOML escapes alike."""
    return json.dumps(text, ensure_ascii=False)


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
    if not MODULE_NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a module name", "Up to 32 letters, digits and -, a hyphen not first."
        )
    used = {one.number for one in configuration.modules.values()}
    chosen = number or next(n for n in range(1, 34) if n not in used)
    wanted = str(folder.absolute())
    if template is not None:
        text = read_text(template, "template", "Name the path of a module file.")
    elif command:
        text = module_text(name, chosen, wanted, command)
    else:
        raise UsageError(
            "a module needs --command or --template", "See config/module-process.toml."
        )
    # Together with what is there already: a file that does not fit in stops the whole node.
    found = load_all(home, {name: text})
    module = found.modules[name]
    if module.folder_of(found.node) != wanted.rstrip("/"):
        raise UsageError(
            f"--folder is {wanted}, the template's folder is {module.folder_of(found.node)}",
            "Write the folder and the number of this module into the template first.",
        )
    path = home.module_file(name)
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            print(f"made the folder {folder}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise FailedError(
            f"{problem.filename} cannot be written: {problem.strerror}",
            "Run as root, or name a home and a folder of your own.",
        ) from problem
    print(f"wrote {path} (module number {module.number}); the other node needs the same file")


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
    load_all(home)  # What the files say together.
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
