"""`step`: one event in, the next state and the actions out. Total, deterministic, pure.

Every pair of phase and event has an answer; where nothing is to be done the event is ignored by
rule: late results (K2), answers to questions nobody asks any more (D9), timers of the past.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hyperha.core import (
    arbitration,
    commands,
    covering,
    failover,
    farewell,
    fencing,
    holding,
    joining,
    killing,
    leaving,
    looking,
    losing,
    preferring,
    results,
    room,
    rules,
    running,
    safety,
    settings,
    source,
    splitting,
    takeover,
    timers,
    versions,
    waiting,
)
from hyperha.core import events as e
from hyperha.core import (
    messages as m,
)
from hyperha.core.actions import Action, Level, Timer
from hyperha.core.events import Stimulus
from hyperha.core.invariants import check
from hyperha.core.state import Link, ModuleState, Phase, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Role


def step(state: ModuleState, stimulus: Stimulus) -> tuple[ModuleState, tuple[Action, ...]]:
    """The decision: `state` stays as it was, the next state and what is to be done are returned.

    Raises InvariantBroken when the result contradicts itself: the shell then makes the module safe.
    """
    turn = Turn(state, stimulus)
    handler = _EVENTS[type(stimulus.event)]
    handler(turn, stimulus.event)
    if turn.state.phase is Phase.ASKING and turn.state.link is not Link.IN_SYNC:
        leaving.no_handover(turn, "the session with it was lost")
    if turn.state.role is Role.WAIT and turn.state.phase is Phase.WAITING:
        waiting.settle(turn)
    rules.settle(turn)
    holding.settle(turn)
    preferring.settle(turn)
    room.settle(turn)
    splitting.settle(turn)
    check(turn.state)
    return turn.state, tuple(turn.actions)


def _peer_heard(turn: Turn, event: e.PeerHeard) -> None:
    state = turn.state
    if not state.peer_heard and state.phase is not Phase.IDLE:
        turn.tell(Level.INFO, "L9", f"{state.config.peer} is heard ({event.status.role})")
    if state.refusals and _otherwise(state.peer, event.status):
        turn.set(refusals=0, hold_until_ms=0)
    turn.set(peer=event.status, peer_heard=True, last_heard_ms=turn.now_ms)
    versions.heard(turn, event.status.config_version)
    turn.set(isolated="", shoots_last=False)
    looking.forget(turn)
    if event.status.role is Role.STOP and state.phase is Phase.JOINING:
        turn.set(yielded=False)
        turn.enter(Role.WAIT, Phase.WAITING)
        joining.rejoin_later(turn)
    elif state.role is Role.SECOND:
        takeover.peer_changed(turn, event.status)
    elif state.role.runs_vm and event.status.role.runs_vm:
        splitting.both_run(turn, event.status)


def _otherwise(before: e.PeerStatus | None, now: e.PeerStatus) -> bool:
    """Whether the peer may answer a claim in another way than before."""
    if before is None:
        return True
    return any(
        getattr(before, name) != getattr(now, name)
        for name in ("role", "data", "generation", "stopping", "boot_id")
    )


def _peer_silent(turn: Turn, event: e.PeerSilent) -> None:
    state = turn.state
    if state.peer_heard and state.phase is not Phase.IDLE:
        turn.tell(Level.WARNING, "L9", f"{state.config.peer} is silent on every path")
    turn.set(peer_heard=False, last_heard_ms=event.last_heard_ms, yielded=False)
    turn.set(shoots_last=fencing.shoots_last(state, event))
    wait_ms = state.config.timing.stall_limit_ms + fencing.delay_ms(turn.state)
    if state.phase is Phase.FOLLOWING:
        takeover.await_takeover(turn)
    elif state.role.runs_vm and state.link in (Link.IN_SYNC, Link.ENDING):
        losing.freeze(turn, f"{state.config.peer} is silent")
        turn.arm_at(Timer.RELEASE, event.last_heard_ms + wait_ms)
    elif state.role.runs_vm and state.link is Link.LOST:
        turn.arm_at(Timer.RELEASE, event.last_heard_ms + wait_ms)
        looking.look(turn)
    elif state.phase in (Phase.CLAIMING, Phase.JOINING, Phase.PROVING, Phase.OPENING):
        turn.cancel(Timer.RETRY, Timer.PATIENCE)
        turn.set(claim=None)
        turn.enter(Role.WAIT, Phase.WAITING)
    elif state.phase is Phase.LEAVING:
        farewell.close_and_go(turn)
    elif state.phase is Phase.ASKING:
        leaving.no_handover(turn, "it is silent")


def _self_stalled(turn: Turn, event: e.SelfStalled) -> None:
    """L7: this node has observed nothing; every judgement needs a full new window."""
    state = turn.state
    if state.phase is Phase.IDLE:
        return
    turn.tell(Level.WARNING, "L7", f"this node itself did not run for {event.gap_ms} ms")
    timing = state.config.timing
    looking.forget(turn)
    looking.look(turn)
    turn.set(listening=True)
    turn.arm(Timer.LISTEN, timing.takeover_wait_ms)
    if state.phase is Phase.FOLLOWING and not state.peer_heard:
        turn.arm(Timer.TAKEOVER, timing.takeover_wait_ms)
    if state.link is Link.LOST and state.role.runs_vm:
        turn.arm(Timer.RELEASE, timing.takeover_wait_ms)


def _message(turn: Turn, event: e.MessageReceived) -> None:
    handler = _MESSAGES[type(event.message)]
    handler(turn, event.message)


def _handover_cancelled(turn: Turn, message: m.HandoverCancelled) -> None:
    handover = turn.state.handover
    if turn.state.role is not Role.SECOND or handover is None or handover.taking:
        return
    if handover.epoch == message.epoch:
        turn.set(handover=None)


def _session_up(turn: Turn, event: e.SessionUp) -> None:
    if turn.state.phase is Phase.JOINING:
        joining.session_up(turn, event)
    else:
        source.session_up(turn, event)


def _session_lost(turn: Turn, event: e.SessionLost) -> None:
    state = turn.state
    if state.role.runs_vm or state.phase is Phase.OPENING:
        source.session_lost(turn, event)
    elif state.phase in (Phase.FOLLOWING, Phase.LEAVING):
        takeover.session_lost(turn, event)
    elif state.phase in (Phase.JOINING, Phase.RESYNCING):
        joining.session_lost(turn, event)


def _session_stalled(turn: Turn, event: e.SessionStalled) -> None:
    if turn.state.role.runs_vm:
        source.stalled(turn, event)


def _resync_progressed(turn: Turn, event: e.ResyncProgressed) -> None:
    resync = turn.state.resync
    if resync is not None and event.session == turn.state.session:
        turn.set(
            resync=replace(
                resync,
                done_bytes=event.done_bytes,
                total_bytes=event.total_bytes,
                bytes_per_s=event.bytes_per_s,
                seconds_left=event.seconds_left,
                recent_bytes_per_s=event.recent_bytes_per_s,
                held_back=event.held_back,
            )
        )


def _mount_lost(turn: Turn, event: e.MountLost) -> None:
    if turn.state.attached and turn.state.phase is not Phase.DETACHING:
        failover.start_anew(turn, Why("M6", f"the mount was lost: {event.text}"))


def _ignore(turn: Turn, event: Any) -> None:
    """A result that only had to arrive."""


def _opened(turn: Turn, event: e.EngineDone) -> None:
    if not event.ok and turn.state.session is not None:
        source.session_lost(turn, e.SessionLost(turn.state.session, event.text))


def _released(turn: Turn, event: e.EngineDone) -> None:
    if not event.ok:
        failover.disk_failed(turn, e.LocalDiskFailed(event.text))
    elif turn.state.phase is Phase.FLUSHING and not turn.state.awaits(Step.DEMOTE):
        leaving.flush(turn)
    else:
        failover.after_freeze(turn)


def _done(
    turn: Turn, event: e.EngineDone | e.VmDone | e.ProbeDone | e.WitnessDone | e.PoweredOff
) -> None:
    if isinstance(event, e.EngineDone) and event.candidates is not None and turn.state.facts:
        turn.set(facts=replace(turn.state.facts, candidates=event.candidates))
    purpose = turn.take(event.operation)
    if purpose is not None and isinstance(event, _RESULTS.get(purpose, e.EngineDone)):
        _STEPS[purpose](turn, event)


def _entered(turn: Turn, event: e.EngineDone) -> None:
    if not event.ok and turn.state.role.runs_vm:
        failover.disk_failed(turn, e.LocalDiskFailed(f"dirty map not written: {event.text}"))
    else:
        running.entered(turn, event)


def _vm_started(turn: Turn, event: e.VmDone) -> None:
    if not running.vm_started(turn, event):
        commands.shut_down(turn, Why("B09", f"start_prim failed: {event.text}"))
    elif turn.state.exited_early:
        failover.vm_exited(turn, e.VmExited(turn.state.run, turn.state.exited_early))


_RESULTS: dict[Step, type[e.Event]] = {
    Step.START_VM: e.VmDone,
    Step.STOP_VM: e.VmDone,
    Step.FORBID_CERTIFICATE: e.VmDone,
    Step.ALLOW_CERTIFICATE: e.VmDone,
    Step.FENCE: e.VmDone,
    Step.KILL: e.VmDone,
    Step.PREFLIGHT: e.VmDone,
    Step.PROBE: e.ProbeDone,
    Step.LOOK: e.ProbeDone,
    Step.WITNESS: e.WitnessDone,
    Step.POWER_OFF: e.PoweredOff,
}
"""Who answers; every other step is the engine's."""

_STEPS: dict[Step, Callable[[Turn, Any], None]] = {
    Step.ATTACH: covering.attached,
    Step.DETACH: covering.detached,
    Step.UNCOVER: covering.uncovered,
    Step.MARK: results.marked,
    Step.OPEN_SAFETY: joining.safety_opened,
    Step.CLOSE_SAFETY: safety.closed,
    Step.UNDO: safety.undone,
    Step.EXPECT: joining.expected,
    Step.OPEN: _opened,
    Step.CLOSE: results.closed,
    Step.DRAIN: takeover.drained,
    Step.OUTDATE: takeover.stepped_back,
    Step.LEAVE: farewell.closed,
    Step.TAKE: takeover.taken,
    Step.ENTER: _entered,
    Step.RELEASE: _released,
    Step.PROMOTE: running.promoted,
    Step.DEMOTE: leaving.demoted,
    Step.FREEZE: _ignore,
    Step.END_PARKED: _ignore,
    Step.FINAL_BARRIER: leaving.flushed,
    Step.END_RESYNC: source.resync_ended,
    Step.RESYNC_BARRIER: source.resync_barrier,
    Step.CLEAR: results.cleared,
    Step.COUNT: splitting.counted,
    Step.START_VM: _vm_started,
    Step.STOP_VM: leaving.vm_stopped,
    Step.FORBID_CERTIFICATE: running.certificate_forbidden,
    Step.ALLOW_CERTIFICATE: _ignore,
    Step.FENCE: killing.fenced,
    Step.KILL: killing.killed,
    Step.PREFLIGHT: takeover.preflight_done,
    Step.PROBE: takeover.probed,
    Step.LOOK: looking.looked,
    Step.WITNESS: arbitration.done,
    Step.POWER_OFF: fencing.done,
}


_MESSAGES: dict[type[m.PeerMessage], Callable[[Turn, Any], None]] = {
    m.Claim: waiting.claim_received,
    m.Grant: waiting.granted,
    m.Refusal: waiting.refused,
    m.OutdateRequest: takeover.outdate_requested,
    m.OutdateAnswer: losing.outdate_answered,
    m.JoinRequest: source.join_requested,
    m.JoinOffer: joining.offered,
    m.JoinAccept: source.accepted,
    m.JoinRefusal: lambda turn, message: _join_refused(turn, message),
    m.ResyncDone: joining.resync_done,
    m.ResyncConfirmed: source.confirmed,
    m.HandoverRequest: takeover.handover_requested,
    m.HandoverReady: leaving.ready,
    m.HandoverRefused: leaving.refused,
    m.HandoverCancelled: _handover_cancelled,
    m.Released: takeover.released,
    m.Taken: leaving.taken,
    m.LeaveRequest: farewell.requested,
    m.LeaveAnswer: farewell.answered,
    m.Goodbye: losing.goodbye,
    m.LastManStopped: farewell.last_man_stopped,
    m.Abdicated: takeover.abdicated,
    m.SplitReport: splitting.reported,
}


def _join_refused(turn: Turn, message: m.JoinRefusal) -> None:
    if turn.state.role.runs_vm or turn.state.phase is Phase.OPENING:
        source.join_refused(turn, message)
    else:
        joining.refused(turn, message)


_EVENTS: dict[type[e.Event], Callable[[Turn, Any], None]] = {
    e.CommandGiven: commands.given,
    e.SettingsChanged: settings.changed,
    e.PeerHeard: _peer_heard,
    e.PeerSilent: _peer_silent,
    e.MessageReceived: _message,
    e.CertificateReceived: takeover.certificate,
    e.SelfStalled: _self_stalled,
    e.TimerFired: timers.fired,
    e.PersistFailed: failover.persist_failed,
    e.EngineDone: _done,
    e.VmDone: _done,
    e.ProbeDone: _done,
    e.WitnessDone: _done,
    e.PoweredOff: _done,
    e.LeaseExpired: arbitration.expired,
    e.SessionUp: _session_up,
    e.SessionLost: _session_lost,
    e.SessionStalled: _session_stalled,
    e.ResyncProgressed: _resync_progressed,
    e.ResyncCopied: source.copied,
    e.SafetyLost: safety.lost,
    e.SafetyShort: joining.safety_short,
    e.LocalDiskFailed: failover.disk_failed,
    e.DiskFull: room.filled,
    e.DiskHasRoom: room.back,
    e.DiskFilling: failover.disk_filling,
    e.EngineLost: failover.engine_lost,
    e.MountLost: _mount_lost,
    e.VmExited: failover.vm_exited,
    e.CheckerFailed: failover.checker_failed,
    e.ResourceSeen: holding.seen,
    e.PeerResources: rules.peer_resources,
}
