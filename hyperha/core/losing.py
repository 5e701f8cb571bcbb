"""The primary loses its peer: nothing is acknowledged before a proof that it is out (D1, D2).

Everything here holds in every phase of a node that runs the VM, also while it is being started or
stopped, and for one that is about to run and asks the other node to step back first.
"""

from __future__ import annotations

from hyperha.core import arbitration, fencing, killing, looking, running
from hyperha.core.actions import Acknowledge, CloseSession, EndParked, Freeze, Level, Timer
from hyperha.core.messages import Goodbye, OutdateAnswer, OutdateRequest
from hyperha.core.options import Isolation
from hyperha.core.records import ProofKind
from hyperha.core.state import Link, Phase, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role


def freeze(turn: Turn, text: str) -> None:
    """D1: nothing is acknowledged any more until there is a proof (D2)."""
    state = turn.state
    turn.order(Freeze, Step.FREEZE)
    turn.order(CloseSession, Step.CLOSE)
    turn.forget(Step.END_RESYNC, Step.RESYNC_BARRIER)
    arbitration.drop(turn)
    turn.set(
        link=Link.LOST,
        session=None,
        resync=None,
        growing=False,
        acknowledge=Acknowledge.NONE,
        frozen_since_ms=turn.now_ms,
        # Its goodbye may come behind the end of the session, and even behind the proof.
        departed=state.leave_granted != state.session_number,
    )
    turn.enter(state.role, state.phase, Why("D1", f"writes are held: {text}"))
    turn.tell(Level.WARNING, "D1", f"writes are held: {text}")
    turn.arm(Timer.PAUSE, state.config.timing.pause_after_ms)
    turn.arm(Timer.RELEASE, state.config.timing.stall_limit_ms)
    if state.phase is Phase.FLUSHING:
        turn.arm(Timer.PATIENCE, 2 * state.config.timing.stall_limit_ms)
    arbitration.ask_early(turn)
    looking.look(turn)
    request_outdate(turn)


def request_outdate(turn: Turn) -> None:
    """D2a, D9: ask the peer to write OUTDATED; it refuses when it is primary."""
    turn.set(nonce=turn.stimulus.entropy)
    if not turn.state.role.runs_vm:
        if turn.state.session is not None:
            # One that comes about now would be of a node that says that its copy is out.
            turn.order(CloseSession, Step.CLOSE)
            turn.set(session=None, link=Link.NONE, resync=None)
        why = Why("D2", f"asks {turn.state.config.peer} to write that its copy is out")
        turn.enter(Role.WAIT, Phase.PROVING, why)
    send_outdate(turn)


def send_outdate(turn: Turn) -> None:
    """The request, again until it is answered."""
    state = turn.state
    epoch = state.lineage.held if state.role.runs_vm else state.lineage.epoch
    generation = state.lineage.current.id
    turn.send(OutdateRequest(generation, epoch, state.session_number, state.nonce))
    turn.arm(Timer.PROOF, state.config.timing.retry_ms)


def proof_due(turn: Turn) -> None:
    """Ask again while nothing was found."""
    if seeks_proof(turn):
        send_outdate(turn)


def seeks_proof(turn: Turn) -> bool:
    """Whether a proof that the peer is out is being waited for."""
    state = turn.state
    busy = any(map(state.awaits, (Step.ENTER, Step.FORBID_CERTIFICATE, Step.RELEASE)))
    return (state.link is Link.LOST or state.phase is Phase.PROVING) and not busy


def found_proof(turn: Turn, kind: ProofKind) -> None:
    """Go on alone, if that is what is waited for."""
    if seeks_proof(turn):
        running.enter_alone(turn, kind)


def outdate_answered(turn: Turn, message: OutdateAnswer) -> None:
    """The peer's word, for exactly this request (D9)."""
    state = turn.state
    if message.nonce != state.nonce or not seeks_proof(turn):
        return
    if message.outdated:
        found_proof(turn, ProofKind.PEER_SAID_SO)
        return
    # Asked again many times a second, it says the same.
    turn.tell_once(Level.WARNING, "D9", f"{state.config.peer} does not step back: {message.reason}")
    if message.ran or (message.epoch > state.lineage.held and turn.peer_runs):
        # Also while it runs no more: what it has acknowledged since is nowhere else.
        superseded(turn)


def goodbye(turn: Turn, message: Goodbye) -> None:
    """The secondary has left (D7)."""
    state = turn.state
    if not state.role.runs_vm or message.session != state.session_number:
        return
    if state.link in (Link.IN_SYNC, Link.ENDING):
        freeze(turn, f"{state.config.peer} has left")
    turn.set(departed=False)
    if message.outdated:
        turn.tell(Level.INFO, "D7", f"{state.config.peer} has left cleanly")
        found_proof(turn, ProofKind.PEER_SAID_SO)


def release_due(turn: Turn) -> None:
    """stall_limit has passed since the peer's last sign of life (L3', W6')."""
    state = turn.state
    if not seeks_proof(turn):
        return
    if state.config.leased:
        if state.need is None:
            arbitration.shrink(turn)
        return
    if state.peer_heard:
        # It lives but does not answer for this module: keep asking, until it is silent.
        turn.arm(Timer.RELEASE, state.config.timing.retry_ms)
        return
    if state.phase is Phase.PROVING:
        turn.enter(Role.WAIT, Phase.WAITING)
        return
    if state.listening:
        turn.arm(Timer.RELEASE, state.config.timing.retry_ms)
        return
    if state.config.fences:
        fencing.begin(turn)
        return
    match state.config.policy:
        case None:
            _continue_by_ping(turn)
        case Isolation.PRIMARY:
            found_proof(turn, ProofKind.POLICY_PRIMARY)
        case Isolation.RUN:
            found_proof(turn, ProofKind.POLICY_RUN)
        case Isolation.HOLD:
            _hold(turn, "W6", f"{state.config.peer} is silent: writes are held until it is back")


def _continue_by_ping(turn: Turn) -> None:
    """W8: the last answer counts, if it is fresh; the first "no" is final."""
    state = turn.state
    if state.isolated:
        _hold(turn, "W8", f"{state.isolated}: writes are held, then the VM is ended here")
        return
    found = looking.fresh(turn)
    if found is not None and found.isolated is False:
        found_proof(turn, ProofKind.PING)
    else:
        turn.arm(Timer.RELEASE, state.config.timing.retry_ms)


def _hold(turn: Turn, rule: str, text: str) -> None:
    if turn.state.why.text != text:
        turn.tell(Level.ERROR, rule, text)
    turn.explain(Why(rule, text))


def pause_due(turn: Turn) -> None:
    """M7: the guest is paused rather than left to time out."""
    if turn.state.frozen and not turn.state.paused:
        turn.set(paused=True)
        turn.tell(Level.WARNING, "M7", "the freeze lasts: pending writes end with an error")
        turn.order(EndParked, Step.END_PARKED)


def superseded(turn: Turn) -> None:
    """The other node runs, or has run, under a higher epoch: fence, kill, follow it (L5', C02)."""
    runs = "runs" if turn.peer_runs else "has run"
    give_way(turn, f"{turn.state.config.peer} {runs} under a higher epoch")


def give_way(turn: Turn, text: str) -> None:
    """Fence, kill, and follow whoever may run (L5')."""
    text = f"{text}: this node gives way"
    turn.tell(Level.ERROR, "L1", text)
    killing.begin(turn, Why("L1", text))
