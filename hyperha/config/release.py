"""Which keys of the contract this release only knows, and refuses to be given.

A key that is accepted and not obeyed is a promise that nobody keeps: whoever relies on a witness
must hear when the files are loaded that there is none. The rules between such keys (`checking`)
hold all the same: what is wrong by the contract is never only "not in this release".
"""

from __future__ import annotations

from collections.abc import Iterator

from hyperha.config.checking import Key, Problem
from hyperha.config.module import ModuleConfig


def _missing(key: Key, value: object, fix: str) -> Problem:
    return Problem(key, f"{value!r}: not in this release", fix)


def module_gaps(module: ModuleConfig) -> Iterator[Problem]:
    """Drivers, and what only some of them can do."""
    if module.driver != "process":
        yield _missing(("driver",), module.driver, 'Use driver = "process".')
    for name, mode in (("normal", module.stop.normal), ("force", module.stop.force)):
        if mode == "save":
            yield _missing(
                ("stop", name), mode, 'Use "stop" or "off": a process has no saved state.'
            )
    if "transition" in module.scripts.replace:
        yield _missing(
            ("scripts", "replace"),
            "transition",
            "Remove it: that script replaces nothing.",
        )
