"""Every phase meets every event, message, timer and result: `step` always answers."""

import itertools
from dataclasses import replace

import pytest

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core import timers
from hyperha.core.explain import explain
from hyperha.core.facts import Shortage
from hyperha.core.invariants import InvariantBroken, check
from hyperha.core.machine import _EVENTS, _MESSAGES, _STEPS, step
from hyperha.core.records import DataLabel, Lineage, Settings
from hyperha.core.state import Step
from hyperha.domain import NO_EPOCH, DataState, Epoch, Readiness, ResourceState, Role, SessionKey
from tests.support.world import blank, pair

SESSION = SessionKey("0" * 32, Epoch(7, "node1"), 3)


def _summary(label: DataLabel) -> m.Summary:
    lineage = Lineage("r1", "node2", "node1", label=label, epoch=Epoch(9, "node2"))
    return m.Summary.of(lineage, 0, True)


def _messages() -> list[m.PeerMessage]:
    epoch = Epoch(9, "node2")
    summary = _summary(DataLabel.FRESH)
    return [
        m.Claim(epoch, summary, True),
        m.Claim(epoch, summary, False, True),
        m.Grant(epoch, summary, True),
        m.Refusal(epoch, summary, "no"),
        m.OutdateRequest("g", epoch, 1, "n"),
        m.OutdateAnswer("n", True, epoch, ""),
        m.JoinRequest(summary, 1, 1),
        m.JoinOffer(1, summary, "R5", SESSION),
        m.JoinAccept(SESSION),
        m.JoinRefusal(1, "no"),
        m.ResyncDone(SESSION, (), 1, "", 0),
        m.ResyncConfirmed(SESSION),
        m.HandoverRequest(epoch, m.HandoverKind.STOP),
        m.HandoverRequest(epoch, m.HandoverKind.ROOM),
        m.HandoverReady(epoch),
        m.HandoverRefused(epoch, "no", False),
        m.HandoverCancelled(epoch),
        m.Released(epoch, m.HandoverKind.SWAP, False),
        m.Released(epoch, m.HandoverKind.ROOM, True),
        m.Taken(epoch),
        m.LeaveRequest(1),
        m.LeaveAnswer(1, True, epoch),
        m.Goodbye(1, True),
        m.LastManStopped(1),
        m.Abdicated(epoch, "EIO"),
    ]


def _events() -> list[e.Event]:
    status = [
        e.PeerStatus(role, Readiness.READY, DataState.UPTODATE, 3, "ab", False, True, "b")
        for role in Role
    ]
    events: list[e.Event] = [e.PeerHeard(s) for s in status]
    events += [e.CommandGiven(verb, "o1", "test", confirmed=True) for verb in e.Verb]
    events += [e.MessageReceived(message) for message in _messages()]
    events += [e.TimerFired(timer) for timer in a.Timer]
    events += [e.EngineDone(n, ok) for n, ok in itertools.product(range(0, 60), (True, False))]
    events += [e.VmDone(n, ok) for n, ok in itertools.product(range(0, 60), (True, False))]
    events += [
        e.SettingsChanged("o2", "test", failover=False),
        e.PeerSilent(1),
        e.CertificateReceived(1, NO_EPOCH),
        e.SelfStalled(3000),
        e.SessionUp(SESSION, 0),
        e.SessionLost(SESSION, "x"),
        e.SessionLost(SESSION, "x", True),
        e.SessionStalled(SESSION, 3000, True),
        e.ResyncProgressed(SESSION, 1, 2, 3, 4),
        e.ResyncCopied(SESSION),
        e.LocalDiskFailed("EIO"),
        e.DiskFull("ENOSPC", 0, None),
        e.DiskFull("ENOSPC", 0, 1 << 40),
        e.DiskHasRoom(1 << 40),
        e.SafetyShort(Shortage(2, 1)),
        e.DiskFilling("ENOSPC"),
        e.EngineLost("x", True),
        e.EngineLost("x", False),
        e.MountLost("x"),
        e.VmExited(1, "x"),
        e.CheckerFailed("vm", 1, e.CheckerAction.RESTART, "x"),
        e.ProbeDone(1, None, False, "x"),
        e.ProbeDone(1, True, False, "x"),
        e.PoweredOff(1, True),
        e.PoweredOff(1, False, "x"),
        e.ResourceSeen("lan", "ping", ResourceState.DOWN, "x"),
        e.PeerResources(()),
        e.LeaseExpired("x"),
        e.PersistFailed("EIO", Lineage("r1", "node1", "node2"), Settings()),
    ]
    return events


def _states():
    """States of every phase that a busy life passes through."""
    seen = {}
    worlds = [blank(), pair(), pair()]
    script = ["prim", "start", "swap", "restart", "stop", "start", "stopstart", "stop"]
    for number, world in enumerate(worlds):
        for index, verb in enumerate(script):
            node = (world.a, world.b)[(index + number) % 2]
            world.command(node, verb)
            for _ in range(160):
                world.run(11)
                for one in world.nodes.values():
                    seen[(one.state.role, one.state.phase, one.state.link)] = one.state
            if index == 4:
                world.cut_network()
            if index == 5:
                world.heal_network()
    return seen


def test_every_state_answers_every_event():
    states = _states()
    assert len(states) >= 20
    events = _events()
    for state in states.values():
        for event in events:
            stimulus = e.Stimulus("e1", 2_000_000, 1_700_000_000_000, "f" * 32, event)
            following, first = step(state, stimulus)
            assert step(state, stimulus) == (following, first), "step is not deterministic"
            explain(following)
            operations = [one.operation for one in first if hasattr(one, "operation")]
            assert len(operations) == len(set(operations))


@pytest.mark.parametrize(
    ("root", "table"),
    [(e.Event, _EVENTS), (m.PeerMessage, _MESSAGES)],
)
def test_tables_are_complete(root, table):
    # A slotted dataclass leaves the class it was made from behind: names, not classes.
    assert {c.__name__ for c in root.__subclasses__()} == {c.__name__ for c in table}


def test_every_step_and_timer_has_a_handler():
    assert set(_STEPS) == set(Step)
    assert set(timers.HANDLERS) == set(a.Timer)


def test_a_running_node_without_intent_is_noticed():
    world = pair()
    broken = replace(world.a.state, lineage=replace(world.a.lineage, intent_primary=False))
    with pytest.raises(InvariantBroken, match="P4"):
        check(broken)
