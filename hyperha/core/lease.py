"""The lease witness: what it knows of one module, and what it answers. Pure; the service stores it.

A witness never decides who should run. It remembers who may (`holder`), whose copies have every
acknowledged write (`in_sync`, W1) and of which generation they are, and changes that only where
it harms nobody. A changed record is durable before it is answered (F11). How long a lease still
runs is not stored: after a start of its own a witness waits as if every holder had renewed just
then (W10).

Every request names the newest record that its node has seen. One that is older than that was lost
and found again, and is worth nothing (W4, W10); one that is newer makes a change stale (W7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

ANSWERS_KEPT = 8
"""Requests of a module whose first answer is given again (W7)."""


class Verdict(StrEnum):
    """What became of a request."""

    DONE = "done"
    REFUSED = "refused"
    STALE = "stale"
    """It was made for a record, or for a time, that is over: look again (W7)."""
    EARLY = "early"
    """The holder's lease runs, or may: again after `wait_ms` (W10)."""
    UNKNOWN = "unknown"
    """This witness knows nothing of the module, or less than the node has seen (W4, W10)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request, and the record as it is then."""

    verdict: Verdict
    text: str = ""
    """Why not, for people."""
    version: int = 0
    renewals: int = 0
    epoch: int = 0
    holder: str = ""
    in_sync: tuple[str, ...] = ()
    generation: str = ""
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """A request and its first answer."""

    id: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Record:
    """What a witness stores of one module of one cluster."""

    nodes: tuple[str, ...]
    version: int
    """Grows with every change (W7)."""
    epoch: int
    """Of the holder; only a witness mints them where there is one (H3)."""
    holder: str
    in_sync: tuple[str, ...]
    """The nodes whose copies have every acknowledged write (W1)."""
    generation: str
    """The line of data that these copies are of."""
    ttl_ms: int
    answered: tuple[Answered, ...] = ()
    """The last changes."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What a witness knows only while it runs; milliseconds of its own CLOCK_BOOTTIME (L2, K4)."""

    until_ms: int
    renewals: int = 0
    """Grows with each renewal: what was asked before one is late."""
    refused: tuple[Answered, ...] = ()
    """The last requests that came to nothing."""


@dataclass(frozen=True, slots=True)
class Request:
    """What every request says: who asks, and the highest version that it has seen."""

    id: str
    node: str
    version: int

    def renewed_by(self, answer: Answer) -> bool:
        """Whether the lease of the holder began anew with this answer: for the holder, when it
        sent the request (L2)."""
        return answer.verdict is Verdict.DONE


@dataclass(frozen=True, slots=True)
class Look(Request):
    """Only tell what is known."""

    def renewed_by(self, answer: Answer) -> bool:
        """A look changes nothing."""
        return False


@dataclass(frozen=True, slots=True)
class Takeover(Request):
    """The node wants to be the holder, under this epoch or a higher one (W5)."""

    claim: int
    renewals: int
    generations: tuple[str, ...]
    """What its copy is of, and what it may be taken for after a crash (W9)."""
    ended: int | None = None
    """The epoch whose run the holder's guardian, or the holder itself, says is over (L8, D10)."""


@dataclass(frozen=True, slots=True)
class HolderRequest(Request):
    """Only the holder may ask for it, and only under its epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Renew(HolderRequest):
    """The holder runs on: from now on its lease lasts for `ttl_ms`."""

    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Shrink(HolderRequest):
    """The holder is about to acknowledge without the other node, as this generation (W1, F4)."""

    generation: str


@dataclass(frozen=True, slots=True)
class Grow(HolderRequest):
    """The other node has said durably that its copy of this generation is up to date (R11)."""

    generation: str


@dataclass(frozen=True, slots=True)
class HandOver(HolderRequest):
    """The commit of a planned move: from here on only the other node may run (H2)."""

    to_epoch: int


@dataclass(frozen=True, slots=True)
class Register(Request):
    """The record is to be this, where there is none that counts (W4).

    By the primary of two connected nodes. On somebody's word (`by`) it also replaces a record that
    counts: the other node's, which has agreed durably (P7), or an operator's (P9).
    """

    nodes: tuple[str, ...]
    epoch: int
    in_sync: tuple[str, ...]
    generation: str
    ttl_ms: int
    by: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """Record and lease of a module; None where nothing is known."""

    record: Record | None
    lease: Lease


def started(record: Record | None, now_ms: int, renewals: int) -> Known:
    """What a witness knows when it starts: nobody takes over for one lease (W10). `renewals` is a
    number that it has not counted up to before."""
    return Known(record, Lease(now_ms + (record.ttl_ms if record else 0), renewals))


def answered(known: Known, request: Request, now_ms: int) -> tuple[Known, Answer]:
    """What is known after a request, and its answer. Total.

    If the record is another one than before, it must be durable before the answer is sent (F11).
    """
    record, lease = known.record, known.lease
    for one in (*(record.answered if record else ()), *lease.refused):
        if one.id == request.id:
            return known, one.answer
    if isinstance(request, Register):
        return _register(known, request, now_ms)
    if record is None:
        return known, Answer(Verdict.UNKNOWN, "this witness knows nothing of the module")
    if request.node not in record.nodes:
        return known, _answer(known, Verdict.REFUSED, f"{request.node} is none of its nodes")
    if _forgot(record, request):
        return known, _answer(known, Verdict.UNKNOWN, _forgotten(record, request))
    if isinstance(request, Look):
        return known, _answer(known, Verdict.DONE)
    if isinstance(request, Renew):
        return _renew(record, lease, request, now_ms)
    refusal = _refusal(known, record, request, now_ms)
    if refusal is not None:
        refused = (*lease.refused, Answered(request.id, refusal))[-ANSWERS_KEPT:]
        return Known(record, replace(lease, refused=refused)), refusal
    return _changed(_CHANGES[type(request)](record, request), lease, request, now_ms)


def _forgot(record: Record, request: Request) -> bool:
    """Whether the node has seen a later record than the one that is known here (W10)."""
    return request.version > record.version


def _forgotten(record: Record, request: Request) -> str:
    return (
        f"this witness knows version {record.version} of the module, {request.node} has seen "
        f"version {request.version}: it has lost what it knew"
    )


def _register(known: Known, request: Register, now_ms: int) -> tuple[Known, Answer]:
    record = known.record
    counts = record is not None and not _forgot(record, request)
    if record is not None and counts and not (request.by and request.version == record.version):
        text = f"the module is known, its record is at version {record.version}"
        return known, _answer(known, Verdict.STALE, text)
    fresh = Record(
        request.nodes,
        max(request.version, record.version if record else 0),
        max(request.epoch, _least_epoch(record, request)),
        request.node,
        request.in_sync,
        request.generation,
        request.ttl_ms,
        record.answered if record else (),
    )
    return _changed(fresh, known.lease, request, now_ms)


def _least_epoch(record: Record | None, request: Register) -> int:
    """What an operator does past the rules begins an epoch of its own."""
    if record is None:
        return 0
    return record.epoch + 1 if request.by else record.epoch


def _renew(record: Record, lease: Lease, request: Renew, now_ms: int) -> tuple[Known, Answer]:
    known = Known(record, lease)
    if not _holds(record, request):
        return known, _answer(known, Verdict.REFUSED, _held(record))
    record = replace(record, ttl_ms=request.ttl_ms)
    known = Known(record, _renewed(record, lease, now_ms))
    return known, _answer(known, Verdict.DONE)


def _holds(record: Record, request: HolderRequest) -> bool:
    return (request.node, request.epoch) == (record.holder, record.epoch)


def _held(record: Record) -> str:
    return f"{record.holder} may run, under epoch {record.epoch}"


def _refusal(known: Known, record: Record, request: Request, now_ms: int) -> Answer | None:
    """Why a change must not be, or None."""
    if request.version != record.version:
        return _answer(known, Verdict.STALE, f"the record is at version {record.version} by now")
    if isinstance(request, Takeover):
        return _no_takeover(known, record, request, now_ms)
    assert isinstance(request, HolderRequest), "every other change is the holder's"
    if not _holds(record, request):
        return _answer(known, Verdict.REFUSED, _held(record))
    other = _other(record, request.node)
    match request:
        case Grow(generation=generation) if generation != record.generation:
            text = f"the copies in sync are of generation {record.generation}, not {generation}"
            return _answer(known, Verdict.REFUSED, text)
        case HandOver() if other not in record.in_sync:
            return _answer(known, Verdict.REFUSED, f"the copy of {other} is not in sync")
        case HandOver(to_epoch=epoch) if epoch <= record.epoch:
            return _answer(known, Verdict.REFUSED, f"epoch {epoch} is not a later one")
        case _:
            return None


def _no_takeover(known: Known, record: Record, request: Takeover, now_ms: int) -> Answer | None:
    """W5: in sync, fresh, and nobody else's lease can still run."""
    if request.node not in record.in_sync:
        text = f"the copy of {request.node} is not in sync; {_held(record)}"
        return _answer(known, Verdict.REFUSED, text)
    if record.generation not in request.generations:
        text = f"the copy of {request.node} is of another generation than the one in sync"
        return _answer(known, Verdict.REFUSED, text)
    if request.node == record.holder or request.ended == record.epoch:
        return None
    if request.renewals != known.lease.renewals:
        return _answer(known, Verdict.STALE, f"{record.holder} has renewed its lease since")
    if now_ms < known.lease.until_ms:
        early = _answer(known, Verdict.EARLY, f"the lease of {record.holder} runs")
        return replace(early, wait_ms=known.lease.until_ms - now_ms)
    return None


def _other(record: Record, node: str) -> str:
    return next((one for one in record.nodes if one != node), "")


def _shrink(record: Record, request: Shrink) -> Record:
    return replace(record, in_sync=(request.node,), generation=request.generation)


def _grow(record: Record, request: Grow) -> Record:
    return replace(record, in_sync=record.nodes)


def _hand_over(record: Record, request: HandOver) -> Record:
    return replace(record, holder=_other(record, request.node), epoch=request.to_epoch)


def _take_over(record: Record, request: Takeover) -> Record:
    epoch = max(record.epoch + 1, request.claim)
    return replace(record, holder=request.node, epoch=epoch)


_CHANGES: dict[type[Request], Callable[[Record, Any], Record]] = {
    Shrink: _shrink,
    Grow: _grow,
    HandOver: _hand_over,
    Takeover: _take_over,
}


def _changed(record: Record, lease: Lease, request: Request, now_ms: int) -> tuple[Known, Answer]:
    """Each change is the holder's sign of life, or makes another holder."""
    record = replace(record, version=record.version + 1)
    lease = _renewed(record, lease, now_ms)
    answer = _answer(Known(record, lease), Verdict.DONE)
    kept = (*record.answered, Answered(request.id, answer))[-ANSWERS_KEPT:]
    return Known(replace(record, answered=kept), lease), answer


def _renewed(record: Record, lease: Lease, now_ms: int) -> Lease:
    return replace(lease, until_ms=now_ms + record.ttl_ms, renewals=lease.renewals + 1)


def _answer(known: Known, verdict: Verdict, text: str = "") -> Answer:
    record = known.record
    assert record is not None, "only what is known is told"
    return Answer(
        verdict,
        text,
        record.version,
        known.lease.renewals,
        record.epoch,
        record.holder,
        record.in_sync,
        record.generation,
    )
