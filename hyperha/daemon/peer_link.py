"""What the heartbeats bring, for the modules' mailboxes, and the way back to the other node's core.

Translates between the heartbeat package and the core's events; decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from hyperha.core.events import (
    CertificateReceived,
    Event,
    MessageReceived,
    PeerHeard,
    PeerSilent,
    PeerStatus,
    SelfStalled,
)
from hyperha.core.messages import PeerMessage
from hyperha.daemon import peer_codec
from hyperha.daemon.module_task import boottime_ms
from hyperha.encoding import EncodingError
from hyperha.heartbeat.links import HeartbeatLinks, PeerView
from hyperha.heartbeat.message import Certificate, ModuleStatus

_log = logging.getLogger(__name__)


class Mailbox(Protocol):
    """One module, as the heartbeats see it."""

    number: int

    @property
    def runs_vm(self) -> bool:
        """Whether this node runs its VM."""

    def post(self, event: Event) -> None:
        """An event for its core."""


class PeerLink:
    """Implements `HeartbeatEvents` for all modules of the node."""

    def __init__(
        self, changed: Callable[[], None], say: Callable[[str], None], addresses: frozenset[str]
    ) -> None:
        self._changed = changed
        self._say = say
        """Write a sentence into the node's log."""
        self._addresses = addresses
        """Where the peer is configured to be: what is refused from there is about the peer."""
        self.on_heard: Callable[[], None] = _nothing
        """Called with each word of the peer."""
        self._modules: dict[int, Mailbox] = {}
        self._told: dict[int, PeerStatus] = {}
        self.links: HeartbeatLinks | None = None
        self.lans: dict[str, bool] = {}
        self.heard_at_ms: int | None = None
        self.silent = True
        self.boot_id = ""
        self.config_version = 0
        self._refusals: list[tuple[str, str]] = []

    @property
    def refusals(self) -> list[str]:
        """Who was not believed, and why; the newest ones."""
        return [text for _, text in self._refusals]

    @property
    def distrust(self) -> str:
        """Why what comes from the peer's addresses is not believed; empty once it was heard."""
        return next((text for source, text in self._refusals if source in self._addresses), "")

    def add(self, module: Mailbox) -> None:
        """A module whose peer status is told from here on."""
        self._modules[module.number] = module

    def lan_changed(self, lan: str, up: bool) -> None:
        """A LAN came up or went down (L9)."""
        self.lans[lan] = up
        self._changed()

    def peer_heard(self, view: PeerView, again: bool) -> None:
        """The peer is heard: tell each module what concerns it, when it changed."""
        self.silent = False
        self.on_heard()
        # What was refused before the peer was put right is no fact any more.
        self._refusals = [one for one in self._refusals if one[0] not in self._addresses]
        self.heard_at_ms = boottime_ms()
        self.boot_id = view.instance
        self.config_version = view.config_version
        for status in view.modules:
            module = self._modules.get(status.number)
            if module is None:
                continue
            told = _status(status, view)
            if again or self._told.get(status.number) != told:
                self._told[status.number] = told
                module.post(PeerHeard(told))
        spoken_of = {status.number for status in view.modules}
        for number in self._told.keys() - spoken_of:
            # The node is heard, but says nothing of this module: it can promise nothing (K1).
            del self._told[number]
            self._modules[number].post(PeerSilent(self.heard_at_ms))
        self._changed()

    def peer_silent(self, last_heard_ms: int) -> None:
        """Every path is silent."""
        self.silent = True
        self.heard_at_ms = last_heard_ms
        there = sum(one.role.runs_vm for one in self._told.values())
        here = sum(one.runs_vm for one in self._modules.values())
        self._told.clear()
        for module in self._modules.values():
            module.post(PeerSilent(last_heard_ms, here, there))
        self._changed()

    def message_received(self, module: int, payload: bytes) -> None:
        """A message for one module's core."""
        mailbox = self._modules.get(module)
        if mailbox is None:
            return
        try:
            mailbox.post(MessageReceived(peer_codec.decode(payload)))
        except EncodingError as problem:
            _log.error("message of the peer for module %d refused: %s", module, problem)

    def certificate_received(self, certificate: Certificate) -> None:
        """The peer's guardian certifies (L8)."""
        mailbox = self._modules.get(certificate.module)
        if mailbox is not None:
            mailbox.post(CertificateReceived(certificate.run, certificate.epoch))

    def stalled(self, gap_ms: int) -> None:
        """This node itself did not run (L7)."""
        for module in self._modules.values():
            module.post(SelfStalled(gap_ms))

    def refused(self, text: str, source: str) -> None:
        """Somebody sends what is not believed; said once per source."""
        _log.error("%s", text)
        self._say(text)
        self._refusals = [*self._refusals, (source, text)][-8:]
        self._changed()


def _nothing() -> None:
    """Nobody wants to know."""


def _status(status: ModuleStatus, view: PeerView) -> PeerStatus:
    return PeerStatus(
        status.role,
        status.readiness,
        status.data,
        status.epoch,
        status.generation,
        status.stopping,
        status.wanted,
        view.instance,
        view.config_version,
    )


class PeerChannel:
    """One module's way to the other node's core."""

    def __init__(self, links: HeartbeatLinks, number: int, timeout_ms: int) -> None:
        self._links = links
        self._number = number
        self._timeout_ms = timeout_ms

    def send(self, message: PeerMessage) -> None:
        """On every LAN, again until acknowledged or no longer worth it."""
        raw = peer_codec.encode(message)
        self._links.send_message(self._number, raw, timeout_ms=self._timeout_ms)
