"""What a resync would move now, and by which rule: asked of both nodes, done by neither.

The rules are the core's (`lineage.decide`, `safety`); here the facts of both copies are brought
together. Each node decides by its own knowledge, as it would before a resync.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from hyperha.api.wire_copies import (
    CandidatesView,
    CandidateView,
    CopyView,
    DiffView,
    PlanView,
    SafetyKind,
    SafetyPlan,
    VerdictView,
)
from hyperha.core import safety
from hyperha.core.actions import SessionStart
from hyperha.core.explain import data_state
from hyperha.core.facts import MarkerState
from hyperha.core.lineage import Direction, Verdict, decide
from hyperha.core.messages import Summary
from hyperha.core.records import DataLabel
from hyperha.core.state import Link, ModuleState, Phase
from hyperha.daemon.sizes import fits_in, sizes_of, with_sizes
from hyperha.daemon.views import rfc3339
from hyperha.domain import DataState
from hyperha.encoding import EncodingError, from_plain, to_plain
from hyperha.errors import BusyError, FailedError, HyperhaError, RefusedError, UsageError
from hyperha.replication.admission import judge
from hyperha.replication.control import AskCandidates, CandidatesTold
from hyperha.replication.marker import FolderFacts
from hyperha.replication.tally import (
    PlainFolder,
    read_plain_folder,
    room_of,
    told,
)
from hyperha.text import count_text, size_text
from hyperha.threads import in_own_thread

if TYPE_CHECKING:
    from hyperha.daemon.module_host import ModuleHost
    from hyperha.daemon.peer_api import PeerApi

_ANSWER_S = _FOLDER_S = 20.0
_STARTS = {
    SessionStart.IN_SYNC: "nothing but what is written from then on",
    SessionStart.CANDIDATES: "what stands in either log is compared",
    SessionStart.FULL: "everything is compared",
}


# --- one node's part ----------------------------------------------------------------------


async def own_copy(
    host: ModuleHost, against: Summary | None, target: str, *, sizes: bool = False
) -> CopyView:
    """This node's copy, and what it would do beside the other one (`against`).

    `target`: as if an operator had said there that what that copy has may go.
    """
    state = host.state
    if state.attached:
        found, unknown, empty, room = await _of_the_engine(host)
    elif state.phase is Phase.IDLE:
        found, unknown, empty, room = await _of_the_folder(host)
    else:
        raise BusyError(f"{host.node} is busy: {state.phase}", "Ask again in a moment.")
    lineage = state.lineage
    fresh = lineage.label is DataLabel.FRESH
    summary = Summary.of(
        lineage,
        -1 if found.everything and not fresh else found.files,
        empty,
        unknown=bool(unknown),
    )
    view = CopyView(
        node=host.node,
        data=data_state(state),
        generation=lineage.current.id,
        alone_since=rfc3339(lineage.alone_since_wall_ms) if lineage.base else "",
        runs=state.role.runs_vm,
        in_sync=state.link is Link.IN_SYNC,
        candidates=found,
        free_bytes=room[0],
        reserve_bytes=room[1],
        resync_bytes_per_s=host.observed.resync_bytes_per_s,
        summary=to_plain(summary),
    )
    if sizes:
        view = view.model_copy(update=(await sizes_of(host)).fields)
    if against is None:
        return view
    verdict, kind = _decided(state, summary, against, target)
    return view.model_copy(
        update={"verdict": _verdict_view(verdict, host.node, host.peer), "safety": kind}
    )


async def _of_the_engine(host: ModuleHost) -> tuple[CandidatesView, str, bool, tuple[int, int]]:
    state = host.state
    kept = host.engine.kept
    folder = dict(zip(kept.names, kept.descriptors, strict=True)).get("folder") if kept else None
    if folder is None:
        raise BusyError(f"{host.node} is busy: its folder is being covered", "Ask again.")
    room = await in_own_thread("room", room_of, folder)
    empty = state.facts.folder_empty if state.facts else False
    if state.unknown_data:
        view = CandidatesView(everything=True, text=state.unknown_data)
        return view, state.unknown_data, empty, room
    answer = await host.engine.ask(AskCandidates, CandidatesTold, silence_s=_ANSWER_S)
    return _candidates(answer, ""), "", empty, room


async def _of_the_folder(host: ModuleHost) -> tuple[CandidatesView, str, bool, tuple[int, int]]:
    lineage = host.state.lineage
    try:
        found = await host.engine.in_plain_folder(
            lambda folder: read_plain_folder(folder, lineage.resource), _FOLDER_S
        )
    except OSError as problem:
        raise FailedError(f"{host.folder} cannot be read: {problem.strerror or problem}") from None
    answer = told(0, found.reading.base, found.tally)
    view = _candidates(answer, found.reading.problem)
    return view, _unknown(host, found), found.empty, (found.free_bytes, found.reserve_bytes)


def _unknown(host: ModuleHost, found: PlainFolder) -> str:
    """Whether the folder is the one that the record speaks of (R12), as far as can be seen."""
    lineage = host.state.lineage
    if lineage.marker is None or not lineage.current.id:
        return ""
    facts = FolderFacts(found.empty, found.marker, True, True, 0, "", True, False)
    state, _ = judge(facts, lineage.acceptable_markers)
    return "" if state is MarkerState.MATCHES else f"the folder's marker is {state}"


def _candidates(answer: CandidatesTold, problem: str) -> CandidatesView:
    listed = [
        CandidateView(path=one.path, bytes=one.bytes, whole=one.whole, names=one.names)
        for one in answer.candidates
    ]
    return CandidatesView(
        everything=answer.everything,
        base=answer.base,
        files=answer.files,
        bytes=answer.bytes,
        listed=listed,
        text=problem or ("nothing can be excluded (Z6)" if answer.everything else ""),
    )


def _decided(
    state: ModuleState, mine: Summary, theirs: Summary, target: str
) -> tuple[Verdict, SafetyKind]:
    mine = replace(mine, adopt=target == mine.node)
    theirs = replace(theirs, adopt=target == theirs.node)
    verdict = decide(mine, theirs, running=_running(state, target))
    kind: SafetyKind = "none"
    if verdict.direction is Direction.TARGET and safety.wanted(state, verdict):
        kind = "required" if safety.required(state, verdict) else "best_effort"
    return verdict, kind


def _running(state: ModuleState, target: str) -> str:
    """The node whose VM runs; who is asked about as a target would be stopped before."""
    running = [state.config.node] if state.role.runs_vm else []
    if state.peer_heard and state.peer is not None and state.peer.role.runs_vm:
        running.append(state.config.peer)
    return next((one for one in running if one != target), "")


def _verdict_view(verdict: Verdict, node: str, peer: str) -> VerdictView:
    sides = {Direction.SOURCE: (node, peer), Direction.TARGET: (peer, node)}
    source, target = sides.get(verdict.direction, ("", ""))
    return VerdictView(
        rule=verdict.rule,
        source=source,
        target=target,
        start=verdict.start.value,
        text=verdict.text,
        gives_up=verdict.gives_up,
    )


def summary_of(text: str) -> Summary:
    """The other node's summary as it came over the API. Raises UsageError."""
    try:
        found: Summary = from_plain(Summary, json.loads(text), "against")
    except (ValueError, EncodingError) as problem:
        raise UsageError(f"against is no summary of a copy: {problem}") from None
    return found


# --- both together ------------------------------------------------------------------------


async def plan(host: ModuleHost, peer_api: PeerApi, target: str) -> PlanView:
    """What would be moved. Raises RefusedError when `target` cannot be the target."""
    if target and target not in (host.node, host.peer):
        raise UsageError(f"there is no node {target!r}", f"Nodes: {host.node}, {host.peer}.")
    first = await own_copy(host, None, target)
    other = await peer_api.copy_of(host.name, first.summary, target)
    mine = await own_copy(host, summary_of(json.dumps(other.summary)), target)
    assert mine.verdict is not None
    if other.verdict is None:
        raise FailedError(f"{host.peer} has no verdict", "Do both nodes run the same version?")
    verdict = mine.verdict
    if target and verdict.target != target:
        raise RefusedError(f"{target} cannot be the target ({verdict.rule}): {verdict.text}")
    copies = {one.node: one for one in (mine, other)}
    agree = verdict.same == other.verdict.same
    if agree and verdict.source and verdict.start == SessionStart.FULL.value:
        copies = {node: await with_sizes(host, peer_api, one) for node, one in copies.items()}
    return _plan_view(host, target, verdict, other.verdict, copies, agree)


def _plan_view(
    host: ModuleHost,
    target: str,
    verdict: VerdictView,
    other: VerdictView,
    copies: dict[str, CopyView],
    agree: bool,
) -> PlanView:
    in_sync = all(one.in_sync for one in copies.values())
    moves = agree and bool(verdict.source) and not in_sync
    files, most = _most(verdict, copies) if moves else (None, None)
    rates = [copies[one].resync_bytes_per_s for one in (verdict.source, verdict.target) if one]
    rate = max(rates, default=0)
    seconds = -(-most // rate) if most is not None and rate else None
    fits, room_text = fits_in(verdict, copies) if moves else (None, "")
    return PlanView(
        module=host.name,
        answered_by=host.node,
        asked_target=target,
        text=_sentence(host, verdict, other, copies, agree),
        agree=agree,
        moves=moves,
        in_sync=in_sync,
        verdict=verdict,
        verdicts={host.node: verdict, host.peer: other},
        loss=_loss(verdict, copies) if moves else "",
        files=files,
        bytes=most,
        bytes_per_s=rate,
        seconds=seconds,
        time_text=_time_text(moves, most, rate, seconds),
        safety=_safety_plan(verdict, copies, most) if moves else SafetyPlan(kind="none", text=""),
        fits=fits,
        room_text=room_text,
        copies=dict(sorted(copies.items())),
    )


def _sentence(
    host: ModuleHost,
    verdict: VerdictView,
    other: VerdictView,
    copies: dict[str, CopyView],
    agree: bool,
) -> str:
    if not agree:
        return (
            f"nothing would be moved, the nodes do not agree: {host.node} says {verdict.text} "
            f"({verdict.rule}), {host.peer} says {other.text} ({other.rule})"
        )
    if all(one.in_sync for one in copies.values()):
        return "both copies are in sync: nothing is to be moved"
    if not verdict.source:
        start = SessionStart(verdict.start)
        equal = start is SessionStart.IN_SYNC
        return verdict.text if equal else f"nothing would be moved: {verdict.text}"
    what = _STARTS[SessionStart(verdict.start)]
    first = f"; {verdict.target} must be stopped first" if copies[verdict.target].runs else ""
    way = f"{verdict.target} would be made equal to {verdict.source}"
    return f"{way}: {verdict.text}; {what}{first}"


def _most(verdict: VerdictView, copies: dict[str, CopyView]) -> tuple[int | None, int | None]:
    """Files and bytes to be compared at most: the union of both logs, or all of the source."""
    if verdict.start == SessionStart.FULL.value:
        return None, copies[verdict.source].tree_bytes
    ones = [one.candidates for one in copies.values()]
    by_path = [{one.path: one for one in side.listed} for side in ones]
    both = by_path[0].keys() & by_path[1].keys()
    files = sum(side.files for side in ones) - len(both)
    total = sum(side.bytes for side in ones)
    for path in both:
        left, right = (side[path] for side in by_path)
        if left.whole or right.whole:
            # One of them stands for all of the file already.
            total -= min(left.bytes, right.bytes)
    return files, total


def _loss(verdict: VerdictView, copies: dict[str, CopyView]) -> str:
    if not verdict.gives_up:
        return ""
    giver = copies[verdict.target]
    since = f" since {_minute(giver.alone_since)}" if giver.alone_since else ""
    found = giver.candidates
    if found.everything:
        return f"what {giver.node} has written{since} is given up; how much is not known"
    much = f"{count_text(found.files, 'file')} with at most {size_text(found.bytes)}"
    return f"what {giver.node} has written{since} is given up: {much}"


def _time_text(moves: bool, most: int | None, rate: int, seconds: int | None) -> str:
    if not moves:
        return ""
    if not rate:
        return "unknown: nothing was copied yet"
    if most is None or seconds is None:
        return "unknown: how much is to be compared is not known"
    return f"about {max(1, seconds)} s at {size_text(rate)}/s, as the last resync went"


def _safety_plan(verdict: VerdictView, copies: dict[str, CopyView], most: int | None) -> SafetyPlan:
    target = copies[verdict.target]
    kind = target.safety
    if kind == "none":
        return SafetyPlan(kind=kind, text=f"no safety copy of what {target.node} has is made")
    free = target.free_bytes
    room = None if free is None else max(0, free - target.reserve_bytes)
    fits = None if most is None or room is None else most <= room
    if fits is None:
        text = "whether there is room for a safety copy is not known"
    elif fits and target.data is DataState.INCONSISTENT:
        before = f"what {target.node} had before its resync began"
        text = f"the safety copy of {before} goes on ({kind.replace('_', ' ')})"
    elif fits:
        text = f"a safety copy keeps what {target.node} has now ({kind.replace('_', ' ')})"
    elif kind == "required":
        text = "a safety copy is required and may not fit: nothing is overwritten without it"
    else:
        text = "a safety copy may not fit: then there is no way back during this resync"
    return SafetyPlan(kind=kind, text=text, needed_bytes=most, free_bytes=room, fits=fits)


async def diff(host: ModuleHost, peer_api: PeerApi) -> DiffView:
    """What each copy's log says that it changed, as far as both nodes can be asked."""
    copies: dict[str, CopyView] = {}
    missing: dict[str, str] = {}
    try:
        copies[host.node] = await own_copy(host, None, "")
    except HyperhaError as problem:
        missing[host.node] = str(problem)
    try:
        copies[host.peer] = await peer_api.copy_of(host.name, None, "")
    except HyperhaError as problem:
        missing[host.peer] = str(problem)
    bases = {one.candidates.base for one in copies.values() if one.candidates.base}
    alone = [one for one in copies.values() if one.alone_since]
    split = len(alone) == 2 and len({one.generation for one in alone}) == 2
    return DiffView(
        module=host.name,
        answered_by=host.node,
        text=_diff_text(copies, split),
        split=split,
        base=bases.pop() if len(bases) == 1 else "",
        copies=dict(sorted(copies.items())),
        missing=missing,
    )


def _diff_text(copies: dict[str, CopyView], split: bool) -> str:
    if split:
        sides = ", ".join(f"{one.node} since {_minute(one.alone_since)}" for one in copies.values())
        return f"both nodes went on by themselves: {sides}"
    if len(copies) == 2 and all(one.in_sync for one in copies.values()):
        return "both copies are in sync: the logs hold only what is being written"
    parts = [
        f"{one.node} went on by itself since {_minute(one.alone_since)}"
        for one in copies.values()
        if one.alone_since
    ]
    return "; ".join(parts) or "neither node went on by itself"


def _minute(at: str) -> str:
    """A time for people."""
    return f"{at[:16].replace('T', ' ')} UTC"
