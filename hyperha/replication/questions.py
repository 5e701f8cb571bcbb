"""What the daemon may ask a replication process beside the core's orders (R17).

Nothing here changes a role or decides one: a verification runs in a session in sync, and what the
log holds is told for people.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from hyperha.replication.comparison import path_text
from hyperha.replication.control import (
    AskCandidates,
    CandidatesTold,
    DeleteSafety,
    ListSafety,
    ProcessMessage,
    Question,
    RestoreSafety,
    StartVerify,
    StopVerify,
    VerifyTold,
)
from hyperha.replication.intent_log import IntentLog
from hyperha.replication.operations import FileId, Target
from hyperha.replication.primary import Primary
from hyperha.replication.safety.answers import answer_safety
from hyperha.replication.safety.area import SafetyArea
from hyperha.replication.store import Store
from hyperha.replication.tally import tally, told
from hyperha.replication.verify import Verify

Parts = tuple[Store, IntentLog, Primary]


class Questions:
    """Answers for one engine. `parts` and `area` give what it has while the folder is covered, or
    None."""

    def __init__(
        self,
        parts: Callable[[], Parts | None],
        area: Callable[[], SafetyArea | None],
        answer: Callable[[ProcessMessage], None],
    ) -> None:
        self._parts = parts
        self._area = area
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
        elif isinstance(question, ListSafety | RestoreSafety | DeleteSafety):
            answer_safety(self._area(), question, self._answer)

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

        def size(file: FileId) -> int | None:
            try:
                return store.attributes(Target(file)).size
            except OSError:
                # Removed since it was recorded; its directory stands in the log, too.
                return None

        found = tally(intent.candidates(), size, lambda file: path_text(store, file))
        self._answer(told(question.request, intent.base, found))
