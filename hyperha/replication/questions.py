"""What the daemon may ask a replication process beside the core's orders (R17).

Nothing here changes a role or decides one: a verification runs in a session in sync, and what the
log holds is told for people.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from hyperha.replication.comparison import path_text
from hyperha.replication.control import (
    AskCandidates,
    Candidate,
    CandidatesTold,
    ProcessMessage,
    Question,
    StartVerify,
    StopVerify,
    VerifyTold,
)
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import FileId, RecordKind, Target
from hyperha.replication.primary import Primary
from hyperha.replication.store import Store
from hyperha.replication.verify import Verify
from hyperha.replication.wire import ZONE_BYTES

LISTED: Final = 300
"""Candidates that are told one by one."""

Parts = tuple[Store, IntentLog, Primary]


class Questions:
    """Answers for one engine. `parts` gives what it has while the folder is covered, or None."""

    def __init__(
        self, parts: Callable[[], Parts | None], answer: Callable[[ProcessMessage], None]
    ) -> None:
        self._parts = parts
        self._answer = answer
        self._lock = threading.Lock()
        self._verify: Verify | None = None

    def ask(self, question: Question) -> None:
        """Take a question; its answers come later."""
        if isinstance(question, StartVerify):
            self._start_verify(question)
        elif isinstance(question, StopVerify):
            with self._lock:
                running = self._verify
            if running is not None and running.findings.request == question.request:
                running.stop()
        elif isinstance(question, AskCandidates):
            threading.Thread(
                target=self._candidates, args=(question,), name="candidates", daemon=True
            ).start()

    # --- verify ---------------------------------------------------------------------------

    def _start_verify(self, order: StartVerify) -> None:
        parts = self._parts()
        session = None if parts is None else parts[2].session
        problem = ""
        with self._lock:
            if self._verify is not None:
                problem = "a verification runs already"
            elif parts is None or session is None or not session.up or not session.copied:
                problem = "the copies are not in sync here: verify runs on the primary of a pair"
            else:
                self._verify = Verify(parts[2], session, self._told, order)
                self._verify.start()
        if problem:
            self._answer(VerifyTold(order.request, finished=True, text=problem))

    def _told(self, told: VerifyTold) -> None:
        if told.finished:
            with self._lock:
                self._verify = None
        self._answer(told)

    # --- candidates -----------------------------------------------------------------------

    def _candidates(self, question: AskCandidates) -> None:
        parts = self._parts()
        if parts is None:
            self._answer(CandidatesTold(question.request, False, "", 0, 0, ()))
            return
        store, intent, _ = parts
        records = intent.candidates()
        zones: dict[FileId, set[int]] = {}
        whole: set[FileId] = set()
        names: set[FileId] = set()
        for record in records or ():
            if record.kind is RecordKind.ZONE:
                zones.setdefault(record.file, set()).add(record.zone)
            elif record.kind is RecordKind.WHOLE_FILE:
                whole.add(record.file)
            else:
                names.add(record.file)
        found = [
            _candidate(store, file, zones.get(file, set()), file in whole, file in names)
            for file in sorted({*zones, *whole, *names})
        ]
        found.sort(key=lambda one: (-one.bytes, one.path))
        self._answer(
            CandidatesTold(
                question.request,
                records is None,
                intent.base,
                len(found),
                sum(one.bytes for one in found),
                tuple(found[:LISTED]),
            )
        )


def _candidate(store: Store, file: FileId, zones: set[int], whole: bool, names: bool) -> Candidate:
    try:
        size = store.attributes(Target(file)).size if whole or zones else 0
    except OSError:
        # Removed since it was recorded; its directory stands in the log, too.
        size = 0
    span = size if whole else sum(max(0, min(ZONE_BYTES, size - z * ZONE_BYTES)) for z in zones)
    return Candidate(path_text(store, file), span, whole, names)
