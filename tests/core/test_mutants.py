"""Cores without a rule, and the test that finds each of them out.

Each mutant takes one rule away by replacing a function; the test that is named must fail then. The
list is printed (`-s`). Mutants of what only many events together show are in `tests/model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

from hyperha.core import (
    arbitration,
    fencing,
    holding,
    lease,
    lineage,
    looking,
    machine,
    preferring,
    quarantine,
    room,
    running,
    splitting,
    versions,
)
from hyperha.core import rules as failover_rules
from hyperha.core.actions import Timer
from hyperha.core.lease import Answer, Known, Lease, Record, Request, Takeover
from hyperha.core.lineage import Verdict
from hyperha.core.messages import SplitReport
from hyperha.core.options import Config, WitnessKind
from hyperha.core.records import ProofKind
from hyperha.core.state import Agreed, ModuleState, Step
from hyperha.core.turn import Turn
from tests.core import (
    test_full_disks,
    test_holding,
    test_lease,
    test_preferring,
    test_quarantine,
    test_rules,
    test_splitting,
    test_third_parties,
    test_versions,
)

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """A rule, how it is taken away, and the test that fails without it."""

    rule: str
    plant: Plant
    test: Callable[[], Any]

    def __str__(self) -> str:
        test = self.test.func if isinstance(self.test, partial) else self.test
        return f"{self.rule}: {test.__name__}"


def _always(owner: object, name: str, value: object) -> Plant:
    """A function that answers the same whatever is asked."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(owner, name, lambda *args, **fields: value)

    return plant


def _property(owner: type, name: str, value: Callable[[Any], object]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(owner, name, property(value))

    return plant


def _takeover_as_if(change: Callable[[Record, Takeover], tuple[Record, Takeover]]) -> Plant:
    """A witness that judges takeovers as if record and request were others."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = lease._no_takeover

        def judged(known: Known, record: Record, request: Takeover, now_ms: int) -> Answer | None:
            return original(known, *change(record, request), now_ms)

        patch.setattr(lease, "_no_takeover", judged)

    return plant


def _every_copy_counts(record: Record, request: Takeover) -> tuple[Record, Takeover]:
    return replace(record, in_sync=record.nodes), replace(request, generations=(record.generation,))


def _every_generation_fits(record: Record, request: Takeover) -> tuple[Record, Takeover]:
    return record, replace(request, generations=(record.generation,))


def _every_certificate_fits(record: Record, request: Takeover) -> tuple[Record, Takeover]:
    ended = None if request.ended is None else record.epoch
    return record, replace(request, ended=ended)


def _takes_stale_requests(patch: pytest.MonkeyPatch) -> None:
    original = lease._refusal

    def refusal(known: Known, record: Record, request: Request, now_ms: int) -> Answer | None:
        return original(known, record, replace(request, version=record.version), now_ms)

    patch.setattr(lease, "_refusal", refusal)


def _starts_without_waiting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        test_lease, "started", lambda record, now_ms, renewals: Known(record, Lease(0, renewals))
    )


def _forgets_answers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lease, "ANSWERS_KEPT", 0)
    original = lease._changed

    def changed(*args: Any) -> tuple[Known, Answer]:
        known, answer = original(*args)
        assert known.record is not None
        return Known(replace(known.record, answered=()), known.lease), answer

    patch.setattr(lease, "_changed", changed)


def _forgives_silence(patch: pytest.MonkeyPatch) -> None:
    def remember(turn: Turn, event: Any) -> None:
        turn.set(looked=event, looked_ms=turn.now_ms)

    patch.setattr(looking, "remember", remember)


def _believes_every_command(patch: pytest.MonkeyPatch) -> None:
    original = fencing.done
    believing = {Step.POWER_OFF: lambda turn, event: original(turn, replace(event, ok=True))}
    patch.setattr(machine, "_STEPS", {**machine._STEPS, **believing})


def _is_never_isolated(patch: pytest.MonkeyPatch) -> None:
    for step in (Step.PROBE, Step.LOOK):
        original = machine._STEPS[step]

        def done(turn: Turn, event: Any, original: Any = original) -> None:
            original(turn, replace(event, isolated=False))

        patch.setattr(machine, "_STEPS", {**machine._STEPS, step: done})


def _takes_over_without_asking(patch: pytest.MonkeyPatch) -> None:
    def take_over(turn: Turn, agreed: Agreed) -> None:
        running.enter_alone(turn, ProofKind.POLICY_RUN)

    patch.setattr(arbitration, "take_over", take_over)


def _nobody_was_forced(patch: pytest.MonkeyPatch) -> None:
    original = splitting.verdict

    def verdict(one: SplitReport, other: SplitReport, *names: str) -> tuple[str, str]:
        return original(replace(one, forced=False), replace(other, forced=False), *names)

    patch.setattr(splitting, "verdict", verdict)


def _judges_unheard(patch: pytest.MonkeyPatch) -> None:
    def reported(turn: Turn, message: SplitReport) -> None:
        split = turn.state.split
        if split is not None and split.mine is not None:
            splitting._judge(turn, split.mine, message)

    patch.setattr(machine, "_MESSAGES", {**machine._MESSAGES, SplitReport: reported})


def _judges_at_once(patch: pytest.MonkeyPatch) -> None:
    original = Turn.arm

    def arm(turn: Turn, timer: Timer, after_ms: int) -> None:
        original(turn, timer, min(after_ms, 200) if timer is Timer.SPLIT else after_ms)

    patch.setattr(Turn, "arm", arm)


def _gives_up_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lineage, "Verdict", lambda *args, **fields: Verdict(*args))


PING, LEASE = WitnessKind.PING, WitnessKind.LEASE
MUTANTS = (
    Mutant("W1", _takeover_as_if(_every_copy_counts),
           test_lease.test_w1_a_node_outside_the_ones_in_sync_never_takes_over),
    Mutant("W5", _takeover_as_if(_every_generation_fits),
           test_lease.test_w5_a_copy_of_another_generation_does_not_start),
    Mutant("L8", _takeover_as_if(_every_certificate_fits),
           test_lease.test_l8_a_certificate_ends_the_wait_only_for_the_run_it_names),
    Mutant("W7", _takes_stale_requests,
           test_lease.test_w7_what_was_asked_before_the_last_change_comes_too_late),
    Mutant("W7", _forgets_answers, test_lease.test_w7_asked_again_it_gets_its_first_answer),
    Mutant("W10", _starts_without_waiting,
           test_lease.test_w10_after_its_own_start_nobody_takes_over_for_one_lease),
    Mutant("W10", _always(lease, "_forgot", False),
           test_lease.test_w10_what_was_restored_from_a_backup_is_worth_nothing),
    Mutant("H2", _always(lease, "_refusal", None),
           test_lease.test_h2_nothing_is_handed_to_a_copy_that_is_not_in_sync),
    Mutant("W8", _forgives_silence,
           test_third_parties.test_the_first_silence_of_a_ping_witness_is_final),
    Mutant("W8", _is_never_isolated,
           partial(test_third_parties.test_the_isolated_secondary_waits, PING)),
    Mutant("W5", _takes_over_without_asking,
           partial(test_third_parties.test_the_isolated_secondary_waits, LEASE)),
    Mutant("L6", _property(ModuleState, "promised", lambda _: False),
           partial(test_third_parties.test_a_witness_that_comes_and_goes_harms_nobody, PING)),
    Mutant("D2c", _believes_every_command, test_third_parties.test_a_command_that_fails_holds),
    Mutant("D2c", _always(fencing, "shoots_last", False),
           test_third_parties.test_in_a_cut_only_one_of_them_is_switched_off),
    Mutant("W6'", _property(Config, "policy", lambda config: config.isolation),
           test_third_parties.test_what_went_on_by_a_ping_is_no_proof_after_a_crash),
    Mutant("P5", _always(preferring, "_preferred", True),
           partial(test_preferring.test_a_node_returns, "none",
                   (test_preferring.R.SECOND, test_preferring.R.PRIM))),
    Mutant("C15", _always(preferring, "drained", False),
           test_preferring.test_a_drained_node_gives_the_vm_away_and_takes_none),
    Mutant("D8", _always(quarantine, "active", False),
           test_quarantine.test_the_third_loss_within_an_hour_counts),
    Mutant("D11", _always(room, "moved_lately", False),
           test_full_disks.test_two_disks_that_fill_together_do_not_pass_it_to_and_fro),
    Mutant("K3", _property(ModuleState, "unjudged", lambda _: False),
           test_full_disks.test_no_checker_judges_a_vm_without_room),
    Mutant("F13", _always(versions, "older", False),
           partial(test_versions.test_the_older_one_does_not_take_over, True)),
    Mutant("R16", _nobody_was_forced, test_splitting.test_what_an_operator_started_stays),
    Mutant("R16", _judges_unheard,
           test_splitting.test_nobody_gives_way_before_the_other_one_knows_its_report),
    Mutant("R16", _judges_at_once,
           test_splitting.test_it_stops_as_if_told_to_and_only_after_a_full_window),
    Mutant("N3", _gives_up_nothing,
           test_splitting.test_without_room_for_its_safety_copy_it_waits_and_the_other_one_runs),
    Mutant("pre", _always(holding, "reason", None),
           test_holding.test_nothing_begins_before_the_resource_was_found_up),
    Mutant("rule", _always(failover_rules, "waiting", None),
           test_rules.test_a_node_waits_as_long_as_its_rule_holds),
)  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_core_without_the_rule_is_found_out(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant.plant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever way it fails
        mutant.test()
    print(f"\n{mutant}")


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_core_with_the_rule_is_not(mutant: Mutant) -> None:
    mutant.test()
