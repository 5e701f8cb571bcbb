"""The program between fork and exec of every child (S1): enters the run's cgroup, makes a session,
changes the user, asks for a signal when the parent dies, checks the parent, then execs.

Run by path with `python -I -S`, so it may import nothing of hyperha. What goes wrong before the
exec is written as one line of JSON to the status descriptor; a successful exec closes it silently.
The working directory is entered here, never by the daemon: it may lie in a mount that hangs (T1).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def _enter_cgroup(path: str) -> None:
    with open(os.path.join(path, "cgroup.procs"), "w", encoding="ascii") as file:
        file.write("0")


def _change_user(name: str) -> None:
    import pwd

    entry = pwd.getpwnam(name)
    os.initgroups(name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ.update(HOME=entry.pw_dir, USER=name, LOGNAME=name)


def _die_with_parent(parent: int) -> None:
    """After the change of user, which would clear the signal; then the parent is checked (E16)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        raise ProcessLookupError(3, f"process {parent} that started this is gone")


def _reset() -> None:
    """Undo what the daemon set for itself: out-of-memory preference, signals, mask."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("0")
    except OSError:
        pass  # Lowering it is what needs rights; then it never was lowered.
    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)


def launch(order: dict[str, Any]) -> None:
    """Carry the order out; returns only by raising, with `step` naming what was tried."""
    step = "cgroup"
    os.set_inheritable(order["status"], False)
    try:
        if order["cgroup"]:
            _enter_cgroup(order["cgroup"])
        step = "session"
        os.setsid()
        _reset()
        step = f"user {order['user']}"
        if order["user"]:
            _change_user(order["user"])
        step = "parent"
        if order["parent"]:
            _die_with_parent(order["parent"])
        step = f"directory {order['cwd']}"
        if order["cwd"]:
            os.chdir(order["cwd"])
            os.environ["PWD"] = order["cwd"]
        step = f"command {order['argv'][0]}"
        os.execvpe(order["argv"][0], order["argv"], os.environ)
    except (OSError, KeyError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "no such user"
        told = json.dumps({"step": step, "reason": reason or str(problem)})
        os.write(order["status"], told.encode())


if __name__ == "__main__":
    launch(json.loads(sys.argv[1]))
    os._exit(127)
