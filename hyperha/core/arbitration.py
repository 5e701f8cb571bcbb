"""What a node asks of the lease witness, and what the answers let it do (W1-W10, H3).

One request at a time, made from what is known when it is sent, and sent again under the same id
until it is answered (W7). What is needed is remembered in `need`; without one the witness is only
told, now and then, that this node runs on, or asked what it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hyperha.core import leaving, losing, requests, running, source, waiting
from hyperha.core.actions import AskWitness, Level, Timer
from hyperha.core.events import LeaseExpired, WitnessDone
from hyperha.core.lease import Answer, Verdict
from hyperha.core.records import ProofKind
from hyperha.core.state import Agreed, Link, ModuleState, Need, Phase, Step, Why
from hyperha.core.turn import Turn
from hyperha.domain import Epoch, Role

_IN_VAIN = ("W3", "W4", "W5")
"""Reasons to wait that only asking again can end."""


def begin(turn: Turn) -> None:
    """The module is being started: ask what the witness knows."""
    if turn.state.config.leased:
        turn.set(need=None, request=None, witness_answers=False, agreed=Agreed.NOTHING)
        turn.arm(Timer.WITNESS, 0)


def take_over(turn: Turn, agreed: Agreed) -> None:
    """Ask to be the node that may run, after what the peer has agreed to, if it has (W5, H3)."""
    turn.set(agreed=agreed)
    why = Why("H3", "asks the witness who may run")
    # Asked again and again in vain, the sentence stays: nobody reads one that comes and goes.
    turn.enter(Role.WAIT, Phase.ARBITRATING, turn.state.why if in_vain(turn.state) else why)
    _ask(turn, Need.TAKEOVER)


def in_vain(state: ModuleState) -> bool:
    """Whether a node in WAIT has asked the witness, and was not answered or refused."""
    return state.role is Role.WAIT and state.why.rule in _IN_VAIN


def shrink(turn: Turn) -> None:
    """Ask to be the only one in sync; the generation that will be is durable before (W1, W9)."""
    lineage = turn.state.lineage
    if not lineage.pending:
        turn.persist(lineage=replace(lineage, pending=turn.stimulus.entropy))
    _ask(turn, Need.SHRINK)


def grow(turn: Turn) -> None:
    """R11's step: the peer has said durably that its copy is equal. What is owed comes first."""
    if turn.state.lineage.shrink_owed:
        _ask(turn, Need.SHRINK)
    else:
        _count_the_other(turn)
        _ask(turn, Need.GROW)


def _count_the_other(turn: Turn) -> None:
    """Durable before the witness does: from then on the other node can be granted to run (L6)."""
    if turn.state.lineage.sole:
        turn.persist(lineage=replace(turn.state.lineage, sole=False))


def ask_early(turn: Turn) -> None:
    """L3': the lease begins anew as soon as the peer may be lost, long before it is needed."""
    if turn.state.config.leased:
        _ask(turn, None)


def confirm(turn: Turn) -> None:
    """H3: is it there now? Without it nobody could commit what is about to begin."""
    _ask(turn, Need.CONFIRM)


def hand_over(turn: Turn) -> None:
    """H2: the commit of a planned move, where there is a witness."""
    turn.arm(Timer.PATIENCE, turn.state.config.timing.stall_limit_ms)
    _ask(turn, Need.HAND_OVER)


def drop(turn: Turn) -> None:
    """Nothing is needed of it any more; a request that is still on its way may come too late."""
    turn.set(need=None, request=None)
    turn.forget(Step.WITNESS)


def in_sync(state: ModuleState, node: str) -> bool:
    """Whether the witness says that this node's copy has everything (W1); yes, if it is silent."""
    return state.witnessed is None or node in state.witnessed.in_sync


def due(turn: Turn) -> None:
    """The time to ask has come: for what is needed, or only so."""
    state = turn.state
    if state.phase is Phase.IDLE:
        return
    if state.awaits(Step.WITNESS):
        turn.arm(Timer.WITNESS, state.config.timing.retry_ms)
    elif state.need is None:
        _ask_regularly(turn)
    elif state.request is None:
        _ask(turn, state.need)
    else:
        _send(turn)


def _ask_regularly(turn: Turn) -> None:
    """What the witness does not know yet of a node that runs undisturbed; else only so."""
    state = turn.state
    redundant = state.role is Role.PRIM and state.link is Link.IN_SYNC
    if not state.role.runs_vm or state.frozen:
        _ask(turn, None)
    elif state.lineage.shrink_owed:
        _ask(turn, Need.SHRINK)
    elif redundant and not in_sync(state, state.config.peer):
        grow(turn)
    else:
        _ask(turn, None)


def _ask(turn: Turn, need: Need | None) -> None:
    turn.set(need=need)
    turn.set(request=requests.made(turn, need))
    _send(turn)


def _send(turn: Turn) -> None:
    turn.forget(Step.WITNESS)
    turn.order(AskWitness, Step.WITNESS, request=turn.state.request)
    turn.arm(Timer.WITNESS, _period_ms(turn.state))


def _period_ms(state: ModuleState) -> int:
    """Often enough that a lease never ends while the witness answers (L3')."""
    timing = state.config.timing
    return timing.suspect_ms // 2 if state.role.runs_vm else timing.stall_limit_ms


def done(turn: Turn, event: WitnessDone) -> None:
    """An answer, or none."""
    state = turn.state
    answer = event.answer
    if answer is None:
        _no_answer(turn, event.text)
        return
    if not state.witness_answers:
        turn.tell(Level.INFO, "W3", "the witness answers")
    turn.set(witness_answers=True)
    if answer.verdict is not Verdict.UNKNOWN:
        turn.set(witness_trouble="")
        _learn(turn, answer)
    if answer.verdict is Verdict.EARLY and not state.peer_heard:
        turn.set(request=None)
        turn.arm(Timer.WITNESS, answer.wait_ms + 1)
    elif answer.verdict is Verdict.STALE and state.need is not Need.REGISTER:
        _ask(turn, state.need)
    elif answer.verdict is Verdict.DONE:
        drop(turn)
        _DONE[state.need](turn, answer)
    elif answer.verdict is Verdict.UNKNOWN:
        _unknown(turn, answer)
    else:
        _refused(turn, answer)


def _learn(turn: Turn, answer: Answer) -> None:
    """Remember the record; a lower one will be worth nothing (W10)."""
    turn.set(witnessed=replace(answer, text="", wait_ms=0))
    lineage = turn.state.lineage
    if answer.version > lineage.witness_version:
        turn.persist(lineage=replace(lineage, witness_version=answer.version))


def _no_answer(turn: Turn, text: str) -> None:
    """W3: nothing happens while it is not needed; what is needed is asked again."""
    turn.set(witness_answers=False)
    _tell_trouble(turn, "W3", "the witness does not answer", f": {text}")
    if turn.state.phase is Phase.ARBITRATING:
        peer = turn.state.config.peer
        _wait(
            turn,
            "W3",
            f"the witness does not answer, and without it nobody knows whether {peer}"
            " may run: start the witness, or take it out of the configuration",
        )
    elif turn.state.need is not None:
        turn.arm(Timer.WITNESS, turn.state.config.timing.retry_ms)


def _tell_trouble(turn: Turn, rule: str, trouble: str, how: str = "") -> None:
    """Once, however often it is asked."""
    if turn.state.witness_trouble != trouble:
        turn.set(witness_trouble=trouble)
        turn.tell(Level.WARNING, rule, trouble + how)


def leave(turn: Turn) -> None:
    """The question who may run is put aside, whatever became of it."""
    if turn.state.phase is Phase.ARBITRATING:
        drop(turn)
        turn.set(proof=None, agreed=Agreed.NOTHING)


def _wait(turn: Turn, rule: str, text: str) -> None:
    """Back to WAIT; `waiting.settle` asks again later."""
    drop(turn)
    leave(turn)
    turn.enter(Role.WAIT, Phase.WAITING)
    waiting.hold(turn, rule, text)


def _became_holder(turn: Turn, answer: Answer) -> None:
    """Nobody else may run: go on as agreed, alone, or with the line that was alone before (P6)."""
    state = turn.state
    if state.phase is not Phase.ARBITRATING:
        return
    node = state.config.node
    turn.persist(
        lineage=replace(state.lineage, epoch=Epoch(answer.epoch, node)),
        settings=replace(state.settings, certified_epoch=None),
    )
    turn.set(proof=None, agreed=Agreed.NOTHING)
    lineage = turn.state.lineage
    alone = answer.in_sync == (node,)
    if state.agreed is Agreed.IN_SYNC and state.peer_heard:
        waiting.open_in_sync(turn)
    elif alone and lineage.pending and answer.generation == lineage.pending:
        running.enter_alone(turn, ProofKind.WITNESS)
    elif _goes_on(turn.state, alone and answer.generation == lineage.current.id):
        running.continue_line(turn, lineage.epoch)
    else:
        shrink(turn)


def _goes_on(state: ModuleState, alone: bool) -> bool:
    """Whether this node's line was alone before, so that it needs no new generation (P6, G3').
    Not where R11 had begun: the other copy may carry the same one."""
    lineage = state.lineage
    was_alone = lineage.intent_primary and lineage.peer_out is not None
    return was_alone and (alone or lineage.shrink_owed)


def _shrunk(turn: Turn, answer: Answer) -> None:
    """W1: from here on this node may acknowledge alone; or it did, and the witness knows now."""
    state = turn.state
    if state.phase is Phase.ARBITRATING or losing.seeks_proof(turn):
        running.enter_alone(turn, ProofKind.WITNESS)
    elif state.lineage.shrink_owed and answer.generation == state.lineage.current.id:
        turn.persist(lineage=replace(state.lineage, shrink_owed=False))
        if state.link is Link.ENDING and state.growing:
            grow(turn)


def _grown(turn: Turn, answer: Answer) -> None:
    del answer
    source.complete(turn)


def _confirmed(turn: Turn, answer: Answer) -> None:
    del answer
    leaving.confirmed(turn)


def _handed_over(turn: Turn, answer: Answer) -> None:
    del answer
    handover = turn.state.handover
    if turn.state.phase is Phase.FLUSHING and handover is not None:
        turn.cancel(Timer.PATIENCE)
        leaving.commit(turn, handover)


def _registered(turn: Turn, answer: Answer) -> None:
    turn.tell(Level.INFO, "W4", "the witness knows the module from here on")
    if turn.state.phase is Phase.ARBITRATING:
        _became_holder(turn, answer)
    elif turn.state.growing:
        source.complete(turn)


def _refused(turn: Turn, answer: Answer) -> None:
    """Another node may run, or this copy is not one of those that count."""
    state = turn.state
    if state.phase is Phase.ARBITRATING:
        overrules = requests.operator(state) or state.agreed is not Agreed.NOTHING
        if overrules and answer.verdict is Verdict.REFUSED:
            _register(turn)
        elif answer.verdict is Verdict.STALE:
            _ask(turn, Need.TAKEOVER)
        else:
            _wait(turn, "W5", f"the witness does not agree: {answer.text}")
        return
    need = state.need
    drop(turn)
    handover = state.handover
    if (
        need is Need.HAND_OVER
        and handover is not None
        and ((answer.holder, answer.epoch) == (state.config.peer, handover.epoch.counter))
    ):
        _handed_over(turn, answer)  # It had been done, and asked again since.
    elif need is Need.HAND_OVER or answer.verdict is Verdict.STALE:
        _come_to_nothing(turn, need, answer.text)
    elif (answer.holder, answer.epoch) != (state.config.node, requests.epoch(state)):
        _not_the_holder(turn, answer)
    elif state.growing:
        losing.freeze(turn, f"the witness does not agree: {answer.text}")
    else:
        turn.tell_once(Level.WARNING, "W1", f"the witness does not agree: {answer.text}")


def _come_to_nothing(turn: Turn, need: Need | None, text: str) -> None:
    """What was asked for was not done, and need not be."""
    if need is Need.HAND_OVER and turn.state.phase is Phase.FLUSHING:
        leaving.not_handed_over(turn, text)
    elif turn.state.growing:
        grow(turn)


def _not_the_holder(turn: Turn, answer: Answer) -> None:
    if turn.state.role.runs_vm:
        losing.give_way(turn, f"the witness has given the module away: {answer.text}")
    elif turn.state.phase is Phase.PROVING:
        _wait(turn, "W5", f"the witness does not agree: {answer.text}")


def _unknown(turn: Turn, answer: Answer) -> None:
    """W4: it is told anew where both nodes are there, or on an operator's word."""
    state = turn.state
    _tell_trouble(turn, "W4", answer.text)
    redundant = state.role is Role.PRIM and state.link is Link.IN_SYNC and not state.frozen
    if state.phase is Phase.ARBITRATING:
        if requests.operator(state) or state.agreed is not Agreed.NOTHING:
            _register(turn)
        else:
            peer = state.config.peer
            _wait(turn, "W4", f"{answer.text}; starts when {peer} is there, or by the command prim")
    elif redundant or state.growing:
        _count_the_other(turn)
        _ask(turn, Need.REGISTER)
    elif state.need is Need.HAND_OVER:
        drop(turn)
        _come_to_nothing(turn, Need.HAND_OVER, answer.text)
    elif losing.seeks_proof(turn):
        turn.set(request=None)
        turn.arm(Timer.WITNESS, state.config.timing.retry_ms)
    else:
        drop(turn)


def _register(turn: Turn) -> None:
    """On the peer's agreement, or on an operator's word (W4, P9)."""
    state = turn.state
    if state.agreed is not Agreed.IN_SYNC and not state.lineage.pending:
        turn.persist(lineage=replace(state.lineage, pending=turn.stimulus.entropy))
    _ask(turn, Need.REGISTER)


def expired(turn: Turn, event: LeaseExpired) -> None:
    """L6: this node's VM is ended, since the other one may be started from now on."""
    if turn.state.role.runs_vm and turn.state.phase not in (Phase.KILLING, Phase.DETACHING):
        losing.give_way(turn, f"the lease has ended: {event.text}")


def _nothing(turn: Turn, answer: Answer) -> None:
    """Told, and that was all."""


_DONE: dict[Need | None, Callable[[Turn, Answer], None]] = {
    None: _nothing,
    Need.CONFIRM: _confirmed,
    Need.TAKEOVER: _became_holder,
    Need.SHRINK: _shrunk,
    Need.GROW: _grown,
    Need.HAND_OVER: _handed_over,
    Need.REGISTER: _registered,
}
