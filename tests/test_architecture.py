"""The structure that the code base keeps: import directions, a pure core, small pieces.

Reads the `ast` of every file, so that a forbidden import inside a function counts too.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import ROOT

BASE = {"domain", "errors", "text", "threads"}
FOUNDATION = {"ports", "config", "durable", "spawn", "encoding", "ping"}
ADAPTERS = {
    "heartbeat",
    "witness",
    "replication",
    "vm",
    "checkers",
    "scripts",
    "logbook",
    "security",
    "host",
}
EDGE = {"api", "client"}
TOP = {"cli", "demo"}
KNOWN = BASE | FOUNDATION | ADAPTERS | EDGE | TOP | {"core", "study", "daemon"}

CORE_MAY_IMPORT = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "itertools",
    "math",
    "types",
    "typing",
}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "manager", "common"}
NOT_ON_WINDOWS = ("hyperha.replication.fuse", "hyperha.daemon.guardian", "hyperha.spawn.launcher")


@dataclass(frozen=True)
class Edge:
    """One import statement: who, what, where; `at_call` when it stands inside a function."""

    file: Path
    line: int
    importer: str
    imported: str
    at_call: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.importer} -> {self.imported}"


def sources() -> list[Path]:
    found = [*ROOT.glob("hyperha/**/*.py"), *ROOT.glob("tui/**/*.py")]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str:
    """The part of the layout that a dotted name belongs to: `core`, `vm`, `tui`, `` for outside."""
    parts = module.split(".")
    if parts[0] == "tui":
        return "tui"
    if parts[0] != "hyperha":
        return ""
    return parts[1] if len(parts) > 1 else "hyperha"


def _resolve(path: Path, node: ast.ImportFrom) -> list[str]:
    """Dotted names that a from-import may mean: the module, and each name as a submodule."""
    base = node.module or ""
    if node.level:
        package = module_name(path).split(".")
        if path.name != "__init__.py":
            package = package[:-1]
        package = package[: len(package) - node.level + 1]
        base = ".".join([*package, base]) if base else ".".join(package)
    if base == "hyperha":
        return [f"hyperha.{alias.name}" for alias in node.names]
    return [base]


def edges() -> list[Edge]:
    found = []
    for path in sources():
        tree = ast.parse(path.read_text("utf-8"), str(path))
        inside: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inside.update(id(child) for child in ast.walk(node))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = _resolve(path, node)
            else:
                continue
            importer = module_name(path)
            found += [Edge(path, node.lineno, importer, name, id(node) in inside) for name in names]
    return found


def allowed(edge: Edge) -> bool:
    """Whether the import points the permitted way (DESIGN section 3)."""
    source, target = unit_of(edge.importer), unit_of(edge.imported)
    if not target or source == target or edge.imported == "hyperha":
        return True
    if source == "tui":
        wire = edge.imported.startswith(("hyperha.api.wire", "hyperha.api.models"))
        return target in {"client", "domain", "text"} or wire
    if target == "tui":
        return source in TOP and edge.at_call and edge.imported == "tui.app"
    below: set[str] = {"hyperha"}
    if source in BASE:
        return target in BASE
    below |= BASE
    if source == "core":
        return target in below
    below |= {"core"}
    if source == "study":
        return target in below
    if source in FOUNDATION:
        return target in below | FOUNDATION
    below |= FOUNDATION
    if source in ADAPTERS:
        return target in below
    below |= ADAPTERS | EDGE | {"study"}
    if source in EDGE:
        return target in below
    below |= {"daemon"}
    if source == "daemon":
        return target in below
    return source in TOP and target in below | TOP


def test_every_part_has_its_place_in_the_layout() -> None:
    strangers = {
        unit_of(module_name(path)) for path in sources() if path.is_relative_to(ROOT / "hyperha")
    } - KNOWN
    assert strangers <= {"hyperha"}, f"not in the layout: {sorted(strangers)}"


def test_imports_point_one_way() -> None:
    wrong = [str(edge) for edge in edges() if not allowed(edge)]
    assert not wrong, "imports against the direction of the layout:\n" + "\n".join(wrong)


def test_core_is_pure() -> None:
    wrong = [
        str(edge)
        for edge in edges()
        if unit_of(edge.importer) == "core"
        and not unit_of(edge.imported)
        and edge.imported.split(".")[0] not in CORE_MAY_IMPORT
    ]
    for path in ROOT.glob("hyperha/core/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in {"open", "print", "input", "exec"}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: calls {called.id}()")
            if isinstance(node, ast.AsyncFunctionDef | ast.Await):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: asynchronous code")
    assert not wrong, "core does more than decide:\n" + "\n".join(wrong)


def test_the_view_model_knows_neither_terminal_nor_network() -> None:
    wrong = [
        str(edge)
        for edge in edges()
        if edge.importer.startswith("tui.model")
        and edge.imported.split(".")[0] in {"textual", "rich", "httpx"}
    ]
    assert not wrong, "\n".join(wrong)


def test_pieces_stay_small() -> None:
    wrong = []
    for path in sources():
        text = path.read_text("utf-8")
        core = unit_of(module_name(path)) == "core"
        function_limit, module_limit = (40, 400) if core else (60, 600)
        lines = text.count("\n")
        if lines > module_limit:
            wrong.append(f"{path.relative_to(ROOT)}: {lines} lines, limit {module_limit}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > function_limit:
                    wrong.append(
                        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {length} lines, "
                        f"limit {function_limit}"
                    )
    assert not wrong, "\n".join(wrong)


def test_names_say_what_a_module_is_for() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources()
        if set(path.relative_to(ROOT).with_suffix("").parts) & BANNED_NAMES
    ]
    assert not wrong, f"names that say nothing: {wrong}"


def test_every_module_says_what_it_is_responsible_for() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.read_text("utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert not wrong, f"modules without a docstring: {wrong}"


_PRETEND_WINDOWS = """
import importlib, os, signal, socket, sys, time
names = sys.argv[1].split(",")
for name in names:                 # loads what the modules need from elsewhere, on this platform
    importlib.import_module(name)
for name in [n for n in sys.modules if n.split(".")[0] in ("hyperha", "tui")]:
    del sys.modules[name]
sys.platform = "win32"
for name in ("fcntl", "termios", "pwd", "grp", "resource", "tty", "pty"):
    sys.modules[name] = None
for owner, gone in (
    (os, "fork getuid geteuid getgid uname O_DSYNC O_DIRECT O_NOATIME O_CLOEXEC O_NONBLOCK "
         "memfd_create pidfd_open sched_getaffinity setsid killpg sysconf pread pwrite "
         "listxattr getxattr setxattr statvfs eventfd"),
    (time, "clock_gettime CLOCK_BOOTTIME CLOCK_MONOTONIC"),
    (signal, "SIGKILL SIGHUP SIGUSR1 SIGCHLD pthread_sigmask"),
    (socket, "AF_UNIX SO_PEERCRED send_fds recv_fds SO_REUSEPORT"),
):
    for attribute in gone.split():
        if hasattr(owner, attribute):
            delattr(owner, attribute)
failed = []
for name in names:
    try:
        importlib.import_module(name)
    except BaseException as problem:
        failed.append(f"{name}: {type(problem).__name__}: {problem}")
os.write(1, "\\n".join(failed).encode())
os._exit(1 if failed else 0)
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_everything_imports_on_windows() -> None:
    names = [
        name
        for name in map(module_name, sources())
        if not any(name == other or name.startswith(f"{other}.") for other in NOT_ON_WINDOWS)
        and not name.endswith("__main__")
    ]
    done = _run("-c", _PRETEND_WINDOWS, ",".join(names))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("hyperha.core", {"asyncio", "pydantic", "textual", "httpx", "socket", "threading"}),
        ("hyperha.domain", {"asyncio", "pydantic", "textual", "httpx"}),
        ("tui.model", {"textual", "httpx"}),
    ],
)
def test_an_import_pulls_in_nothing_heavy(module: str, foreign: set[str]) -> None:
    path = ROOT.joinpath(*module.split("."))
    files = [p for p in sources() if p.is_relative_to(path) or p == path.with_suffix(".py")]
    if not files:
        pytest.skip(f"{module} is not in this checkout")
    names = ",".join(map(module_name, files))
    done = _run(
        "-c",
        "import importlib,sys\nfor n in sys.argv[1].split(','): importlib.import_module(n)\n"
        "print(','.join(m.split('.')[0] for m in sys.modules))",
        names,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.strip().split(",")) & foreign
    assert not loaded, f"importing {module} pulls in {sorted(loaded)}"
