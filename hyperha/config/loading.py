"""Reading configuration files: TOML to models, every mistake named with file, line and key.

Must not write files, and must not look at the machine: whether a folder exists is preflight's.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hyperha.config.checking import (
    Key,
    Problem,
    cluster_rules,
    fleet_rules,
    module_rules,
    place_rules,
)
from hyperha.config.cluster import Cluster
from hyperha.config.home import Home
from hyperha.config.module import ModuleConfig
from hyperha.config.release import module_gaps
from hyperha.domain import NodeName
from hyperha.errors import ConfigError, FailedError, NotFoundError
from hyperha.text import clean, nearest

_TABLE = re.compile(r"\s*(\[\[|\[)\s*([A-Za-z0-9_.\-\"' ]+?)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')((?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=")


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that a home's configuration says: this node, the cluster, the modules by name."""

    node: NodeName
    cluster: Cluster
    modules: dict[str, ModuleConfig]

    @property
    def peer(self) -> NodeName:
        """The other node's name."""
        return NodeName(self.cluster.peer_of(self.node))


def line_numbers(text: str) -> dict[Key, int]:
    """The line of every table header and key; keys inside inline tables count to their line."""
    lines: dict[Key, int] = {}
    counts: dict[tuple[str, ...], int] = {}
    prefix: Key = ()
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        if depth == 0 and (header := _TABLE.match(line)):
            names = tuple(part.strip().strip("\"'") for part in header[2].split("."))
            prefix = names
            if header[1] == "[[":
                prefix = (*names, counts.get(names, 0))
                counts[names] = counts.get(names, 0) + 1
                lines.setdefault(names, number)
            lines.setdefault(prefix, number)
            continue
        if depth == 0 and (found := _KEY.match(line)):
            rest = tuple(part.strip() for part in found[2].split(".") if part.strip())
            lines.setdefault((*prefix, found[1].strip("\"'"), *rest), number)
        bare = re.sub(r"\"(\\.|[^\"\\])*\"|'[^']*'|#.*", "", line)
        depth = max(
            0, depth + bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}")
        )
    return lines


def _line_of(lines: dict[Key, int], key: Key) -> int | None:
    while key:
        if key in lines:
            return lines[key]
        key = key[:-1]
    return None


def _key_text(key: Key) -> str:
    out = ""
    for part in key:
        if isinstance(part, int):
            out += f"[{part + 1}]"
        else:
            out += ("." if out else "") + clean(part)
    return out


def _known_keys(model: type[BaseModel], key: Key) -> list[str]:
    """The keys that the table holding `key` may have."""
    for part in key[:-1]:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None


def _shape_problems(model: type[BaseModel], error: ValidationError) -> Iterator[Problem]:
    for detail in error.errors():
        key: Key = tuple(detail["loc"])
        known = _known_keys(model, key)
        if detail["type"] == "extra_forbidden":
            guess = nearest(str(key[-1]), known)
            fix = f"Did you mean {guess!r}?" if guess else f"Known here: {', '.join(known)}."
            yield Problem(key, "unknown key", fix)
        elif detail["type"] == "missing":
            yield Problem(key, "this key is missing")
        elif detail["type"] == "value_error":
            yield Problem(key, str(detail["ctx"]["error"]))
        else:
            message = detail["msg"][:1].lower() + detail["msg"][1:]
            yield Problem(key, f"{clean(repr(detail['input']))[:80]}: {message}")


def _complain(file: str, text: str, problems: list[Problem]) -> ConfigError:
    lines = line_numbers(text)
    told = []
    for problem in problems:
        line = _line_of(lines, problem.key)
        where = f"{file}, line {line}" if line else file
        told.append(f"{where}: {_key_text(problem.key)}: {problem.text}")
        if problem.fix:
            told[-1] += f". {problem.fix}"
    return ConfigError("\n".join(told))


def _document(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"{file}: not valid TOML: {problem}") from problem


def _first_only(problems: Iterator[Problem]) -> list[Problem]:
    """Without repetitions: a union reports each of its members, with the same key."""
    seen: dict[tuple[Key, str], Problem] = {}
    for problem in problems:
        seen.setdefault((problem.key, problem.text), problem)
    return list(seen.values())


def cluster_problems(text: str, file: str = "cluster.toml") -> ConfigError | None:
    """What is wrong with the text of a cluster.toml, or None; for dry runs and `config check`."""
    try:
        parse_cluster(text, file)
    except ConfigError as problem:
        return problem
    return None


def parse_cluster(text: str, file: str = "cluster.toml") -> Cluster:
    """The cluster that a text describes; ConfigError lists every mistake, one a line."""
    document = _document(text, file)
    try:
        cluster = Cluster.model_validate(document)
    except ValidationError as problem:
        raise _complain(file, text, _first_only(_shape_problems(Cluster, problem))) from None
    if problems := [*cluster_rules(cluster)]:
        raise _complain(file, text, problems)
    return cluster


def module_problems(
    text: str, file: str = "module file", cluster: Cluster | None = None
) -> ConfigError | None:
    """What is wrong with the text of a module file, or None."""
    try:
        parse_module(text, file, cluster)
    except ConfigError as problem:
        return problem
    return None


def parse_module(
    text: str, file: str = "module file", cluster: Cluster | None = None
) -> ModuleConfig:
    """The module that a text describes; with `cluster`, node names are checked too."""
    document = _document(text, file)
    try:
        module = ModuleConfig.model_validate(document)
    except ValidationError as problem:
        raise _complain(file, text, _first_only(_shape_problems(ModuleConfig, problem))) from None
    if problems := [*module_rules(module, cluster), *module_gaps(module)]:
        raise _complain(file, text, problems)
    return module


_NO_FILE = "Run `hyperha cluster init` first, or name the right directory with --home."


def read_text(path: Path, what: str, fix: str = _NO_FILE) -> str:
    """A file of the configuration; the errors name it and say what to do."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{what} {path} does not exist", fix) from None
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{path}: not UTF-8 text: {problem.reason}") from problem
    except OSError as problem:
        raise FailedError(f"{what} {path} cannot be read: {problem.strerror}") from problem


def load_cluster(path: Path) -> Cluster:
    """Read and check one cluster.toml."""
    return parse_cluster(read_text(path, "cluster configuration"), str(path))


def load_module(path: Path, cluster: Cluster | None = None) -> ModuleConfig:
    """Read and check one module file; its name must be the module's."""
    return _named_module(path, read_text(path, "module configuration"), cluster)


def _named_module(path: Path, text: str, cluster: Cluster | None) -> ModuleConfig:
    module = parse_module(text, str(path), cluster)
    if module.name != path.stem:
        problem = Problem(
            ("name",),
            f"{module.name!r} stands in a file called {path.name!r}",
            f"Call the file {module.name}.toml.",
        )
        raise _complain(str(path), text, [problem])
    return module


def this_node(home: Home, cluster: Cluster) -> NodeName:
    """Which of the two nodes this home is."""
    name = read_text(home.node_file, "the file that names this node,").strip()
    if name not in cluster.nodes:
        raise ConfigError(
            f"{home.node_file}: {clean(name)!r} is no node of cluster {cluster.cluster!r}",
            f"Write one of {list(cluster.nodes)} into it.",
        )
    return NodeName(name)


def load_all(home: Home, added: Mapping[str, str] | None = None) -> Configuration:
    """Everything under `home`, checked together.

    `added` are texts of module files by name that are judged as if they had been written already.
    """
    cluster = load_cluster(home.cluster_file)
    node = this_node(home, cluster)
    paths = sorted(home.modules_directory.glob("*.toml"))
    texts = {path: read_text(path, "module configuration") for path in paths}
    # Last, since of two files that contradict each other the later one is named.
    texts |= {home.module_file(name): text for name, text in (added or {}).items()}
    modules: dict[str, ModuleConfig] = {}
    told: list[str] = []
    for path, text in texts.items():
        try:
            module = _named_module(path, text, cluster)
        except ConfigError as refusal:
            told.append(str(refusal))
        else:
            modules[module.name] = module
    for name, problem in _together(list(modules.values()), cluster, node, home):
        path = home.module_file(name)
        told.append(str(_complain(str(path), texts[path], [problem])))
    if told:
        raise ConfigError("\n".join(told))
    return Configuration(node, cluster, modules)


def _together(
    modules: list[ModuleConfig], cluster: Cluster, node: str, home: Home
) -> Iterator[tuple[str, Problem]]:
    yield from fleet_rules(modules, cluster)
    for module in modules:
        for problem in place_rules(module, node, home):
            yield module.name, problem
