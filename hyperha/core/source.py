"""The primary's side of a session: offers, and the end of a resync (R11).

Everything here holds in every phase of a node that runs the VM, also while it is being started or
stopped: what the link does and what the VM does are two facts.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import arbitration, fencing, losing, running
from hyperha.core.actions import (
    Acknowledge,
    AllowCertificate,
    Barrier,
    ClearMap,
    CloseSession,
    EndResync,
    Level,
    OpenSession,
    SessionStart,
    Timer,
)
from hyperha.core.events import EngineDone, ResyncCopied, SessionLost, SessionStalled, SessionUp
from hyperha.core.lineage import Direction, decide
from hyperha.core.messages import (
    JoinAccept,
    JoinOffer,
    JoinRefusal,
    JoinRequest,
    ResyncConfirmed,
    ResyncDone,
)
from hyperha.core.records import DataLabel, ProofKind
from hyperha.core.state import Link, Phase, Resync, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role, SessionKey

SERVING = (Phase.OPENING, Phase.STARTING, Phase.RUNNING, Phase.RESTARTING)


def join_requested(turn: Turn, message: JoinRequest) -> None:
    """A node wants to follow: reach a verdict and offer a session."""
    state = turn.state
    if not (state.role.runs_vm or state.phase is Phase.OPENING):
        return
    if state.link is Link.LOST:
        # It is back before the proof was found: what it says durably may be the proof (D2a).
        # A request from before the lost session proves nothing: its attempt is not a newer one.
        out = message.summary.label in (DataLabel.OUTDATED, DataLabel.INCONSISTENT)
        if out and message.attempt > state.attempt:
            losing.found_proof(turn, ProofKind.PEER_SAID_SO)
        return
    if state.phase not in SERVING or state.link in (Link.COPYING, Link.ENDING, Link.IN_SYNC):
        _session_is_over(turn, message)
        return
    if state.link in (Link.OFFERED, Link.OPENING) and message.attempt <= state.attempt:
        # An earlier attempt is a late message: attempts grow also over a restart of the target.
        again = state.link is Link.OFFERED and message.attempt == state.attempt
        if again and state.session is not None:
            turn.send(_offer(turn, state.session))
        return
    verdict = decide(turn.summary(), message.summary, running=state.config.node)
    if verdict.direction not in (Direction.SOURCE, Direction.EQUAL):
        turn.send(JoinRefusal(message.attempt, verdict.text))
        return
    if state.phase is Phase.OPENING and verdict.direction is not Direction.EQUAL:
        losing.request_outdate(turn)
        return
    _make_offer(turn, message, verdict.rule, verdict.start)


def _make_offer(turn: Turn, message: JoinRequest, rule: str, start: SessionStart) -> None:
    state = turn.state
    number = max(state.session_number, message.session_number) + 1
    epoch = state.lineage.held if state.role.runs_vm else state.lineage.epoch
    session = SessionKey(state.lineage.current.id, epoch, number)
    turn.set(
        session=session,
        session_number=number,
        session_start=start,
        link=Link.OFFERED,
        attempt=message.attempt,
        resync=Resync(rule),
    )
    turn.send(_offer(turn, session))
    turn.arm(Timer.OFFER, state.config.timing.patience_ms)


def offer_overdue(turn: Turn) -> None:
    """Nobody took it: whoever asks next, under whatever attempt, gets a new one."""
    if turn.state.link is Link.OFFERED:
        turn.set(link=Link.NONE, session=None, resync=None, attempt=0)


def _offer(turn: Turn, session: SessionKey) -> JoinOffer:
    rule = turn.state.resync.rule if turn.state.resync else "R5"
    return JoinOffer(turn.state.attempt, turn.summary(), rule, session)


def _session_is_over(turn: Turn, message: JoinRequest) -> None:
    """It asks to join anew: a session that we still believe in has ended over there. A request of
    an earlier attempt is only late."""
    if message.attempt <= turn.state.attempt:
        return
    if turn.state.link is Link.COPYING:
        turn.order(CloseSession, Step.CLOSE)
        turn.set(link=Link.NONE, session=None, resync=None)
    elif turn.state.link in (Link.ENDING, Link.IN_SYNC):
        losing.freeze(turn, f"{turn.state.config.peer} has left the session")


def join_refused(turn: Turn, message: JoinRefusal) -> None:
    """The target does not agree: nothing is moved."""
    if turn.state.link is Link.OFFERED and message.attempt == turn.state.attempt:
        turn.set(link=Link.NONE, session=None, resync=None)
        turn.tell_once(Level.ERROR, "R0", f"no resync: {message.reason}")


def accepted(turn: Turn, message: JoinAccept) -> None:
    """The target is ready: connect."""
    state = turn.state
    if state.link is not Link.OFFERED or message.session != state.session:
        return
    if state.phase is Phase.DETACHING:
        return  # Who follows now would follow a node that runs nothing.
    turn.set(link=Link.OPENING)
    turn.order(OpenSession, Step.OPEN, session=message.session, start=state.session_start)


def session_up(turn: Turn, event: SessionUp) -> None:
    """Connected: start the VM in sync, or let the copying begin."""
    state = turn.state
    if event.session != state.session or state.link is not Link.OPENING:
        return
    if state.session_start is SessionStart.IN_SYNC:
        turn.set(link=Link.IN_SYNC, resync=None)
        turn.cancel(Timer.PATIENCE)
        if state.phase is Phase.OPENING:
            lineage = replace(
                state.lineage,
                intent_primary=True,
                was_primary=True,
                held=state.lineage.epoch,
                label=DataLabel.UPTODATE,
                peer_out=None,
                sole=False,
                base="",
                released_to=None,
            )
            turn.persist(lineage=lineage)
            running.promote(turn, Acknowledge.BOTH)
        return
    turn.set(link=Link.COPYING)
    rule = state.resync.rule if state.resync else "R6"
    turn.tell(Level.INFO, rule, f"{state.config.peer} is being made equal ({state.session_start})")


def session_lost(turn: Turn, event: SessionLost) -> None:
    """Harmless while the peer was not needed; otherwise the guest's writes are held (D1)."""
    state = turn.state
    if event.session != state.session:
        return
    # A refusal comes again with each attempt.
    tell = turn.tell_once if event.refused else turn.tell
    tell(Level.WARNING, "D1", f"session with {state.config.peer} lost: {event.text}")
    if state.phase is Phase.OPENING:
        turn.set(link=Link.NONE, session=None, resync=None)
        if event.refused:
            losing.request_outdate(turn)
        return
    if state.link in (Link.OFFERED, Link.OPENING, Link.COPYING):
        turn.order(CloseSession, Step.CLOSE)
        turn.set(link=Link.NONE, session=None, resync=None)
        return
    if state.link in (Link.ENDING, Link.IN_SYNC):
        losing.freeze(turn, "the replication session was lost")


def stalled(turn: Turn, event: SessionStalled) -> None:
    """The peer makes no progress (D8'): ask early, drop it at stall_limit."""
    state = turn.state
    if event.session != state.session or not event.over_limit:
        return
    if state.link is Link.COPYING:
        # Nobody's write needs it yet, but the guest's would wait behind what it does not take.
        text = f"{state.config.peer} made no progress for {event.waited_ms} ms: the resync ends"
        turn.tell(Level.WARNING, "D8'", text)
        turn.order(CloseSession, Step.CLOSE)
        turn.set(link=Link.NONE, session=None, resync=None)
    elif state.link in (Link.ENDING, Link.IN_SYNC):
        losing.freeze(turn, f"{state.config.peer} made no progress for {event.waited_ms} ms")
        if state.peer_heard:
            return
        turn.arm(Timer.RELEASE, fencing.delay_ms(state))


def copied(turn: Turn, event: ResyncCopied) -> None:
    """R11, first step: acknowledgements by both from here on."""
    state = turn.state
    if event.session != state.session or state.link is not Link.COPYING:
        return
    turn.set(link=Link.ENDING, acknowledge=Acknowledge.BOTH)
    turn.order(EndResync, Step.END_RESYNC, session=event.session)


def resync_ended(turn: Turn, event: EngineDone) -> None:
    """Everything earlier is acknowledged: void the proof, move the base, then the barrier."""
    if turn.state.link is not Link.ENDING:
        return
    if not event.ok:
        losing.freeze(turn, event.text or "the resync could not be ended")
        return
    lineage = turn.state.lineage
    # From here on the peer may become whole, and be the one that goes on (L6).
    turn.persist(lineage=replace(lineage, peer_out=None, base=lineage.current.id, sole=False))
    turn.order(Barrier, Step.RESYNC_BARRIER)


def resync_barrier(turn: Turn, event: EngineDone) -> None:
    """Both have everything on stable storage: the target may write UPTODATE."""
    if turn.state.link is not Link.ENDING:
        return
    if not event.ok:
        losing.freeze(turn, event.text or "the barrier failed")
        return
    send_resync_done(turn)


def send_resync_done(turn: Turn) -> None:
    """R11's message, again until it is confirmed."""
    state = turn.state
    if state.session is None:
        return
    current = state.lineage.current
    turn.send(
        ResyncDone(
            state.session,
            state.lineage.history,
            current.ordinal,
            current.reason,
            current.at_wall_ms,
        )
    )
    turn.retry()


def confirmed(turn: Turn, message: ResyncConfirmed) -> None:
    """The target is UPTODATE on its disk; the witness is told before the map is forgotten (R11)."""
    state = turn.state
    if state.link is not Link.ENDING or message.session != state.session:
        return
    turn.cancel(Timer.RETRY)
    if not state.config.leased:
        complete(turn)
    elif not state.growing:
        turn.set(growing=True)
        arbitration.grow(turn)


def complete(turn: Turn) -> None:
    """The other copy counts, for the witness too: forget the map (F10), PRIM."""
    state = turn.state
    if state.link is not Link.ENDING:
        return
    turn.set(growing=False, returned=True)
    turn.persist(lineage=replace(state.lineage, base="", full_compare_owed=False))
    turn.order(ClearMap, Step.CLEAR)
    turn.order(AllowCertificate, Step.ALLOW_CERTIFICATE, allowed=True)
    turn.set(link=Link.IN_SYNC, resync=None)
    peer = state.config.peer
    turn.enter(Role.PRIM, turn.state.phase, Why("R11", f"runs the VM, {peer} has an equal copy"))
    turn.tell(Level.INFO, "R11", f"{peer} is up to date: the module is redundant again")
