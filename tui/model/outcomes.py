"""The rows of what would happen, and the questions that are offered."""

from __future__ import annotations

from collections.abc import Sequence

from hyperha.client.outcomes import BROKEN, LOST, RUNS, Answered, outcome_facts, story_lines
from tui.model.copies import labelled
from tui.model.rows import Row, Span, Tone, row, wrapped

_TONE = {"nothing": Tone.GOOD, "writes": Tone.BAD, "split": Tone.BAD, "stopped": Tone.WARN}
_LEVEL_TONE = {"W": Tone.WARN, "E": Tone.BAD}


def offered(nodes: Sequence[str], running: str, *, witnessed: bool) -> list[tuple[str, str]]:
    """Questions worth asking at any time: the sentence, and the events as they are written."""
    found = []
    for node in nodes:
        found.append((f"{node} loses its power", f"off:{node}"))
    for node in nodes:
        found.append((f"{node} loses its power and comes back", f"off:{node} boot:{node}"))
    found += [
        ("the network between the nodes is cut", "network-cut"),
        ("the network is cut and comes back", "network-cut network-back"),
        ("the VM ends by itself", "vm-exit"),
    ]
    if witnessed:
        found.append(("the witness does not answer", "witness-off"))
        found += [(f"{node} is cut off from everything", f"isolate:{node}") for node in nodes]
    for node in nodes:
        found.append((f"the disk of {node} fails", f"disk-fail:{node}"))
    for node in nodes:
        found.append((f"the disk of {node} is full", f"disk-full:{node}"))
    if running:
        found.append((f"the daemon of {running} crashes", f"daemon-crash:{running}"))
        found.append((f"the VM is moved off {running}", f"swap:{running}"))
    return found


def outcome_rows(found: Answered, width: int) -> list[Row]:
    """The answer first, then what the nodes would say."""
    outcome = found.outcome
    tones = {RUNS: Tone.STRONG, LOST: _TONE[outcome.loss], BROKEN: Tone.BAD}
    rows: list[Row] = []
    for label, text in outcome_facts(found):
        rows += labelled(label, text, width, tones.get(label, Tone.PLAIN))
    rows.append(row(""))
    for one, line in zip(outcome.story, story_lines(outcome), strict=True):
        tone = _LEVEL_TONE.get(one.level, Tone.PLAIN)
        rows += [row(Span(f"  {piece}", tone)) for piece in wrapped(line, max(16, width - 3))]
    return rows
