"""The rows of what is told about the copies: a plan, the differences, the safety copies."""

from __future__ import annotations

from hyperha.api.wire_copies import DiffView, PlanView, SafetyCopies, SafetyCopyView
from hyperha.client.sentences import LOSS, PLAN, WAY_BACK, copy_text, plan_facts
from hyperha.text import count_text, size_text
from tui.model.formatting import minute_text, short_generation
from tui.model.rows import Row, Span, Tone, fit, row, wrapped

_LABEL = 12
_STATE_TONE = {"open": Tone.WARN, "kept": Tone.GOOD, "lost": Tone.BAD}


def labelled(label: str, text: str, width: int, tone: Tone = Tone.PLAIN) -> list[Row]:
    """A sentence behind its label, broken where the line ends."""
    first, *rest = wrapped(text, max(16, width - _LABEL - 3))
    rows = [row(Span(f"  {fit(label, _LABEL)}", Tone.DIM), Span(first, tone))]
    return rows + [row(" " * (_LABEL + 2), Span(piece.lstrip(), tone)) for piece in rest]


def plan_rows(found: PlanView, width: int) -> list[Row]:
    """What a resync would move now: the sentence first, then what it rests on."""
    tones = {PLAN: Tone.STRONG if found.agree else Tone.BAD, LOSS: Tone.BAD}
    if found.safety.fits is False:
        tones[WAY_BACK] = Tone.WARN
    rows: list[Row] = []
    for label, text in plan_facts(found):
        rows += labelled(label, text, width, tones.get(label, Tone.PLAIN))
    return rows


def diff_rows(found: DiffView, width: int) -> list[Row]:
    """What each copy's log says that it changed, those with most bytes first."""
    rows = labelled("differences", found.text, width, Tone.BAD if found.split else Tone.STRONG)
    if found.base:
        rows += labelled("base", f"both relative to g {short_generation(found.base)}", width)
    for node, one in sorted(found.copies.items()):
        rows.append(row(""))
        rows += labelled(node, copy_text(one), width, Tone.STRONG)
        for entry in one.candidates.listed:
            what = "whole" if entry.whole else "zones" if entry.bytes else ""
            head = f"  {size_text(entry.bytes):>10} {what:6}{'names' if entry.names else '':6}"
            rows.append(row(Span(head, Tone.DIM), entry.path))
        more = one.candidates.files - len(one.candidates.listed)
        if more > 0:
            rows.append(row(Span(f"  and {count_text(more, 'more file')}", Tone.DIM)))
    for node, why in sorted(found.missing.items()):
        rows += labelled(node, f"not known: {why}", width, Tone.WARN)
    return rows


def safety_items(found: SafetyCopies, width: int) -> list[list[Row]]:
    """One item for each copy; what is not known stands behind them."""
    items = [_safety_item(one, width) for one in found.copies]
    for node, why in sorted(found.missing.items()):
        items.append(labelled(node, f"not known: {why}", width, Tone.WARN))
    return items or [[row(Span("  there is no safety copy", Tone.DIM))]]


def _safety_item(one: SafetyCopyView, width: int) -> list[Row]:
    kind = "required" if one.required else "best effort"
    end = f", deleted {minute_text(one.expires)} UTC" if one.expires else ""
    rows = [
        row(
            Span(f"  {one.id} on {one.node} ", Tone.STRONG),
            Span(one.state, _STATE_TONE[one.state]),
            f"  {size_text(one.bytes)}, {count_text(one.files, 'file')}",
        ),
        row(Span(f"    {kind}, {one.rule}, opened {minute_text(one.opened)} UTC{end}", Tone.DIM)),
    ]
    if one.text:
        rows += [row(Span(f"    {text}", Tone.WARN)) for text in wrapped(one.text, width - 5)]
    return rows
