"""What the two nodes' cores say to each other; sent on every LAN, authenticated, at least once.

Every message is safe to receive twice: it names the epoch, session or nonce it belongs to, and a
core that has moved on ignores it (D9, K2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hyperha.core.records import DataLabel, Lineage
from hyperha.domain import Epoch, SessionKey


@dataclass(frozen=True, slots=True)
class Summary:
    """What the lineage decision needs to know of a node's copy."""

    resource: str
    node: str
    current: str
    base: str
    history: tuple[str, ...]
    label: DataLabel
    target_generation: str
    intent_primary: bool
    epoch: Epoch
    was_primary: bool
    candidates: int
    """Unresolved intent-log records plus dirty zones; -1 when log or map are damaged (Z6)."""
    folder_empty: bool
    adopt: bool = False
    full: bool = False
    unknown: bool = False
    """The folder is not the one that the record speaks of: never a source (R12)."""
    yields_to: str = ""
    """The generation that this node's own line gives way to (R16)."""

    @staticmethod
    def of(
        lineage: Lineage,
        candidates: int,
        folder_empty: bool,
        *,
        adopt: bool = False,
        full: bool = False,
        unknown: bool = False,
    ) -> Summary:
        """The summary of a node's own record."""
        return Summary(
            resource=lineage.resource,
            node=lineage.node,
            current=lineage.current.id,
            base=lineage.base,
            history=lineage.history,
            label=lineage.label,
            target_generation=lineage.target_generation,
            intent_primary=lineage.intent_primary,
            epoch=lineage.epoch,
            was_primary=lineage.was_primary,
            candidates=candidates,
            folder_empty=folder_empty,
            adopt=adopt,
            full=full or lineage.full_compare_owed,
            unknown=unknown,
            yields_to=lineage.yields_to,
        )


class PeerMessage:
    """Root of everything that a core sends to the other one."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Claim(PeerMessage):
    """I want to run under this epoch; grant it durably or refuse (P7). `survivor`: alone (H1)."""

    epoch: Epoch
    summary: Summary
    survivor: bool
    operator: bool = False


@dataclass(frozen=True, slots=True)
class Grant(PeerMessage):
    """Granted durably; `outdated`: the granting node has written OUTDATED on its own disk (F5)."""

    epoch: Epoch
    summary: Summary
    outdated: bool


@dataclass(frozen=True, slots=True)
class Refusal(PeerMessage):
    """Not granted, and why."""

    epoch: Epoch
    summary: Summary
    reason: str


@dataclass(frozen=True, slots=True)
class OutdateRequest(PeerMessage):
    """Write OUTDATED on your disk, then say so (D2a, D9)."""

    generation: str
    epoch: Epoch
    session: int
    nonce: str


@dataclass(frozen=True, slots=True)
class OutdateAnswer(PeerMessage):
    """The answer to the request with that nonce, sent after the disk has it (F5)."""

    nonce: str
    outdated: bool
    epoch: Epoch
    reason: str
    ran: bool = False
    """Its copy is whole, and it has run the VM since, under an epoch above the request's."""


@dataclass(frozen=True, slots=True)
class JoinRequest(PeerMessage):
    """I am ready to follow you."""

    summary: Summary
    attempt: int
    session_number: int
    """The highest session number this node has seen: the next one must be higher (T3)."""


@dataclass(frozen=True, slots=True)
class JoinOffer(PeerMessage):
    """The source's verdict and the session it would open; the target must reach the same one."""

    attempt: int
    summary: Summary
    rule: str
    session: SessionKey


@dataclass(frozen=True, slots=True)
class JoinAccept(PeerMessage):
    """The target agrees, has its label durable (F8) and expects the session."""

    session: SessionKey


@dataclass(frozen=True, slots=True)
class JoinRefusal(PeerMessage):
    """The two nodes do not agree, or this node is no source; nothing is moved."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class ResyncDone(PeerMessage):
    """R11: a barrier is on both; write UPTODATE with this generation and history."""

    session: SessionKey
    history: tuple[str, ...]
    ordinal: int
    reason: str
    at_wall_ms: int


@dataclass(frozen=True, slots=True)
class ResyncConfirmed(PeerMessage):
    """R11: UPTODATE is on the target's disk."""

    session: SessionKey


class HandoverKind(StrEnum):
    """Why the primary role moves as planned."""

    STOP = "stop"
    SWAP = "swap"
    ROOM = "room"
    """This node's disk is full: like a swap until the commit, like a stop after it (D11)."""

    @property
    def leaves(self) -> bool:
        """Whether the leaver is stopped and outdated afterwards, instead of following."""
        return self is not HandoverKind.SWAP

    @property
    def moves_only(self) -> bool:
        """Whether nobody asked for an end: without the move the VM goes on where it is (H2)."""
        return self is not HandoverKind.STOP


@dataclass(frozen=True, slots=True)
class HandoverRequest(PeerMessage):
    """Claim this epoch durably if you could run the VM (H2)."""

    epoch: Epoch
    kind: HandoverKind


@dataclass(frozen=True, slots=True)
class HandoverReady(PeerMessage):
    """Preflight passed and the epoch is claimed durably."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class HandoverRefused(PeerMessage):
    """Not possible, and why; `stopping`: this node is leaving too (H1)."""

    epoch: Epoch
    reason: str
    stopping: bool


@dataclass(frozen=True, slots=True)
class HandoverCancelled(PeerMessage):
    """The leaver changed its mind before the commit; the claim is void."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Released(PeerMessage):
    """The commit: the leaver's release record is durable, only you may run (H2)."""

    epoch: Epoch
    kind: HandoverKind
    outdated: bool


@dataclass(frozen=True, slots=True)
class Taken(PeerMessage):
    """The epoch's node has its intent durable."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class LeaveRequest(PeerMessage):
    """The secondary wants to stop: do you go on as the survivor (H1)?"""

    session: int


@dataclass(frozen=True, slots=True)
class LeaveAnswer(PeerMessage):
    """`survivor`: leave as outdated. Otherwise I am stopping too: stay for the final barrier."""

    session: int
    survivor: bool
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Goodbye(PeerMessage):
    """The secondary has left; `outdated` says whether that stands on its disk (D7)."""

    session: int
    outdated: bool


@dataclass(frozen=True, slots=True)
class LastManStopped(PeerMessage):
    """Both were stopping: the final barrier is on both, neither is outdated (H1)."""

    session: int


@dataclass(frozen=True, slots=True)
class SplitReport(PeerMessage):
    """Both run the VM: what the sender knows of its own line, the same under the same nonce (R16).

    `heard` is the nonce of the other side's report that this one was sent after; empty: of none.
    """

    nonce: str
    heard: str
    generation: str
    leased: bool
    """Whether its line goes on by the lease."""
    forced: bool
    """Whether an operator has started it: never given up without one."""
    wrote: bool
    """Whether it may have acknowledged anything since the two parted."""
    reached: bool | None
    """Whether it reached others when they parted; None: it did not ask."""
    ran_before: bool
    """Whether it is the one that ran the VM when they parted."""


@dataclass(frozen=True, slots=True)
class Abdicated(PeerMessage):
    """The primary's disk failed; it has fenced itself and is out (D10)."""

    epoch: Epoch
    reason: str
