"""The secondary's side of a failure: taking over, stepping back, taking what was released.

Order of a takeover (P8): fence the stream and drain what was acknowledged, persist the epoch, only
then ask who may run; an error in the drain makes this copy outdated and cancels.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import (
    arbitration,
    farewell,
    fencing,
    looking,
    obstacles,
    preferring,
    room,
    running,
    waiting,
)
from hyperha.core.actions import CloseSession, Level, Preflight, Probe, Timer
from hyperha.core.events import (
    CertificateReceived,
    EngineDone,
    PeerStatus,
    ProbeDone,
    SessionLost,
    VmDone,
)
from hyperha.core.messages import (
    Abdicated,
    HandoverKind,
    HandoverReady,
    HandoverRefused,
    HandoverRequest,
    OutdateAnswer,
    OutdateRequest,
    Released,
    Taken,
)
from hyperha.core.records import DataLabel, Proof, ProofKind
from hyperha.core.state import Agreed, Goal, Handover, Link, ModuleState, Phase, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Epoch, Role


def session_lost(turn: Turn, event: SessionLost) -> None:
    """The equal copy lost its source: wait for its word, its silence or its return."""
    state = turn.state
    if event.session != state.session:
        return
    turn.set(link=Link.LOST)
    peer = state.config.peer
    turn.explain(Why("D1", f"session with {peer} lost: {event.text}"))
    planned = state.handover is not None and state.handover.ready
    level = Level.INFO if planned else Level.WARNING
    turn.tell(level, "D1", f"session with {peer} lost: {event.text}")
    if state.phase is Phase.LEAVING and state.peer_leaving:
        # The last man has ended, or lost, the session: there is nothing left to wait for (H1).
        farewell.close_and_go(turn)
    elif not state.peer_heard:
        await_takeover(turn)
    elif state.peer is not None and state.phase is Phase.FOLLOWING:
        peer_changed(turn, state.peer)


def await_takeover(turn: Turn) -> None:
    """The secondary acts last: takeover_wait after the peer's last sign of life (L3')."""
    state = turn.state
    wait_ms = state.config.timing.takeover_wait_ms + fencing.delay_ms(state)
    turn.arm_at(Timer.TAKEOVER, state.last_heard_ms + wait_ms)
    looking.look(turn)


def peer_changed(turn: Turn, status: PeerStatus) -> None:
    """What the heartbeats of a primary that we follow tell (never a proof, P7)."""
    state = turn.state
    turn.cancel(Timer.TAKEOVER)
    if state.phase is Phase.LEAVING and state.peer_leaving and status.role is Role.STOP:
        # Its word that the final barrier is done was lost; it would not have left without one.
        farewell.close_and_go(turn)
        return
    if state.link is not Link.LOST or state.phase is not Phase.FOLLOWING:
        return
    if status.role.runs_vm:
        generation = state.lineage.current.id
        elsewhere = status.role is Role.ALONE and not generation.startswith(status.generation)
        if elsewhere and not state.awaits(Step.OUTDATE):
            # It went on without us: our copy is outdated, whatever became of its request.
            turn.order(CloseSession, Step.OUTDATE)
            turn.set(nonce="")
    else:
        turn.tell(Level.INFO, "P7", f"{state.config.peer} is back but does not run the VM")
        turn.order(CloseSession, Step.CLOSE)
        turn.set(session=None, link=Link.NONE, handover=None)
        turn.enter(Role.WAIT, Phase.WAITING)


def certificate(turn: Turn, event: CertificateReceived) -> None:
    """L8: the peer's run is over, really; used once, for the epoch that we follow."""
    state = turn.state
    if state.phase is not Phase.FOLLOWING or event.epoch != _followed(turn):
        return
    turn.tell(Level.WARNING, "L8", f"{state.config.peer} certifies that its VM is stopped")
    turn.set(departed=True)
    begin(turn, ProofKind.CERTIFICATE)


def _followed(turn: Turn) -> Epoch:
    """The epoch of the primary that this node follows."""
    session = turn.state.session
    return session.epoch if session is not None else turn.state.lineage.epoch


def abdicated(turn: Turn, message: Abdicated) -> None:
    """D10: the primary's disk failed and it has fenced itself."""
    state = turn.state
    if state.phase is not Phase.FOLLOWING or message.epoch != _followed(turn):
        return
    turn.tell(Level.ERROR, "D10", f"{state.config.peer} gives up: {message.reason}")
    begin(turn, ProofKind.PEER_SAID_SO)


def takeover_due(turn: Turn) -> None:
    """The peer has been silent on every path for takeover_wait."""
    state = turn.state
    if state.phase is Phase.HANDING_OVER:
        return
    if state.phase is not Phase.FOLLOWING or state.peer_heard:
        return
    if state.listening:
        turn.arm(Timer.TAKEOVER, state.config.timing.retry_ms)
        return
    reason = obstacles.to_unproved(state)
    if reason is not None:
        leave_following(turn, *reason)
        return
    turn.set(departed=True)
    begin(turn, None)


def leave_following(turn: Turn, rule: str, text: str) -> None:
    """From SECOND to WAIT, with the reason."""
    turn.order(CloseSession, Step.CLOSE)
    turn.set(session=None, link=Link.NONE)
    turn.enter(Role.WAIT, Phase.WAITING, Why(rule, text))
    turn.tell(Level.WARNING, rule, text)


def begin(turn: Turn, kind: ProofKind | None) -> None:
    """Take over with a proof, or, without one, after asking who answers (W6', W8)."""
    state = turn.state
    reason = obstacles.to_any(state)
    if reason is not None:
        leave_following(turn, *reason)
        return
    turn.set(proof=Proof(kind, _followed(turn)) if kind is not None else None)
    turn.cancel(Timer.TAKEOVER, Timer.RETRY, Timer.PATIENCE)
    text = f"taking over from {state.config.peer}"
    turn.enter(Role.WAIT, Phase.DRAINING, Why("P8", text))
    turn.tell(Level.WARNING, "P8", text)
    turn.order(CloseSession, Step.DRAIN)


def drained(turn: Turn, event: EngineDone) -> None:
    """Everything acknowledged is applied and synced, or this copy is not whole."""
    state = turn.state
    turn.set(session=None, link=Link.NONE)
    if not event.ok:
        turn.persist(lineage=replace(state.lineage, label=DataLabel.OUTDATED))
        turn.block("P8", f"what was acknowledged could not be applied: {event.text}")
        return
    epoch = state.lineage.epoch.next_for(state.config.node)
    turn.persist(lineage=replace(state.lineage, epoch=epoch))
    preferring.taken_over(turn)
    found = looking.fresh(turn)
    if state.config.leased:
        arbitration.take_over(turn, Agreed.NOTHING)
    elif state.proof is not None:
        running.enter_alone(turn, state.proof.kind)
    elif state.config.fences:
        fencing.begin(turn)
    elif found is not None:
        probed(turn, found)
    else:
        turn.order(Probe, Step.PROBE)


def probed(turn: Turn, event: ProbeDone) -> None:
    """W6', W8: only a node that is not the isolated one, and whose peer answers nowhere."""
    if turn.state.phase is not Phase.DRAINING:
        return
    looking.remember(turn, event)
    pinged = turn.state.config.pinged
    if event.peer_answers or event.isolated or turn.state.isolated:
        turn.enter(Role.WAIT, Phase.WAITING, Why("W8", event.text))
        turn.tell(Level.WARNING, "W8", f"does not take over: {event.text}")
        turn.set(goal=Goal.RUN)
        return
    turn.tell(Level.INFO, "W8" if pinged else "W6", event.text)
    running.enter_alone(turn, ProofKind.PING if pinged else ProofKind.POLICY_RUN)


def outdate_requested(turn: Turn, message: OutdateRequest) -> None:
    """D9: step back durably, or say why not."""
    state = turn.state
    reason = _cannot_step_back(turn, message)
    if reason:
        turn.send(
            OutdateAnswer(message.nonce, False, state.lineage.epoch, reason, _ran(state, message))
        )
        return
    if state.awaits(Step.OUTDATE):
        return
    turn.set(nonce=message.nonce)
    epoch = max(state.lineage.epoch, message.epoch)
    turn.set(lineage=replace(state.lineage, epoch=epoch))
    if _in_session(state):
        turn.order(CloseSession, Step.OUTDATE)
    else:
        _step_back(turn)


def _in_session(state: ModuleState) -> bool:
    """Also one that is only expected: it must not come about behind the word that we are out."""
    if state.phase is Phase.JOINING:
        return state.session is not None
    return state.phase in (Phase.FOLLOWING, Phase.RESYNCING)


_TAKING_OVER = (
    Phase.DRAINING,
    Phase.ARBITRATING,
    Phase.FENCING,
    Phase.ENTERING,
    Phase.OPENING,
    Phase.PROVING,
)


def _cannot_step_back(turn: Turn, message: OutdateRequest) -> str:
    state = turn.state
    node = state.config.node
    if state.role.runs_vm:
        return f"{node} runs the VM"
    if state.phase in _TAKING_OVER:
        return f"{node} is taking over"
    if message.epoch < state.lineage.held:
        return f"{node} has run under epoch {state.lineage.held} since"
    session = state.session
    if session is not None and (message.epoch, message.session) < (session.epoch, session.number):
        return f"{node} has a newer session"
    return ""


def _ran(state: ModuleState, message: OutdateRequest) -> bool:
    """Whether this node has what was acknowledged here after the node that asks was cut off."""
    whole = state.lineage.label is DataLabel.UPTODATE
    return whole and message.epoch < state.lineage.held


def stepped_back(turn: Turn, event: EngineDone) -> None:
    """The stream is closed: now the label."""
    del event  # also a copy whose drain failed is outdated
    _step_back(turn)


def _step_back(turn: Turn) -> None:
    state = turn.state
    lineage = state.lineage
    if lineage.label is DataLabel.UPTODATE:
        lineage = replace(lineage, label=DataLabel.OUTDATED, intent_primary=False)
        turn.tell(Level.WARNING, "D9", f"{state.config.peer} goes on alone: copy outdated")
    turn.persist(lineage=lineage)
    if state.nonce:
        turn.send(OutdateAnswer(state.nonce, True, lineage.epoch, ""))
    if _in_session(state):
        turn.cancel(Timer.RETRY, Timer.PATIENCE)
        turn.set(session=None, link=Link.NONE, resync=None)
        turn.enter(Role.WAIT, Phase.WAITING, Why("D9", "copy outdated, asks to follow again"))


_MAY_TAKE = (Phase.FOLLOWING, Phase.WAITING, Phase.LEAVING, Phase.CLAIMING, Phase.JOINING)


def handover_requested(turn: Turn, message: HandoverRequest) -> None:
    """H2: preflight, then a durable claim; only after it does the leaver stop the VM."""
    state = turn.state
    if state.handover is not None and state.handover.epoch == message.epoch:
        if state.handover.ready:
            turn.send(HandoverReady(message.epoch))
        return
    reason = _cannot_take(turn, message)
    if reason:
        stopping = state.phase is Phase.LEAVING or state.goal is Goal.STOP
        turn.send(HandoverRefused(message.epoch, reason, stopping))
        return
    turn.set(handover=Handover(message.epoch, message.kind))
    turn.order(Preflight, Step.PREFLIGHT)


def _cannot_take(turn: Turn, message: HandoverRequest) -> str:
    state = turn.state
    node = state.config.node
    if state.phase is Phase.LEAVING:
        return f"{node} is stopping"
    if state.phase is not Phase.FOLLOWING or state.link is not Link.IN_SYNC:
        return f"{node} has no equal copy"
    if not state.settings.failover and message.kind.leaves:
        return "failover is off"
    if message.kind is HandoverKind.ROOM and room.moved_lately(turn):
        return f"it was moved for want of room within the last hour, as {node} remembers"
    if state.settings.start_failed:
        return f"start_prim failed on {node}: {state.settings.start_failed}"
    if preferring.drained(state):
        return f"{node} was drained by {state.settings.drained_by}"
    if message.epoch <= state.lineage.epoch:
        return f"{node} has seen epoch {state.lineage.epoch}"
    return ""


def preflight_done(turn: Turn, event: VmDone) -> None:
    """Would the VM start here?"""
    handover = turn.state.handover
    if handover is None:
        return
    if not event.ok:
        turn.set(handover=None)
        turn.send(HandoverRefused(handover.epoch, event.text, False))
        return
    turn.set(handover=replace(handover, ready=True))
    settings = turn.state.settings
    if handover.kind is HandoverKind.ROOM:
        settings = replace(settings, room_handover_wall_ms=turn.stimulus.wall_ms)
    lineage = replace(turn.state.lineage, epoch=handover.epoch)
    turn.persist(lineage=lineage, settings=settings)
    turn.send(HandoverReady(handover.epoch))


def released(turn: Turn, message: Released) -> None:
    """The commit: from here on only this node may run (H2)."""
    state = turn.state
    seen = state.lineage.epoch
    claim = state.handover
    claimed = claim is not None and claim.ready and claim.epoch == message.epoch
    # Else our own claim, or a later one of ours, must be the highest epoch that was seen here.
    foreign = message.epoch.node != seen.node or message.epoch > seen or turn.peer_runs
    if foreign and not claimed:
        return
    if state.lineage.intent_primary or state.awaits(Step.TAKE):
        if state.lineage.intent_primary:
            turn.send(Taken(message.epoch))
        return
    if state.phase not in _MAY_TAKE or message.epoch < state.lineage.held:
        return  # A late copy, when this node has run under a later epoch since.
    turn.set(handover=Handover(message.epoch, message.kind, ready=True, taking=True))
    turn.cancel(Timer.TAKEOVER)
    how = "as planned" if message.kind is not HandoverKind.ROOM else "whose disk is full"
    text = f"takes the VM over from {state.config.peer} {how} ({message.kind})"
    turn.tell(Level.INFO, "H2", text)
    turn.enter(Role.WAIT, Phase.DRAINING, Why("H2", text))
    turn.order(CloseSession, Step.TAKE)


def taken(turn: Turn, event: EngineDone) -> None:
    """Drained: the intent is durable, the leaver may go."""
    handover = turn.state.handover
    if handover is None:
        return
    turn.set(session=None, link=Link.NONE, handover=None)
    if not event.ok:
        lineage = replace(turn.state.lineage, label=DataLabel.OUTDATED)
        turn.persist(lineage=lineage)
        turn.block("P8", f"what was acknowledged could not be applied: {event.text}")
        return
    lineage = replace(
        turn.state.lineage,
        intent_primary=True,
        was_primary=True,
        held=turn.state.lineage.epoch,
    )
    turn.persist(lineage=lineage)
    turn.send(Taken(handover.epoch))
    leaves = handover.kind.leaves
    if leaves:
        preferring.taken_over(turn)
    if turn.state.config.leased:
        # The lease that the commit has begun is of an unknown moment, and a claim of ours may have
        # crossed the release: only the witness mints epochs (L2, H3).
        arbitration.take_over(turn, Agreed.ALONE if leaves else Agreed.IN_SYNC)
    elif leaves:
        running.enter_alone(turn, ProofKind.PEER_SAID_SO)
    else:
        waiting.open_in_sync(turn)
