"""What would happen: events put to a clone of the live cluster, in virtual time.

The cores of the clone decide as the real ones would. What is told is who would run the VM, how
long nobody would, and what of the guest's writes would be missing where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from hyperha.core import events as e
from hyperha.core.explain import data_state, readiness
from hyperha.core.lease import Known, Lease
from hyperha.errors import RefusedError, UsageError
from hyperha.study.base_node import Violation
from hyperha.study.clone import Clone
from hyperha.study.model_node import Node
from hyperha.study.snapshot import Snapshot

REST_MS = 15_000
"""Nothing has changed for so long: it is over, as far as it is for the nodes."""
LIMIT_MS = 600_000
_BACKGROUND_MS = 250

Loss = Literal["nothing", "writes", "split", "stopped"]


@dataclass(frozen=True, slots=True)
class Happening:
    """One event of a question: what, and where (empty: nowhere in particular)."""

    word: str
    node: str = ""
    wait_ms: int = 0

    def __str__(self) -> str:
        if self.word == "wait":
            return f"wait:{self.wait_ms / 1000:g}"
        return f"{self.word}:{self.node}" if self.node else self.word


@dataclass(frozen=True, slots=True)
class Told:
    """A line of a node's log as it would stand there; time since the question's first event."""

    at_ms: int
    node: str
    level: str
    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class Side:
    """A node in the end; `role` is empty for one that is off."""

    role: str
    readiness: str
    data: str
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What events led to."""

    events: tuple[str, ...]
    story: tuple[Told, ...]
    answers: tuple[tuple[str, bool, str], ...]
    """Each command's: which, whether it was done, and the sentence."""
    sides: Mapping[str, Side]
    runs: tuple[str, ...]
    down_ms: int
    """For how long in all no VM ran, as long as one was to."""
    held_ms: int
    """For how long the guest's writes waited beyond what is usual."""
    took_ms: int
    """Until nothing changed any more."""
    loss: Loss
    loss_text: str
    unmeasured: tuple[str, ...]
    """Nodes on which the VM would have to start, and how long that takes is not known."""
    unsettled: bool
    """It still changed when the study was given up."""
    broken: str
    """A promise that would be broken; empty, unless hyperha has a defect or a witness is used
    otherwise than it may be (N8)."""


# --- the question -------------------------------------------------------------------------

_COMMANDS = tuple(verb.value for verb in e.Verb)
_ON_A_NODE = (
    *("off", "boot", "daemon-crash", "engine-crash", "isolate"),
    *("disk-fail", "disk-full", "disk-room", "mount-lost", "start-fails"),
)
_ANYWHERE = (
    *("network-cut", "network-back", "vm-exit"),
    *("witness-off", "witness-back", "witness-forgets"),
)
WORDS = (*_ON_A_NODE, *_ANYWHERE, *_COMMANDS, "wait")
_EXAMPLES = "For example: off:node1, network-cut, vm-exit, disk-full:node2, swap:node1, wait:2."


def happening(text: str, nodes: Iterable[str]) -> Happening:
    """An event as it is written: WORD, WORD:NODE or wait:SECONDS. Raises UsageError."""
    word, _, place = text.partition(":")
    if word not in WORDS:
        raise UsageError(f"{text!r} is no event", f"Events: {', '.join(WORDS)}. {_EXAMPLES}")
    if word == "wait":
        return Happening(word, "", _wait_ms(text, place))
    known = tuple(nodes)
    if place and place not in known:
        raise UsageError(f"{text!r}: there is no node {place!r}", f"Nodes: {', '.join(known)}.")
    if word in _ANYWHERE and place:
        raise UsageError(f"{text!r}: {word} happens to no node in particular", f"Say {word}.")
    if word not in _ANYWHERE and not place:
        raise UsageError(f"{text!r}: where?", f"Say {word}:{known[0]} or {word}:{known[-1]}.")
    return Happening(word, place)


def _wait_ms(text: str, seconds: str) -> int:
    try:
        wait_ms = round(1000 * float(seconds))
    except (ValueError, OverflowError):
        wait_ms = -1
    if not 0 <= wait_ms <= LIMIT_MS:
        limit = f"Say wait:SECONDS with 0 to {LIMIT_MS // 1000}."
        raise UsageError(f"{text!r}: {seconds!r} is no number of seconds", limit)
    return wait_ms


# --- what happens -------------------------------------------------------------------------


_OVERRIDING = (e.Verb.PRIM.value, e.Verb.PRIMFORCE.value)
"""Confirmed, they may give up what the nodes would not: no promise is broken by that."""


def _off(clone: Clone, node: Node) -> None:
    clone.crash(node)


def _daemon_crash(clone: Clone, node: Node) -> None:
    clone.crash(node, certificate=True)


def _engine_crash(clone: Clone, node: Node) -> None:
    clone.engine_dies(node, recovered=node.attached)


def _isolate(clone: Clone, node: Node) -> None:
    clone.cut_network()
    clone.astray.add(node.name)


def _network_cut(clone: Clone, _: Node) -> None:
    clone.cut_network()


def _network_back(clone: Clone, _: Node) -> None:
    clone.heal_network()
    clone.astray.clear()


def _witness_off(clone: Clone, _: Node) -> None:
    clone.astray |= set(clone.nodes)


def _witness_back(clone: Clone, _: Node) -> None:
    clone.astray.clear()


def _witness_forgets(clone: Clone, _: Node) -> None:
    clone.known = Known(None, Lease(0))


def _start_fails(clone: Clone, node: Node) -> None:
    """From now on start_prim ends with an error there."""
    node.start_fails = True


def _vm_exit(clone: Clone, _: Node) -> None:
    running = [node for node in clone.nodes.values() if node.alive and node.vm_run]
    if not running:
        raise RefusedError("vm-exit: no VM runs then")
    for node in running:
        run, node.vm_run = node.vm_run, 0
        node.event(e.VmExited(run, "exit status 1"))


_DEEDS: dict[str, Callable[[Clone, Node], None]] = {
    "off": _off,
    "daemon-crash": _daemon_crash,
    "engine-crash": _engine_crash,
    "isolate": _isolate,
    "disk-fail": lambda clone, node: clone.disk_fails(node),
    "disk-full": lambda clone, node: clone.disk_fills(node),
    "boot": lambda clone, node: clone.boot_node(node),
    "network-cut": _network_cut,
    "network-back": _network_back,
    "witness-off": _witness_off,
    "witness-back": _witness_back,
    "witness-forgets": _witness_forgets,
    "disk-room": lambda clone, node: clone.disk_has_room(node),
    "mount-lost": lambda clone, node: clone.mount_lost(node),
    "start-fails": _start_fails,
    "vm-exit": _vm_exit,
}


def _happens(clone: Clone, one: Happening) -> None:
    node = clone.nodes.get(one.node, clone.a)
    if one.word == "boot" and node.alive:
        raise RefusedError(f"{one}: {node.name} runs already then")
    if one.word in _ON_A_NODE and one.word != "boot" and not node.alive:
        raise RefusedError(f"{one}: {node.name} is off then")
    if one.word in _DEEDS:
        _DEEDS[one.word](clone, node)
        return
    if not node.alive:
        raise RefusedError(f"{one}: {node.name} is off then")
    clone.forced |= one.word in _OVERRIDING
    node.half_allowed |= one.word == e.Verb.PRIMFORCE.value
    clone.commands[clone.command(node, one.word, confirmed=True)] = (one, node)


# --- the answer ---------------------------------------------------------------------------


def whatif(found: Mapping[str, Snapshot], events: Iterable[Happening]) -> Outcome:
    """Run the live view forward. Raises BusyError where it cannot be continued, and RefusedError
    for an event that cannot happen when its turn comes."""
    return forward(Clone(found), events)


def forward(clone: Clone, events: Iterable[Happening]) -> Outcome:
    """Put events to a clone, one after the other. Raises RefusedError."""
    asked = tuple(events)
    begin, lines = clone.now, len(clone.told)
    broken, last_ms = "", clone.now
    try:
        for index, one in enumerate(asked):
            if one.word == "wait":
                continue
            _happens(clone, one)
            waits = asked[index + 1] if index + 1 < len(asked) else None
            if waits is not None and waits.word == "wait":
                clone.run(waits.wait_ms)
            else:
                last_ms = _rest(clone)
        if asked and asked[-1].word == "wait":
            last_ms = clone.now
    except Violation as violation:
        broken = str(violation).partition("\n")[0]
    unsettled = clone.now - last_ms < REST_MS and not (asked and asked[-1].word == "wait")
    down_ms, held_ms = _outage(clone, last_ms)
    loss, loss_text = _loss(clone)
    return Outcome(
        events=tuple(map(str, asked)),
        story=tuple(
            Told(at_ms - begin, node, line.level.value, line.rule, line.text)
            for at_ms, node, line in clone.told[lines:]
        ),
        answers=tuple(_answers(clone)),
        sides={name: _side(node) for name, node in clone.nodes.items()},
        runs=clone.instants[-1].runs,
        down_ms=down_ms,
        held_ms=held_ms,
        took_ms=last_ms - begin,
        loss=loss,
        loss_text=loss_text,
        unmeasured=tuple(
            name
            for name, node in clone.nodes.items()
            if name in clone.started and name not in clone.measured
        ),
        unsettled=unsettled and not broken,
        broken=broken,
    )


def _answers(clone: Clone) -> Iterator[tuple[str, bool, str]]:
    for operation, (one, node) in clone.commands.items():
        yield str(one), *node.finished.get(operation, (False, "it is not done yet"))


def _rest(clone: Clone) -> int:
    """Run until nothing changes any more; when the last change was."""
    changed_ms, seen = clone.now, _seen(clone)
    end_ms = clone.now + LIMIT_MS
    while clone.now < min(end_ms, changed_ms + REST_MS):
        clone.run(_BACKGROUND_MS)
        now = _seen(clone)
        if now != seen:
            changed_ms, seen = clone.now, now
    return changed_ms


def _seen(clone: Clone) -> tuple[object, ...]:
    """What an operator would see change."""
    return (
        len(clone.told),
        len(clone.instants),
        *(_shown(node) for node in clone.nodes.values()),
    )


def _shown(node: Node) -> tuple[object, ...]:
    if not node.alive:
        return ()
    state = node.state
    # Not the phase: a node that asks its witness again and again changes it each time.
    return state.role, readiness(state), state.link, state.why.rule


def _outage(clone: Clone, end_ms: int) -> tuple[int, int]:
    """How long no VM ran, and how long the writes of the one that did were held."""
    down_ms = held_ms = 0
    instants = clone.instants
    ran = False
    for index, one in enumerate(instants):
        ends = instants[index + 1].at_ms if index + 1 < len(instants) else max(end_ms, one.at_ms)
        ran = ran or bool(one.runs)
        if ran and not one.runs:
            down_ms += ends - one.at_ms
        elif one.held:
            held_ms += ends - one.at_ms
    return down_ms, held_ms


def _loss(clone: Clone) -> tuple[Loss, str]:
    running = [node for node in clone.nodes.values() if node.name in clone.instants[-1].runs]
    if not running:
        return "stopped", _who_has_all(clone)
    if len(running) > 1:
        names = " and ".join(node.name for node in running)
        return "split", (
            f"{names} both run the VM and acknowledge: what one of the copies has will have to be "
            "given up, or taken over by hand"
        )
    node = running[0]
    missing = clone.acknowledged - node.folder.data
    if not missing:
        return "nothing", "every acknowledged write is on the copy that runs"
    text = (
        f"what {node.peer_name} has acknowledged without {node.name} is missing on the copy that "
        "runs"
    )
    for holder in clone.nodes.values():
        copies = [*holder.folder.kept, holder.folder.safety or set()]
        if not missing.difference(*copies):
            text += f"; a safety copy on {holder.name} has it"
    return "writes", text


def _who_has_all(clone: Clone) -> str:
    whole = [n.name for n in clone.nodes.values() if clone.acknowledged <= n.folder.data]
    if not whole:
        return "no copy alone has every acknowledged write"
    return f"every acknowledged write is on {' and '.join(whole)}"


def _side(node: Node) -> Side:
    if not node.alive:
        return Side("", "", "", "off")
    state = node.state
    return Side(state.role.value, readiness(state).value, data_state(state).value, state.why.text)
