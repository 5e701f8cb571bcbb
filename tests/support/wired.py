"""Two copies whose primary reaches the other one by two LANs, each a cable that can break."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hyperha.core.events import SessionLost, SessionStalled
from hyperha.replication.control import LogLine, PeerLink
from hyperha.security.authority import Authority
from tests.support.cable import Cable
from tests.support.certificates import certificates
from tests.support.engine_pair import Pair


class Wired(Pair):
    """A pair whose primary reaches the other node by two LANs, each a cable that can break."""

    def __init__(self, base: Path, *, tls: bool = False, kind: type[Cable] = Cable) -> None:
        super().__init__(base)
        target = ("127.0.0.1", self.a.config.links[0].peer_port)
        self.cables = [kind(target), kind(target)]
        files = None
        if tls:
            authority = Authority.create("paris", "cluster")
            files = certificates(base, self.a.node, authority)
            self.b.tls = certificates(base, self.b.node, authority)
        links = tuple(
            PeerLink(name, "127.0.0.1", cable.port, "127.0.0.1", files)
            for name, cable in zip(("repl", "prod"), self.cables, strict=True)
        )
        self.use(links)

    def use(self, links: tuple[PeerLink, ...]) -> None:
        """Give the primary these LANs."""
        side = self.a
        side.close()
        side.config = replace(side.config, links=links)
        side.open(fresh=False)

    def told(self, text: str) -> bool:
        return any(isinstance(one, LogLine) and text in one.text for one in list(self.a.events))

    def undisturbed(self) -> None:
        """Neither core has heard of a loss, or of a peer that gets nowhere."""
        for side in (self.a, self.b):
            assert not side.has(SessionLost)
            assert not side.has(SessionStalled)

    def close(self) -> None:
        super().close()
        for cable in self.cables:
            cable.close()


@contextmanager
def wired(base: Path, *, tls: bool = False) -> Iterator[Wired]:
    """Such a pair in sync; nothing of it is left afterwards."""
    made = Wired(base, tls=tls)
    try:
        made.in_sync()
        yield made
    finally:
        made.close()
