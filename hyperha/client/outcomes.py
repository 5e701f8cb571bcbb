"""What would happen, in labelled sentences: the same on the command line and in the console."""

from __future__ import annotations

from dataclasses import dataclass

from hyperha.study.whatif import Outcome

RUNS, LOST, BROKEN = "runs", "writes", "BROKEN"
"""Labels that are shown in their own colour."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What events would lead to."""

    module: str
    outcome: Outcome
    assumed: tuple[tuple[str, str], ...] = ()
    """Nodes that did not answer and were taken for switched off, and why."""


def outcome_facts(found: Answered) -> list[tuple[str, str]]:
    """The answer first, then where each node ends up."""
    outcome = found.outcome
    facts = [
        ("asked", ", then ".join(outcome.events)),
        (RUNS, _runs_text(found.module, outcome)),
        (LOST, outcome.loss_text),
        ("service", _service_text(outcome)),
    ]
    if outcome.broken:
        facts.append((BROKEN, f"a promise would not be kept: {outcome.broken}"))
    for asked, done, text in outcome.answers:
        facts.append((asked, text if done else f"not done: {text}"))
    for node, side in sorted(outcome.sides.items()):
        words = f"{side.role} {side.readiness}, data {side.data}: " if side.role else ""
        facts.append((node, words + side.text))
    for node, why in found.assumed:
        facts.append((node, f"was taken for switched off, since it does not answer: {why}"))
    if outcome.unsettled:
        facts.append(("end", "it had not come to rest when the study was given up"))
    return facts


def story_lines(outcome: Outcome) -> list[str]:
    """What the nodes would write in their logs, with the time since the first event."""
    return [
        f"{one.at_ms / 1000:8.2f} s  {one.node}  {one.level}  {one.rule:5} {one.text}"
        for one in outcome.story
    ]


def _runs_text(module: str, outcome: Outcome) -> str:
    if not outcome.runs:
        return f"{module} runs nowhere"
    if len(outcome.runs) > 1:
        return f"{module} runs on {' and '.join(outcome.runs)}: a split brain"
    return f"{module} runs on {outcome.runs[0]}"


def _service_text(outcome: Outcome) -> str:
    parts = []
    if outcome.down_ms:
        going = "" if outcome.runs else " and goes on being so"
        parts.append(f"the VM is down for {_seconds(outcome.down_ms)}{going}")
    if outcome.held_ms:
        parts.append(f"writes are held for {_seconds(outcome.held_ms)}")
    if not parts:
        parts.append("not interrupted")
    if outcome.unmeasured:
        where = " and ".join(outcome.unmeasured)
        parts.append(f"how long the VM takes to start on {where} was never measured")
    return ", ".join(parts)


def _seconds(duration_ms: int) -> str:
    return f"{duration_ms / 1000:.1f} s"
