"""Which keys of the contract this release only knows, and refuses to be given.

A key that is accepted and not obeyed is a promise that nobody keeps: whoever relies on a witness
must hear when the files are loaded that there is none. The rules between such keys (`checking`)
hold all the same: what is wrong by the contract is never only "not in this release".
"""

from __future__ import annotations

from collections.abc import Iterator

from hyperha.config.checking import Key, Problem
from hyperha.config.cluster import Cluster
from hyperha.config.module import ModuleConfig


def _missing(key: Key, value: object, fix: str) -> Problem:
    return Problem(key, f"{value!r}: not in this release", fix)


def cluster_gaps(cluster: Cluster) -> Iterator[Problem]:
    """Witnesses and commands that switch a node off."""
    if cluster.witness is not None:
        yield _missing(
            ("witness", "kind"),
            cluster.witness.kind,
            "Remove the [witness] table; arbitration.isolation decides when the peer is silent.",
        )
    for node, command in cluster.fence.items():
        yield _missing(
            ("fence", node),
            " ".join(command),
            "Remove the [fence] table; each node's guardian ends and certifies its own VM.",
        )


def module_gaps(module: ModuleConfig) -> Iterator[Problem]:
    """Drivers, orders and preferences of starting, suspended VMs."""
    if module.driver != "process":
        yield _missing(("driver",), module.driver, 'Use driver = "process".')
    if module.start_after:
        yield _missing(
            ("start_after",),
            list(module.start_after),
            "Remove it: modules start independently of each other; boot_delay_s delays one.",
        )
    if module.default_primary != "none":
        yield _missing(
            ("default_primary",),
            module.default_primary,
            "Remove it: the first node of the cluster begins where both could.",
        )
    if module.priority != ModuleConfig.model_fields["priority"].default:
        yield _missing(
            ("priority",), module.priority, "Remove it: all modules are moved at the same time."
        )
    for name, mode in (("normal", module.stop.normal), ("force", module.stop.force)):
        if mode == "save":
            yield _missing(
                ("stop", name), mode, 'Use "stop" or "off": a process has no saved state.'
            )
    if "transition" in module.scripts.replace:
        yield _missing(
            ("scripts", "replace"), "transition", "Remove it: there is no transition step."
        )
