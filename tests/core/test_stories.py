"""Stories: what happens to a cluster, and the journal of both nodes that it leads to.

A file of `stories` begins with a sentence, then `with:` how the cluster is made, then the events as
`hyperha whatif` takes them, one in a line (`given: NODE FLAG` sets what the model's node
cannot do); behind `---` stands what comes of it, compared word for
word. HYPERHA_REWRITE=1 writes that anew: read the diff. They are read like stories by whoever wants
to know what the product does, so every rule that a core ever names has one.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hyperha.client.outcomes import Answered, outcome_facts, story_lines
from hyperha.core.options import Isolation, WitnessKind
from hyperha.domain import Role
from hyperha.study.clone import Clone
from hyperha.study.whatif import forward, happening
from tests.core.test_versions import of_age
from tests.support import ROOT
from tests.support.world import World, blank, pair, snapshots

STORIES = sorted((Path(__file__).parent / "stories").glob("*.txt"))
ELSEWHERE = {"D8'": "test_faults.py", "R12": "test_lineage.py"}
"""Rules about what no event of a question can bring about, and the tests that tell of them."""
_RULE = re.compile(r"[A-Z]\d+'?")


def _world(words: list[str]) -> World:
    """`run`, `primary`, `hold`, `lease`, `ping` or `fence`; then `redundant` (or nothing), `alone`,
    `stopped` or `fresh`; `prefers-node1`, `older-node2`."""
    way, *rest = words
    witness = WitnessKind(way) if way in ("lease", "ping") else WitnessKind.NONE
    isolation = Isolation(way) if way in set(Isolation) else Isolation.HOLD
    if "fresh" in rest:
        world = blank(0, isolation, witness=witness, fences=way == "fence")
        world.run(10_000)
        return world
    world = pair(0, isolation, witness=witness, fences=way == "fence")
    if "prefers-node1" in rest:
        for node in world.nodes.values():
            node.config = replace(node.config, default_primary="node1")
            node.state = replace(node.state, config=node.config)
    if "older-node2" in rest:
        of_age(8, 7, world)
    world.run(10_000)
    if "alone" in rest:
        world.command(world.b, "stop")
        world.until(Role.ALONE, Role.STOP)
        world.run(10_000)
    if "stopped" in rest:
        world.command(world.b, "stop")
        world.until(Role.ALONE, Role.STOP)
        world.command(world.a, "stop")
        world.until(Role.STOP, Role.STOP)
        world.run(10_000)
    return world


def told(head: str) -> str:
    """What comes of a story."""
    lines = [line for line in head.splitlines() if line.strip()]
    at = next(index for index, line in enumerate(lines) if line.startswith("with:"))
    world = _world(lines[at].removeprefix("with:").split())
    given = [line for line in lines[at + 1 :] if line.startswith("given:")]
    events = [happening(line.strip(), world.nodes) for line in lines[at + 1 :] if line not in given]
    clone = Clone(snapshots(world))
    for line in given:
        node, _, flag = line.removeprefix("given:").strip().partition(" ")
        assert hasattr(clone.nodes[node], flag), line
        setattr(clone.nodes[node], flag, True)
    outcome = forward(clone, events)
    assert not outcome.broken, outcome.broken
    facts = [f"{label:12}{text}" for label, text in outcome_facts(Answered("VM1", outcome))]
    return "\n".join([*facts[1:], "", *story_lines(outcome)]) + "\n"


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(path: Path) -> None:
    head, _, golden = path.read_text("utf-8").partition("---\n")
    found = told(head)
    if os.environ.get("HYPERHA_REWRITE") == "1":
        path.write_text(f"{head}---\n{found}", "utf-8")
        golden = found
    assert found == golden


def test_every_rule_that_is_told_has_a_story() -> None:
    said = "\n".join(path.read_text("utf-8").partition("---\n")[2] for path in STORIES)
    told = set(_told_rules())
    missing = {rule for rule in told if not re.search(rf"\b{rule}(?!\d)", said)}
    assert missing == set(ELSEWHERE)
    for rule, file in ELSEWHERE.items():
        assert rule in (Path(__file__).parent / file).read_text("utf-8")


def _told_rules() -> Iterator[str]:
    """The ids that stand in the core's calls of `tell`."""
    for path in (ROOT / "hyperha" / "core").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "tell":
                for one in call.args[1:2]:
                    if isinstance(one, ast.Constant) and _RULE.fullmatch(str(one.value)):
                        yield str(one.value)
