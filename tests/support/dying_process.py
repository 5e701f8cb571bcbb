"""A replication process that dies by itself in the middle of an order: `HYPERHA_DIES=Order:calls`.

From that order on, until it is done (`Order+:calls`: for ever), it counts what it asks of disks,
and ends before the last of so many calls, as SIGKILL ends it: what was asked earlier is done,
nothing of what comes behind.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from hyperha.core.actions import EngineAction
from hyperha.replication import process, syscalls
from hyperha.replication.engine import Engine

PROGRAM = "tests.support.dying_process"
VARIABLE = "HYPERHA_DIES"

_OS = (
    "open", "write", "pwrite", "pwritev", "ftruncate", "truncate", "fsync", "fdatasync", "rename",
    "replace", "link", "unlink", "remove", "mkdir", "rmdir", "setxattr", "removexattr", "chmod",
)  # fmt: skip
_SYSCALLS = ("sync_file_system", "rename", "set_xattr", "allocate", "set_times")


def arm(order: str, calls: int, *, lasting: bool) -> None:
    """Wrap the calls, and what performs orders."""
    begun = threading.Event()
    done = Engine._done
    number = itertools.count(1)
    perform = Engine.perform

    def performing(engine: Engine, action: EngineAction) -> None:
        if type(action).__name__ == order:
            begun.set()
        perform(engine, action)

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if begun.is_set() and next(number) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return wrapped

    def ended(engine: Engine, *arguments: Any, **named: Any) -> None:
        if not lasting:
            begun.clear()
        done(engine, *arguments, **named)

    wrappers: list[tuple[Any, str, Callable[..., Any]]] = [
        (Engine, "perform", performing),
        (Engine, "_done", ended),
    ]
    for module, names in ((os, _OS), (syscalls, _SYSCALLS)):
        wrappers += [(module, name, dying(getattr(module, name))) for name in names]
    for owner, name, wrapper in wrappers:
        setattr(owner, name, wrapper)


if __name__ == "__main__":
    order, _, calls = os.environ[VARIABLE].partition(":")
    arm(order.removesuffix("+"), int(calls), lasting=order.endswith("+"))
    sys.exit(process.main(sys.argv[1:]))
