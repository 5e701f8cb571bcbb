"""Both nodes run the VM: which one gives way, where that can be told without an operator (R16).

Each side tells the other what it knows of its own line, and keeps to it. Both judge by the same two
reports, so that they cannot both give way: whoever gives way has seen that the other side knows
exactly its report. Who gives way stops its VM and follows; nothing of its line is overwritten
before a safety copy has it (N3).
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import leaving, losing, running
from hyperha.core.actions import Barrier, Level, Timer
from hyperha.core.events import EngineDone, PeerStatus
from hyperha.core.messages import SplitReport
from hyperha.core.records import ProofKind
from hyperha.core.state import Goal, Phase, Split, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role
from hyperha.text import minute_text

_SHOWN = 16
"""Digits of a generation that a heartbeat tells."""


def both_run(turn: Turn, status: PeerStatus) -> None:
    """The peer says that it runs the VM, and so does this node."""
    state = turn.state
    if state.phase in (Phase.KILLING, Phase.DETACHING):
        # It gives way already: begun anew, what the folder was told last would be forgotten (R12).
        return
    if state.frozen or state.role is Role.PRIM:
        if status.epoch > state.lineage.held.counter:
            losing.superseded(turn)
        return
    if status.role is Role.PRIM and status.epoch < state.lineage.held.counter:
        # It stood still, acknowledges nothing without this node, and gives way when it hears (L1).
        return
    if state.why.rule != "R16":
        _tell(turn, f"split brain: {state.config.peer} runs the VM too; finding out which stays")


def _tell(turn: Turn, text: str) -> None:
    if turn.state.why.text != text:
        turn.tell(Level.ERROR, "R16", text)
    turn.explain(Why("R16", text))


def settle(turn: Turn) -> None:
    """Whatever else was explained since, two nodes that run come first. The peer's word may also
    have come before this node ran itself."""
    state = turn.state
    alone = state.role is Role.ALONE and state.phase is Phase.RUNNING and not state.frozen
    if alone and turn.peer_runs and state.peer is not None and state.why.rule != "R16":
        both_run(turn, state.peer)
    split = alone and state.peer_heard and state.peer is not None and state.peer.role is Role.ALONE
    if not split:
        _over(turn)
    elif state.split is None:
        # Whoever comes and goes is not judged by: a full window, heard on both sides.
        turn.set(split=Split())
        turn.arm(Timer.SPLIT, state.config.timing.takeover_wait_ms)


def _over(turn: Turn) -> None:
    state = turn.state
    if state.split is None:
        return
    turn.set(split=None)
    turn.cancel(Timer.SPLIT)
    if state.role is Role.ALONE and state.why.rule == "R16":
        turn.explain(running.alone_why(turn))


def due(turn: Turn) -> None:
    """The window has passed, or the other side may not have heard the report."""
    split = turn.state.split
    if split is None:
        return
    if split.mine is not None:
        _send(turn)
    elif not turn.state.awaits(Step.COUNT):
        turn.order(Barrier, Step.COUNT)
        # A replication process that dies answers nothing.
        turn.arm(Timer.SPLIT, turn.state.config.timing.takeover_wait_ms)


def counted(turn: Turn, event: EngineDone) -> None:
    """What this node has acknowledged is on its disk, and the map says whether there is any."""
    state = turn.state
    if state.split is None:
        return
    if not event.ok:
        turn.arm(Timer.SPLIT, state.config.timing.takeover_wait_ms)
        return
    proof = state.lineage.peer_out
    report = SplitReport(
        nonce=turn.stimulus.entropy,
        heard="",
        generation=state.lineage.current.id,
        leased=state.config.leased and not state.lineage.shrink_owed,
        forced=proof is not None and proof.kind is ProofKind.OPERATOR,
        wrote=event.candidates != 0,
        reached=state.lineage.reached,
        ran_before=state.lineage.ran_before,
    )
    turn.set(split=replace(state.split, mine=report))
    _send(turn)


def _send(turn: Turn) -> None:
    split = turn.state.split
    if split is None or split.mine is None:
        return
    heard = split.theirs.nonce if split.theirs else ""
    turn.send(replace(split.mine, heard=heard))
    turn.arm(Timer.SPLIT, turn.state.config.timing.retry_ms)


def reported(turn: Turn, message: SplitReport) -> None:
    """What the other side knows of its line; the verdict, when it knows this side's, too."""
    state = turn.state
    split, peer = state.split, state.peer
    if split is None or peer is None or message.generation[:_SHOWN] != peer.generation:
        return
    known = split.theirs is not None and split.theirs.nonce == message.nonce
    turn.set(split=replace(split, theirs=message))
    if not known:
        _send(turn)
    if split.mine is not None and message.heard == split.mine.nonce:
        _judge(turn, split.mine, message)


def _judge(turn: Turn, mine: SplitReport, theirs: SplitReport) -> None:
    state = turn.state
    node, peer = state.config.node, state.config.peer
    stays, reason = verdict(mine, theirs, node, peer)
    if not stays:
        _tell(
            turn,
            f"split brain: {peer} runs the VM too, and {reason}; decide which copy stays, stop "
            f"the other one, then command second --confirm there",
        )
    elif stays == node:
        _tell(turn, f"split brain: {peer} runs the VM too, and gives way: {reason}")
    else:
        text = f"split brain: this node gives way to {peer}: {reason}"
        since = minute_text(state.lineage.alone_since_wall_ms)
        kept = f"a safety copy keeps what only this node has, since {since}"
        turn.tell(Level.ERROR, "R16", f"{text}; {kept}")
        turn.persist(lineage=replace(state.lineage, yields_to=theirs.generation))
        _over(turn)
        leaving.begin(turn, Goal.RESTART, Why("R16", text))


def verdict(one: SplitReport, other: SplitReport, first: str, second: str) -> tuple[str, str]:
    """Which of the nodes `first` and `second`, whose reports these are, goes on, and why; no name
    where an operator has to decide."""
    if one.forced and other.forced:
        return "", "an operator has started it on both"
    differing = (
        (one.leased, other.leased, "{0} holds the lease"),
        (one.forced, other.forced, "an operator has started it on {0}"),
        (one.wrote, other.wrote, "{1} has acknowledged nothing since they parted"),
        (*_reach(one, other), "{0} still reached others when they parted, and {1} did not"),
        (one.ran_before, other.ran_before, "{0} ran it before they parted"),
    )
    for left, right, reason in differing:
        if left != right:
            stays, goes = (first, second) if left else (second, first)
            if (other if left else one).forced:
                return "", f"{reason.format(stays, goes)}, but an operator has started it on {goes}"
            return stays, reason.format(stays, goes)
    return "", "nothing tells which copy is the better one"


def _reach(one: SplitReport, other: SplitReport) -> tuple[bool, bool]:
    """Who reached others, where that tells the two apart: what was not asked says nothing."""
    if None in (one.reached, other.reached):
        return False, False
    return bool(one.reached), bool(other.reached)
