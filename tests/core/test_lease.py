"""What the lease witness answers, in the stories that its rules come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hyperha.core.lease import (
    ANSWERS_KEPT,
    Answer,
    Grow,
    HandOver,
    Known,
    Lease,
    Look,
    Register,
    Renew,
    Request,
    Shrink,
    Takeover,
    Verdict,
    answered,
    started,
)

NODES = ("node1", "node2")
TTL_MS = 2750


class Witness:
    """One module's witness and its clock; whoever asks looks at the record first."""

    def __init__(self) -> None:
        self.known = Known(None, Lease(0))
        self.now_ms = 1_000_000
        self._count = 0

    def ask(self, kind: type[Request], node: str, **fields: Any) -> Answer:
        """A request made now, from what is known now."""
        return self.give(self.make(kind, node, **fields))

    def make(self, kind: type[Request], node: str, **fields: Any) -> Request:
        record = self.known.record
        self._count += 1
        defaults: dict[str, Any] = {
            "id": f"request {self._count}",
            "node": node,
            "version": record.version if record else 0,
            "epoch": record.epoch if record else 0,
            "claim": (record.epoch if record else 0) + 1,
            "renewals": self.known.lease.renewals,
            "generations": (record.generation,) if record else (),
            "generation": record.generation if record else "",
            "to_epoch": (record.epoch if record else 0) + 1,
            "nodes": NODES,
            "in_sync": NODES,
            "ttl_ms": TTL_MS,
        }
        wanted = kind.__dataclass_fields__
        chosen = {name: value for name, value in defaults.items() if name in wanted}
        return kind(**{**chosen, **fields})

    def give(self, request: Request) -> Answer:
        self.known, answer = answered(self.known, request, self.now_ms)
        return answer

    def restart(self) -> None:
        self.known = started(self.known.record, self.now_ms, self.known.lease.renewals + 1000)


def redundant() -> Witness:
    """node1 runs under epoch 1, and both copies have everything."""
    witness = Witness()
    answer = witness.ask(Register, "node1", epoch=1, generation="g17")
    assert answer.verdict is Verdict.DONE
    return witness


def test_nobody_takes_over_while_the_lease_of_the_holder_runs() -> None:
    witness = redundant()
    witness.now_ms += TTL_MS - 1
    answer = witness.ask(Takeover, "node2")
    assert (answer.verdict, answer.wait_ms) == (Verdict.EARLY, 1)
    witness.now_ms += 1
    answer = witness.ask(Takeover, "node2")
    assert (answer.verdict, answer.holder, answer.epoch) == (Verdict.DONE, "node2", 2)


def test_renewing_keeps_the_lease_and_changes_no_version() -> None:
    witness = redundant()
    version = witness.known.record.version if witness.known.record else 0
    for _ in range(5):
        witness.now_ms += TTL_MS - 1
        assert witness.ask(Renew, "node1").verdict is Verdict.DONE
        assert witness.ask(Takeover, "node2").verdict is Verdict.EARLY
    assert witness.known.record is not None
    assert witness.known.record.version == version


def test_w1_a_node_outside_the_ones_in_sync_never_takes_over() -> None:
    witness = redundant()
    assert witness.ask(Shrink, "node1", generation="g18").in_sync == ("node1",)
    witness.now_ms += 10 * TTL_MS
    answer = witness.ask(Takeover, "node2", generations=("g17", "g18"))
    assert answer.verdict is Verdict.REFUSED
    assert "the copy of node2 is not in sync" in answer.text


def test_w2_nothing_but_a_takeover_or_a_hand_over_moves_the_holder() -> None:
    witness = redundant()
    witness.now_ms += 10 * TTL_MS
    assert witness.ask(Renew, "node1").holder == "node1"
    assert witness.ask(Look, "node2").holder == "node1"


def test_l8_a_certificate_ends_the_wait_only_for_the_run_it_names() -> None:
    witness = redundant()
    assert witness.ask(Takeover, "node2", ended=7).verdict is Verdict.EARLY
    assert witness.ask(Takeover, "node2", ended=1).verdict is Verdict.DONE


def test_l8_the_holder_that_takes_over_from_itself_makes_its_certificate_void() -> None:
    witness = redundant()
    assert witness.ask(Takeover, "node1").epoch == 2
    assert witness.ask(Takeover, "node2", ended=1).verdict is Verdict.EARLY


def test_w5_a_copy_of_another_generation_does_not_start() -> None:
    witness = redundant()
    witness.now_ms += TTL_MS
    assert witness.ask(Takeover, "node2", generations=("g16",)).verdict is Verdict.REFUSED


def test_w7_what_was_asked_before_the_last_change_comes_too_late() -> None:
    witness = redundant()
    witness.ask(Shrink, "node1", generation="g18")
    late = witness.make(Grow, "node1")
    assert witness.ask(Grow, "node1").verdict is Verdict.DONE
    assert witness.ask(Shrink, "node1", generation="g19").verdict is Verdict.DONE
    assert witness.give(late).verdict is Verdict.STALE
    assert witness.known.record is not None
    assert witness.known.record.in_sync == ("node1",)


def test_w7_grow_names_the_generation_of_the_copies_in_sync() -> None:
    witness = redundant()
    witness.ask(Shrink, "node1", generation="g18")
    assert witness.ask(Grow, "node1", generation="g17").verdict is Verdict.REFUSED


def test_w7_asked_again_it_gets_its_first_answer() -> None:
    witness = redundant()
    shrink = witness.make(Shrink, "node1", generation="g18")
    first = witness.give(shrink)
    assert first.verdict is Verdict.DONE
    assert witness.give(shrink) == first
    witness.restart()
    assert witness.give(shrink) == first
    early = witness.make(Takeover, "node2")
    refused = witness.give(early)
    witness.now_ms += TTL_MS
    assert witness.give(early) == refused


def test_w7_a_takeover_that_was_asked_before_a_renewal_comes_too_late() -> None:
    witness = redundant()
    late = witness.make(Takeover, "node2")
    witness.ask(Renew, "node1")
    witness.now_ms += TTL_MS
    assert witness.give(late).verdict is Verdict.STALE


def test_w7_only_the_last_answers_are_kept() -> None:
    witness = redundant()
    for number in range(3 * ANSWERS_KEPT):
        witness.ask(Shrink, "node1", generation=f"g{number}")
        witness.ask(Takeover, "node2")
    assert witness.known.record is not None
    assert len(witness.known.record.answered) == ANSWERS_KEPT
    assert len(witness.known.lease.refused) == ANSWERS_KEPT


def test_w9_the_generation_that_was_asked_for_before_a_crash_is_fresh() -> None:
    witness = redundant()
    witness.ask(Shrink, "node1", generation="g18")
    assert witness.ask(Takeover, "node1", generations=("g17",)).verdict is Verdict.REFUSED
    assert witness.ask(Takeover, "node1", generations=("g17", "g18")).verdict is Verdict.DONE


def test_w9_the_only_one_in_sync_may_set_the_generation_again() -> None:
    witness = redundant()
    witness.ask(Shrink, "node1", generation="g18")
    answer = witness.ask(Shrink, "node1", generation="g19")
    assert (answer.verdict, answer.generation) == (Verdict.DONE, "g19")


def test_w10_after_its_own_start_nobody_takes_over_for_one_lease() -> None:
    witness = redundant()
    witness.now_ms += 100 * TTL_MS
    witness.restart()
    assert witness.ask(Takeover, "node2").wait_ms == TTL_MS
    witness.now_ms += TTL_MS
    assert witness.ask(Takeover, "node2").verdict is Verdict.DONE


def test_w10_what_was_restored_from_a_backup_is_worth_nothing() -> None:
    witness = redundant()
    backup = witness.known.record
    witness.ask(Shrink, "node1", generation="g18")
    newest = witness.known.record
    assert newest is not None
    witness.known = started(backup, witness.now_ms, 0)
    witness.now_ms += TTL_MS
    for kind in (Look, Renew, Takeover, Grow):
        answer = witness.ask(kind, "node1", version=newest.version)
        assert answer.verdict is Verdict.UNKNOWN
        assert "it has lost what it knew" in answer.text


def test_w4_who_knows_nothing_says_so_and_is_told_by_two_connected_nodes() -> None:
    witness = Witness()
    assert witness.ask(Takeover, "node2").verdict is Verdict.UNKNOWN
    answer = witness.ask(Register, "node1", version=12, epoch=3, generation="g18")
    assert (answer.verdict, answer.version, answer.epoch) == (Verdict.DONE, 13, 3)


def test_w4_a_record_that_counts_is_not_replaced() -> None:
    witness = redundant()
    before = witness.known
    assert witness.ask(Register, "node2", generation="g1").verdict is Verdict.STALE
    assert witness.known == before


def test_p9_an_operators_word_begins_an_epoch_of_its_own() -> None:
    witness = redundant()
    witness.ask(Shrink, "node1", generation="g18")
    late = witness.make(Register, "node2", generation="g2", in_sync=("node2",), by="anna")
    assert witness.ask(Shrink, "node1", generation="g19").verdict is Verdict.DONE
    assert witness.give(late).verdict is Verdict.STALE
    again = replace(late, id="again", version=late.version + 1)
    answer = witness.give(again)
    assert (answer.verdict, answer.holder, answer.epoch) == (Verdict.DONE, "node2", 2)
    assert witness.ask(Renew, "node1", epoch=1).verdict is Verdict.REFUSED


def test_h2_a_hand_over_is_one_act() -> None:
    witness = redundant()
    answer = witness.ask(HandOver, "node1", to_epoch=2)
    assert (answer.holder, answer.epoch, answer.in_sync) == ("node2", 2, NODES)
    assert witness.ask(Renew, "node1", epoch=1).verdict is Verdict.REFUSED
    assert witness.ask(Takeover, "node1").verdict is Verdict.EARLY
    assert witness.ask(Renew, "node2").verdict is Verdict.DONE


def test_h2_nothing_is_handed_to_a_copy_that_is_not_in_sync() -> None:
    witness = redundant()
    witness.ask(Shrink, "node1", generation="g18")
    answer = witness.ask(HandOver, "node1")
    assert answer.verdict is Verdict.REFUSED
    assert "the copy of node2 is not in sync" in answer.text


def test_h3_no_epoch_is_used_twice() -> None:
    witness = redundant()
    assert witness.ask(HandOver, "node1", to_epoch=1).verdict is Verdict.REFUSED
    witness.now_ms += TTL_MS
    assert witness.ask(Takeover, "node2", claim=1).epoch == 2
    assert witness.ask(Takeover, "node2", claim=9).epoch == 9


def test_only_the_holder_changes_what_is_its_own() -> None:
    witness = redundant()
    before = witness.known.record
    for kind in (Shrink, Grow, HandOver):
        assert witness.ask(kind, "node2").verdict is Verdict.REFUSED
        assert witness.ask(kind, "node1", epoch=0).verdict is Verdict.REFUSED
    assert witness.ask(Look, "node9").verdict is Verdict.REFUSED
    assert witness.known.record == before
