"""Continuing alone, and starting the VM: the steps that every way into ALONE and PRIM shares.

Order of D3 and of a start: dirty map durable (Z1), lineage with proof and intent durable (F4, F6,
P4), only then is anything answered and the VM started.
"""

from __future__ import annotations

from dataclasses import replace

from hyperha.core import arbitration, quarantine
from hyperha.core.actions import (
    Acknowledge,
    AllowCertificate,
    CloseSafety,
    EnterAlone,
    Level,
    Promote,
    Release,
    SafetyEnd,
    StartVm,
    Timer,
)
from hyperha.core.events import EngineDone, Verb, VmDone
from hyperha.core.records import DataLabel, Lineage, Proof, ProofKind
from hyperha.core.state import Goal, Link, ModuleState, Phase, Step, Vm, Why
from hyperha.core.turn import Turn
from hyperha.domain import Epoch, Role

PROOF_TEXT = {
    ProofKind.PEER_SAID_SO: "it said that its copy is out",
    ProofKind.CERTIFICATE: "its guardian certified that the VM is stopped there",
    ProofKind.POWER_FENCED: "it was powered off",
    ProofKind.WITNESS: "the witness agreed",
    ProofKind.PING: "this node is not the isolated one, says the ping witness",
    ProofKind.POLICY_PRIMARY: "the primary continues by policy (isolation = primary)",
    ProofKind.POLICY_RUN: "both nodes could run now (isolation = run)",
    ProofKind.OPERATOR: "an operator said so",
}


def enter_alone(turn: Turn, kind: ProofKind) -> None:
    """The peer is out by this proof: make the map durable, then `entered` goes on."""
    state = turn.state
    proof = Proof(kind, state.lineage.held if state.role.runs_vm else state.lineage.epoch)
    turn.set(proof=proof)
    arbitration.drop(turn)
    if not state.role.runs_vm:
        turn.enter(Role.WAIT, Phase.ENTERING, Why("D3", f"continuing alone: {PROOF_TEXT[kind]}"))
    turn.cancel(Timer.RETRY, Timer.PROOF, Timer.RELEASE, Timer.TAKEOVER, Timer.PATIENCE)
    base = state.lineage.base or state.lineage.current.id
    turn.order(EnterAlone, Step.ENTER, base=base)


def entered(turn: Turn, event: EngineDone) -> None:
    """The map is durable: mint the generation and go on (D3, G3')."""
    if not event.ok:
        turn.block("Z1", f"the dirty map cannot be written: {event.text}")
        return
    state = turn.state
    proof = state.proof
    assert proof is not None, "a node continues alone only with a proof (D2)"
    turn.set(proof=None)
    quarantine.note(turn)
    lineage = _alone(turn, proof)
    turn.persist_with_marker(lineage)
    if state.lineage.way_back:
        turn.order(CloseSafety, Step.CLOSE_SAFETY, end=SafetyEnd.FORCED)
    level = Level.INFO if proof.kind.durable else Level.WARNING
    turn.tell(
        level,
        "D3",
        f"continues without {state.config.peer}: {PROOF_TEXT[proof.kind]}; "
        f"generation {lineage.current.ordinal}",
    )
    release(turn)


def _alone(turn: Turn, proof: Proof) -> Lineage:
    """The record of a node that goes on alone by this proof (D3, G3')."""
    state = turn.state
    reason = proof.kind.value
    # The witness may know the next generation already (W9).
    generation = state.lineage.pending or turn.stimulus.entropy
    return replace(
        state.lineage.minted(generation, reason, turn.stimulus.wall_ms),
        pending="",
        sole=True,
        shrink_owed=state.config.leased and proof.kind is not ProofKind.WITNESS,
        label=DataLabel.UPTODATE,
        sync_from="",
        target_generation="",
        way_back=False,
        intent_primary=True,
        was_primary=True,
        held=state.lineage.held if state.role.runs_vm else state.lineage.epoch,
        peer_out=proof,
        released_to=None,
        alone_since_wall_ms=turn.stimulus.wall_ms,
        ran_before=state.role.runs_vm,
        reached=_reached(state),
        yields_to="",
    )


def _reached(state: ModuleState) -> bool | None:
    """Whether this node reached others when it lost its peer; None: it cannot say."""
    isolated = state.looked.isolated if state.looked is not None else None
    return None if isolated is None else not isolated


def release(turn: Turn) -> None:
    """Go on alone: the guardian must know first, or the standby folder is made writable."""
    if turn.state.writable:
        # A certificate would let the peer take over without what is acknowledged from here on.
        turn.order(AllowCertificate, Step.FORBID_CERTIFICATE, allowed=False)
        return
    turn.set(acknowledge=Acknowledge.LOCAL, link=Link.NONE, session=None, resync=None)
    promote(turn, Acknowledge.LOCAL)


def certificate_forbidden(turn: Turn, event: VmDone) -> None:
    """L8 holds: answer what waits."""
    del event  # it does not fail
    turn.set(acknowledge=Acknowledge.LOCAL, link=Link.NONE, session=None, resync=None)
    turn.set(frozen_since_ms=None, paused=False)
    turn.cancel(Timer.PAUSE)
    turn.order(Release, Step.RELEASE)
    turn.enter(Role.ALONE, turn.state.phase, alone_why(turn))


def alone_why(turn: Turn) -> Why:
    """The sentence of a node that runs without the other one."""
    proof = turn.state.lineage.peer_out
    peer = turn.state.config.peer
    text = PROOF_TEXT[proof.kind] if proof else "no proof"
    return Why("D3", f"runs without {peer}: {text}")


def promote(turn: Turn, acknowledge: Acknowledge) -> None:
    """Accept changes from here on (M2)."""
    role = Role.PRIM if acknowledge is Acknowledge.BOTH else Role.ALONE
    why = Why("P1", "both copies are equal") if role is Role.PRIM else alone_why(turn)
    turn.set(acknowledge=acknowledge, goal=Goal.RUN)
    turn.enter(role, Phase.STARTING, why)
    turn.order(Promote, Step.PROMOTE, epoch=turn.state.lineage.held, acknowledge=acknowledge)


def continue_line(turn: Turn, epoch: Epoch | None = None) -> None:
    """P6: a line that was alone by a durable proof goes on alone, minting nothing (G3').

    Under an epoch of its own, or the one that the witness gave: a certificate of the run before
    binds the former one (L8).
    """
    lineage = turn.state.lineage
    epoch = epoch or lineage.epoch.next_for(turn.state.config.node)
    lineage = replace(lineage, intent_primary=True, was_primary=True, epoch=epoch, held=epoch)
    turn.persist(lineage=replace(lineage, yields_to=""))
    turn.tell(Level.INFO, "P6", "continues its own line alone, as before")
    promote(turn, Acknowledge.LOCAL)


def promoted(turn: Turn, event: EngineDone) -> None:
    """The folder accepts changes: start the VM."""
    if not event.ok:
        turn.enter(Role.WAIT, Phase.WAITING)
        turn.block("M2", f"the folder cannot be made writable: {event.text}")
        return
    turn.set(writable=True)
    start_vm(turn)


def start_vm(turn: Turn) -> None:
    """start_prim, as a new run (K2)."""
    run = turn.state.run + 1
    # While the guardian is being told, its answer is what lets this node acknowledge alone (L8).
    alone = turn.state.acknowledge is Acknowledge.LOCAL or turn.state.awaits(
        Step.FORBID_CERTIFICATE
    )
    turn.set(run=run, vm=Vm.STARTING, exited_early="")
    turn.enter(turn.state.role, Phase.STARTING)
    epoch = turn.state.lineage.held
    turn.order(StartVm, Step.START_VM, run=run, epoch=epoch, certify=not alone)


def vm_started(turn: Turn, event: VmDone) -> bool:
    """start_prim has ended; False when it failed and the module must leave."""
    if not event.ok:
        turn.set(vm=Vm.STOPPING)
        settings = replace(turn.state.settings, start_failed=event.text or "start_prim failed")
        turn.persist(settings=settings)
        turn.tell(Level.ERROR, "B09", f"start_prim failed: {event.text}")
        return False
    turn.set(vm=Vm.RUNNING, engine_failures=0)
    turn.enter(turn.state.role, Phase.RUNNING)
    if turn.state.settings.start_failed:
        turn.persist(settings=replace(turn.state.settings, start_failed=""))
    turn.tell(Level.INFO, "P1", f"the VM runs here ({turn.state.role})")
    command = turn.state.command
    # What was to leave this node, and did not.
    failed = command is not None and command.verb in (Verb.SWAP, Verb.STOP)
    turn.finish(not failed, f"{turn.state.role} on {turn.state.config.node}")
    return True
