"""The model of cluster.toml: nodes, LANs, timing, arbitration, witness, ports.

Shapes and single values only; what several keys say together is checked in `loading`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
)

from hyperha.domain import NODE_NAME_PATTERN

_LAN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}")
_CLUSTER_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
FULL_SCALE_MS = 3500
"""The takeover_wait that the fixed margins of L3' are made for; a faster profile scales them."""


def _node_name(value: str) -> str:
    if not NODE_NAME_PATTERN.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a name: up to 32 of a-z, 0-9 and -, the first not a hyphen"
        )
    return value


def _lan_name(value: str) -> str:
    if not _LAN_NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a LAN name: up to 32 letters, digits and -, the first not a hyphen"
        )
    return value


def _cluster_id(value: str) -> str:
    if not _CLUSTER_ID.fullmatch(value):
        raise ValueError(f"{value!r} is not a cluster id: up to 64 letters, digits and -")
    return value


def _address(value: str) -> str:
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"{value!r} is not an IPv4 or IPv6 address (no names, no ports)") from None
    if found.is_unspecified or found.is_multicast:
        raise ValueError(f"{value!r} is no address of one machine")
    return str(found)


NodeNameText = Annotated[StrictStr, AfterValidator(_node_name)]
LanNameText = Annotated[StrictStr, AfterValidator(_lan_name)]
AddressText = Annotated[StrictStr, AfterValidator(_address)]
Positive = Annotated[StrictInt, Field(gt=0)]
PortNumber = Annotated[StrictInt, Field(ge=1, le=65535)]


class Section(BaseModel):
    """A table of a configuration file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Lan(Section):
    """A named network with one address per node; carries heartbeats, some also replication."""

    name: LanNameText
    addresses: dict[NodeNameText, AddressText]
    encryption: Literal["tls", "none"] = "tls"


class Replication(Section):
    """Which LANs may carry replication, in order of preference; none named means all (D12)."""

    lans: tuple[LanNameText, ...] = ()


class Timing(Section):
    """The timing of L3', in milliseconds; the sums are checked by `timing_problems`."""

    heartbeat_ms: Positive = 250
    suspect_ms: Positive = 1500
    stall_limit_ms: Positive = 3000
    takeover_wait_ms: Positive = 3500
    pause_after_ms: Positive = 5000

    def scaled(self, full_ms: int) -> int:
        """A fixed span of L3' (made for takeover_wait 3.5 s) for this profile; never longer."""
        return min(full_ms, full_ms * self.takeover_wait_ms // FULL_SCALE_MS)

    @property
    def ask_timeout_ms(self) -> int:
        """How long one question to a witness may take (L3')."""
        return self.scaled(1000)

    @property
    def ask_margin_ms(self) -> int:
        """What lies between the last answer of a witness and the end of the lease (L3')."""
        return self.scaled(250)

    @property
    def fence_ms(self) -> int:
        """How long the guardian may take until a module is fenced (L3', N5)."""
        return self.scaled(250)

    @property
    def takeover_margin_ms(self) -> int:
        """What lies between the primary's last moment and the secondary's first (L3')."""
        return self.scaled(500)


class Arbitration(Section):
    """What happens when the peer is silent on every path and there is no witness (W6')."""

    isolation: Literal["primary", "run", "hold"] = "run"
    probe: tuple[AddressText, ...] = ()


class Witness(Section):
    """The third party asked before a node continues alone (W1-W11)."""

    kind: Literal["ping", "lease"]
    addresses: tuple[AddressText, ...] = ()
    url: StrictStr = ""
    fingerprint: StrictStr = ""
    """SHA-256 of the certificate of a lease witness, as `hyperha witness run` shows it."""
    ttl_ms: Positive | None = None

    def ttl_for(self, timing: Timing) -> int:
        """The lease time: as configured, else 2.75 s scaled with the profile (L3')."""
        return self.ttl_ms if self.ttl_ms is not None else timing.scaled(2750)


class Ports(Section):
    """The port numbers of a node; heartbeats use `peer` over UDP, replication over TCP."""

    api: PortNumber = 9010
    peer: PortNumber = 9011


class Cluster(Section):
    """cluster.toml as a value."""

    schema_number: Literal[1] = Field(alias="schema")
    cluster: NodeNameText
    id: Annotated[StrictStr, AfterValidator(_cluster_id)]
    version: Positive = 1
    nodes: tuple[NodeNameText, ...]
    lan: tuple[Lan, ...]
    replication: Replication = Replication()
    timing: Timing = Timing()
    arbitration: Arbitration = Arbitration()
    witness: Witness | None = None
    fence: dict[NodeNameText, tuple[StrictStr, ...]] = Field(default_factory=dict)
    ports: Ports = Ports()

    def peer_of(self, node: str) -> str:
        """The other node."""
        return next(other for other in self.nodes if other != node)

    def lan_named(self, name: str) -> Lan:
        """The LAN of this name; the names were checked at load."""
        return next(lan for lan in self.lan if lan.name == name)

    def api_urls(self, node: str) -> tuple[str, ...]:
        """Where the API of this node is reached, one address per LAN in the order of the file."""
        addresses = (lan.addresses[node] for lan in self.lan)
        hosts = (f"[{address}]" if ":" in address else address for address in addresses)
        return tuple(f"https://{host}:{self.ports.api}" for host in hosts)

    def replication_lans(self) -> tuple[Lan, ...]:
        """The LANs that may carry replication, best first (D12)."""
        names = self.replication.lans or tuple(lan.name for lan in self.lan)
        return tuple(self.lan_named(name) for name in names)

    @property
    def ttl_ms(self) -> int | None:
        """The lease time in force, or None without a witness."""
        return self.witness.ttl_for(self.timing) if self.witness else None
