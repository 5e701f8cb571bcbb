"""The target's side of a session: asking to follow, agreeing on the verdict, R11's last step.

The label INCONSISTENT is durable before the first byte arrives (F8); UPTODATE is written only
when a barrier is on both nodes (F9, R11).
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import safety
from hyperha.core.actions import (
    ClearMap,
    CloseSession,
    ExpectSession,
    Level,
    SessionStart,
    Timer,
)
from hyperha.core.events import EngineDone, SafetyShort, SessionLost, SessionUp
from hyperha.core.facts import Shortage
from hyperha.core.lineage import Direction, Verdict, decide
from hyperha.core.messages import (
    JoinAccept,
    JoinOffer,
    JoinRefusal,
    JoinRequest,
    ResyncConfirmed,
    ResyncDone,
)
from hyperha.core.records import DataLabel, Generation, Lineage
from hyperha.core.state import Link, ModuleState, Phase, Resync, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role
from hyperha.text import size_text

REFUSED_RETRY_MS = 15_000
"""Looking at all of its tree takes the source some work each time."""


def join(turn: Turn) -> None:
    """Ask the node that runs, or is about to, for a session."""
    # Larger than those of the daemon before this one, as long as the clock is not set back.
    attempt = max(turn.state.attempt + 1, turn.stimulus.wall_ms)
    turn.set(attempt=attempt, link=Link.NONE, session=None)
    why = turn.state.no_room or Why("R5", f"asks {turn.state.config.peer} to follow it")
    turn.enter(Role.WAIT, Phase.JOINING, why)
    send_join(turn)
    turn.arm(Timer.PATIENCE, turn.state.config.timing.patience_ms)


def send_join(turn: Turn) -> None:
    """The request, again until an offer comes."""
    turn.send(JoinRequest(turn.summary(), turn.state.attempt, turn.state.session_number))
    turn.retry()


def offered(turn: Turn, message: JoinOffer) -> None:
    """The source's verdict: both must agree before the first byte (R0-R10)."""
    state = turn.state
    if state.phase is not Phase.JOINING or message.attempt != state.attempt:
        return
    if state.awaits(Step.OPEN_SAFETY):
        return
    if state.session == message.session:
        if state.link is Link.OFFERED and not state.awaits(Step.EXPECT):
            turn.send(JoinAccept(message.session))
        return
    if state.session is not None:
        if message.session.number > state.session.number:
            # What was accepted was given up over there, and this record is another one since (F8).
            turn.order(CloseSession, Step.CLOSE)
            turn.forget(Step.EXPECT)
            join(turn)
        return
    verdict = decide(turn.summary(), message.summary, running=state.config.peer)
    follows = verdict.direction in (Direction.TARGET, Direction.EQUAL)
    if not follows or verdict.mirrored().rule not in (message.rule, _mirror(message.rule)):
        reason = f"{state.config.node} finds {verdict.rule} ({verdict.text})"
        turn.send(JoinRefusal(message.attempt, reason))
        turn.block("R0", f"the nodes do not agree on the copies: {verdict.text}")
        return
    if safety.wanted(turn.state, verdict):
        safety.open_copy(turn, message, verdict)
    else:
        _accept(turn, message, verdict, way_back=False)


def safety_opened(turn: Turn, event: EngineDone) -> None:
    """What the resync is about to destroy will be saved first, or cannot be (R15, N3)."""
    offer = turn.state.offer
    turn.set(offer=None)
    if turn.state.phase is not Phase.JOINING or offer is None:
        return
    verdict = decide(turn.summary(), offer.summary, running=turn.state.config.peer)
    if event.ok:
        _accept(turn, offer, verdict, way_back=True)
    elif safety.required(turn.state, verdict) or _goes_on_later(turn.state, event):
        turn.send(JoinRefusal(offer.attempt, f"no safety copy can be made: {event.text}"))
        if event.lacks is None:
            turn.block("N3", f"nothing is overwritten without a safety copy: {event.text}")
        else:
            wait_for_room(turn, safety.no_room(turn.state, event.lacks))
    else:
        turn.tell_once(Level.WARNING, "R15", f"no way back during this resync: {event.text}")
        _accept(turn, offer, verdict, way_back=False)


def _goes_on_later(state: ModuleState, event: EngineDone) -> bool:
    """The copy of this resync is whole and has no room: only of one that is required, by its own
    record, the engine says so (N3). An older lineage record does not know it."""
    return state.lineage.label is DataLabel.INCONSISTENT and event.lacks is not None


def safety_short(turn: Turn, event: SafetyShort) -> None:
    """N3: rather no resync than one that cannot be undone; it goes on where it was broken off. A
    copy that is equal may lack what was acknowledged here: it is out until it was resynced (P8)."""
    state = turn.state
    if state.phase not in (Phase.RESYNCING, Phase.FOLLOWING, Phase.LEAVING):
        return
    if state.lineage.label is DataLabel.UPTODATE:
        turn.tell(Level.WARNING, "P8", "what was acknowledged here may be missing: copy outdated")
        turn.persist(lineage=replace(state.lineage, label=DataLabel.OUTDATED))
    if state.phase is not Phase.LEAVING:
        turn.cancel(Timer.TAKEOVER)
        turn.set(handover=None)
        turn.order(CloseSession, Step.CLOSE)
        wait_for_room(turn, safety.no_room(turn.state, event.lacks))


def _no_room(state: ModuleState, lacks: Shortage) -> Why:
    needed, most = size_text(lacks.needed_bytes), size_text(lacks.free_bytes)
    return Why(
        "D11",
        f"the copy of {state.config.peer} does not fit here: it needs {needed} at least, reserved "
        f"room included; there is room for {most}; make room on {state.config.node}, then it goes "
        "on",
    )


def wait_for_room(turn: Turn, why: Why, delay_ms: int = 0) -> None:
    """Try again now and then: only that tells whether there is room by now. What an operator has
    decided stays decided, and its command goes on."""
    turn.enter(Role.WAIT, Phase.WAITING, why)
    if turn.state.no_room is None:
        turn.tell(Level.ERROR, why.rule, why.text)
    turn.set(no_room=why)
    _rejoin_after(turn, max(delay_ms, turn.state.config.timing.takeover_wait_ms))


def _mirror(rule: str) -> str:
    return {"R6": "R7", "R7": "R6"}.get(rule, rule)


def _accept(turn: Turn, message: JoinOffer, verdict: Verdict, *, way_back: bool) -> None:
    lineage = replace(
        turn.state.lineage,
        epoch=max(turn.state.lineage.epoch, message.session.epoch),
        released_to=None,
        intent_primary=False,
        # Whatever proved that the other node was out, it is in now (P6).
        peer_out=None,
        sole=False,
        pending="",
        shrink_owed=False,
    )
    turn.set(before=turn.state.lineage)
    if verdict.direction is not Direction.EQUAL:
        required = way_back and safety.required(turn.state, verdict)
        lineage = _inconsistent(lineage, message)
        lineage = replace(lineage, way_back=way_back, way_back_required=required)
        # A full compare that is interrupted must go on as one, not with the log's zones (R3).
        owed = lineage.full_compare_owed or verdict.start is SessionStart.FULL
        lineage = replace(lineage, full_compare_owed=owed)
    turn.persist(lineage=lineage)
    turn.set(
        session=message.session,
        session_start=verdict.start,
        session_number=message.session.number,
        link=Link.OFFERED,
        resync=Resync(verdict.rule),
    )
    # Of what this node has offered itself when it ran: that says nothing about this session.
    turn.cancel(Timer.OFFER)
    if turn.state.no_room is None:
        turn.tell(Level.INFO, verdict.rule, f"{verdict.text} ({verdict.start})")
    turn.order(ExpectSession, Step.EXPECT, session=message.session, start=verdict.start)


def _inconsistent(lineage: Lineage, message: JoinOffer) -> Lineage:
    former = lineage.label
    return replace(
        lineage,
        label=DataLabel.INCONSISTENT,
        former_label=lineage.former_label if former is DataLabel.INCONSISTENT else former,
        sync_from=message.summary.node,
        target_generation=message.session.generation,
        intent_primary=False,
    )


def expected(turn: Turn, event: EngineDone) -> None:
    """The engine waits for the source: say so."""
    session = turn.state.session
    if not event.ok or session is None:
        turn.enter(Role.WAIT, Phase.WAITING, Why("T3", f"no session: {event.text}"))
        rejoin_later(turn)
        return
    turn.send(JoinAccept(session))
    turn.arm(Timer.PATIENCE, turn.state.config.timing.patience_ms)


def rejoin_later(turn: Turn) -> None:
    """Not again at once: a failing session must not become a busy loop."""
    _rejoin_after(turn, turn.state.config.timing.suspect_ms // 2)


def _rejoin_after(turn: Turn, delay_ms: int) -> None:
    turn.set(hold_until_ms=turn.now_ms + delay_ms, link=Link.NONE, session=None, resync=None)
    turn.cancel(Timer.RETRY, Timer.PATIENCE)
    turn.arm(Timer.REJOIN, delay_ms)


def session_up(turn: Turn, event: SessionUp) -> None:
    """The source has connected."""
    state = turn.state
    if event.session != state.session or state.phase is not Phase.JOINING:
        return
    turn.cancel(Timer.RETRY, Timer.PATIENCE)
    turn.set(yielded=False, no_room=None, before=None)
    peer = state.config.peer
    if state.session_start is SessionStart.IN_SYNC:
        turn.set(link=Link.IN_SYNC, resync=None, engine_failures=0, granted=None)
        if state.lineage.label is not DataLabel.UPTODATE:
            turn.persist(lineage=replace(state.lineage, label=DataLabel.UPTODATE))
        # One that was opened when this node died, before anything of the resync was durable.
        safety.close(turn)
        turn.enter(Role.SECOND, Phase.FOLLOWING, Why("R5", f"follows {peer}, equal copy"))
        turn.finish(True, f"SECOND on {state.config.node}")
    else:
        turn.set(link=Link.COPYING)
        rule = state.resync.rule if state.resync else "R6"
        turn.enter(Role.SECOND, Phase.RESYNCING, Why(rule, f"is being made equal to {peer}"))


def session_lost(turn: Turn, event: SessionLost) -> None:
    """Before the copy was equal: try again; the label stays (R3 goes on where it ended)."""
    state = turn.state
    if event.session != state.session:
        return
    turn.order(CloseSession, Step.CLOSE)
    if event.lacks is not None and state.phase is Phase.JOINING:
        safety.untouched(turn)
        wait_for_room(turn, _no_room(state, event.lacks), REFUSED_RETRY_MS)
        return
    turn.tell(Level.WARNING, "T3", f"session with {state.config.peer} ended: {event.text}")
    turn.enter(Role.WAIT, Phase.WAITING, Why("T3", f"session ended: {event.text}"))
    rejoin_later(turn)


def refused(turn: Turn, message: JoinRefusal) -> None:
    """The node that runs cannot serve us: show its reason, ask again later."""
    if turn.state.phase is not Phase.JOINING or message.attempt != turn.state.attempt:
        return
    turn.enter(Role.WAIT, Phase.WAITING)
    text = f"{turn.state.config.peer} refuses: {message.reason}"
    turn.tell_once(Level.WARNING, "R0", text)
    turn.explain(Why("R0", text))
    turn.finish(False, text)
    _rejoin_after(turn, turn.state.config.timing.takeover_wait_ms)


def resync_done(turn: Turn, message: ResyncDone) -> None:
    """R11: the barrier is on both; UPTODATE becomes durable, then the source is told."""
    state = turn.state
    if message.session != state.session:
        return
    if state.phase is Phase.FOLLOWING:
        turn.send(ResyncConfirmed(message.session))
        return
    if state.phase is not Phase.RESYNCING:
        return
    lineage = replace(
        state.lineage,
        current=Generation(
            message.session.generation, message.ordinal, message.reason, message.at_wall_ms
        ),
        history=message.history,
        base="",
        label=DataLabel.UPTODATE,
        sync_from="",
        target_generation="",
        way_back=False,
        intent_primary=False,
        peer_out=None,
        released_to=None,
        full_compare_owed=False,
        was_primary=False,
        yields_to="",
    )
    turn.set(link=Link.IN_SYNC, resync=None, engine_failures=0)
    turn.persist_with_marker(lineage)
    turn.order(ClearMap, Step.CLEAR)
    safety.close(turn)
    turn.send(ResyncConfirmed(message.session))
    peer = state.config.peer
    turn.enter(Role.SECOND, Phase.FOLLOWING, Why("R11", f"follows {peer}, equal copy"))
    turn.tell(Level.INFO, "R11", f"resync from {peer} complete: this node can take over")
    turn.finish(True, f"SECOND on {state.config.node}")
