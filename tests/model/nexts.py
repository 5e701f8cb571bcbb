"""What may happen next to two nodes.

Time passes only when nothing is left to do at the present, as on two hosts that keep up; where one
does not, that is a fault (`slow`, `freeze`).
"""

from __future__ import annotations

from hyperha.core import actions as a
from hyperha.core import events as e
from hyperha.core import messages as m
from hyperha.core.actions import Acknowledge, SessionStart
from hyperha.core.state import Phase
from tests.model import deeds, witness
from tests.model.cluster import Between, Cluster, State
from tests.model.doing import Doing
from tests.model.faults import FAULT_KINDS, FENCE_KINDS, WITNESS_KINDS, Nexts, dies, faults
from tests.model.node import NOW_MS, Broken, Node, deadline_ms, expired

COMMANDS = ("start", "stop", "swap", "prim", "second", "restart", "stopstart", "forcestop")
ADDED = frozenset((*FAULT_KINDS, *WITNESS_KINDS, *FENCE_KINDS, "command", "write"))
"""What somebody or bad luck has to do."""
UNASKED = ADDED | {"boot", "thaw", "heal", "late", "certificate", "tick", "witness-starts"}
"""What need not happen."""


def after(cluster: Cluster, state: State) -> Nexts:
    """Every state that one event leads to, and what it is called."""
    urgent = 0
    for index in (0, 1):
        node = cluster.nodes.values[state[index]]
        if not node.up or node.frozen:
            continue
        for label, next_state in _of(cluster, state, index, node):
            urgent += 1
            yield label, next_state
    between = cluster.between.values[state[2]]
    if not urgent or between.lapse:
        yield from _time(cluster, state)
    if not urgent and between.ticks:
        yield from _ticks(cluster, cluster.set(state, ticks=between.ticks - 1))
    yield from _free(cluster, state, between)
    if between.faults:
        yield from faults(cluster, state)


def _of(cluster: Cluster, state: State, index: int, node: Node) -> Nexts:
    """What is due on a node now."""
    name = node.core.config.node
    if node.work:
        yield ("stored", name), cluster.act(state, index, "stored", Doing.stored)
    if node.answers:
        yield ("answer", name), cluster.act(state, index, "answer", deeds.answer)
    if node.vm_answers:
        yield ("vm", name), cluster.act(state, index, "vm", deeds.vm_answer)
    if node.asked is not None:
        yield ("witness", name), witness.asks(cluster, state, index, node)
    if node.shoots is not None:
        yield ("shoots", name), _shoots(cluster, state, index, node.shoots)
    if expired(node):
        yield ("deadline", name), cluster.act(state, index, "deadline", deeds.lease_ends)
    for timer, at_ms in _timers(node):
        if at_ms <= NOW_MS:
            yield (
                ("timer", name, timer.value),
                cluster.act(
                    state, index, timer, lambda doing, timer=timer: deeds.timer(doing, timer)
                ),
            )
    between = cluster.between.values[state[2]]
    other = 1 - index
    if between.flying[index]:
        message, *rest = between.flying[index]
        less = cluster.fly(state, index, tuple(rest))
        yield ("message", name, message), cluster.receive(less, index, message)
    connected = cluster.connected(state)
    peer = cluster.nodes.values[state[other]]
    if connected and not peer.speechless:
        said = cluster.status(state[other])
        if node.silent or said != node.told:
            yield (
                ("hear", name, said.role.value),
                cluster.act(state, index, ("hear", said), lambda doing: deeds.hear(doing, said)),
            )
    elif not node.silent and node.heard_ms + node.core.config.timing.suspect_ms <= NOW_MS:
        yield ("silent", name), cluster.act(state, index, "silent", deeds.silent)
    if node.session is not None and node.source:
        yield from _session(cluster, state, index, node)


def _shoots(cluster: Cluster, state: State, index: int, order: a.PowerOff) -> State:
    """The command that switches the other node off."""
    between = cluster.between.values[state[2]]
    works = not (between.jammed or between.apart[index])
    if works and cluster.nodes.values[state[1 - index]].up:
        state = dies(cluster, state, 1 - index, stored=False, certified=False)
    event = e.PoweredOff(order.operation, works, "test")
    return cluster.act(state, index, event, lambda doing: deeds.shot(doing, event))


def _session(cluster: Cluster, state: State, index: int, node: Node) -> Nexts:
    name = node.core.config.node
    connected = cluster.connected(state)
    session = node.session
    assert session is not None
    if not node.session_up:
        yield ("connect", name), _connect(cluster, state, index, node)
        return
    copying = node.core.phase is not Phase.OPENING and node.session_start in (
        SessionStart.CANDIDATES,
        SessionStart.FULL,
    )
    other = cluster.nodes.values[state[1 - index]]
    if copying and connected and other.folder.half and not _told_copied(node):
        yield ("copied", name), _copied(cluster, state, index, node)
    if not connected:
        if node.stalled_ms is None:
            yield ("stalls", name), cluster.act(state, index, "stalls", deeds.stalls)
            return
        waited_ms = NOW_MS - node.stalled_ms
        timing = node.core.config.timing
        limits = (timing.suspect_ms, timing.stall_limit_ms)
        if node.stall_told < 2 and waited_ms >= limits[node.stall_told]:
            over = node.stall_told == 1
            yield (
                ("stalled", name, over),
                cluster.act(
                    state, index, ("stalled", over), lambda doing: deeds.stalled(doing, over)
                ),
            )
    elif (
        node.stalled_ms is not None
        or node.held
        or (node.parked and node.acknowledge is Acknowledge.BOTH)
    ):
        yield ("flows", name), _flows(cluster, state, index, node)


def _flows(cluster: Cluster, state: State, index: int, node: Node) -> State:
    """What was sent while the other node stood still arrives, in its order."""
    parked = node.parked if node.acknowledge is Acknowledge.BOTH else frozenset()
    if parked:
        state = cluster.act(
            state,
            1 - index,
            ("mirror", parked, True),
            lambda doing: deeds.mirrored(doing, parked, True),
        )
    return cluster.act(state, index, "flows", deeds.flows)


def _connect(cluster: Cluster, state: State, index: int, node: Node) -> State:
    """The source's engine meets the target's, or does not."""
    session, other = node.session, cluster.nodes.values[state[1 - index]]
    assert session is not None
    fits = cluster.connected(state) and other.session == session and not other.source
    if not fits:
        return cluster.act(state, index, "ended", deeds.ended)
    left = any((one.folder.log or one.folder.dirty) for one in (node, other))
    start = node.session_start
    if start is SessionStart.IN_SYNC and left:
        for one in (0, 1):
            state = cluster.act(
                state, one, "refused", lambda doing: deeds.ended(doing, refused=True)
            )
        return state
    if start is SessionStart.IN_SYNC and node.folder.data != other.folder.data:
        raise Broken("R5: a session begins as equal and the copies differ")
    for one in (0, 1):
        state = cluster.act(
            state, one, ("up", left), lambda doing: deeds.session_up(doing, int(left))
        )
    if start is not SessionStart.IN_SYNC:
        theirs = other.folder.data & node.folder.data
        if other.vm_run or other.writable:
            raise Broken("I5: a node that runs the VM is the target of a resync")
        state = cluster.act(
            state,
            1 - index,
            ("half", theirs),
            lambda doing: doing.change(data=theirs, half=True),
        )
    return state


def _copied(cluster: Cluster, state: State, index: int, node: Node) -> State:
    other = cluster.nodes.values[state[1 - index]]
    left = any((one.folder.log or one.folder.dirty) for one in (node, other))
    unmarked = node.session_start is SessionStart.CANDIDATES and not left
    if unmarked and node.folder.data != other.folder.data:
        raise Broken("I7: what differs is marked on neither node")
    data = node.folder.data
    state = cluster.act(
        state, 1 - index, ("whole", data), lambda doing: doing.change(data=data, half=False)
    )
    return cluster.act(state, index, "copied", deeds.is_copied)


def _time(cluster: Cluster, state: State) -> Nexts:
    """To the next moment at which anything is due."""
    due = [at for index in (0, 1) if (at := _due(cluster, state, index)) is not None]
    if not due:
        return
    by_ms = max(min(due) - NOW_MS, 1)
    state = cluster.later(state, by_ms)
    if cluster.between.values[state[2]].lapse:
        state = cluster.set(state, lapse=False)
    yield ("time", by_ms), state


def _timers(node: Node) -> list[tuple[a.Timer, int]]:
    """Those that come by time. When a node asks the witness only whether it is there is left open:
    it may do that whenever it is well (`tick`)."""
    needs = node.core.need is not None
    return [one for one in node.timers if one[0] is not a.Timer.WITNESS or needs]


def _due(cluster: Cluster, state: State, index: int) -> int | None:
    """When anything is due on a node; None when nothing ever is."""
    node = cluster.nodes.values[state[index]]
    if not node.up or node.frozen:
        return None
    times = [at for _, at in _timers(node)]
    if (deadline := deadline_ms(node)) is not None and not cluster.connected(state):
        times.append(deadline)
    timing = node.core.config.timing
    if not cluster.connected(state):
        if not node.silent:
            times.append(node.heard_ms + timing.suspect_ms)
        if node.stalled_ms is not None and node.stall_told < 2:
            limits = (timing.suspect_ms, timing.stall_limit_ms)
            times.append(node.stalled_ms + limits[node.stall_told])
    return min(times, default=None)


def _free(cluster: Cluster, state: State, between: Between) -> Nexts:
    """Writes, commands, copies that come late, what returns."""
    one, two = cluster.pair(state)
    for index, node in ((0, one), (1, two)):
        name = node.core.config.node
        if not node.up:
            yield ("boot", name), _boot(cluster, state, index)
            continue
        if node.frozen:
            yield ("thaw", name), cluster.act(state, index, "thaw", deeds.thaws)
            continue
        if between.writes and node.vm_run and node.writable and not node.parked:
            yield ("write", name), _write(cluster, state, index, node)
        if between.commands:
            for verb in cluster.bounds.verbs:
                event = e.CommandGiven(e.Verb(verb), "op", "test")
                less = cluster.set(state, commands=between.commands - 1)
                yield (
                    ("command", name, verb),
                    cluster.act(less, index, event, lambda doing, event=event: doing.event(event)),
                )
    if between.cut or between.jammed or any(between.apart):
        healed = cluster.set(state, cut=False, apart=(False, False), jammed=False)
        yield ("heal",), healed
    if not between.witness_up:
        yield ("witness-starts",), witness.starts(cluster, state, between)
    if between.late_requests and between.witness_up:
        yield ("late", "request"), witness.arrives(cluster, state, between)
    yield from _certificates(cluster, state, between)
    if cluster.connected(state):
        yield from _late(cluster, state, between)


def _ticks(cluster: Cluster, state: State) -> Nexts:
    """A node renews its lease, or looks what the witness knows."""
    for index, node in enumerate(cluster.pair(state)):
        idle = node.up and not node.frozen and node.core.need is None
        if idle and any(timer is a.Timer.WITNESS for timer, _ in node.timers):
            following = cluster.act(state, index, a.Timer.WITNESS, deeds.tick)
            asking = cluster.nodes.values[following[index]]
            if asking.asked is not None:
                following = witness.asks(cluster, following, index, asking)
            yield ("tick", node.core.config.node), following


def _boot(cluster: Cluster, state: State, index: int) -> State:
    """What its former process sent is not believed any more (L9)."""
    return cluster.act(cluster.fly(state, 1 - index, ()), index, "boot", Doing.boots)


def _certificates(cluster: Cluster, state: State, between: Between) -> Nexts:
    """A guardian speaks while its daemon is gone."""
    for index, proof in between.certificates:
        node = cluster.nodes.values[state[index]]
        if between.cut or not node.up or node.frozen:
            continue
        rest = tuple(one for one in between.certificates if one != (index, proof))
        yield (
            ("certificate", node.core.config.node),
            cluster.act(
                cluster.set(state, certificates=rest),
                index,
                proof,
                lambda doing, proof=proof: doing.event(proof),
            ),
        )


def _late(cluster: Cluster, state: State, between: Between) -> Nexts:
    nodes = cluster.pair(state)
    for copy in between.late:
        index, boot, sender_boot, message = copy
        rest = tuple(one for one in between.late if one is not copy)
        less = cluster.set(state, late=rest)
        if nodes[index].boot == boot and nodes[1 - index].boot == sender_boot:
            assert isinstance(message, m.PeerMessage)
            name = nodes[index].core.config.node
            yield ("late", name, message), cluster.receive(less, index, message)
        else:
            yield ("late", "void"), less


def _write(cluster: Cluster, state: State, index: int, node: Node) -> State:
    """One write of the guest."""
    between = cluster.between.values[state[2]]
    number = between.written + 1
    state = cluster.set(state, writes=between.writes - 1, written=number)
    one = frozenset((number,))
    both = node.acknowledge is Acknowledge.BOTH and node.session_up
    reached = node.session_up and cluster.connected(state)
    state = cluster.act(
        state, index, ("write", number, reached), lambda doing: deeds.written(doing, one, reached)
    )
    if reached and node.acknowledge is not Acknowledge.NONE:
        state = cluster.act(
            state,
            1 - index,
            ("mirror", number, both),
            lambda doing: deeds.mirrored(doing, one, both),
        )
    return state


def _told_copied(node: Node) -> bool:
    return any(isinstance(one, e.ResyncCopied) for one in node.answers)
