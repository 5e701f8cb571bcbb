"""Two real cores in a modelled world: every planned and unplanned change of role."""

from dataclasses import replace

import pytest

from hyperha.core import events as e
from hyperha.core.explain import readiness
from hyperha.core.options import Isolation
from hyperha.core.records import DataLabel
from hyperha.core.state import Phase, Step
from hyperha.domain import Role
from tests.support.world import blank, pair

R = Role


def test_first_start_needs_an_operator_and_then_becomes_redundant():
    world = blank()
    world.command(world.a, "start")
    world.command(world.b, "start")
    world.run(8000)
    assert world.roles() == (R.WAIT, R.WAIT)
    assert world.a.state.why.rule == "R1"
    world.command(world.a, "prim")
    world.until(R.PRIM, R.SECOND)
    assert world.a.folder.data == world.b.folder.data


@pytest.mark.parametrize("certificate", [True, False])
@pytest.mark.parametrize("isolation", list(Isolation))
def test_primary_dies(certificate, isolation):
    world = pair(isolation=isolation)
    world.crash(world.a, certificate)
    died = world.now
    if certificate or isolation is Isolation.RUN:
        world.until(None, R.ALONE, timeout_ms=4300)
        assert world.now - died < (700 if certificate else 4300)
        world.run(2000)
        world.boot_node(world.a)
        world.until(R.SECOND, R.PRIM)
        assert world.acknowledged <= world.b.folder.data
        assert world.acknowledged <= world.a.folder.data
    else:
        world.run(10_000)
        assert world.roles() == (None, R.WAIT)
        world.boot_node(world.a)
        world.until(R.PRIM, R.SECOND)


@pytest.mark.parametrize("isolation", [Isolation.RUN, Isolation.PRIMARY])
def test_secondary_dies_and_returns(isolation):
    world = pair(isolation=isolation)
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.run(1000)
    world.boot_node(world.b)
    world.until(R.PRIM, R.SECOND)
    assert world.a.folder.data == world.b.folder.data
    assert world.a.lineage.base == ""


def test_secondary_dies_under_hold():
    world = pair(isolation=Isolation.HOLD)
    world.crash(world.b)
    world.run(10_000)
    assert world.a.state.frozen
    assert world.a.state.paused
    world.boot_node(world.b)
    world.until(R.PRIM, R.SECOND)
    assert not world.a.state.frozen


@pytest.mark.parametrize("ends", ["runs", "died", "stopped"])
def test_who_stood_still_gives_way_to_who_has_run_since(ends):
    """The secondary was started by an operator while the primary held its writes, and does not run
    when the two hear each other again: what it has acknowledged is nowhere else."""
    world = pair(isolation=Isolation.HOLD)
    world.cut_network()
    world.run(6000)
    assert world.a.state.frozen
    world.forced = True
    world.command(world.b, "prim", confirmed=True)
    world.run(3000)
    assert world.roles() == (R.PRIM, R.ALONE)
    assert world.a.state.frozen
    generation = world.b.lineage.current.id
    if ends == "died":
        world.crash(world.b)
    elif ends == "stopped":
        world.command(world.b, "stop")
        world.run(1000)
    world.heal_network()
    if ends == "died":
        world.boot_node(world.b)
    world.run(10_000)
    if ends == "stopped":
        assert world.roles() == (R.WAIT, R.STOP)
        world.command(world.b, "start")
    world.until(R.SECOND, R.PRIM)
    assert generation in (world.a.lineage.current.id, *world.a.lineage.history)
    assert world.a.folder.data == world.b.folder.data


def test_swap_mints_nothing_and_outdates_nobody():
    world = pair()
    generation = world.a.lineage.current.id
    operation = world.command(world.a, "swap")
    world.until(R.SECOND, R.PRIM)
    assert world.a.finished[operation][0]
    assert world.b.lineage.current.id == generation
    assert world.a.lineage.label is DataLabel.UPTODATE
    world.command(world.b, "swap")
    world.until(R.PRIM, R.SECOND)
    assert world.a.folder.data == world.b.folder.data


def test_stop_of_the_primary_hands_over():
    world = pair()
    operation = world.command(world.a, "stop")
    world.until(R.STOP, R.ALONE)
    assert world.a.finished[operation] == (True, "stopped by test")
    assert world.a.lineage.label is DataLabel.OUTDATED
    world.command(world.a, "start")
    world.until(R.SECOND, R.PRIM)


def test_stop_after_a_swap_hands_over_at_once():
    world = pair()
    world.command(world.a, "swap")
    world.until(R.SECOND, R.PRIM)
    world.command(world.b, "swap")
    world.until(R.PRIM, R.SECOND)
    world.command(world.a, "stop")
    world.until(R.STOP, R.ALONE, timeout_ms=1000)


def test_stop_of_the_secondary_holds_no_write_for_long():
    world = pair()
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP, timeout_ms=3000)
    assert world.b.lineage.label is DataLabel.OUTDATED
    world.command(world.b, "start")
    world.until(R.PRIM, R.SECOND)


@pytest.mark.parametrize("first", ["a", "b"])
def test_both_stopped_in_the_same_second(first):
    world = pair()
    world.command(getattr(world, first), "stop")
    world.command(world.b if first == "a" else world.a, "stop")
    world.until(R.STOP, R.STOP)
    labels = {world.a.lineage.label, world.b.lineage.label}
    if first == "a":
        assert labels == {DataLabel.UPTODATE}
    acknowledged = set(world.acknowledged)
    world.crash(world.a)
    world.crash(world.b)
    world.run(1000)
    for node in (world.b, world.a):
        world.boot_node(node)
        world.command(node, "start")
    world.until(R.PRIM, R.SECOND)
    assert acknowledged <= world.a.folder.data


def test_both_lose_power_and_return():
    world = pair()
    world.crash(world.a)
    world.crash(world.b)
    world.run(2000)
    world.boot_node(world.b)
    world.run(10_000)
    assert world.roles() == (None, R.WAIT)
    world.boot_node(world.a)
    world.until(R.PRIM, R.SECOND)
    assert world.acknowledged <= world.a.folder.data


def test_alone_with_proof_restarts_alone():
    world = pair()
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.crash(world.b)
    world.crash(world.a)
    world.run(500)
    world.boot_node(world.a)
    generation = world.a.lineage.current.id
    world.until(R.ALONE, None)
    assert world.a.lineage.current.id == generation


def test_a_split_is_told_by_the_node_that_heard_of_it_too_early():
    world = pair()
    world.cut_network()
    world.until(R.ALONE, R.SECOND)
    while world.b.state.phase is not Phase.ENTERING:
        world.run(1)
    assert world.a.sent is not None
    world.b.event(e.PeerHeard(world.a.sent))
    world.run(3000)
    assert world.b.state.role is R.ALONE
    assert world.b.state.why.rule == "R16"


def test_cut_under_primary_policy():
    world = pair(isolation=Isolation.PRIMARY)
    world.cut_network()
    world.until(R.ALONE, R.WAIT)
    world.heal_network()
    world.until(R.PRIM, R.SECOND)


def test_stale_copy_is_not_started_without_confirmation():
    world = pair()
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.run(1000)
    world.command(world.a, "stop")
    world.until(R.STOP, R.STOP)
    world.run(500)
    operation = world.command(world.b, "prim")
    assert not world.b.finished[operation][0]
    assert "newer data" in world.b.finished[operation][1]
    world.forgiven |= world.acknowledged - world.b.folder.data
    world.command(world.b, "prim", confirmed=True)
    world.until(R.STOP, R.ALONE)


def test_half_copied_node_never_starts():
    world = pair()
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.b.safety_fails = True
    world.command(world.b, "start")
    while world.b.state.phase.value != "resyncing":
        world.run(10)
    world.crash(world.a)
    world.run(10_000)
    assert world.b.lineage.label is DataLabel.INCONSISTENT
    assert world.b.state.role is R.WAIT
    operation = world.command(world.b, "prim", confirmed=True)
    assert not world.b.finished[operation][0]
    world.boot_node(world.a)
    world.until(R.PRIM, R.SECOND)


def test_restart_budget_then_failover():
    world = pair()
    for _ in range(3):
        run = world.a.state.run
        world.a.vm_run = 0
        world.a.event(e.VmExited(run, "exit status 1"))
        world.until(R.PRIM, R.SECOND)
        assert world.a.state.run == run + 1
    world.a.vm_run = 0
    world.a.event(e.VmExited(world.a.state.run, "exit status 1"))
    world.until(R.STOP, R.ALONE)
    assert "used up" in world.a.state.why.text


def test_start_failure_moves_the_module():
    world = pair()
    world.a.start_fails = True
    world.command(world.a, "restart")
    world.until(R.STOP, R.ALONE)
    assert "start_prim failed" in world.a.state.why.text


def test_failed_start_on_the_other_node_after_a_swap_hands_back():
    world = pair()
    world.b.start_fails = True
    world.command(world.a, "swap")
    world.run(500)
    world.until(R.ALONE, R.STOP)


def test_foreign_folder_is_never_promoted():
    world = pair()
    world.command(world.a, "stop")
    world.until(R.STOP, R.ALONE)
    world.command(world.b, "stop")
    world.until(R.STOP, R.STOP)
    world.b.folder = type(world.b.folder)()
    world.command(world.b, "start")
    world.run(8000)
    assert world.b.state.role is R.WAIT
    assert world.b.state.why.rule == "R12"


def test_disk_failure_abdicates():
    world = pair()
    world.a.event(e.LocalDiskFailed("EIO"))
    world.until(R.STOP, R.ALONE, timeout_ms=2000)
    assert world.a.lineage.label is DataLabel.OUTDATED


def test_stale_view_is_refused():
    world = pair()
    operation = world.command(world.a, "stop", expect_role=R.SECOND)
    assert not world.a.finished[operation][0]
    assert world.a.state.role is R.PRIM


def test_stopstart_moves_the_vm():
    world = pair()
    world.command(world.a, "stopstart")
    world.until(R.SECOND, R.PRIM)


def test_suspended_checker_restarts_nothing():
    world = pair()
    world.a.event(e.SettingsChanged("s1", "test", suspend="", reason="work", until_wall_ms=None))
    world.a.vm_run = 0
    world.a.event(e.VmExited(world.a.state.run, "killed by hand"))
    world.run(5000)
    assert world.a.vm_run == 0
    assert world.roles() == (R.PRIM, R.SECOND)


def test_a_vm_that_ended_while_writes_were_held_is_started_again():
    world = pair(isolation=Isolation.HOLD)
    world.crash(world.b)
    world.run(8000)
    assert world.a.state.paused
    run = world.a.state.run
    world.a.vm_run = 0
    world.a.event(e.VmExited(run, "disk I/O error"))
    world.boot_node(world.b)
    world.until(R.PRIM, R.SECOND)
    world.run(500)
    assert world.a.vm_run == run + 1
    assert world.a.settings.recoveries_wall_ms == ()


def test_an_interrupted_full_compare_goes_on_as_one():
    world = pair()
    world.cut_network()
    world.until(R.ALONE, R.ALONE)
    world.run(2000)
    world.heal_network()
    world.run(1000)
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.command(world.b, "second", confirmed=True)
    while world.b.state.phase.value != "resyncing":
        world.run(5)
    assert world.b.state.session_start.value == "full"
    world.crash(world.b)
    world.run(3000)
    world.boot_node(world.b)
    while world.b.state.phase.value != "resyncing":
        world.run(5)
    assert world.b.state.session_start.value == "full"
    world.until(R.PRIM, R.SECOND)
    assert not world.b.lineage.full_compare_owed


def test_a_folder_with_unrelated_files_is_refused_with_the_two_ways_on():
    world = blank()
    world.run(500)
    world.command(world.a, "prim")
    world.until(R.ALONE, R.STOP)
    world.b.folder.data = {-1}
    operation = world.command(world.b, "start")
    world.run(2000)
    done, text = world.b.finished[operation]
    assert not done
    assert "empty it" in text
    assert "second --adopt" in text
    assert world.b.state.role is R.WAIT
    world.command(world.b, "second", adopt=True)
    world.until(R.PRIM, R.SECOND)


@pytest.mark.parametrize("side", ["node1", "node2"])
@pytest.mark.parametrize("recovered", [True, False])
@pytest.mark.parametrize("when", ["in sync", "frozen", "alone"])
def test_replication_process_dies(when, side, recovered):
    """M4: whatever was going on, the pair is redundant again and nothing is lost."""
    world = pair()
    world.run(2000)
    node = world.nodes[side]
    if when == "frozen":
        world.cut_network()
        world.run(1700)
        assert world.a.state.frozen
        world.engine_dies(node, recovered)
        world.run(100)
        world.heal_network()
    elif when == "alone":
        world.crash(node.peer)
        world.until(*((R.ALONE, None) if side == "node1" else (None, R.ALONE)))
        world.engine_dies(node, recovered)
        world.run(3000)
        world.boot_node(node.peer)
    else:
        world.engine_dies(node, recovered)
    world.run(15_000)
    assert set(world.roles()) == {R.PRIM, R.SECOND}, world.tell()
    primary = world.a if world.a.state.role is R.PRIM else world.b
    assert not primary.state.frozen
    assert world.acknowledged <= primary.folder.data
    assert world.a.folder.data == world.b.folder.data
    assert not primary.settings.recoveries_wall_ms


@pytest.mark.parametrize("delay_ms", range(0, 60, 2))
def test_replication_process_dies_on_the_way_to_alone(delay_ms):
    """What the dead process was asked (map, marker, release) is asked again, never a disk error."""
    world = pair()
    world.run(2000)
    world.crash(world.b)
    world.run(3000)
    while world.a.state.role is R.PRIM and not world.a.state.awaits(Step.ENTER):
        world.run(1)
    world.run(delay_ms)
    world.engine_dies(world.a, True)
    run = world.a.vm_run
    world.until(R.ALONE, None)
    assert world.a.vm_run == run
    world.run(1000)
    assert not world.a.parked


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("last", ["node1", "node2"])
@pytest.mark.parametrize("first_up", ["node1", "node2"])
def test_last_primary_runs_again_whoever_starts_first(seed, last, first_up):
    """C16, P7: who still waits for the other one's start is treated like a crossing claim."""
    world = pair(seed)
    if last == "node2":
        world.command(world.a, "swap")
        world.until(R.SECOND, R.PRIM)
    for node in (world.a, world.b):
        world.command(node, "stop", automatic=True)
    world.run(4000)
    assert world.roles() == (R.STOP, R.STOP)
    ran = [n for n in (world.a, world.b) if n.lineage.was_primary]
    assert [n.name for n in ran] == [last]
    for node in (world.a, world.b):
        world.crash(node)
    first = world.nodes[first_up]
    world.boot_node(first)
    world.run(5000)
    world.boot_node(first.peer)
    world.run(10_000)
    assert world.nodes[last].state.role is R.PRIM, world.tell()
    assert world.nodes[last].peer.state.role is R.SECOND


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("verb", ["swap", "stop"])
def test_mount_that_cannot_be_replaced_is_never_followed_in(verb, seed):
    """M2: caches of the primary's time must end; the folder is uncovered and covered anew."""
    world = pair(seed)
    world.a.demote_fails = True
    world.command(world.a, verb)
    world.run(15_000)
    assert any("M2" in line for line in world.a.log)
    if verb == "swap":
        # It may have to take the VM back: planned moves may fail, but lose nothing (H2).
        assert set(world.roles()) == {R.PRIM, R.SECOND}, world.tell()
        assert world.a.folder.data == world.b.folder.data
    else:
        assert world.roles() == (R.STOP, R.ALONE)
    assert world.acknowledged <= world.b.folder.data


@pytest.mark.parametrize("delay", [1, 5, 10, 15, 20])
def test_prim_waits_for_a_fresh_peer_that_is_still_covering_its_folder(delay):
    world = blank(seed=delay)
    world.run(500)
    operation = world.command(world.a, "prim")
    world.run(delay)
    world.command(world.b, "start", automatic=True)
    world.until(R.PRIM, R.SECOND)
    assert world.a.finished[operation][0], world.a.finished[operation]


def test_a_primary_that_cannot_store_its_state_abdicates():
    world = pair()
    world.a.event(e.PersistFailed("EIO", world.a.lineage, world.a.settings))
    world.until(R.STOP, R.ALONE, timeout_ms=2000)


def test_a_follower_whose_queue_was_not_applied_whole_is_outdated():
    world = pair()
    state = world.b.state
    world.b.state = replace(state, awaiting=((999, Step.CLOSE),))
    world.b.event(e.EngineDone(999, False, "ENOSPC"))
    assert world.b.lineage.label is DataLabel.OUTDATED
    assert world.b.lineage.full_compare_owed


def test_a_swap_does_not_wait_for_the_next_heartbeat():
    """H2: the release that answers our claim counts, whatever the last heartbeat said."""
    world = pair()
    world.command(world.a, "swap")
    while not any("H2 released" in line for line in world.a.log):
        world.run(1, writes=False)
    begun = world.now
    world.b.state = replace(world.b.state, peer=replace(world.b.state.peer, role=R.PRIM))
    while not any("has taken over" in line for line in world.a.log):
        world.run(1, writes=False)
    assert world.now - begun < 150
    world.until(R.SECOND, R.PRIM)


def test_claims_that_are_refused_become_rare_and_the_sentence_stays() -> None:
    """Each claim is a durable write; the peer, stopped with the better copy, has not changed."""
    world = pair()
    world.b.start_fails = True
    world.crash(world.a)
    world.run(15_000)
    world.boot_node(world.a)
    world.run(10_000)
    before, seen = world.a.lineage.epoch.counter, set()
    for _ in range(1200):
        world.run(50)
        seen.add((readiness(world.a.state), world.a.state.why))
    assert len(seen) == 1, seen
    assert world.a.lineage.epoch.counter - before <= 6
    world.b.start_fails = False
    world.command(world.b, "start")
    world.until(Role.SECOND, Role.PRIM, timeout_ms=30_000)
