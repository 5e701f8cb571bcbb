"""WAIT: deciding what this node may do next.

`settle` looks at everything that is known and either acts or says what is being waited for (P2).
No node starts on its own reading of heartbeats: it claims, and the peer grants durably (P7).
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import arbitration, covering, holding, joining, running, safety, versions
from hyperha.core.actions import Level, Timer
from hyperha.core.lineage import Direction, decide
from hyperha.core.messages import Claim, Grant, Refusal, Summary
from hyperha.core.options import Isolation
from hyperha.core.records import DataLabel, ProofKind
from hyperha.core.state import Agreed, Goal, Phase, Why
from hyperha.core.turn import Turn
from hyperha.domain import Epoch, Role

_BUSY = (
    Phase.HANDING_OVER,
    Phase.KILLING,
    Phase.DETACHING,
    Phase.ATTACHING,
    Phase.UNDOING,
    Phase.ARBITRATING,
    Phase.FENCING,
)


_RARELY_MS = 30_000


def settle(turn: Turn) -> None:
    """What a node in WAIT may do now; called after every event while it waits."""
    state = turn.state
    if state.goal is Goal.BLOCKED or _held_back(turn):
        return
    if turn.peer_runs:
        if state.goal in (Goal.PRIMARY, Goal.FORCE):
            refuse_start(turn, "P9", f"{state.config.peer} runs the VM: stop it there, or use swap")
        elif turn.now_ms >= state.hold_until_ms:
            joining.join(turn)
        return
    if state.yielded and state.peer_heard:
        if turn.now_ms >= state.hold_until_ms:
            joining.join(turn)
        return
    if state.goal is Goal.SECONDARY:
        _wait(turn, "P2", f"waits until {state.config.peer} runs the VM")
        return
    reason = _cannot_be_source(turn)
    if reason is not None:
        _wait(turn, *reason)
    elif state.listening and not state.peer_heard:
        _wait(turn, "L7", f"listening for {state.config.peer}")
    elif safety.can_undo(state):
        safety.undo(turn)
    elif state.peer_heard:
        if turn.now_ms >= state.hold_until_ms:
            claim(turn)
    elif state.config.leased:
        if turn.now_ms >= state.hold_until_ms:
            arbitration.take_over(turn, Agreed.NOTHING)
    else:
        _settle_alone(turn)


def _held_back(turn: Turn) -> bool:
    """Whether this node may neither run nor follow, for a reason of its own, which is told."""
    state = turn.state
    held = holding.reason(state)
    if state.unknown_data:
        _wait(turn, "R12", state.unknown_data)
        # Nothing will come of it by itself: whoever commanded it hears so at once.
        turn.finish(False, state.unknown_data)
    elif held is not None:
        _wait(turn, held.rule, held.text)
    return bool(state.unknown_data) or held is not None


def _wait(turn: Turn, rule: str, text: str) -> None:
    turn.tell_once(Level.INFO, rule, f"waits: {text}")
    turn.explain(Why(rule, text))


def refuse_start(turn: Turn, rule: str, text: str) -> None:
    """A `prim` that may not be: the command fails and the module stops again."""
    turn.set(end=Why(rule, text), goal=Goal.STOP)
    turn.finish(False, text)
    covering.detach(turn)


def _cannot_be_source(turn: Turn) -> tuple[str, str] | None:
    """Why this node's copy may not be started now, by rule; None when it may (P1, P3)."""
    state = turn.state
    peer = state.config.peer
    if state.goal is Goal.FORCE:
        return None
    label = state.lineage.label
    if label is DataLabel.INCONSISTENT and not safety.can_undo(state):
        return "P3", f"this copy is half made: waits for {peer} to run the VM"
    if state.goal is Goal.PRIMARY:
        return None
    if label is DataLabel.FRESH:
        return "R1", f"no data yet: command prim on the node that has it, or start {peer}"
    if label is DataLabel.OUTDATED:
        return "P3", f"this copy is out of date: waits for {peer} to run the VM"
    if not state.settings.failover and not state.lineage.was_primary:
        return "P1", f"failover is off: waits for {peer} to run the VM"
    if versions.older(state):
        return "F13", versions.difference(state)
    if state.settings.start_failed:
        return "B09", f"start_prim failed here: {state.settings.start_failed}"
    if state.peer_heard and state.peer is not None and state.peer.stopping:
        return "P7", f"{peer} is still stopping"
    return None


def _settle_alone(turn: Turn) -> None:
    """The peer is silent and a full window has passed (P6, P2)."""
    state = turn.state
    peer = state.config.peer
    if state.goal in (Goal.PRIMARY, Goal.FORCE):
        _own_epoch(turn)
        running.enter_alone(turn, ProofKind.OPERATOR)
        return
    proof = state.lineage.peer_out
    if state.settings.certified_epoch == state.lineage.held and state.lineage.intent_primary:
        _wait(
            turn,
            "L8",
            f"this node's guardian certified to {peer} that the VM had stopped here, so it may run "
            f"there: waits for its answer, or for the command prim if it is off",
        )
    elif state.lineage.released_to is not None:
        _wait(turn, "H2", f"handed over to {state.lineage.released_to.node}: waits for it")
    elif state.isolated:
        text = f"{state.isolated}: mend its network, or command prim here if {peer} is off"
        _wait(turn, "W8", text)
    elif proof is None:
        _wait(
            turn,
            "P2",
            f"{peer} does not answer and may hold newer data: start it, "
            f"or command prim here if it is off",
        )
    elif proof.kind.durable:
        running.continue_line(turn)
    elif state.config.policy is Isolation.RUN:
        turn.tell(Level.WARNING, "P6", f"both nodes could run: {peer} does not answer")
        running.continue_line(turn)
    else:
        _wait(turn, "P6", f"ran alone without proof that {peer} is off: waits for it")


def _own_epoch(turn: Turn) -> None:
    turn.persist(
        lineage=replace(
            turn.state.lineage, epoch=turn.state.lineage.epoch.next_for(turn.state.config.node)
        )
    )


def claim(turn: Turn) -> None:
    """P7: ask the peer, durably on both sides, to be the one that runs."""
    state = turn.state
    epoch = state.lineage.epoch.next_for(state.config.node)
    turn.set(claim=epoch)
    turn.persist(lineage=replace(state.lineage, epoch=epoch))
    # Refused again and again, the sentence stays: nobody reads one that comes and goes.
    why = state.why if state.refusals else Why("P7", f"asks {state.config.peer} to agree")
    turn.enter(Role.WAIT, Phase.CLAIMING, why)
    send_claim(turn)


def send_claim(turn: Turn) -> None:
    """The claim, again until it is answered."""
    state = turn.state
    assert state.claim is not None
    survivor = state.peer is not None and state.peer.role is Role.STOP
    operator = state.goal in (Goal.PRIMARY, Goal.FORCE)
    turn.send(Claim(state.claim, turn.summary(), survivor, operator))
    turn.retry()


def _claims_before(one: Summary, other: Summary, first_node: str) -> bool:
    """P7's table: highest epoch with intent PRIMARY, else the last primary, else the first name.

    The epochs of crossing claims themselves do not count: each side has raised its own by asking.
    """

    def key(side: Summary) -> tuple[bool, bool, bool]:
        return (not side.intent_primary, not side.was_primary, side.node != first_node)

    return key(one) < key(other)


def claim_received(turn: Turn, message: Claim) -> None:
    """Grant durably, or say why not."""
    state = turn.state
    reason = _refusal(turn, message)
    if reason:
        turn.send(Refusal(message.epoch, turn.summary(), reason))
        return
    if state.phase is Phase.CLAIMING:
        turn.set(claim=None)
        turn.enter(Role.WAIT, Phase.WAITING, Why("P7", f"{state.config.peer} goes first"))
        _pause(turn)
    lineage = state.lineage
    highest = max(lineage.epoch, message.epoch)
    # Unknown data is never promoted: the claimant need not wait for it to follow (R12).
    outdate = message.survivor or message.operator or bool(state.unknown_data)
    if outdate and lineage.label is DataLabel.UPTODATE:
        lineage = replace(lineage, label=DataLabel.OUTDATED, intent_primary=False)
        turn.tell(Level.INFO, "H1", f"{state.config.peer} goes on alone: this copy is now outdated")
    settings = replace(state.settings, certified_epoch=None)
    # The claimant is in, whatever proved that it was out (P6).
    turn.persist(lineage=replace(lineage, epoch=highest, peer_out=None), settings=settings)
    out = turn.state.lineage.label is not DataLabel.UPTODATE
    turn.set(yielded=not out, granted=message.epoch)
    turn.send(Grant(message.epoch, turn.summary(), out))


def _refusal(turn: Turn, message: Claim) -> str:
    state = turn.state
    node = state.config.node
    if state.role.runs_vm or state.phase in (Phase.DRAINING, Phase.ENTERING, Phase.OPENING):
        return f"{node} runs the VM or is about to"
    if state.phase in _BUSY:
        return f"{node} is busy: {state.phase}"
    if message.epoch == state.granted and state.phase in (Phase.IDLE, Phase.WAITING, Phase.JOINING):
        return ""
    if message.epoch <= state.lineage.epoch and state.phase is not Phase.CLAIMING:
        return f"{node} has seen epoch {state.lineage.epoch}"
    if state.role is Role.SECOND:
        return f"{node} has not finished with the last session"
    verdict = decide(turn.summary(), message.summary)
    # Only a confirmed command may give up what this copy has and the other one has not (P9).
    gives_up = message.operator and message.summary.adopt
    # Equal but for zones to compare (R4): the node whose start failed lets the other one run.
    lets = verdict.rule == "R4" and bool(state.settings.start_failed)
    if verdict.direction is Direction.SOURCE and not (gives_up or lets):
        return f"{node} has the better copy: {verdict.text}"
    nothing_here = message.operator and not state.lineage.current.id
    if verdict.direction is Direction.CONFLICT and not (gives_up or nothing_here):
        return verdict.text
    operator = state.goal in (Goal.PRIMARY, Goal.FORCE)
    if message.operator and not operator:
        return ""
    # Who waits for the other one's attach is about to claim: as good as a crossing claim.
    about_to = state.phase is Phase.WAITING and verdict.direction is Direction.EQUAL
    about_to = about_to and not state.yielded and state.goal is Goal.RUN
    if state.phase is not Phase.CLAIMING and not (about_to and _cannot_be_source(turn) is None):
        return ""
    if operator and not message.operator:
        return f"an operator wants {node} to run"
    if _claims_before(turn.summary(), message.summary, state.config.first_node):
        return f"{node} claims it first"
    return ""


def granted(turn: Turn, message: Grant) -> None:
    """The peer has agreed durably."""
    state = turn.state
    if state.phase is not Phase.CLAIMING or message.epoch != state.claim:
        return
    turn.set(claim=None, refusals=0, settings=replace(state.settings, certified_epoch=None))
    turn.cancel(Timer.RETRY)
    verdict = decide(turn.summary(), message.summary)
    behind = verdict.direction is Direction.TARGET and verdict.rule != "R4"
    if behind and not message.outdated:
        turn.enter(Role.WAIT, Phase.WAITING)
        hold(turn, "P7", f"{state.config.peer} has the better copy: {verdict.text}")
    elif state.config.leased:
        arbitration.take_over(turn, Agreed.ALONE if message.outdated else Agreed.IN_SYNC)
    elif message.outdated:
        running.enter_alone(turn, ProofKind.PEER_SAID_SO)
    else:
        open_in_sync(turn)


def open_in_sync(turn: Turn) -> None:
    """The peer is up to date and will follow: wait for it, so that no generation is needed."""
    state = turn.state
    turn.enter(Role.WAIT, Phase.OPENING, Why("P7", f"waits for {state.config.peer} to follow"))
    turn.arm(Timer.PATIENCE, state.config.timing.stall_limit_ms)


def refused(turn: Turn, message: Refusal) -> None:
    """The peer does not agree: remember what it knows, ask again later."""
    state = turn.state
    if state.phase is not Phase.CLAIMING or message.epoch != state.claim:
        return
    turn.set(claim=None)
    turn.cancel(Timer.RETRY)
    highest = max(state.lineage.epoch, message.summary.epoch, key=lambda epoch: epoch.counter)
    if highest != state.lineage.epoch:
        turn.persist(lineage=replace(state.lineage, epoch=Epoch(highest.counter, highest.node)))
    turn.enter(Role.WAIT, Phase.WAITING)
    if message.summary.epoch >= message.epoch:
        # Only our number was too low: ask again at once, before the other side raises it further.
        turn.explain(Why("P7", message.reason))
        return
    verdict = decide(turn.summary(), message.summary)
    behind = verdict.direction in (Direction.TARGET, Direction.CONFLICT)
    if state.goal is Goal.PRIMARY and behind and message.summary.current:
        # The command would give up what the other copy has: not without a confirmation.
        turn.set(goal=Goal.RUN)
        turn.finish(False, f"{message.reason}; to give that up, confirm the command")
    # Each claim is a durable write here: while nothing has changed there, they become rare.
    turn.set(refusals=state.refusals + 1 if behind else 0)
    hold(turn, "P7", message.reason)


def hold(turn: Turn, rule: str, text: str) -> None:
    """Wait with that reason, and look again in a while."""
    _pause(turn)
    _wait(turn, rule, text)


def _pause(turn: Turn) -> None:
    delay_ms = turn.state.config.timing.retry_ms
    delay_ms = min(delay_ms << min(turn.state.refusals, 16), max(delay_ms, _RARELY_MS))
    turn.set(hold_until_ms=turn.now_ms + delay_ms)
    turn.arm(Timer.REJOIN, delay_ms)
