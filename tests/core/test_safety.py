"""Safety copies in the decisions: opened before the first byte, undone, never lacking (R15, N3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core.explain import explain
from hyperha.core.facts import Shortage
from hyperha.core.options import SafetyMode
from hyperha.core.records import DataLabel, Lineage
from hyperha.core.state import Link, Phase
from hyperha.domain import Role
from hyperha.encoding import from_plain, to_plain
from tests.support.world import Node, World, pair

R = Role


def _configured(node: Node, mode: SafetyMode) -> None:
    node.config = replace(node.config, safety=mode)
    node.state = replace(node.state, config=node.config)


def _resyncing(mode: SafetyMode = SafetyMode.BEST_EFFORT, *, fails: bool = False) -> World:
    """node2 was away; node1 is making it equal and has overwritten a part of it."""
    world = pair()
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.run(1000)
    world.boot_node(world.b)
    _configured(world.b, mode)
    world.b.safety_fails = fails
    world.command(world.b, "start")
    while not (world.b.folder.half and world.b.state.phase is Phase.RESYNCING):
        world.run(1)
    return world


def test_the_copy_is_durable_before_the_label_and_the_label_before_the_session():
    world = pair()
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.boot_node(world.b)
    done: list[str] = []
    perform, stored = world.b.perform, world.b.stored

    def watch(action: a.Action) -> None:
        done.append(type(action).__name__)
        perform(action)

    def store() -> None:
        assert isinstance(world.b.storing, a.Persist)
        done.append(world.b.storing.lineage.label)
        stored()

    world.b.perform, world.b.stored = watch, store
    world.command(world.b, "start")
    world.until(R.PRIM, R.SECOND)
    order = [done.index(one) for one in ("OpenSafety", "inconsistent", "ExpectSession")]
    assert order == sorted(order), done
    assert done.index("CloseSafety") > done.index("uptodate", order[-1])
    assert world.b.folder.safety is None
    assert not world.b.lineage.way_back


def test_a_half_made_copy_is_put_back_by_a_confirmed_prim():
    world = _resyncing()
    former = set(world.b.folder.safety or ())
    world.crash(world.a)
    world.run(8000)
    assert world.roles() == (None, R.WAIT)
    assert world.b.lineage.label is DataLabel.INCONSISTENT
    losses = dict(explain(world.b.state).losses)
    assert "put back to what it was" in losses["prim"]
    operation = world.command(world.b, "prim")
    assert not world.b.finished[operation][0]
    world.command(world.b, "prim", confirmed=True)
    world.until(None, R.ALONE)
    assert former <= world.b.folder.data
    assert world.b.folder.safety is None
    assert not world.b.lineage.way_back
    # The other node's line is not thrown away either: it is a split brain now, said by both.
    world.boot_node(world.a)
    world.run(8000)
    assert world.a.state.role is R.WAIT


@pytest.mark.parametrize(
    ("mode", "fails"), [(SafetyMode.OFF, False), (SafetyMode.BEST_EFFORT, True)]
)
def test_without_a_safety_copy_the_resync_goes_on_and_there_is_no_way_back(mode, fails):
    world = _resyncing(mode, fails=fails)
    assert world.b.folder.safety is None
    said = any("no way back" in line for line in world.b.log)
    assert said is fails
    world.crash(world.a)
    world.run(8000)
    refused = dict(explain(world.b.state).refused)
    assert "only primforce" in refused["prim"]


def test_a_required_copy_that_cannot_be_made_stops_the_resync_before_its_first_byte():
    world = pair()
    world.crash(world.b)
    world.until(R.ALONE, None)
    world.boot_node(world.b)
    _configured(world.b, SafetyMode.REQUIRED)
    world.b.safety_fails = True
    world.command(world.b, "start")
    world.run(5000)
    assert world.roles() == (R.ALONE, R.WAIT)
    assert not world.b.folder.half
    assert world.b.state.why.rule == "N3"
    said = explain(world.b.state)
    assert "has no room: it needs 2.0 GiB at least, 1.0 MiB are free" in said.text
    assert [one.code for one in said.reasons] == ["no-room"]
    assert world.b.lineage.label is not DataLabel.INCONSISTENT
    world.run(60_000)
    for node in (world.a, world.b):
        assert len([line for line in node.log if "no room" in line or "no resync" in line]) == 1
    world.b.safety_fails = False
    world.until(R.PRIM, R.SECOND)
    assert not explain(world.b.state).reasons


def test_a_required_copy_that_fills_in_the_middle_waits_and_goes_on():
    """N3: it is no failed disk; with room again it goes on where it was."""
    world = _resyncing(SafetyMode.REQUIRED)
    former = set(world.b.folder.safety or ())
    world.safety_short(world.b)
    world.run(10_000)
    assert world.roles() == (R.ALONE, R.WAIT)
    assert "nothing is overwritten without a safety copy" in explain(world.b.state).text
    assert world.b.lineage.way_back
    assert not any("D10" in line for line in world.b.log)
    assert former == world.b.folder.safety
    world.b.safety_fails = False
    world.until(R.PRIM, R.SECOND)


def test_an_operator_may_go_back_instead_of_waiting_for_room():
    world = _resyncing(SafetyMode.REQUIRED)
    former = set(world.b.folder.safety or ())
    world.safety_short(world.b)
    world.run(1000)
    world.crash(world.a)
    world.run(8000)
    world.command(world.b, "prim", confirmed=True)
    world.until(None, R.ALONE)
    assert former <= world.b.folder.data


def _split_and_stopped() -> World:
    """A split brain whose nodes hear each other again; node2 is stopped, and may give way."""
    world = pair()
    world.cut_network()
    world.until(R.ALONE, R.ALONE)
    world.run(500)
    world.heal_network()
    world.run(3000)
    world.command(world.b, "stop")
    world.until(R.ALONE, R.STOP)
    return world


def test_what_an_operator_gave_up_stays_given_up_while_it_waits_for_room():
    """R16, N3: the decision is not asked for twice."""
    world = _split_and_stopped()
    world.b.safety_fails = True
    operation = world.command(world.b, "second", confirmed=True)
    world.run(20_000)
    assert world.roles() == (R.ALONE, R.WAIT)
    assert operation not in world.b.finished
    assert "has no room" in explain(world.b.state).text
    world.b.safety_fails = False
    world.until(R.PRIM, R.SECOND)
    assert world.b.finished[operation][0]


def test_the_loser_of_a_split_brain_is_kept_whatever_is_configured():
    world = _split_and_stopped()
    _configured(world.b, SafetyMode.OFF)
    opened: list[a.OpenSafety] = []
    perform = world.b.perform

    def watch(action: a.Action) -> None:
        if isinstance(action, a.OpenSafety):
            opened.append(action)
        perform(action)

    world.b.perform = watch
    own = world.b.lineage.current
    world.command(world.b, "second", confirmed=True)
    world.until(R.PRIM, R.SECOND)
    (action,) = opened
    assert action.required
    assert action.gives_up
    assert not action.resume
    assert action.generation == own


def _giving_way(mode: SafetyMode) -> World:
    """A split brain; node2 gives way, and node1 has overwritten a part of its line."""
    world = _split_and_stopped()
    _configured(world.b, mode)
    world.command(world.b, "second", confirmed=True)
    while not (world.b.folder.half and world.b.state.phase is Phase.RESYNCING):
        world.run(1)
    return world


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize("mode", list(SafetyMode))
def test_a_line_that_gave_way_waits_for_room_also_when_its_resync_goes_on(mode, former):
    """N3: the resync goes on by R3, which gives up nothing by itself; what it began with stays
    required. A record of before may not say so (`former`): then the engine's own does."""
    world = _giving_way(mode)
    own = set(world.b.folder.safety or ())
    if former:
        world.b.lineage = replace(world.b.lineage, way_back_required=False)
        world.b.state = replace(world.b.state, lineage=world.b.lineage)
    world.safety_short(world.b)
    world.run(20_000)
    assert world.roles() == (R.ALONE, R.WAIT)
    assert "nothing is overwritten without a safety copy" in explain(world.b.state).text
    assert world.b.lineage.way_back
    assert not any("no way back" in line for line in world.b.log)
    assert world.b.folder.safety == own
    world.b.safety_fails = False
    world.until(R.PRIM, R.SECOND)
    assert world.b.folder.safety is None
    assert not world.b.lineage.way_back


def test_a_line_that_gave_way_can_be_put_back_while_it_waits_for_room():
    world = _giving_way(SafetyMode.BEST_EFFORT)
    own = set(world.b.folder.safety or ())
    world.safety_short(world.b)
    world.run(20_000)
    world.crash(world.a)
    world.run(8000)
    world.command(world.b, "prim", confirmed=True)
    world.until(None, R.ALONE)
    assert own <= world.b.folder.data


def test_what_the_figures_do_not_show_is_said():
    world = _giving_way(SafetyMode.BEST_EFFORT)
    world.b.safety_fails = True
    world.b.event(e.SafetyShort(Shortage(1 << 30, 5 << 30, "Disk quota exceeded")))
    assert world.b.state.why.text.startswith(
        "nothing is overwritten without a safety copy, which has no room: Disk quota exceeded, "
        "5.0 GiB are free; make room on node2"
    )


def test_a_copy_that_was_lost_unheard_is_not_insisted_on():
    """The node died between the loss and its record: what was overwritten is gone, so the resync
    goes on, and says that there is no way back."""
    world = _giving_way(SafetyMode.BEST_EFFORT)
    world.b.folder.safety = None

    def refuse(action: a.OpenSafety) -> None:
        world.b.later(e.SafetyLost("given up"), 0)
        world.b.later(e.EngineDone(action.operation, False, "given up"), 1)

    world.b.do_open_safety = refuse
    session = world.b.session
    assert session is not None
    world.b.drop_session("reset")
    world.b.later(e.SessionLost(session, "reset"))
    world.until(R.PRIM, R.SECOND)
    assert any("no way back" in line for line in world.b.log)


def test_a_copy_that_nobody_knows_of_any_more_ends_with_the_resync():
    """It would go on saving on a node that is in sync, and nobody could delete it."""
    world = _resyncing()
    world.b.lineage = replace(world.b.lineage, way_back=False)
    world.b.state = replace(world.b.state, lineage=world.b.lineage)
    world.until(R.PRIM, R.SECOND)
    assert world.b.folder.safety is None


def test_a_copy_that_was_left_open_ends_where_the_copies_are_found_equal():
    world = pair()
    world.a.folder.safety = set(world.a.folder.data)
    world.command(world.a, "swap")
    world.until(R.SECOND, R.PRIM)
    world.run(100)
    assert world.a.folder.safety is None


def test_a_copy_that_cannot_be_ended_is_told():
    world = _resyncing()
    world.b.do_close_safety = lambda action: world.b.done(action.operation, False, "EIO")
    world.until(R.PRIM, R.SECOND)
    world.run(1000)
    assert [line for line in world.b.log if "is not ended: EIO" in line]


def test_a_follower_that_could_not_save_is_out_and_comes_back():
    """P8, N3: what it has acknowledged may not be in its folder, and it is no failed disk."""
    world = _resyncing(SafetyMode.REQUIRED)
    world.until(R.PRIM, R.SECOND)
    world.safety_short(world.b)
    world.crash(world.a)
    world.run(20_000)
    assert world.roles() == (None, R.WAIT), "it does not take over"
    assert world.b.lineage.label is DataLabel.OUTDATED
    world.boot_node(world.a)
    world.command(world.a, "start")
    world.until(R.ALONE, R.WAIT)
    world.run(20_000)
    assert explain(world.b.state).text.startswith("nothing is overwritten without")
    assert not any("D10" in line for line in world.b.log)
    world.b.safety_fails = False
    world.until(R.PRIM, R.SECOND)


def test_a_record_of_before_is_understood():
    lineage = Lineage("r1", "node1", "node2", label=DataLabel.INCONSISTENT, way_back=True)
    plain = to_plain(replace(lineage, way_back_required=True))
    assert from_plain(Lineage, plain).way_back_required
    del plain["way_back_required"]
    assert from_plain(Lineage, plain) == lineage


def test_a_resync_that_goes_on_keeps_its_first_copy():
    world = _resyncing()
    former = set(world.b.folder.safety or ())
    session = world.b.session
    assert session is not None
    world.b.drop_session("reset")
    world.b.later(e.SessionLost(session, "reset"))
    while not world.b.folder.half or world.b.state.phase is not Phase.JOINING:
        world.run(1)
    assert world.b.folder.safety == former
    world.until(R.PRIM, R.SECOND)


def test_a_copy_that_was_given_up_is_no_way_back():
    world = _resyncing()
    world.b.folder.safety = None
    world.b.event(e.SafetyLost("no space left"))
    assert not world.b.lineage.way_back
    assert "only primforce" in dict(explain(world.b.state).refused)["prim"] or (
        world.b.state.role is R.SECOND
    )
    world.until(R.PRIM, R.SECOND)


def test_primforce_keeps_what_the_copy_was_before():
    world = _resyncing()
    former = set(world.b.folder.safety or ())
    world.crash(world.a)
    world.run(8000)
    world.b.half_allowed = True
    world.command(world.b, "primforce", confirmed=True)
    world.until(None, R.ALONE)
    assert world.b.folder.kept == [former]
    assert not world.b.lineage.way_back


def test_a_stop_in_the_middle_of_an_undo_leaves_the_way_back():
    world = _resyncing()
    world.crash(world.a)
    world.run(8000)
    world.command(world.b, "prim", confirmed=True)
    while world.b.state.phase is not Phase.UNDOING:
        world.run(1)
    world.command(world.b, "forcestop")
    world.until(None, R.STOP)
    assert world.b.lineage.way_back
    world.command(world.b, "prim", confirmed=True)
    world.until(None, R.ALONE)


def test_the_undo_that_fails_is_told_and_nothing_starts():
    world = _resyncing()
    world.crash(world.a)
    world.run(8000)
    world.b.do_undo_resync = lambda action: world.b.done(action.operation, False, "EIO")
    operation = world.command(world.b, "prim", confirmed=True)
    world.run(5000)
    assert world.roles() == (None, R.WAIT)
    assert "EIO" in world.b.state.why.text
    assert not world.b.finished[operation][0]


def test_a_copy_undone_from_r4_is_up_to_date_again():
    """R4': all barriers are on it, so it is not outdated by having been a target."""
    lineage = Lineage("r1", "node1", "node2", former_label=DataLabel.UPTODATE)
    world = _resyncing()
    world.b.lineage = replace(world.b.lineage, former_label=lineage.former_label)
    world.b.state = replace(world.b.state, lineage=world.b.lineage)
    world.crash(world.a)
    world.run(8000)
    world.command(world.b, "prim", confirmed=True)
    while world.b.lineage.label is DataLabel.INCONSISTENT:
        world.run(1)
    assert world.b.lineage.label is DataLabel.UPTODATE
    assert world.b.state.link is Link.NONE
