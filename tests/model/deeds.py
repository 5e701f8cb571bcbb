"""What happens to a node, one thing at a time."""

from __future__ import annotations

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core.actions import Acknowledge
from hyperha.core.lease import Answer, Request
from tests.model.doing import Doing
from tests.model.node import NOW_MS, expired


def answer(doing: Doing) -> None:
    doing.event(doing.answers.pop(0))


def vm_answer(doing: Doing) -> None:
    doing.event(doing.vm_answers.pop(0))


def timer(doing: Doing, timer: a.Timer) -> None:
    del doing.timers[timer]
    doing.event(e.TimerFired(timer))


def tick(doing: Doing) -> None:
    timer(doing, a.Timer.WITNESS)


def hear(doing: Doing, said: e.PeerStatus) -> None:
    doing.silent, doing.told, doing.heard_ms = False, said, NOW_MS
    doing.event(e.PeerHeard(said))


def silent(doing: Doing) -> None:
    doing.silent = True
    doing.event(e.PeerSilent(doing.heard_ms))


def stalls(doing: Doing) -> None:
    doing.stalled_ms, doing.stall_told = NOW_MS, 0


def flows(doing: Doing) -> None:
    doing.stalled_ms, doing.stall_told = None, 0
    if doing.acknowledge is Acknowledge.BOTH:
        doing.acknowledged |= doing.parked
        doing.parked = frozenset()
    doing.go_on()


def stalled(doing: Doing, over: bool) -> None:
    doing.stall_told += 1
    assert doing.session is not None
    assert doing.stalled_ms is not None
    doing.event(e.SessionStalled(doing.session, NOW_MS - doing.stalled_ms, over))


def ended(doing: Doing, *, refused: bool = False) -> None:
    """The engine tells that its session has ended, or could not begin."""
    session = doing.session
    doing.session, doing.session_up = None, False
    doing.go_on()
    if session is not None:
        doing.answers.append(e.SessionLost(session, "it ended", refused=refused))


def session_up(doing: Doing, candidates: int) -> None:
    assert doing.session is not None
    doing.session_up = True
    doing.answers.append(e.SessionUp(doing.session, candidates))


def is_copied(doing: Doing) -> None:
    assert doing.session is not None
    doing.answers.append(e.ResyncCopied(doing.session))


def flushed(doing: Doing) -> None:
    doing.change(log=False)
    doing.unapplied = frozenset()


def written(doing: Doing, number: frozenset[int], reached: bool) -> None:
    doing.change(data=doing.folder.data | number)
    if doing.acknowledge is Acknowledge.LOCAL:
        doing.acknowledged |= number
        return
    doing.change(log=True)
    if doing.acknowledge is Acknowledge.BOTH and reached:
        doing.acknowledged |= number
    else:
        doing.parked |= number


def mirrored(doing: Doing, number: frozenset[int], both: bool) -> None:
    doing.change(data=doing.folder.data | number)
    if both:
        doing.change(log=True)
        doing.unapplied |= number


def freezes(doing: Doing) -> None:
    doing.frozen = True


def lease_ends(doing: Doing) -> None:
    """The guardian fences and kills, and the daemon hears of it (L6)."""
    doing.vm_run = 0
    doing.writable = False
    doing.parked = frozenset()
    doing.acknowledge = Acknowledge.NONE
    doing.drop_session()
    doing.event(e.LeaseExpired("test"))


def witnessed(doing: Doing, operation: int, request: Request, answer: Answer | None) -> None:
    """The witness has answered, or has not."""
    mine = answer is not None and answer.holder == doing.core.config.node
    if answer is not None and mine and request.renewed_by(answer):
        doing.renewed_ms = NOW_MS
    doing.event(e.WitnessDone(operation, answer, "" if answer else "no answer"))


def shot(doing: Doing, event: e.PoweredOff) -> None:
    """The other node is off, or is not."""
    doing.shoots = None
    doing.event(event)


def thaws(doing: Doing) -> None:
    doing.frozen = False
    if expired(doing.result()[0]):
        lease_ends(doing)
    gap_ms = NOW_MS - doing.heard_ms if not doing.silent else 5000
    if gap_ms >= 600:
        doing.event(e.SelfStalled(gap_ms))


def exits(doing: Doing, event: e.VmExited) -> None:
    doing.vm_run = 0
    doing.event(event)


def disk_fails(doing: Doing) -> None:
    if doing.session is not None and not doing.source:
        doing.change(data=doing.folder.data - doing.unapplied)
    doing.event(e.LocalDiskFailed("EIO"))
