"""What the daemon asks about safety copies: list, restore, delete, each in a thread of its own.

Turns calls of the area into messages; it decides nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from hyperha.errors import HyperhaError
from hyperha.replication.clock import now_ms
from hyperha.replication.control import (
    DeleteSafety,
    ListSafety,
    ProcessMessage,
    RestoreSafety,
    SafetyAnswered,
    SafetyCopies,
)
from hyperha.replication.safety.area import SafetyArea

log = logging.getLogger(__name__)

_TOLD_MS: Final = 500
_NOT_COVERED: Final = "the folder is not covered"


def answer_safety(
    area: SafetyArea | None,
    question: ListSafety | RestoreSafety | DeleteSafety,
    answer: Callable[[ProcessMessage], None],
) -> None:
    """Answer one question; what takes time is done in a thread."""
    if area is None:
        if isinstance(question, ListSafety):
            answer(SafetyCopies(question.request, (), _NOT_COVERED))
        else:
            answer(SafetyAnswered(question.request, False, _NOT_COVERED, finished=True))
        return

    def work() -> None:
        if isinstance(question, ListSafety):
            answer(_listed(area, question))
        else:
            answer(_done(area, question, answer))

    threading.Thread(target=work, name="safety", daemon=True).start()


def _listed(area: SafetyArea, question: ListSafety) -> SafetyCopies:
    try:
        return SafetyCopies(question.request, area.facts(), lacks=area.shortage())
    except (HyperhaError, OSError) as problem:
        return SafetyCopies(question.request, (), str(problem))


def _done(
    area: SafetyArea,
    question: RestoreSafety | DeleteSafety,
    answer: Callable[[ProcessMessage], None],
) -> SafetyAnswered:
    reached, told_ms = (0, 0), now_ms()

    def progress(done: int, total: int) -> None:
        nonlocal reached, told_ms
        reached = (done, total)
        if now_ms() - told_ms >= _TOLD_MS:
            told_ms = now_ms()
            answer(SafetyAnswered(question.request, True, "", *reached))

    ok, text = True, f"the safety copy {question.id} is deleted"
    try:
        if isinstance(question, RestoreSafety):
            area.restore(question.id, question.to, progress)
            text = f"the safety copy {question.id} is restored in {question.to}"
        else:
            area.delete(question.id)
    except (HyperhaError, OSError) as problem:
        ok, text = False, str(problem)
    except Exception as problem:
        # Whoever asked waits for an end.
        log.exception("a safety copy failed in an unforeseen way")
        ok, text = False, repr(problem)
    return SafetyAnswered(question.request, ok, text, *reached, finished=True)
