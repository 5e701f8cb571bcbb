"""Which copy is the source: the rules R0-R10, computed by both nodes independently.

Both sides call `decide` with the same two summaries and must reach the same verdict before the
first byte moves; disagreement stops everything. A running primary is never the target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from hyperha.core.actions import SessionStart
from hyperha.core.messages import Summary
from hyperha.core.records import DataLabel


class Direction(StrEnum):
    """Who gives and who takes, seen from the node that asks."""

    SOURCE = "source"
    TARGET = "target"
    EQUAL = "equal"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The rule that matched, what it says, and the sentence for people."""

    rule: str
    direction: Direction
    start: SessionStart
    text: str
    gives_up: bool = False
    """The target has a line of its own that goes: only over a safety copy (N3)."""

    def mirrored(self) -> Verdict:
        """The same verdict seen from the other node."""
        swap = {Direction.SOURCE: Direction.TARGET, Direction.TARGET: Direction.SOURCE}
        return replace(self, direction=swap.get(self.direction, self.direction))


def decide(mine: Summary, theirs: Summary, running: str = "") -> Verdict:
    """The verdict for `mine`; `running` is the node whose VM runs, which is never the target."""
    if mine.resource != theirs.resource:
        return Verdict(
            "R0",
            Direction.CONFLICT,
            SessionStart.FULL,
            f"{mine.node} and {theirs.node} hold different modules under this name",
        )
    verdict = _by_lineage(mine, theirs, running)
    wrong = (verdict.direction is Direction.TARGET and running == mine.node) or (
        verdict.direction is Direction.SOURCE and running == theirs.node
    )
    if wrong:
        return Verdict(
            verdict.rule,
            Direction.CONFLICT,
            verdict.start,
            f"{running} runs the VM but its copy is the older one ({verdict.text})",
        )
    source = {Direction.SOURCE: mine, Direction.TARGET: theirs}.get(verdict.direction)
    if source is not None and source.label is DataLabel.INCONSISTENT:
        return replace(
            verdict,
            rule="R3",
            direction=Direction.CONFLICT,
            text=f"{verdict.text}, and the copy on {source.node} is half made",
        )
    if source is not None and source.unknown:
        return Verdict(
            "R12",
            Direction.CONFLICT,
            SessionStart.FULL,
            f"{verdict.text}, and what is in the folder on {source.node} is unknown: restore it, "
            f"or give up what it had with a confirmed prim",
        )
    return _full_if_owed(verdict, mine, theirs)


def _full_if_owed(verdict: Verdict, mine: Summary, theirs: Summary) -> Verdict:
    damaged = mine.candidates < 0 or theirs.candidates < 0
    asked = mine.full or theirs.full
    if verdict.direction in (Direction.SOURCE, Direction.TARGET) and (damaged or asked):
        reason = "a log is damaged (Z6)" if damaged else "a full compare was asked for"
        return replace(verdict, start=SessionStart.FULL, text=f"{verdict.text}; {reason}")
    return verdict


def _by_lineage(mine: Summary, theirs: Summary, running: str) -> Verdict:
    if not mine.current or not theirs.current:
        return _one_is_fresh(mine, theirs)
    if mine.current == theirs.current:
        return _same_generation(mine, theirs, running)
    return _different_generations(mine, theirs)


def _one_is_fresh(mine: Summary, theirs: Summary) -> Verdict:
    if not mine.current and not theirs.current:
        return Verdict(
            "R1",
            Direction.CONFLICT,
            SessionStart.FULL,
            "neither node has held the data yet: command prim on the one that has it",
        )
    fresh = mine if not mine.current else theirs
    direction = Direction.TARGET if fresh is mine else Direction.SOURCE
    if fresh.folder_empty or fresh.adopt or fresh.label is DataLabel.INCONSISTENT:
        return Verdict(
            "R2", direction, SessionStart.FULL, f"{fresh.node} has no copy yet: full copy"
        )
    return Verdict(
        "R2",
        Direction.CONFLICT,
        SessionStart.FULL,
        f"the folder on {fresh.node} is not empty and was never part of this module: "
        "empty it, or command second --adopt there",
    )


def _same_generation(mine: Summary, theirs: Summary, running: str) -> Verdict:
    for one, other, direction in (
        (mine, theirs, Direction.TARGET),
        (theirs, mine, Direction.SOURCE),
    ):
        half = one.label is DataLabel.INCONSISTENT
        if half and other.label is not DataLabel.INCONSISTENT:
            return Verdict(
                "R3",
                direction,
                SessionStart.CANDIDATES if one.target_generation else SessionStart.FULL,
                f"{one.node} is half copied: the copy goes on",
            )
    if mine.label is DataLabel.INCONSISTENT:
        return Verdict("R3", Direction.CONFLICT, SessionStart.FULL, "both copies are half copied")
    # A copy that owes a full compare equals nothing before it was made (R12, D10).
    owed = mine.full or theirs.full or mine.unknown or theirs.unknown
    if mine.candidates == 0 and theirs.candidates == 0 and not owed:
        return Verdict("R5", Direction.EQUAL, SessionStart.IN_SYNC, "both copies are equal")
    source = _r4_source(mine, theirs, running)
    return Verdict(
        "R4",
        Direction.SOURCE if source is mine else Direction.TARGET,
        SessionStart.CANDIDATES,
        f"same generation, zones to compare: from {source.node}",
    )


def _r4_source(mine: Summary, theirs: Summary, running: str) -> Summary:
    """The running side; never an outdated or suspect copy beside a whole one (D10); else the
    crashed primary of the highest epoch (R4'); else by name."""
    for one in (mine, theirs):
        if running == one.node:
            return one
    return min(
        (mine, theirs),
        key=lambda one: (
            one.unknown,
            one.label is not DataLabel.UPTODATE,
            not one.intent_primary,
            -one.epoch.counter,
            not one.was_primary,
            one.node,
        ),
    )


def _different_generations(mine: Summary, theirs: Summary) -> Verdict:
    found = [
        verdict
        for one, other, direction, rule in (
            (mine, theirs, Direction.TARGET, "R6"),
            (theirs, mine, Direction.SOURCE, "R7"),
        )
        if (verdict := _behind(one, other, direction, rule)) is not None
    ]
    if len(found) > 1:
        # Two records that each name the other one as older: one of them was restored or damaged.
        text = "each copy's record says that the other one is the older"
        return Verdict("R0", Direction.CONFLICT, SessionStart.FULL, text)
    return found[0] if found else _split(mine, theirs)


def _behind(one: Summary, other: Summary, direction: Direction, rule: str) -> Verdict | None:
    """The verdict when `one` is the older copy of the two, as its record or the other's says."""
    start = SessionStart.CANDIDATES
    # A half copied node was being made equal to its target generation: its own line is gone.
    if one.label is DataLabel.INCONSISTENT and other.label is not DataLabel.INCONSISTENT:
        follows = one.target_generation and one.target_generation in (other.current, other.base)
        return Verdict(
            "R3",
            direction,
            start if follows else SessionStart.FULL,
            f"{one.node} is half copied: the copy goes on",
        )
    if other.label is DataLabel.INCONSISTENT and one.label is not DataLabel.INCONSISTENT:
        return None
    if other.base and one.current == other.base:
        return Verdict(rule, direction, start, f"{other.node} went on without {one.node}")
    if one.current in other.history:
        return Verdict(
            "R8",
            direction,
            SessionStart.FULL,
            f"{other.node} is several generations ahead of {one.node}",
        )
    return None


def _split(mine: Summary, theirs: Summary) -> Verdict:
    ours = {mine.base, *mine.history} - {""}
    common = ours & ({theirs.base, *theirs.history} - {""})
    if mine.base and mine.base == theirs.base:
        rule, text = "R9", "both nodes went on from the same generation: split brain"
    elif common:
        rule, text = "R10", "both nodes went on separately: split brain"
    else:
        rule, text = "R0", "the two copies have nothing in common"
    if mine.adopt != theirs.adopt:
        # An operator has said on that node that what its copy has since the fork may go.
        giver = mine if mine.adopt else theirs
        return Verdict(
            rule,
            Direction.TARGET if giver is mine else Direction.SOURCE,
            SessionStart.FULL,
            f"{text}; {giver.node} gives way by an operator's command",
            gives_up=True,
        )
    mine_yields = mine.yields_to == theirs.current
    if mine_yields != (theirs.yields_to == mine.current):
        giver = mine if mine_yields else theirs
        return Verdict(
            "R16",
            Direction.TARGET if mine_yields else Direction.SOURCE,
            SessionStart.FULL,
            f"{text}; {giver.node} gives way, as both have found",
            gives_up=True,
        )
    return Verdict(rule, Direction.CONFLICT, SessionStart.FULL, text)
