"""A full disk under the VM (D11): moved at most once an hour, to a node with room; else told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperha.core import events as e
from hyperha.core import room
from hyperha.core.explain import explain
from hyperha.core.options import SafetyMode
from hyperha.core.records import DataLabel
from hyperha.core.state import Phase, Vm
from hyperha.domain import Readiness, Role
from tests.support.world import Node, World, blank, pair

R = Role


def _sentence(node: Node) -> str:
    told = explain(node.state)
    assert told.rule == "D11"
    assert told.readiness is Readiness.TRANSIENT
    return told.text


def _stays(world: World) -> str:
    """The VM has not been moved, nor stopped, after a while; what is said."""
    run = world.a.vm_run
    world.run(10_000)
    assert world.a.state.phase is Phase.RUNNING
    assert world.a.vm_run == run
    return _sentence(world.a)


def test_it_is_handed_over_to_a_node_with_room_which_both_remember():
    world = pair()
    world.disk_fills(world.a)
    world.until(R.STOP, R.ALONE)
    assert world.b.vm_run
    assert world.acknowledged <= world.b.folder.data
    assert world.a.lineage.label is DataLabel.OUTDATED
    assert "the disk was full: handed over to node2" in world.a.state.why.text
    assert world.a.settings.room_handover_wall_ms
    assert world.b.settings.room_handover_wall_ms
    assert not world.a.settings.recoveries_wall_ms
    assert any("whose disk is full" in line for line in world.b.log)
    world.disk_has_room(world.a)
    world.command(world.a, "start")
    world.until(R.SECOND, R.PRIM)


def test_two_disks_that_fill_together_do_not_pass_it_to_and_fro():
    world = pair()
    world.disk_fills(world.a)
    world.until(R.STOP, R.ALONE)
    world.disk_has_room(world.a)
    world.command(world.a, "start")
    world.until(R.SECOND, R.PRIM)
    world.disk_fills(world.b)
    run = world.b.vm_run
    world.run(room.APART_MS // 2)
    assert world.b.vm_run == run
    assert "less than an hour ago" in _sentence(world.b)
    world.now += room.APART_MS // 2
    world.run(1000)
    world.until(R.ALONE, R.STOP)


def test_the_other_node_remembers_for_one_that_forgot():
    world = pair()
    world.b.settings = replace(world.b.settings, room_handover_wall_ms=world.wall_ms)
    world.b.state = replace(world.b.state, settings=world.b.settings)
    world.disk_fills(world.a)
    world.run(10_000)
    assert world.roles() == (R.PRIM, R.SECOND)
    assert world.a.vm_run
    assert any("as node2 remembers" in line for line in world.a.log)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: setattr(w.b, "free_bytes", room.PEER_ROOM_BYTES - 1), "node2 has no room"),
        (lambda w: w.a.event(e.SettingsChanged("o", "t", failover=False)), "failover is off"),
        (lambda w: w.crash(w.b), "node2 has no equal copy"),
        (lambda w: w.command(w.b, "stop"), "node2 has no equal copy"),
        (
            lambda w: setattr(
                w.a,
                "state",
                replace(
                    w.a.state,
                    settings=replace(w.a.settings, quarantine_until_wall_ms=1 << 60),
                ),
            ),
            "it is not preferred",
        ),
    ],
    ids=["no-room", "failover-off", "crashed", "stopped", "quarantine"],
)
def test_it_stays_where_moving_does_not_help_or_may_not_be(change, says):
    world = pair()
    change(world)
    world.run(8000)
    world.disk_fills(world.a)
    text = _stays(world)
    assert says in text
    assert "the disk is full since 2023-" in text
    assert "0 B are free here" in text
    assert "make room on node1" in text
    (reason,) = explain(world.a.state).reasons
    assert (reason.code, reason.text) == ("disk-full", text)
    world.disk_has_room(world.a)
    assert explain(world.a.state).readiness is Readiness.READY
    assert not explain(world.a.state).reasons


def test_it_moves_when_the_obstacle_has_gone():
    world = pair()
    world.b.free_bytes = 0
    world.disk_fills(world.a)
    _stays(world)
    world.b.free_bytes = 1 << 40
    world.a.refused()
    world.until(R.STOP, R.ALONE)


def test_a_refusal_leaves_the_vm_running_and_is_not_asked_again_at_once():
    world = pair()
    world.command(world.b, "restart")
    world.b.state = replace(
        world.b.state, settings=replace(world.b.settings, start_failed="no bridge")
    )
    run = world.a.vm_run
    world.disk_fills(world.a)
    world.run(10_000)
    assert world.roles() == (R.PRIM, R.SECOND)
    assert world.a.vm_run == run
    asked = [line for line in world.a.log if "is moved to node2" in line]
    assert len(asked) == 1
    assert any("start_prim failed on node2: no bridge" in line for line in world.a.log)


def test_a_vm_that_dies_of_it_is_started_when_there_is_room_outside_the_budget():
    """M7: it is no fault of its own, and a start without room would be the next failure."""
    world = pair()
    world.b.free_bytes = 0
    world.disk_fills(world.a)
    world.a.vm_run = 0
    world.a.event(e.VmExited(world.a.state.run, "exit status 1"))
    world.run(10_000)
    assert world.a.state.vm is Vm.ABSENT
    assert "is started again when there is room" in _sentence(world.a)
    world.disk_has_room(world.a)
    world.run(1000)
    assert world.a.vm_run
    assert not world.a.settings.recoveries_wall_ms
    assert explain(world.a.state).readiness is Readiness.READY


def test_a_vm_that_died_of_it_starts_on_the_other_node():
    world = pair()
    world.a.vm_run = 0
    world.a.free_bytes = 0
    world.a.refused()
    world.a.event(e.VmExited(world.a.state.run, "exit status 1"))
    world.until(R.STOP, R.ALONE)
    assert world.b.vm_run
    assert not world.a.settings.recoveries_wall_ms


def test_no_checker_judges_a_vm_without_room():
    world = pair()
    world.b.free_bytes = 0
    world.disk_fills(world.a)
    run = world.a.vm_run
    failed = e.CheckerFailed("app", run, e.CheckerAction.RESTART, "no answer")
    world.a.event(failed)
    world.run(3000)
    assert world.a.vm_run == run
    assert not world.a.settings.recoveries_wall_ms


def test_the_death_of_the_replication_process_forgets_it_and_starts_the_vm():
    """Its successor has refused nothing yet: nobody would say that there is room again."""
    world = pair()
    world.b.free_bytes = 0
    world.disk_fills(world.a)
    world.a.vm_run = 0
    world.a.event(e.VmExited(world.a.state.run, "exit status 1"))
    world.a.free_bytes = 1 << 40
    world.engine_dies(world.a, recovered=True)
    world.run(10_000)
    assert world.a.vm_run
    assert world.a.state.full is None


def test_the_peer_is_lost_while_it_is_asked():
    world = pair()
    world.disk_fills(world.a)
    assert world.a.state.phase is Phase.ASKING
    world.crash(world.b)
    world.until(R.ALONE, None)
    assert world.a.vm_run
    assert "node2 has no equal copy" in _sentence(world.a)


def _refused(world: World) -> None:
    """node2 has nothing and no room for all of it; node1 runs alone."""
    world.run(500)
    world.command(world.a, "prim")
    world.until(R.ALONE, R.STOP)
    world.b.too_small = True
    world.command(world.b, "start")
    world.run(5000)
    assert world.roles() == (R.ALONE, R.WAIT)


def test_a_copy_that_cannot_fit_is_refused_before_its_first_byte_and_tried_again():
    world = blank()
    _refused(world)
    told = explain(world.b.state)
    assert "does not fit here: it needs 3.0 GiB at least, reserved room included; " in told.text
    assert "there is room for 1.0 GiB" in told.text
    assert (told.rule, told.readiness) == ("D11", Readiness.NOT_READY)
    assert [one.code for one in told.reasons] == ["no-room"]
    assert world.b.lineage.label is DataLabel.FRESH
    world.run(60_000)
    for node, text in ((world.a, "lost: no room"), (world.b, "does not fit")):
        assert len([line for line in node.log if text in line]) == 1, node.log
    assert explain(world.b.state).text == told.text
    world.b.too_small = False
    world.until(R.PRIM, R.SECOND)
    assert not explain(world.b.state).reasons


@pytest.mark.parametrize("mode", list(SafetyMode))
def test_a_consistent_copy_keeps_its_label_when_another_one_does_not_fit(mode: SafetyMode):
    """C11: it was not touched, so it is not half made, and no safety copy of it is left open."""
    world = pair()
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.b.config = replace(world.b.config, safety=mode)
    world.b.lineage = replace(world.b.lineage, full_compare_owed=True)
    world.b.start()
    world.b.too_small = True
    world.command(world.b, "start")
    world.run(5000)
    assert world.roles() == (R.ALONE, R.WAIT)
    assert "does not fit here" in explain(world.b.state).text
    assert world.b.lineage.label is DataLabel.OUTDATED
    assert not world.b.lineage.way_back
    assert world.b.folder.safety is None
    assert not world.b.folder.half
    world.b.too_small = False
    world.until(R.PRIM, R.SECOND)


def test_a_stop_and_start_looks_at_once():
    """A refusal's pause outlived the timer that was to end it: nothing woke the node up again."""
    world = blank()
    _refused(world)
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    world.b.too_small = False
    world.command(world.b, "start")
    world.until(R.PRIM, R.SECOND, timeout_ms=5000)
