"""Shared fixtures, and what happens when the machine lacks the rights that a test needs."""

from __future__ import annotations

import faulthandler
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests.support.machine import lacking


def _missing_root() -> str:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root rights"
    return ""


def _missing_fuse() -> str:
    try:
        mode = os.stat("/dev/fuse").st_mode
    except OSError as problem:
        return f"needs /dev/fuse ({problem.strerror})"
    if not stat.S_ISCHR(mode) or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse to be a device that may be read and written"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "needs root rights or fusermount3 to mount"
    return ""


def _missing_netns() -> str:
    if _missing_root():
        return "needs root rights to make network namespaces"
    if not Path("/proc/self/ns/net").exists():
        return "needs a kernel with network namespaces"
    if shutil.which("ip") is None:
        return "needs the command ip (iproute2)"
    return ""


_PROBES = {"root": _missing_root, "fuse": _missing_fuse, "netns": _missing_netns}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run; with HYPERHA_REQUIRE=all that is a failure."""
    _work_in_peace(item)
    for name, probe in _PROBES.items():
        if item.get_closest_marker(name) is None:
            continue
        missing = "needs Linux" if sys.platform == "win32" else probe()
        if missing:
            lacking(missing)


def _work_in_peace(item: pytest.Item) -> None:
    """Python's own dump of all stacks, made for a test that hangs, may crash one that works."""
    limit = item.get_closest_marker("timeout")
    if limit is not None and limit.args[0] > float(item.config.getini("timeout")):
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio only; the product knows no other loop."""
    return "asyncio"
