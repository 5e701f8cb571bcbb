"""`hyperha replay`: what the core decided, decided once more."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from hyperha.cli.context import JsonToo, options, show_json
from hyperha.errors import FailedError, NotFoundError, RefusedError


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(replay)


def replay(
    recording: Annotated[
        Path, typer.Argument(help="A file of log/decisions/MODULE, or the directory.")
    ],
    as_json: JsonToo = False,
) -> None:
    """Feed recorded events to the core again, and say whether it decides the same."""
    from hyperha.study.recorded import RecordedError
    from hyperha.study.replay import replay as again

    del as_json
    files = sorted(recording.glob("*.jsonl")) if recording.is_dir() else [recording]
    if not files or not all(one.is_file() for one in files):
        raise NotFoundError(
            f"{recording} is no recording", "`hyperha paths` shows where the logs are."
        )
    found = {}
    for path in files:
        try:
            with path.open(encoding="utf-8") as lines:
                found[path.name] = again(lines)
        except (RecordedError, KeyError, TypeError) as problem:
            raise FailedError(f"{path}: {problem}") from problem
    if options.as_json:
        show_json({name: dataclasses.asdict(one) for name, one in found.items()})
    else:
        for name, one in found.items():
            print(f"{name}: {one.events} events")
            if one.difference is not None:
                _show(one.difference)
    if any(one.difference is not None for one in found.values()):
        raise RefusedError("this release decides otherwise than the one that recorded")


def _show(difference: object) -> None:
    from hyperha.study.replay import Difference

    assert isinstance(difference, Difference)
    print(f"  line {difference.line}, event {difference.event}: {difference.what}")
    for title, actions in (
        ("recorded", difference.recorded),
        ("decided now", difference.decided),
    ):
        print(f"  {title}:")
        for one in actions or ("nothing",):
            print(f"    {one}")
