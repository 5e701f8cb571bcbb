"""Scenarios of faults that meet other faults; each one went wrong once in the simulation."""

from dataclasses import replace

import pytest

from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core.actions import Acknowledge
from hyperha.core.explain import explain
from hyperha.core.lineage import Direction, decide
from hyperha.core.messages import Summary
from hyperha.core.options import Isolation
from hyperha.core.records import DataLabel, Generation, Lineage
from hyperha.core.state import Link, Phase
from hyperha.domain import Role
from tests.support.world import Folder, pair

R = Role


def _summary(
    node: str,
    *,
    label: DataLabel = DataLabel.UPTODATE,
    candidates: int = 0,
    intent_primary: bool = False,
    full_compare_owed: bool = False,
) -> Summary:
    lineage = Lineage(
        "r1",
        node,
        "peer",
        current=Generation("a" * 32, 1, "x", 0),
        label=label,
        intent_primary=intent_primary,
        full_compare_owed=full_compare_owed,
    )
    return Summary.of(lineage, candidates, False)


def test_a_copy_that_owes_a_full_compare_is_not_equal():
    """R12: an adopted folder of the same generation and with empty logs is compared whole."""
    adopted = _summary("node2", label=DataLabel.OUTDATED, full_compare_owed=True)
    verdict = decide(_summary("node1"), adopted, running="node1")
    assert verdict.direction is Direction.SOURCE
    assert verdict.start.value == "full"


def test_a_suspect_copy_is_no_source_beside_a_whole_one():
    """D10: intent alone does not make the failed disk the source."""
    failed = _summary("node1", label=DataLabel.OUTDATED, intent_primary=True, candidates=1)
    assert decide(failed, _summary("node2")).direction is Direction.TARGET


def test_disk_failure_while_the_other_node_is_down_does_not_wedge():
    world = pair(isolation=Isolation.PRIMARY)
    world.crash(world.b)
    world.disk_fails(world.a)
    world.run(3000)
    world.boot_node(world.b)
    world.run(3000)
    world.command(world.a, "start")
    world.until(R.SECOND, R.PRIM)
    assert world.acknowledged <= world.b.folder.data


def test_an_unconfirmed_prim_gives_up_nothing():
    world = pair(isolation=Isolation.PRIMARY)
    world.cut_network()
    world.until(R.ALONE, R.WAIT)
    world.run(1000)
    world.command(world.a, "forcestop")
    world.run(1000)
    world.heal_network()
    world.run(2000)
    operation = world.command(world.b, "prim")
    world.run(3000)
    done, text = world.b.finished[operation]
    assert not done
    assert "better copy" in text
    assert world.b.state.role is R.WAIT
    world.command(world.a, "start")
    world.until(R.PRIM, R.SECOND)
    assert world.acknowledged <= world.b.folder.data


def test_a_folder_uncovered_without_its_marker_is_known_again():
    """R12: the engine dies under the Detach that was to write the marker."""
    world = pair()
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.mount_lost(world.a)
    while world.a.state.phase is not Phase.DETACHING:
        world.run(1)
    before = world.a.folder.marker
    world.a.event(e.EngineLost("killed", False))
    world.a.folder.marker = before
    world.until(R.ALONE, R.STOP)


@pytest.mark.parametrize("delay_ms", range(0, 40, 4))
def test_forcestop_right_after_a_new_generation_leaves_a_known_folder(delay_ms):
    world = pair()
    world.slow_disks = True
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.command(world.a, "stop")
    world.until(R.STOP, R.STOP)
    world.command(world.a, "prim", confirmed=True)
    world.run(delay_ms + 20)
    world.command(world.a, "forcestop")
    world.until(R.STOP, R.STOP)
    world.command(world.a, "prim", confirmed=True)
    world.until(R.ALONE, R.STOP)


def test_a_vm_that_ends_before_its_start_is_known_is_started_again():
    world = pair()
    world.command(world.a, "restart")
    while world.a.state.phase is not Phase.STARTING or not world.a.vm_run:
        world.run(1, writes=False)
    run = world.a.vm_run
    world.a.vm_run = 0
    world.a.event(e.VmExited(run, "exit status 2"))
    world.until(R.PRIM, R.SECOND)
    world.run(300)
    assert world.a.vm_run == run + 1


def test_a_late_join_request_proves_nothing():
    """D2a: what the other node said before it was made equal is not a proof that it is out."""
    world = pair()
    attempt = world.a.state.attempt
    summary = _summary("node2", label=DataLabel.OUTDATED)
    world.cut_network()
    world.run(400)
    assert world.a.state.frozen
    world.a.event(e.MessageReceived(m.JoinRequest(summary, attempt, 0)))
    world.run(100)
    assert world.a.state.frozen
    assert world.a.state.role is R.PRIM


def test_a_late_outdate_request_of_an_older_epoch_is_refused():
    world = pair()
    request = m.OutdateRequest("g", world.a.lineage.held, world.a.state.session_number, "n")
    world.command(world.a, "swap")
    world.until(R.SECOND, R.PRIM)
    world.command(world.b, "swap")
    world.until(R.PRIM, R.SECOND)
    world.b.event(e.MessageReceived(request))
    world.run(1000)
    assert world.b.lineage.label is DataLabel.UPTODATE
    assert world.roles() == (R.PRIM, R.SECOND)


def test_a_late_certificate_of_the_run_before_is_not_believed():
    """L8: a line that goes on alone has an epoch of its own."""
    world = pair()
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    run, epoch = world.a.state.run, world.a.lineage.held
    world.crash(world.b)
    world.crash(world.a)
    world.boot_node(world.a)
    world.until(R.ALONE, None)
    world.boot_node(world.b)
    world.command(world.b, "start")
    world.until(R.PRIM, R.SECOND)
    world.b.event(e.CertificateReceived(run, epoch))
    world.run(1000)
    assert world.roles() == (R.PRIM, R.SECOND)


def test_nothing_is_said_while_processes_of_the_vm_remain():
    """L5': no abdication before every process is gone; it is tried again."""
    world = pair()
    failing = [True]
    real = world.a.do_kill_vm

    def kill(action):
        if failing:
            world.a.later(e.VmDone(action.operation, False, "process 7"), 5)
        else:
            real(action)

    world.a.do_kill_vm = kill
    world.a.event(e.LocalDiskFailed("EIO"))
    world.run(2500)
    assert world.a.state.phase is Phase.KILLING
    failing.clear()
    world.until(R.STOP, R.ALONE)


def test_a_failed_start_lets_the_other_node_run():
    world = pair()
    world.a.start_fails = True
    world.run(200)
    world.command(world.a, "restart")
    while not world.a.settings.start_failed:
        world.run(1)
    world.crash(world.a)
    world.run(300)
    world.boot_node(world.a)
    world.until(R.SECOND, R.PRIM)


def test_the_last_word_of_a_last_man_may_be_lost():
    """H1: the secondary does not wait for minutes for a message that was lost."""
    world = pair()
    real = world.a.do_send_peer
    world.a.do_send_peer = lambda action: (
        None if isinstance(action.message, m.LastManStopped) else real(action)
    )
    world.command(world.a, "stop")
    world.command(world.b, "stop")
    world.until(R.STOP, R.STOP, timeout_ms=10_000)
    assert DataLabel.UPTODATE in (world.a.lineage.label, world.b.lineage.label)


def test_a_released_node_runs_again_when_the_other_one_was_stopped_instead():
    world = pair()
    world.command(world.a, "swap")
    while world.a.state.phase is not Phase.HANDING_OVER:
        world.run(1)
    world.command(world.b, "forcestop")
    world.run(40_000)
    assert world.a.state.role in (R.ALONE, R.SECOND), world.tell()
    assert world.acknowledged <= world.a.folder.data


def test_a_certificate_of_a_node_that_went_on_alone_is_worth_nothing():
    """L8: a follower that thawed late lacks what was acknowledged alone: no takeover."""
    world = pair(isolation=Isolation.PRIMARY)
    world.cut_network()
    while world.a.acknowledge is not Acknowledge.LOCAL:
        world.b.event(e.SelfStalled(3000))
        world.run(20)
    world.run(200)
    assert world.b.state.phase is Phase.FOLLOWING
    world.heal_network()
    world.crash(world.a, certificate=True)
    world.run(5000)
    assert world.b.state.role is R.WAIT
    world.boot_node(world.a)
    world.until(R.PRIM, R.SECOND)
    assert world.acknowledged <= world.b.folder.data


def test_a_redundant_node_may_be_certified_again():
    """L8: after the resync the other copy is whole, and a certificate is worth a takeover."""
    world = pair(isolation=Isolation.PRIMARY)
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.boot_node(world.b)
    world.until(R.PRIM, R.SECOND)
    world.crash(world.a, certificate=True)
    world.until(None, R.ALONE, timeout_ms=1000)
    assert world.acknowledged <= world.b.folder.data


def test_a_node_whose_end_was_certified_waits_for_the_answer():
    """L8: its guardian has told the other node that it may run."""
    world = pair(isolation=Isolation.PRIMARY)
    world.crash(world.a, certificate=True)
    world.until(None, R.ALONE, timeout_ms=1000)
    world.crash(world.b)
    world.boot_node(world.a)
    world.run(10_000)
    assert world.a.state.role is R.WAIT
    assert world.a.state.why.rule == "L8"
    world.boot_node(world.b)
    world.until(R.SECOND, R.PRIM)
    assert world.a.settings.certified_epoch is None


def test_nothing_counts_before_the_fence_has_held():
    """L5': the processes are gone, but what they left in the kernel could still be written."""
    world = pair()
    world.a.failing_fences = 2
    world.disk_fails(world.a)
    world.run(1500, writes=False)
    assert world.a.state.phase is Phase.KILLING
    assert "cut off" in world.a.state.why.text
    assert world.b.state.role is R.SECOND
    world.until(R.STOP, R.ALONE)
    assert world.acknowledged <= world.b.folder.data


def test_killing_goes_on_although_a_record_cannot_be_stored():
    """K1, L5': the end of the VM does not depend on the disk that failed."""
    world = pair()
    world.a.failing_fences = 1
    world.a.failing_persists = 1
    world.command(world.a, "restart")
    world.disk_fails(world.a)
    world.run(4000, writes=False)
    assert not world.a.vm_run
    assert world.a.state.role is R.STOP


def test_the_folder_is_known_again_after_a_double_fault():
    """R12: disk and record fail together, and the other node is heard to run before this one has
    let go: the folder is not taken for a foreign one at the next start."""
    world = pair()
    world.a.failing_persists = 1
    world.disk_fails(world.a)
    while not any("K1" in line for line in world.a.log):
        world.run(1, writes=False)
    assert world.a.state.phase is Phase.DETACHING
    peer = world.a.state.peer
    assert peer is not None
    above = world.a.lineage.held.counter + 1
    world.a.event(e.PeerHeard(replace(peer, role=R.ALONE, epoch=above)))
    world.until(R.STOP, R.ALONE)
    world.command(world.a, "start")
    world.run(10_000)
    assert not [line for line in world.a.log if "R12" in line]


def test_a_target_that_takes_nothing_is_let_go():
    """D8': a resync that does not go on ends, before the guest's writes wait behind it."""
    world = pair()
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.boot_node(world.b)
    while world.a.state.link is not Link.COPYING:
        world.run(5)
    session = world.a.state.session
    assert session is not None
    world.a.event(e.SessionStalled(session, 1500, over_limit=False))
    assert world.a.state.link is Link.COPYING
    world.a.event(e.SessionStalled(session, 3000, over_limit=True))
    assert world.a.state.session is None
    assert not world.a.state.frozen
    world.until(R.PRIM, R.SECOND)


@pytest.mark.parametrize("isolation", list(Isolation))
def test_an_empty_folder_on_the_last_primary_does_not_keep_the_whole_copy_from_running(isolation):
    """R12: its data disk is not mounted; the other node has everything that was acknowledged."""
    world = pair(isolation=isolation)
    world.crash(world.a)
    world.crash(world.b)
    world.a.folder = Folder()
    world.boot_node(world.a)
    world.boot_node(world.b)
    world.until(R.WAIT, R.ALONE)
    assert world.a.state.why.rule == "R12"
    assert world.acknowledged <= world.b.folder.data
    world.command(world.a, "second", adopt=True, confirmed=True)
    world.until(R.SECOND, R.PRIM)


def test_an_empty_folder_whose_line_went_on_alone_lets_nobody_run_an_older_copy():
    """R12: what was acknowledged alone is missing everywhere: an operator must know."""
    world = pair(isolation=Isolation.PRIMARY)
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.run(1000)
    world.crash(world.a)
    world.a.folder = Folder()
    world.boot_node(world.b)
    world.boot_node(world.a)
    world.run(10_000)
    assert world.roles() == (R.WAIT, R.WAIT)
    assert "unknown" in world.b.state.why.text
    operation = world.command(world.b, "prim")
    world.run(3000)
    assert not world.b.finished[operation][0]
    world.forced = True
    world.command(world.b, "prim", confirmed=True)
    world.until(R.WAIT, R.ALONE)


def test_a_late_request_to_step_back_does_not_outdate_a_newer_line():
    """D9: it was sent before this node took over; its run has ended again meanwhile."""
    world = pair()
    world.cut_network()
    while world.a.state.link is not Link.LOST:
        world.run(10)
    late = m.OutdateRequest(
        world.a.lineage.current.id, world.a.lineage.held, world.a.state.session_number, "n" * 32
    )
    world.command(world.a, "forcestop")
    world.until(R.STOP, R.ALONE)
    world.mount_lost(world.b)
    while world.b.state.phase is not Phase.WAITING:
        world.run(1)
    world.b.event(e.MessageReceived(late))
    assert world.b.lineage.label is DataLabel.UPTODATE
    world.heal_network()
    world.until(R.STOP, R.ALONE)


def test_a_release_that_was_taken_long_ago_is_answered():
    """H2: the confirmation was lost; the leaver learns from the next one and follows."""
    world = pair()
    world.command(world.a, "swap")
    while world.a.state.phase is not Phase.HANDING_OVER:
        world.run(1, writes=False)
    world.loss = 1.0
    world.run(20_000)
    world.loss = 0.0
    world.until(R.SECOND, R.PRIM)
    assert world.acknowledged <= world.b.folder.data


@pytest.mark.parametrize("isolation", [Isolation.PRIMARY, Isolation.HOLD])
def test_a_proof_does_not_outlive_what_it_proved(isolation):
    """P6, L8: a takeover by certificate was interrupted; long after, that proof starts nobody."""
    world = pair(isolation=isolation)
    world.run(2000, writes=False)
    world.a.folder.log = world.b.folder.log = False
    world.crash(world.a, certificate=True)
    while world.b.state.phase is not Phase.ENTERING:
        world.run(1, writes=False)
    world.crash(world.b)
    world.b.folder.dirty = False
    world.boot_node(world.a)
    world.boot_node(world.b)
    world.until(R.PRIM, R.SECOND)
    assert world.b.lineage.peer_out is None
    world.crash(world.b)
    world.run(500)
    if isolation is Isolation.PRIMARY:
        world.until(R.ALONE, None)
        world.run(2000)
    world.crash(world.a)
    world.boot_node(world.b)
    world.run(20_000)
    assert world.b.state.role is R.WAIT


@pytest.mark.parametrize("isolation", [Isolation.PRIMARY, Isolation.RUN])
@pytest.mark.parametrize("failures", [1, 2, 1000])
def test_a_follower_that_cannot_store_its_state_does_not_hold_the_primary(isolation, failures):
    """K1, D9: its word will never come; the policy decides, as about a silent node."""
    world = pair(isolation=isolation)
    world.b.failing_persists = failures
    world.b.event(e.SettingsChanged("op", "x", suspend="", reason="x"))
    world.until(R.ALONE, R.STOP, timeout_ms=15_000)
    before = len(world.acknowledged)
    world.run(5000)
    assert len(world.acknowledged) > before
    assert len([line for line in world.b.log if "K1" in line]) <= 2
    world.b.failing_persists = 0
    world.command(world.b, "start")
    world.until(R.PRIM, R.SECOND)
    assert world.acknowledged <= world.b.folder.data


@pytest.mark.parametrize("isolation", [Isolation.PRIMARY, Isolation.RUN])
@pytest.mark.parametrize("how", ["crash", "cut", "engine"])
@pytest.mark.parametrize("phase", [Phase.STOPPING, Phase.FLUSHING])
def test_a_swap_that_cannot_be_finished_leaves_the_vm_running(isolation, how, phase):
    """H2, A10: before the commit everything stays as it was."""
    world = pair(isolation=isolation)
    operation = world.command(world.a, "swap")
    while world.a.state.phase is not phase:
        world.run(1)
    if how == "crash":
        world.crash(world.b)
    elif how == "cut":
        world.cut_network()
    else:
        world.engine_dies(world.b, True)
    world.run(30_000)
    if phase is Phase.STOPPING:
        assert world.a.state.role.runs_vm
        assert world.a.vm_run
        assert world.a.finished[operation][0] is False
    assert operation in world.a.finished, "whoever commanded it waits for ever"
    if world.b.alive:
        world.heal_network()
    else:
        world.boot_node(world.b)
    world.run(20_000)
    assert world.a.state.role.runs_vm or world.b.state.role.runs_vm
    if isolation is Isolation.PRIMARY:
        assert {world.a.state.role, world.b.state.role} == {R.PRIM, R.SECOND}
        assert world.acknowledged <= world.b.folder.data & world.a.folder.data


@pytest.mark.parametrize("delay_ms", [1, 3, 5, 10, 20, 30, 40, 60, 80, 120])
def test_a_stop_of_the_other_node_in_the_middle_of_a_swap(delay_ms):
    """H1: nobody asked the node that runs the VM to stop."""
    world = pair(isolation=Isolation.PRIMARY)
    world.command(world.a, "swap")
    world.run(delay_ms)
    operation = world.command(world.b, "stop")
    world.run(20_000)
    assert world.a.state.role.runs_vm or world.b.state.role.runs_vm
    done, text = world.b.finished[operation]
    assert done == (world.b.state.role is R.STOP), text


def test_a_leaver_does_not_wait_for_a_last_man_that_is_gone():
    """H1: the session with it is over, and with it the final barrier."""
    world = pair(isolation=Isolation.PRIMARY)
    world.command(world.a, "stopstart")
    world.run(30)
    operation = world.command(world.b, "stop")
    world.run(10)
    world.engine_dies(world.a, True)
    world.run(30_000)
    assert operation in world.b.finished
    assert world.a.state.role.runs_vm


def test_a_vm_that_ended_while_its_checker_was_suspended_is_started_after_its_grace():
    world = pair()
    world.a.event(e.SettingsChanged("o1", "x", suspend="", reason="x"))
    run = world.a.vm_run
    world.a.vm_run = 0
    world.a.event(e.VmExited(run, "killed"))
    world.run(1000)
    assert "suspended" in explain(world.a.state).text
    world.a.event(e.SettingsChanged("o2", "x", resume=""))
    world.run(world.a.config.grace_ms - 1000)
    assert world.a.vm_run == 0
    world.run(2000)
    assert world.a.vm_run > run


def test_a_vm_that_an_operator_starts_in_its_grace_is_left_alone():
    world = pair()
    world.a.event(e.SettingsChanged("o1", "x", suspend="", reason="x"))
    world.a.vm_run = 0
    world.a.event(e.VmExited(world.a.state.run, "killed"))
    world.a.event(e.SettingsChanged("o2", "x", resume=""))
    world.command(world.a, "restart")
    world.run(2000)
    run = world.a.vm_run
    assert run
    world.run(world.a.config.grace_ms + 1000)
    assert world.a.vm_run == run


def test_a_command_that_meets_unknown_data_ends_at_once():
    """R12: it cannot come to anything by itself; whoever waits for it must hear why."""
    world = pair()
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.b.folder = Folder()
    operation = world.command(world.b, "start")
    world.run(2000)
    done, text = world.b.finished[operation]
    assert not done
    assert "unknown data" in text
    assert world.roles() == (R.ALONE, R.WAIT)


def test_a_secondary_whose_disk_fills_leaves_and_is_outdated_only_then():
    """D11: while the primary has not gone on without it, it is an equal copy."""
    world = pair()
    world.b.event(e.DiskFilling("No space left on device"))
    assert world.b.lineage.label is DataLabel.UPTODATE
    world.until(R.ALONE, R.STOP)
    assert world.b.lineage.label is DataLabel.OUTDATED
    assert "disk is full" in world.b.state.why.text
    assert world.a.settings.departures_wall_ms == ()
    world.command(world.b, "start")
    world.until(R.PRIM, R.SECOND)


def test_a_thawed_primary_that_gives_way_is_no_split_brain():
    """C02: it still says PRIM in its first words; nothing was acknowledged there meanwhile."""
    world = pair()
    world.crash(world.b)
    world.until(R.ALONE, None)
    status = world.a.state.peer
    assert status is not None
    thawed = replace(status, role=R.PRIM, epoch=world.a.lineage.held.counter - 1)
    world.a.event(e.PeerHeard(thawed))
    assert world.a.state.why.rule != "R16"
    world.a.event(e.PeerHeard(replace(thawed, role=R.ALONE)))
    assert world.a.state.why.rule == "R16"


@pytest.mark.parametrize("isolation", list(Isolation))
def test_a_swap_whose_target_is_lost_behind_the_commit_has_an_end(isolation):
    """H2: the node that released waits, or runs again; whoever commanded it must hear so."""
    world = pair(isolation=isolation)
    operation = world.command(world.a, "swap")
    while world.a.state.phase is not Phase.HANDING_OVER:
        world.run(5)
    world.crash(world.b)
    world.run(20_000)
    done, text = world.a.finished[operation]
    assert not done
    assert "node2 has not confirmed the hand-over" in text
    world.boot_node(world.b)
    world.run(20_000)
    assert set(world.roles()) == {R.PRIM, R.SECOND}


def test_a_swap_that_was_never_confirmed_is_done_where_the_other_node_runs(monkeypatch):
    """H2: only its word was lost, again and again."""
    world = pair(isolation=Isolation.PRIMARY)
    send = world.b.do_send_peer
    monkeypatch.setattr(
        world.b, "do_send_peer", lambda one: isinstance(one.message, m.Taken) or send(one)
    )
    operation = world.command(world.a, "swap")
    world.run(20_000)
    assert any("has not confirmed" in line for line in world.a.log)
    assert world.a.finished[operation] == (True, "node2 runs the VM")
    world.until(R.SECOND, R.PRIM)
