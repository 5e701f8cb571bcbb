"""Whom this node can ask when the peer is silent: its witness, its surroundings, the power switch.

Built from the configuration, shared by all modules.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from hyperha.api.wire import WitnessView
from hyperha.config import Configuration, Home
from hyperha.config.cluster import Witness
from hyperha.daemon.arbitrating import Arbiters
from hyperha.daemon.deadlines import Deadlines, Guardian, Promises
from hyperha.daemon.power import PowerSwitch
from hyperha.daemon.probe import Lookout, ProbeTargets
from hyperha.daemon.views import resource_state
from hyperha.domain import ResourceState
from hyperha.security.cluster_key import load_cluster_key
from hyperha.spawn.tree import RunPlace
from hyperha.witness.client import LeaseClient, token_of

PING_PERIOD_S = 10.0


class Witnesses:
    """Everything outside the two nodes that a decision may rest on."""

    def __init__(
        self,
        configuration: Configuration,
        home: Home,
        place: RunPlace,
        context: ssl.SSLContext,
        guardian: Guardian,
        links: Promises,
    ) -> None:
        cluster, peer = configuration.cluster, configuration.peer
        self._witness = cluster.witness
        self.lookout = Lookout(ProbeTargets.of(configuration), context)
        self.power = PowerSwitch(cluster.fence.get(peer, ()), peer, str(home.config), place)
        self.deadlines: Deadlines | None = None
        """None: the cluster has no witness."""
        self.arbiters: Arbiters | None = None
        """None: the cluster has no lease witness."""
        if cluster.ttl_ms is None or self._witness is None:
            return
        beat_ms = cluster.timing.heartbeat_ms
        self.deadlines = Deadlines(cluster.ttl_ms, beat_ms, guardian, links)
        if self._witness.kind == "lease":
            timeout_s = cluster.timing.ask_timeout_ms / 1000
            client = _lease_client(self._witness, cluster.id, home, timeout_s)
            self.arbiters = Arbiters(client, configuration.node, self.deadlines.renewed)

    def work(self, changed: Callable[[], None]) -> list[Coroutine[Any, Any, None]]:
        """What runs beside the modules; `changed` is called when people may see something new."""
        work: list[Coroutine[Any, Any, None]] = []
        if self.deadlines is not None:
            work.append(self.deadlines.run())
        if self._pinged:
            work.append(self._watch(changed))
        return work

    @property
    def _pinged(self) -> bool:
        return self._witness is not None and self._witness.kind == "ping"

    async def _watch(self, changed: Callable[[], None]) -> None:
        """Whether the ping witness answers, for people: a decision asks it anew."""
        while True:
            await self.lookout.isolated()
            changed()
            await asyncio.sleep(PING_PERIOD_S)

    def guardian_is_new(self) -> None:
        """Another guardian runs, which knows no deadline yet."""
        if self.deadlines is not None:
            self.deadlines.guardian_is_new()

    def view(self) -> WitnessView | None:
        """The witness as people see it; None where there is none."""
        if self._pinged:
            ways = self.lookout.ways
            found = [f"{address} ({way})" for address, way in ways.items() if way]
            state = resource_state(bool(found)) if ways else ResourceState.INIT
            return WitnessView(kind="ping", state=state)
        if self.arbiters is None:
            return None
        known = self.arbiters.answers
        return WitnessView(
            kind="lease", state=ResourceState.INIT if known is None else resource_state(known)
        )

    async def close(self) -> None:
        """End all questions and commands."""
        await self.power.close()
        if self.arbiters is not None:
            await self.arbiters.close()


def _lease_client(witness: Witness, cluster_id: str, home: Home, timeout_s: float) -> LeaseClient:
    token = token_of(load_cluster_key(home.cluster_key))
    return LeaseClient(witness.url, witness.fingerprint, cluster_id, token, timeout_s)
