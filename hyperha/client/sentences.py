"""What is told about the copies as labelled sentences, the same on the command line and in the
console."""

from __future__ import annotations

from typing import Final

from hyperha.api.wire_copies import CopyView, PlanView
from hyperha.text import count_text, size_text

PLAN, LOSS, WAY_BACK = "plan", "LOSS", "way back"
"""Labels that are shown in their own colour."""


HELD_BACK: Final = {
    "guest": "slowed for the guest",
    "rate": "at its set rate",
}
"""Why a resync is not faster, by what the API says holds it back."""


def plan_facts(found: PlanView) -> list[tuple[str, str]]:
    """A plan: the sentence, what it costs, then both verdicts and both copies."""
    facts = [(PLAN, found.text)]
    if found.loss:
        facts.append((LOSS, found.loss))
    if found.moves:
        if found.bytes is not None:
            files = f"{count_text(found.files, 'file')}, " if found.files is not None else ""
            facts.append(("compares", f"{files}at most {size_text(found.bytes)}"))
        facts.append(("takes", found.time_text))
        if found.room_text:
            facts.append(("room", found.room_text))
        facts.append((WAY_BACK, found.safety.text))
    for node, verdict in () if found.in_sync else sorted(found.verdicts.items()):
        way = f"{verdict.source} to {verdict.target}" if verdict.source else "nothing is moved"
        text = f"{verdict.rule}: {way}, {verdict.start}: {verdict.text}"
        facts.append((f"{node} says", text))
    facts += [(node, copy_text(one)) for node, one in sorted(found.copies.items())]
    return facts


def copy_text(one: CopyView) -> str:
    """One copy and its log."""
    since = f", alone since {one.alone_since[:16].replace('T', ' ')} UTC" if one.alone_since else ""
    found = one.candidates
    much = f"{count_text(found.files, 'file')}, {size_text(found.bytes)}"
    log = f"everything ({found.text})" if found.everything else much
    generation = one.generation[:6] or "none"
    return f"{one.data}, generation {generation}{since}; in its log: {log}"
