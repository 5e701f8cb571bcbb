"""What the peer's words are worth after a session went on over another line (T4). Pure.

What is sent again holds what the files hold by now, so that a part of it alone may be neither what
was before an operation nor what is after it: a write whose end a truncation behind it has cut off.
It counts as a whole. Until all of it has reached the peer no operation is acknowledged, and a
barrier that was asked for before is asked for anew behind it: only that answer counts (F2).
"""

from __future__ import annotations


class Repeats:
    """Of one session, for the thread that hears the peer."""

    __slots__ = ("_asked", "_floor", "_questions", "whole")

    def __init__(self) -> None:
        self.whole = 0
        """Acknowledgements of less than this number say nothing."""
        self._floor = 0
        """Barriers up to this number were asked for over a former line."""
        self._asked: dict[int, int] = {}
        """By the number of the question that was put anew: the barrier's own."""
        self._questions: set[int] = set()
        """All that were put anew and are not acknowledged, over former lines, too."""

    def begin(self, whole: int, floor: int) -> None:
        """Everything up to `floor` may have been put before the line changed. The last of it that
        the peer acknowledges as soon as it has come is `whole`."""
        self.whole, self._floor = whole, floor
        self._asked.clear()

    def asked_before(self, number: int) -> bool:
        """Whether a barrier must be asked for anew."""
        return number <= self._floor

    def asked(self, number: int, barrier: int) -> None:
        """The question `number` asks for a barrier anew."""
        self._asked[number] = barrier
        self._questions.add(number)

    def question_came(self, number: int) -> bool:
        """Whether the peer acknowledges no more than that a question has come. It says so over
        each line; to be asked once for a number, and for growing ones."""
        if not self._questions:
            return False
        came = number in self._questions
        self._questions = {one for one in self._questions if one > number}
        return came

    def flushed(self, number: int) -> int | None:
        """The barrier that the peer's answer to `number` ends; None when it ends none."""
        barrier = self._asked.pop(number, None)
        return number if barrier is None and number > self._floor else barrier
